//! After a restart the flow table is empty, but connections go on. Those whose caller speaks next are admitted as
//! ever. Those whose service does are taken up here: only TCP in mid-stream, only between ends that have leases, only for
//! a while after a start that found leases from before, and only if the flow would be allowed had its caller opened it.

use super::{Node, Peer, RESUME, Reason, Refused};
use crate::addr::{Family, Holder, PeerId, Protocol, ServiceName, wire};
use crate::flow::{Direction, FlowId, NewFlow};
use crate::packet::{FiveTuple, Kind, Packet};
use std::time::Instant;

const SYN: u8 = 0x02;
const RST: u8 = 0x04;

impl Node {
    /// A service of this site answers a caller presence.
    pub(super) fn resume_outbound(&mut self, packet: &Packet, now: Instant) -> Result<FlowId, Refused> {
        let tuple = packet.head.tuple;
        let refused = || Refused::because(Reason::Unsolicited);
        let holder = self.leases.holder(tuple.destination).cloned();
        let Some(Holder::CallerPresence { site, index, family }) = holder else { return Err(refused()) };
        if !self.may_resume(packet, now) {
            return Err(refused());
        }
        let peer = self.peers.by_site(&site).ok_or_else(refused)?;
        let caller = wire::caller(family, index);
        let serves = |index: u16| {
            let service = wire::service(family, index);
            let asked = FiveTuple {
                source: caller,
                destination: service,
                source_port: tuple.destination_port,
                destination_port: tuple.source_port,
                protocol: tuple.protocol,
            };
            // Any of its targets: which one had the flow depended on which of them took new ones then.
            Some((asked, self.judge_inbound(peer, &asked).ok()?))
        };
        let indices = self.exposed.iter().filter_map(|(_, service)| service.index_of(tuple.source));
        let (asked, inward) = indices.filter_map(serves).next().ok_or_else(refused)?;
        let holder = Holder::CallerPresence { site, index, family };
        let owner = self.owner(inward.service, &holder, inward.rule, now);
        let (wire, version, opened_by) = (asked.reversed(), self.version, Direction::Inbound);
        let new = NewFlow { peer, site: tuple, wire, opened_by, owner, version, initial_sequence: None };
        self.insert(new, now)
    }

    /// A service of the peer answers a host of this site.
    pub(super) fn resume_inbound(&mut self, peer: PeerId, packet: &Packet, now: Instant) -> Result<FlowId, Refused> {
        let tuple = packet.head.tuple;
        let refused = || Refused::because(Reason::Unsolicited).of(peer);
        if !self.may_resume(packet, now) {
            return Err(refused());
        }
        let (Some((_, service)), Some((_, caller))) = (wire::parse(tuple.source), wire::parse(tuple.destination))
        else {
            return Err(refused());
        };
        let family = Family::of(tuple.source);
        let host = self.leases.holder(wire::caller(Family::V4, caller)).cloned();
        let Some(Holder::CallerIndex { address }) = host.filter(|_| service >= wire::FIRST) else {
            return Err(refused());
        };
        let site = self.peer(peer).and_then(Peer::identity).ok_or_else(refused)?.site.clone();
        let offered = self.offers.get(&site).and_then(|(_, offer)| offer.by_index(service)).ok_or_else(refused)?;
        let name = ServiceName { service: offered.name.clone(), site };
        let (_, presence) = self.presences.by_service(&name, family).ok_or_else(refused)?;
        let port = presence.local_port(Protocol::Tcp, tuple.source_port).ok_or_else(refused)?;
        let asked = FiveTuple {
            source: address,
            destination: presence.address(service - offered.index),
            source_port: tuple.destination_port,
            destination_port: port,
            protocol: tuple.protocol,
        };
        let outward = self.judge_outbound(&asked)?;
        if Family::of(address) != family || outward.wire_destination != tuple.source {
            return Err(refused());
        }
        let owner = self.owner(outward.presence, &Holder::CallerIndex { address }, outward.rule, now);
        let (wire, version, opened_by) = (tuple.reversed(), self.version, Direction::Outbound);
        let new = NewFlow { peer, site: asked, wire, opened_by, owner, version, initial_sequence: None };
        self.insert(new, now)
    }

    fn may_resume(&self, packet: &Packet, now: Instant) -> bool {
        let mid_stream = match packet.head.kind {
            Kind::Tcp(tcp) => tcp.flags & (SYN | RST) == 0,
            Kind::Udp | Kind::EchoRequest | Kind::EchoReply | Kind::IcmpError | Kind::FragmentTail => false,
        };
        mid_stream && self.resumes && now.saturating_duration_since(self.started) < RESUME
    }
}
