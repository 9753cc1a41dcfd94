//! From the site to the network: one packet of the TUN, or a super-packet of it.

use super::{Node, Opener, Outbound, Output, Reason, datagram, reject, traffic};
use crate::flow::fragments::{Tail, Verdict};
use crate::flow::{Direction, Door, FlowId};
use crate::packet::{self, Kind, Offload, Packet};
use crate::translate;
use crate::tunnel::Tunnel;
use std::time::Instant;

impl Node {
    /// A packet from the TUN, or a super-packet of it, and all that follows from it.
    pub fn handle_packet(&mut self, bytes: &mut [u8], offload: Offload, output: &mut Output, now: Instant) {
        if let Some(outbound) = self.outbound(bytes, offload, output, now) {
            output.seal(&outbound, now);
        }
        self.settle(output, now);
    }

    /// A packet from the TUN, or a super-packet of it: translated, and to be sealed with [`Output::seal`] if it goes on.
    pub fn outbound<'a>(
        &mut self,
        bytes: &'a mut [u8],
        offload: Offload,
        output: &mut Output,
        now: Instant,
    ) -> Option<Outbound<'a>> {
        if is_multicast(bytes) {
            // The host's own kernel greets the interface (IGMP, MLD, router solicitation); nobody sent it to us.
            return None;
        }
        let mut packet = match Packet::parse(bytes, offload) {
            Ok(packet) => packet,
            Err(error) => {
                self.drops.count(reject::of_parse(error));
                return None;
            }
        };
        let tunnel = self.translate_outbound(&mut packet, output, now)?;
        Some(Outbound { packet, tunnel, mtu: self.inner_mtu() })
    }

    /// The tunnel that is to carry it. Fragments are sealed here, as those go together that came apart.
    fn translate_outbound(&mut self, packet: &mut Packet, output: &mut Output, now: Instant) -> Option<Tunnel> {
        if !reject::is_unicast(packet.head.tuple.destination) {
            self.drops.count(Reason::NotUnicast);
            return None;
        }
        if packet.head.kind == Kind::IcmpError {
            let taken = self.outbound_error(packet);
            return taken.map_err(|reason| self.drops.count(reason)).ok();
        }
        if packet.head.kind == Kind::FragmentTail {
            self.outbound_tail(packet, output, now);
            return None;
        }
        let known = self.table.find(Door::Site, &packet.head.tuple);
        let flow = match known.and_then(|id| self.fresh(id, Direction::Outbound, now)) {
            Some(id) => Ok(id),
            None => self.admit_outbound(packet, now),
        };
        match flow {
            Ok(id) if packet.head.fragment.is_some() => {
                self.outbound_first(id, packet, output, now);
                None
            }
            Ok(id) => {
                let carried = self.carry_outbound(id, packet, output, now);
                let counted = |reason| self.drops.add(reason, u64::from(packet::segment_count(packet)));
                carried.map_err(counted).ok().flatten()
            }
            Err(refused) => {
                if let Some(datagram) = datagram(Door::Site, packet) {
                    self.fragments.refuse(datagram, now);
                }
                self.reject(packet, refused.reason, output, now);
                self.deny(Opener::Site, packet, refused);
                None
            }
        }
    }

    /// The tunnel that is to carry it now; none if it waits.
    fn carry_outbound(
        &mut self,
        id: FlowId,
        packet: &mut Packet,
        output: &mut Output,
        now: Instant,
    ) -> Result<Option<Tunnel>, Reason> {
        let flow = self.table.get(id).ok_or(Reason::Unsolicited)?;
        let (peer, wire, opened_by) = (flow.peer, flow.wire, flow.opened_by);
        if packet.head.kind == Kind::EchoRequest && opened_by != Direction::Outbound {
            return Err(Reason::UnrelatedIcmp);
        }
        let Some(tunnel) = self.tunnels.tunnel(peer).cloned() else {
            self.reject(packet, Reason::NoPath, output, now);
            return Err(Reason::NoPath);
        };
        if packet.decrement_hops().is_err() {
            self.reject(packet, Reason::TtlExpired, output, now);
            return Err(Reason::TtlExpired);
        }
        let mtu = self.inner_mtu();
        if packet::largest_segment(packet) > u32::from(mtu) && !packet::may_fragment(packet) {
            self.reject(packet, Reason::TooBig, output, now);
            return Err(Reason::TooBig);
        }
        let traffic = traffic(packet, packet::segment_count(packet));
        let share = self.must_wait(id, Direction::Outbound, &traffic, now);
        if share.is_none() {
            self.record(id, Direction::Outbound, &traffic, now)?;
        }
        packet.clamp_mss(mss(packet, mtu));
        translate::apply(packet, &wire);
        match share {
            None => Ok(Some(tunnel)),
            Some(share) => self.wait((id, share), Direction::Outbound, packet, now).map(|()| None),
        }
    }

    /// A first fragment: its tails that came before it follow it, or are dropped with it.
    fn outbound_first(&mut self, id: FlowId, packet: &mut Packet, output: &mut Output, now: Instant) {
        let (Some(of), Some(fragment)) = (datagram(Door::Site, packet), packet.head.fragment) else { return };
        let Some(flow) = self.table.get(id) else { return };
        let verdict = Verdict { flow: id, peer: flow.peer, to: flow.wire };
        let Ok(held) = self.fragments.pass(of, fragment, packet.layer4().len(), verdict, now) else {
            return self.drops.count(Reason::Fragment);
        };
        let carried = self.carry_outbound(id, packet, output, now).map(|tunnel| {
            let seal = |tunnel| output.seal_packet(packet, &tunnel, self.inner_mtu(), now);
            tunnel.into_iter().for_each(seal);
        });
        if !self.first_counted(&of, carried, held.len(), now) {
            return;
        }
        for mut bytes in held {
            if let Ok(mut tail) = Packet::parse(&mut bytes, Offload::default()) {
                self.carry_outbound_tail(&verdict, &mut tail, output, now);
            }
        }
    }

    fn outbound_tail(&mut self, packet: &mut Packet, output: &mut Output, now: Instant) {
        let (Some(of), Some(fragment)) = (datagram(Door::Site, packet), packet.head.fragment) else { return };
        match self.fragments.tail(of, fragment, packet.layer4().len(), packet.bytes(), now) {
            Tail::Pass(verdict) => self.carry_outbound_tail(&verdict, packet, output, now),
            Tail::Held => {}
            Tail::Refused => self.drops.count(Reason::Fragment),
            Tail::OverRate => self.drops.count(Reason::RateLimit),
        }
    }

    fn carry_outbound_tail(&mut self, verdict: &Verdict, packet: &mut Packet, output: &mut Output, now: Instant) {
        if packet.decrement_hops().is_err() {
            return self.drops.count(Reason::TtlExpired);
        }
        match self.carry_tail(verdict, Direction::Outbound, packet, now) {
            Err(reason) => return self.drops.count(reason),
            Ok(false) => return,
            Ok(true) => {}
        }
        match self.tunnels.tunnel(verdict.peer) {
            Some(tunnel) => output.seal_packet(packet, tunnel, self.inner_mtu(), now),
            None => self.drops.count(Reason::NoPath),
        }
    }

    /// An ICMP error of this site, about a packet that was delivered to it.
    fn outbound_error(&mut self, packet: &mut Packet) -> Result<Tunnel, Reason> {
        let quote = packet::quote(packet).map_err(reject::of_parse)?;
        let id = self.table.find(Door::Site, &quote.tuple.reversed()).ok_or(Reason::UnrelatedIcmp)?;
        let flow = self.table.get(id).ok_or(Reason::UnrelatedIcmp)?;
        let believable = quote.tcp_sequence.is_none_or(|sequence| flow.is_in_flight(Direction::Inbound, sequence));
        let to_presence = packet.head.tuple.destination == flow.site.destination;
        let tunnel = self.tunnels.tunnel(flow.peer).filter(|_| believable && to_presence);
        let tunnel = tunnel.ok_or(Reason::UnrelatedIcmp)?.clone();
        let wire = flow.wire;
        packet.decrement_hops().map_err(|_| Reason::TtlExpired)?;
        let mtu = lowered_mtu(&quote, self.inner_mtu()).map_err(|()| Reason::UnrelatedIcmp)?;
        translate::apply_error(packet, &quote, &wire.reversed(), wire.source, wire.destination, mtu);
        Ok(tunnel)
    }
}

/// Judged before all else: what multicast protocols send need not be anything that is parsed here.
fn is_multicast(bytes: &[u8]) -> bool {
    match bytes.first().map(|first| first >> 4) {
        Some(4) => bytes.get(16).is_some_and(|first| first >> 4 == 0xe),
        Some(6) => bytes.get(24) == Some(&0xff),
        Some(_) | None => false,
    }
}

/// The largest segment that fits the tunnel, for the MSS option (RFC 6691: headers without options).
pub(super) fn mss(packet: &Packet, mtu: u16) -> u16 {
    let headers = match packet.head.family {
        crate::addr::Family::V4 => 40,
        crate::addr::Family::V6 => 60,
    };
    mtu.saturating_sub(headers)
}

/// What an error's MTU field becomes: none for other errors, what the path really carries for Too Big. Refused where
/// no link may be so small (RFC 791: 68 for IPv4, but 576 is what every host takes, RFC 1191 section 3; RFC 8200: 1280).
pub(super) fn lowered_mtu(quote: &packet::Quote, inner_mtu: u16) -> Result<Option<u32>, ()> {
    match quote.what {
        packet::IcmpError::TooBig { mtu } => {
            let least = match crate::addr::Family::of(quote.tuple.source) {
                crate::addr::Family::V4 => 576,
                crate::addr::Family::V6 => 1280,
            };
            if mtu < least { Err(()) } else { Ok(Some(mtu.min(u32::from(inner_mtu)))) }
        }
        _ => Ok(None),
    }
}
