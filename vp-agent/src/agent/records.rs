//! Audit records of what the node tells.

use vp::node::{Denial, FlowEnd, FlowRecord, ends};
use vp_proto::api::AuditRecord;

pub(super) fn flow_record(
    event: &str,
    site: String,
    peer: Option<String>,
    flow: &FlowRecord,
    end: Option<FlowEnd>,
) -> AuditRecord {
    let counted = |count: u64| end.map(|_| count);
    AuditRecord {
        event: event.to_owned(),
        site,
        peer,
        client: flow.client.as_ref().map(ToString::to_string),
        service: flow.service.as_ref().map(ToString::to_string),
        protocol: vp::addr::Protocol::from_number(flow.site.protocol).map(|protocol| protocol.to_string()),
        site_view: Some(ends(&flow.site)),
        wire_view: Some(ends(&flow.wire)),
        reason: end.map(|end| end.word().to_owned()),
        rule: Some(flow.rule.clone()),
        outbound_bytes: counted(flow.outbound_bytes),
        inbound_bytes: counted(flow.inbound_bytes),
        outbound_packets: counted(flow.outbound_packets),
        inbound_packets: counted(flow.inbound_packets),
        duration_ms: end.map(|_| u64::try_from(flow.age.as_millis()).unwrap_or(u64::MAX)),
        ..AuditRecord::default()
    }
}

/// A denied packet has one view only: that of the door it came in by.
pub(super) fn denial_record(site: String, peer: Option<String>, denial: &Denial) -> AuditRecord {
    let view = Some(ends(&denial.tuple));
    let (site_view, wire_view) = match denial.opener {
        vp::node::Opener::Site => (view, None),
        vp::node::Opener::Peer => (None, view),
    };
    AuditRecord {
        event: "denied".to_owned(),
        site,
        peer,
        client: denial.client.as_ref().map(ToString::to_string),
        service: denial.service.as_ref().map(ToString::to_string),
        protocol: vp::addr::Protocol::from_number(denial.tuple.protocol).map(|protocol| protocol.to_string()),
        site_view,
        wire_view,
        reason: Some(denial.reason.word().to_owned()),
        ..AuditRecord::default()
    }
}
