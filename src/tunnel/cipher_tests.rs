//! Two gateways that may use the second cipher: when they do, and that nothing is lost on the way to it and back.

use super::cipher::{COUNTER_BIT, is_fast};
use super::tests::{PEER, Pair, at, number, packet, settings};
use super::*;

fn allowed(second_cipher: bool, key: u8, endpoint: Option<SocketAddr>) -> TunnelSettings {
    TunnelSettings { second_cipher, ..settings(key, endpoint) }
}

/// Before any session.
fn pair(a: bool, b: bool) -> Pair {
    let mut pair = Pair::new();
    let endpoint = Some(pair.b.address);
    pair.a.tunnels.add(PEER, allowed(a, 2, endpoint), pair.now).expect("settings");
    pair.b.tunnels.add(PEER, allowed(b, 1, None), pair.now).expect("settings");
    pair
}

/// Sends packets both ways, one each at a time, and checks that each arrives.
fn talk(pair: &mut Pair, numbers: std::ops::Range<u32>) {
    for number in numbers {
        pair.a.seal(&packet(number, 200), pair.now).expect("sealed");
        pair.settle();
        assert_eq!(pair.at_b.pop(), Some(packet(number, 200)));
        pair.b.seal(&packet(number, 300), pair.now).expect("sealed");
        pair.settle();
        assert_eq!(pair.at_a.pop(), Some(packet(number, 300)));
    }
    assert!(pair.at_a.is_empty() && pair.at_b.is_empty(), "nothing but what was sent comes out");
}

fn ciphers(pair: &Pair) -> [Cipher; 2] {
    [&pair.a, &pair.b].map(|side| side.tunnels.report(PEER, pair.now).expect("report").cipher)
}

fn is_second(datagram: &[u8]) -> bool {
    u64::from_le_bytes(datagram[8..16].try_into().expect("eight")) & COUNTER_BIT != 0
}

const FIRST: Cipher = Cipher::ChaCha20Poly1305;

/// What both come to, on a processor that has instructions for it.
fn best() -> Cipher {
    if is_fast() { Cipher::Aes256Gcm } else { FIRST }
}

#[test]
fn after_the_first_data_of_a_session_both_use_the_second_cipher() {
    let mut pair = pair(true, true);
    talk(&mut pair, 0..3);
    assert_eq!(ciphers(&pair), [best(); 2]);
    let datagram = pair.sealed(&packet(3, 1420));
    assert_eq!(is_second(&datagram), best() != FIRST);
    assert_eq!(datagram.len(), 1420 + OVERHEAD_BYTES, "as long as in the first");
}

#[test]
fn one_that_may_not_goes_on_as_before_and_so_does_its_peer() {
    for (a, b) in [(true, false), (false, true), (false, false)] {
        let mut pair = pair(a, b);
        talk(&mut pair, 0..20);
        assert_eq!(ciphers(&pair), [FIRST; 2]);
    }
}

#[test]
fn where_grants_are_lost_data_is_not() {
    let mut pair = pair(true, true);
    pair.a.seal(&packet(0, 100), pair.now).expect("queued");
    pair.settle();
    pair.at_b.clear();
    // Nothing of b's arrives for a while.
    for number in 1..6 {
        pair.a.seal(&packet(number, 100), pair.now).expect("sealed");
        for (_, datagram) in pair.a.sent() {
            assert!(matches!(pair.b.open(pair.a.address, &datagram, pair.now).0, Opened::Packet { .. }));
        }
        drop(pair.b.sent());
        pair.now += Duration::from_millis(100);
    }
    pair.now += Duration::from_secs(1);
    talk(&mut pair, 6..9);
    assert_eq!(ciphers(&pair), [best(); 2]);
}

#[test]
fn a_new_session_begins_in_the_first_cipher_and_what_is_late_of_the_old_one_is_opened() {
    let mut pair = pair(true, true);
    talk(&mut pair, 0..2);
    let late = pair.sealed(&packet(2, 100));
    pair.now += Duration::from_secs(121);
    talk(&mut pair, 3..4);
    pair.pass(TICK);
    talk(&mut pair, 4..6);
    let age = pair.a.tunnels.report(PEER, pair.now).expect("report").handshake_age.expect("a session");
    assert!(age < Duration::from_secs(1), "a new session: {age:?}");
    assert_eq!(ciphers(&pair), [best(); 2]);
    let (opened, inner) = pair.b.open(pair.a.address, &late, pair.now);
    assert!(matches!(opened, Opened::Packet { .. }), "{opened:?}");
    assert_eq!(number(&inner), 2);
}

#[test]
fn who_turns_it_off_seals_with_the_first_at_once_and_opens_both() {
    let mut pair = pair(true, true);
    talk(&mut pair, 0..2);
    pair.b.tunnels.add(PEER, allowed(false, 1, None), pair.now).expect("settings");
    talk(&mut pair, 2..6);
    assert_eq!(ciphers(&pair), [best(), FIRST]);
}

#[test]
fn in_the_second_cipher_a_copy_is_refused_and_the_latest_data_moves_the_endpoint() {
    let mut pair = pair(true, true);
    talk(&mut pair, 0..2);
    pair.b.events();
    let (roamed, thief) = (at("198.51.100.9:900"), at("203.0.113.66:66"));
    let (early, late) = (pair.sealed(&packet(1, 100)), pair.sealed(&packet(2, 100)));
    assert!(matches!(pair.b.open(roamed, &late, pair.now).0, Opened::Packet { .. }));
    assert_eq!(pair.b.events(), [TunnelEvent::Moved { peer: PEER, to: roamed.into() }]);
    assert_eq!(pair.b.open(thief, &late, pair.now).0, Opened::Dropped(OpenError::Replayed));
    assert!(matches!(pair.b.open(thief, &early, pair.now).0, Opened::Packet { .. }));
    let mut altered = early;
    altered[8] ^= 0x40;
    assert_eq!(pair.b.open(thief, &altered, pair.now).0, Opened::Dropped(OpenError::Unauthentic));
    assert_eq!(pair.b.events(), []);
}
