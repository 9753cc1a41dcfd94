//! One limit: of all that use something together, or of one caller of it.

use super::bucket::Bucket;
use super::pace::Pace;
use super::turns::Turns;
use crate::addr::{Bounds, Direction, Limits, Mode, Rates};
use std::time::{Duration, Instant};

/// Limits, and how they are to be held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Terms {
    pub limits: Limits,
    /// What each packet has besides its own bytes.
    pub overhead_bytes: u32,
    /// What was not used for longer is lost.
    pub burst: Duration,
}

/// What a limit did, or would have done if it were enforced.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counts {
    /// New flows, over the number of flows and over the rate of new ones.
    pub flows_refused: u64,
    pub new_flows_refused: u64,
    pub packets_delayed: u64,
    pub packets_dropped: u64,
}

impl Counts {
    pub(super) fn refuse(&mut self, what: Exceeding) {
        match what {
            Exceeding::Flows => self.flows_refused += 1,
            Exceeding::NewFlows => self.new_flows_refused += 1,
        }
    }
}

#[derive(Debug)]
pub(super) struct Limit {
    /// The number of what is limited.
    pub of: u32,
    pub is_per_caller: bool,
    pub bounds: Bounds,
    pub mode: Mode,
    overhead_bytes: u32,
    burst: u64,
    ways: [Way; 2],
    pub new_flows: Option<Bucket>,
    /// That have a share in it, and those of them that have not ended.
    pub flows: u32,
    pub open: u32,
}

#[derive(Default, Debug)]
pub(super) struct Way {
    bits: Pace,
    packets: Pace,
    pub turns: Turns,
    /// When whoever waits is looked at again.
    pub due: Option<u64>,
}

impl Way {
    pub fn free_at(&self) -> u64 {
        self.bits.free_at().max(self.packets.free_at())
    }
}

impl Limit {
    pub fn new(of: u32, is_per_caller: bool, terms: &Terms, now: Instant) -> Self {
        let mut limit = Self {
            of,
            is_per_caller,
            bounds: Bounds::default(),
            mode: Mode::default(),
            overhead_bytes: 0,
            burst: 0,
            ways: Default::default(),
            new_flows: None,
            flows: 0,
            open: 0,
        };
        limit.set(terms, now);
        limit
    }

    /// What stays as it was keeps what is left of it.
    pub fn set(&mut self, terms: &Terms, now: Instant) {
        let Terms { limits, overhead_bytes, burst } = *terms;
        let bounds = if self.is_per_caller { limits.per_caller } else { limits.all };
        for direction in [Direction::Outbound, Direction::Inbound] {
            if self.bounds.rates(direction) != bounds.rates(direction) {
                let way = self.way_mut(direction);
                (way.bits, way.packets) = (Pace::default(), Pace::default());
            }
        }
        self.bounds = bounds;
        (self.mode, self.overhead_bytes) = (limits.mode, overhead_bytes);
        self.burst = u64::try_from(burst.as_nanos()).unwrap_or(u64::MAX);
        let known = self.new_flows.take();
        self.new_flows = self.bounds.new_flows_per_second.map(u64::from).map(|rate| match known {
            Some(known) => known.resized(rate, rate, now),
            None => Bucket::new(rate, rate, now),
        });
    }

    pub fn way_mut(&mut self, direction: Direction) -> &mut Way {
        &mut self.ways[direction as usize]
    }

    /// Whether packets may have to wait for it.
    pub fn delays(&self, direction: Direction) -> bool {
        self.mode == Mode::Enforce && self.has_rate(direction)
    }

    pub fn has_rate(&self, direction: Direction) -> bool {
        !self.bounds.rates(direction).is_none()
    }

    /// Packets pass; how many of them were too many, which one that is enforced never finds.
    pub fn charge(&mut self, direction: Direction, bytes: u64, packets: u64, now: u64) -> u64 {
        let Rates { bits_per_second, packets_per_second } = self.bounds.rates(direction);
        let (mode, overhead, burst) = (self.mode, u64::from(self.overhead_bytes), self.burst);
        let way = self.way_mut(direction);
        if mode == Mode::Observe && way.free_at() > now {
            return packets;
        }
        if let Some(rate) = bits_per_second {
            way.bits.charge((bytes + packets * overhead) * 8, rate, burst, now);
        }
        if let Some(rate) = packets_per_second {
            way.packets.charge(packets, rate.into(), burst, now);
        }
        0
    }

    /// Whether another flow would be too many, or come too soon.
    pub fn refuses(&self, now: Instant) -> Option<Exceeding> {
        if self.bounds.flows.is_some_and(|flows| self.open >= flows) {
            return Some(Exceeding::Flows);
        }
        let too_soon = self.new_flows.clone().is_some_and(|mut bucket| !bucket.take(1, now));
        too_soon.then_some(Exceeding::NewFlows)
    }
}

/// What a new flow is too much for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Exceeding {
    Flows,
    NewFlows,
}
