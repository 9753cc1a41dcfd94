//! What vp-ctl changes. A change is made whole and kept, or not at all.

use super::Problem;
use crate::agent::{Agent, Refused};
use crate::config::{exposure, mapping};
use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use std::sync::Arc;
use vp::addr::Name;
use vp::node::ServicePattern;
use vp_proto::api;

type Request<T> = Result<Json<T>, JsonRejection>;
type Answer<T> = Result<Json<T>, Problem>;

pub async fn map(State(agent): State<Arc<Agent>>, request: Request<api::MapRequest>) -> Answer<api::MapResponse> {
    let Json(request) = request?;
    let what = format!("vp-ctl map {}", request.service);
    let service = request.service.clone();
    let change = agent.change(what, move |runtime, config, settings| {
        let wanted = mapping(&request, settings)?;
        if let Some(place) = config.mapped_at(&wanted.service) {
            return Err(Refused::Request(format!("{} is mapped in {place}, expected a change there", wanted.service)));
        }
        runtime.map.retain(|known| known.service != request.service);
        runtime.map.push(request);
        Ok(())
    });
    let mut warnings = change.await?;
    let presences = agent.handle.call(|node, _, _| node.presences()).await?;
    let pattern: Result<ServicePattern, _> = service.parse();
    let named = |presence: &api::Presence| {
        let name = presence.service.parse();
        matches!((&pattern, name), (Ok(pattern), Ok(name)) if pattern.matches(&name))
    };
    let mut presences: Vec<_> = presences.into_iter().filter(named).collect();
    let wanted = agent.wanted.lock().await;
    for presence in &mut presences {
        "runtime".clone_into(&mut presence.origin);
        presence.name = wanted.dns_name(&presence.service);
    }
    drop(wanted);
    if presences.is_empty() {
        warnings.push(format!("{service} has no presence yet: nothing of it is offered, or the pool is full"));
    }
    Ok(Json(api::MapResponse { presences, warnings }))
}

pub async fn unmap(State(agent): State<Arc<Agent>>, request: Request<api::UnmapRequest>) -> Answer<api::Done> {
    let Json(request) = request?;
    let what = format!("vp-ctl unmap {}", request.service);
    let change = agent.change(what, move |runtime, config, _| {
        let service = &request.service;
        if let Some(place) = service.parse().ok().and_then(|service| config.mapped_at(&service)) {
            return Err(Refused::Request(format!(
                "{service} is mapped in {place}, expected a change there and a reload"
            )));
        }
        remove(&mut runtime.map, |known| known.service == *service)
            .then_some(())
            .ok_or_else(|| Refused::Request(format!("{service} is not mapped")))
    });
    Ok(Json(api::Done { warnings: change.await? }))
}

pub async fn expose(State(agent): State<Arc<Agent>>, request: Request<api::ExposeRequest>) -> Answer<api::Done> {
    let Json(request) = request?;
    let what = format!("vp-ctl expose {}", request.name);
    let allows_nobody = request.allow.is_empty();
    let name = request.name.clone();
    let change = agent.change(what, move |runtime, config, settings| {
        let wanted = exposure(&request, settings)?;
        if let Some(place) = config.exposed_at(&wanted.name) {
            return Err(Refused::Request(format!("{} is exposed in {place}, expected a change there", wanted.name)));
        }
        runtime.expose.retain(|known| known.name != request.name);
        runtime.expose.push(request);
        Ok(())
    });
    let mut warnings = change.await?;
    if allows_nobody {
        warnings.push(format!("service {name} allows nobody: `allow` is empty"));
    }
    Ok(Json(api::Done { warnings }))
}

pub async fn unexpose(State(agent): State<Arc<Agent>>, request: Request<api::UnexposeRequest>) -> Answer<api::Done> {
    let Json(request) = request?;
    let what = format!("vp-ctl unexpose {}", request.name);
    let change = agent.change(what, move |runtime, config, _| {
        let name = &request.name;
        if let Some(place) = Name::new(name).ok().and_then(|name| config.exposed_at(&name)) {
            return Err(Refused::Request(format!(
                "{name} is exposed in {place}, expected a change there and a reload"
            )));
        }
        runtime.drained.retain(|drained| drained.service.as_ref() != Some(name));
        remove(&mut runtime.expose, |known| known.name == *name)
            .then_some(())
            .ok_or_else(|| Refused::Request(format!("{name} is not exposed")))
    });
    Ok(Json(api::Done { warnings: change.await? }))
}

pub async fn reload(State(agent): State<Arc<Agent>>) -> Answer<api::Done> {
    Ok(Json(api::Done { warnings: agent.reload().await? }))
}

pub async fn revocations(
    State(agent): State<Arc<Agent>>,
    request: Request<api::RevocationsRequest>,
) -> Answer<api::RevocationsResponse> {
    let Json(request) = request?;
    Ok(Json(agent.add_revocations(&request.list).await?))
}

/// Whether there was one to remove.
fn remove<T>(items: &mut Vec<T>, is_it: impl Fn(&T) -> bool) -> bool {
    let before = items.len();
    items.retain(|item| !is_it(item));
    items.len() < before
}
