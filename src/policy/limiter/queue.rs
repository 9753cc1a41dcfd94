//! What waits: passed or kept, released in turn, counted.

use super::{EPOCH, Limiter, News, Numbers, Released};
use crate::addr::Direction;
use crate::packet::{self, Packet};
use crate::policy::lane::{Dropped, Lane, LaneKey, PACKETS_MIN};
use crate::policy::limit::Counts;
use crate::policy::slab::to_inside;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

/// All that waits. A caller with too much in it is stopped far below.
const QUEUED_BYTES_MAX: usize = 32 << 20;
/// What all callers together have before each has only an equal part.
const SHARED_BYTES: usize = QUEUED_BYTES_MAX / 2;
/// A limit that is used up is looked at so often: timers cost more than packets.
const PAUSE: u64 = 1_000_000;
/// A limit that goes on to delay and to drop is told of so often.
const NEWS_PAUSE: Duration = Duration::from_secs(60);

impl<S: Ord + Clone> Limiter<S> {
    pub(super) fn put_lane(&mut self, key: LaneKey, lane: Lane) {
        self.add_bytes(lane.share, lane.bytes);
        self.lanes.insert(key, lane);
        self.ready.push_back(key);
    }

    pub(super) fn take_lane(&mut self, key: LaneKey) -> Option<Lane> {
        let lane = self.lanes.remove(&key)?;
        let caller = self.shares.get(to_inside(lane.share)).map_or(0, |share| share.key.caller);
        if let Some(limit) = lane.at.and_then(|at| self.limits.get_mut(at)) {
            let tag = lane.came.map_or(0, |(_, tag)| tag);
            limit.way_mut(key.direction).turns.forget(caller, key.flow, tag);
        } else {
            self.ready.retain(|ready| *ready != key);
        }
        self.take_bytes(lane.share, lane.bytes);
        Some(lane)
    }

    fn add_bytes(&mut self, share: NonZeroU32, bytes: usize) {
        self.queued_bytes += bytes;
        if let Some(share) = self.shares.get_mut(to_inside(share)) {
            self.busy += usize::from(share.bytes == 0 && bytes > 0);
            share.bytes += bytes;
        }
    }

    fn take_bytes(&mut self, share: NonZeroU32, bytes: usize) {
        self.queued_bytes -= bytes;
        if let Some(share) = self.shares.get_mut(to_inside(share)) {
            share.bytes -= bytes;
            self.busy -= usize::from(share.bytes == 0 && bytes > 0);
        }
    }

    /// Whether packets of the flow may pass at once; if not they are to [wait](Self::wait).
    pub fn passes(
        &mut self,
        (flow, share): (u32, NonZeroU32),
        direction: Direction,
        bytes: u64,
        packets: u32,
        now: Instant,
    ) -> bool {
        let Some(share) = self.shares.get(to_inside(share)) else { return true };
        let (limits, at) = (share.limits, direction as usize);
        let waits = !self.lanes.is_empty() && self.lanes.contains_key(&LaneKey { flow, direction });
        if waits || share.delays[at] {
            return false;
        }
        if share.counts[at] {
            let time = self.nanos(now);
            self.charge(&limits, direction, (bytes, packets.into()), time, now);
        }
        true
    }

    /// The packets that this one stands for wait, until [`Self::release`] gives them. False if there was no room for any.
    pub fn wait(
        &mut self,
        (flow, share): (u32, NonZeroU32),
        direction: Direction,
        packet: &Packet,
        now: Instant,
    ) -> bool {
        let (key, time) = (LaneKey { flow, direction }, self.nanos(now));
        let mut scratch = std::mem::take(&mut self.scratch);
        scratch.resize(scratch.len().max(packet.head.total_bytes as usize), 0);
        let (mut waiting, mut dropped) = (0, 0);
        packet::split(packet, &mut scratch, |segment| {
            if self.has_room(key, share, segment.len()) {
                self.push(key, share, segment, time);
                waiting += 1;
            } else {
                dropped += 1;
            }
        });
        self.scratch = scratch;
        if dropped > 0 {
            self.tell_dropped(key, share, dropped, now);
        }
        if waiting > 0 {
            self.dropped += dropped;
        }
        waiting > 0
    }

    fn has_room(&self, key: LaneKey, share: NonZeroU32, bytes: usize) -> bool {
        let Some(share) = self.shares.get(to_inside(share)) else { return false };
        let others = self.busy + usize::from(share.bytes == 0);
        let part = SHARED_BYTES / others.max(1);
        if share.bytes + bytes > part || self.queued_bytes + bytes > QUEUED_BYTES_MAX {
            return false;
        }
        let (length, of_flow) = self.lanes.get(&key).map_or((0, 0), |lane| (lane.len(), lane.bytes));
        // A flow may have as much as is left, so that one that floods leaves room to others of its caller.
        let left = share.bytes_max[key.direction as usize].saturating_sub(share.bytes);
        length < PACKETS_MIN || of_flow + bytes <= left
    }

    fn push(&mut self, key: LaneKey, share: NonZeroU32, bytes: &[u8], now: u64) {
        self.add_bytes(share, bytes.len());
        let ready = &mut self.ready;
        let lane = self.lanes.entry(key).or_insert_with(|| {
            ready.push_back(key);
            Lane::new(share)
        });
        lane.push(bytes.to_vec(), now);
    }

    /// When [`Self::release`] has something.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        if !self.ready.is_empty() {
            return Some(self.epoch);
        }
        let (at, _, _) = self.due.first()?;
        Some(self.epoch + Duration::from_nanos(*at).saturating_sub(EPOCH))
    }

    /// The next packet that may pass now.
    pub fn release(&mut self, now: Instant) -> Option<Released> {
        let time = self.nanos(now);
        loop {
            let key = match self.ready.pop_front() {
                Some(key) => key,
                None => self.next_due(time)?,
            };
            if let Some(released) = self.try_lane(key, time, now) {
                return Some(released);
            }
        }
    }

    /// Packets that were dropped since the last call, besides those that [`Self::wait`] refused.
    pub fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }

    pub fn poll_news(&mut self) -> Option<News<S>> {
        self.news.pop_front()
    }

    /// A flow that waits at a limit whose time has come.
    fn next_due(&mut self, now: u64) -> Option<LaneKey> {
        loop {
            let (at, number, direction) = *self.due.first()?;
            if at > now {
                return None;
            }
            self.due.pop_first();
            let Some(limit) = self.limits.get_mut(number) else { continue };
            let way = limit.way_mut(direction);
            way.due = None;
            if way.free_at() > now {
                self.set_due(number, direction, now);
                continue;
            }
            let Some(flow) = way.turns.next() else { continue };
            self.set_due(number, direction, now);
            let key = LaneKey { flow, direction };
            let Some(lane) = self.lanes.get_mut(&key) else { continue };
            lane.at = None;
            let share = self.shares.get(to_inside(lane.share));
            let place = share.and_then(|share| share.limits.as_slice().iter().position(|of| *of == number));
            place.into_iter().for_each(|place| lane.passed |= 1 << place);
            return Some(key);
        }
    }

    /// While flows wait at the limit, it is looked at when it is free again.
    fn set_due(&mut self, number: u32, direction: Direction, now: u64) {
        let Some(limit) = self.limits.get_mut(number) else { return };
        let way = limit.way_mut(direction);
        if way.due.is_some() || way.turns.is_empty() {
            return;
        }
        let at = if way.free_at() > now { way.free_at().max(now + PAUSE) } else { now };
        way.due = Some(at);
        self.due.insert((at, number, direction));
    }

    /// The flow's first packet, if no limit keeps it; else the flow waits at the first that does.
    fn try_lane(&mut self, key: LaneKey, now: u64, at: Instant) -> Option<Released> {
        let lane = self.lanes.get_mut(&key)?;
        let share = self.shares.get(to_inside(lane.share))?;
        let (limits, caller) = (share.limits, share.key.caller);
        for (place, number) in limits.as_slice().iter().enumerate() {
            let Some(limit) = self.limits.get_mut(*number).filter(|limit| limit.delays(key.direction)) else {
                continue;
            };
            let way = limit.way_mut(key.direction);
            let had_turn = lane.passed & (1 << place) != 0;
            if way.free_at() <= now && (had_turn || way.turns.is_empty()) {
                continue;
            }
            if had_turn {
                way.turns.wait_first(key.flow);
            } else {
                lane.came = Some((*number, way.turns.wait(caller, key.flow, lane.tag(*number))));
            }
            (lane.at, lane.was_late) = (Some(*number), true);
            self.set_due(*number, key.direction, now);
            return None;
        }
        self.take_first(key, &limits, caller, now, at)
    }

    fn take_first(&mut self, key: LaneKey, limits: &Numbers, caller: u32, now: u64, at: Instant) -> Option<Released> {
        let lane = self.lanes.get_mut(&key)?;
        let share = lane.share;
        let (first, Dropped { packets, bytes }) = lane.pop(now);
        let taken = first.as_ref().map_or(0, |first| first.bytes.len());
        let was_late = lane.was_late && first.as_ref().is_some_and(|first| first.since < now);
        let came = lane.came;
        (lane.passed, lane.was_late) = (0, false);
        let is_empty = lane.len() == 0;
        if let Some((number, tag)) = came {
            lane.came = Some((number, tag + taken as u64));
            let limit = self.limits.get_mut(number);
            limit.into_iter().for_each(|limit| limit.way_mut(key.direction).turns.charge(caller, taken as u64));
        }
        self.take_bytes(share, bytes + taken);
        if packets > 0 {
            self.dropped += packets;
            self.tell_dropped(key, share, packets, at);
        }
        if let Some((number, _)) = came.filter(|_| was_late) {
            self.tally(number, at, |counts| counts.packets_delayed += 1);
        }
        if is_empty {
            self.lanes.remove(&key);
        } else {
            self.ready.push_back(key);
        }
        let bytes = first?.bytes;
        self.charge(limits, key.direction, (taken as u64, 1), now, at);
        Some(Released { flow: key.flow, direction: key.direction, bytes })
    }

    /// For all of the share's limits.
    fn charge(&mut self, limits: &Numbers, direction: Direction, (bytes, packets): (u64, u64), now: u64, at: Instant) {
        for number in limits.as_slice() {
            let limit = self.limits.get_mut(*number).filter(|limit| limit.has_rate(direction));
            let over = limit.map_or(0, |limit| limit.charge(direction, bytes, packets, now));
            if over > 0 {
                self.tally(*number, at, |counts| counts.packets_delayed += over);
            }
        }
    }

    /// What leaves by another way than [`Self::release`], and uses up what this subject has all the same.
    pub fn use_up(&mut self, of: &S, direction: Direction, bytes: u64, packets: u64, now: Instant) {
        let known = self.numbers.get(of).and_then(|number| self.subjects.get(number));
        let (Some(number), time) = (known.map(|known| known.limit), self.nanos(now)) else { return };
        self.limits.get_mut(number).map(|limit| limit.charge(direction, bytes, packets, time));
    }

    /// Of the limit that the flow waits at, or the first that may make it wait.
    fn tell_dropped(&mut self, key: LaneKey, share: NonZeroU32, packets: u64, now: Instant) {
        let at = self.lanes.get(&key).and_then(|lane| lane.at.or(lane.came.map(|(number, _)| number)));
        let limits = self.shares.get(to_inside(share)).map(|share| share.limits).unwrap_or_default();
        let delays = |number: &&u32| self.limits.get(**number).is_some_and(|limit| limit.delays(key.direction));
        let number = at.or_else(|| limits.as_slice().iter().find(delays).copied());
        number.into_iter().for_each(|number| self.tally(number, now, |counts| counts.packets_dropped += packets));
    }

    fn tally(&mut self, number: u32, now: Instant, count: impl FnOnce(&mut Counts)) {
        let Some(limit) = self.limits.get(number) else { return };
        let (per_caller, mode) = (limit.is_per_caller, limit.mode);
        let Some(known) = self.subjects.get_mut(&limit.of) else { return };
        let tally = &mut known.tallies[usize::from(per_caller)];
        let before = tally.counts;
        count(&mut tally.counts);
        let after = tally.counts;
        tally.untold += after.packets_delayed - before.packets_delayed;
        tally.untold += after.packets_dropped - before.packets_dropped;
        if tally.told.is_none_or(|told| now.saturating_duration_since(told) >= NEWS_PAUSE) {
            tally.told = Some(now);
            let packets = std::mem::take(&mut tally.untold);
            self.news.push_back(News { of: known.of.clone(), per_caller, mode, packets });
        }
    }
}
