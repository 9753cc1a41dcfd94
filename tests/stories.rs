//! Two gateways on a simulated wire: the stories of the main job, in fake time.
//!
//!     plc 10.0.0.2 --[factory 10.0.0.0/24, pool 10.0.1.0/24]== wire ==[cloud 10.0.0.0/24, pool 10.0.9.0/24]-- web 10.0.0.5

mod sim;

use sim::*;
use std::net::IpAddr;
use std::time::Duration;
use vp::node::{Event, FlowEnd, Reason, Resting};
use vp::packet::Offload;

const CLOUD: &str = "192.0.2.1:51820";
const FACTORY: &str = "192.0.2.2:40000";

fn cloud_settings() -> vp::node::Settings {
    let mut cloud = settings("cloud", &["10.0.9.0/24", "fd00:9::/64"]);
    cloud.peers = vec![peer("factory", 2, None)];
    cloud.exposures = vec![
        exposure("web", "10.0.0.5,fd00::5", &["tcp/80", "udp/53", "icmp"], &["site:factory"]),
        exposure("rack", "10.0.0.16/28", &["tcp/22"], &["site:factory"]),
        exposure("secret", "10.0.0.6", &["tcp/80"], &["client:plc.factory"]),
    ];
    cloud
}

fn factory_settings() -> vp::node::Settings {
    let mut factory = settings("factory", &["10.0.1.0/24", "fd00:1::/64"]);
    factory.peers = vec![peer("cloud", 1, Some(CLOUD))];
    factory.clients = vec![client("plc", "10.0.0.2")];
    factory.mappings = vec![mapping("*.cloud")];
    factory
}

/// Both are up and know each other's offers.
fn world() -> World {
    let mut world = World::new();
    world.start("cloud", CLOUD, 1, cloud_settings());
    world.start("factory", FACTORY, 2, factory_settings());
    world.run(Duration::from_secs(1));
    world.exchange_offers();
    world
}

fn plc() -> IpAddr {
    address("10.0.0.2")
}

/// Opens a connection from the plc to the web service; returns both gateways' views of the caller's port 4000.
fn connect(world: &mut World) -> (IpAddr, IpAddr) {
    let web = world.gateway("factory").presence("web.cloud");
    world.send("factory", &tcp((plc(), 4000), (web, 80), "S", 100, 0, b""));
    world.run(Duration::from_millis(100));
    let syn = read(&world.gateway("cloud").take_one());
    world.send("cloud", &tcp((address("10.0.0.5"), 80), syn.from, "SA", 500, 101, b""));
    world.run(Duration::from_millis(100));
    let syn_ack = read(&world.gateway("factory").take_one());
    assert_eq!((syn_ack.from, syn_ack.to), ((web, 80), (plc(), 4000)));
    world.send("factory", &tcp((plc(), 4000), (web, 80), "A", 101, 501, b""));
    world.run(Duration::from_millis(100));
    world.gateway("cloud").take_one();
    (web, syn.from.0)
}

#[test]
fn a_request_arrives_from_a_presence_and_its_answer_comes_back_from_one() {
    let mut world = world();
    let web = world.gateway("factory").presence("web.cloud");
    world.send("factory", &tcp((plc(), 4000), (web, 80), "S", 100, 0, b""));
    world.run(Duration::from_millis(100));
    let syn = read(&world.gateway("cloud").take_one());
    assert_eq!(syn.to, (address("10.0.0.5"), 80));
    assert!(syn.from.0.to_string().starts_with("10.0.9."), "{:?}", syn.from);
    assert_eq!((syn.from.1, syn.sequence, syn.flags.as_str(), syn.hops), (4000, 100, "S", 62));
    assert_eq!(syn.mss, Some(1380));
}

#[test]
fn what_rests_gets_no_new_flows_and_keeps_the_old_and_the_other_site_refuses_early() {
    let mut world = world();
    let (web, caller) = connect(&mut world);
    let rest = |world: &mut World, resting: Resting| {
        world.gateway("cloud").node.rest([(name("web"), resting)].into());
        world.exchange_offers();
        world.run(Duration::from_millis(100));
    };
    // Its other target is of the other family, so nobody is left for these flows.
    rest(&mut world, Resting { targets: [address("10.0.0.5")].into(), ..Resting::default() });
    world.send("factory", &tcp((plc(), 4001), (web, 80), "S", 100, 0, b""));
    world.run(Duration::from_millis(100));
    assert!(world.gateway("cloud").take_delivered().is_empty());
    assert_eq!(
        (world.gateway("factory").drops(Reason::ServiceDown), world.gateway("cloud").drops(Reason::ServiceDown)),
        (0, 1)
    );

    rest(&mut world, Resting { whole: true, ..Resting::default() });
    world.send("factory", &tcp((plc(), 4002), (web, 80), "S", 100, 0, b""));
    world.send("factory", &tcp((plc(), 4000), (web, 80), "PA", 101, 501, b"GET /"));
    world.run(Duration::from_millis(100));
    assert_eq!(world.gateway("factory").drops(Reason::ServiceDown), 1);
    assert_eq!(read(&world.gateway("factory").take_one()).flags, "AR");
    let request = read(&world.gateway("cloud").take_one());
    assert_eq!((request.payload.as_slice(), request.from.0), (&b"GET /"[..], caller));

    rest(&mut world, Resting::default());
    world.send("factory", &tcp((plc(), 4003), (web, 80), "S", 100, 0, b""));
    world.run(Duration::from_millis(100));
    assert_eq!(read(&world.gateway("cloud").take_one()).flags, "S");
}

#[test]
fn without_its_audit_log_a_gateway_that_requires_it_opens_no_flow_and_carries_those_that_are_open() {
    let mut world = world();
    let (web, caller) = connect(&mut world);
    let now = |world: &mut World, failed| world.gateway("cloud").node.require_audit(failed);
    now(&mut world, true);
    world.send("factory", &tcp((plc(), 4001), (web, 80), "S", 100, 0, b""));
    world.send("factory", &tcp((plc(), 4000), (web, 80), "PA", 101, 501, b"GET /"));
    world.run(Duration::from_millis(100));
    assert_eq!(read(&world.gateway("cloud").take_one()).payload, b"GET /");
    assert_eq!(world.gateway("cloud").drops(Reason::AuditFailed), 1);
    // Another connection of the same ends is a new flow too.
    for (flags, sequence) in [("R", 106), ("S", 900)] {
        world.send("factory", &tcp((plc(), 4000), (web, 80), flags, sequence, 0, b""));
        world.run(Duration::from_millis(100));
    }
    assert_eq!(read(&world.gateway("cloud").take_one()).flags, "R");
    assert_eq!(world.gateway("cloud").drops(Reason::AuditFailed), 2);
    now(&mut world, false);
    world.send("factory", &tcp((plc(), 4000), (web, 80), "S", 900, 0, b""));
    world.run(Duration::from_millis(100));
    let syn = read(&world.gateway("cloud").take_one());
    assert_eq!((syn.from, syn.sequence), ((caller, 4000), 900));
    // Nor does one that there is no room to tell of.
    world.gateway("cloud").node.set_events_crowded(true);
    world.send("factory", &tcp((plc(), 4002), (web, 80), "S", 100, 0, b""));
    world.run(Duration::from_millis(100));
    assert_eq!(world.gateway("cloud").drops(Reason::AuditFailed), 3);
}

#[test]
fn payload_and_sequence_numbers_pass_untouched_both_ways() {
    let mut world = world();
    let (web, caller) = connect(&mut world);
    world.send("factory", &tcp((plc(), 4000), (web, 80), "PA", 101, 501, b"GET /"));
    world.run(Duration::from_millis(100));
    let request = read(&world.gateway("cloud").take_one());
    assert_eq!((request.sequence, request.acknowledgment, request.payload.as_slice()), (101, 501, &b"GET /"[..]));
    world.send("cloud", &tcp((address("10.0.0.5"), 80), (caller, 4000), "PA", 501, 106, b"200 OK"));
    world.run(Duration::from_millis(100));
    let answer = read(&world.gateway("factory").take_one());
    assert_eq!((answer.from, answer.to), ((web, 80), (plc(), 4000)));
    assert_eq!((answer.sequence, answer.payload.as_slice()), (501, &b"200 OK"[..]));
}

#[test]
fn a_super_packet_is_carried_in_segments_and_joined_again() {
    let mut world = world();
    let (web, _) = connect(&mut world);
    let payload: Vec<u8> = (0..20_000u32).map(|i| i.to_le_bytes()[0]).collect();
    let packet = tcp((plc(), 4000), (web, 80), "PA", 101, 501, &payload);
    let offload = Offload { checksum_partial: false, segment_bytes: std::num::NonZeroU16::new(1300) };
    world.send_offloaded("factory", &packet, offload);
    world.run(Duration::from_millis(100));
    let delivered = world.gateway("cloud").take_delivered();
    let carried: usize = delivered.iter().map(|packet| packet.len() - 40).sum();
    assert_eq!(carried, payload.len());
}

#[test]
fn ipv6_and_udp_and_ping_go_the_same_way() {
    let mut world = world();
    let presences = world.gateway("factory").node.presences();
    let web6 = presences.iter().find(|p| p.service == "web.cloud" && p.address.contains(':')).expect("IPv6 presence");
    let web6 = address(&web6.address);
    let host = address("fd00::2");
    world.send("factory", &udp((host, 5000), (web6, 53), b"query"));
    world.run(Duration::from_millis(100));
    let query = read(&world.gateway("cloud").take_one());
    assert_eq!((query.to, query.payload.as_slice()), ((address("fd00::5"), 53), &b"query"[..]));
    world.send("cloud", &udp(query.to, query.from, b"answer"));
    world.run(Duration::from_millis(100));
    let answer = read(&world.gateway("factory").take_one());
    assert_eq!((answer.from, answer.to, answer.payload.as_slice()), ((web6, 53), (host, 5000), &b"answer"[..]));
    for (from, to) in [(host, web6), (plc(), world.gateway("factory").presence("web.cloud"))] {
        world.send("factory", &ping(from, to, 77, 64));
        world.run(Duration::from_millis(100));
        let request = read(&world.gateway("cloud").take_one());
        assert!(request.flags.contains("EchoRequest"), "{request:?}");
    }
}

#[test]
fn what_is_not_allowed_is_refused_at_the_callers_gateway_at_once() {
    let mut world = world();
    let web = world.gateway("factory").presence("web.cloud");
    let before = world.seen.len();
    world.send("factory", &tcp((plc(), 4000), (web, 81), "S", 100, 0, b""));
    let reset = read(&world.gateway("factory").take_one());
    assert_eq!((reset.flags.as_str(), reset.from, reset.to), ("AR", (web, 81), (plc(), 4000)));
    assert_eq!(reset.acknowledgment, 101);
    assert_eq!(world.gateway("factory").drops(Reason::PortNotExposed), 1);
    assert_eq!(world.seen.len(), before, "nothing of it is on the wire");
}

#[test]
fn a_named_client_is_told_apart_from_its_neighbour() {
    let mut world = world();
    let secret = world.gateway("factory").presence("secret.cloud");
    world.send("factory", &tcp((plc(), 4000), (secret, 80), "S", 100, 0, b""));
    world.send("factory", &tcp((address("10.0.0.3"), 4000), (secret, 80), "S", 100, 0, b""));
    world.run(Duration::from_millis(100));
    assert_eq!(read(&world.gateway("cloud").take_one()).to, (address("10.0.0.6"), 80));
    assert_eq!(world.gateway("cloud").drops(Reason::UnknownCaller), 1);
}

#[test]
fn who_becomes_a_guest_keeps_its_tunnel_and_nothing_else() {
    let mut world = world();
    let (web, caller) = connect(&mut world);
    let (mut cloud, now) = (cloud_settings(), world.now);
    cloud.peers[0].guest = Some(vp::node::Guest::Site);
    world.gateway("cloud").node.configure(cloud, now).expect("settings");
    world.send("factory", &tcp((plc(), 4000), (web, 80), "PA", 101, 501, b"more"));
    world.send("factory", &tcp((plc(), 4001), (web, 80), "S", 100, 0, b""));
    world.send("cloud", &tcp((address("10.0.0.5"), 80), (caller, 4000), "PA", 501, 101, b"more"));
    world.run(Duration::from_secs(1));
    assert_eq!(world.gateway("cloud").take_delivered(), Vec::<Vec<u8>>::new());
    assert!(world.gateway("cloud").drops(Reason::NotAllowed) >= 1, "{:?}", world.gateway("cloud").all_drops());
    let gateway = world.gateway("cloud");
    let peer = gateway.peers[&name("factory")];
    assert_eq!(gateway.node.offer(peer), vp::catalogue::Offer::default());
    assert_eq!(gateway.node.peer_by_site(&name("factory")), None);
    world.exchange_offers();
    let status = world.gateway("cloud").node.peers(now).remove(0).1;
    assert_eq!((status.state.as_str(), status.guest, status.offered_services), ("up", true, 0));
}

#[test]
fn a_prefix_service_is_one_to_one() {
    let mut world = world();
    let presences = world.gateway("factory").node.presences();
    let rack = presences.iter().find(|p| p.service == "rack.cloud").expect("mapped");
    let block: ipnet::IpNet = rack.address.parse().expect("a prefix");
    assert_eq!(block.prefix_len(), 28);
    let fifth = block.hosts().nth(4).expect("address");
    world.send("factory", &tcp((plc(), 4000), (fifth, 22), "S", 100, 0, b""));
    world.run(Duration::from_millis(100));
    assert_eq!(read(&world.gateway("cloud").take_one()).to, (address("10.0.0.21"), 22));
}

#[test]
fn a_server_cannot_call_a_caller_presence() {
    let mut world = world();
    let (_, caller) = connect(&mut world);
    world.send("cloud", &tcp((address("10.0.0.5"), 5555), (caller, 22), "S", 1, 0, b""));
    world.run(Duration::from_millis(100));
    assert!(world.gateway("factory").take_delivered().is_empty());
    assert_eq!(world.gateway("cloud").drops(Reason::Unsolicited), 1);
}

#[test]
fn a_permission_taken_away_ends_its_flows_and_a_kept_one_keeps_them() {
    let mut world = world();
    let (_, caller) = connect(&mut world);
    let now = world.now;
    let mut changed = cloud_settings();
    changed.exposures.retain(|e| e.name.as_str() != "rack");
    world.gateway("cloud").node.configure(changed.clone(), now).expect("settings");
    world.run(Duration::from_secs(2));
    world.send("cloud", &tcp((address("10.0.0.5"), 80), (caller, 4000), "A", 501, 101, b"more"));
    world.run(Duration::from_millis(100));
    assert_eq!(read(&world.gateway("factory").take_one()).payload, b"more");
    changed.exposures[0].allow = vec!["site:other".parse().expect("selector")];
    let now = world.now;
    world.gateway("cloud").node.configure(changed, now).expect("settings");
    world.run(Duration::from_secs(2));
    let ended = |e: &Event| matches!(e, Event::FlowClosed { end: FlowEnd::Revoked, .. });
    world.settle("cloud");
    assert!(world.gateway("cloud").events.iter().any(ended));
    world.send("cloud", &tcp((address("10.0.0.5"), 80), (caller, 4000), "A", 505, 101, b"more"));
    world.run(Duration::from_millis(100));
    assert!(world.gateway("factory").take_delivered().is_empty());
}

#[test]
fn a_peer_that_nothing_vouches_for_any_more_is_gone_at_once_with_its_flows_and_may_come_again() {
    let mut world = world();
    let (_, caller) = connect(&mut world);
    let now = world.now;
    let cloud = world.gateway("cloud");
    let settings = cloud.node.settings().clone();
    let key = settings.peers[0].public_key;
    cloud.node.revoke(&key, now);
    assert!(cloud.node.peers(now).is_empty() && cloud.node.settings().peers.is_empty());
    world.settle("cloud");
    let ended = |e: &Event| matches!(e, Event::FlowClosed { end: FlowEnd::Revoked, .. });
    assert!(world.gateway("cloud").events.iter().any(ended));
    world.send("cloud", &tcp((address("10.0.0.5"), 80), (caller, 4000), "A", 501, 101, b"more"));
    world.run(Duration::from_secs(2));
    assert!(world.gateway("factory").take_delivered().is_empty());
    let now = world.now;
    world.gateway("cloud").node.configure(settings, now).expect("settings");
    assert_eq!(world.gateway("cloud").node.peers(now).len(), 1);
}

#[test]
fn a_tcp_flow_survives_two_hours_and_three_minutes_of_silence() {
    let mut world = world();
    let (web, caller) = connect(&mut world);
    world.run(Duration::from_secs(2 * 3600 + 180));
    world.send("cloud", &tcp((address("10.0.0.5"), 80), (caller, 4000), "PA", 501, 101, b"still here"));
    world.run(Duration::from_secs(10));
    let seen = read(&world.gateway("factory").take_one());
    assert_eq!((seen.from, seen.payload.as_slice()), ((web, 80), &b"still here"[..]));
}

#[test]
fn a_download_goes_on_after_either_gateway_restarts() {
    for restarted in ["factory", "cloud"] {
        let mut world = world();
        let (web, caller) = connect(&mut world);
        match restarted {
            "factory" => world.start("factory", FACTORY, 2, factory_settings()),
            _ => {
                // The shell remembers where a peer without a configured endpoint was last.
                let mut cloud = cloud_settings();
                cloud.peers[0].endpoint = Some(FACTORY.parse().expect("endpoint"));
                world.start("cloud", CLOUD, 1, cloud);
            }
        }
        world.run(Duration::from_secs(20));
        world.exchange_offers();
        // Only the service speaks: the caller acknowledged everything and waits.
        for _ in 0..3 {
            world.send("cloud", &tcp((address("10.0.0.5"), 80), (caller, 4000), "A", 501, 101, b"the rest"));
            world.run(Duration::from_secs(20));
        }
        let delivered = world.gateway("factory").take_delivered();
        let last = delivered.last().unwrap_or_else(|| panic!("after {restarted} restarted"));
        let seen = read(last);
        assert_eq!((seen.from, seen.to), ((web, 80), (plc(), 4000)));
    }
}

#[test]
fn port_unreachable_reaches_the_caller_and_shows_no_foreign_address() {
    let mut world = world();
    let web = world.gateway("factory").presence("web.cloud");
    world.send("factory", &udp((plc(), 5000), (web, 53), b"query"));
    world.run(Duration::from_millis(100));
    let arrived = world.gateway("cloud").take_one();
    let mut error = Vec::new();
    let seen = read(&arrived);
    ip(address("10.0.0.5"), seen.from.0, 64)
        .icmpv4(etherparse::Icmpv4Type::DestinationUnreachable(etherparse::icmpv4::DestUnreachableHeader::Port))
        .write(&mut error, &arrived[..28])
        .expect("packet");
    world.send("cloud", &error);
    world.run(Duration::from_millis(100));
    let told = world.gateway("factory").take_one();
    let told_seen = read(&told);
    assert_eq!((told_seen.from.0, told_seen.to.0), (web, plc()));
    let quoted = etherparse::Ipv4HeaderSlice::from_slice(&told_seen.payload).expect("quoted").to_header();
    assert_eq!((IpAddr::from(quoted.source), IpAddr::from(quoted.destination)), (plc(), web));
    assert_eq!(quoted.calc_header_checksum(), quoted.header_checksum);
    // The error itself is right; what it quotes is no packet that went by.
    let mut strange = error.clone();
    strange[28 + 8] ^= 1;
    let checksum = u16::from_be_bytes([strange[22], strange[23]]);
    strange[22..24].copy_from_slice(&[0; 2]);
    let words = strange[20..].chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)));
    let sum = words.fold(0, |sum, word| (sum + word) % 0xffff);
    strange[22..24].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    assert_ne!(checksum, !(sum as u16));
    world.send("cloud", &strange);
    strange[23] ^= 1;
    world.send("cloud", &strange);
    let cloud = world.gateway("cloud");
    assert_eq!((cloud.drops(Reason::UnrelatedIcmp), cloud.drops(Reason::Malformed)), (1, 1));
}

#[test]
fn an_expired_hop_limit_is_answered_by_each_gateway_in_the_callers_view() {
    let mut world = world();
    let web = world.gateway("factory").presence("web.cloud");
    let gateway = world.gateway("factory").node.gateway_addresses()[0];
    for (hops, answers) in [(1, gateway), (2, web)] {
        world.send("factory", &ping(plc(), web, 9, hops));
        world.run(Duration::from_millis(100));
        let answer = read(&world.gateway("factory").take_one());
        assert!(answer.flags.contains("TimeExceeded"), "{answer:?}");
        assert_eq!((answer.from.0, answer.to.0), (answers, plc()));
    }
}

#[test]
fn everything_sent_arrives_at_most_once_through_a_bad_network() {
    let mut world = world();
    let web = world.gateway("factory").presence("web.cloud");
    world.weather.loss = 50;
    world.weather.duplicates = 200;
    world.weather.jitter = Duration::from_millis(30);
    for number in 0..1000u32 {
        world.send("factory", &udp((plc(), 5000), (web, 53), &number.to_be_bytes()));
        world.run(Duration::from_micros(200));
    }
    world.run(Duration::from_secs(1));
    let delivered = world.gateway("cloud").take_delivered();
    let mut numbers: Vec<Vec<u8>> = delivered.iter().map(|packet| read(packet).payload).collect();
    let count = numbers.len();
    numbers.sort();
    numbers.dedup();
    assert_eq!(numbers.len(), count, "each at most once");
    assert!((880..=1000).contains(&count), "{count}");
}

#[test]
fn two_sites_with_the_same_addresses_stay_apart() {
    let mut world = World::new();
    let mut cloud = cloud_settings();
    cloud.peers.push(peer("plant", 3, None));
    cloud.exposures[0].allow.push("site:plant".parse().expect("selector"));
    world.start("cloud", CLOUD, 1, cloud);
    world.start("factory", FACTORY, 2, factory_settings());
    let mut plant = factory_settings();
    plant.site = name("plant");
    world.start("plant", "192.0.2.3:40000", 3, plant);
    world.run(Duration::from_secs(1));
    world.exchange_offers();
    let mut callers = Vec::new();
    for site in ["factory", "plant"] {
        let web = world.gateway(site).presence("web.cloud");
        world.send(site, &tcp((plc(), 4000), (web, 80), "S", 100, 0, b""));
        world.run(Duration::from_millis(100));
        callers.push((site, read(&world.gateway("cloud").take_one()).from));
    }
    assert_ne!(callers[0].1, callers[1].1);
    for (site, caller) in callers {
        world.send("cloud", &tcp((address("10.0.0.5"), 80), caller, "SA", 500, 101, site.as_bytes()));
        world.run(Duration::from_millis(100));
        assert_eq!(read(&world.gateway(site).take_one()).payload, site.as_bytes());
    }
}

/// An IPv4 datagram in fragments of `size` payload bytes.
fn fragments(packet: &[u8], size: usize) -> Vec<Vec<u8>> {
    let payload = &packet[20..];
    let count = payload.len().div_ceil(size);
    let fragment = |(number, part): (usize, &[u8])| {
        let mut header = etherparse::Ipv4Header::from_slice(packet).expect("header").0;
        header.dont_fragment = false;
        header.more_fragments = number + 1 < count;
        header.fragment_offset = etherparse::IpFragOffset::try_new((number * size / 8) as u16).expect("offset");
        header.set_payload_len(part.len()).expect("length");
        header.header_checksum = header.calc_header_checksum();
        let mut bytes = Vec::new();
        header.write(&mut bytes).expect("header");
        bytes.extend(part);
        bytes
    };
    payload.chunks(size).enumerate().map(fragment).collect()
}

#[test]
fn fragments_arrive_in_any_order_also_the_last_first() {
    let mut world = world();
    let web = world.gateway("factory").presence("web.cloud");
    let payload: Vec<u8> = (0..8000u32).map(|i| (i % 251) as u8).collect();
    let whole = udp((plc(), 5000), (web, 53), &payload);
    for order in 0..3 {
        let mut parts = fragments(&whole, 1200);
        match order {
            0 => {}
            1 => parts.reverse(),
            _ => parts.swap(0, 3),
        }
        parts.iter().for_each(|part| world.send("factory", part));
        world.run(Duration::from_millis(100));
        let mut delivered = world.gateway("cloud").take_delivered();
        assert_eq!(delivered.len(), parts.len(), "{:?}", world.gateway("cloud").all_drops());
        let offset = |packet: &Vec<u8>| u16::from_be_bytes([packet[6], packet[7]]) & 0x1fff;
        delivered.sort_by_key(offset);
        let joined: Vec<u8> = delivered.iter().flat_map(|packet| &packet[20..]).copied().collect();
        assert_eq!(&joined[8..], payload);
        let header = etherparse::UdpHeader::from_slice(&joined).expect("UDP").0;
        let source: std::net::Ipv4Addr =
            std::net::Ipv4Addr::new(delivered[0][12], delivered[0][13], delivered[0][14], delivered[0][15]);
        let right = header.calc_checksum_ipv4_raw(source.octets(), [10, 0, 0, 5], &payload).expect("length");
        assert_eq!(right, header.checksum);
    }
}

#[test]
fn the_tails_of_a_first_fragment_over_its_rate_are_dropped_with_it() {
    for [tails_first, from_cloud] in [[false, false], [true, false], [false, true], [true, true]] {
        let mut world = world();
        let mut cloud = cloud_settings();
        // A burst of 65,535 bytes, and 1,000 bytes a second.
        cloud.exposures[0].limits = vp::addr::Limits { bits_per_second: Some(8000), ..Default::default() };
        let now = world.now;
        world.gateway("cloud").node.configure(cloud, now).expect("settings");
        let web = world.gateway("factory").presence("web.cloud");
        world.send("factory", &udp((plc(), 5000), (web, 53), b"query"));
        world.run(Duration::from_millis(20));
        let caller = read(&world.gateway("cloud").take_one()).from;
        let (site, from, to) = match from_cloud {
            true => ("cloud", (address("10.0.0.5"), 53), caller),
            false => ("factory", (plc(), 5000), (web, 53)),
        };
        for _ in 0..46 {
            world.send(site, &udp(from, to, &[7; 1380]));
        }
        world.run(Duration::from_millis(20));
        let before = world.gateway("cloud").drops(Reason::RateLimit);
        world.gateway("cloud").take_delivered();
        world.gateway("factory").take_delivered();
        let mut parts = fragments(&udp(from, to, &[7; 1500]), 1200);
        if tails_first {
            parts.reverse();
        }
        // The second one is so small that there is room for it.
        for part in parts {
            world.send(site, &part);
            world.run(Duration::from_millis(20));
        }
        assert!(
            world.gateway("factory").take_delivered().is_empty() && world.gateway("cloud").take_delivered().is_empty()
        );
        assert_eq!(world.gateway("cloud").drops(Reason::RateLimit) - before, 2);
        assert_eq!(world.gateway("cloud").drops(Reason::Fragment), 0);
    }
}

#[test]
fn of_a_first_fragment_that_expires_nothing_is_delivered() {
    // Where it expires, and what counts there: the caller's gateway holds tails that come first, and sends them after it.
    let cases = [(1, false, "factory", (1, 2)), (1, true, "factory", (3, 0)), (2, false, "cloud", (1, 2))];
    for (hops, tails_first, at, counted) in cases {
        let mut world = world();
        let web = world.gateway("factory").presence("web.cloud");
        let whole = udp((plc(), 5000), (web, 53), &[7; 3000]);
        let mut short = whole.clone();
        short[8] = hops;
        let mut parts = fragments(&whole, 1200);
        parts[0] = fragments(&short, 1200).remove(0);
        if tails_first {
            parts.rotate_left(1);
        }
        for part in parts {
            world.send("factory", &part);
            world.run(Duration::from_millis(20));
        }
        assert!(world.gateway("cloud").take_delivered().is_empty());
        let gateway = world.gateway(at);
        assert_eq!((gateway.drops(Reason::TtlExpired), gateway.drops(Reason::Fragment)), counted);
    }
}

#[test]
fn a_packet_too_large_for_the_tunnel_is_answered_or_fragmented() {
    let mut world = world();
    let web = world.gateway("factory").presence("web.cloud");
    let mut packet = udp((plc(), 5000), (web, 53), &[7; 1450]);
    world.send("factory", &packet);
    let answer = world.gateway("factory").take_one();
    assert_eq!((answer[20], answer[21], &answer[26..28]), (3, 4, &INNER_MTU.to_be_bytes()[..]));
    packet = fragments(&packet, 8000).remove(0);
    world.send("factory", &packet);
    world.run(Duration::from_millis(100));
    assert_eq!(world.gateway("cloud").take_delivered().len(), 2);
}

#[test]
fn a_changed_remap_leads_open_flows_to_the_new_port() {
    let mut world = world();
    let mut cloud = cloud_settings();
    cloud.exposures[0].ports.push("udp/54".parse().expect("ports"));
    let now = world.now;
    world.gateway("cloud").node.configure(cloud, now).expect("settings");
    world.exchange_offers();
    for (remap, port) in [("udp/5353=udp/53", 53), ("udp/5353=udp/54", 54)] {
        let mut factory = factory_settings();
        factory.mappings = vec![mapping("web.cloud")];
        factory.mappings[0].ports = vec![remap.parse().expect("remap")];
        let now = world.now;
        world.gateway("factory").node.configure(factory, now).expect("settings");
        let web = world.gateway("factory").presence("web.cloud");
        world.send("factory", &udp((plc(), 5000), (web, 5353), b"query"));
        world.run(Duration::from_millis(100));
        assert_eq!(read(&world.gateway("cloud").take_one()).to, (address("10.0.0.5"), port));
    }
}

#[test]
fn a_flow_that_stays_allowed_is_recorded_with_the_rule_that_allows_it_now() {
    let mut world = world();
    let (web, _) = connect(&mut world);
    let mut cloud = cloud_settings();
    cloud.exposures[0].allow.insert(0, "site:plant".parse().expect("selector"));
    let now = world.now;
    world.gateway("cloud").node.configure(cloud, now).expect("settings");
    world.run(Duration::from_secs(2));
    world.send("factory", &tcp((plc(), 4000), (web, 80), "R", 101, 0, b""));
    world.run(Duration::from_millis(100));
    world.settle("cloud");
    let rule = world.gateway("cloud").events.iter().find_map(|event| match event {
        Event::FlowClosed { flow, .. } => Some(flow.rule.clone()),
        _ => None,
    });
    assert_eq!(rule.as_deref(), Some("site:factory"));
}

#[test]
fn a_reload_does_not_fill_the_rates_of_what_it_leaves_alone() {
    let mut world = world();
    let mut cloud = cloud_settings();
    cloud.exposures[0].limits = vp::addr::Limits { new_flows_per_second: Some(2), ..Default::default() };
    let passed = |world: &mut World, cloud: &vp::node::Settings, port: u16| {
        let now = world.now;
        world.gateway("cloud").node.configure(cloud.clone(), now).expect("settings");
        let web = world.gateway("factory").presence("web.cloud");
        for port in port..port + 4 {
            world.send("factory", &udp((plc(), port), (web, 53), b"query"));
        }
        world.run(Duration::from_millis(20));
        world.gateway("cloud").take_delivered().len()
    };
    assert_eq!(passed(&mut world, &cloud, 5000), 2);
    cloud.exposures.pop();
    assert_eq!(passed(&mut world, &cloud, 5010), 0);
    // Another limit is another bucket.
    cloud.exposures[0].limits.new_flows_per_second = Some(3);
    assert_eq!(passed(&mut world, &cloud, 5020), 3);
}

#[test]
fn an_offer_that_does_not_fit_a_fixed_address_neither_takes_others_nor_blocks_a_reload() {
    let mut world = World::new();
    world.start("cloud", CLOUD, 1, cloud_settings());
    let mut factory = factory_settings();
    let fixed = |service: &str, at: &str| vp::node::Mapping { address: Some(address(at)), ..mapping(service) };
    // Inside a tunnel `rack` is 16 addresses, and so it is here.
    factory.mappings = vec![fixed("secret.cloud", "10.0.1.17"), fixed("rack.cloud", "10.0.1.24")];
    world.start("factory", FACTORY, 2, factory.clone());
    world.run(Duration::from_secs(1));
    world.exchange_offers();
    let now = world.now;
    let gateway = world.gateway("factory");
    assert_eq!(gateway.presence("secret.cloud"), address("10.0.1.17"));
    let refused: Vec<_> = gateway.node.refused_mappings().iter().map(|(service, _)| service.to_string()).collect();
    assert_eq!(refused, ["rack.cloud"]);
    factory.clients.push(client("hmi", "10.0.0.3"));
    gateway.node.configure(factory.clone(), now).expect("settings");
    // What is wrong with the change itself is refused, and costs nobody his session.
    factory.mappings.push(fixed("web.cloud", "10.0.1.1"));
    factory.peers.clear();
    let error = gateway.node.configure(factory, now).expect_err("taken").to_string();
    assert_eq!(error, "web.cloud at 10.0.1.1: 10.0.1.1/32 is held by the gateway");
    assert_eq!(gateway.node.peers(now).first().map(|(_, peer)| peer.state.clone()).as_deref(), Some("up"));
}

#[test]
fn a_refused_change_of_everything_ends_no_flow_and_moves_no_address() {
    let mut world = world();
    let (web, caller) = connect(&mut world);
    let now = world.now;
    let fixed = |service: &str, at: &str| vp::node::Mapping { address: Some(address(at)), ..mapping(service) };
    let weak = vp::node::PeerSettings { public_key: [0; 32], ..peer("other", 9, None) };
    for (site, old) in [("cloud", cloud_settings()), ("factory", factory_settings())] {
        let gateway = world.gateway(site);
        let addresses = |gateway: &Gateway| (gateway.node.presence_blocks(), gateway.node.presences());
        let before = addresses(gateway);
        gateway.events.clear();
        // Another pool, no service, no peer and no mapping of before, each of which would end the flow.
        let nothing = vp::node::Settings { flows_max: old.flows_max, ..settings(site, &["10.7.0.0/24"]) };
        let clash = ["one.other", "another.other"].map(|service| fixed(service, "10.7.0.9")).to_vec();
        let refused = [
            vp::node::Settings { mappings: clash, ..nothing.clone() },
            vp::node::Settings { peers: vec![weak.clone()], ..nothing },
        ];
        for settings in refused {
            gateway.node.configure(settings, now).expect_err("refused");
        }
        assert_eq!(addresses(gateway), before);
        assert_eq!(gateway.node.settings(), &old);
        assert!(gateway.node.poll_event().is_none());
        // What was in force is judged again, and confirmed.
        gateway.node.configure(old, now).expect("settings");
    }
    world.run(Duration::from_secs(2));
    world.send("factory", &tcp((plc(), 4000), (web, 80), "PA", 101, 501, b"request"));
    world.run(Duration::from_millis(100));
    assert_eq!(read(&world.gateway("cloud").take_one()).from, (caller, 4000));
    world.send("cloud", &tcp((address("10.0.0.5"), 80), (caller, 4000), "PA", 501, 108, b"answer"));
    world.run(Duration::from_millis(100));
    assert_eq!(read(&world.gateway("factory").take_one()).payload, b"answer");
    for site in ["cloud", "factory"] {
        let gateway = world.gateway(site);
        assert!(!gateway.events.iter().any(|event| matches!(event, Event::FlowClosed { .. } | Event::FlowOpened(_))));
    }
}

#[test]
fn a_pool_that_was_full_and_is_made_larger_has_room() {
    let mut world = World::new();
    let mut small = settings("factory", &["10.0.1.0/30"]);
    small.mappings = ["a.cloud", "b.cloud"].map(mapping).to_vec();
    world.start("factory", FACTORY, 2, small.clone());
    assert_eq!(world.gateway("factory").node.refused_mappings().len(), 1);
    let large = vp::node::Settings { pool: settings("factory", &["10.0.1.0/29"]).pool, ..small };
    let now = world.now;
    world.gateway("factory").node.configure(large, now).expect("settings");
    assert!(world.gateway("factory").node.refused_mappings().is_empty());
    assert_eq!(world.gateway("factory").presence("b.cloud"), address("10.0.1.3"));
}

#[test]
fn hosts_that_are_long_gone_make_room_for_others() {
    let mut world = world();
    let web = world.gateway("factory").presence("web.cloud");
    let host = |number: u16| address(&format!("10.2.{}.{}", number >> 8, number & 255));
    // The plc has one of the 65,533 wire indices.
    (0..65_533).for_each(|number| world.send("factory", &udp((host(number), 5000), (web, 53), b"query")));
    assert_eq!(world.gateway("factory").drops(Reason::PoolFull), 1);
    world.run(Duration::from_millis(100));
    // At the cloud too: its pool has more addresses, but a site's callers have half of them at most.
    assert!(world.gateway("cloud").drops(Reason::PoolFull) > 0);
    world.run(Duration::from_secs(3 * 3600 + 700));
    world.gateway("cloud").take_delivered();
    world.gateway("factory").take_delivered();
    world.send("factory", &udp((host(65_533), 5000), (web, 53), b"query"));
    world.run(Duration::from_millis(100));
    assert_eq!(world.gateway("cloud").take_delivered().len(), 1);
    assert_eq!(world.gateway("factory").drops(Reason::PoolFull), 1);
}

#[test]
fn the_number_of_a_peer_is_never_anothers() {
    let mut world = world();
    let mut factory = factory_settings();
    let before = world.gateway("factory").peers.values().copied().collect::<Vec<_>>();
    factory.peers = vec![peer("plant", 3, None)];
    let now = world.now;
    world.gateway("factory").node.configure(factory, now).expect("settings");
    let after: Vec<_> = world.gateway("factory").node.peer_settings().map(|(peer, _)| peer).collect();
    assert_eq!((before.len(), after.len()), (1, 1));
    assert_ne!(before, after);
}

#[test]
fn a_peer_does_not_learn_what_services_there_are_for_others() {
    let mut world = world();
    let mut cloud = cloud_settings();
    cloud.exposures.push(exposure("payroll", "10.0.0.7", &["tcp/443"], &["site:plant"]));
    let now = world.now;
    let gateway = world.gateway("cloud");
    gateway.node.configure(cloud, now).expect("settings");
    let factory = gateway.peers.values().next().copied().expect("peer");
    let explain =
        |service: &str| gateway.node.explain_inbound(factory, &name(service), None, (vp::addr::Protocol::Tcp, 80), now);
    let web = explain("web").expect("allowed");
    assert_eq!((web.rule.as_str(), web.limit), ("site:factory", None));
    assert_eq!(explain("secret"), Err(Reason::UnknownCaller));
    assert_eq!((explain("payroll"), explain("nothing")), (Err(Reason::NotExposed), Err(Reason::NotExposed)));
}

#[test]
fn the_names_of_hosts_behind_services_follow_their_targets() {
    let mut world = world();
    let (mut cloud, now) = (cloud_settings(), world.now);
    cloud.clients = vec![client("one", "10.0.0.5"), client("two", "10.0.0.6"), client("third", "10.0.0.18")];
    cloud.clients.push(client("two-six", "fd00::5"));
    let gateway = world.gateway("cloud");
    let factory = gateway.peers.values().next().copied().expect("peer");
    let mut told = |settings: &vp::node::Settings| {
        gateway.node.configure(settings.clone(), now).expect("settings");
        let events = std::iter::from_fn(|| gateway.node.poll_event());
        let is_told = events.into_iter().filter(|event| matches!(event, Event::OfferChanged(_))).count() == 1;
        let offer = gateway.node.offer(factory);
        let of =
            |index| offer.services.iter().find(|service| service.has_index(index)).expect("a service").name.clone();
        let hosts = offer.hosts.iter().map(|host| (of(host.index).to_string(), host.name.to_string(), host.ipv4));
        let mut hosts: Vec<_> = hosts.collect();
        hosts.sort();
        (is_told, hosts)
    };
    let host = |service: &str, host: &str, ipv4| (service.to_owned(), host.to_owned(), ipv4);
    let (third, two) = (host("rack", "third", true), host("secret", "two", true));
    let (one, six) = (host("web", "one", true), host("web", "two-six", false));
    assert_eq!(told(&cloud), (true, vec![third.clone(), two.clone(), one.clone(), six]));
    // Nothing else of it is another.
    cloud.exposures[0].target = vp::node::Target::Backends(vec![address("10.0.0.6"), address("fd00::9")]);
    assert_eq!(told(&cloud), (true, vec![third.clone(), two.clone(), host("web", "two", true)]));
    // A flow may go to either.
    cloud.exposures[0].target = vp::node::Target::Backends(["10.0.0.5", "10.0.0.6", "fd00::9"].map(address).to_vec());
    assert_eq!(told(&cloud), (true, vec![third, two]));
}
