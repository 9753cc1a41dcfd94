//! What the agent shows.

use super::Problem;
use crate::agent::Agent;
use crate::audit::{self, Filter};
use crate::clock::unix_seconds;
use axum::Json;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::header;
use axum::response::IntoResponse;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::StreamExt;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;
use tokio::sync::broadcast;
use vp::addr::{Name, ServiceName};
use vp::node::Reason;
use vp_proto::api;

/// As many flows as one answer has, unless asked for fewer.
const FLOWS_MAX: usize = 10_000;

/// What `vp-ctl audit` shows unless told otherwise.
const AUDIT_LINES: usize = 20;
/// Some 10 MB of an answer.
const AUDIT_LINES_MAX: usize = 20_000;

type Answer<T> = Result<Json<T>, Problem>;

pub async fn status(State(agent): State<Arc<Agent>>) -> Answer<api::Status> {
    let query = agent.handle.call(|node, _, now| {
        let settings = node.settings();
        let pool = settings.pool.prefixes().iter().map(ToString::to_string).collect::<Vec<_>>();
        let drops = node.drops();
        let drops = Reason::ALL.iter().map(|reason| (reason.word().to_owned(), drops.of(*reason))).collect();
        let shown = api::Status {
            site: settings.site.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: 0,
            interface: String::new(),
            listen: String::new(),
            public_key: String::new(),
            pool,
            peers: Vec::new(),
            presences: node.presences(),
            callers: node.caller_presences(),
            services: node.services(),
            certificate: None,
            flows: node.flow_table(),
            drops,
            dns: None,
            health: Vec::new(),
        };
        (shown, node.peers(now), settings.exposures.clone())
    });
    let (mut status, peers, exposures) = query.await?;
    let exposures: BTreeMap<&str, _> = exposures.iter().map(|exposure| (exposure.name.as_str(), exposure)).collect();
    let wanted = agent.wanted.lock().await;
    status.uptime_seconds = agent.started.elapsed().as_secs();
    status.interface.clone_from(&wanted.config.interface);
    status.listen = agent.listen.to_string();
    status.public_key = STANDARD.encode(agent.public_key);
    status.certificate = agent.identities.own(unix_seconds());
    for (id, mut peer) in peers {
        if peer.control != "none" && agent.control.is_open(id) {
            "open".clone_into(&mut peer.control);
        }
        status.peers.push(peer);
    }
    agent.identities.show(&mut status.peers, unix_seconds());
    status.dns = wanted.config.dns.as_ref().map(|dns| api::Dns {
        zone: dns.zone.clone(),
        listening: agent.dns.listening().iter().map(ToString::to_string).collect(),
    });
    for presence in &mut status.presences {
        presence.name = wanted.dns_name(&presence.service);
        wanted.origin_of_presence(&presence.service).clone_into(&mut presence.origin);
    }
    for service in &mut status.services {
        wanted.origin_of_exposure(&service.name).clone_into(&mut service.origin);
        let exposure = exposures.get(service.name.as_str()).copied();
        agent.health.show(service, exposure, &wanted.runtime.drained);
    }
    drop(wanted);
    status.health = crate::doctor::health(&agent).await;
    Ok(Json(status))
}

pub async fn services(State(agent): State<Arc<Agent>>) -> Answer<Vec<api::RemoteService>> {
    let mut services = agent.handle.call(|node, _, _| node.remote_services()).await?;
    let wanted = agent.wanted.lock().await;
    for service in services.iter_mut().filter(|service| service.mapped) {
        service.name = wanted.dns_name(&service.service);
    }
    Ok(Json(services))
}

#[derive(Deserialize)]
pub struct FlowsQuery {
    service: Option<String>,
    limit: Option<usize>,
}

pub async fn flows(
    State(agent): State<Arc<Agent>>,
    query: Result<Query<FlowsQuery>, QueryRejection>,
) -> Answer<Vec<api::Flow>> {
    let Query(FlowsQuery { service, limit }) = query?;
    let limit = limit.unwrap_or(FLOWS_MAX).min(FLOWS_MAX);
    let site = &agent.site;
    let named = |text: String| {
        let name = with_site(text, site);
        name.parse::<ServiceName>().map_err(|error| Problem::refused(format!("service {name:?}: {error}")))
    };
    let service = service.map(named).transpose()?;
    Ok(Json(agent.handle.call(move |node, _, now| node.flows(service.as_ref(), limit, now)).await?))
}

/// One of this site's own services may be named without its site.
fn with_site(service: String, site: &Name) -> String {
    if service.contains('.') { service } else { format!("{service}.{site}") }
}

#[derive(Deserialize)]
pub struct WhoisQuery {
    address: String,
}

pub async fn whois(
    State(agent): State<Arc<Agent>>,
    query: Result<Query<WhoisQuery>, QueryRejection>,
) -> Answer<api::Whois> {
    let Query(WhoisQuery { address }) = query?;
    let expected = |_| Problem::refused(format!("address {address:?}: expected an IPv4 or IPv6 address"));
    let address = address.parse().map_err(expected)?;
    Ok(Json(agent.handle.call(move |node, _, _| node.whois(address)).await?))
}

pub async fn doctor(State(agent): State<Arc<Agent>>) -> Json<Vec<api::Finding>> {
    Json(crate::doctor::examine(&agent).await)
}

pub async fn metrics(State(agent): State<Arc<Agent>>) -> Result<impl IntoResponse, Problem> {
    let text = crate::metrics::render(&agent).await?;
    Ok(([(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text))
}

#[derive(Deserialize)]
pub struct AuditQuery {
    lines: Option<usize>,
    follow: Option<bool>,
    service: Option<String>,
    peer: Option<String>,
    client: Option<String>,
    event: Option<String>,
    reason: Option<String>,
    flow: Option<String>,
    since: Option<String>,
}

/// JSON lines: the last ones, then those that come; of both those that match.
pub async fn audit_lines(
    State(agent): State<Arc<Agent>>,
    query: Result<Query<AuditQuery>, QueryRejection>,
) -> Result<impl IntoResponse, Problem> {
    let Query(AuditQuery { lines, follow, service, peer, client, event, reason, flow, since }) = query?;
    let lines = lines.unwrap_or(AUDIT_LINES).min(AUDIT_LINES_MAX);
    let since = since.map(|text| audit::since(&text, SystemTime::now())).transpose().map_err(Problem::refused)?;
    let service = service.map(|name| with_site(name, &agent.site));
    let filter = Filter { service, peer, client, event, reason, flow, since };
    let (known, followed) = if follow.unwrap_or(false) {
        let (known, news) = agent.audit.follow(lines, &filter).await;
        (known, Some((news, filter)))
    } else {
        (agent.audit.last(lines, &filter).await, None)
    };
    let mut known = known.join("\n");
    if !known.is_empty() {
        known.push('\n');
    }
    let news = futures_util::stream::unfold(followed, |followed| async {
        let (mut followed, filter) = followed?;
        loop {
            match followed.recv().await {
                Ok(line) if audit::is_wanted(&line, &filter) => return Some((line + "\n", Some((followed, filter)))),
                Ok(_) => {}
                // Too slow: go on with what is there.
                Err(broadcast::error::RecvError::Lagged(_)) => {}
                Err(broadcast::error::RecvError::Closed) => return None,
            }
        }
    });
    let lines = futures_util::stream::once(async { known }).chain(news).map(Ok::<_, std::convert::Infallible>);
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)))
}
