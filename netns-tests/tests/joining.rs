//! A site joins with one token of an issuer, and stays certified.
//!
//! ```text
//!   plc .2 -- factory gateway -- NAT -- internet -- cloud gateway (issuer) -- web .5
//!                                          |
//!                                         hub (where the cloud is behind a NAT too)
//! ```

use anyhow::{Context, Result, bail, ensure};
use netns_tests::agent::{Agent, Config, Key, Peer, join_command};
use netns_tests::authority::{Authority, identity};
use netns_tests::world::{PORT, expose};
use netns_tests::{Access, Families, Family, Host, Internet, Lab, Plan, Process, Site, TcpServer, story, wait_until};
use serde_json::Value;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

/// More than the buffers of both hosts hold.
const DOWNLOAD_BYTES: usize = 32 << 20;

/// An issuer with a service, and a site that has only a machine yet.
struct World {
    cloud: Agent,
    _web: TcpServer,
    factory: Site,
    plc: Host,
    pool: String,
    authority: Authority,
    internet: Internet,
}

fn world(lab: &Lab) -> Result<World> {
    world_of(lab, "")
}

/// The issuer with more in its configuration.
fn world_of(lab: &Lab, more: &str) -> Result<World> {
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
        rest: issuer(&authority, &format!("{}:{PORT}", site.uplink.v4))?
            + &expose("web", &format!("\"{address}\""), "tcp/80", "group:edge", "masquerade")
            + more,
    };
    let cloud = Agent::start(lab, &site.gateway, config, Key::new()?)?;
    let factory = Site::new(lab, "factory", &plan.factory_lan, &internet, Access::HOME_NAT)?;
    let plc = factory.host(lab, "plc", 2)?;
    let pool = plan.factory_pool.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    Ok(World { cloud, _web: server, factory, plc, pool: format!("--pool {pool}"), authority, internet })
}

/// The sections of an issuer.
fn issuer(authority: &Authority, endpoint: &str) -> Result<String> {
    let key = authority.delegate("")?;
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

/// What `vp-ctl join` says when it refuses, on a machine of this site's.
fn refused(lab: &Lab, world: &World, offer: &str) -> Result<String> {
    match Agent::installed(lab, &world.factory.gateway, "factory", offer, &world.pool) {
        Ok(_) => bail!("it was taken"),
        Err(error) => {
            let said = format!("{error:#}");
            ensure!(said.contains("exit status: 1"), "{said}");
            Ok(said)
        }
    }
}

/// Until the agent on `machine` says that its issuer refused, and why.
fn wait_refused(agent: &Agent, reason: &str) -> Result<()> {
    wait_until(&format!("the refusal: {reason}"), || {
        let status = agent.status()?;
        let said = status["joining"]["refused"].as_str().context("not refused")?;
        Ok(said.starts_with(&format!("{reason}: ")))
    })?;
    let health = agent.ctl_output("doctor")?;
    ensure!(String::from_utf8_lossy(&health.stdout).contains("did not let this site join"), "doctor is silent");
    Ok(())
}

fn mode(path: &Path) -> Result<u32> {
    Ok(fs::metadata(path).with_context(|| path.display().to_string())?.permissions().mode() & 0o777)
}

#[test]
fn a_site_joins_with_one_token_and_uses_a_service_and_nobody_can_read_the_secrets() {
    story(|lab| {
        let world = world(lab)?;
        let token = invite(&world.cloud, "factory --group edge")?;
        let open = world.cloud.ask("invitations")?;
        ensure!(open[0]["state"] == "open" && open[0]["uses_left"] == 1 && open[0]["site"] == "factory", "{open}");
        let mut factory = Agent::installed(lab, &world.factory.gateway, "factory", &token, &world.pool)?;
        let (directory, state) = (factory.directory().to_owned(), factory.directory().join("state"));
        ensure!(mode(&state)? == 0o700 && mode(&state.join("invitation"))? == 0o600);
        factory.start_again(lab)?;
        wait_joined(&factory, "cloud")?;
        ensure!(!state.join("invitation").exists(), "the token is forgotten");
        ensure!(mode(&state.join("site.key"))? == 0o600);
        factory.ctl("map web.cloud")?;
        let page = world.plc.namespace.curl(factory.presence("web.cloud")?, "/")?;
        ensure!(page.starts_with("web of cloud\n"), "{page}");

        let invitations = world.cloud.ask("invitations")?;
        ensure!(invitations[0]["state"] == "used" && invitations[0]["uses_left"] == 0, "{invitations}");
        ensure!(is_told(&world.cloud, "invited", None)? && is_told(&world.cloud, "joined", None)?);
        ensure!(is_told(&factory, "joined", None)? || factory.process().log().contains("joined"));
        ensure!(world.cloud.figure("vp_joins_total")? == 1 && world.cloud.figure("vp_invitations_open")? == 0);
        // Not in a log, the configuration or the issuer's own files.
        let kept = world.cloud.directory().join("state/invitations.json");
        for file in [directory.join("agent.yaml"), world.cloud.directory().join("audit.jsonl"), kept] {
            let text = fs::read_to_string(&file)?;
            ensure!(!text.contains(&token) && !text.contains(&token[4..200]), "{}", file.display());
        }
        for log in [factory.process().log(), world.cloud.process().log()] {
            ensure!(!log.contains("vp1."), "{log}");
        }
        Ok(())
    });
}

#[test]
fn vp_ctl_join_waits_until_the_site_has_joined() {
    story(|lab| {
        let world = world(lab)?;
        let file = lab.directory().join("factory.token");
        world.cloud.ctl(&format!("invite factory --group edge --out {}", file.display()))?;
        ensure!(mode(&file)? == 0o600);
        let directory = lab.directory().join(world.factory.gateway.label());
        fs::create_dir_all(&directory)?;
        let arguments = format!("{} --wait 60s", world.pool);
        let mut join = join_command(&directory, &file.to_string_lossy(), &arguments)?;
        let mut join = Process::start(lab, "vp-ctl-join", &mut join)?;
        wait_until("the token", || Ok(directory.join("state/invitation").exists()))?;
        let mut factory = Agent::found(lab, &world.factory.gateway, "factory")?;
        factory.start_again(lab)?;
        let ended = join.wait()?;
        ensure!(ended.success() && join.log().contains("factory has joined acme"), "{ended} {}", join.log());
        ensure!(!join.log().contains("vp1."));
        factory.wait_peer("cloud")
    });
}

#[test]
fn a_token_that_is_used_expired_or_taken_back_is_refused_with_its_reason() {
    story(|lab| {
        let world = world(lab)?;
        let other = Site::new(lab, "depot", &world.factory.prefixes, &world.internet, Access::HOME_NAT)?;
        let token = invite(&world.cloud, "factory --group edge")?;
        let first = Agent::join(lab, &world.factory.gateway, "factory", &token, &world.pool)?;
        wait_joined(&first, "cloud")?;
        let second = Agent::join(lab, &other.gateway, "factory", &token, &world.pool)?;
        wait_refused(&second, "used")?;
        ensure!(is_told(&world.cloud, "join-refused", Some("used"))?);
        ensure!(is_told(&second, "join-refused", Some("used"))?);
        first.wait_peer("cloud")?;
        drop(second);

        // Of the same token nothing comes any more, whatever else the machine is told.
        let taken_back = invite(&world.cloud, "depot")?;
        let known = world.cloud.ask("invitations")?;
        let id = known[1]["id"].as_str().context("no id")?;
        world.cloud.ctl(&format!("invitations --revoke {id}"))?;
        let replace = format!("{} --replace", world.pool);
        let third = Agent::join(lab, &other.gateway, "depot", &taken_back, &replace)?;
        wait_refused(&third, "taken-back")?;
        ensure!(is_told(&world.cloud, "join-refused", Some("taken-back"))?);
        drop(third);

        // One that is good when it is installed, and not when it is presented.
        let short = invite(&world.cloud, "depot --expires 3s")?;
        let mut fourth = Agent::installed(lab, &other.gateway, "depot", &short, &replace)?;
        wait_until("the invitation to expire", || is_told(&world.cloud, "invitation-expired", None))?;
        fourth.start_again(lab)?;
        wait_refused(&fourth, "expired")?;
        ensure!(is_told(&world.cloud, "join-refused", Some("expired"))?);
        ensure!(world.cloud.figure("vp_joins_refused_total")? >= 3);
        let late = Agent::installed(lab, &other.gateway, "depot", &short, &replace);
        let late = format!("{:#}", late.err().context("it was taken")?);
        ensure!(late.contains("the token: expired: "), "{late}");
        Ok(())
    });
}

#[test]
fn what_was_altered_on_its_way_is_refused_before_anybody_is_called() {
    story(|lab| {
        let world = world(lab)?;
        let token = invite(&world.cloud, "factory --group edge")?;
        let at = token.len() / 2;
        let letter = if token.as_bytes()[at] == b'A' { "B" } else { "A" };
        let altered = format!("{}{letter}{}", &token[..at], &token[at + 1..]);
        for (offer, reason) in
            [(altered.as_str(), "altered or cut"), (&token[..300], "altered or cut"), ("", "no token")]
        {
            let said = refused(lab, &world, offer)?;
            ensure!(said.contains(reason), "{said}");
        }
        let large = refused(lab, &world, &format!("vp1.{}", "A".repeat(7000)))?;
        ensure!(large.contains("too-large: "), "{large}");

        let file = lab.directory().join("factory.bundle");
        world.cloud.ctl(&format!("invite factory --bundle {} {}", file.display(), world.pool))?;
        let bundle = fs::read_to_string(&file)?;
        let said = refused(lab, &world, &bundle.replacen("AAA", "AAB", 1).replacen('e', "f", 200))?;
        ensure!(said.contains("altered or cut") || said.contains("no base64"), "{said}");
        ensure!(!lab.directory().join(world.factory.gateway.label()).join("state").exists(), "nothing was written");

        // By who can write to the gateway's own files.
        let mut factory = Agent::installed(lab, &world.factory.gateway, "factory", &token, &world.pool)?;
        fs::write(factory.directory().join("state/invitation"), altered)?;
        let ended = factory.start_again(lab).err().context("it started")?;
        ensure!(format!("{ended:#}").contains("bad-signature: "), "{ended:#}");
        Ok(())
    });
}

#[test]
fn a_bundle_installs_without_a_network_and_the_site_joins_when_that_is_there() {
    story(|lab| {
        let world = world(lab)?;
        let file = lab.directory().join("factory.bundle");
        let with = format!("--group edge --expires 1d --bundle {} {}", file.display(), world.pool);
        world.cloud.ctl(&format!("invite factory {with}"))?;
        ensure!(mode(&file)? == 0o600);
        let bundle = fs::read_to_string(&file)?;
        ensure!(bundle.starts_with("Virtual Presence: ") && bundle.contains("-----BEGIN VP BUNDLE-----"), "{bundle}");
        world.internet.lose(&world.factory.uplink, 1000)?;
        let unit = lab.directory().join("vp-agent.service");
        let to_unit = format!("--unit {}", unit.display());
        let factory = Agent::join(lab, &world.factory.gateway, "factory", &bundle, &to_unit)?;
        ensure!(fs::read_to_string(&unit)?.contains("/vp-agent --config"));
        let status = factory.status()?;
        ensure!(status["joining"]["issuer"] == "cloud" && status["certificate"].is_null(), "{status}");
        let said = factory.ctl_output("map web.cloud")?;
        ensure!(String::from_utf8_lossy(&said.stderr).contains("this site is joining by cloud"));
        world.internet.calm()?;
        wait_joined(&factory, "cloud")?;
        factory.ctl("map web.cloud")?;
        let page = world.plc.namespace.curl(factory.presence("web.cloud")?, "/")?;
        ensure!(page.starts_with("web of cloud\n"), "{page}");
        Ok(())
    });
}

#[test]
fn a_certificate_is_renewed_under_an_open_download_and_when_it_cannot_be_that_is_said() {
    story(|lab| {
        let mut world = world(lab)?;
        let token = invite(&world.cloud, "factory --group edge --valid 9s")?;
        let factory = Agent::join(lab, &world.factory.gateway, "factory", &token, &world.pool)?;
        wait_joined(&factory, "cloud")?;
        factory.ctl("map web.cloud")?;
        let mut stream = world.plc.namespace.tcp((factory.presence("web.cloud")?, 80))?;
        stream.set_read_timeout(Some(Duration::from_secs(20)))?;
        write!(stream, "GET /bytes/{DOWNLOAD_BYTES} HTTP/1.1\r\nHost: lab\r\n\r\n")?;
        let mut got = vec![0; DOWNLOAD_BYTES / 8];
        stream.read_exact(&mut got)?;
        let serial = |status: Value| status["certificate"]["serial"].as_str().map(ToOwned::to_owned);
        let mut known = serial(factory.status()?).context("no certificate")?;
        for _ in 0..2 {
            wait_until("the next certificate", || Ok(serial(factory.status()?).is_some_and(|serial| serial != known)))?;
            known = serial(factory.status()?).context("no certificate")?;
            stream.read_exact(&mut got)?;
        }
        ensure!(is_told(&world.cloud, "renewed", None)? && is_told(&factory, "certificate-renewed", None)?);
        ensure!(!is_told(&world.cloud, "flow-closed", Some("revoked"))? && !is_told(&world.cloud, "peer-down", None)?);
        ensure!(factory.figure("vp_certificate_renewals_total")? >= 2);
        ensure!(factory.status()?["renewal"]["issuer"] == "cloud");
        world.cloud.kill()?;
        wait_until("the failure to be told", || {
            let doctor = String::from_utf8_lossy(&factory.ctl_output("doctor")?.stdout).into_owned();
            Ok(doctor.contains("renewal-failed") && !factory.status()?["renewal"]["failure"].is_null())
        })?;
        ensure!(factory.figure("vp_certificate_renewals_failed_total")? >= 1);
        Ok(())
    });
}

#[test]
fn an_invitation_outlives_its_issuers_end_and_a_revoked_site_is_not_renewed_where_the_issuer_is_a_hub() {
    story(|lab| {
        let mut world = world_of(lab, "hub: {}\n")?;
        let token = invite(&world.cloud, "factory --group edge --valid 30s")?;
        world.cloud.kill()?;
        world.cloud.start_again(lab)?;
        let factory = Agent::join(lab, &world.factory.gateway, "factory", &token, &world.pool)?;
        wait_joined(&factory, "cloud")?;
        world.cloud.kill()?;
        world.cloud.start_again(lab)?;
        factory.wait_peer("cloud")?;
        world.cloud.wait_peer("factory")?;
        let certificate = factory.directory().join("state/site.certificate");
        let list = world.authority.revoke(&certificate)?;
        world.cloud.ctl(&format!("revocations add {}", list.display()))?;
        wait_until("the tunnel to end", || {
            let status = world.cloud.status()?;
            let peers = status["peers"].as_array().context("no peers")?;
            Ok(!peers.iter().any(|peer| peer["site"] == "factory" && peer["state"] == "up"))
        })?;
        ensure!(is_told(&world.cloud, "certificate-revoked", Some("revoked"))?);
        ensure!(!is_told(&world.cloud, "renewed", None)?);
        Ok(())
    });
}

#[test]
fn a_site_joins_through_a_hub_by_an_issuer_that_is_behind_a_nat_too() {
    story(|lab| {
        let (plan, internet) = (Plan::named("same", Families::V4)?, Internet::new(lab)?);
        let authority = Authority::new(lab, "acme", "acme")?;
        let hub_site = Site::new(lab, "hub", &plan.cloud_lan, &internet, Access::Direct)?;
        let cloud_site = Site::new(lab, "cloud", &plan.cloud_lan, &internet, Access::HOME_NAT)?;
        let factory_site = Site::new(lab, "factory", &plan.factory_lan, &internet, Access::HOME_NAT)?;
        let (web, plc) = (cloud_site.host(lab, "web", 5)?, factory_site.host(lab, "plc", 2)?);
        let address = web.address(Family::V4)?;
        let _web = TcpServer::http(&web.namespace, (address, 80), "web of cloud")?;
        let (hub_key, cloud_key) = (Key::new()?, Key::new()?);
        let certificate = authority.issue_for("cloud", "cloud", &cloud_key, "")?;
        let hub_config = Config {
            site: "hub".to_owned(),
            pool: plan.cloud_pool.clone(),
            listen: Some(([0; 4], PORT).into()),
            peers: vec![Peer { certificate: Some(certificate.clone()), ..Peer::default() }],
            rest: format!("hub: {{}}\ntrust:\n{}", authority.trusted()),
        };
        let its_hub = Peer {
            site: "hub".to_owned(),
            public_key: hub_key.public(),
            endpoint: Some((hub_site.uplink.v4, PORT).into()),
            rest: "hub: true".to_owned(),
            ..Peer::default()
        };
        let key = authority.delegate("")?;
        let cloud_config = Config {
            site: "cloud".to_owned(),
            pool: plan.cloud_pool.clone(),
            listen: None,
            peers: vec![its_hub],
            rest: identity(&[&authority], &certificate)
                + &format!("issuer: {{key: {}}}\n", key.display())
                + &expose("web", &format!("\"{address}\""), "tcp/80", "group:edge", "masquerade"),
        };
        let hub = Agent::start(lab, &hub_site.gateway, hub_config, hub_key)?;
        let cloud = Agent::start(lab, &cloud_site.gateway, cloud_config, cloud_key)?;
        cloud.wait_peer("hub")?;
        hub.wait_peer("cloud")?;
        let token = invite(&cloud, "factory --group edge --valid 12s")?;
        let pool: Vec<String> = plan.factory_pool.iter().map(ToString::to_string).collect();
        let factory =
            Agent::join(lab, &factory_site.gateway, "factory", &token, &format!("--pool {}", pool.join(",")))?;
        wait_joined(&factory, "cloud")?;
        factory.wait_peer("hub")?;
        factory.ctl("map web.cloud")?;
        let page = plc.namespace.curl(factory.presence("web.cloud")?, "/")?;
        ensure!(page.starts_with("web of cloud\n"), "{page}");
        wait_until("the next certificate", || is_told(&factory, "certificate-renewed", None))?;
        factory.wait_peer("hub")
    });
}
