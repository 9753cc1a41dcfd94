//! UDP of every size, fragments, datagrams without a checksum, ping, traceroute, port unreachable: as in a network
//! without gateways, and no address of the other site in any of it.
//!
//! ```text
//!   plc .2 -- factory1 gateway -- NAT -- internet -- cloud gateway -- web .5
//! ```

use anyhow::{Context, Result, ensure};
use netns_tests::server::{Content, no_checksum};
use netns_tests::world::{expose, map};
use netns_tests::{Capture, Family, Lab, Plan, Setup, UdpEcho, World, capture, for_each_plan, wait_for};
use std::io::ErrorKind;
use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

/// Around every border: empty, the inner MTU, the LAN's MTU, two and more fragments.
const SIZES: [usize; 22] = [
    0, 1, 2, 3, 63, 512, 1231, 1232, 1372, 1373, 1380, 1392, 1393, 1400, 1472, 1473, 1500, 2000, 2960, 4000, 8000, 8192,
];

for_each_plan!(datagrams_of_every_size_come_back);
for_each_plan!(datagrams_without_a_checksum_stay_without_one, v4);
for_each_plan!(ping_and_traceroute_show_local_addresses_only);
for_each_plan!(port_unreachable_reaches_the_caller);

fn world(lab: &Lab, plan: &Plan, source: &str) -> Result<(World, IpAddr)> {
    let cloud = expose("echo", "{web}", "udp/7, udp/9, tcp/80, icmp", "any", source);
    let world = World::new(lab, &Setup { cloud, factory: map("echo.cloud"), ..Setup::new(plan) })?;
    let presence = world.factories[0].agent.presence("echo.cloud")?;
    Ok((world, presence))
}

fn datagrams_of_every_size_come_back(lab: &Lab, plan: &Plan) -> Result<()> {
    for source in ["presence", "masquerade"] {
        let lab = if source == "presence" { lab } else { &Lab::new()? };
        let (world, presence) = world(lab, plan, source)?;
        let _echo = UdpEcho::start(&world.cloud.host.namespace, (world.cloud.address(plan.family())?, 7))?;
        let socket = world.factories[0].host.namespace.udp((presence, 7))?;
        all_sizes(&socket).with_context(|| source.to_owned())?;
        lab.check_agent_logs()?;
    }
    Ok(())
}

/// Sends again what did not come back in time: the first datagram over the path's MTU only tells the sender of it.
fn all_sizes(socket: &UdpSocket) -> Result<()> {
    socket.set_read_timeout(Some(Duration::from_millis(300)))?;
    let mut buffer = vec![0; 65_535];
    for size in SIZES {
        let datagram = Content::new(&format!("{size}")).take(size);
        wait_for(&format!("{size} bytes to come back"), || {
            socket
                .send(&datagram)
                .or_else(|error| if error.raw_os_error() == Some(libc::EMSGSIZE) { Ok(0) } else { Err(error) })?;
            let bytes = socket.recv(&mut buffer)?;
            Ok((buffer[..bytes] == datagram).then_some(()))
        })?;
    }
    Ok(())
}

fn datagrams_without_a_checksum_stay_without_one(lab: &Lab, plan: &Plan) -> Result<()> {
    let (world, presence) = world(lab, plan, "presence")?;
    let web = world.cloud.address(Family::V4)?;
    let _echo = UdpEcho::without_checksum(&world.cloud.host.namespace, (web, 7))?;
    let socket = world.factories[0].host.namespace.udp((presence, 7))?;
    no_checksum(&socket)?;
    let ends = [
        Capture::start(lab, &world.cloud.host.namespace, "eth0")?,
        Capture::start(lab, &world.factories[0].host.namespace, "eth0")?,
    ];
    all_sizes(&socket)?;
    for end in ends {
        let packets = end.stop()?;
        let mut datagrams = 0;
        for packet in &packets {
            if let Some(etherparse::TransportSlice::Udp(udp)) = &capture::parse(&packet.bytes)?.transport {
                ensure!(udp.checksum() == 0, "a datagram got a checksum");
                datagrams += 1;
            }
        }
        ensure!(datagrams >= SIZES.len(), "{datagrams} datagrams");
    }
    Ok(())
}

fn ping_and_traceroute_show_local_addresses_only(lab: &Lab, plan: &Plan) -> Result<()> {
    let family = plan.family();
    let (world, presence) = world(lab, plan, "presence")?;
    let factory = &world.factories[0];
    let plc = &factory.host.namespace;
    let seen = Capture::start(lab, plc, "eth0")?;
    for size in [0, 56, 1300, 1372, 1452, 4000] {
        // The first ones over the path's MTU only tell each end of it.
        wait_for("a first answer", || plc.sh(&format!("ping -n -c1 -W1 -s {size} {presence}")).map(Some))?;
        let said = plc.sh(&format!("ping -n -c3 -i0.2 -W5 -s {size} {presence}"))?;
        ensure!(said.contains(" 0% packet loss"), "{said}");
    }
    let own = factory.site.gateway_address(family)?;
    for how in ["-I", "-T -p 80"] {
        let said = plc.sh(&format!("traceroute -n {how} -q 1 -w 2 -m 8 {presence}"))?;
        let hops: Vec<IpAddr> =
            said.lines().skip(1).filter_map(|l| l.split_whitespace().nth(1)?.parse().ok()).collect();
        let local = |hop: &IpAddr| *hop == own || plan.factory_pool.iter().any(|pool| pool.contains(hop));
        ensure!(
            hops.len() >= 4 && !said.contains('*') && hops.last() == Some(&presence) && hops.iter().all(local),
            "{how}: {said}"
        );
    }
    // Nor at any depth of what came to the host.
    let foreign = [world.cloud.address(family)?, world.cloud.site.gateway_address(family)?];
    let at_home = |address: &IpAddr| plan.factory_lan.iter().chain(&plan.factory_pool).any(|lan| lan.contains(address));
    let packets = seen.stop()?;
    for address in foreign.iter().filter(|address| !at_home(address)) {
        let bytes = match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        ensure!(!capture::contains(&packets, &bytes), "{address} was seen");
    }
    Ok(())
}

fn port_unreachable_reaches_the_caller(lab: &Lab, plan: &Plan) -> Result<()> {
    for source in ["presence", "masquerade"] {
        let lab = if source == "presence" { lab } else { &Lab::new()? };
        let (world, presence) = world(lab, plan, source)?;
        // Nothing listens on port 9.
        let socket = world.factories[0].host.namespace.udp((presence, 9))?;
        for bytes in [1, 500, 1300] {
            socket.send(&vec![1; bytes])?;
            let error = socket.recv(&mut [0; 16]).err().context("an answer")?;
            ensure!(error.kind() == ErrorKind::ConnectionRefused, "{source}, {bytes} bytes: {error}");
        }
        lab.check_agent_logs()?;
    }
    Ok(())
}
