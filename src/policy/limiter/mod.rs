//! Limits, and what waits for them. A flow has a share in the limits that apply to it and its caller; a packet of it passes when
//! none of them is used up. Where one is, callers take turns; so none can starve another, whatever it sends.
//!
//! Who has a limit is a value of the node's, `S`.

mod queue;
#[cfg(test)]
mod tests;

use super::lane::{Lane, LaneKey};
use super::limit::{Counts, Exceeding, Limit, Terms};
use super::slab::{Slab, to_inside, to_outside};
use crate::addr::{Direction, Limits, Mode};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

/// What one caller may have waiting: so much time's worth, and that much at most and at least.
const QUEUE_TIME_PER_SECOND: u64 = 5;
const SHARE_BYTES_MAX: u64 = 2 << 20;
const SHARE_BYTES_MIN: u64 = 64 << 10;
/// For packets a second, as if they were as long as an Ethernet's.
const PACKET_BYTES: u64 = 1500;
/// A flow is of a service or mapping, a peer, a tenant and the uplink; of each there is a limit of all and one of the caller.
const SUBJECTS_MAX: usize = 4;
const SHARE_LIMITS_MAX: usize = 2 * SUBJECTS_MAX;
/// The clock begins so far in, so that what was not used before the start is there.
const EPOCH: Duration = Duration::from_secs(1);

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
    open: u32,
    /// By direction: whether packets may have to wait, whether they are counted at all, and how much may wait.
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
    /// Open ones, of a limit of all.
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
    /// attached again.
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
            (limit.flows, limit.open) = (0, 0);
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
            let (flows, open) = (share.flows, share.open);
            self.each(&limits, |limit| {
                limit.flows += flows;
                limit.open += open;
            });
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
        subject.tallies[usize::from(exceeded.per_caller)].counts.refuse(exceeded.what);
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
        let number = self.attach(subjects, caller, true, now)?;
        let limits = self.shares.get(to_inside(number))?.limits;
        self.take_new_flow(&limits, now);
        Some(number)
    }

    fn attach<'a>(
        &mut self,
        subjects: impl IntoIterator<Item = &'a S>,
        caller: u32,
        is_open: bool,
        now: Instant,
    ) -> Option<NonZeroU32>
    where
        S: 'a,
    {
        let key = self.key(subjects, caller)?;
        let number = match self.by_share.get(&key) {
            Some(number) => *number,
            None => {
                let limits = self.limits_of(&key, now);
                let (delays, counts, bytes_max) = self.facts(&limits);
                let number =
                    self.shares.insert(Share { key, limits, flows: 0, open: 0, delays, counts, bytes_max, bytes: 0 });
                self.by_share.insert(key, number);
                number
            }
        };
        let share = self.shares.get_mut(number)?;
        share.flows += 1;
        let limits = share.limits;
        self.each(&limits, |limit| limit.flows += 1);
        let number = to_outside(number)?;
        if is_open {
            self.set_open(number, true);
        }
        Some(number)
    }

    /// An ended flow of the share begins anew, which counts as a new one: what refuses it.
    pub fn reopen(&mut self, share: NonZeroU32, now: Instant) -> Option<Exceeding> {
        let limits = self.shares.get(to_inside(share))?.limits;
        for number in limits.as_slice() {
            let Some(limit) = self.limits.get(*number) else { continue };
            let Some(what) = limit.refuses(now) else { continue };
            let (of, at, mode) = (limit.of, usize::from(limit.is_per_caller), limit.mode);
            self.subjects.get_mut(&of).into_iter().for_each(|subject| subject.tallies[at].counts.refuse(what));
            if mode == Mode::Enforce {
                return Some(what);
            }
        }
        self.take_new_flow(&limits, now);
        None
    }

    fn take_new_flow(&mut self, limits: &Numbers, now: Instant) {
        self.each(limits, |limit| {
            limit.new_flows.as_mut().map(|bucket| bucket.take(1, now));
        });
    }

    /// A flow of the share has ended, and is kept for a while; or it has not, after all.
    pub fn set_open(&mut self, share: NonZeroU32, is_open: bool) {
        let Some(share) = self.shares.get_mut(to_inside(share)) else { return };
        let limits = share.limits;
        let count = |open: &mut u32| *open = if is_open { *open + 1 } else { *open - 1 };
        count(&mut share.open);
        self.each(&limits, |limit| count(&mut limit.open));
    }

    fn each(&mut self, numbers: &Numbers, mut act: impl FnMut(&mut Limit)) {
        for number in numbers.as_slice() {
            self.limits.get_mut(*number).into_iter().for_each(&mut act);
        }
    }

    fn detach(&mut self, number: NonZeroU32, is_open: bool) {
        if is_open {
            self.set_open(number, false);
        }
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
        (flow, share, is_open): (u32, Option<NonZeroU32>, bool),
        subjects: impl IntoIterator<Item = &'a S>,
        caller: u32,
        now: Instant,
    ) -> Option<NonZeroU32>
    where
        S: 'a,
    {
        let keys = [Direction::Outbound, Direction::Inbound].map(|direction| LaneKey { flow, direction });
        let attached = self.attach(subjects, caller, is_open, now);
        if attached == share {
            share.into_iter().for_each(|share| self.detach(share, is_open));
            return share;
        }
        if attached.is_none() && keys.iter().any(|key| self.lanes.contains_key(key)) {
            // Nothing is limited any more, and what waits passes first.
            return share;
        }
        for key in keys {
            let (Some(mut lane), Some(new)) = (self.take_lane(key), attached) else { continue };
            lane.share = new;
            (lane.at, lane.came, lane.passed) = (None, None, 0);
            self.put_lane(key, lane);
        }
        share.into_iter().for_each(|share| self.detach(share, is_open));
        attached
    }

    /// The flow is gone, and what waited of it with it.
    pub fn close(&mut self, flow: u32, share: NonZeroU32, is_open: bool) {
        for direction in [Direction::Outbound, Direction::Inbound] {
            if let Some(lane) = self.take_lane(LaneKey { flow, direction }) {
                self.dropped += lane.len() as u64;
            }
        }
        self.detach(share, is_open);
    }

    /// Every limit that is configured.
    pub fn standings(&self) -> impl Iterator<Item = Standing<S>> {
        self.numbers.values().filter_map(|number| self.subjects.get(number)).flat_map(|known| {
            let Terms { limits, .. } = known.terms;
            let flows = self.limits.get(known.limit).map_or(0, |limit| limit.open);
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
