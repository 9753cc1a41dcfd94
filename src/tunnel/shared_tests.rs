//! A tunnel in the hands of several threads.

use super::tests::{MTU, PEER, Pair, number, packet, settings};
use super::*;
use std::collections::BTreeSet;
use std::thread;

const SCRATCH_BYTES: usize = 1 << 16;

/// Numbered packets, sealed by one thread as a worker would.
fn seal(tunnel: &Tunnel, numbers: std::ops::Range<u32>, now: Instant) -> Vec<Vec<u8>> {
    let (mut transmits, mut scratch) = (Transmits::new(1 << 20), vec![0; SCRATCH_BYTES]);
    let mut datagrams = Vec::new();
    for number in numbers {
        tunnel.lock().seal(&packet(number, 200), MTU, &mut scratch, &mut transmits, now).expect("sealed");
        datagrams.extend(take(&mut transmits));
    }
    datagrams
}

fn take(transmits: &mut Transmits) -> Vec<Vec<u8>> {
    let batches = transmits.batches();
    let sent = batches.flat_map(|(batch, bytes)| bytes.chunks(batch.segment_bytes).map(<[u8]>::to_vec)).collect();
    transmits.clear();
    sent
}

/// What one thread opens, in its order.
fn open(tunnel: &Tunnel, from: SocketAddr, datagrams: &[Vec<u8>], now: Instant) -> Vec<u32> {
    let (mut transmits, mut scratch, mut into) = (Transmits::new(1 << 20), vec![0; SCRATCH_BYTES], vec![0; 2048]);
    let mut opened = Vec::new();
    for datagram in datagrams {
        let was = tunnel.lock().open(from, datagram, &mut into, &mut scratch, &mut transmits, now).expect("its own");
        match was {
            Opened::Packet { peer: PEER, .. } => opened.push(number(&into)),
            other => panic!("{other:?}"),
        }
    }
    opened
}

#[test]
fn two_threads_seal_and_two_open_and_each_packet_arrives_once() {
    const EACH: u32 = 400;
    let pair = Pair::up();
    let (a, b) = (pair.a.tunnels.tunnel(PEER).expect("a"), pair.b.tunnels.tunnel(PEER).expect("b"));
    let (now, from) = (pair.now, pair.a.address);
    let sealed: Vec<Vec<Vec<u8>>> = thread::scope(|scope| {
        let threads: Vec<_> = (0..2).map(|n| scope.spawn(move || seal(a, n * EACH..(n + 1) * EACH, now))).collect();
        threads.into_iter().map(|thread| thread.join().expect("sealer")).collect()
    });
    // No counter is used twice.
    let counters: BTreeSet<&[u8]> = sealed.iter().flatten().map(|datagram| &datagram[8..16]).collect();
    assert_eq!(counters.len(), 2 * EACH as usize);
    let opened: Vec<Vec<u32>> = thread::scope(|scope| {
        let threads: Vec<_> = sealed.iter().map(|datagrams| scope.spawn(|| open(b, from, datagrams, now))).collect();
        threads.into_iter().map(|thread| thread.join().expect("opener")).collect()
    });
    assert_eq!(opened, [(0..EACH).collect::<Vec<_>>(), (EACH..2 * EACH).collect()]);
}

#[test]
fn a_removed_tunnel_seals_and_opens_nothing_for_whoever_still_holds_it() {
    let mut pair = Pair::up();
    let datagram = seal(pair.a.tunnels.tunnel(PEER).expect("a"), 1..2, pair.now).remove(0);
    let (a, b) = (pair.a.tunnels.tunnel(PEER).cloned(), pair.b.tunnels.tunnel(PEER).cloned());
    let (a, b) = (a.expect("a"), b.expect("b"));
    pair.a.tunnels.remove(PEER);
    let changed = TunnelSettings { preshared_key: Some([9; 32]), ..settings(1, None) };
    pair.b.tunnels.add(PEER, changed, pair.now).expect("settings");
    let (mut transmits, mut scratch, mut into) = (Transmits::new(4096), vec![0; SCRATCH_BYTES], vec![0; 2048]);
    let sealed = a.lock().seal(&packet(1, 100), MTU, &mut scratch, &mut transmits, pair.now);
    assert_eq!(sealed, Err(SealError::NoPath));
    let opened = b.lock().open(pair.a.address, &datagram, &mut into, &mut scratch, &mut transmits, pair.now);
    assert_eq!(opened, Some(Opened::Dropped(OpenError::Unauthentic)));
    // What the old one says says nothing of the new one.
    pair.b.events();
    pair.b.tunnels.hear(&b, pair.now);
    assert_eq!(pair.b.events(), []);
}

#[test]
fn what_is_done_beside_the_tunnels_is_told_and_timed_when_they_hear_of_it() {
    let mut pair = Pair::up();
    let roamed: SocketAddr = "192.0.2.9:9".parse().expect("address");
    let datagram = seal(pair.a.tunnels.tunnel(PEER).expect("a"), 1..2, pair.now).remove(0);
    let b = pair.b.tunnels.tunnel(PEER).expect("b").clone();
    pair.b.tunnels.handle_timeout(&mut pair.b.transmits, pair.now + TICK);
    assert!(b.lock().has_news(pair.now), "it rests, and something happens to it");
    pair.b.tunnels.hear(&b, pair.now);
    assert!(!b.lock().has_news(pair.now));
    assert_eq!(open(&b, roamed, &[datagram], pair.now), [1]);
    assert!(b.lock().has_news(pair.now));
    pair.b.tunnels.hear(&b, pair.now);
    assert_eq!(pair.b.events(), [TunnelEvent::Moved { peer: PEER, to: roamed.into() }]);
    assert!(pair.b.tunnels.poll_timeout().is_some_and(|at| at <= pair.now + 2 * TICK));
}

/// What waited for the session lies sealed with the thread that brought it up; what another thread has after that must not
/// leave before.
#[test]
fn nothing_overtakes_what_waited_for_the_session() {
    let mut pair = Pair::new();
    for number in 0..3 {
        pair.a.seal(&packet(number, 100), pair.now).expect("queued");
    }
    let initiation = pair.a.sent().remove(0).1;
    pair.b.open(pair.a.address, &initiation, pair.now);
    let response = pair.b.sent().remove(0).1;
    pair.a.open(pair.b.address, &response, pair.now);
    let tunnel = pair.a.tunnels.tunnel(PEER).expect("a").clone();
    let (mut other, mut scratch) = (Transmits::new(1 << 20), vec![0; SCRATCH_BYTES]);
    tunnel.lock().seal(&packet(3, 100), MTU, &mut scratch, &mut other, pair.now).expect("queued");
    assert!(other.is_empty());
    assert!(tunnel.lock().has_news(pair.now));
    pair.a.tunnels.hear(&tunnel, pair.now);
    assert!(pair.a.tunnels.poll_timeout().is_some_and(|at| at <= pair.now));
    let first = pair.a.sent();
    // They are sent now: the next of anybody takes along what had to wait.
    tunnel.lock().seal(&packet(4, 100), MTU, &mut scratch, &mut other, pair.now).expect("sealed");
    let datagrams = first.into_iter().map(|(_, datagram)| datagram).chain(take(&mut other));
    let numbers: Vec<u32> = datagrams
        .filter_map(|datagram| match pair.b.open(pair.a.address, &datagram, pair.now) {
            (Opened::Packet { .. }, inner) => Some(number(&inner)),
            _ => None,
        })
        .collect();
    assert_eq!(numbers, [0, 1, 2, 3, 4]);
}
