//! Limits, and what waits for them. A flow has a share in the limits that apply to it and its caller; a packet of it passes when
//! none of them is used up. Where one is, callers take turns; so none can starve another, whatever it sends.
//!
//! Who has a limit is a value of the node's, `S`.

use super::lane::{Dropped, Lane, LaneKey, PACKETS_MIN};
use super::limit::{Counts, Exceeding, Limit, Terms};
use super::slab::{Slab, to_inside, to_outside};
use crate::addr::{Direction, Limits, Mode};
use crate::packet::{self, Packet};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

/// All that waits. A caller with too much in it is stopped far below.
const QUEUED_BYTES_MAX: usize = 32 << 20;
/// What all callers together have before each has only an equal part.
const SHARED_BYTES: usize = QUEUED_BYTES_MAX / 2;
/// What one caller may have waiting: so much time's worth, and that much at most and at least.
const QUEUE_TIME_PER_SECOND: u64 = 5;
const SHARE_BYTES_MAX: u64 = 2 << 20;
const SHARE_BYTES_MIN: u64 = 64 << 10;
/// For packets a second, as if they were as long as an Ethernet's.
const PACKET_BYTES: u64 = 1500;
/// A limit that is used up is looked at so often: timers cost more than packets.
const PAUSE: u64 = 1_000_000;
/// A flow is of a service or mapping, a peer, a tenant and the uplink; of each there is a limit of all and one of the caller.
const SUBJECTS_MAX: usize = 4;
const SHARE_LIMITS_MAX: usize = 2 * SUBJECTS_MAX;
/// The clock begins so far in, so that what was not used before the start is there.
const EPOCH: Duration = Duration::from_secs(1);
/// A limit that goes on to delay and to drop is told of so often.
const NEWS_PAUSE: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub struct Limiter<S> {
    epoch: Instant,
    limits: Slab<Limit>,
    /// What is limited, by numbers that are not used again.
    subjects: BTreeMap<u32, Subject<S>>,
    numbers: BTreeMap<S, u32>,
    last_number: u32,
    /// Limits of callers: by the subject, and the caller.
    by_caller: BTreeMap<(u32, u32), u32>,
    shares: Slab<Share>,
    by_share: BTreeMap<ShareKey, u32>,
    lanes: BTreeMap<LaneKey, Lane>,
    /// Flows that wait for no limit, or for the first look at them.
    ready: VecDeque<LaneKey>,
    /// Limits that flows wait at, and when those are looked at.
    due: BTreeSet<(u64, u32, Direction)>,
    queued_bytes: usize,
    /// Shares that have something waiting.
    busy: usize,
    dropped: u64,
    news: VecDeque<News<S>>,
    scratch: Vec<u8>,
}

#[derive(Debug)]
struct Subject<S> {
    of: S,
    /// Its limit of all.
    limit: u32,
    terms: Terms,
    /// Of all, and of callers.
    tallies: [Tally; 2],
}

#[derive(Default, Debug)]
struct Tally {
    counts: Counts,
    untold: u64,
    told: Option<Instant>,
}

/// Of what, and of which caller.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct ShareKey {
    subjects: [Option<u32>; SUBJECTS_MAX],
    caller: u32,
}

#[derive(Debug)]
struct Share {
    key: ShareKey,
    limits: Numbers,
    flows: u32,
    /// By direction: whether packets may have to wait, and how much of them.
    delays: [bool; 2],
    counts: [bool; 2],
    bytes_max: [usize; 2],
    bytes: usize,
}

#[derive(Clone, Copy, Default, Debug)]
struct Numbers {
    list: [u32; SHARE_LIMITS_MAX],
    count: usize,
}

/// A limit that refuses, or would.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Exceeded<S> {
    pub of: S,
    pub per_caller: bool,
    pub mode: Mode,
    pub what: Exceeding,
}

/// A limit that delays or drops packets, or would: how many more than when it was last told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct News<S> {
    pub of: S,
    pub per_caller: bool,
    pub mode: Mode,
    pub packets: u64,
}

/// A packet that may pass now, of the flow of this number.
#[derive(Debug)]
pub struct Released {
    pub flow: u32,
    pub direction: Direction,
    pub bytes: Vec<u8>,
}

/// One limit, as it stands.
#[derive(Clone, Debug)]
pub struct Standing<S> {
    pub of: S,
    pub per_caller: bool,
    pub mode: Mode,
    /// Of a limit of all.
    pub flows: u32,
    pub counts: Counts,
}

impl Numbers {
    fn push(&mut self, number: u32) {
        self.list[self.count] = number;
        self.count += 1;
    }

    fn as_slice(&self) -> &[u32] {
        &self.list[..self.count]
    }
}

impl<S: Ord + Clone> Limiter<S> {
    #[must_use]
    pub fn new(now: Instant) -> Self {
        Self {
            epoch: now,
            limits: Slab::default(),
            subjects: BTreeMap::new(),
            numbers: BTreeMap::new(),
            last_number: 0,
            by_caller: BTreeMap::new(),
            shares: Slab::default(),
            by_share: BTreeMap::new(),
            lanes: BTreeMap::new(),
            ready: VecDeque::new(),
            due: BTreeSet::new(),
            queued_bytes: 0,
            busy: 0,
            dropped: 0,
            news: VecDeque::new(),
            scratch: Vec::new(),
        }
    }

    /// Whether nothing is limited, and no flow has a share.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.subjects.is_empty() && self.by_share.is_empty()
    }

    /// Replaces what is limited. What stays as it was keeps what is left of it; flows that have another share now are to be
    /// [attached](Self::attach) again.
    pub fn configure(&mut self, mut wanted: BTreeMap<S, Terms>, now: Instant) {
        let Self { subjects, numbers, limits, by_caller, .. } = self;
        subjects.retain(|number, known| {
            let terms = wanted.remove(&known.of);
            // Flows may have a share in what is gone, until they are attached again.
            known.terms = terms.unwrap_or(Terms { limits: Limits::default(), ..known.terms });
            limits.get_mut(known.limit).into_iter().for_each(|limit| limit.set(&known.terms, now));
            for (_, of_caller) in by_caller.range((*number, 0)..=(*number, u32::MAX)) {
                limits.get_mut(*of_caller).into_iter().for_each(|limit| limit.set(&known.terms, now));
            }
            if terms.is_none() {
                numbers.remove(&known.of);
                limits.remove(known.limit);
            }
            terms.is_some()
        });
        for (of, terms) in wanted {
            self.last_number += 1;
            let limit = self.limits.insert(Limit::new(self.last_number, false, &terms, now));
            self.numbers.insert(of.clone(), self.last_number);
            let subject = Subject { of, limit, terms, tallies: Default::default() };
            self.subjects.insert(self.last_number, subject);
        }
        self.look_again(now);
        self.drop_unused();
    }

    /// Shares find their limits anew, and all that waits is ready.
    fn look_again(&mut self, now: Instant) {
        for (_, limit) in self.limits.iter_mut() {
            limit.flows = 0;
            for direction in [Direction::Outbound, Direction::Inbound] {
                let way = limit.way_mut(direction);
                way.turns.clear();
                way.due = None;
            }
        }
        let keys: Vec<(u32, ShareKey)> = self.shares.iter().map(|(number, share)| (number, share.key)).collect();
        for (number, key) in keys {
            let limits = self.limits_of(&key, now);
            let facts = self.facts(&limits);
            let Some(share) = self.shares.get_mut(number) else { continue };
            share.limits = limits;
            (share.delays, share.counts, share.bytes_max) = facts;
            let flows = share.flows;
            self.each(&limits, |limit| limit.flows += flows);
        }
        self.due.clear();
        for lane in self.lanes.values_mut() {
            (lane.at, lane.came, lane.passed) = (None, None, 0);
        }
        self.ready = self.lanes.keys().copied().collect();
    }

    /// Limits of callers that no share has.
    fn drop_unused(&mut self) {
        let limits = &mut self.limits;
        self.by_caller.retain(|_, number| {
            let is_used = limits.get(*number).is_some_and(|limit| limit.flows > 0);
            if !is_used {
                limits.remove(*number);
            }
            is_used
        });
    }

    /// The limits of a share; those of its caller are made if they are not there.
    fn limits_of(&mut self, key: &ShareKey, now: Instant) -> Numbers {
        let Self { limits, subjects, by_caller, .. } = self;
        let mut numbers = Numbers::default();
        for number in key.subjects.into_iter().flatten() {
            let Some(Subject { limit, terms, .. }) = subjects.get(&number) else { continue };
            if !terms.limits.per_caller.is_none() {
                let make = || limits.insert(Limit::new(number, true, terms, now));
                numbers.push(*by_caller.entry((number, key.caller)).or_insert_with(make));
            }
            if !terms.limits.all.is_none() {
                numbers.push(*limit);
            }
        }
        numbers
    }

    fn facts(&self, numbers: &Numbers) -> ([bool; 2], [bool; 2], [usize; 2]) {
        let limits = || numbers.as_slice().iter().filter_map(|number| self.limits.get(*number));
        let (mut delays, mut counts, mut bytes_max) = ([false; 2], [false; 2], [SHARE_BYTES_MAX as usize; 2]);
        for direction in [Direction::Outbound, Direction::Inbound] {
            let at = direction as usize;
            delays[at] = limits().any(|limit| limit.delays(direction));
            counts[at] = limits().any(|limit| limit.has_rate(direction));
            let rates = limits().filter(|limit| limit.delays(direction)).map(|limit| limit.bounds.rates(direction));
            let bytes = rates.flat_map(|rates| {
                let of_bits = rates.bits_per_second.map(|bits| bits / 8);
                [of_bits, rates.packets_per_second.map(|packets| u64::from(packets) * PACKET_BYTES)]
            });
            let slowest = bytes.flatten().min().unwrap_or(u64::MAX) / QUEUE_TIME_PER_SECOND;
            bytes_max[at] = slowest.clamp(SHARE_BYTES_MIN, SHARE_BYTES_MAX) as usize;
        }
        (delays, counts, bytes_max)
    }

    fn key<'a>(&self, subjects: impl IntoIterator<Item = &'a S>, caller: u32) -> Option<ShareKey>
    where
        S: 'a,
    {
        let mut known = [None; SUBJECTS_MAX];
        let numbers = subjects.into_iter().filter_map(|subject| self.numbers.get(subject));
        known.iter_mut().zip(numbers).for_each(|(place, number)| *place = Some(*number));
        known[0].is_some().then_some(ShareKey { subjects: known, caller })
    }

    /// What refuses a new flow of the caller in all of these, or would; the caller may be new.
    pub fn exceeded<'a>(
        &'a self,
        subjects: impl IntoIterator<Item = &'a S>,
        caller: Option<u32>,
        now: Instant,
    ) -> impl Iterator<Item = Exceeded<S>>
    where
        S: 'a,
    {
        let numbers = subjects.into_iter().filter_map(|subject| self.numbers.get(subject));
        numbers.filter_map(|number| Some((*number, self.subjects.get(number)?))).flat_map(move |(number, known)| {
            let of_caller = caller.and_then(|caller| self.by_caller.get(&(number, caller)).copied());
            [(Some(known.limit), false), (of_caller, true)].into_iter().filter_map(move |(number, per_caller)| {
                let limit = self.limits.get(number?)?;
                let what = limit.refuses(now)?;
                Some(Exceeded { of: known.of.clone(), per_caller, mode: limit.mode, what })
            })
        })
    }

    pub fn count(&mut self, exceeded: &Exceeded<S>) {
        let number = self.numbers.get(&exceeded.of);
        let Some(subject) = number.and_then(|number| self.subjects.get_mut(number)) else { return };
        let counts = &mut subject.tallies[usize::from(exceeded.per_caller)].counts;
        match exceeded.what {
            Exceeding::Flows => counts.flows_refused += 1,
            Exceeding::NewFlows => counts.new_flows_refused += 1,
        }
    }

    /// A new flow of the caller in all of these: the number of its share, if any of them is limited.
    pub fn open<'a>(
        &mut self,
        subjects: impl IntoIterator<Item = &'a S>,
        caller: u32,
        now: Instant,
    ) -> Option<NonZeroU32>
    where
        S: 'a,
    {
        let number = self.attach(subjects, caller, now)?;
        let limits = self.shares.get(to_inside(number))?.limits;
        self.each(&limits, |limit| {
            limit.new_flows.as_mut().map(|bucket| bucket.take(1, now));
        });
        Some(number)
    }

    fn attach<'a>(&mut self, subjects: impl IntoIterator<Item = &'a S>, caller: u32, now: Instant) -> Option<NonZeroU32>
    where
        S: 'a,
    {
        let key = self.key(subjects, caller)?;
        let number = match self.by_share.get(&key) {
            Some(number) => *number,
            None => {
                let limits = self.limits_of(&key, now);
                let (delays, counts, bytes_max) = self.facts(&limits);
                let number = self.shares.insert(Share { key, limits, flows: 0, delays, counts, bytes_max, bytes: 0 });
                self.by_share.insert(key, number);
                number
            }
        };
        let share = self.shares.get_mut(number)?;
        share.flows += 1;
        let limits = share.limits;
        self.each(&limits, |limit| limit.flows += 1);
        to_outside(number)
    }

    fn each(&mut self, numbers: &Numbers, mut act: impl FnMut(&mut Limit)) {
        for number in numbers.as_slice() {
            self.limits.get_mut(*number).into_iter().for_each(&mut act);
        }
    }

    fn detach(&mut self, number: NonZeroU32) {
        let number = to_inside(number);
        let Some(share) = self.shares.get_mut(number) else { return };
        share.flows -= 1;
        let (limits, is_last, key) = (share.limits, share.flows == 0, share.key);
        for of in limits.as_slice() {
            let Some(limit) = self.limits.get_mut(*of) else { continue };
            limit.flows -= 1;
            // Its last flow was there for longer than what it remembers.
            if limit.flows == 0 && limit.is_per_caller {
                let subject = limit.of;
                self.limits.remove(*of);
                self.by_caller.remove(&(subject, key.caller));
            }
        }
        if is_last {
            self.shares.remove(number);
            self.by_share.remove(&key);
        }
    }

    /// After a change: the share of a flow that may have another, and had this one.
    pub fn attach_again<'a>(
        &mut self,
        (flow, share): (u32, Option<NonZeroU32>),
        subjects: impl IntoIterator<Item = &'a S>,
        caller: u32,
        now: Instant,
    ) -> Option<NonZeroU32>
    where
        S: 'a,
    {
        let attached = self.attach(subjects, caller, now);
        if attached == share {
            share.into_iter().for_each(|share| self.detach(share));
            return share;
        }
        for direction in [Direction::Outbound, Direction::Inbound] {
            let Some(mut lane) = self.take_lane(LaneKey { flow, direction }) else { continue };
            let Some(new) = attached else {
                self.dropped += lane.len() as u64;
                continue;
            };
            lane.share = new;
            (lane.at, lane.came, lane.passed) = (None, None, 0);
            self.put_lane(LaneKey { flow, direction }, lane);
        }
        share.into_iter().for_each(|share| self.detach(share));
        attached
    }

    /// The flow has ended, and what waited of it with it.
    pub fn close(&mut self, flow: u32, share: NonZeroU32) {
        for direction in [Direction::Outbound, Direction::Inbound] {
            if let Some(lane) = self.take_lane(LaneKey { flow, direction }) {
                self.dropped += lane.len() as u64;
            }
        }
        self.detach(share);
    }

    fn put_lane(&mut self, key: LaneKey, lane: Lane) {
        self.add_bytes(lane.share, lane.bytes);
        self.lanes.insert(key, lane);
        self.ready.push_back(key);
    }

    fn take_lane(&mut self, key: LaneKey) -> Option<Lane> {
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

    /// Every limit that is configured.
    pub fn standings(&self) -> impl Iterator<Item = Standing<S>> {
        self.numbers.values().filter_map(|number| self.subjects.get(number)).flat_map(|known| {
            let Terms { limits, .. } = known.terms;
            let flows = self.limits.get(known.limit).map_or(0, |limit| limit.flows);
            [(limits.all, false), (limits.per_caller, true)].into_iter().filter_map(move |(bounds, per_caller)| {
                let flows = if per_caller { 0 } else { flows };
                let counts = known.tallies[usize::from(per_caller)].counts;
                let standing = Standing { of: known.of.clone(), per_caller, mode: limits.mode, flows, counts };
                (!bounds.is_none()).then_some(standing)
            })
        })
    }

    /// What waits.
    #[must_use]
    pub fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    fn nanos(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.epoch) + EPOCH;
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }
}
