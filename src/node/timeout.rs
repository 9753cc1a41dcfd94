//! What time brings: idle flows end, tunnels act, flows are judged again after a change.

use super::{Event, FlowEnd, Node, Output, Reason, Sweep};
use crate::flow::State;
use crate::tunnel::TunnelEvent;
use std::time::Instant;

/// Flows judged again in one go, so that packets do not wait for a large table.
const SWEEP_BATCH: u32 = 4096;
/// Flows whose silence is looked at in one go, for the same reason.
const IDLE_BATCH: usize = 1024;

impl Node {
    pub fn handle_timeout(&mut self, output: &mut Output, now: Instant) {
        self.tunnels.handle_timeout(&mut output.transmits, now);
        self.take_tunnel_events(now);
        self.end_idle_flows(now);
        self.fragments.expire(now);
        self.count_lost_fragments();
        self.sweep(now);
        self.release(output, now);
        if self.map_next.is_some_and(|at| at <= now) {
            self.unmapped.extend(self.presences.sites_refused());
            self.apply_mappings(now);
        }
    }

    pub(super) fn take_tunnel_events(&mut self, now: Instant) {
        while let Some(event) = self.tunnels.poll_event() {
            let (peer, event) = match event {
                TunnelEvent::Up(peer) => (peer, Event::PeerUp(peer)),
                TunnelEvent::Down(peer) => (peer, Event::PeerDown(peer)),
                TunnelEvent::Moved { peer, to } => (peer, Event::PeerMoved { peer, to }),
            };
            self.events.push_back(event);
            self.follow(peer, now);
        }
    }

    /// Tails that were held and will never follow a first.
    pub(super) fn count_lost_fragments(&mut self) {
        self.drops.add(Reason::Fragment, self.fragments.take_dropped());
    }

    fn end_idle_flows(&mut self, now: Instant) {
        let mut idle = std::mem::take(&mut self.idle);
        self.table.idle(now, IDLE_BATCH, &mut idle);
        for id in idle.drain(..) {
            let end = match self.table.get(id).map(|flow| flow.state) {
                Some(State::Closed) => FlowEnd::Closed,
                Some(State::Reset) => FlowEnd::Reset,
                Some(State::HalfOpen | State::Open) | None => FlowEnd::Idle,
            };
            self.end_flow(id, end, now);
        }
        self.idle = idle;
    }

    /// Goes round the table once after the last change, on from where it was.
    fn sweep(&mut self, now: Instant) {
        let Some(Sweep { next, left }) = self.swept else { return };
        let next = if next < self.table.end() { next } else { 0 };
        let count = left.min(SWEEP_BATCH).min(self.table.end() - next);
        for id in self.table.stale(next, count, self.version) {
            self.judge_again(id, now);
        }
        self.swept = (left > count).then_some(Sweep { next: next.saturating_add(count), left: left - count });
    }
}
