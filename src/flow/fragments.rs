//! Fragments without a layer-4 header follow the one that has it. Nothing is reassembled: each fragment is translated
//! by its datagram's decision, which its first fragment got. Tails that come before it wait for it, for a while, within
//! the share of the door they came in by.

use super::{Door, FlowId};
use crate::addr::PeerId;
use crate::packet::{FiveTuple, Fragment};
use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// RFC 791 section 3.2: the initial timer setting for reassembly.
const WAIT: Duration = Duration::from_secs(15);
/// All doors are looked at no more often than this.
const EXPIRE_PAUSE: Duration = Duration::from_secs(1);
/// Datagrams of one door under way at a time; the oldest goes when there are more.
const DATAGRAMS_MAX: usize = 1024;
/// Bytes that wait for first fragments, a door: eight of the largest datagrams.
const HELD_BYTES_MAX: usize = 8 << 16;
/// Parts of one datagram: more than the largest has at the smallest MTU every host takes (RFC 791: 576).
const PARTS_MAX: usize = 128;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Datagram {
    pub door: Door,
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: u8,
    pub id: u32,
}

/// What the first fragment's decision means for the others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// Whose they are, while it has this peer and tuple.
    pub flow: FlowId,
    pub peer: PeerId,
    /// The addresses they get.
    pub to: FiveTuple,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Tail {
    Pass(Verdict),
    /// It waits for the first.
    Held,
    Refused,
    /// Its flow may not send so much: the first was dropped for it.
    OverRate,
}

#[derive(Debug, Default)]
struct Share {
    datagrams: BTreeMap<Datagram, State>,
    /// By age, the oldest first. A datagram that was finished may still be listed.
    order: VecDeque<(Instant, Datagram)>,
    held_bytes: usize,
    /// Tails that waited in vain, to be told.
    dropped: u64,
}

#[derive(Debug)]
struct State {
    since: Instant,
    decision: Decision,
    parts: Vec<Part>,
    /// Length of the whole, once the last fragment came.
    length: Option<u32>,
    held: Vec<Vec<u8>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Decision {
    Open,
    Pass(Verdict),
    Refused,
    OverRate,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Part {
    start: u32,
    end: u32,
}

#[derive(Debug, Default)]
pub struct Fragments {
    doors: BTreeMap<Door, Share>,
    /// Nothing has waited too long before this.
    wakes: Option<Instant>,
    /// Tails that waited in vain.
    dropped: u64,
}

/// A fragment that is refused although its datagram may pass.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Inconsistent {
    /// It overlaps another, goes beyond the end, or is one too many: its datagram is given up (RFC 5722).
    GivenUp,
    /// Exactly that part came before: it alone is refused, as networks duplicate (RFC 8200 section 4.5).
    Duplicate,
}

impl Fragments {
    /// The first fragment was allowed: the tails that waited for it.
    pub fn pass(
        &mut self,
        datagram: Datagram,
        fragment: Fragment,
        bytes: usize,
        verdict: Verdict,
        now: Instant,
    ) -> Result<Vec<Vec<u8>>, Inconsistent> {
        self.at(datagram.door, now, |share| share.pass(datagram, fragment, bytes, verdict, now))
    }

    /// The first fragment was refused, and so are the others.
    pub fn refuse(&mut self, datagram: Datagram, now: Instant) {
        self.at(datagram.door, now, |share| {
            share.state(datagram, now);
            share.give_up(&datagram, Inconsistent::GivenUp);
        });
    }

    /// The first fragment was allowed and then dropped, for its flow sends too much: the others would be no use.
    pub fn over_rate(&mut self, datagram: &Datagram, now: Instant) {
        self.at(datagram.door, now, |share| {
            if let Some(state) = share.datagrams.get_mut(datagram) {
                state.decision = Decision::OverRate;
            }
        });
    }

    /// A fragment without a layer-4 header: `packet` is the whole of it, `bytes` what it carries.
    pub fn tail(&mut self, datagram: Datagram, fragment: Fragment, bytes: usize, packet: &[u8], now: Instant) -> Tail {
        self.at(datagram.door, now, |share| share.tail(datagram, fragment, bytes, packet, now))
    }

    /// Of tails that wait for their first fragment.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.doors.values().map(|share| share.held_bytes).sum()
    }

    /// By as many doors as there are now.
    #[must_use]
    pub fn held_bytes_max(&self) -> usize {
        self.doors.len().max(1) * HELD_BYTES_MAX
    }

    /// Forgets what waited too long, and the doors by which nothing is under way.
    pub fn expire(&mut self, now: Instant) {
        if self.wakes.is_none_or(|wakes| now < wakes) {
            return;
        }
        self.doors.retain(|_, share| {
            share.make_room(now);
            self.dropped += std::mem::take(&mut share.dropped);
            !share.order.is_empty()
        });
        let oldest = self.doors.values().filter_map(|share| share.order.front()).map(|(since, _)| *since + WAIT).min();
        self.wakes = oldest.map(|oldest| oldest.max(now + EXPIRE_PAUSE));
    }

    /// When the oldest that is under way may have waited too long.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.wakes
    }

    /// How many tails were held and then dropped since this was asked last.
    pub fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }

    fn at<T>(&mut self, door: Door, now: Instant, act: impl FnOnce(&mut Share) -> T) -> T {
        self.wakes.get_or_insert(now + WAIT);
        let share = self.doors.entry(door).or_default();
        share.make_room(now);
        let result = act(share);
        self.dropped += std::mem::take(&mut share.dropped);
        result
    }
}

impl Share {
    fn pass(
        &mut self,
        datagram: Datagram,
        fragment: Fragment,
        bytes: usize,
        verdict: Verdict,
        now: Instant,
    ) -> Result<Vec<Vec<u8>>, Inconsistent> {
        let state = self.state(datagram, now);
        if state.decision == Decision::Refused {
            return Err(Inconsistent::GivenUp);
        }
        if let Err(inconsistent) = state.take(fragment, bytes) {
            self.give_up(&datagram, inconsistent);
            return Err(inconsistent);
        }
        state.decision = Decision::Pass(verdict);
        let held = std::mem::take(&mut state.held);
        self.held_bytes -= held.iter().map(Vec::len).sum::<usize>();
        self.finish(&datagram);
        Ok(held)
    }

    fn tail(&mut self, datagram: Datagram, fragment: Fragment, bytes: usize, packet: &[u8], now: Instant) -> Tail {
        let no_room = self.held_bytes + packet.len() > HELD_BYTES_MAX;
        let state = self.state(datagram, now);
        if let Err(inconsistent) = state.take(fragment, bytes) {
            self.give_up(&datagram, inconsistent);
            return Tail::Refused;
        }
        match state.decision {
            Decision::Pass(verdict) => {
                self.finish(&datagram);
                Tail::Pass(verdict)
            }
            Decision::Refused => Tail::Refused,
            Decision::OverRate => {
                self.finish(&datagram);
                Tail::OverRate
            }
            Decision::Open if no_room => Tail::Refused,
            Decision::Open => {
                state.held.push(packet.to_vec());
                self.held_bytes += packet.len();
                Tail::Held
            }
        }
    }

    fn state(&mut self, datagram: Datagram, now: Instant) -> &mut State {
        let order = &mut self.order;
        self.datagrams.entry(datagram).or_insert_with(|| {
            order.push_back((now, datagram));
            State { since: now, decision: Decision::Open, parts: Vec::new(), length: None, held: Vec::new() }
        })
    }

    /// What waited too long goes, and the oldest when there are too many.
    fn make_room(&mut self, now: Instant) {
        while let Some((since, datagram)) = self.order.front().copied() {
            let is_listed = self.datagrams.get(&datagram).is_some_and(|state| state.since == since);
            let is_old = now.saturating_duration_since(since) >= WAIT;
            if is_listed && !is_old && self.order.len() < DATAGRAMS_MAX {
                return;
            }
            self.order.pop_front();
            if is_listed {
                self.let_go(&datagram);
                self.datagrams.remove(&datagram);
            }
        }
    }

    fn let_go(&mut self, datagram: &Datagram) {
        if let Some(state) = self.datagrams.get_mut(datagram) {
            self.dropped += state.held.len() as u64;
            self.held_bytes -= state.held.drain(..).map(|packet| packet.len()).sum::<usize>();
        }
    }

    fn give_up(&mut self, datagram: &Datagram, because: Inconsistent) {
        if because == Inconsistent::Duplicate {
            return;
        }
        if let Some(state) = self.datagrams.get_mut(datagram) {
            state.decision = Decision::Refused;
        }
        self.let_go(datagram);
    }

    /// Forgets a datagram whose every part has passed.
    fn finish(&mut self, datagram: &Datagram) {
        if self.datagrams.get(datagram).is_some_and(State::is_whole) {
            self.datagrams.remove(datagram);
        }
    }
}

impl State {
    fn take(&mut self, fragment: Fragment, bytes: usize) -> Result<(), Inconsistent> {
        let start = u32::from(fragment.offset);
        let part = Part { start, end: start + bytes as u32 };
        if self.parts.contains(&part) {
            return Err(Inconsistent::Duplicate);
        }
        let overlaps = self.parts.iter().any(|p| part.start < p.end && p.start < part.end);
        let beyond = self.length.is_some_and(|length| part.end > length || (!fragment.more && part.end != length));
        let cut_short = !fragment.more && self.parts.iter().any(|p| p.end > part.end);
        if overlaps || beyond || cut_short || self.parts.len() == PARTS_MAX {
            return Err(Inconsistent::GivenUp);
        }
        if !fragment.more {
            self.length = Some(part.end);
        }
        self.parts.push(part);
        Ok(())
    }

    fn is_whole(&self) -> bool {
        let carried: u32 = self.parts.iter().map(|part| part.end - part.start).sum();
        self.length == Some(carried)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn datagram(door: Door, id: u32) -> Datagram {
        let address = |text: &str| text.parse().expect("address");
        Datagram { door, source: address("10.0.0.2"), destination: address("10.0.1.2"), protocol: 17, id }
    }

    fn verdict() -> Verdict {
        let address = |text: &str| text.parse().expect("address");
        let (source, destination) = (address("198.19.0.2"), address("198.18.0.2"));
        Verdict {
            flow: FlowId(3),
            peer: PeerId(0),
            to: FiveTuple { source, destination, source_port: 0, destination_port: 0, protocol: 17 },
        }
    }

    fn at(offset: u16, more: bool) -> Fragment {
        Fragment { id: 1, offset, more }
    }

    #[test]
    fn tails_follow_their_first_fragment_in_any_order() {
        let (mut fragments, now) = (Fragments::default(), Instant::now());
        let one = datagram(Door::Site, 1);
        assert_eq!(fragments.tail(one, at(160, false), 40, b"last", now), Tail::Held);
        assert_eq!(fragments.pass(one, at(0, true), 80, verdict(), now), Ok(vec![b"last".to_vec()]));
        assert_eq!(fragments.tail(one, at(80, true), 80, b"middle", now), Tail::Pass(verdict()));
        // All parts were seen: another fragment of this id is of another datagram.
        assert_eq!(fragments.tail(one, at(80, true), 80, b"new", now), Tail::Held);
    }

    #[test]
    fn an_overlap_gives_the_datagram_up() {
        let (mut fragments, now) = (Fragments::default(), Instant::now());
        let one = datagram(Door::Site, 1);
        fragments.pass(one, at(0, true), 80, verdict(), now).expect("first");
        assert_eq!(fragments.tail(one, at(72, true), 80, b"overlap", now), Tail::Refused);
        assert_eq!(fragments.tail(one, at(152, false), 8, b"honest", now), Tail::Refused);
    }

    #[test]
    fn a_first_that_overlaps_gives_up_what_waited_for_it() {
        let (mut fragments, now) = (Fragments::default(), Instant::now());
        let one = datagram(Door::Site, 1);
        assert_eq!(fragments.tail(one, at(72, false), 80, b"tail", now), Tail::Held);
        assert_eq!(fragments.pass(one, at(0, true), 80, verdict(), now), Err(Inconsistent::GivenUp));
        assert_eq!(fragments.pass(one, at(0, true), 72, verdict(), now), Err(Inconsistent::GivenUp));
        assert_eq!(fragments.take_dropped(), 1);
        assert_eq!(fragments.doors[&Door::Site].held_bytes, 0);
    }

    #[test]
    fn a_duplicate_is_refused_alone() {
        let (mut fragments, now) = (Fragments::default(), Instant::now());
        let one = datagram(Door::Site, 1);
        assert_eq!(fragments.tail(one, at(80, true), 80, b"tail", now), Tail::Held);
        assert_eq!(fragments.tail(one, at(80, true), 80, b"tail", now), Tail::Refused);
        assert_eq!(fragments.pass(one, at(0, true), 80, verdict(), now), Ok(vec![b"tail".to_vec()]));
        assert_eq!(fragments.pass(one, at(0, true), 80, verdict(), now), Err(Inconsistent::Duplicate));
        assert_eq!(fragments.tail(one, at(80, true), 80, b"tail", now), Tail::Refused);
        assert_eq!(fragments.tail(one, at(160, false), 8, b"last", now), Tail::Pass(verdict()));
        assert_eq!(fragments.take_dropped(), 0);
    }

    #[test]
    fn tails_that_wait_in_vain_are_counted() {
        let (mut fragments, now) = (Fragments::default(), Instant::now());
        assert_eq!(fragments.poll_timeout(), None);
        for id in 0..3 {
            fragments.tail(datagram(Door::Peer(PeerId(id)), id), at(80, false), 8, b"tail", now);
        }
        assert_eq!(fragments.poll_timeout(), Some(now + WAIT));
        fragments.expire(now + WAIT / 2);
        assert_eq!(fragments.take_dropped(), 0);
        fragments.expire(now + WAIT);
        assert_eq!((fragments.take_dropped(), fragments.take_dropped()), (3, 0));
        assert_eq!(fragments.poll_timeout(), None);
        fragments.expire(now + WAIT);
        assert!(fragments.doors.is_empty());
    }

    #[test]
    fn what_lies_about_its_end_is_refused() {
        let (mut fragments, now) = (Fragments::default(), Instant::now());
        let one = datagram(Door::Site, 1);
        assert_eq!(fragments.tail(one, at(80, false), 8, b"end", now), Tail::Held);
        assert_eq!(fragments.tail(one, at(160, true), 8, b"beyond", now), Tail::Refused);
        let two = datagram(Door::Site, 2);
        assert_eq!(fragments.tail(two, at(160, true), 8, b"later", now), Tail::Held);
        assert_eq!(fragments.tail(two, at(80, false), 8, b"end before it", now), Tail::Refused);
    }

    #[test]
    fn the_tails_of_a_refused_first_are_refused_and_what_waits_too_long_is_forgotten() {
        let (mut fragments, now) = (Fragments::default(), Instant::now());
        let one = datagram(Door::Site, 1);
        fragments.refuse(one, now);
        assert_eq!(fragments.tail(one, at(80, false), 8, b"tail", now), Tail::Refused);
        assert_eq!(fragments.tail(one, at(80, false), 8, b"another", now + WAIT), Tail::Held);
    }

    #[test]
    fn a_flood_of_one_door_neither_grows_nor_evicts_anothers() {
        let (mut fragments, now) = (Fragments::default(), Instant::now());
        let honest = datagram(Door::Peer(PeerId(1)), 7);
        assert_eq!(fragments.tail(honest, at(80, false), 8, b"tail", now), Tail::Held);
        for id in 0..100_000 {
            fragments.tail(datagram(Door::Site, id), at(80, true), 1400, &[0; 1400], now);
        }
        let counted = fragments.take_dropped();
        let site = &fragments.doors[&Door::Site];
        let held: usize = site.datagrams.values().map(|state| state.held.len()).sum();
        assert!(counted > 0 && counted + held as u64 <= 100_000);
        assert!(site.held_bytes <= HELD_BYTES_MAX && site.datagrams.len() <= DATAGRAMS_MAX);
        assert!(site.order.len() <= DATAGRAMS_MAX);
        assert_eq!(fragments.pass(honest, at(0, true), 80, verdict(), now), Ok(vec![b"tail".to_vec()]));
    }
}
