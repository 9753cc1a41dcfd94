//! Packets that wait for a limit: translated, and counted for their flow only when they pass. They leave by [`Node::release`]
//! alone, which one thread calls; so nothing overtakes within a flow.

use super::limits::Subject;
use super::{Event, Limited, Node, Output, Reason, traffic};
use crate::addr::Direction;
use crate::flow::FlowId;
use crate::packet::{Offload, Packet};
use crate::policy::{News, Released};
use std::num::NonZeroU32;
use std::time::Instant;

/// What is released in one go, so that other packets do not wait for it.
const BYTES_MAX: usize = 128 << 10;

impl Node {
    /// Takes the packet, in the view that it leaves with, until the flow's limits let it pass.
    pub(super) fn wait(
        &mut self,
        (id, share): (FlowId, NonZeroU32),
        direction: Direction,
        packet: &Packet,
        now: Instant,
    ) -> Result<(), Reason> {
        let waits = self.limiter.wait((id.0, share), direction, packet, now);
        if waits { Ok(()) } else { Err(Reason::RateLimit) }
    }

    /// What may pass now.
    pub(super) fn release(&mut self, output: &mut Output, now: Instant) {
        let mut bytes = 0;
        while bytes < BYTES_MAX {
            let Some(released) = self.limiter.release(now) else { break };
            bytes += released.bytes.len();
            self.pass(released, output, now).unwrap_or_else(|reason| self.drops.count(reason));
        }
        self.settle(output, now);
        self.drops.add(Reason::RateLimit, self.limiter.take_dropped());
        while let Some(News { of, per_caller, mode, packets }) = self.limiter.poll_news() {
            let limited = Limited { limit: self.limit_name(&of, per_caller), mode, packets };
            self.tell(Event::Limited(limited));
        }
    }

    fn pass(&mut self, released: Released, output: &mut Output, now: Instant) -> Result<(), Reason> {
        let Released { flow, direction, mut bytes } = released;
        let id = FlowId(flow);
        let packet = Packet::parse(&mut bytes, Offload::default()).map_err(super::reject::of_parse)?;
        self.record(id, direction, &traffic(&packet, 1), now)?;
        match direction {
            Direction::Inbound => output.packets.push(bytes),
            Direction::Outbound => {
                let peer = self.table.get(id).ok_or(Reason::Unsolicited)?.peer;
                let tunnel = self.tunnels.tunnel(peer).ok_or(Reason::NoPath)?;
                output.seal_packet(&packet, tunnel, self.inner_mtu(), now);
            }
        }
        Ok(())
    }

    /// What goes to the network and cannot wait takes from the others.
    pub(super) fn use_uplink(&mut self, bytes: usize, packets: u64, now: Instant) {
        if self.settings.limits.uplink.is_some() {
            self.limiter.use_up(&Subject::Uplink, Direction::Outbound, bytes as u64, packets, now);
        }
    }
}
