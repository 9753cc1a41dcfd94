//! What time brings: idle flows end, tunnels act, flows are judged again after a change.

use super::{Event, FlowEnd, Node, Output, Reason};
use crate::flow::{FlowId, State};
use crate::tunnel::TunnelEvent;
use std::time::Instant;

/// Flows judged again in one go, so that packets do not wait for a large table.
const SWEEP_BATCH: usize = 4096;

impl Node {
    pub fn handle_timeout(&mut self, output: &mut Output, now: Instant) {
        self.tunnels.handle_timeout(&mut output.transmits, now);
        self.take_tunnel_events();
        self.end_idle_flows(now);
        self.fragments.expire(now);
        self.count_lost_fragments();
        self.sweep(now);
        if self.map_next.is_some_and(|at| at <= now) {
            self.apply_mappings(now);
        }
    }

    pub(super) fn take_tunnel_events(&mut self) {
        while let Some(event) = self.tunnels.poll_event() {
            self.events.push_back(match event {
                TunnelEvent::Up(peer) => Event::PeerUp(peer),
                TunnelEvent::Down(peer) => Event::PeerDown(peer),
                TunnelEvent::Moved { peer, to } => Event::PeerMoved { peer, to },
            });
        }
    }

    /// Tails that were held and will never follow a first.
    pub(super) fn count_lost_fragments(&mut self) {
        self.drops.add(Reason::Fragment, self.fragments.take_dropped());
    }

    fn end_idle_flows(&mut self, now: Instant) {
        let mut idle = std::mem::take(&mut self.idle);
        self.table.idle(now, &mut idle);
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

    fn sweep(&mut self, now: Instant) {
        let Some(from) = self.swept else { return };
        let stale: Vec<FlowId> = self.table.stale(from, SWEEP_BATCH, self.version);
        self.swept = stale.last().map(|id| id.0 + 1);
        for id in stale {
            self.judge_again(id, now);
        }
    }
}
