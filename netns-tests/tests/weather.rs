//! A path that delays, loses, doubles and reorders, and a NAT that forgets: what is open goes on, every byte right.
//!
//! ```text
//!   plc .2 -- factory1 gateway -- NAT -- internet (bad weather) -- cloud gateway -- web .5
//! ```

use anyhow::{Context, Result, ensure};
use netns_tests::server::Content;
use netns_tests::{Access, Download, Lab, Plan, Setup, TcpServer, Weather, World, for_each_plan};
use std::time::Duration;

const BYTES: usize = 3_000_000;

for_each_plan!(a_download_survives_bad_weather);
for_each_plan!(a_download_survives_a_nat_that_forgets);

fn a_download_survives_bad_weather(lab: &Lab, plan: &Plan) -> Result<()> {
    let weather = Weather { delay: Duration::from_millis(5), jitter: Duration::from_millis(5), lost: 10, doubled: 10 };
    let world = World::new(lab, &Setup { weather: Some(weather), ..Setup::new(plan) })?;
    let web = (world.cloud.address(plan.family())?, 80);
    let _web = TcpServer::http(&world.cloud.host.namespace, web, "web of cloud")?;
    let presence = world.factories[0].agent.presence("web.cloud")?;
    let got = world.factories[0].host.namespace.http((presence, 80), &format!("/bytes/{BYTES}"))?;
    ensure!(got == Content::new("web of cloud").take(BYTES), "the download differs");
    Ok(())
}

fn a_download_survives_a_nat_that_forgets(lab: &Lab, plan: &Plan) -> Result<()> {
    let world = World::new(lab, &Setup { access: Access::SYMMETRIC_NAT, ..Setup::new(plan) })?;
    let web = (world.cloud.address(plan.family())?, 80);
    let _web = TcpServer::http(&world.cloud.host.namespace, web, "web of cloud")?;
    let factory = &world.factories[0];
    let presence = factory.agent.presence("web.cloud")?;
    let mut download = Download::start(&factory.host.namespace, presence, "web of cloud", 10 * BYTES)?;
    download.read(5 * BYTES)?;
    factory.site.access.as_ref().context("a NAT")?.forget()?;
    download.finish()
}
