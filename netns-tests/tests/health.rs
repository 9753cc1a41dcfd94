//! Targets that fail, hang, come back or are drained: who gets new flows, how soon, and that open ones go on.
//!
//! ```text
//!   plc .2 -- factory1 gateway -- NAT -- internet -- cloud gateway --+-- web .5
//!                                                                    +-- neighbour .6
//! ```

use anyhow::{Result, ensure};
use netns_tests::world::expose;
use netns_tests::{Download, Families, Family, Lab, Plan, Setup, TcpServer, World, story, wait_until, wait_within};
use std::net::IpAddr;
use std::time::Duration;

/// From the failure to the last new flow that goes there.
const GONE: Duration = Duration::from_secs(5);
/// More than the buffers of both hosts hold.
const DOWNLOAD_BYTES: usize = 32 << 20;
/// So many that a coin would show one side each time once in a million.
const FLOWS: usize = 20;

/// The cloud exposes `web` on both hosts, checked so.
fn world(lab: &Lab, check: &str) -> Result<World> {
    let plan = Plan::named("same", Families::V4)?;
    let targets = [5, 6].map(|number| netns_tests::nth(&plan.cloud_lan[0], number).to_string()).join(", ");
    let cloud = expose("web", &format!("[{targets}]"), "tcp/80", "any", "masquerade");
    let cloud = format!("{cloud}    health: {check}\n");
    World::new(lab, &Setup { cloud, ..Setup::new(&plan) })
}

/// Both hosts' servers of one page each.
fn servers(world: &World) -> Result<[TcpServer; 2]> {
    let start =
        |host: &netns_tests::Host, page| TcpServer::http(&host.namespace, (host.address(Family::V4)?, 80), page);
    Ok([start(&world.cloud.host, "web")?, start(&world.cloud.neighbour, "neighbour")?])
}

/// Which pages so many new flows get; empty for one that gets none.
fn pages(world: &World, presence: IpAddr) -> Vec<String> {
    let get = |_| world.factories[0].host.namespace.curl(presence, "/").unwrap_or_default();
    let title = |page: String| page.lines().next().unwrap_or_default().to_owned();
    (0..FLOWS).map(get).map(title).collect()
}

/// Until this target gets no new flows.
fn wait_resting(world: &World, target: IpAddr) -> Result<()> {
    wait_within(GONE, "the target to be taken for down", || {
        let service = &world.cloud.agent.status()?["services"][0];
        ensure!(service["resting"][0]["address"] == target.to_string().as_str(), "{service}");
        Ok(Some(()))
    })
}

fn state(world: &World) -> Result<String> {
    Ok(world.cloud.agent.status()?["services"][0]["state"].as_str().unwrap_or_default().to_owned())
}

#[test]
fn a_target_that_fails_gets_no_new_flows_within_five_seconds_and_has_them_again_when_it_is_back() {
    story(|lab| {
        let world = world(lab, "http/80/")?;
        let [web, neighbour] = servers(&world)?;
        wait_until("the service", || Ok(state(&world)? == "up"))?;
        let presence = world.factories[0].agent.presence("web.cloud")?;
        let both = pages(&world, presence);
        ensure!(both.iter().any(|page| page == "web") && both.iter().any(|page| page == "neighbour"), "{both:?}");

        drop(neighbour);
        wait_resting(&world, world.cloud.neighbour.address(Family::V4)?)?;
        ensure!(pages(&world, presence).iter().all(|page| page == "web"));
        ensure!(state(&world)? == "up");
        let shown = world.cloud.agent.ctl("status")?;
        ensure!(shown.contains("is down: ") && shown.contains("target-down"), "{shown}");

        // With none left, callers are told at once, at their own site.
        drop(web);
        wait_until("the service to be down", || Ok(state(&world)? == "down"))?;
        let explained = "explain --from 10.0.0.2 --to web.cloud --port tcp/80";
        wait_until("the factory to know", || {
            let said = world.factories[0].agent.ctl_output(explained)?;
            Ok(said.status.code() == Some(1) && String::from_utf8_lossy(&said.stdout).contains("service-down"))
        })?;
        let refused = world.factories[0].host.namespace.tcp((presence, 80)).err();
        ensure!(refused.is_some_and(|error| format!("{error:#}").contains("refused")), "no refusal at once");

        let _servers = servers(&world)?;
        wait_until("both to have new flows again", || {
            let pages = pages(&world, presence);
            Ok(pages.iter().any(|page| page == "web") && pages.iter().any(|page| page == "neighbour"))
        })
    });
}

#[test]
fn a_target_that_hangs_gets_no_new_flows_within_five_seconds() {
    story(|lab| {
        let world = world(lab, "tcp/80")?;
        let _servers = servers(&world)?;
        let presence = world.factories[0].agent.presence("web.cloud")?;
        wait_until("both to have flows", || {
            let pages = pages(&world, presence);
            Ok(pages.iter().any(|page| page == "web") && pages.iter().any(|page| page == "neighbour"))
        })?;
        world.cloud.neighbour.namespace.ip("link set eth0 down")?;
        wait_resting(&world, world.cloud.neighbour.address(Family::V4)?)?;
        ensure!(pages(&world, presence).iter().all(|page| page == "web"));
        Ok(())
    });
}

#[test]
fn what_is_drained_gets_no_new_flows_and_keeps_the_old_also_through_a_restart() {
    story(|lab| {
        let mut world = world(lab, "tcp/80")?;
        let _servers = servers(&world)?;
        let presence = world.factories[0].agent.presence("web.cloud")?;
        let plc = world.factories[0].host.namespace.clone();
        let neighbour = world.cloud.neighbour.address(Family::V4)?;
        world.cloud.agent.ctl(&format!("drain web --target {neighbour}"))?;
        ensure!(pages(&world, presence).iter().all(|page| page == "web"));

        let mut download = Download::start(&plc, presence, "web", DOWNLOAD_BYTES)?;
        download.read(DOWNLOAD_BYTES / 4)?;
        world.cloud.agent.ctl("drain web")?;
        ensure!(state(&world)? == "drained");
        wait_until("new flows to be refused at once", || Ok(plc.tcp((presence, 80)).is_err()))?;
        download.read(DOWNLOAD_BYTES / 4)?;
        world.cloud.agent.kill()?;
        world.cloud.agent.start_again(lab)?;
        download.finish()?;
        ensure!(state(&world)? == "drained");

        world.cloud.agent.ctl("undrain web")?;
        wait_until("new flows to the other target", || Ok(plc.curl(presence, "/").is_ok()))?;
        ensure!(pages(&world, presence).iter().all(|page| page == "web"), "the one is drained still");
        let twice = world.cloud.agent.ctl_output("undrain web")?;
        ensure!(twice.status.code() == Some(1), "nothing to undo");
        Ok(())
    });
}
