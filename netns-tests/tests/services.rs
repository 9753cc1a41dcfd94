//! What a service can be: on the gateway itself, under another port, a whole prefix, several backends; and a pool that
//! lies in the LAN's own network.
//!
//! ```text
//!   plc .2 ---------+                                             +-- web .5
//!                   +-- factory1 gateway -- NAT -- internet -- cloud gateway
//!   neighbour .6 ---+                                             +-- neighbour .6
//! ```

use anyhow::{Context, Result, ensure};
use ipnet::IpNet;
use netns_tests::world::{expose, map};
use netns_tests::{Lab, Plan, Setup, TcpServer, World, for_each_plan, nth};
use std::net::IpAddr;

for_each_plan!(a_service_on_the_gateways_own_loopback, v4);
for_each_plan!(a_port_is_mapped_to_another);
for_each_plan!(a_prefix_is_mapped_one_to_one);
for_each_plan!(new_flows_spread_over_backends);
for_each_plan!(a_pool_in_the_lans_own_network_is_answered_for);

fn a_service_on_the_gateways_own_loopback(lab: &Lab, plan: &Plan) -> Result<()> {
    let loopback: IpAddr = "127.0.0.1".parse()?;
    for source in ["masquerade", "presence"] {
        let lab = if source == "presence" { lab } else { &Lab::new()? };
        let cloud = expose("web", &format!("\"{loopback}\""), "tcp/80", "any", source);
        let world = World::new(lab, &Setup { cloud, ..Setup::new(plan) })?;
        let _web = TcpServer::http(&world.cloud.site.gateway, (loopback, 80), "on the gateway")?;
        let _other = TcpServer::http(&world.cloud.site.gateway, (loopback, 81), "not exposed")?;
        let presence = world.factories[0].agent.presence("web.cloud")?;
        let plc = &world.factories[0].host.namespace;
        let page = plc.curl(presence, "/").context(source)?;
        ensure!(page.starts_with("on the gateway\n"), "{source}: {page}");
        ensure!(plc.scan(presence, 75..=85)? == [80]);
        lab.check_agent_logs()?;
    }
    Ok(())
}

fn a_port_is_mapped_to_another(lab: &Lab, plan: &Plan) -> Result<()> {
    let cloud = expose("web", "{web}", "tcp/8000-8010", "any", "presence");
    let factory = map("web.cloud") + "    ports: [tcp/80=tcp/8005]\n";
    let world = World::new(lab, &Setup { cloud, factory, ..Setup::new(plan) })?;
    let web = world.cloud.address(plan.family())?;
    let _right = TcpServer::http(&world.cloud.host.namespace, (web, 8005), "the right one")?;
    let _wrong = TcpServer::http(&world.cloud.host.namespace, (web, 80), "the wrong one")?;
    let _other = TcpServer::http(&world.cloud.host.namespace, (web, 8000), "another one")?;
    let presence = world.factories[0].agent.presence("web.cloud")?;
    let plc = &world.factories[0].host.namespace;
    let page = plc.curl(presence, "/")?;
    ensure!(page.starts_with("the right one\n"), "{page}");
    ensure!(plc.scan(presence, (1..=100).chain(7990..=8020))? == [80]);
    Ok(())
}

fn a_prefix_is_mapped_one_to_one(lab: &Lab, plan: &Plan) -> Result<()> {
    let family = plan.family();
    let lan = plan.cloud_lan[0];
    let first = nth(&lan, 4);
    let block = IpNet::new(first, if first.is_ipv4() { 30 } else { 126 })?;
    let cloud = expose("hosts", &format!("\"{block}\""), "tcp/80", "any", "presence");
    let world = World::new(lab, &Setup { cloud, factory: map("hosts.cloud"), ..Setup::new(plan) })?;
    let cloud = &world.cloud;
    let _web = TcpServer::http(&cloud.host.namespace, (cloud.host.address(family)?, 80), "web")?;
    let _neighbour = TcpServer::http(&cloud.neighbour.namespace, (cloud.neighbour.address(family)?, 80), "neighbour")?;
    let factory = &world.factories[0];
    let presence: IpNet = netns_tests::wait_for("the presence of hosts.cloud", || {
        let status = factory.agent.status()?;
        let presence = &status["presences"][0];
        Ok(if presence["state"] == "up" {
            Some(presence["address"].as_str().context("an address")?.parse()?)
        } else {
            None
        })
    })?;
    ensure!(presence.prefix_len() == block.prefix_len(), "{presence} for {block}");
    // Numbers within the block: 5 and 6 of the LAN are 1 and 2 here.
    let page = |number| factory.host.namespace.curl(nth(&presence, number), "/");
    ensure!(page(1)?.starts_with("web\n") && page(2)?.starts_with("neighbour\n"));
    Ok(())
}

fn new_flows_spread_over_backends(lab: &Lab, plan: &Plan) -> Result<()> {
    let family = plan.family();
    let (first, second) = (nth(&plan.cloud_lan[0], 5), nth(&plan.cloud_lan[0], 6));
    let cloud = expose("web", &format!("[\"{first}\", \"{second}\"]"), "tcp/80", "any", "presence");
    let world = World::new(lab, &Setup { cloud, ..Setup::new(plan) })?;
    let cloud = &world.cloud;
    let web = TcpServer::http(&cloud.host.namespace, (cloud.host.address(family)?, 80), "first")?;
    let neighbour = TcpServer::http(&cloud.neighbour.namespace, (cloud.neighbour.address(family)?, 80), "second")?;
    let factory = &world.factories[0];
    let presence = factory.agent.presence("web.cloud")?;
    for _ in 0..40 {
        // A large page: all of a flow's packets go to one of them, or it would break.
        factory.host.namespace.http((presence, 80), "/bytes/100000")?;
    }
    let (a, b) = (web.callers.count(), neighbour.callers.count());
    ensure!(a + b == 40 && a >= 5 && b >= 5, "{a} and {b} of 40 flows");
    Ok(())
}

fn a_pool_in_the_lans_own_network_is_answered_for(lab: &Lab, plan: &Plan) -> Result<()> {
    let family = plan.family();
    // The upper part of the factory's own LAN.
    let within = |lan: &IpNet| IpNet::new(nth(lan, 0xc0), if lan.addr().is_ipv4() { 27 } else { 123 });
    let mut plan = plan.clone();
    plan.factory_pool = plan.factory_lan.iter().map(within).collect::<Result<_, _>>()?;
    plan.cloud_pool = plan.cloud_lan.iter().map(within).collect::<Result<_, _>>()?;
    let reach = "reach: {proxy_arp: lan0}\n";
    let cloud = expose("web", "{web}", "tcp/80", "any", "presence") + reach;
    let world = World::new(lab, &Setup { cloud, factory: map("web.cloud") + reach, ..Setup::new(&plan) })?;
    let web = TcpServer::http(&world.cloud.host.namespace, (world.cloud.address(family)?, 80), "web of cloud")?;
    let presence = world.factories[0].agent.presence("web.cloud")?;
    for host in [&world.factories[0].host, &world.factories[0].neighbour] {
        let page = host.namespace.curl(presence, "/")?;
        ensure!(page.starts_with("web of cloud\n"), "{page}");
    }
    let callers = web.callers.addresses();
    ensure!(callers.len() == 2 && callers.iter().all(|caller| plan.cloud_pool[0].contains(caller)), "{callers:?}");
    Ok(())
}
