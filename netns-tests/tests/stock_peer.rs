//! A stock WireGuard peer with a caller address uses an exposed service and nothing else.
//!
//! ```text
//!   laptop (wireguard-go, wg0 198.19.0.2) -- internet -- cloud gateway --+-- web .5
//!                                                                        +-- neighbour .6
//! ```

use anyhow::{Context, Result, ensure};
use netns_tests::world::expose;
use netns_tests::{
    Agent, Families, Key, Lab, Namespace, Peer, Plan, Process, Setup, TcpServer, World, for_each_plan, story, wait_for,
};
use std::fs;
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

#[test]
fn a_laptop_that_was_added_by_one_command_uses_what_it_may_until_it_is_taken_away() {
    story(|lab| {
        let cloud = expose("wiki", "{web}", "tcp/80", "group:staff", "masquerade")
            + &expose("plans", "{web}", "tcp/81", "group:board", "masquerade").replace("expose:\n", "");
        let mut world =
            World::new(lab, &Setup { factories: 0, cloud, ..Setup::new(&Plan::named("same", Families::V4)?) })?;
        let web = &world.cloud.host;
        let servers = [80, 81].map(|port| TcpServer::http(&web.namespace, (web.addresses[0], port), "a page"));
        let laptop = lab.namespace("laptop")?;
        world.internet.connect(&laptop)?;
        let endpoint = SocketAddr::new(world.cloud.site.uplink.v4.into(), netns_tests::world::PORT);
        let add = format!("peer add laptop --stock --group staff --endpoint {endpoint}");
        let configuration = world.cloud.agent.ctl(&add)?;
        ensure!(!configuration.contains("plans"), "{configuration}");
        let refused = world.cloud.agent.ctl_output(&add)?;
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        ensure!(refused.status.code() == Some(1) && said.contains("laptop is a peer already"), "{said}");

        let file = lab.directory().join("laptop.conf");
        fs::write(&file, &configuration)?;
        let interface = interface();
        let _wireguard = Process::start_line(lab, &laptop, &format!("wireguard-go -f {interface}"))?;
        let stripped = lab.directory().join("stripped.conf");
        fs::write(&stripped, laptop.sh(&format!("wg-quick strip {}", file.display()))?)?;
        wait_for("wireguard-go", || laptop.sh(&format!("wg setconf {interface} {}", stripped.display())).map(Some))?;
        laptop.ip(&format!(
            "addr add 198.19.0.2/32 dev {interface}
             link set {interface} mtu 1420 up
             route add 198.18.0.0/16 dev {interface}"
        ))?;
        let wiki: IpAddr = configuration
            .lines()
            .find_map(|line| line.strip_prefix("# wiki: ")?.split([' ', ',']).next())
            .context("no service in the configuration")?
            .parse()?;
        let page = wait_for("the wiki", || Ok(laptop.curl(wiki, "/").ok()))?;
        ensure!(page.starts_with("a page\n"), "{page}");
        ensure!(servers[1].as_ref().is_ok_and(|plans| plans.callers.count() == 0));
        for index in [1, 3, 4] {
            let other = IpAddr::from([198, 18, 0, index]);
            ensure!(other == wiki || laptop.scan(other, [80, 81])?.is_empty(), "{other} answers");
        }

        // It is there after a restart, and gone when it is taken away.
        world.cloud.agent.kill()?;
        world.cloud.agent.start_again(lab)?;
        wait_for("the wiki after a restart", || Ok(laptop.curl(wiki, "/").ok()))?;
        world.cloud.agent.ctl("peer remove laptop")?;
        ensure!(world.cloud.agent.status()?["peers"].as_array().is_some_and(Vec::is_empty));
        ensure!(laptop.scan(wiki, [80])?.is_empty(), "the wiki still answers");
        Ok(())
    });
}

/// wireguard-go's control sockets have one directory for the whole machine, so an interface's name is this run's own.
fn interface() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("wg{}x{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// As its page describes it: `wireguard-go wg0`, then `wg set`.
fn wireguard_go(lab: &Lab, machine: &Namespace, key: &Key, agent: &Agent, endpoint: SocketAddr) -> Result<Process> {
    let interface = interface();
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
