//! kill -9 of either agent and a new start: every address is the same, and what was open goes on.
//!
//! ```text
//!   plc .2 -- factory1 gateway -- NAT -- internet -- cloud gateway -- web .5
//! ```

use anyhow::{Context, Result, ensure};
use netns_tests::world::expose;
use netns_tests::{Download, Lab, Plan, Setup, Station, TcpServer, World, for_each_plan};
use serde_json::Value;

/// More than the buffers of both hosts hold, so that the download is open when an agent is killed.
const DOWNLOAD_BYTES: usize = 32 << 20;

for_each_plan!(a_download_survives_kill_9_of_both_agents_with_masquerade);
for_each_plan!(a_download_survives_kill_9_of_both_agents_with_presence);

fn a_download_survives_kill_9_of_both_agents_with_masquerade(lab: &Lab, plan: &Plan) -> Result<()> {
    survive(lab, plan, "masquerade")
}

fn a_download_survives_kill_9_of_both_agents_with_presence(lab: &Lab, plan: &Plan) -> Result<()> {
    survive(lab, plan, "presence")
}

fn survive(lab: &Lab, plan: &Plan, source: &str) -> Result<()> {
    let family = plan.family();
    let cloud = expose("web", "{web}", "tcp/80", "any", source);
    let mut world = World::new(lab, &Setup { cloud, ..Setup::new(plan) })?;
    let _web = TcpServer::http(&world.cloud.host.namespace, (world.cloud.address(family)?, 80), "web of cloud")?;
    let plc = world.factories[0].host.namespace.clone();
    let presence = world.factories[0].agent.presence("web.cloud")?;

    let mut download = Download::start(&plc, presence, "web of cloud", DOWNLOAD_BYTES)?;
    download.read(DOWNLOAD_BYTES / 3)?;
    kill_and_start(lab, &mut world.factories[0])?;
    download.read(DOWNLOAD_BYTES / 3)?;
    kill_and_start(lab, &mut world.cloud)?;
    download.finish()?;

    // And new calls are answered as before.
    ensure!(world.factories[0].agent.presence("web.cloud")? == presence);
    let page = plc.curl(presence, "/")?;
    ensure!(page.starts_with("web of cloud\n"), "{page}");
    Ok(())
}

fn kill_and_start(lab: &Lab, station: &mut Station) -> Result<()> {
    let before = addresses(&station.agent.status()?)?;
    station.agent.kill()?;
    station.agent.start_again(lab)?;
    let after = addresses(&station.agent.status()?)?;
    ensure!(before == after, "{before:?} became {after:?}");
    Ok(())
}

/// Every presence and caller with its address, sorted.
fn addresses(status: &Value) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for (list, name) in [("presences", "service"), ("callers", "wire_address")] {
        for entry in status[list].as_array().with_context(|| list.to_owned())? {
            all.push(format!("{} {} {}", entry[name], entry["site"], entry["address"]));
        }
    }
    all.sort();
    ensure!(!all.is_empty(), "no addresses at all: {status}");
    Ok(all)
}
