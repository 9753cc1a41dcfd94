//! What a packet costs when there is much of everything: flows, mapped services, peers, callers. `hot` goes round 64
//! flows among all of them, which shows what the code does; `spread` takes any of them, which shows the caches too.

#[path = "../tests/hub/mod.rs"]
mod hub;

use divan::Bencher;
use hub::{CALLERS_PER_PEER, Far, Hub, Open, SERVICES_PER_PEER};
use std::time::{Duration, Instant};
use vp::node::{Node, Output};
use vp::packet::Offload;

const FLOWS: [usize; 4] = [1, 1000, 100_000, 1_000_000];
const SERVICES: [usize; 3] = [1, 1000, 100_000];
const PEERS: [usize; 3] = [1, 100, 10_000];
const CALLERS: [usize; 3] = [1, 1000, 100_000];
const HOT: usize = 64;

fn main() {
    divan::main();
    if !std::env::args().any(|argument| argument == "--list" || argument == "--test") {
        openings();
    }
}

/// Another each time, in no order.
struct Any(u64);

impl Any {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % end
    }
}

fn outbound(bencher: Bencher, (hub, flows): (Hub, Vec<Open>), among: usize) {
    let Hub { mut node, mut output, now, .. } = hub;
    let (mut any, among) = (Any(1), among.min(flows.len()));
    let step = flows.len() / among;
    let input = || flows[any.below(among) * step].outbound();
    bencher.with_inputs(input).bench_local_refs(|packet| {
        node.handle_packet(packet, Offload::default(), &mut output, now);
        assert!(!output.transmits.is_empty());
        output.clear();
    });
}

fn inbound(bencher: Bencher, (hub, flows): (Hub, Vec<Open>), among: usize) {
    let Hub { mut node, mut output, mut fars, now } = hub;
    let (mut any, among) = (Any(1), among.min(flows.len()));
    let step = flows.len() / among;
    let endpoints: Vec<_> = fars.iter().map(|far: &Far| far.endpoint).collect();
    let input = || {
        let open = &flows[any.below(among) * step];
        (open.far as usize, fars[open.far as usize].seal(&open.inbound(), now))
    };
    bencher.with_inputs(input).bench_local_refs(|(far, datagram)| {
        receive(&mut node, &mut output, endpoints[*far], datagram, now);
    });
}

fn receive(node: &mut Node, output: &mut Output, from: std::net::SocketAddr, datagram: &mut [u8], now: Instant) {
    let stride = datagram.len();
    node.handle_datagrams(from, datagram, stride, output, now);
    node.handle_batch_end(output, now);
    assert!(!output.joiner.is_empty());
    output.clear();
}

fn with_flows(count: usize) -> (Hub, Vec<Open>) {
    let mut hub = Hub::new(hub::settings(4), Instant::now());
    hub.connect(4);
    let flows = (0..count).map(|n| hub.open_from(n % 4, 2 + (n / 4 % 16) as u16, (n / 64) as u16)).collect();
    (hub, flows)
}

fn with_services(count: usize) -> (Hub, Vec<Open>) {
    let peers = count.div_ceil(SERVICES_PER_PEER);
    let settings = vp::node::Settings { mappings: hub::mappings(count), ..hub::settings(peers) };
    let mut hub = Hub::new(settings, Instant::now());
    let offered = count.min(SERVICES_PER_PEER);
    hub.node.set_offer(vp::addr::PeerId(0), hub::offer(offered), hub.now).expect("offer");
    hub.connect(1);
    let presences: std::collections::HashMap<_, _> =
        hub.node.presences().into_iter().map(|presence| (presence.service, presence.address)).collect();
    let presence = |n: usize| presences[&format!("s{n}.site0")].parse().expect("address");
    let flows = (0..offered).map(|n| hub.open_outbound(0, n as u16, presence(n), 1000)).collect();
    (hub, flows)
}

fn with_peers(count: usize) -> (Hub, Vec<Open>) {
    let mut hub = Hub::new(hub::settings(count), Instant::now());
    hub.connect(count);
    let flows = (0..count).map(|far| hub.open_from(far, 2, 1000)).collect();
    (hub, flows)
}

fn with_callers(count: usize) -> (Hub, Vec<Open>) {
    let peers = count.div_ceil(CALLERS_PER_PEER);
    let mut hub = Hub::new(hub::settings(peers), Instant::now());
    hub.connect(peers);
    let flows = hub.open_inbound(count, count);
    (hub, flows)
}

macro_rules! packets {
    ($($room:ident: $make:ident, $counts:expr;)+) => { $(
        #[divan::bench_group(sample_count = 1000, min_time = 0.3)]
        mod $room {
            use super::*;

            #[divan::bench(args = $counts)]
            fn outbound_hot(bencher: Bencher, count: usize) {
                outbound(bencher, $make(count), HOT);
            }

            #[divan::bench(args = $counts)]
            fn outbound_spread(bencher: Bencher, count: usize) {
                outbound(bencher, $make(count), usize::MAX);
            }

            #[divan::bench(args = $counts)]
            fn inbound_hot(bencher: Bencher, count: usize) {
                inbound(bencher, $make(count), HOT);
            }

            #[divan::bench(args = $counts)]
            fn inbound_spread(bencher: Bencher, count: usize) {
                inbound(bencher, $make(count), usize::MAX);
            }
        }
    )+ };
}

packets! {
    flows: with_flows, FLOWS;
    services: with_services, SERVICES;
    peers: with_peers, PEERS;
    callers: with_callers, CALLERS;
}

/// A datagram, or so many bytes of datagrams as the TUN gives them in one read.
fn read_at_once(open: &Open, bytes: usize) -> (Vec<u8>, Offload) {
    let mut packet = open.outbound();
    packet.resize(bytes, 0);
    let before = u16::from_be_bytes([packet[2], packet[3]]);
    packet[2..4].copy_from_slice(&(bytes as u16).to_be_bytes());
    packet[24..26].copy_from_slice(&(bytes as u16 - 20).to_be_bytes());
    // RFC 1624: HC' = ~(~HC + ~m + m').
    let sum = !u16::from_be_bytes([packet[10], packet[11]]) as u32 + !before as u32 + bytes as u32;
    let folded = (sum & 0xffff) + (sum >> 16);
    packet[10..12].copy_from_slice(&(!((folded & 0xffff) + (folded >> 16)) as u16).to_be_bytes());
    let segments = std::num::NonZeroU16::new(1392).filter(|_| bytes > 1420);
    (packet, Offload { checksum_partial: segments.is_some(), segment_bytes: segments })
}

/// What look-up, policy, translation and accounting add to sealing: the one against the other, of the same packet.
#[divan::bench_group(sample_count = 1000, min_time = 0.5)]
mod outbound_share {
    use super::*;

    #[divan::bench(args = [64, 1420, 60_000])]
    fn whole(bencher: Bencher, bytes: usize) {
        let (Hub { mut node, now, .. }, flows) = with_flows(1);
        let (packet, offload) = read_at_once(&flows[0], bytes);
        let mut output = Output::new(1 << 20, 1 << 16);
        bencher.with_inputs(|| packet.clone()).bench_local_refs(|packet| {
            node.handle_packet(packet, offload, &mut output, now);
            assert!(!output.transmits.is_empty());
            output.clear();
        });
    }

    #[divan::bench(args = [64, 1420, 60_000])]
    fn sealing_alone(bencher: Bencher, bytes: usize) {
        let (Hub { mut node, now, .. }, flows) = with_flows(1);
        let (mut packet, offload) = read_at_once(&flows[0], bytes);
        let mut output = Output::new(1 << 20, 1 << 16);
        let outbound = node.outbound(&mut packet, offload, &mut output, now).expect("allowed");
        bencher.bench_local(|| {
            output.seal(&outbound, now);
            assert!(!output.transmits.is_empty());
            output.clear();
        });
    }
}

/// The first packet of a flow from the network, with so many open.
#[divan::bench(args = FLOWS, sample_count = 1000)]
fn opening(bencher: Bencher, count: usize) {
    let Hub { mut node, mut output, mut fars, now } = with_flows(count).0;
    let endpoint = fars[0].endpoint;
    let mut next = 0u32;
    let input = || {
        next += 1;
        let open = Open {
            far: 0,
            wire: (
                (std::net::Ipv4Addr::from(0xc613_0100 + next % 64), 1 + (next / 64) as u16),
                (std::net::Ipv4Addr::new(198, 18, 0, 2), 80),
            ),
            site: ((std::net::Ipv4Addr::LOCALHOST, 0), (std::net::Ipv4Addr::LOCALHOST, 0)),
            by_site: false,
        };
        fars[0].seal(&open.inbound(), now)
    };
    bencher.with_inputs(input).bench_local_refs(|datagram| {
        receive(&mut node, &mut output, endpoint, datagram, now);
        while node.poll_event().is_some() {}
    });
}

/// One second of idleness: every call that the timers ask for in it. A hundredth of a core is 10 ms.
#[divan::bench(args = PEERS, sample_count = 100, sample_size = 1)]
fn idle_second(bencher: Bencher, peers: usize) {
    let mut hub = Hub::new(hub::settings(peers), Instant::now());
    hub.idle(Duration::from_secs(60));
    bencher.bench_local(|| hub.idle(Duration::from_secs(1)));
}

/// The same with a session of each peer.
#[divan::bench(args = PEERS, sample_count = 20, sample_size = 1)]
fn idle_second_with_sessions(bencher: Bencher, peers: usize) {
    let mut hub = Hub::new(hub::settings(peers), Instant::now());
    hub.connect(peers);
    hub.idle(Duration::from_secs(15));
    bencher.bench_local(|| hub.idle(Duration::from_secs(1)));
}

/// The same settings again.
#[divan::bench(args = SERVICES, sample_count = 10, sample_size = 1)]
fn configure_services(bencher: Bencher, count: usize) {
    let settings = vp::node::Settings { mappings: hub::mappings(count), ..hub::settings(30) };
    let mut hub = Hub::new(settings.clone(), Instant::now());
    let now = hub.now;
    bencher.with_inputs(|| settings.clone()).bench_local_values(|settings| hub.node.configure(settings, now));
}

/// One more mapping.
#[divan::bench(args = SERVICES, sample_count = 10, sample_size = 1)]
fn map_one(bencher: Bencher, count: usize) {
    let mut settings = vp::node::Settings { mappings: hub::mappings(count), ..hub::settings(30) };
    let mut hub = Hub::new(settings.clone(), Instant::now());
    let now = hub.now;
    let mut next = 0;
    let input = || {
        next += 1;
        let mapping = hub::mappings(1).remove(0);
        let service = format!("another{next}.site3").parse().expect("service");
        settings.mappings.push(vp::node::Mapping { service, ..mapping });
        settings.clone()
    };
    bencher.with_inputs(input).bench_local_values(|settings| hub.node.configure(settings, now));
}

/// A peer's offer of one service, different each time, with so many services mapped, of all peers.
#[divan::bench(args = SERVICES, sample_count = 10, sample_size = 1)]
fn set_offer(bencher: Bencher, count: usize) {
    let settings = vp::node::Settings { mappings: hub::mappings(count), ..hub::settings(30) };
    let mut hub = Hub::new(settings, Instant::now());
    let now = hub.now;
    let mut next = 0;
    let input = || {
        next += 1;
        hub::offer(1 + next % 2)
    };
    bencher
        .with_inputs(input)
        .bench_local_values(|offer| hub.node.set_offer(vp::addr::PeerId(29), offer, now).expect("peer"));
}

/// The same settings again, with so many peers.
#[divan::bench(args = PEERS, sample_count = 5, sample_size = 1)]
fn configure_peers(bencher: Bencher, count: usize) {
    let settings = hub::settings(count);
    let mut hub = Hub::new(settings.clone(), Instant::now());
    let now = hub.now;
    bencher.with_inputs(|| settings.clone()).bench_local_values(|settings| hub.node.configure(settings, now));
}

/// One call that judges flows again after a change.
#[divan::bench(args = [100_000], sample_size = 1)]
fn judging_again(bencher: Bencher, count: usize) {
    let mut hub = with_flows(count).0;
    let settings = hub::settings(4);
    let mut calls = 0;
    bencher.bench_local(|| {
        if calls % 20 == 0 {
            hub.node.configure(settings.clone(), hub.now).expect("settings");
        }
        calls += 1;
        hub.node.handle_timeout(&mut hub.output, hub.now);
    });
}

/// A peer goes that had a quarter of the flows.
#[divan::bench(args = [100_000, 1_000_000], sample_count = 1, sample_size = 1)]
fn removing_a_peer(bencher: Bencher, count: usize) {
    let mut hub = with_flows(count).0;
    let mut settings = hub::settings(4);
    settings.peers.pop();
    bencher.bench_local(|| hub.node.configure(settings.clone(), hub.now).expect("settings"));
}

/// What this thread has had of a processor: what else runs on the machine does not count.
fn processor_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a timespec of this function.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Each single opening while a million flows are opened: what packets of old flows may wait for.
fn openings() {
    let mut hub = Hub::new(hub::settings(4), Instant::now());
    hub.connect(4);
    // Their leases and counters are there already.
    for n in 0..64 {
        hub.open_from(n % 4, 2 + (n / 4) as u16, 65_000);
    }
    let mut times: Vec<Duration> = Vec::with_capacity(1_000_000);
    for n in 0..1_000_000 {
        let far = n % 4;
        let wire = (
            (std::net::Ipv4Addr::from(0xc613_0002 + (n / 4 % 16) as u32), (n / 64) as u16),
            (std::net::Ipv4Addr::new(198, 18, 0, 2), 80),
        );
        let mut datagram = hub.fars[far].seal(&hub::packet(wire.0, wire.1), hub.now);
        let start = processor_time();
        receive(&mut hub.node, &mut hub.output, hub.fars[far].endpoint, &mut datagram, hub.now);
        times.push(processor_time() - start);
        hub.settle();
    }
    let total: Duration = times.iter().sum();
    times.sort();
    let at = |share: f64| times[(share * (times.len() - 1) as f64) as usize];
    println!(
        "opening 1,000,000 flows one by one: mean {:?}, 99 % {:?}, 99.99 % {:?}, worst five {:?}",
        total / 1_000_000,
        at(0.99),
        at(0.9999),
        &times[times.len() - 5..]
    );
}
