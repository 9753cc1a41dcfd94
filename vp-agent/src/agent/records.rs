//! Audit records of what the node tells.

use super::names::Known;
use vp::addr::{Protocol, ServiceName};
use vp::node::{Denial, FlowEnd, FlowRecord, Limited, Opener, Reason, ends, flow_id};
use vp::packet::FiveTuple;
use vp_proto::api::AuditRecord;

/// Whose log it is.
pub(super) struct Own<'a> {
    pub site: &'a str,
    pub public_key: &'a [u8; 32],
}

pub(super) fn flow_record(
    event: &str,
    own: &Own,
    peer: Option<&Known>,
    flow: &FlowRecord,
    end: Option<FlowEnd>,
) -> AuditRecord {
    let counted = |count: u64| end.map(|_| count);
    AuditRecord {
        client: flow.client.as_ref().map(ToString::to_string),
        service: flow.service.as_ref().map(ToString::to_string),
        port: port(&flow.wire),
        flow: peer.map(|peer| id(own, peer, flow.opener, &flow.wire, flow.initial_sequence)),
        site_view: Some(ends(&flow.site)),
        wire_view: Some(ends(&flow.wire)),
        verdict: Some("allowed".to_owned()),
        reason: end.map(|end| end.word().to_owned()),
        rule: Some(flow.rule.clone()),
        outbound_bytes: counted(flow.outbound_bytes),
        inbound_bytes: counted(flow.inbound_bytes),
        outbound_packets: counted(flow.outbound_packets),
        inbound_packets: counted(flow.inbound_packets),
        duration_ms: end.map(|_| u64::try_from(flow.age.as_millis()).unwrap_or(u64::MAX)),
        ..record(event, own, peer, &flow.site)
    }
}

/// A denied packet has one view only: that of the door it came in by.
pub(super) fn denial_record(own: &Own, peer: Option<&Known>, denial: &Denial) -> AuditRecord {
    let view = Some(ends(&denial.tuple));
    let (site_view, wire_view) = match denial.opener {
        Opener::Site => (view, None),
        Opener::Peer => (None, view),
    };
    // What a host of this site called has no wire address yet.
    let of_peer = peer.filter(|_| denial.opener == Opener::Peer);
    AuditRecord {
        client: denial.client.as_ref().map(ToString::to_string),
        service: denial.service.as_ref().map(ToString::to_string),
        port: port(&denial.tuple),
        flow: of_peer.map(|peer| id(own, peer, denial.opener, &denial.tuple, denial.initial_sequence)),
        site_view,
        wire_view,
        verdict: Some("denied".to_owned()),
        reason: Some(denial.reason.word().to_owned()),
        limit: denial.limit.clone(),
        rule: denial.service.as_ref().map(|service| denying_rule(denial.reason, denial.opener, service)),
        ..record("denied", own, peer, &denial.tuple)
    }
}

/// A flow that passed all the same.
pub(super) fn observed_record(own: &Own, peer: Option<&Known>, denial: &Denial) -> AuditRecord {
    let verdict = Some("allowed".to_owned());
    AuditRecord { event: "observed".to_owned(), verdict, ..denial_record(own, peer, denial) }
}

/// A limit that delays packets, or would.
pub(super) fn limited_record(own: &Own, limited: &Limited) -> AuditRecord {
    AuditRecord {
        event: "limited".to_owned(),
        site: own.site.to_owned(),
        limit: Some(limited.limit.clone()),
        reason: Some(Reason::RateLimit.word().to_owned()),
        repeated: Some(limited.packets),
        detail: Some(format!("mode {}", limited.mode.word())),
        ..AuditRecord::default()
    }
}

pub(super) fn peer_record(event: &str, own: &Own, peer: &Known) -> AuditRecord {
    AuditRecord {
        event: event.to_owned(),
        site: own.site.to_owned(),
        tenant: peer.tenant.as_ref().map(ToString::to_string),
        peer: Some(peer.name.site.to_string()),
        ..AuditRecord::default()
    }
}

pub(super) fn lost_record(site: &str, events: u64) -> AuditRecord {
    AuditRecord {
        event: "lost".to_owned(),
        site: site.to_owned(),
        repeated: Some(events),
        detail: Some("so many events found no room on their way to the log".to_owned()),
        ..AuditRecord::default()
    }
}

fn record(event: &str, own: &Own, peer: Option<&Known>, tuple: &FiveTuple) -> AuditRecord {
    let protocol = Protocol::from_number(tuple.protocol).map(|protocol| protocol.to_string());
    let nobody = || AuditRecord { event: event.to_owned(), site: own.site.to_owned(), ..AuditRecord::default() };
    AuditRecord { protocol, ..peer.map_or_else(nobody, |peer| peer_record(event, own, peer)) }
}

fn id(own: &Own, peer: &Known, opener: Opener, wire: &FiveTuple, initial_sequence: Option<u32>) -> String {
    match opener {
        Opener::Site => flow_id(own.public_key, &peer.public_key, wire, initial_sequence),
        Opener::Peer => flow_id(&peer.public_key, own.public_key, wire, initial_sequence),
    }
}

fn port(tuple: &FiveTuple) -> Option<u16> {
    match Protocol::from_number(tuple.protocol) {
        Some(Protocol::Tcp | Protocol::Udp) => Some(tuple.destination_port),
        Some(Protocol::Icmp) | None => None,
    }
}

/// The list of the configuration that has no entry for it, such as `allow of web`.
fn denying_rule(reason: Reason, opener: Opener, service: &ServiceName) -> String {
    let list = match (reason, opener) {
        (Reason::PortNotExposed, _) => "ports",
        (Reason::FlowLimit | Reason::RateLimit, _) => "limits",
        (Reason::NotAllowed, Opener::Site) => "callers",
        (Reason::NotAllowed | Reason::UnknownCaller, _) => "allow",
        (_, _) => "default",
    };
    match opener {
        Opener::Site => format!("{list} of {service}"),
        Opener::Peer => format!("{list} of {}", service.service),
    }
}
