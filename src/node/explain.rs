//! Why a call would pass or not, step by step, on the live tables. The same functions that admit packets decide.

use super::{Node, Reason, Refused};
use crate::addr::{Family, Holder, Name, PeerId, Protocol, ServiceName, wire};
use crate::catalogue::Presence;
use crate::packet::{FiveTuple, protocol};
use std::net::IpAddr;
use vp_proto::api::{Explanation, Step};

/// A call from a host of this site to a port of a presence.
#[derive(Clone, Debug)]
pub struct Call {
    /// None: the gateway itself.
    pub from: Option<IpAddr>,
    pub service: ServiceName,
    pub protocol: Protocol,
    pub port: u16,
}

impl Node {
    /// What this gateway would decide. The far gateway has its own word: see [`Self::explain_inbound`].
    #[must_use]
    pub fn explain(&self, call: &Call) -> Explanation {
        let presence = self.presence_for(call);
        let mut steps = vec![presence_step(call, presence)];
        let Some((presence, address)) = presence else {
            return denied(steps, Reason::NotMapped);
        };
        let source = call.from.or_else(|| self.gateway_address(Family::of(address)));
        let Some(source) = source else { return denied(steps, Reason::SpoofedSource) };
        let client = self.clients.name(source).map_or_else(String::new, |name| format!(" ({name})"));
        steps.push(ok("caller", format!("{source}{client}")));
        let tuple = FiveTuple {
            source,
            destination: address,
            source_port: call.port,
            destination_port: call.port,
            protocol: number(call.protocol, Family::of(address)),
        };
        match self.judge_outbound(&tuple) {
            Err(Refused { reason, .. }) => {
                steps.push(failed("policy here", reason, change_here(reason, call, presence)));
                return denied(steps, reason);
            }
            Ok(outward) => {
                let rule = presence.mapping.callers.get(outward.rule);
                let rule =
                    rule.map_or_else(|| "every host of the site may call".to_owned(), |r| format!("callers: {r}"));
                steps.push(ok("policy here", rule));
                steps.push(ok(
                    "offer",
                    format!("{} offers it, inside the tunnel at {}", call.service.site, outward.wire_destination),
                ));
                if !self.tunnels.is_up(outward.peer) {
                    let change =
                        format!("see why the tunnel to {} is down: vp-ctl status, vp-ctl ping", call.service.site);
                    steps.push(failed("tunnel", Reason::NoPath, change));
                    return denied(steps, Reason::NoPath);
                }
                steps.push(ok("tunnel", format!("a session with {} exists", call.service.site)));
            }
        }
        Explanation { verdict: "allowed".to_owned(), reason: None, steps }
    }

    /// What this gateway would say to a caller of the peer: the rule that allows it, or the reason that does not. A peer
    /// learns nothing of services that are not for it, not even that they exist.
    pub fn explain_inbound(
        &self,
        peer: PeerId,
        service: &Name,
        caller: Option<u16>,
        protocol: Protocol,
        port: u16,
    ) -> Result<String, Reason> {
        let identity = &self.peer(peer).ok_or(Reason::NotExposed)?.settings.identity;
        let of_peer = self.exposed.by_name(service).filter(|(_, exposed)| exposed.is_for(identity));
        let (_, exposed) = of_peer.ok_or(Reason::NotExposed)?;
        let family = Family::BOTH.into_iter().find(|family| exposed.has(*family)).ok_or(Reason::NotExposed)?;
        let tuple = FiveTuple {
            source: wire::caller(family, caller.unwrap_or(wire::LAST)),
            destination: wire::service(family, exposed.index),
            source_port: port,
            destination_port: port,
            protocol: number(protocol, family),
        };
        let inward = self.judge_inbound(peer, &tuple).map_err(|refused| refused.reason)?;
        Ok(exposed.exposure.allow.get(inward.rule).map(ToString::to_string).unwrap_or_default())
    }

    /// Where a service of this site is to be probed; none unless the peer may use it and the port is one of its ports.
    #[must_use]
    pub fn probe_target(&self, peer: PeerId, service: &Name, protocol: Protocol, port: u16) -> Option<IpAddr> {
        let (_, exposed) = self.exposed.by_name(service)?;
        let identity = &self.peer(peer)?.settings.identity;
        let exposes = exposed.exposure.ports.iter().any(|range| range.contains(protocol, port));
        let targets = Family::BOTH.into_iter().flat_map(|family| exposed.targets(family, exposed.index));
        targets.into_iter().next().filter(|_| exposes && exposed.is_for(identity))
    }

    /// The wire index of a host of this site, if it has called or has a name; what the far gateway knows it by.
    #[must_use]
    pub fn caller_index(&self, host: IpAddr) -> Option<u16> {
        let block = self.leases.block(&Holder::CallerIndex { address: host })?;
        wire::parse(block.addr()).map(|(_, index)| index)
    }

    /// The service's own port behind a presence's port.
    #[must_use]
    pub fn remote_port(&self, service: &ServiceName, protocol: Protocol, port: u16) -> Option<u16> {
        let presence = Family::BOTH.into_iter().find_map(|family| self.presences.by_service(service, family));
        presence.and_then(|(_, presence)| presence.remote_port(protocol, port))
    }

    #[must_use]
    pub fn peer_by_site(&self, site: &Name) -> Option<PeerId> {
        self.peers.by_site(site)
    }

    #[must_use]
    pub fn address_of_client(&self, client: &Name) -> Option<IpAddr> {
        self.clients.addresses(client).next()
    }

    fn presence_for(&self, call: &Call) -> Option<(&Presence, IpAddr)> {
        let families = match call.from {
            Some(from) => vec![Family::of(from)],
            None => Family::BOTH.to_vec(),
        };
        let found = families.into_iter().find_map(|family| self.presences.by_service(&call.service, family));
        found.map(|(_, presence)| (presence, presence.address(0)))
    }

    pub(super) fn gateway_address(&self, family: Family) -> Option<IpAddr> {
        self.leases.block(&Holder::Gateway { family }).map(|block| block.addr())
    }
}

fn presence_step(call: &Call, presence: Option<(&Presence, IpAddr)>) -> Step {
    match presence {
        Some((presence, _)) => ok("presence", format!("{} is at {}", call.service, presence.block)),
        None => failed("presence", Reason::NotMapped, format!("map it here: vp-ctl map {}", call.service)),
    }
}

fn change_here(reason: Reason, call: &Call, presence: &Presence) -> String {
    let Call { service, .. } = call;
    match reason {
        Reason::NotAllowed => {
            let callers: Vec<String> = presence.mapping.callers.iter().map(ToString::to_string).collect();
            format!("here, add the host to `callers` of the mapping of {service} (now: {})", callers.join(", "))
        }
        Reason::NotOffered => format!("{}'s operator: expose {} and allow this site", service.site, service.service),
        Reason::PortNotExposed if !presence.mapping.ports.is_empty() => {
            format!("here, add the port to `ports` of the mapping, or {}'s operator exposes it", service.site)
        }
        Reason::PortNotExposed => format!("{}'s operator: add the port to {}", service.site, service.service),
        Reason::NoPath => format!("see why {} is away: vp-ctl status, vp-ctl ping {service}", service.site),
        Reason::SpoofedSource => "call from a host of this site's own networks, not from a presence".to_owned(),
        _ => format!("see {}", reason.meaning()),
    }
}

fn ok(step: &str, detail: String) -> Step {
    Step { step: step.to_owned(), outcome: "ok".to_owned(), detail, change: None }
}

fn failed(step: &str, reason: Reason, change: String) -> Step {
    let detail = format!("{reason}: {}", reason.meaning().trim());
    Step { step: step.to_owned(), outcome: "failed".to_owned(), detail, change: Some(change) }
}

fn denied(steps: Vec<Step>, reason: Reason) -> Explanation {
    Explanation { verdict: "denied".to_owned(), reason: Some(reason.word().to_owned()), steps }
}

fn number(of: Protocol, family: Family) -> u8 {
    match (of, family) {
        (Protocol::Tcp, _) => protocol::TCP,
        (Protocol::Udp, _) => protocol::UDP,
        (Protocol::Icmp, Family::V4) => protocol::ICMP,
        (Protocol::Icmp, Family::V6) => protocol::ICMPV6,
    }
}
