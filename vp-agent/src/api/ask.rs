//! Whether a service answers, asked of both gateways.

use super::Problem;
use crate::agent::Agent;
use crate::clock::unix_seconds;
use crate::control::Target;
use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use std::net::IpAddr;
use std::sync::Arc;
use vp::addr::{Name, PortRange, Protocol, ServiceName};
use vp_proto::api::{PingRequest, Step};
use vp_proto::control::ProbeOutcome;

type Answer<T> = Result<Json<T>, Problem>;

/// One line a layer: tunnel, far gateway, target port.
pub async fn ping(
    State(agent): State<Arc<Agent>>,
    request: Result<Json<PingRequest>, JsonRejection>,
) -> Answer<Vec<Step>> {
    let Json(request) = request?;
    let service = service_name(&request.service)?;
    let site = service.site.clone();
    let peer = agent.handle.call(move |node, _, now| {
        let peer = node.peer_by_site(&site)?;
        node.peers(now).into_iter().find(|(id, _)| *id == peer)
    });
    let Some((peer, status)) = peer.await? else {
        return Err(Problem::refused(match agent.identities.gone(&service.site, unix_seconds()) {
            Some(refusal) => {
                format!("{} is no peer at present, its certificate does not hold: {refusal}", service.site)
            }
            None => format!("{} is not a peer of this site", service.site),
        }));
    };
    let port = match request.port {
        Some(text) => port(&text)?,
        None => first_port(&agent, &service).await?,
    };
    let mut steps = Vec::new();
    if status.state == "up" {
        let endpoint = status.endpoint.unwrap_or_default();
        let age = status.handshake_age_seconds.unwrap_or_default();
        steps.push(step("tunnel", "ok", format!("{} at {endpoint}, keys {age} s old", service.site)));
    } else {
        let change = format!("{}: see that its agent runs and reaches this gateway's UDP port", service.site);
        steps.push(failed("tunnel", format!("no session with {} ({})", service.site, status.state), change));
        steps.push(step("far gateway", "skipped", "needs the tunnel".to_owned()));
        steps.push(step("target port", "skipped", "needs the tunnel".to_owned()));
        return Ok(Json(steps));
    }
    let target = Target { service: service.service.clone(), protocol: port.protocol, port: port.first };
    match agent.control.probe(peer, &target).await {
        Err(error) => {
            let change = format!("{}'s operator: see vp-ctl status there", service.site);
            steps.push(failed("far gateway", error.to_string(), change));
            steps.push(step("target port", "skipped", "needs the far gateway".to_owned()));
        }
        Ok(probe) => {
            let millis = probe.gateway_round_trip.as_secs_f64() * 1000.0;
            steps.push(step("far gateway", "ok", format!("answered in {millis:.1} ms")));
            steps.push(target_step(&service, port, probe.outcome, probe.target_round_trip.as_secs_f64() * 1000.0));
        }
    }
    Ok(Json(steps))
}

pub(super) fn target_step(service: &ServiceName, port: PortRange, outcome: ProbeOutcome, millis: f64) -> Step {
    let operator = format!("{}'s operator", service.site);
    match outcome {
        ProbeOutcome::Answered => step("target port", "ok", format!("{port} of {service} answered in {millis:.1} ms")),
        ProbeOutcome::Refused => {
            failed("target port", format!("{port} of {service} is closed"), format!("{operator}: start the server"))
        }
        ProbeOutcome::TimedOut => {
            let change = format!("{operator}: see that the gateway reaches the target and no firewall drops it");
            failed("target port", format!("{port} of {service} did not answer"), change)
        }
        ProbeOutcome::Unreachable => {
            failed("target port", format!("no way to the target of {service}"), format!("{operator}: see its route"))
        }
        ProbeOutcome::NotAllowed => {
            let change = format!("{operator}: expose {} with this port and allow this site", service.service);
            failed("target port", format!("{port} of {service} is not offered to this site"), change)
        }
        ProbeOutcome::Unspecified => step("target port", "skipped", format!("only TCP ports can be asked, not {port}")),
    }
}

/// A client's name, or an address.
pub(super) async fn host(agent: &Agent, text: &str) -> Result<IpAddr, Problem> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let unknown = || Problem::refused(format!("{text:?}: expected a name of `clients` or an address of this site"));
    let name = Name::new(text).map_err(|_| unknown())?;
    agent.handle.call(move |node, _, _| node.address_of_client(&name)).await?.ok_or_else(unknown)
}

async fn first_port(agent: &Agent, service: &ServiceName) -> Result<PortRange, Problem> {
    let name = service.to_string();
    let services = agent.handle.call(|node, _, _| node.remote_services()).await?;
    let known = services.into_iter().find(|known| known.service == name);
    let ports = known.map(|known| known.ports).unwrap_or_default();
    let tcp = ports.iter().filter_map(|text| text.parse::<PortRange>().ok()).find(|p| p.protocol == Protocol::Tcp);
    tcp.ok_or_else(|| Problem::refused(format!("{service} offers no TCP port; name one with --port")))
}

pub(super) fn service_name(text: &str) -> Result<ServiceName, Problem> {
    text.parse().map_err(|error| Problem::refused(format!("service {text:?}: {error}")))
}

pub(super) fn port(text: &str) -> Result<PortRange, Problem> {
    text.parse().map_err(|error: vp::addr::PortSpecError| Problem::refused(error.to_string()))
}

pub(super) fn step(name: &str, outcome: &str, detail: String) -> Step {
    Step { step: name.to_owned(), outcome: outcome.to_owned(), detail, change: None }
}

pub(super) fn failed(name: &str, detail: String, change: String) -> Step {
    Step { change: Some(change), ..step(name, "failed", detail) }
}
