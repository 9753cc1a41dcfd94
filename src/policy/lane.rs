//! What waits of one flow in one direction, in its order.

use super::codel::Codel;
use crate::addr::Direction;
use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::time::Duration;

/// RFC 8289 section 4.4: for links of the internet.
const TARGET: Duration = Duration::from_millis(5);
const INTERVAL: Duration = Duration::from_millis(100);
/// A flow may always have so many waiting; fewer, and TCP could not go on at a slow rate.
pub(super) const PACKETS_MIN: usize = 2;

/// A flow's number, and which way.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct LaneKey {
    pub flow: u32,
    pub direction: Direction,
}

#[derive(Debug)]
pub(super) struct Lane {
    pub share: NonZeroU32,
    /// Never empty between two calls.
    packets: VecDeque<Waiting>,
    pub bytes: usize,
    codel: Codel,
    /// The limit that it waits at, if it does.
    pub at: Option<u32>,
    /// The limit that it last waited at, and how far it came there.
    pub came: Option<(u32, u64)>,
    /// Of the first packet: at which of its share's limits it had its turn, a bit each, and whether it had to wait.
    pub passed: u8,
    pub was_late: bool,
}

#[derive(Debug)]
pub(super) struct Waiting {
    pub bytes: Vec<u8>,
    pub since: u64,
}

impl Lane {
    pub fn new(share: NonZeroU32) -> Self {
        Self {
            share,
            packets: VecDeque::new(),
            bytes: 0,
            codel: Codel::new(TARGET, INTERVAL),
            at: None,
            came: None,
            passed: 0,
            was_late: false,
        }
    }

    pub fn len(&self) -> usize {
        self.packets.len()
    }

    pub fn push(&mut self, bytes: Vec<u8>, now: u64) {
        self.bytes += bytes.len();
        self.packets.push_back(Waiting { bytes, since: now });
    }

    /// The first packet, and what CoDel drops before it.
    pub fn pop(&mut self, now: u64) -> (Option<Waiting>, Dropped) {
        let mut dropped = Dropped::default();
        while let Some(first) = self.packets.pop_front() {
            self.bytes -= first.bytes.len();
            let waited = Duration::from_nanos(now.saturating_sub(first.since));
            let may_drop = self.packets.len() >= PACKETS_MIN;
            if !self.codel.drops(waited, may_drop, || Duration::from_nanos(now)) {
                return (Some(first), dropped);
            }
            dropped.packets += 1;
            dropped.bytes += first.bytes.len();
        }
        (None, dropped)
    }

    /// Where it goes on at this limit.
    pub fn tag(&self, limit: u32) -> u64 {
        self.came.filter(|(at, _)| *at == limit).map_or(0, |(_, tag)| tag)
    }
}

#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Dropped {
    pub packets: u64,
    pub bytes: usize,
}
