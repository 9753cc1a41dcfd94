//! A factory calls the cloud and the cloud a factory, while all of them use networks of their own choosing.
//!
//! ```text
//!   plc .2, decoy .5 -- factory1 gateway -- NAT --+
//!                                                 internet -- cloud gateway -- web .5
//!   plc .2, decoy .5 -- factory2 gateway -- NAT --+
//! ```
//!
//! The decoys have the web host's number and serve another page: whoever gets it was translated to the wrong network.

use anyhow::{Context, Result, ensure};
use netns_tests::server::{Content, url};
use netns_tests::world::{expose, map};
use netns_tests::{Lab, Plan, Setup, Station, TcpServer, World, for_each_plan};
use std::fs;
use std::net::IpAddr;
use std::thread;

const DOWNLOADS: usize = 50;
const DOWNLOAD_BYTES: usize = 200_000;

for_each_plan!(curl_from_two_factories_returns_the_clouds_page);
for_each_plan!(a_server_sees_a_local_address_for_each_caller);
for_each_plan!(the_cloud_calls_factories_behind_nat);

fn curl_from_two_factories_returns_the_clouds_page(lab: &Lab, plan: &Plan) -> Result<()> {
    let family = plan.family();
    let world = World::new(lab, &Setup { factories: 2, ..Setup::new(plan) })?;
    let web = TcpServer::http(&world.cloud.host.namespace, (world.cloud.address(family)?, 80), "web of cloud")?;
    let mut decoys = Vec::new();
    for factory in &world.factories {
        let decoy = factory.site.host(lab, "decoy", 5)?;
        decoys.push(TcpServer::http(&decoy.namespace, (decoy.address(family)?, 80), "a page of the factory")?);
        let presence = factory.agent.presence("web.cloud")?;
        ensure!(plan.factory_pool.iter().any(|pool| pool.contains(&presence)), "{presence} is not of the pool");
        let page = factory.host.namespace.curl(presence, "/")?;
        let gateway = world.cloud.site.gateway_address(family)?;
        ensure!(page == format!("web of cloud\ncalled by {gateway}\n"), "{page}");
    }
    thread::scope(|scope| {
        let both: Vec<_> = world.factories.iter().map(|factory| scope.spawn(|| download_many(lab, factory))).collect();
        both.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })?;
    ensure!(web.callers.count() == 2 + 2 * DOWNLOADS);
    ensure!(decoys.iter().all(|decoy| decoy.callers.count() == 0));
    check_nats(&world)
}

/// Many downloads at once by curl, each checked byte by byte.
fn download_many(lab: &Lab, factory: &Station) -> Result<()> {
    let presence = factory.agent.presence("web.cloud")?;
    let directory = lab.directory().join(format!("{}-downloads", factory.site.name));
    fs::create_dir_all(&directory)?;
    let file = |n| directory.join(format!("{n}"));
    let target = url(presence, &format!("/bytes/{DOWNLOAD_BYTES}"));
    let entry = |n| format!("url = \"{target}\"\noutput = \"{}\"\n", file(n).display());
    let list = directory.join("list");
    fs::write(&list, (0..DOWNLOADS).map(entry).collect::<String>())?;
    let line =
        format!("curl -sS --fail -m 60 -Z --parallel-immediate --parallel-max {DOWNLOADS} -K {}", list.display());
    factory.host.namespace.sh(&line)?;
    let expected = Content::new("web of cloud").take(DOWNLOAD_BYTES);
    for n in 0..DOWNLOADS {
        ensure!(fs::read(file(n))? == expected, "download {n} of {} differs", factory.site.name);
    }
    Ok(())
}

fn a_server_sees_a_local_address_for_each_caller(lab: &Lab, plan: &Plan) -> Result<()> {
    let family = plan.family();
    let cloud = expose("web", "{web}", "tcp/80", "any", "presence");
    let world = World::new(lab, &Setup { factories: 2, cloud, ..Setup::new(plan) })?;
    let web = TcpServer::http(&world.cloud.host.namespace, (world.cloud.address(family)?, 80), "web of cloud")?;
    for factory in &world.factories {
        let presence = factory.agent.presence("web.cloud")?;
        for host in [&factory.host, &factory.neighbour] {
            // Twice: a caller keeps its address.
            host.namespace.curl(presence, "/")?;
            host.namespace.curl(presence, "/")?;
        }
    }
    let callers = web.callers.addresses();
    ensure!(web.callers.count() == 8 && callers.len() == 4, "{callers:?}");
    ensure!(callers.iter().all(|caller| plan.cloud_pool.iter().any(|pool| pool.contains(caller))), "{callers:?}");
    for caller in callers {
        let whois = world.cloud.agent.ask(&format!("whois {caller}"))?;
        ensure!(whois["kind"] == "caller" && whois["site"].as_str().is_some_and(|site| site.starts_with("factory")));
    }
    check_nats(&world)
}

fn the_cloud_calls_factories_behind_nat(lab: &Lab, plan: &Plan) -> Result<()> {
    let family = plan.family();
    let maps = format!("{}  - service: \"*.factory2\"\n", map("metrics.factory1"));
    let cloud = Setup::new(plan).cloud + &maps;
    let world = World::new(lab, &Setup { factories: 2, cloud, ..Setup::new(plan) })?;
    let mut presences: Vec<IpAddr> = Vec::new();
    for factory in &world.factories {
        let name = &factory.site.name;
        let address = factory.host.address(family)?;
        let page = format!("metrics of {name}");
        let _metrics = TcpServer::http(&factory.host.namespace, (address, 9100), &page)?;
        let presence = world.cloud.agent.presence(&format!("metrics.{name}"))?;
        let got = world.cloud.host.namespace.sh(&format!("curl -sS -m 20 {}", url_with_port(presence, 9100)))?;
        ensure!(got == format!("{page}\ncalled by {}\n", factory.site.gateway_address(family)?), "{got}");
        presences.push(presence);
    }
    ensure!(presences[0] != presences[1]);
    check_nats(&world)
}

fn url_with_port(address: IpAddr, port: u16) -> String {
    format!("http://{}/", std::net::SocketAddr::from((address, port)))
}

/// Nobody called a factory from outside, and the NAT would have dropped it.
fn check_nats(world: &World) -> Result<()> {
    for factory in &world.factories {
        let nat = factory.site.access.as_ref().context("a NAT")?;
        ensure!(nat.unsolicited()? == 0, "unsolicited packets came to {}", factory.site.name);
    }
    Ok(())
}
