//! Two gateways back to back in fake time, and strangers between them. boringtun's own clock stands almost still
//! meanwhile, so what happens here by time happens by this room's timers.

use super::*;
use crate::addr::PeerId;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Tunn, TunnResult};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::sync::Arc;

pub(super) const PEER: PeerId = PeerId(7);
pub(super) const MTU: u16 = 1420;

fn secret(seed: u8) -> StaticSecret {
    StaticSecret::from([seed; 32])
}

fn public(seed: u8) -> [u8; 32] {
    PublicKey::from(&secret(seed)).to_bytes()
}

pub(super) fn at(text: &str) -> SocketAddr {
    text.parse().expect("address")
}

pub(super) fn settings(key: u8, endpoint: Option<SocketAddr>) -> TunnelSettings {
    TunnelSettings {
        public_key: public(key),
        preshared_key: None,
        endpoint,
        carrier: None,
        keepalive_seconds: None,
        held: false,
        second_cipher: false,
    }
}

/// An IPv4 packet with a number in it.
pub(super) fn packet(number: u32, bytes: usize) -> Vec<u8> {
    let mut packet = vec![0; bytes.max(24)];
    packet[0] = 0x45;
    packet[2..4].copy_from_slice(&(bytes.max(24) as u16).to_be_bytes());
    packet[20..24].copy_from_slice(&number.to_be_bytes());
    packet
}

pub(super) fn number(packet: &[u8]) -> u32 {
    u32::from_be_bytes(packet[20..24].try_into().expect("number"))
}

type Datagram = (SocketAddr, Vec<u8>);

pub(super) struct Side {
    pub(super) tunnels: Tunnels,
    pub(super) transmits: Transmits,
    pub(super) address: SocketAddr,
}

impl Side {
    pub(super) fn new(key: u8, address: SocketAddr, now: Instant) -> Self {
        Self { tunnels: Tunnels::new(secret(key), key.into(), now), transmits: Transmits::new(1 << 20), address }
    }

    pub(super) fn sent(&mut self) -> Vec<Datagram> {
        let mut sent = Vec::new();
        for (batch, bytes) in self.transmits.batches() {
            sent.extend(bytes.chunks(batch.segment_bytes).map(|datagram| (batch.to, datagram.to_vec())));
        }
        self.transmits.clear();
        sent
    }

    pub(super) fn seal(&mut self, inner: &[u8], now: Instant) -> Result<(), SealError> {
        self.tunnels.seal(PEER, inner, MTU, &mut self.transmits, now)
    }

    pub(super) fn open(&mut self, from: SocketAddr, datagram: &[u8], now: Instant) -> (Opened, Vec<u8>) {
        let mut into = vec![0; 2048];
        let opened = self.tunnels.open(from, datagram, &mut into, &mut self.transmits, now);
        if let Opened::Packet { bytes, .. } = opened {
            into.truncate(bytes);
        }
        (opened, into)
    }

    pub(super) fn events(&mut self) -> Vec<TunnelEvent> {
        std::iter::from_fn(|| self.tunnels.poll_event()).collect()
    }
}

/// `a` knows where `b` is; `b` waits to be called.
pub(super) struct Pair {
    pub(super) a: Side,
    pub(super) b: Side,
    pub(super) now: Instant,
    /// What each opened.
    pub(super) at_a: Vec<Vec<u8>>,
    pub(super) at_b: Vec<Vec<u8>>,
    /// Lengths of datagrams on the wire.
    seen: Vec<usize>,
}

impl Pair {
    pub(super) fn new() -> Self {
        let now = Instant::now();
        let (mut a, mut b) = (Side::new(1, at("192.0.2.1:1"), now), Side::new(2, at("192.0.2.2:2"), now));
        a.tunnels.add(PEER, settings(2, Some(b.address)), now).expect("settings");
        b.tunnels.add(PEER, settings(1, None), now).expect("settings");
        Self { a, b, now, at_a: Vec::new(), at_b: Vec::new(), seen: Vec::new() }
    }

    pub(super) fn up() -> Self {
        let mut pair = Self::new();
        pair.a.seal(&packet(0, 100), pair.now).expect("queued");
        pair.settle();
        assert!(pair.a.tunnels.is_up(PEER) && pair.b.tunnels.is_up(PEER));
        assert_eq!(pair.at_b.len(), 1);
        pair.at_b.clear();
        pair.seen.clear();
        pair.a.events();
        pair.b.events();
        pair
    }

    /// Carries datagrams until both are silent. What is sent elsewhere is lost.
    pub(super) fn settle(&mut self) {
        loop {
            let (from_a, from_b) = (self.a.sent(), self.b.sent());
            if from_a.is_empty() && from_b.is_empty() {
                return;
            }
            let (home_a, home_b) = (self.a.address, self.b.address);
            for (_, datagram) in from_a.into_iter().filter(|(to, _)| *to == home_b) {
                self.seen.push(datagram.len());
                if let (Opened::Packet { .. }, inner) = self.b.open(home_a, &datagram, self.now) {
                    self.at_b.push(inner);
                }
            }
            for (_, datagram) in from_b.into_iter().filter(|(to, _)| *to == home_a) {
                self.seen.push(datagram.len());
                if let (Opened::Packet { .. }, inner) = self.a.open(home_b, &datagram, self.now) {
                    self.at_a.push(inner);
                }
            }
        }
    }

    /// Lets time pass with both present.
    pub(super) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += TICK;
            self.a.tunnels.handle_timeout(&mut self.a.transmits, self.now);
            self.b.tunnels.handle_timeout(&mut self.b.transmits, self.now);
            self.settle();
        }
    }

    /// Lets time pass for `a` while nobody hears it; when it asked for a session.
    fn pass_alone(&mut self, time: Duration) -> Vec<Duration> {
        let (start, end) = (self.now, self.now + time);
        let mut asked = Vec::new();
        while self.now < end {
            self.now += TICK;
            self.a.tunnels.handle_timeout(&mut self.a.transmits, self.now);
            asked.extend(self.a.sent().iter().filter(|(_, d)| is_initiation(d)).map(|_| self.now - start));
        }
        asked
    }

    /// One packet sealed by `a`, as it would go over the wire.
    pub(super) fn sealed(&mut self, inner: &[u8]) -> Vec<u8> {
        self.a.seal(inner, self.now).expect("sealed");
        self.a.sent().pop().expect("datagram").1
    }
}

fn is_initiation(datagram: &[u8]) -> bool {
    datagram.len() == 148 && datagram[..4] == [1, 0, 0, 0]
}

/// A handshake initiation by a key of the stranger's own, with the right first MAC for `key`.
fn initiation(stranger: u8, key: u8) -> Vec<u8> {
    let peer = PublicKey::from(public(key));
    let unlimited = Arc::new(RateLimiter::new(&PublicKey::from(public(stranger)), u64::MAX));
    let mut tunn = Tunn::new(secret(stranger), peer, None, None, 3, Some(unlimited));
    let mut message = [0; 148];
    assert!(matches!(tunn.format_handshake_initiation(&mut message, true), TunnResult::WriteToNetwork(_)));
    message.to_vec()
}

#[test]
fn the_first_packet_brings_the_session_up_and_arrives_through_it() {
    let mut pair = Pair::new();
    assert!(pair.b.tunnels.tunnel(PEER).is_none());
    for n in 0..3 {
        pair.a.seal(&packet(n, 100), pair.now).expect("queued");
    }
    pair.settle();
    assert_eq!(pair.at_b.iter().map(|p| number(p)).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!(pair.a.events(), [TunnelEvent::Up(PEER)]);
    assert_eq!(pair.b.events(), [TunnelEvent::Moved { peer: PEER, to: pair.a.address.into() }, TunnelEvent::Up(PEER)]);

    pair.b.seal(&packet(9, 60), pair.now).expect("sealed");
    pair.settle();
    assert_eq!(pair.at_a, [packet(9, 60)]);
    let report = pair.b.tunnels.report(PEER, pair.now + Duration::from_secs(3)).expect("report");
    assert_eq!(report.handshake_age, Some(Duration::from_secs(3)));
    assert_eq!(report.path, Some(pair.a.address.into()));
}

#[test]
fn a_peer_without_an_address_cannot_be_sent_to_until_it_calls() {
    let mut pair = Pair::new();
    assert_eq!(pair.b.seal(&packet(0, 100), pair.now), Err(SealError::NoPath));
    pair.a.seal(&packet(1, 100), pair.now).expect("queued");
    pair.settle();
    assert_eq!(pair.b.seal(&packet(2, 100), pair.now), Ok(()));
}

#[test]
fn lengths_are_hidden_to_sixteen_bytes_but_not_beyond_the_mtu() {
    let mut pair = Pair::up();
    for (inner, outer) in [(24, 32), (32, 32), (33, 48), (1401, 1408), (1409, 1420), (1420, 1420)] {
        let datagram = pair.sealed(&packet(1, inner));
        assert_eq!(datagram.len(), outer + OVERHEAD_BYTES, "{inner}");
        let (opened, bytes) = pair.b.open(pair.a.address, &datagram, pair.now);
        assert_eq!(opened, Opened::Packet { peer: PEER, bytes: inner });
        assert_eq!(bytes, packet(1, inner));
    }
}

#[test]
fn a_buffer_shorter_than_the_datagram_is_no_panic() {
    let mut pair = Pair::up();
    for (room, fits) in [(0, false), (99, false), (100, true), (130, true)] {
        let datagram = pair.sealed(&packet(1, 100));
        let mut into = vec![0; room];
        let opened = pair.b.tunnels.open(pair.a.address, &datagram, &mut into, &mut pair.b.transmits, pair.now);
        if fits {
            assert_eq!(opened, Opened::Packet { peer: PEER, bytes: 100 });
            assert_eq!(into[..100], packet(1, 100));
        } else {
            assert_eq!(opened, Opened::Dropped(OpenError::Overload));
        }
    }
}

#[test]
fn the_endpoint_follows_the_latest_data_and_nothing_else() {
    let mut pair = Pair::up();
    let (home, roamed, thief) = (pair.a.address, at("198.51.100.9:900"), at("203.0.113.66:66"));
    let (early, late) = (pair.sealed(&packet(1, 100)), pair.sealed(&packet(2, 100)));

    assert!(matches!(pair.b.open(roamed, &late, pair.now).0, Opened::Packet { .. }));
    assert_eq!(pair.b.events(), [TunnelEvent::Moved { peer: PEER, to: roamed.into() }]);

    // A copy is refused; an older packet that was held back is delivered but moves nothing.
    assert_eq!(pair.b.open(thief, &late, pair.now).0, Opened::Dropped(OpenError::Replayed));
    assert!(matches!(pair.b.open(thief, &early, pair.now).0, Opened::Packet { .. }));
    let mut forged = pair.sealed(&packet(3, 100));
    forged[40] ^= 1;
    assert_eq!(pair.b.open(thief, &forged, pair.now).0, Opened::Dropped(OpenError::Unauthentic));
    assert!(pair.b.events().is_empty());

    // A keepalive moves too.
    let keepalive = pair.sealed(&[]);
    assert_eq!(pair.b.open(home, &keepalive, pair.now).0, Opened::Nothing);
    assert_eq!(pair.b.events(), [TunnelEvent::Moved { peer: PEER, to: home.into() }]);
}

#[test]
fn an_initiation_is_answered_where_it_came_from_and_moves_nothing_before_data() {
    let mut pair = Pair::up();
    let (home, elsewhere) = (pair.a.address, at("198.51.100.9:900"));
    pair.now += Duration::from_secs(181);
    pair.a.seal(&packet(1, 100), pair.now).expect("queued");
    let (_, initiation) = pair.a.sent().pop().expect("initiation");
    assert_eq!(pair.b.open(elsewhere, &initiation, pair.now).0, Opened::Nothing);
    let answers = pair.b.sent();
    assert_eq!(answers.iter().map(|(to, d)| (*to, d.len())).collect::<Vec<_>>(), [(elsewhere, 92)]);
    let report = pair.b.tunnels.report(PEER, pair.now).expect("report");
    assert_eq!((report.path, report.handshake_age), (Some(home.into()), None));

    // The same again is a replay, and gets silence.
    assert_eq!(pair.b.open(elsewhere, &initiation, pair.now).0, Opened::Dropped(OpenError::Replayed));
    assert!(pair.b.sent().is_empty());

    assert_eq!(pair.a.open(pair.b.address, &answers[0].1, pair.now).0, Opened::Nothing);
    for (_, datagram) in pair.a.sent() {
        pair.b.open(elsewhere, &datagram, pair.now);
    }
    assert_eq!(pair.b.tunnels.report(PEER, pair.now).expect("report").path, Some(elsewhere.into()));
}

#[test]
fn initiations_alone_never_make_a_session_to_send_by() {
    let mut pair = Pair::up();
    pair.now += Duration::from_secs(181);
    // boringtun would send with the eighth of them.
    pair.a.seal(&packet(1, 100), pair.now).expect("queued");
    for _ in 0..12 {
        pair.now += Duration::from_secs(6);
        pair.a.tunnels.handle_timeout(&mut pair.a.transmits, pair.now);
        let message = pair.a.sent().pop().expect("initiation").1;
        pair.b.open(pair.a.address, &message, pair.now);
        pair.b.transmits.clear();
        assert_eq!(pair.b.seal(&packet(2, 100), pair.now), Ok(()));
        assert!(pair.b.sent().iter().all(|(_, datagram)| is_initiation(datagram)), "sealed by a session of no proof");
        assert_eq!(pair.b.tunnels.report(PEER, pair.now).expect("report").handshake_age, None);
    }
}

#[test]
fn each_datagram_is_delivered_once_in_any_order_up_to_a_thousand() {
    let mut pair = Pair::up();
    let datagrams: Vec<_> = (0..2000).map(|n| pair.sealed(&packet(n, 64))).collect();
    let mut seen = BTreeSet::new();
    for half in datagrams.chunks(1000) {
        for datagram in half.iter().rev().chain(half) {
            if let (Opened::Packet { .. }, inner) = pair.b.open(pair.a.address, datagram, pair.now) {
                assert!(seen.insert(number(&inner)), "delivered twice");
            }
        }
    }
    assert_eq!(seen.len(), 2000);
    for datagram in &datagrams {
        assert_eq!(pair.b.open(pair.a.address, datagram, pair.now).0, Opened::Dropped(OpenError::Replayed));
    }
}

#[test]
fn counters_at_the_end_of_their_range_are_dropped_before_they_are_believed() {
    let mut pair = Pair::up();
    for counter in [u64::MAX, u64::MAX - 1, u64::MAX - (1 << 13)] {
        let mut datagram = pair.sealed(&packet(1, 100));
        datagram[8..16].copy_from_slice(&counter.to_le_bytes());
        assert_eq!(pair.b.open(pair.a.address, &datagram, pair.now).0, Opened::Dropped(OpenError::Unauthentic));
    }
    let datagram = pair.sealed(&packet(1, 100));
    assert!(matches!(pair.b.open(pair.a.address, &datagram, pair.now).0, Opened::Packet { .. }));
}

#[test]
fn lying_inner_lengths_are_no_panic_and_prove_the_peer_all_the_same() {
    let mut pair = Pair::up();
    let mut lies = vec![vec![0x45; 1], vec![0x00; 40], vec![0xff; 100]];
    for total in [0u16, 1, 19, 21, 101, 65535] {
        let mut lie = packet(1, 100);
        lie[2..4].copy_from_slice(&total.to_be_bytes());
        lies.push(lie);
    }
    let roamed = at("198.51.100.9:900");
    for lie in lies {
        let datagram = pair.sealed(&lie);
        match pair.b.open(roamed, &datagram, pair.now).0 {
            // Of what is really there, which is padded to 112.
            Opened::Packet { bytes, .. } => assert!((1..=112).contains(&bytes)),
            opened => assert_eq!(opened, Opened::Dropped(OpenError::Malformed)),
        }
    }
    assert_eq!(pair.b.events(), [TunnelEvent::Moved { peer: PEER, to: roamed.into() }]);
}

#[test]
fn strangers_get_silence() {
    let mut pair = Pair::up();
    let stranger = at("203.0.113.66:66");
    let valid = pair.sealed(&packet(1, 100));
    for kind in 0..=5 {
        for length in 0..=200usize {
            for fill in [0x00, 0xff, 0x5a] {
                let mut datagram = vec![fill; length];
                for (byte, value) in datagram.iter_mut().zip([kind, 0, 0, 0]) {
                    *byte = value;
                }
                assert!(matches!(pair.b.open(stranger, &datagram, pair.now).0, Opened::Dropped(_)));
                // The same with an index that is in use.
                if let Some(index) = datagram.get_mut(4..8) {
                    index.copy_from_slice(&valid[4..8]);
                }
                assert!(matches!(pair.b.open(stranger, &datagram, pair.now).0, Opened::Dropped(_)));
            }
        }
    }
    // The right MAC, but a key that nobody knows.
    for seed in 10..30 {
        let opened = pair.b.open(stranger, &initiation(seed, 2), pair.now).0;
        assert_eq!(opened, Opened::Dropped(OpenError::Unauthentic));
    }
    assert!(pair.b.sent().is_empty() && pair.b.events().is_empty());
    assert!(matches!(pair.b.open(pair.a.address, &valid, pair.now).0, Opened::Packet { .. }));
}

#[test]
fn under_load_strangers_get_cookies_only_and_the_peer_connects_within_three_attempts() {
    let mut pair = Pair::new();
    let flood = initiation(66, 2);
    let stranger = at("203.0.113.66:66");
    pair.a.seal(&packet(1, 100), pair.now).expect("queued");
    let mut attempts = 0;
    while !pair.b.tunnels.is_up(PEER) {
        for _ in 0..1000 {
            pair.b.open(stranger, &flood, pair.now);
        }
        let answers: Vec<_> = pair.b.sent();
        assert!(answers.iter().all(|(to, d)| *to == stranger && d.len() == 64 && d[0] == 3));
        assert!(answers.len() >= 900, "{}", answers.len());
        attempts += 1;
        pair.settle();
        let asked = pair.now;
        while pair.a.transmits.is_empty() && !pair.b.tunnels.is_up(PEER) {
            pair.now += TICK;
            pair.a.tunnels.handle_timeout(&mut pair.a.transmits, pair.now);
            assert!(pair.now < asked + Duration::from_secs(6), "gave up");
        }
    }
    assert!(attempts <= 3, "{attempts}");
    assert_eq!(pair.at_b.len(), 1);
}

#[test]
fn a_source_that_proved_its_address_has_its_share_of_handshakes_and_no_more() {
    let mut pair = Pair::new();
    let stranger = at("203.0.113.66:66");
    let mut tunn = {
        let unlimited = Arc::new(RateLimiter::new(&PublicKey::from(public(66)), u64::MAX));
        Tunn::new(secret(66), PublicKey::from(public(2)), None, None, 3, Some(unlimited))
    };
    let mut ask = |cookie: Option<&[u8]>| {
        let mut buffer = [0; 256];
        if let Some(cookie) = cookie {
            assert!(matches!(tunn.decapsulate(None, cookie, &mut buffer), TunnResult::Done));
        }
        match tunn.format_handshake_initiation(&mut buffer, true) {
            TunnResult::WriteToNetwork(message) => message.to_vec(),
            other => panic!("{other:?}"),
        }
    };
    for _ in 0..101 {
        pair.b.open(stranger, &ask(None), pair.now);
    }
    let (_, cookie) = pair.b.sent().pop().expect("cookie");
    let mut outcomes = vec![pair.b.open(stranger, &ask(Some(&cookie)), pair.now).0];
    outcomes.extend((0..49).map(|_| pair.b.open(stranger, &ask(None), pair.now).0));
    let judged = outcomes.iter().filter(|o| **o == Opened::Dropped(OpenError::Unauthentic)).count();
    let refused = outcomes.iter().filter(|o| **o == Opened::Dropped(OpenError::UnderLoad)).count();
    assert_eq!((judged, refused), (20, 30));
    assert!(pair.b.sent().is_empty());
    // The cookie is worth nothing elsewhere.
    assert_eq!(pair.b.open(at("203.0.113.67:66"), &ask(None), pair.now).0, Opened::Dropped(OpenError::UnderLoad));
    assert_eq!(pair.b.sent().len(), 1);
}

#[test]
fn keys_of_low_order_and_keys_in_use_are_refused() {
    let now = Instant::now();
    let mut side = Side::new(1, at("192.0.2.1:1"), now);
    let order_8 = "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800";
    let decoded: Vec<u8> =
        (0..64).step_by(2).map(|i| u8::from_str_radix(&order_8[i..i + 2], 16).expect("hex")).collect();
    let mut one = [0; 32];
    one[0] = 1;
    for key in [[0; 32], one, decoded.try_into().expect("key")] {
        let weak = TunnelSettings { public_key: key, ..settings(2, Some(at("192.0.2.2:2"))) };
        assert!(matches!(side.tunnels.add(PEER, weak, now), Err(TunnelError::WeakKey)));
    }
    assert!(matches!(side.tunnels.add(PEER, settings(1, None), now), Err(TunnelError::OwnKey)));
    side.tunnels.add(PEER, settings(2, None), now).expect("settings");
    assert!(matches!(side.tunnels.add(PeerId(8), settings(2, None), now), Err(TunnelError::KnownKey)));
    side.tunnels.handle_timeout(&mut side.transmits, now + Duration::from_secs(60));
    assert!(side.sent().is_empty());
}

#[test]
fn what_waits_for_a_session_is_bounded_and_says_so() {
    let mut pair = Pair::new();
    let results: Vec<_> = (0..1000).map(|n| pair.a.seal(&packet(n, 1420), pair.now)).collect();
    let queued = results.iter().filter(|r| r.is_ok()).count();
    assert_eq!(queued, 128);
    assert!(results[128..].iter().all(|r| *r == Err(SealError::Overload)));
    assert_eq!(pair.a.sent().len(), 1, "one initiation");
    let mut pair = Pair::new();
    let large = packet(0, 60000);
    let queued =
        (0..10).filter(|_| pair.a.tunnels.seal(PEER, &large, u16::MAX, &mut pair.a.transmits, pair.now).is_ok());
    assert_eq!(queued.count(), 4);
}

#[test]
fn what_the_arena_cannot_hold_waits_in_order() {
    let mut pair = Pair::new();
    for n in 0..100 {
        pair.a.seal(&packet(n, 1400), pair.now).expect("queued");
    }
    let (_, initiation) = pair.a.sent().pop().expect("initiation");
    pair.b.open(pair.a.address, &initiation, pair.now);
    let (_, response) = pair.b.sent().pop().expect("response");
    pair.a.transmits = Transmits::new(20_000);
    pair.a.open(pair.b.address, &response, pair.now);
    pair.settle();
    assert!((1..100).contains(&pair.at_b.len()));
    pair.a.seal(&packet(100, 1400), pair.now).expect("queued behind the others");
    for _ in 0..20 {
        pair.pass(TICK);
    }
    assert_eq!(pair.at_b.iter().map(|p| number(p)).collect::<Vec<_>>(), (0..=100).collect::<Vec<_>>());
}

#[test]
fn nothing_of_a_peer_is_left_when_it_is_removed() {
    let mut pair = Pair::up();
    let datagram = pair.sealed(&packet(1, 100));
    pair.b.open(at("198.51.100.9:900"), &datagram, pair.now);
    let late = pair.sealed(&packet(2, 100));
    pair.b.tunnels.remove(PEER);
    assert!(pair.b.events().is_empty());
    assert_eq!(pair.b.open(pair.a.address, &late, pair.now).0, Opened::Dropped(OpenError::Unauthentic));
    assert_eq!(pair.b.open(pair.a.address, &initiation(1, 2), pair.now).0, Opened::Dropped(OpenError::Unauthentic));
    assert_eq!(pair.b.seal(&packet(3, 100), pair.now), Err(SealError::NoPath));
    assert_eq!(pair.b.tunnels.poll_timeout(), None);
    assert_eq!(pair.b.tunnels.report(PEER, pair.now), None);
    assert!(pair.b.sent().is_empty());
    assert!(pair.b.tunnels.by_index.is_empty() && pair.b.tunnels.by_key.is_empty());
}

#[test]
fn a_changed_key_ends_the_sessions_and_a_changed_keepalive_does_not() {
    let mut pair = Pair::up();
    let same = TunnelSettings { keepalive_seconds: Some(1), ..settings(2, Some(pair.b.address)) };
    pair.a.tunnels.add(PEER, same.clone(), pair.now).expect("settings");
    assert!(pair.a.tunnels.is_up(PEER));
    let old = pair.sealed(&packet(1, 100));

    let preshared = Some([9; 32]);
    let changed = TunnelSettings { preshared_key: preshared, ..settings(1, None) };
    pair.b.tunnels.add(PEER, changed, pair.now).expect("settings");
    assert_eq!(pair.b.events(), [TunnelEvent::Down(PEER)]);
    assert_eq!(pair.b.open(pair.a.address, &old, pair.now).0, Opened::Dropped(OpenError::Unauthentic));
    pair.a.tunnels.add(PEER, TunnelSettings { preshared_key: preshared, ..same }, pair.now).expect("settings");
    pair.pass(TICK);
    assert!(pair.a.tunnels.is_up(PEER) && pair.b.tunnels.is_up(PEER));
}

#[test]
fn keys_that_do_not_fit_make_no_session() {
    let mut pair = Pair::new();
    let other = TunnelSettings { preshared_key: Some([9; 32]), ..settings(1, None) };
    pair.b.tunnels.add(PEER, other, pair.now).expect("settings");
    pair.a.seal(&packet(1, 100), pair.now).expect("queued");
    pair.pass(Duration::from_secs(20));
    assert!(pair.a.events().is_empty() && pair.b.events().is_empty() && pair.at_b.is_empty());
}

#[test]
fn both_may_call_at_once() {
    let mut pair = Pair::new();
    pair.b.tunnels.set_endpoint(PEER, pair.a.address);
    pair.a.seal(&packet(1, 100), pair.now).expect("queued");
    pair.b.seal(&packet(2, 100), pair.now).expect("queued");
    pair.settle();
    assert_eq!((&pair.at_b, &pair.at_a), (&vec![packet(1, 100)], &vec![packet(2, 100)]));
    pair.seen.clear();
    pair.pass(Duration::from_secs(9));
    assert!(pair.seen.is_empty());
}

#[test]
fn a_session_in_use_is_renewed_after_two_minutes_and_loses_nothing() {
    let mut pair = Pair::up();
    let mut handshakes = Vec::new();
    for second in 0..600 {
        pair.a.seal(&packet(second, 100), pair.now).expect("sealed");
        pair.b.seal(&packet(second, 100), pair.now).expect("sealed");
        pair.seen.clear();
        pair.pass(Duration::from_secs(1));
        handshakes.extend(pair.seen.iter().filter(|bytes| **bytes == 148).map(|_| second));
    }
    assert_eq!((pair.at_a.len(), pair.at_b.len()), (600, 600));
    assert!(pair.a.events().is_empty() && pair.b.events().is_empty());
    assert!((4..=5).contains(&handshakes.len()) && handshakes[0] >= 119, "{handshakes:?}");
}

#[test]
fn a_session_of_three_minutes_carries_nothing_and_the_next_packet_makes_a_new_one() {
    let mut pair = Pair::up();
    let late = pair.sealed(&packet(1, 100));
    pair.pass(Duration::from_secs(179));
    assert!(pair.a.tunnels.is_up(PEER));
    pair.pass(Duration::from_secs(2));
    assert_eq!((pair.a.events(), pair.b.events()), (vec![TunnelEvent::Down(PEER)], vec![TunnelEvent::Down(PEER)]));
    assert_eq!(pair.b.open(pair.a.address, &late, pair.now).0, Opened::Dropped(OpenError::Unauthentic));
    // Also the responder asks: it knows the address.
    pair.seen.clear();
    pair.b.seal(&packet(2, 100), pair.now).expect("queued");
    pair.settle();
    assert_eq!(pair.at_a, [packet(2, 100)]);
    assert!(pair.seen.contains(&148));
}

#[test]
fn an_unanswered_peer_is_asked_again_with_jitter_given_up_and_left_alone() {
    let mut pair = Pair::new();
    pair.a.seal(&packet(1, 100), pair.now).expect("queued");
    pair.a.sent();
    let asked = pair.pass_alone(Duration::from_secs(300));
    assert!((14..=18).contains(&asked.len()), "{asked:?}");
    assert!(asked.windows(2).all(|pair| pair[1] - pair[0] >= RETRY_MIN && pair[1] - pair[0] <= RETRY_MAX));
    assert!(asked.last().is_some_and(|last| *last <= Duration::from_secs(90)), "{asked:?}");
    // What waited was dropped; a new packet asks again.
    pair.a.seal(&packet(2, 100), pair.now).expect("queued");
    pair.pass(TICK);
    assert_eq!(pair.at_b, [packet(2, 100)]);
}

const RETRY_MIN: Duration = Duration::from_secs(5);
const RETRY_MAX: Duration = Duration::from_millis(5750);

#[test]
fn a_peer_to_be_kept_alive_is_asked_for_ever() {
    let mut pair = Pair::new();
    let always = TunnelSettings { keepalive_seconds: Some(25), ..settings(2, Some(pair.b.address)) };
    pair.a.tunnels.add(PEER, always, pair.now).expect("settings");
    let asked = pair.pass_alone(Duration::from_secs(3600));
    assert!((550..720).contains(&asked.len()), "{}", asked.len());
    assert!(asked.windows(2).all(|pair| pair[1] - pair[0] <= Duration::from_secs(17)));
    pair.pass(Duration::from_secs(17));
    assert!(pair.a.tunnels.is_up(PEER) && pair.b.tunnels.is_up(PEER));
}

#[test]
fn a_held_peer_comes_up_without_a_packet_and_is_asked_less_and_less_while_it_is_away() {
    let mut pair = Pair::new();
    let held = TunnelSettings { held: true, ..settings(2, Some(pair.b.address)) };
    pair.a.tunnels.add(PEER, held, pair.now).expect("settings");
    let asked = pair.pass_alone(Duration::from_secs(3600));
    // 17 or 18 in each of nine times 90 s, with rests of 10 s to 1280 s between.
    assert!((140..=175).contains(&asked.len()), "{}", asked.len());
    pair.a.seal(&packet(1, 100), pair.now).expect("queued");
    pair.pass(Duration::from_secs(11));
    assert_eq!(pair.at_b, [packet(1, 100)]);
    let mut pair = Pair::new();
    pair.a
        .tunnels
        .add(PEER, TunnelSettings { held: true, ..settings(2, Some(pair.b.address)) }, pair.now)
        .expect("settings");
    pair.pass(TICK);
    assert!(pair.a.tunnels.is_up(PEER));
}

#[test]
fn keepalive_holds_a_nat_of_two_seconds_and_the_session_for_ever() {
    let mut pair = Pair::new();
    let always = TunnelSettings { keepalive_seconds: Some(1), ..settings(2, Some(pair.b.address)) };
    pair.a.tunnels.add(PEER, always, pair.now).expect("settings");
    pair.pass(TICK);
    pair.a.events();
    pair.b.events();
    for _ in 0..600 {
        pair.seen.clear();
        pair.pass(Duration::from_millis(1750));
        assert!(!pair.seen.is_empty());
    }
    assert!(pair.a.events().is_empty() && pair.b.events().is_empty());
}

#[test]
fn a_first_packet_after_silence_asks_for_no_new_session() {
    let mut pair = Pair::up();
    pair.pass(Duration::from_secs(60));
    pair.seen.clear();
    // One way only: the receiver acknowledges with an empty message after ten seconds.
    pair.a.seal(&packet(1, 100), pair.now).expect("sealed");
    pair.pass(Duration::from_secs(50));
    assert_eq!(pair.seen, [112 + OVERHEAD_BYTES, OVERHEAD_BYTES]);
}

#[test]
fn data_that_nobody_acknowledges_asks_for_a_new_session() {
    let mut pair = Pair::up();
    pair.pass(Duration::from_secs(20));
    pair.a.seal(&packet(1, 100), pair.now).expect("sealed");
    pair.a.sent();
    let asked = pair.pass_alone(Duration::from_secs(18));
    assert_eq!(asked, [Duration::from_secs(15)]);
    // The peer started again and knows nothing of the session.
    pair.b = Side::new(2, pair.b.address, pair.now);
    pair.b.tunnels.add(PEER, settings(1, None), pair.now).expect("settings");
    pair.pass(Duration::from_secs(3));
    assert!(pair.b.tunnels.is_up(PEER));
    pair.a.seal(&packet(2, 100), pair.now).expect("sealed");
    pair.settle();
    assert_eq!(pair.at_b, [packet(2, 100)]);
}

/// `count` peers from number 0 on.
fn crowd(count: u32, held_at: Option<SocketAddr>, now: Instant) -> Side {
    let mut side = Side::new(1, at("192.0.2.1:1"), now);
    for n in 0..count {
        let mut key = [3; 32];
        key[8..12].copy_from_slice(&n.to_le_bytes());
        let public_key = PublicKey::from(&StaticSecret::from(key)).to_bytes();
        let settings = TunnelSettings { public_key, held: true, ..settings(2, held_at) };
        side.tunnels.add(PeerId(n), settings, now).expect("settings");
    }
    side
}

#[test]
fn a_thousand_peers_have_indices_of_their_own() {
    let side = crowd(1000, None, Instant::now());
    assert_eq!(side.tunnels.by_index.len(), 1000);
    assert!(side.tunnels.by_index.keys().all(|index| *index < 1 << 24));
}

#[test]
fn idle_peers_are_looked_at_a_few_at_a_time_and_each_within_half_a_minute() {
    let mut now = Instant::now();
    let mut side = crowd(3000, None, now);
    side.tunnels.handle_timeout(&mut side.transmits, now);
    assert_eq!(side.tunnels.looks, LOOKS_MAX);
    while side.tunnels.poll_timeout().is_some_and(|at| at <= now) {
        side.tunnels.handle_timeout(&mut side.transmits, now);
    }
    assert_eq!(side.tunnels.looks, 3000);
    for _ in 0..240 {
        let before = side.tunnels.looks;
        now += TICK;
        side.tunnels.handle_timeout(&mut side.transmits, now);
        assert!(side.tunnels.looks - before <= 150, "{}", side.tunnels.looks - before);
    }
    // Two to four times in a minute.
    assert!((9000..15_000).contains(&side.tunnels.looks), "{}", side.tunnels.looks);
    assert!(side.sent().is_empty());
}

#[test]
fn a_packet_of_one_peer_makes_no_work_for_the_others() {
    let mut now = Instant::now();
    let mut side = crowd(500, None, now);
    side.tunnels.handle_timeout(&mut side.transmits, now);
    now += TICK;
    side.tunnels.set_endpoint(PEER, at("192.0.2.2:2"));
    side.seal(&packet(1, 100), now).expect("queued");
    let before = side.tunnels.looks;
    side.tunnels.handle_timeout(&mut side.transmits, now + TICK);
    assert_eq!(side.tunnels.looks - before, 1);
}

#[test]
fn many_held_peers_are_asked_a_few_in_a_call_and_all_without_delay() {
    let now = Instant::now();
    let mut side = crowd(200, Some(at("192.0.2.2:2")), now);
    let mut calls = 0;
    while side.tunnels.poll_timeout().is_some_and(|at| at <= now) {
        side.tunnels.handle_timeout(&mut side.transmits, now);
        calls += 1;
        assert!((1..=ASKED_MAX).contains(&side.sent().len()));
    }
    assert_eq!(calls, 200usize.div_ceil(ASKED_MAX));
}

proptest! {
    #[test]
    fn no_datagram_is_a_panic_or_an_answer(
        kind in 0u8..6,
        right_index in any::<bool>(),
        mut datagram in prop::collection::vec(any::<u8>(), 0..300),
        room in 0usize..400,
    ) {
        let mut pair = Pair::up();
        let valid = pair.sealed(&packet(1, 100));
        for (byte, value) in datagram.iter_mut().zip([kind, 0, 0, 0]) {
            *byte = value;
        }
        if right_index && datagram.len() >= 12 {
            datagram[4..8].copy_from_slice(&valid[4..8]);
            datagram[8..12].copy_from_slice(&valid[4..8]);
        }
        let mut into = vec![0; room];
        let stranger = at("203.0.113.66:66");
        let opened = pair.b.tunnels.open(stranger, &datagram, &mut into, &mut pair.b.transmits, pair.now);
        prop_assert!(matches!(opened, Opened::Dropped(_)));
        prop_assert!(pair.b.sent().is_empty() && pair.b.events().is_empty());
    }

    #[test]
    fn a_changed_datagram_is_never_taken_for_the_peers(byte in 0usize..160, bit in 0u8..8) {
        let mut pair = Pair::up();
        let mut datagram = pair.sealed(&packet(1, 120));
        let byte = byte % datagram.len();
        datagram[byte] ^= 1 << bit;
        let opened = pair.b.open(at("203.0.113.66:66"), &datagram, pair.now).0;
        prop_assert!(matches!(opened, Opened::Dropped(_)));
        prop_assert!(pair.b.sent().is_empty() && pair.b.events().is_empty());
    }

    #[test]
    fn any_order_with_duplicates_delivers_each_once(order in prop::collection::vec(0usize..3000, 1..400)) {
        let mut pair = Pair::up();
        let datagrams: Vec<_> = (0..3000).map(|n| pair.sealed(&packet(n, 32))).collect();
        let (mut seen, mut highest) = (BTreeSet::new(), 0);
        for n in order {
            let delivered = matches!(pair.b.open(pair.a.address, &datagrams[n], pair.now).0, Opened::Packet { .. });
            prop_assert!(!delivered || !seen.contains(&n), "twice");
            if n + 1000 > highest && !seen.contains(&n) {
                prop_assert!(delivered, "lost within the window");
            }
            if delivered {
                seen.insert(n);
                highest = highest.max(n);
            }
        }
    }
}
