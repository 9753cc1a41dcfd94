//! From the network to the site: datagrams are opened and joined as they come; at the end of the batch each group is
//! looked up once and translated once.

use super::outbound::{lowered_mtu, mss};
use super::{Node, Opener, Output, Reason, datagram, reject, traffic};
use crate::addr::{Family, Path, PeerId, wire};
use crate::flow::fragments::{Tail, Verdict};
use crate::flow::{Direction, Door, FlowId};
use crate::packet::{self, Kind, Packet};
use crate::translate;
use crate::tunnel::Transmits;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Instant;

/// Where an inbound packet may leave something besides itself.
struct Back<'a> {
    transmits: &'a mut Transmits,
    packets: &'a mut Vec<Vec<u8>>,
}

enum Fate {
    Deliver,
    Wait(FlowId, NonZeroU32),
    Drop,
}

impl Fate {
    fn deliver_if(deliver: bool) -> Self {
        if deliver { Self::Deliver } else { Self::Drop }
    }
}

impl Node {
    /// A message from the UDP socket: datagrams of `stride` bytes back to back (the last may be shorter).
    pub fn handle_datagrams(
        &mut self,
        from: impl Into<Path>,
        message: &[u8],
        stride: usize,
        output: &mut Output,
        now: Instant,
    ) {
        let (from, mut rest) = (from.into(), message);
        while !rest.is_empty() {
            let (datagram, others) = rest.split_at(stride.clamp(1, rest.len()));
            let opened = self.tunnels.tunnel_of(datagram).map(|tunnel| output.open(tunnel, from, rest, stride, now));
            rest = match opened {
                Some(bytes @ 1..) => &rest[bytes..],
                Some(0) | None => {
                    self.handle_datagram(from, datagram, output, now);
                    others
                }
            };
        }
        self.settle(output, now);
    }

    /// One that is of no session.
    fn handle_datagram(&mut self, from: Path, datagram: &[u8], output: &mut Output, now: Instant) {
        if output.joiner.room() < datagram.len() {
            return self.drops.count(Reason::Overload);
        }
        let opened = self.tunnels.open(from, datagram, output.joiner.space(), &mut output.transmits, now);
        self.take_tunnel_events(now);
        output.take_opened(opened);
    }

    /// After the last message of a batch, before the output is sent: what was joined is translated now.
    pub fn handle_batch_end(&mut self, output: &mut Output, now: Instant) {
        self.settle(output, now);
        for index in 0..output.joiner.len() {
            let mut group = output.joiner.group(index);
            let (peer, packets) = (group.peer, group.packets);
            let mut back = Back { transmits: &mut output.transmits, packets: &mut output.packets };
            match self.inbound(peer, &mut group.packet, packets, &mut back, now) {
                Fate::Deliver => output.joiner.deliver(index),
                Fate::Wait(id, share) => self.wait_whole((id, share), index, output, now),
                Fate::Drop => {}
            }
        }
    }

    /// What was joined, in one piece.
    fn wait_whole(&mut self, flow: (FlowId, NonZeroU32), index: usize, output: &mut Output, now: Instant) {
        let (packets, offload) = output.joiner.gather(index, &mut self.gathered);
        let mut gathered = std::mem::take(&mut self.gathered);
        let parsed = Packet::parse(&mut gathered, offload).map_err(reject::of_parse);
        let waits = parsed.and_then(|packet| self.wait(flow, Direction::Inbound, &packet, now));
        self.counted(waits, packets);
        self.gathered = gathered;
    }

    /// What becomes of the packet, which is now in the site's view.
    fn inbound(&mut self, peer: PeerId, packet: &mut Packet, packets: u32, back: &mut Back, now: Instant) -> Fate {
        if packet.head.kind == Kind::IcmpError {
            let taken = self.inbound_error(peer, packet);
            return Fate::deliver_if(self.counted(taken, 1));
        }
        if packet.head.kind == Kind::FragmentTail {
            let taken = self.inbound_tail(peer, packet, now);
            return Fate::deliver_if(taken.unwrap_or_else(|reason| self.counted(Err(reason), 1)));
        }
        let known = self.table.find(Door::Peer(peer), &packet.head.tuple);
        let flow = match known.and_then(|id| self.fresh(id, Direction::Inbound, now)) {
            Some(id) => Ok(id),
            None => self.admit_inbound(peer, packet, now),
        };
        match flow {
            Ok(id) if packet.head.fragment.is_some() => Fate::deliver_if(self.inbound_first(id, packet, back, now)),
            Ok(id) => match self.carry_inbound(id, packet, packets, back, now) {
                Ok(Some(share)) => Fate::Wait(id, share),
                Ok(None) => Fate::Deliver,
                Err(reason) => Fate::deliver_if(self.counted(Err(reason), packets)),
            },
            Err(refused) => {
                if let Some(datagram) = datagram(Door::Peer(peer), packet) {
                    self.fragments.refuse(datagram, now);
                }
                self.drops.add(refused.reason, u64::from(packets.saturating_sub(1)));
                self.deny(Opener::Peer, packet, refused);
                Fate::Drop
            }
        }
    }

    /// A first fragment: its tails that came before it follow it, or are dropped with it.
    fn inbound_first(&mut self, id: FlowId, packet: &mut Packet, back: &mut Back, now: Instant) -> bool {
        let Some((peer, site)) = self.table.get(id).map(|flow| (flow.peer, flow.site)) else { return false };
        let (Some(of), Some(fragment)) = (datagram(Door::Peer(peer), packet), packet.head.fragment) else {
            return false;
        };
        let verdict = Verdict { flow: id, peer, to: site.reversed() };
        let Ok(held) = self.fragments.pass(of, fragment, packet.layer4().len(), verdict, now) else {
            return self.counted(Err(Reason::Fragment), 1);
        };
        let carried = self.carry_inbound(id, packet, 1, back, now).and_then(|share| match share {
            None => Ok(true),
            Some(share) => self.wait((id, share), Direction::Inbound, packet, now).map(|()| false),
        });
        let passes = carried == Ok(true);
        if !self.first_counted(&of, carried.map(drop), held.len(), now) {
            return false;
        }
        for mut bytes in held {
            let Ok(mut tail) = Packet::parse(&mut bytes, packet::Offload::default()) else { continue };
            if self.carry_inbound_tail(&verdict, &mut tail, now) {
                back.packets.push(bytes);
            }
        }
        passes
    }

    /// Whether the tail, now in the site's view, is to be delivered now.
    fn inbound_tail(&mut self, peer: PeerId, packet: &mut Packet, now: Instant) -> Result<bool, Reason> {
        let (Some(of), Some(fragment)) = (datagram(Door::Peer(peer), packet), packet.head.fragment) else {
            return Err(Reason::Fragment);
        };
        match self.fragments.tail(of, fragment, packet.layer4().len(), packet.bytes(), now) {
            Tail::Pass(verdict) => Ok(self.carry_inbound_tail(&verdict, packet, now)),
            Tail::Held => Ok(false),
            Tail::Refused => Err(Reason::Fragment),
            Tail::OverRate => Err(Reason::RateLimit),
        }
    }

    fn carry_inbound_tail(&mut self, verdict: &Verdict, packet: &mut Packet, now: Instant) -> bool {
        if packet.decrement_hops().is_err() {
            return self.counted(Err(Reason::TtlExpired), 1);
        }
        match self.carry_tail(verdict, Direction::Inbound, packet, now) {
            Ok(passes) => passes,
            Err(reason) => self.counted(Err(reason), 1),
        }
    }

    /// The flow's share if the packet, now in the site's view, is to wait.
    fn carry_inbound(
        &mut self,
        id: FlowId,
        packet: &mut Packet,
        packets: u32,
        back: &mut Back,
        now: Instant,
    ) -> Result<Option<NonZeroU32>, Reason> {
        let flow = self.table.get(id).ok_or(Reason::Unsolicited)?;
        let (peer, site, opened_by) = (flow.peer, flow.site, flow.opened_by);
        if packet.head.kind == Kind::EchoRequest && opened_by != Direction::Inbound {
            return Err(Reason::UnrelatedIcmp);
        }
        if packet.decrement_hops().is_err() {
            self.answer_expired(peer, packet, back, now);
            return Err(Reason::TtlExpired);
        }
        let traffic = traffic(packet, packets);
        let share = self.must_wait(id, Direction::Inbound, &traffic, now);
        if share.is_none() {
            self.record(id, Direction::Inbound, &traffic, now)?;
        }
        packet.clamp_mss(mss(packet, self.inner_mtu()));
        translate::apply(packet, &site.reversed());
        Ok(share)
    }

    /// The hop limit ran out here: the caller's site shows our answer as the presence's.
    fn answer_expired(&mut self, peer: PeerId, packet: &Packet, back: &mut Back, now: Instant) {
        let agent = wire::service(packet.head.family, wire::AGENT);
        if !self.rejects.take(1, now) {
            return;
        }
        if let Some(answer) = packet::time_exceeded(packet, agent) {
            let sealed = self.tunnels.seal(peer, &answer, self.inner_mtu(), back.transmits, now);
            sealed.unwrap_or_else(|error| self.drops.count(reject::of_seal(error)));
        }
    }

    /// An ICMP error of the peer's site, about a packet that this site sent.
    fn inbound_error(&mut self, peer: PeerId, packet: &mut Packet) -> Result<(), Reason> {
        if wire::parse(packet.head.tuple.source).is_none() {
            return Err(Reason::SpoofedSource);
        }
        let quote = packet::quote(packet).map_err(reject::of_parse)?;
        let id = self.table.find(Door::Peer(peer), &quote.tuple.reversed()).ok_or(Reason::UnrelatedIcmp)?;
        let flow = self.table.get(id).ok_or(Reason::UnrelatedIcmp)?;
        let believable = quote.tcp_sequence.is_none_or(|sequence| flow.is_in_flight(Direction::Outbound, sequence));
        if !believable || packet.head.tuple.destination != flow.wire.source {
            return Err(Reason::UnrelatedIcmp);
        }
        let site = flow.site;
        let mtu = lowered_mtu(&quote, self.inner_mtu()).map_err(|()| Reason::UnrelatedIcmp)?;
        packet.decrement_hops().map_err(|_| Reason::TtlExpired)?;
        translate::apply_error(packet, &quote, &site, site.destination, site.source, mtu);
        Ok(())
    }
}

/// A packet between the agents themselves. The lengths that matter here are checked here; the rest is the control
/// channel's own stack's to check.
pub(super) fn is_control(inner: &[u8]) -> bool {
    let Some((source, destination)) = ipv4_addresses(inner) else { return false };
    let (service, caller) = (wire::service(Family::V4, wire::AGENT), wire::caller(Family::V4, wire::AGENT));
    (source, destination) == (caller, service) || (source, destination) == (service, caller)
}

fn ipv4_addresses(inner: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let header = inner.first_chunk::<20>()?;
    let source: [u8; 4] = header[12..16].try_into().ok()?;
    let destination: [u8; 4] = header[16..20].try_into().ok()?;
    (header[0] >> 4 == 4).then(|| (IpAddr::from(source), IpAddr::from(destination)))
}
