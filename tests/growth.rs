//! What each flow, peer, service and caller costs in bytes, and what packets and timers cost in work: counted, not timed.

mod hub;

use hub::{Hub, Open};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::{Duration, Instant};
use vp::addr::PeerId;
use vp::node::{Event, Settings};
use vp::packet::Offload;

thread_local! {
    static BYTES: Cell<isize> = const { Cell::new(0) };
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

/// What glibc takes for so many: 8 bytes more, in steps of 16, at least 32.
fn taken(bytes: usize) -> isize {
    (bytes + 8).next_multiple_of(16).max(32) as isize
}

// SAFETY: all is handed on to the system's allocator; the counters allocate nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        BYTES.set(BYTES.get() + taken(layout.size()));
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        LARGEST.set(LARGEST.get().max(layout.size()));
        // SAFETY: the caller's promise is the system's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        BYTES.set(BYTES.get() - taken(layout.size()));
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

fn bytes() -> isize {
    BYTES.get()
}

/// Allocations that `act` makes.
fn allocations(act: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.get();
    act();
    ALLOCATIONS.get() - before
}

fn each(bytes: isize, count: usize) -> isize {
    bytes / count as isize
}

#[test]
fn a_flow_costs_at_most_256_bytes_and_its_opening_no_large_allocation() {
    let mut hub = Hub::new(hub::settings(4), Instant::now());
    hub.connect(4);
    let mut open = |n: usize| {
        hub.open_from(n % 4, 2 + (n / 4 % 16) as u16, (n / 64) as u16);
    };
    // Leases and counters of the 64 callers.
    (0..64).for_each(&mut open);
    let (before, mut opened) = (bytes(), 64);
    LARGEST.set(0);
    for count in [10_000, 20_000, 35_000, 50_000, 75_000, 100_000, 150_000, 200_000] {
        (opened..count).for_each(&mut open);
        opened = count;
        let flow = each(bytes() - before, count - 64);
        println!("{count} flows: {flow} bytes each");
        assert!(flow <= 256, "{flow} bytes for each of {count}");
    }
    assert!(LARGEST.get() <= 256 << 10, "{} bytes at once", LARGEST.get());
}

#[test]
fn an_idle_peer_costs_at_most_16_kilobytes_with_and_without_a_session() {
    const PEERS: usize = 10_000;
    const SESSIONS: usize = 1000;
    let before = bytes();
    let none = Hub::new(hub::settings(0), Instant::now());
    let empty = bytes() - before;
    drop(none);
    let mut hub = Hub::new(hub::settings(PEERS), Instant::now());
    let without = bytes() - before - empty;
    hub.connect(SESSIONS);
    hub.fars = Vec::new();
    let with = bytes() - before - empty - without;
    println!("idle peer: {} bytes, and {} more with a session", each(without, PEERS), each(with, SESSIONS));
    assert!(each(without, PEERS) + each(with, SESSIONS) <= 16 << 10);
}

#[test]
fn a_mapped_service_costs_at_most_1500_bytes_also_when_it_is_offered() {
    const SERVICES: usize = 100_000;
    let peers = SERVICES / hub::SERVICES_PER_PEER;
    let before = bytes();
    let settings = Settings { mappings: hub::mappings(SERVICES), ..hub::settings(peers) };
    let wanted = bytes() - before;
    let mut hub = Hub::new(settings, Instant::now());
    let mapped = bytes() - before;
    for peer in 0..peers {
        hub.node.set_offer(PeerId(peer as u32), hub::offer(hub::SERVICES_PER_PEER), hub.now).expect("offer");
        hub.settle();
    }
    let offered = bytes() - before;
    let [wanted, mapped, offered] = [wanted, mapped, offered].map(|bytes| each(bytes, SERVICES));
    println!("mapped service: {mapped} bytes, {wanted} of them its setting, {offered} when it is offered");
    assert!(offered <= 1500, "{offered}");
}

#[test]
fn a_caller_costs_at_most_one_kilobyte_with_its_flow() {
    const CALLERS: usize = 100_000;
    let mut hub = Hub::new(hub::settings(CALLERS / hub::CALLERS_PER_PEER), Instant::now());
    hub.connect(2);
    let before = bytes();
    drop(hub.open_inbound(CALLERS, CALLERS));
    let caller = each(bytes() - before, CALLERS);
    println!("caller: {caller} bytes with one flow");
    assert!(caller <= 1024, "{caller}");
}

#[test]
fn a_caller_with_limits_of_its_own_costs_at_most_one_kilobyte_more() {
    const CALLERS: usize = 100_000;
    let cost = |limited: bool| {
        let mut settings = hub::settings(CALLERS / hub::CALLERS_PER_PEER);
        if limited {
            let rates = vp::node::Rates { bits_per_second: Some(1_000_000), packets_per_second: Some(100) };
            let flows = (Some(100), Some(10));
            let bounds =
                vp::node::Bounds { inbound: rates, outbound: rates, flows: flows.0, new_flows_per_second: flows.1 };
            settings.exposures[0].limits =
                vp::node::Limits { per_caller: bounds, mode: vp::node::Mode::Observe, ..Default::default() };
        }
        let mut hub = Hub::new(settings, Instant::now());
        hub.connect(2);
        let before = bytes();
        drop(hub.open_inbound(CALLERS, CALLERS));
        each(bytes() - before, CALLERS)
    };
    let (without, with) = (cost(false), cost(true));
    println!("caller: {} bytes for its limits", with - without);
    assert!(with - without <= 1024, "{with} {without}");
}

#[test]
fn packets_of_old_flows_allocate_nothing() {
    let mut hub = Hub::new(hub::settings(100), Instant::now());
    hub.connect(100);
    let flows: Vec<Open> = (0..1000).map(|n| hub.open_from(n % 100, 2, n as u16)).collect();
    // A second later each peer is fresh: boringtun is asked the time once.
    hub.now += Duration::from_secs(1);
    let outbound: Vec<Vec<u8>> = (0..10_000).map(|n| flows[n % flows.len()].outbound()).collect();
    let seal = |n: usize| {
        let open = &flows[n % flows.len()];
        (open.far as usize, open.inbound())
    };
    let now = hub.now;
    let inbound: Vec<_> =
        (0..10_000).map(seal).map(|(far, inner)| (hub.fars[far].endpoint, hub.fars[far].seal(&inner, now))).collect();
    let Hub { node, output, .. } = &mut hub;
    let made = allocations(|| {
        for mut packet in outbound {
            node.handle_packet(&mut packet, Offload::default(), output, now);
            assert_eq!(output.transmits.batches().count(), 1);
            output.clear();
        }
        for (from, datagram) in inbound {
            let stride = datagram.len();
            node.handle_datagrams(from, &datagram, stride, output, now);
            node.handle_batch_end(output, now);
            assert_eq!(output.joiner.deliveries().count(), 1);
            output.clear();
        }
    });
    assert_eq!(made, 0);
    assert!(hub.node.poll_event().is_none());
}

#[test]
fn timers_of_thousands_of_idle_peers_ask_for_five_calls_a_second_and_allocate_nothing() {
    let mut hub = Hub::new(hub::settings(3000), Instant::now());
    hub.idle(Duration::from_secs(1));
    let mut calls = 0;
    let made = allocations(|| calls = hub.idle(Duration::from_secs(120)));
    assert_eq!(made, 0);
    assert!(calls <= 5 * 120, "{calls} calls");
}

#[test]
fn flows_that_end_in_the_same_second_end_in_parts() {
    let mut hub = Hub::new(hub::settings(4), Instant::now());
    hub.connect(4);
    for n in 0..10_000 {
        hub.open_from(n % 4, 2 + (n / 4 % 16) as u16, (n / 64) as u16);
    }
    hub.now += Duration::from_secs(302);
    let mut ended = Vec::new();
    while hub.node.flow_table().open > 0 {
        hub.node.handle_timeout(&mut hub.output, hub.now);
        ended.push(hub.events().iter().filter(|event| matches!(event, Event::FlowClosed { .. })).count());
        hub.output.clear();
    }
    assert!(ended.iter().all(|count| *count <= 1024), "{ended:?}");
    assert_eq!(ended.iter().sum::<usize>(), 10_000);
}

#[test]
fn the_offer_of_one_site_makes_no_work_for_the_services_of_others() {
    let work = |services: usize| {
        let settings = Settings { mappings: hub::mappings(services), ..hub::settings(30) };
        let mut hub = Hub::new(settings, Instant::now());
        let offers = [hub::offer(1), hub::offer(2), hub::offer(1)];
        allocations(|| {
            for offer in offers {
                hub.node.set_offer(PeerId(29), offer, hub.now).expect("peer");
                hub.settle();
            }
        })
    };
    assert_eq!(work(10), work(50_000));
}

#[test]
fn a_changed_setting_is_told_to_the_peers_it_is_for_and_to_no_other() {
    let mut settings = hub::settings(1000);
    settings
        .exposures
        .push(vp::node::Exposure { allow: vec!["site:site7".parse().expect("selector")], ..hub::exposure("db") });
    let mut hub = Hub::new(settings.clone(), Instant::now());
    let mut told = |settings: &Settings| {
        hub.node.configure(settings.clone(), hub.now).expect("settings");
        let events = hub.events();
        let peers = events.iter().filter_map(|event| match event {
            Event::OfferChanged(peer) => Some(peer.0),
            _ => None,
        });
        peers.collect::<Vec<_>>()
    };
    assert!(told(&settings).is_empty());
    settings.exposures[1].ports = vec!["udp/81".parse().expect("ports")];
    assert_eq!(told(&settings), [7]);
    settings.exposures[1].allow = vec!["site:site8".parse().expect("selector")];
    assert_eq!(told(&settings), [7, 8]);
    settings.peers[8].identity.site = hub::name("another");
    assert_eq!(told(&settings), [8]);
    let gone = settings.peers.remove(5);
    assert!(told(&settings).is_empty());
    // A number is not used again.
    settings.peers.push(gone);
    assert_eq!(told(&settings), [1000]);
    settings.clients =
        vec![vp::node::Client { name: hub::name("plc"), addresses: vec!["10.0.0.7".parse().expect("v4")] }];
    assert_eq!(told(&settings).len(), 1000);
}

#[test]
fn mappings_of_two_sites_exchange_their_addresses_and_both_answer() {
    let mut settings = Settings { mappings: hub::mappings(2), ..hub::settings(3) };
    settings.mappings[1].service = "s0.site1".parse().expect("service");
    let mut hub = Hub::new(settings.clone(), Instant::now());
    let mut mapped = |addresses: [&str; 2]| {
        for (mapping, address) in settings.mappings.iter_mut().zip(addresses) {
            mapping.address = Some(address.parse().expect("address"));
        }
        hub.node.configure(settings.clone(), hub.now).map_err(|error| error.to_string())?;
        hub.settle();
        let whois = |address: &str| hub.node.whois(address.parse().expect("address")).service.unwrap_or_default();
        Ok::<_, String>([whois("10.64.0.77"), whois("10.64.0.78"), whois("10.64.0.79")])
    };
    let name = String::from;
    let empty = String::new();
    assert_eq!(mapped(["10.64.0.77", "10.64.0.78"]), Ok([name("s0.site0"), name("s0.site1"), empty.clone()]));
    assert_eq!(mapped(["10.64.0.79", "10.64.0.78"]), Ok([empty.clone(), name("s0.site1"), name("s0.site0")]));
    assert_eq!(mapped(["10.64.0.79", "10.64.0.77"]), Ok([name("s0.site1"), empty, name("s0.site0")]));
    // A refusal changes nothing.
    assert!(mapped(["10.64.0.79", "10.64.0.79"]).is_err_and(|error| error.contains("held by")));
    assert_eq!(
        hub.node.presences().iter().map(|p| p.address.clone()).collect::<Vec<_>>(),
        ["10.64.0.79", "10.64.0.77"]
    );
}
