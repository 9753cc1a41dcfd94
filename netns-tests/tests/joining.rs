//! A site joins with one token of an issuer, and stays certified.
//!
//! ```text
//!   plc .2 -- factory gateway -- NAT -- internet -- cloud gateway (issuer) -- web .5
//!                                          |
//!                                         hub (where the cloud is behind a NAT too)
//! ```

use anyhow::{Context, Result, ensure};
use netns_tests::agent::{Agent, Config, Key, join_command};
use netns_tests::authority::Authority;
use netns_tests::world::{PORT, expose};
use netns_tests::{Access, Families, Family, Host, Internet, Lab, Plan, Site, TcpServer, story, wait_until};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;

/// An issuer with a service, and a site that has only a machine yet.
struct World {
    cloud: Agent,
    _web: TcpServer,
    factory: Site,
    plc: Host,
    pool: String,
    authority: Authority,
}

fn world(lab: &Lab) -> Result<World> {
    let (plan, internet) = (Plan::named("same", Families::V4)?, Internet::new(lab)?);
    let authority = Authority::new(lab, "acme", "acme")?;
    let site = Site::new(lab, "cloud", &plan.cloud_lan, &internet, Access::Direct)?;
    let web = site.host(lab, "web", 5)?;
    let address = web.address(Family::V4)?;
    let server = TcpServer::http(&web.namespace, (address, 80), "web of cloud")?;
    let config = Config {
        site: "cloud".to_owned(),
        pool: plan.cloud_pool.clone(),
        listen: Some(([0; 4], PORT).into()),
        peers: Vec::new(),
        rest: issuer(&authority, &format!("{}:{PORT}", site.uplink.v4), "")?
            + &expose("web", &format!("\"{address}\""), "tcp/80", "group:edge", "masquerade"),
    };
    let cloud = Agent::start(lab, &site.gateway, config, Key::new()?)?;
    let factory = Site::new(lab, "factory", &plan.factory_lan, &internet, Access::HOME_NAT)?;
    let plc = factory.host(lab, "plc", 2)?;
    let pool = plan.factory_pool.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    Ok(World { cloud, _web: server, factory, plc, pool: format!("--pool {pool}"), authority })
}

/// The sections of an issuer.
fn issuer(authority: &Authority, endpoint: &str, delegation: &str) -> Result<String> {
    let key = authority.delegate(delegation)?;
    Ok(format!("trust:\n{}issuer: {{key: {}, endpoint: \"{endpoint}\"}}\n", authority.trusted(), key.display()))
}

fn invite(issuer: &Agent, arguments: &str) -> Result<String> {
    let answer = issuer.ask(&format!("invite {arguments}"))?;
    ensure!(answer["warnings"] == Value::Array(Vec::new()), "{answer}");
    Ok(answer["token"].as_str().context("no token")?.to_owned())
}

/// Until the site has joined and its issuer is up.
fn wait_joined(agent: &Agent, issuer: &str) -> Result<()> {
    wait_until("the site to have joined", || {
        let status = agent.status()?;
        Ok(status["joining"].is_null() && status["certificate"]["state"] == "valid")
    })?;
    agent.wait_peer(issuer)
}

/// Whether an audit log has a record of this event, with this reason.
fn is_told(agent: &Agent, event: &str, reason: Option<&str>) -> Result<bool> {
    let records = agent.ctl(&format!("-o json audit -n 1000 --event {event}"))?;
    let records = records.lines().map(serde_json::from_str::<Value>).collect::<Result<Vec<_>, _>>()?;
    Ok(records.iter().any(|record| record["event"] == event && record["reason"].as_str() == reason))
}

#[test]
fn a_site_joins_with_one_token_and_uses_a_service() {
    story(|lab| {
        let world = world(lab)?;
        let token = invite(&world.cloud, "factory --group edge")?;
        let factory = Agent::join(lab, &world.factory.gateway, "factory", &token, &world.pool)?;
        wait_joined(&factory, "cloud")?;
        factory.ctl("map web.cloud")?;
        let page = world.plc.namespace.curl(factory.presence("web.cloud")?, "/")?;
        ensure!(page.starts_with("web of cloud\n"), "{page}");
        Ok(())
    });
}
