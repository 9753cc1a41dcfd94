//! Why a call would pass or not, step by step, on the live tables. The same functions that admit packets decide.

use super::{Node, Peer, Reason, Refused};
use crate::addr::{Family, Holder, Name, PeerId, Protocol, ServiceName, wire};
use crate::catalogue::{Presence, Source};
use crate::packet::{FiveTuple, protocol};
use std::net::IpAddr;
use std::time::Instant;
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

/// What a gateway says to a caller that its policy allows. None of it is an address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Allowed {
    /// The `allow` entry.
    pub rule: String,
    /// What a new flow would be refused for all the same, now.
    pub limit: Option<Reason>,
    /// Whom the server answers to.
    pub source: Source,
}

impl Node {
    /// What this gateway would decide. The far gateway has its own word: see [`Self::explain_inbound`].
    #[must_use]
    pub fn explain(&self, call: &Call, now: Instant) -> Explanation {
        let mut steps = Vec::new();
        match self.steps_here(call, &mut steps, now) {
            Ok(()) => Explanation { verdict: "allowed".to_owned(), reason: None, steps },
            Err((step, reason, change)) => {
                steps.push(failed(step, reason, change));
                Explanation { verdict: "denied".to_owned(), reason: Some(reason.word().to_owned()), steps }
            }
        }
    }

    /// An error is the step at which it ends.
    fn steps_here(
        &self,
        call: &Call,
        steps: &mut Vec<Step>,
        now: Instant,
    ) -> Result<(), (&'static str, Reason, String)> {
        let Call { service, .. } = call;
        steps.push(self.name_step(service)?);
        let Some((presence, address)) = self.presence_for(call) else {
            return Err(("presence", Reason::NotMapped, format!("map it here: vp-ctl map {service}")));
        };
        steps.push(ok("presence", format!("{service} is at {}", presence.block)));
        let family = Family::of(address);
        let Some(source) = call.from.or_else(|| self.gateway_address(family)) else {
            let change = format!("give the pool here a prefix of {family}, or call from a host");
            return Err(("caller", Reason::SpoofedSource, change));
        };
        let client = self.clients.name(source).map_or_else(String::new, |name| format!(" ({name})"));
        steps.push(ok("caller", format!("{source}{client}")));
        let tuple = FiveTuple {
            source,
            destination: address,
            source_port: call.port,
            destination_port: call.port,
            protocol: number(call.protocol, family),
        };
        let outward = self.judge_outbound(&tuple).map_err(|Refused { reason, .. }| {
            let step = if matches!(reason, Reason::NotOffered | Reason::NoPath) { "peer" } else { "policy here" };
            (step, reason, change_here(reason, call, presence))
        })?;
        let rule = presence.mapping.callers.get(outward.rule);
        let rule = rule.map_or_else(|| "every host of the site may call".to_owned(), |rule| format!("callers: {rule}"));
        steps.push(ok("policy here", rule));
        if let Some(reason) = self.used_up(outward.peer, &Holder::CallerIndex { address: source }, None, now) {
            return Err(("limits here", reason, change_here(reason, call, presence)));
        }
        steps.push(ok("limits here", "there is room for a new flow".to_owned()));
        if !outward.takes_new {
            let change = format!("at {}, see the service's targets (vp-ctl status), or end its drain", service.site);
            return Err(("peer", Reason::ServiceDown, change));
        }
        steps
            .push(ok("peer", format!("{} offers it, inside the tunnel at {}", service.site, outward.wire_destination)));
        let status = self.peer_status(outward.peer, now).filter(|status| status.state == "up");
        let Some(status) = status else {
            let change = format!("see why the tunnel to {} is down: vp-ctl status, vp-ctl ping", service.site);
            return Err(("path", Reason::NoPath, change));
        };
        let (endpoint, age) = (status.endpoint.unwrap_or_default(), status.handshake_age_seconds.unwrap_or_default());
        steps.push(ok("path", format!("{} to {} at {endpoint}, keys {age} s old", status.path, service.site)));
        Ok(())
    }

    fn name_step(&self, service: &ServiceName) -> Result<Step, (&'static str, Reason, String)> {
        let site = &service.site;
        if *site == self.settings.site {
            let change = "it is a service of this very site: call its target".to_owned();
            return Err(("name", Reason::NotMapped, change));
        }
        if self.peers.by_site(site).is_none() {
            return Err(("name", Reason::NotOffered, format!("here, add {site} to `peers`; or mend the name")));
        }
        Ok(ok("name", format!("{} of {site}, a peer of this site", service.service)))
    }

    /// What this gateway would say to a caller of the peer. A peer learns nothing of services that are not for it, not even
    /// that they exist.
    pub fn explain_inbound(
        &self,
        peer: PeerId,
        service: &Name,
        caller: Option<u16>,
        (protocol, port): (Protocol, u16),
        now: Instant,
    ) -> Result<Allowed, Reason> {
        let identity = self.peer(peer).and_then(Peer::identity).ok_or(Reason::NotExposed)?;
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
        let rule = exposed.exposure.allow.get(inward.rule).map(ToString::to_string).unwrap_or_default();
        let caller = self.caller_presence(peer, tuple.source).ok_or(Reason::SpoofedSource)?;
        let rests = exposed.rests().then_some(Reason::ServiceDown);
        let limit = rests.or_else(|| self.used_up(peer, &caller, Some(inward.service), now));
        Ok(Allowed { rule, limit, source: exposed.exposure.source })
    }

    /// Where a service of this site is to be probed; none unless the peer may use it and the port is one of its ports.
    #[must_use]
    pub fn probe_target(&self, peer: PeerId, service: &Name, protocol: Protocol, port: u16) -> Option<IpAddr> {
        let (_, exposed) = self.exposed.by_name(service)?;
        let identity = self.peer(peer)?.identity()?;
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
        Reason::FlowLimit => "here, end flows that are not needed, or raise `flows_max`".to_owned(),
        Reason::AuditFailed => "here, make room for the audit log: vp-ctl doctor".to_owned(),
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

fn number(of: Protocol, family: Family) -> u8 {
    match (of, family) {
        (Protocol::Tcp, _) => protocol::TCP,
        (Protocol::Udp, _) => protocol::UDP,
        (Protocol::Icmp, Family::V4) => protocol::ICMP,
        (Protocol::Icmp, Family::V6) => protocol::ICMPV6,
    }
}
