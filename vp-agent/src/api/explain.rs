//! Why a call would pass or not: every step of it, at both gateways.

use super::Problem;
use super::ask::{failed, host, port, service_name, step, target_step};
use crate::agent::Agent;
use crate::control::{FarAllowed, Target};
use axum::Json;
use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use std::sync::Arc;
use vp::addr::{PeerId, PortRange, ServiceName};
use vp::node::{Call, Reason};
use vp_proto::api::{ExplainRequest, Explanation, Step};
use vp_proto::control::ReplyRoute;

/// In the order in which a packet meets them; those behind a denial are not reached.
const STEPS: [&str; 11] = [
    "name",
    "presence",
    "caller",
    "policy here",
    "limits here",
    "peer",
    "path",
    "policy there",
    "limits there",
    "target port",
    "reply route",
];

/// Each step of a call, at both gateways.
pub async fn explain(
    State(agent): State<Arc<Agent>>,
    request: Result<Json<ExplainRequest>, JsonRejection>,
) -> Result<Json<Explanation>, Problem> {
    let Json(request) = request?;
    let service = service_name(&request.to)?;
    let asked = port(&request.port)?;
    let from = match &request.from {
        Some(from) => Some(host(&agent, from).await?),
        None => None,
    };
    let call = Call { from, service: service.clone(), protocol: asked.protocol, port: asked.first };
    let query = agent.handle.call(move |node, _, now| {
        let here = node.explain(&call, now);
        let peer = node.peer_by_site(&call.service.site);
        let caller = call.from.and_then(|from| node.caller_index(from));
        let remote_port = node.remote_port(&call.service, call.protocol, call.port);
        (here, peer, caller, remote_port)
    });
    let (mut explanation, peer, caller, remote_port) = query.await?;
    if let (Some(peer), None) = (peer, &explanation.reason) {
        let port = remote_port.unwrap_or(asked.first);
        let target = Target { service: service.service.clone(), protocol: asked.protocol, port };
        steps_there(&agent, peer, &service, &target, caller, &mut explanation).await;
    }
    let is_known = |explanation: &Explanation, name: &str| explanation.steps.iter().any(|step| step.step == name);
    for name in STEPS {
        if !is_known(&explanation, name) {
            explanation.steps.push(step(name, "skipped", "not reached".to_owned()));
        }
    }
    Ok(Json(explanation))
}

async fn steps_there(
    agent: &Agent,
    peer: PeerId,
    service: &ServiceName,
    target: &Target,
    caller: Option<u16>,
    explanation: &mut Explanation,
) {
    let site = &service.site;
    let range = PortRange { protocol: target.protocol, first: target.port, last: target.port };
    let Explanation { verdict, reason, steps } = explanation;
    let mut deny = |name: &str, word: String, steps: &mut Vec<Step>| {
        steps.push(failed(name, format!("{site} says {word}"), change_there(&word, service, range)));
        "denied".clone_into(verdict);
        *reason = Some(word);
    };
    let FarAllowed { rule, limit, observed, reply_route } = match agent.control.explain(peer, target, caller).await {
        Ok(Ok(allowed)) => allowed,
        Ok(Err(word)) => return deny("policy there", word, steps),
        Err(error) => {
            steps.push(step("policy there", "skipped", format!("{site} cannot be asked: {error}")));
            return;
        }
    };
    steps.push(step("policy there", "ok", format!("{site} allows {rule}")));
    match limit {
        Some(word) if !word.is_empty() => return deny("limits there", word, steps),
        Some(_) => {
            let observed =
                if observed.is_empty() { String::new() } else { format!("; a limit there observes {observed}") };
            steps.push(step("limits there", "ok", format!("{site} has room for a new flow{observed}")));
        }
        None => steps.push(step("limits there", "skipped", format!("{site}'s agent is older and does not say"))),
    }
    match agent.control.probe(peer, target).await {
        Ok(probe) => {
            let millis = probe.target_round_trip.as_secs_f64() * 1000.0;
            let answered = target_step(service, range, probe.outcome, millis);
            if answered.outcome == "failed" {
                "unanswered".clone_into(verdict);
            }
            steps.push(answered);
        }
        Err(error) => steps.push(step("target port", "skipped", error.to_string())),
    }
    steps.push(reply_step(service, reply_route));
}

fn reply_step(ServiceName { site, service }: &ServiceName, route: ReplyRoute) -> Step {
    match route {
        ReplyRoute::Masquerade => {
            step("reply route", "ok", format!("the server answers to {site}'s gateway, which masquerades"))
        }
        ReplyRoute::Presence => {
            let detail =
                format!("the server of {service} answers to an address of {site}'s pool, and needs a way there");
            step("reply route", "skipped", format!("no gateway can see it: {detail}"))
        }
        ReplyRoute::Unspecified => step("reply route", "skipped", format!("{site}'s agent is older and does not say")),
    }
}

/// Who must change what, where the far gateway does not let a call in.
fn change_there(word: &str, ServiceName { service, site }: &ServiceName, port: PortRange) -> String {
    let there = format!("{site}'s operator");
    let Some(reason) = Reason::ALL.iter().find(|reason| reason.word() == word) else {
        return format!("{there}: see what {word} means there");
    };
    match reason {
        Reason::NotExposed => format!("{there}: expose {service} and allow this site"),
        Reason::NotAllowed => format!("{there}: add this site or this caller to `allow` of {service}"),
        Reason::UnknownCaller => {
            format!("here, give the host a name in `clients`; {there}: have that name in `allow` of {service}")
        }
        Reason::PortNotExposed => format!("{there}: add {port} to `ports` of {service}"),
        Reason::FlowLimit => format!(
            "{there}: raise `limits` of {service} (or of this peer or its tenant) or `flows_max`, or wait for flows to end"
        ),
        Reason::RateLimit => format!(
            "{there}: raise `new_flows` in `limits` of {service} (or of this peer or its tenant), or call less often"
        ),
        Reason::PoolFull => format!("{there}: enlarge `pool`"),
        Reason::AuditFailed => format!("{there}: make room for the audit log there"),
        _ => format!("{there}: {}", reason.meaning().trim()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_denial_there_says_who_must_change_what() {
        let web: ServiceName = "web.cloud".parse().expect("a name");
        let port: PortRange = "tcp/80".parse().expect("a port");
        for reason in Reason::ALL {
            assert!(change_there(reason.word(), &web, port).contains("cloud's operator: "), "{reason}");
        }
        assert!(change_there("of-a-later-version", &web, port).contains("of-a-later-version"));
    }
}
