//! What vp-ctl changes. A change is made whole and kept, or not at all.

use super::Problem;
use crate::agent::{Agent, Refused, exposure, mapping};
use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use std::sync::Arc;
use vp::node::ServicePattern;
use vp_proto::api;

type Request<T> = Result<Json<T>, JsonRejection>;
type Answer<T> = Result<Json<T>, Problem>;

pub async fn map(State(agent): State<Arc<Agent>>, request: Request<api::MapRequest>) -> Answer<api::MapResponse> {
    let Json(request) = request?;
    let service = request.service.clone();
    let change = agent.change(move |runtime, config| {
        let wanted = mapping(&request, &config.settings)?;
        if config.settings.mappings.iter().any(|known| known.service == wanted.service) {
            let file = config.file.display();
            return Err(Refused::Request(format!("{} is mapped in {file}, expected a change there", wanted.service)));
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
    presences.iter_mut().for_each(|presence| "runtime".clone_into(&mut presence.origin));
    if presences.is_empty() {
        warnings.push(format!("{service} has no presence yet: nothing of it is offered, or the pool is full"));
    }
    Ok(Json(api::MapResponse { presences, warnings }))
}

pub async fn unmap(State(agent): State<Arc<Agent>>, request: Request<api::UnmapRequest>) -> Answer<api::Done> {
    let Json(request) = request?;
    let change = agent.change(move |runtime, config| {
        let service = &request.service;
        if config.settings.mappings.iter().any(|known| known.service.to_string() == *service) {
            let file = config.file.display();
            return Err(Refused::Request(format!(
                "{service} is mapped in {file}, expected a change there and a reload"
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
    let allows_nobody = request.allow.is_empty();
    let name = request.name.clone();
    let change = agent.change(move |runtime, config| {
        let wanted = exposure(&request)?;
        if config.settings.exposures.iter().any(|known| known.name == wanted.name) {
            let file = config.file.display();
            return Err(Refused::Request(format!("{} is exposed in {file}, expected a change there", wanted.name)));
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
    let change = agent.change(move |runtime, config| {
        let name = &request.name;
        if config.settings.exposures.iter().any(|known| known.name.as_str() == name) {
            let file = config.file.display();
            return Err(Refused::Request(format!("{name} is exposed in {file}, expected a change there and a reload")));
        }
        remove(&mut runtime.expose, |known| known.name == *name)
            .then_some(())
            .ok_or_else(|| Refused::Request(format!("{name} is not exposed")))
    });
    Ok(Json(api::Done { warnings: change.await? }))
}

pub async fn reload(State(agent): State<Arc<Agent>>) -> Answer<api::Done> {
    Ok(Json(api::Done { warnings: agent.reload().await? }))
}

/// Whether there was one to remove.
fn remove<T>(items: &mut Vec<T>, is_it: impl Fn(&T) -> bool) -> bool {
    let before = items.len();
    items.retain(|item| !is_it(item));
    items.len() < before
}
