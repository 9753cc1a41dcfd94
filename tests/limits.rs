//! Limits of a whole node, in fake time: what they are of, in both directions, at both ends.
//!
//!     plc 10.0.0.2 --[north 10.0.0.0/24]== wire ==+
//!                                                 +==[cloud 10.0.0.0/24]-- web 10.0.0.5
//!     plc 10.0.0.2 --[south 10.0.0.0/24]== wire ==+

mod sim;

use sim::*;
use std::net::IpAddr;
use std::time::Duration;
use vp::addr::{Bounds, Limits, Mode, Rates};
use vp::node::{Event, Reason, Settings};

const CLOUD: &str = "192.0.2.1:51820";
const SITES: [(&str, &str, u8); 2] = [("north", "192.0.2.2:40000", 2), ("south", "192.0.2.3:40000", 3)];
const PAYLOAD: [u8; 1200] = [7; 1200];
/// With its headers, as a limit counts it.
const PACKET_BITS: u64 = (1200 + 28) * 8;

fn bits(rate: u64) -> Limits {
    let rates = Rates { bits_per_second: Some(rate), packets_per_second: None };
    Limits { all: Bounds { inbound: rates, outbound: rates, ..Bounds::default() }, ..Limits::default() }
}

fn cloud_settings() -> Settings {
    let mut cloud = settings("cloud", &["10.0.9.0/24"]);
    for (site, _, seed) in SITES {
        let mut peer = peer(site, seed, None);
        peer.identity.tenant = Some(name("acme"));
        cloud.peers.push(peer);
    }
    cloud.exposures = vec![exposure("web", "10.0.0.5", &["udp/53"], &["any"])];
    cloud
}

fn site_settings(site: &str) -> Settings {
    let mut settings = settings(site, &["10.0.1.0/24"]);
    settings.peers = vec![peer("cloud", 1, Some(CLOUD))];
    settings.mappings = vec![mapping("web.cloud")];
    settings
}

fn world(cloud: Settings, of_site: impl Fn(&mut Settings)) -> World {
    let mut world = World::new();
    world.start("cloud", CLOUD, 1, cloud);
    for (site, endpoint, seed) in SITES {
        let mut settings = site_settings(site);
        of_site(&mut settings);
        world.start(site, endpoint, seed, settings);
    }
    world.run(Duration::from_secs(1));
    world.exchange_offers();
    world
}

fn plc() -> (IpAddr, u16) {
    (address("10.0.0.2"), 5000)
}

fn ask(world: &mut World, site: &'static str, payload: &[u8]) {
    let web = world.gateway(site).presence("web.cloud");
    world.send(site, &udp(plc(), (web, 53), payload));
}

/// Bits that arrive in a second at the cloud, from these sites, which send more than may pass.
fn rate_up(world: &mut World, sites: &[&'static str]) -> u64 {
    let mut arrived = 0;
    for step in 0..4000 {
        sites.iter().for_each(|site| ask(world, site, &PAYLOAD));
        world.run(Duration::from_micros(500));
        let delivered = world.gateway("cloud").take_delivered().len() as u64;
        arrived += if step < 2000 { 0 } else { delivered };
    }
    arrived * PACKET_BITS
}

fn is_about(rate: u64, expected: u64) -> bool {
    rate.abs_diff(expected) <= expected / 100 + PACKET_BITS
}

#[test]
fn a_tenant_s_limit_is_of_all_its_sites_and_a_peer_s_of_that_one() {
    let mut cloud = cloud_settings();
    cloud.limits.tenants = [(name("acme"), bits(3_000_000))].into();
    cloud.limits.peers = [(name("north"), bits(1_000_000))].into();
    let mut world = world(cloud, |_| {});
    let both = rate_up(&mut world, &["north", "south"]);
    assert!(is_about(both, 3_000_000), "{both}");
    let north = rate_up(&mut world, &["north"]);
    assert!(is_about(north, 1_000_000), "{north}");
    let limits = world.gateway("cloud").node.limits();
    assert_eq!(limits.iter().map(|limit| limit.limit.as_str()).collect::<Vec<_>>(), ["peer:north", "tenant:acme"]);
    assert!(limits.iter().all(|limit| limit.packets_delayed > 0 && limit.packets_dropped > 0), "{limits:?}");
    assert!(world.gateway("cloud").drops(Reason::RateLimit) >= limits.iter().map(|limit| limit.packets_dropped).sum());
}

#[test]
fn a_service_s_limit_holds_towards_it_and_back_and_a_mapping_s_at_the_caller_s() {
    for at_caller in [false, true] {
        let mut cloud = cloud_settings();
        cloud.exposures[0].limits = if at_caller { Limits::default() } else { bits(2_000_000) };
        let mut world = world(cloud, |settings| {
            let limited = ("web.cloud".parse().expect("a pattern"), bits(2_000_000));
            settings.limits.mappings = at_caller.then_some(limited).into_iter().collect();
        });
        let up = rate_up(&mut world, &["north"]);
        assert!(is_about(up, 2_000_000), "{at_caller}: {up}");
        world.run(Duration::from_secs(3));
        world.gateway("cloud").take_delivered();
        ask(&mut world, "north", b"query");
        world.run(Duration::from_millis(100));
        let caller = read(&world.gateway("cloud").take_one()).from;
        let mut arrived = 0;
        for step in 0..4000 {
            world.send("cloud", &udp((address("10.0.0.5"), 53), caller, &PAYLOAD));
            world.run(Duration::from_micros(500));
            let delivered = world.gateway("north").take_delivered().len() as u64;
            arrived += if step < 2000 { 0 } else { delivered };
        }
        assert!(is_about(arrived * PACKET_BITS, 2_000_000), "{at_caller}: {}", arrived * PACKET_BITS);
    }
}

#[test]
fn an_uplink_is_kept_below_its_rate_with_all_that_is_around_a_packet() {
    let mut world = world(cloud_settings(), |settings| settings.limits.uplink = Some(5_000_000));
    rate_up(&mut world, &["north"]);
    world.seen.clear();
    rate_up(&mut world, &["north"]);
    // Two seconds; what a datagram has outside: UDP, IPv4 and Ethernet.
    let bits: u64 = world.seen.iter().map(|datagram| (datagram.len() as u64 + 8 + 20 + 14) * 8 / 2).sum();
    assert!((4_600_000..5_000_000).contains(&bits), "{bits}");
}

#[test]
fn what_a_limit_refuses_is_denied_by_its_name_and_what_it_observes_passes_and_is_told() {
    for mode in [Mode::Observe, Mode::Enforce] {
        let mut cloud = cloud_settings();
        let per_caller = Bounds { flows: Some(1), ..Bounds::default() };
        cloud.exposures[0].limits = Limits { per_caller, mode, ..Limits::default() };
        let mut world = world(cloud, |_| {});
        let web = world.gateway("north").presence("web.cloud");
        for port in [5000, 5001] {
            world.send("north", &udp((plc().0, port), (web, 53), b"query"));
        }
        ask(&mut world, "south", b"query");
        world.run(Duration::from_millis(100));
        let cloud = world.gateway("cloud");
        let (arrived, refused) = (cloud.take_delivered().len(), cloud.drops(Reason::FlowLimit));
        let told = cloud.events.iter().find_map(|event| match (mode, event) {
            (Mode::Observe, Event::Observed(denial)) | (Mode::Enforce, Event::Denied(denial)) => Some(denial.clone()),
            _ => None,
        });
        let told = told.expect("told");
        assert_eq!((told.reason, told.limit.as_deref()), (Reason::FlowLimit, Some("service:web per caller")));
        assert_eq!((arrived, refused), if mode == Mode::Observe { (3, 0) } else { (2, 1) });
    }
}

#[test]
fn limits_come_and_go_with_flows_open_and_what_waited_goes_on() {
    let mut world = world(cloud_settings(), |_| {});
    let free = rate_up(&mut world, &["north"]);
    assert!(is_about(free, 2000 * PACKET_BITS), "{free}");
    let mut limited = cloud_settings();
    limited.exposures[0].limits = bits(1_000_000);
    for (settings, expected) in [(limited, 1_000_000), (cloud_settings(), 2000 * PACKET_BITS)] {
        let now = world.now;
        world.gateway("cloud").node.configure(settings, now).expect("settings");
        let rate = rate_up(&mut world, &["north"]);
        assert!(is_about(rate, expected), "{rate} of {expected}");
    }
    assert_eq!(world.gateway("cloud").node.flow_table().opened_total, 1);
}
