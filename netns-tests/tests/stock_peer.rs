//! A stock WireGuard peer with a caller address uses an exposed service and nothing else.
//!
//! ```text
//!   laptop (wireguard-go, wg0 198.19.0.2) -- internet -- cloud gateway --+-- web .5
//!                                                                        +-- neighbour .6
//! ```

use anyhow::{Context, Result, ensure};
use netns_tests::world::expose;
use netns_tests::{Agent, Key, Lab, Namespace, Peer, Plan, Process, Setup, TcpServer, World, for_each_plan, wait_for};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU32, Ordering};

const PORTS: [u16; 4] = [22, 80, 443, 8080];

for_each_plan!(a_stock_wireguard_peer_uses_an_exposed_service_and_nothing_else, both);

fn a_stock_wireguard_peer_uses_an_exposed_service_and_nothing_else(lab: &Lab, plan: &Plan) -> Result<()> {
    let cloud = expose("web", "{web}", "tcp/80, icmp", "site:laptop", "presence");
    let key = Key::new()?;
    let rest = "stock: true".to_owned();
    let peers = vec![Peer { site: "laptop".to_owned(), public_key: key.public(), rest, ..Peer::default() }];
    let world = World::new(lab, &Setup { factories: 0, cloud, peers, ..Setup::new(plan) })?;
    let (web, neighbour) = (&world.cloud.host, &world.cloud.neighbour);
    let mut servers = Vec::new();
    for (machine, addresses) in [
        (&web.namespace, &web.addresses),
        (&neighbour.namespace, &neighbour.addresses),
        (&world.cloud.site.gateway, &vec![world.cloud.site.gateway_address(netns_tests::Family::V4)?]),
    ] {
        for (address, port) in addresses.iter().flat_map(|address| PORTS.map(|port| (*address, port))) {
            servers.push(TcpServer::http(machine, (address, port), "web of cloud")?);
        }
    }
    let laptop = lab.namespace("laptop")?;
    world.internet.connect(&laptop)?;
    let cloud: SocketAddr = (world.cloud.site.uplink.v4, netns_tests::world::PORT).into();
    let _wireguard = wireguard_go(lab, &laptop, &key, &world.cloud.agent, cloud)?;

    let status = world.cloud.agent.status()?;
    let wire = status["services"][0]["wire_addresses"].as_array().context("no wire addresses")?;
    let wire: Vec<IpAddr> = wire.iter().filter_map(|address| address.as_str()?.parse().ok()).collect();
    ensure!(wire.len() == 2, "{status}");
    for address in &wire {
        let page = wait_for("the tunnel", || Ok(laptop.curl(*address, "/").ok()))?;
        let (title, caller) = page.trim().split_once("\ncalled by ").context("a page")?;
        let caller: IpAddr = caller.parse()?;
        ensure!(title == "web of cloud" && plan.cloud_pool.iter().any(|pool| pool.contains(&caller)));
        laptop.sh(&format!("ping -c1 -W5 {address}"))?;
        ensure!(laptop.scan(*address, 1..=1000)? == [80]);
    }
    // What is not exposed, by whatever address one calls it.
    let inside = ["198.18.0.1", "198.18.0.3", "198.18.255.254", "198.19.0.1", "198.19.0.3"];
    let mut others: Vec<IpAddr> = [&web.addresses[..], &neighbour.addresses[..]].concat();
    others.push(world.cloud.site.gateway_address(netns_tests::Family::V4)?);
    others.extend(inside.iter().filter_map(|address| address.parse::<IpAddr>().ok()));
    let before = servers.iter().map(|server| server.callers.count()).sum::<usize>();
    for address in others.iter().filter(|address| !wire.contains(address)) {
        ensure!(laptop.scan(*address, PORTS)?.is_empty(), "{address} answers");
    }
    ensure!(servers.iter().map(|server| server.callers.count()).sum::<usize>() == before);
    Ok(())
}

/// As its page describes it: `wireguard-go wg0`, then `wg set`.
fn wireguard_go(lab: &Lab, machine: &Namespace, key: &Key, agent: &Agent, endpoint: SocketAddr) -> Result<Process> {
    // Its control socket has one directory for the whole machine, so the interface's name is this run's own.
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let interface = format!("wg{}x{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let process = Process::start_line(lab, machine, &format!("wireguard-go -f {interface}"))?;
    let file = lab.directory().join("laptop.key");
    key.write(&file)?;
    let set = format!(
        "wg set {interface} private-key {} peer {} endpoint {endpoint} persistent-keepalive 5 \
         allowed-ips 198.18.0.0/15,fd76:7000:0:1::/64,0.0.0.0/0,::/0",
        file.display(),
        agent.key.public()
    );
    wait_for("wireguard-go", || machine.sh(&set).map(Some))?;
    machine.ip(&format!(
        "addr add 198.19.0.2/32 dev {interface}
         addr add fd76:7000:0:2::2/128 dev {interface}
         link set {interface} mtu 1420 up
         route add 198.18.0.0/15 dev {interface}
         route add fd76:7000::/32 dev {interface}
         route add 10.0.0.0/8 dev {interface}
         route add fd00::/16 dev {interface}"
    ))?;
    Ok(process)
}
