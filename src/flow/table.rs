//! The table. Both directions of a flow are found by their own key, are inserted together and die together.

use super::keys::Keys;
use super::life::{Side, State, Stirred, Traffic, begins_anew, is_in_flight, stir};
use super::slots::Slots;
use super::wheel::{Link, NONE, Wheel};
use crate::addr::{Direction, PeerId};
use crate::packet::FiveTuple;
use foldhash::fast::FixedState;
use std::hash::{BuildHasher, Hash};
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

/// Where a packet came in. A part of the key: with overlapping addresses a five-tuple alone is ambiguous, and it
/// binds a flow to its peer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Door {
    Site,
    Peer(PeerId),
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FlowId(pub u32);

/// Whose flow it is, in numbers that mean something to the node alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Owner {
    pub service: u32,
    pub caller: u32,
    pub rule: u16,
    /// Where what is counted of the service is kept.
    pub figures: u16,
}

/// Both tuples are those of outbound packets: from the local end to the presence, and the same on the wire.
#[derive(Clone, Copy, Debug)]
pub struct NewFlow {
    pub peer: PeerId,
    pub site: FiveTuple,
    pub wire: FiveTuple,
    pub opened_by: Direction,
    pub owner: Owner,
    pub version: u32,
    /// Of the TCP connection, if its beginning was seen.
    pub initial_sequence: Option<u32>,
}

#[derive(Debug)]
pub struct Flow {
    pub peer: PeerId,
    pub site: FiveTuple,
    pub wire: FiveTuple,
    pub opened_by: Direction,
    pub owner: Owner,
    /// Of the policy and catalogue that allowed it.
    pub version: u32,
    pub state: State,
    /// Of the TCP connection, if its beginning was seen.
    pub initial_sequence: Option<u32>,
    /// The number of its share of what is limited; none if nothing of it is.
    pub share: Option<NonZeroU32>,
    pub outbound: Count,
    pub inbound: Count,
    outbound_side: Side,
    inbound_side: Side,
    opened_micros: u64,
    seen_second: u32,
    deadline_slot: u16,
    deadline: Link,
    half_open: Link,
}

#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Count {
    pub packets: u64,
    pub bytes: u64,
}

impl Flow {
    fn count(&mut self, direction: Direction) -> &mut Count {
        match direction {
            Direction::Outbound => &mut self.outbound,
            Direction::Inbound => &mut self.inbound,
        }
    }

    /// Whether an ICMP error that quotes this sequence number, sent in `direction` of the quoted packet, can be true.
    #[must_use]
    pub fn is_in_flight(&self, direction: Direction, sequence: u32) -> bool {
        match direction {
            Direction::Outbound => is_in_flight(sequence, &self.outbound_side, &self.inbound_side),
            Direction::Inbound => is_in_flight(sequence, &self.inbound_side, &self.outbound_side),
        }
    }
}

#[derive(Debug)]
pub struct Table {
    slots: Slots<Flow>,
    /// `slot << 1 | direction`.
    keys: Keys,
    hasher: FixedState,
    wheel: Wheel,
    newest_half_open: u32,
    capacity: u32,
    epoch: Instant,
}

impl Table {
    #[must_use]
    pub fn new(capacity: u32, seed: u64, now: Instant) -> Self {
        Self {
            slots: Slots::new(),
            keys: Keys::new(),
            hasher: FixedState::with_seed(seed),
            wheel: Wheel::new(),
            newest_half_open: NONE,
            capacity: capacity.min(u32::MAX >> 1),
            epoch: now,
        }
    }

    #[must_use]
    pub fn len(&self) -> u32 {
        self.slots.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    #[must_use]
    pub fn is_full(&self) -> bool {
        self.len() >= self.capacity
    }

    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.capacity
    }

    pub fn set_capacity(&mut self, capacity: u32) {
        self.capacity = capacity.min(u32::MAX >> 1);
    }

    #[must_use]
    pub fn get(&self, id: FlowId) -> Option<&Flow> {
        self.slots.get(id.0)
    }

    pub fn get_mut(&mut self, id: FlowId) -> Option<&mut Flow> {
        self.slots.get_mut(id.0)
    }

    pub fn iter(&self) -> impl Iterator<Item = (FlowId, &Flow)> {
        self.slots.iter().map(|(id, flow)| (FlowId(id), flow))
    }

    /// The flow of a packet that came in by `door` with this tuple.
    #[must_use]
    pub fn find(&self, door: Door, tuple: &FiveTuple) -> Option<FlowId> {
        let hash = hash(&self.hasher, door, tuple);
        let found = self.keys.find(hash, |key| {
            let Some(flow) = self.slots.get(key >> 1) else { return false };
            match (door, key & 1) {
                (Door::Site, 0) => flow.site == *tuple,
                (Door::Peer(peer), 1) => flow.peer == peer && flow.wire.reversed() == *tuple,
                (Door::Site | Door::Peer(_), _) => false,
            }
        });
        found.map(|key| FlowId(key >> 1))
    }

    /// None when the table is full, or when one of the tuples belongs to another flow already.
    pub fn insert(&mut self, new: NewFlow, now: Instant) -> Option<FlowId> {
        let inbound = (Door::Peer(new.peer), new.wire.reversed());
        let taken = self.find(Door::Site, &new.site).is_some() || self.find(inbound.0, &inbound.1).is_some();
        if self.is_full() || taken {
            return None;
        }
        let id = self.slots.insert(Flow {
            peer: new.peer,
            site: new.site,
            wire: new.wire,
            opened_by: new.opened_by,
            owner: new.owner,
            version: new.version,
            state: State::HalfOpen,
            initial_sequence: new.initial_sequence,
            share: None,
            outbound: Count::default(),
            inbound: Count::default(),
            outbound_side: Side::default(),
            inbound_side: Side::default(),
            opened_micros: self.micros(now),
            seen_second: self.second(now),
            deadline_slot: 0,
            deadline: Link::NOWHERE,
            half_open: Link::NOWHERE,
        });
        let keys = [
            (hash(&self.hasher, Door::Site, &new.site), id << 1),
            (hash(&self.hasher, inbound.0, &inbound.1), id << 1 | 1),
        ];
        for (hash, key) in keys {
            self.keys.insert(hash, key);
        }
        self.set_deadline(id);
        self.link_half_open(id);
        Some(FlowId(id))
    }

    pub fn remove(&mut self, id: FlowId) -> Option<Flow> {
        self.get(id)?;
        self.unlink_deadline(id.0);
        self.unlink_half_open(id.0);
        let flow = self.slots.remove(id.0)?;
        let doors = [(Door::Site, flow.site, id.0 << 1), (Door::Peer(flow.peer), flow.wire.reversed(), id.0 << 1 | 1)];
        for (door, tuple, key) in doors {
            self.keys.remove(hash(&self.hasher, door, &tuple), key);
        }
        Some(flow)
    }

    /// A packet of the flow passed.
    pub fn record(&mut self, id: FlowId, direction: Direction, traffic: &Traffic, now: Instant) -> Stirred {
        let (second, micros) = (self.second(now), self.micros(now));
        let Some(flow) = self.get_mut(id) else { return Stirred::Nothing };
        flow.seen_second = second;
        let count = flow.count(direction);
        count.packets += u64::from(traffic.packets);
        count.bytes += traffic.bytes;
        let by_opener = flow.opened_by == direction;
        let (from, to) = match direction {
            Direction::Outbound => (&mut flow.outbound_side, &mut flow.inbound_side),
            Direction::Inbound => (&mut flow.inbound_side, &mut flow.outbound_side),
        };
        let before = flow.state;
        let (state, stirred) = stir(before, from, to, by_opener, traffic);
        flow.state = state;
        if stirred == Stirred::Reopened && state == State::HalfOpen {
            flow.initial_sequence = traffic.tcp.map(|tcp| tcp.sequence);
            flow.opened_micros = micros;
        }
        if state != before {
            self.unlink_deadline(id.0);
            self.set_deadline(id.0);
            match (before, state) {
                (State::HalfOpen, _) => self.unlink_half_open(id.0),
                (_, State::HalfOpen) => self.link_half_open(id.0),
                (_, State::Open | State::Reset | State::Closed) => {}
            }
        }
        stirred
    }

    /// Whether this packet begins another connection in a flow that has ended.
    #[must_use]
    pub fn would_reopen(&self, id: FlowId, traffic: &Traffic) -> bool {
        self.get(id).is_some_and(|flow| begins_anew(flow.state, traffic))
    }

    /// The flows of numbers `from` to `from + count` that were judged under another version.
    #[must_use]
    pub fn stale(&self, from: u32, count: u32, version: u32) -> Vec<FlowId> {
        let numbers = from..from.saturating_add(count).min(self.slots.end());
        let is_stale = |id: &FlowId| self.get(*id).is_some_and(|flow| flow.version != version);
        numbers.map(FlowId).filter(is_stale).collect()
    }

    /// All flows have numbers below this one.
    #[must_use]
    pub fn end(&self) -> u32 {
        self.slots.end()
    }

    /// The half-open flow that came last: the first to go when room is needed.
    #[must_use]
    pub fn newest_half_open(&self) -> Option<FlowId> {
        (self.newest_half_open != NONE).then_some(FlowId(self.newest_half_open))
    }

    /// The flows that were silent for too long; the caller removes them. Looks at `count` flows at most, and goes on
    /// there the next time.
    pub fn idle(&mut self, now: Instant, count: usize, idle: &mut Vec<FlowId>) {
        let second = self.second(now);
        self.wheel.skip_full_turns(second);
        let mut left = count;
        while self.wheel.second <= second {
            let slot = self.wheel.slot(self.wheel.second);
            let id = *self.wheel.head_mut(slot);
            let Some(flow) = self.get(FlowId(id)) else {
                self.wheel.second += 1;
                continue;
            };
            if left == 0 {
                return;
            }
            left -= 1;
            *self.wheel.head_mut(slot) = flow.deadline.next;
            if self.idle_until(id) <= second {
                self.unlist(id);
                idle.push(FlowId(id));
            } else {
                self.set_deadline(id);
            }
        }
    }

    /// When [`Self::idle`] is worth asking: the next full second while there are flows.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let next = self.epoch + Duration::from_secs(u64::from(self.wheel.second));
        (!self.is_empty()).then_some(next)
    }

    #[must_use]
    pub fn silence(&self, flow: &Flow, now: Instant) -> Duration {
        Duration::from_secs(u64::from(self.second(now).saturating_sub(flow.seen_second)))
    }

    #[must_use]
    pub fn age(&self, flow: &Flow, now: Instant) -> Duration {
        Duration::from_micros(self.micros(now).saturating_sub(flow.opened_micros))
    }

    fn second(&self, now: Instant) -> u32 {
        u32::try_from(now.saturating_duration_since(self.epoch).as_secs()).unwrap_or(u32::MAX)
    }

    fn micros(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.epoch).as_micros()).unwrap_or(u64::MAX)
    }

    fn idle_until(&self, id: u32) -> u32 {
        let Some(flow) = self.get(FlowId(id)) else { return 0 };
        let idle_max = flow.state.idle_max(flow.site.protocol).as_secs();
        flow.seen_second.saturating_add(u32::try_from(idle_max).unwrap_or(u32::MAX))
    }

    fn set_deadline(&mut self, id: u32) {
        let slot = self.wheel.slot(self.idle_until(id));
        let next = std::mem::replace(self.wheel.head_mut(slot), id);
        if let Some(flow) = self.get_mut(FlowId(next)) {
            flow.deadline.previous = id;
        }
        if let Some(flow) = self.get_mut(FlowId(id)) {
            flow.deadline = Link { previous: NONE, next };
            flow.deadline_slot = u16::try_from(slot).unwrap_or(0);
        }
    }

    /// In no list; only removal may follow.
    fn unlist(&mut self, id: u32) {
        if let Some(flow) = self.get_mut(FlowId(id)) {
            flow.deadline = Link::NOWHERE;
        }
    }

    fn unlink_deadline(&mut self, id: u32) {
        let Some(flow) = self.get(FlowId(id)) else { return };
        let (link, slot) = (flow.deadline, usize::from(flow.deadline_slot));
        let head = self.wheel.head_mut(slot);
        if *head == id {
            *head = link.next;
        } else if let Some(previous) = self.get_mut(FlowId(link.previous)) {
            previous.deadline.next = link.next;
        }
        if let Some(next) = self.get_mut(FlowId(link.next)) {
            next.deadline.previous = link.previous;
        }
    }

    fn link_half_open(&mut self, id: u32) {
        let next = std::mem::replace(&mut self.newest_half_open, id);
        if let Some(flow) = self.get_mut(FlowId(next)) {
            flow.half_open.previous = id;
        }
        if let Some(flow) = self.get_mut(FlowId(id)) {
            flow.half_open = Link { previous: NONE, next };
        }
    }

    fn unlink_half_open(&mut self, id: u32) {
        let Some(flow) = self.get_mut(FlowId(id)) else { return };
        let link = std::mem::replace(&mut flow.half_open, Link::NOWHERE);
        if self.newest_half_open == id {
            self.newest_half_open = link.next;
        } else if let Some(previous) = self.get_mut(FlowId(link.previous)) {
            previous.half_open.next = link.next;
        }
        if let Some(next) = self.get_mut(FlowId(link.next)) {
            next.half_open.previous = link.previous;
        }
    }
}

fn hash(hasher: &FixedState, door: Door, tuple: &FiveTuple) -> u32 {
    let mut state = hasher.build_hasher();
    (door, tuple).hash(&mut state);
    (std::hash::Hasher::finish(&state) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::protocol;
    use crate::packet::TcpHead;

    fn tuple(source: &str, destination: &str, port: u16, protocol: u8) -> FiveTuple {
        FiveTuple {
            source: source.parse().expect("address"),
            destination: destination.parse().expect("address"),
            source_port: port,
            destination_port: 80,
            protocol,
        }
    }

    fn new_flow(port: u16, protocol: u8) -> NewFlow {
        NewFlow {
            peer: PeerId(0),
            site: tuple("10.0.0.2", "10.0.1.2", port, protocol),
            wire: tuple("198.19.0.2", "198.18.0.2", port, protocol),
            opened_by: Direction::Outbound,
            owner: Owner { service: 1, caller: 1, rule: 0, figures: 0 },
            version: 1,
            initial_sequence: None,
        }
    }

    fn tcp(flags: u8, sequence: u32, acknowledgment: u32) -> Traffic {
        let tcp = TcpHead { flags, sequence, acknowledgment, window: 1000 };
        Traffic { packets: 1, bytes: 60, tcp: Some(tcp), payload_bytes: 0 }
    }

    const DATAGRAM: Traffic = Traffic { packets: 1, bytes: 60, tcp: None, payload_bytes: 32 };
    const SYN: u8 = 2;
    const SYN_ACK: u8 = 0x12;
    const ACK: u8 = 0x10;
    const FIN_ACK: u8 = 0x11;
    const RST: u8 = 4;

    fn connect(table: &mut Table, id: FlowId, now: Instant) {
        table.record(id, Direction::Outbound, &tcp(SYN, 100, 0), now);
        assert_eq!(table.record(id, Direction::Inbound, &tcp(SYN_ACK, 500, 101), now), Stirred::Opened);
        table.record(id, Direction::Outbound, &tcp(ACK, 101, 501), now);
    }

    fn idle(table: &mut Table, now: Instant) -> Vec<FlowId> {
        let mut idle = Vec::new();
        table.idle(now, usize::MAX, &mut idle);
        idle.iter().for_each(|id| assert!(table.remove(*id).is_some()));
        idle
    }

    #[test]
    fn both_directions_are_found_by_their_door_and_die_together() {
        let now = Instant::now();
        let mut table = Table::new(10, 1, now);
        let new = new_flow(1000, protocol::TCP);
        let id = table.insert(new, now).expect("room");
        let peer = Door::Peer(PeerId(0));
        assert_eq!(table.find(Door::Site, &new.site), Some(id));
        assert_eq!(table.find(peer, &new.wire.reversed()), Some(id));
        assert_eq!(table.find(peer, &new.wire), None);
        assert_eq!(table.find(Door::Peer(PeerId(1)), &new.wire.reversed()), None);
        assert_eq!(table.insert(new, now), None);
        table.remove(id);
        assert_eq!((table.find(Door::Site, &new.site), table.find(peer, &new.wire.reversed())), (None, None));
        assert!(table.is_empty() && table.newest_half_open().is_none());
    }

    #[test]
    fn a_tcp_flow_lives_through_two_hours_and_three_minutes_of_silence() {
        let now = Instant::now();
        let mut table = Table::new(10, 1, now);
        let id = table.insert(new_flow(1000, protocol::TCP), now).expect("room");
        connect(&mut table, id, now);
        assert_eq!(idle(&mut table, now + Duration::from_secs(7380)), []);
        assert_eq!(idle(&mut table, now + Duration::from_secs(7441)), [id]);
    }

    #[test]
    fn silence_is_counted_from_the_last_packet_and_by_protocol() {
        let now = Instant::now();
        let mut table = Table::new(10, 1, now);
        let udp = table.insert(new_flow(1, protocol::UDP), now).expect("room");
        let icmp = table.insert(new_flow(2, protocol::ICMP), now).expect("room");
        table.record(udp, Direction::Outbound, &DATAGRAM, now + Duration::from_secs(200));
        assert_eq!(idle(&mut table, now + Duration::from_secs(59)), []);
        assert_eq!(idle(&mut table, now + Duration::from_secs(61)), [icmp]);
        assert_eq!(idle(&mut table, now + Duration::from_secs(499)), []);
        assert_eq!(idle(&mut table, now + Duration::from_secs(501)), [udp]);
    }

    #[test]
    fn deadlines_hold_after_the_process_slept_for_days() {
        let now = Instant::now();
        let mut table = Table::new(10_000, 1, now);
        let ids: Vec<_> = (0..1000).filter_map(|p| table.insert(new_flow(p, protocol::UDP), now)).collect();
        let later = now + Duration::from_secs(400_000);
        table.record(ids[7], Direction::Outbound, &DATAGRAM, later);
        assert_eq!(idle(&mut table, later).len(), 999);
        assert_eq!(idle(&mut table, later + Duration::from_secs(301)), [ids[7]]);
    }

    #[test]
    fn a_forged_reset_outside_the_window_changes_nothing_and_one_inside_is_undone_by_traffic() {
        let now = Instant::now();
        let mut table = Table::new(10, 1, now);
        let id = table.insert(new_flow(1000, protocol::TCP), now).expect("room");
        connect(&mut table, id, now);
        assert_eq!(table.record(id, Direction::Inbound, &tcp(RST, 0x7000_0000, 0), now), Stirred::Nothing);
        assert_eq!(table.record(id, Direction::Inbound, &tcp(RST, 501, 0), now), Stirred::Ended);
        assert_eq!(table.record(id, Direction::Outbound, &tcp(ACK, 101, 501), now), Stirred::Reopened);
        assert_eq!(table.get(id).map(|f| f.state), Some(State::Open));
    }

    #[test]
    fn a_flow_closes_when_both_sides_said_fin_and_a_syn_opens_it_anew() {
        let now = Instant::now();
        let mut table = Table::new(10, 1, now);
        let id = table.insert(new_flow(1000, protocol::TCP), now).expect("room");
        connect(&mut table, id, now);
        assert_eq!(table.record(id, Direction::Outbound, &tcp(FIN_ACK, 101, 501), now), Stirred::Nothing);
        assert_eq!(table.record(id, Direction::Inbound, &tcp(FIN_ACK, 501, 102), now), Stirred::Ended);
        assert_eq!(table.record(id, Direction::Outbound, &tcp(ACK, 102, 502), now), Stirred::Nothing);
        assert_eq!(table.record(id, Direction::Outbound, &tcp(SYN, 9000, 0), now), Stirred::Reopened);
        assert_eq!(table.newest_half_open(), Some(id));
        assert_eq!(idle(&mut table, now + Duration::from_secs(241)), [id]);
    }

    #[test]
    fn a_full_table_takes_no_more_and_names_its_newest_half_open_flow() {
        let now = Instant::now();
        let mut table = Table::new(3, 1, now);
        let ids: Vec<_> = (0..4).map(|p| table.insert(new_flow(p, protocol::TCP), now)).collect();
        assert_eq!(ids[3], None);
        assert_eq!(table.newest_half_open(), ids[2]);
        connect(&mut table, ids[2].expect("room"), now);
        assert_eq!(table.newest_half_open(), ids[1]);
        table.remove(ids[1].expect("room"));
        assert_eq!(table.newest_half_open(), ids[0]);
    }

    #[test]
    fn many_that_end_in_one_second_are_looked_at_in_parts_and_each_once() {
        let now = Instant::now();
        let mut table = Table::new(10_000, 1, now);
        let ids: Vec<_> = (0..2500).filter_map(|p| table.insert(new_flow(p, protocol::UDP), now)).collect();
        let later = now + Duration::from_secs(299);
        for id in ids.iter().step_by(2) {
            table.record(*id, Direction::Outbound, &DATAGRAM, later);
        }
        let (end, mut ended) = (now + Duration::from_secs(301), 0);
        for part in [1000, 1000, 500] {
            assert!(table.poll_timeout().is_some_and(|at| at <= end));
            let mut idle = Vec::new();
            table.idle(end, 1000, &mut idle);
            assert_eq!(idle.len(), part / 2);
            ended += idle.iter().filter(|id| table.remove(**id).is_some()).count();
        }
        assert_eq!((ended, table.len()), (1250, 1250));
        assert!(table.poll_timeout().is_some_and(|at| at > end));
    }
}
