//! A peer that holds a valid key and injects raw packets into its tunnel: nothing of them reaches any host, and the
//! counters by reason rise by exactly the number sent.
//!
//! ```text
//!   mallory (a key, no agent) ------------------ internet -- cloud gateway --+-- web .5
//!   plc .2 -- factory1 gateway -- NAT -----------+                           +-- neighbour .6
//! ```

use anyhow::{Context, Result, ensure};
use netns_tests::craft::{self, ACK, SYN, TCP, UDP};
use netns_tests::hostile::Hostile;
use netns_tests::world::{PORT, expose};
use netns_tests::{
    Agent, Capture, Captured, Family, Key, Lab, Peer, Plan, Setup, TcpServer, World, for_each_plan, wait_until,
};
use serde_json::Value;
use std::net::{IpAddr, SocketAddr};

for_each_plan!(nothing_of_a_hostile_peer_reaches_a_host_and_all_of_it_is_counted);

/// What is sent and the reason that must be counted for each.
type Case = (&'static str, &'static str, Vec<Vec<u8>>);

fn nothing_of_a_hostile_peer_reaches_a_host_and_all_of_it_is_counted(lab: &Lab, plan: &Plan) -> Result<()> {
    let family = plan.family();
    let key = Key::new()?;
    let peers = vec![Peer { site: "mallory".to_owned(), public_key: key.public(), ..Peer::default() }];
    let cloud = expose("web", "{web}", "tcp/80, udp/7", "any", "presence");
    let world = World::new(lab, &Setup { cloud, peers, ..Setup::new(plan) })?;
    let agent = &world.cloud.agent;
    let web = TcpServer::http(&world.cloud.host.namespace, (world.cloud.address(family)?, 80), "web of cloud")?;
    // A flow of another peer's is open all the while.
    let presence = world.factories[0].agent.presence("web.cloud")?;
    let honest = world.factories[0].host.namespace.tcp((presence, 80))?;

    let machine = lab.namespace("mallory")?;
    world.internet.connect(&machine)?;
    let endpoint = SocketAddr::from((world.cloud.site.uplink.v4, PORT));
    let mut mallory = Hostile::connect(&machine, &key, &agent.key.public(), endpoint)?;

    let (caller, service) = wire(family);
    let captures = [
        Capture::start(lab, &world.cloud.site.gateway, "lan0")?,
        Capture::start(lab, &world.cloud.host.namespace, "eth0")?,
        Capture::start(lab, &world.cloud.neighbour.namespace, "eth0")?,
    ];
    let honest_port = honest.local_addr()?.port();
    let cases = cases(plan, &world, honest_port)?;
    for (what, reason, packets) in &cases {
        let before = agent.status()?["drops"].clone();
        packets.iter().try_for_each(|packet| mallory.send(packet))?;
        rises_by(agent, &before, reason, packets.len()).with_context(|| (*what).to_owned())?;
    }

    let before = agent.status()?["drops"].clone();
    let sealed = mallory.seal(&craft::udp((caller, 9), (service, 9), b"once"))?;
    (0..5).try_for_each(|_| mallory.send_raw(&sealed))?;
    let mut expected = before.clone();
    add(&mut expected, "port-not-exposed", 1);
    add(&mut expected, "replayed", 4);
    are(agent, &expected).context("one packet five times")?;

    for capture in captures {
        let seen: Vec<Captured> = capture.stop()?.into_iter().filter(is_of_a_flow).collect();
        ensure!(seen.is_empty(), "{} packets came out, the first: {:02x?}", seen.len(), seen[0].bytes);
    }
    // The session was good all the time: what is exposed answers, to it as to others.
    mallory.send(&craft::tcp((caller, 4000), (service, 80), SYN, b""))?;
    let is_answer = |packet: &[u8]| {
        let ports = [80_u16.to_be_bytes(), 4000_u16.to_be_bytes()].concat();
        packet.windows(4).any(|window| window == ports)
    };
    mallory.receive("the answer of what is exposed", is_answer)?;
    world.factories[0].host.namespace.curl(presence, "/")?;
    drop(honest);
    ensure!(web.callers.count() >= 2);
    Ok(())
}

/// Mallory's own caller address, and the service.
fn wire(family: Family) -> (IpAddr, IpAddr) {
    match family {
        Family::V4 => ([198, 19, 0, 7].into(), [198, 18, 0, 2].into()),
        Family::V6 => ([0xfd76, 0x7000, 0, 2, 0, 0, 0, 7].into(), [0xfd76, 0x7000, 0, 1, 0, 0, 0, 2].into()),
    }
}

fn cases(plan: &Plan, world: &World, honest_port: u16) -> Result<Vec<Case>> {
    let family = plan.family();
    let (caller, service) = wire(family);
    let cloud = &world.cloud;
    let hosts = [cloud.host.address(family)?, cloud.neighbour.address(family)?, cloud.site.gateway_address(family)?];
    let pool = netns_tests::nth(plan.cloud_pool.iter().find(|p| Family::of(p.addr()) == family).context("a pool")?, 1);
    let special: Vec<IpAddr> = match family {
        Family::V4 => {
            ["127.0.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255", "169.254.1.1", "203.0.113.1", "198.17.0.2"]
                .map(str::parse::<IpAddr>)
                .into_iter()
                .collect::<Result<_, _>>()?
        }
        Family::V6 => ["::1", "::", "ff02::1", "fe80::1", "2001:db8::1", "fd76:7000:0:3::2", "::ffff:10.0.0.5"]
            .map(str::parse::<IpAddr>)
            .into_iter()
            .collect::<Result<_, _>>()?,
    };
    let elsewhere: Vec<IpAddr> = hosts.into_iter().chain([pool]).chain(special).collect();
    let all_kinds = |from: IpAddr, to: IpAddr| {
        let echo = if from.is_ipv4() { (8, 0) } else { (128, 0) };
        [
            craft::tcp((from, 4000), (to, 80), SYN, b""),
            craft::tcp((from, 4001), (to, 80), ACK, b"mid-stream"),
            craft::udp((from, 4000), (to, 7), b"hello"),
            craft::icmp(from, to, echo, 0x0001_0001, b"hello"),
        ]
    };
    let unassigned = match family {
        Family::V4 => "198.18.0.77",
        Family::V6 => "fd76:7000:0:1::77",
    };
    let unassigned: IpAddr = unassigned.parse()?;
    let mut cases: Vec<Case> = vec![
        ("other destinations", "not-exposed", elsewhere.iter().flat_map(|to| all_kinds(caller, *to)).collect()),
        ("services that are none", "not-exposed", all_kinds(caller, unassigned).to_vec()),
        (
            "addresses of others",
            "spoofed-source",
            elsewhere.iter().flat_map(|from| all_kinds(*from, service)).collect(),
        ),
        (
            "other TCP ports",
            "port-not-exposed",
            ports(&[1, 22, 79, 81, 443, 8080, 65535], |port| craft::tcp((caller, 4000), (service, port), SYN, b"")),
        ),
        (
            "other UDP ports",
            "port-not-exposed",
            ports(&[1, 6, 8, 53, 80, 65535], |port| craft::udp((caller, 4000), (service, port), b"hello")),
        ),
        (
            "other protocols",
            "unsupported-protocol",
            [2, 4, 33, 41, 47, 50, 51, 89, 132, 136, 253, 255]
                .map(|p| craft::ip(caller, service, p, &[0; 32]))
                .to_vec(),
        ),
        ("ICMP errors about flows that are not its own", "unrelated-icmp", false_errors(family, honest_port)),
        ("malformed", "malformed", malformed(family)),
    ];
    cases.push(match family {
        Family::V4 => ("source routes", "source-route", source_routes(caller, service)),
        Family::V6 => ("routing headers", "source-route", routing_headers(caller, service)),
    });
    cases.push(("other ICMP", "unrelated-icmp", other_icmp(family)));
    cases.push(("fragments that overlap, overrun or are too small", "fragment", fragments(family)));
    Ok(cases)
}

fn ports(ports: &[u16], packet: impl Fn(u16) -> Vec<u8>) -> Vec<Vec<u8>> {
    ports.iter().map(|port| packet(*port)).collect()
}

/// Unreachable, time exceeded and too big, quoting flows that are others' or nobody's.
fn false_errors(family: Family, honest_port: u16) -> Vec<Vec<u8>> {
    let (caller, service) = wire(family);
    // The first caller and the service as the honest peer's tunnel knows them: in this tunnel they mean nothing.
    let honest: IpAddr = match family {
        Family::V4 => [198, 19, 0, 2].into(),
        Family::V6 => [0xfd76, 0x7000, 0, 2, 0, 0, 0, 2].into(),
    };
    let quotes = [
        craft::tcp((service, 80), (honest, honest_port), ACK, b"quoted"),
        craft::tcp((service, 80), (caller, 999), ACK, b"quoted"),
        craft::udp((service, 7), (caller, 999), b"quoted"),
    ];
    let kinds: &[(u8, u8)] = match family {
        Family::V4 => &[(3, 1), (3, 3), (3, 4), (11, 0), (12, 0)],
        Family::V6 => &[(1, 0), (1, 4), (2, 0), (3, 0), (4, 0)],
    };
    let error = |kind: &(u8, u8), quote: &Vec<u8>| craft::icmp(caller, service, *kind, 1280, quote);
    quotes.iter().flat_map(|quote| kinds.iter().map(move |kind| error(kind, quote))).collect()
}

fn other_icmp(family: Family) -> Vec<Vec<u8>> {
    let (caller, service) = wire(family);
    let kinds: &[u8] = match family {
        // Source quench, redirect, router advertisement and solicitation, timestamp, information, address mask.
        Family::V4 => &[0, 4, 5, 9, 10, 13, 14, 15, 16, 17, 18, 30, 42],
        // Multicast listeners, router and neighbour discovery, redirect, node information.
        Family::V6 => &[129, 130, 131, 132, 133, 134, 135, 136, 137, 139, 143],
    };
    kinds.iter().map(|kind| craft::icmp(caller, service, (*kind, 0), 0, &[0; 40])).collect()
}

fn malformed(family: Family) -> Vec<Vec<u8>> {
    let (caller, service) = wire(family);
    let whole = craft::tcp((caller, 4000), (service, 80), SYN, b"payload");
    let datagram = craft::udp((caller, 4000), (service, 7), b"payload");
    let mut packets = Vec::new();
    let mut changed = |packet: &[u8], change: &dyn Fn(&mut Vec<u8>)| {
        let mut packet = packet.to_vec();
        change(&mut packet);
        packets.push(packet);
    };
    match family {
        Family::V4 => {
            for first in [0x40, 0x41, 0x44, 0x4f, 0x05, 0x55, 0xf5] {
                changed(&whole, &|packet| packet[0] = first);
            }
            for total in [0_u16, 1, 19, 20, 39, 48, 0xffff] {
                changed(&whole, &|packet| {
                    packet[2..4].copy_from_slice(&total.to_be_bytes());
                    craft::set_header_checksum(packet);
                });
            }
            for bytes in [1, 8, 19, 20, 24] {
                changed(&whole, &|packet| packet.truncate(bytes));
            }
            changed(&whole, &|packet| packet[10] ^= 0xff);
            for offset in [0x00, 0x40, 0xf0] {
                changed(&whole, &|packet| packet[32] = offset);
            }
            for length in [0_u16, 7, 14, 16, 0xffff] {
                changed(&datagram, &|packet| packet[24..26].copy_from_slice(&length.to_be_bytes()));
            }
            // Options whose lengths lie.
            packets.push(options(caller, service, &[0x94, 0, 0, 0]));
            packets.push(options(caller, service, &[0x94, 1, 0, 0]));
            packets.push(options(caller, service, &[1, 1, 0x94, 9]));
            packets.push(options(caller, service, &[1, 1, 1, 0x94]));
        }
        Family::V6 => {
            for first in [0x00, 0x10, 0x50, 0x70, 0xf0] {
                changed(&whole, &|packet| packet[0] = first);
            }
            for payload in [0_u16, 1, 19, 28, 0xffff] {
                changed(&whole, &|packet| packet[4..6].copy_from_slice(&payload.to_be_bytes()));
            }
            for bytes in [1, 39, 40, 44] {
                changed(&whole, &|packet| packet.truncate(bytes));
            }
            for offset in [0x00, 0x40, 0xf0] {
                changed(&whole, &|packet| packet[52] = offset);
            }
            for length in [0_u16, 7, 14, 16, 0xffff] {
                changed(&datagram, &|packet| packet[44..46].copy_from_slice(&length.to_be_bytes()));
            }
            let extended = |next: u8, rest: &[u8]| match (caller, service) {
                (IpAddr::V6(from), IpAddr::V6(to)) => craft::ipv6(from, to, next, rest),
                _ => Vec::new(),
            };
            // A header that is longer than the packet, one that ends nowhere, and more than anyone needs.
            packets.push(extended(0, &[TCP, 200, 0, 0, 0, 0, 0, 0]));
            packets.push(extended(60, &[60, 0, 0, 0, 0, 0, 0, 0]));
            packets.push(extended(60, &[60, 0, 1, 4, 0, 0, 0, 0].repeat(20)));
        }
    }
    packets
}

fn options(caller: IpAddr, service: IpAddr, options: &[u8]) -> Vec<u8> {
    let segment = craft::tcp((caller, 4000), (service, 80), SYN, b"")[20..].to_vec();
    match (caller, service) {
        (IpAddr::V4(from), IpAddr::V4(to)) => craft::ipv4(from, to, TCP, options, 0, &segment),
        _ => Vec::new(),
    }
}

fn source_routes(caller: IpAddr, service: IpAddr) -> Vec<Vec<u8>> {
    // Record route, loose and strict source route (RFC 791), to an address of the LAN.
    let routes = [7_u8, 131, 137].map(|kind| [kind, 7, 4, 10, 0, 0, 6, 0]);
    routes.iter().map(|route| options(caller, service, route)).collect()
}

fn routing_headers(caller: IpAddr, service: IpAddr) -> Vec<Vec<u8>> {
    let segment = craft::tcp((caller, 4000), (service, 80), SYN, b"")[40..].to_vec();
    let (IpAddr::V6(from), IpAddr::V6(to)) = (caller, service) else { return Vec::new() };
    let with = |kind: u8, left: u8| {
        let mut rest = vec![TCP, 2, kind, left, 0, 0, 0, 0];
        rest.extend(to.octets());
        rest.extend(&segment);
        craft::ipv6(from, to, 43, &rest)
    };
    vec![with(0, 1), with(0, 0), with(2, 1), with(3, 1), with(4, 1)]
}

/// Each of these is one packet that may not pass, and one reason.
fn fragments(family: Family) -> Vec<Vec<u8>> {
    let (caller, service) = wire(family);
    let datagram = craft::udp_datagram((caller, 4000), (service, 7), &[7; 64]);
    const MORE: u16 = 1;
    // Offset in bytes, more fragments, what it carries.
    let fragment_of = |id: u32, protocol: u8, offset: u16, more: u16, bytes: &[u8]| match (caller, service) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let mut packet = craft::ipv4(from, to, protocol, &[], (offset / 8) | (more << 13), bytes);
            packet[4..6].copy_from_slice(&id.to_be_bytes()[2..]);
            craft::set_header_checksum(&mut packet);
            packet
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let mut rest = vec![protocol, 0];
            rest.extend((offset | more).to_be_bytes());
            rest.extend(id.to_be_bytes());
            rest.extend(bytes);
            craft::ipv6(from, to, 44, &rest)
        }
        _ => Vec::new(),
    };
    // Of fresh ids each, so that none completes another.
    let mut id = 100_u32;
    let mut fragment = |protocol: u8, offset: u16, more: u16, bytes: &[u8]| {
        id += 1;
        fragment_of(id, protocol, offset, more, bytes)
    };
    vec![
        // The second overlaps the first, the third comes after what they are of was given up.
        fragment_of(99, UDP, 64, MORE, &[0; 64]),
        fragment_of(99, UDP, 96, MORE, &[0; 64]),
        fragment_of(99, UDP, 160, 0, &[0; 64]),
        // Too small for a TCP header, and a length that is no multiple of eight.
        fragment(TCP, 0, MORE, &[0; 8]),
        fragment(TCP, 0, MORE, &[0; 16]),
        fragment(UDP, 0, MORE, &datagram[..63]),
        // Beyond the end of the largest packet.
        fragment(UDP, 65_528, 0, &[0; 64]),
        fragment(UDP, 65_504, MORE, &[0; 64]),
        // Empty.
        fragment(UDP, 64, 0, &[]),
    ]
}

/// Until this reason's counter has risen by `count`, and no other has risen at all.
fn rises_by(agent: &Agent, before: &Value, reason: &str, count: usize) -> Result<()> {
    let mut expected = before.clone();
    add(&mut expected, reason, u64::try_from(count)?);
    are(agent, &expected)
}

fn add(drops: &mut Value, reason: &str, count: u64) {
    drops[reason] = (drops[reason].as_u64().unwrap_or(0) + count).into();
}

fn are(agent: &Agent, expected: &Value) -> Result<()> {
    let total = |drops: &Value| drops.as_object().map_or(0, |all| all.values().filter_map(Value::as_u64).sum::<u64>());
    let mut now = Value::Null;
    let counted = wait_until("the counters to rise", || {
        now = agent.status()?["drops"].clone();
        Ok(total(&now) >= total(expected))
    });
    ensure!(counted.is_ok() && now == *expected, "{now} in place of {expected}");
    Ok(())
}

/// TCP, UDP or echo; not what hosts and bridges say to each other.
fn is_of_a_flow(packet: &Captured) -> bool {
    let bytes = &packet.bytes;
    match bytes[0] >> 4 {
        // Not what the gateway's own kernel says to its neighbours (IGMP).
        4 => bytes[16] >> 4 != 0xe,
        _ => !(bytes[6] == 0 || bytes[6] == 58 && (133..=136).contains(&bytes[40])),
    }
}
