//! Sites that know each other by certificates: what these allow, and what ends when they do.
//!
//! ```text
//!   plc .2 -- factory1 gateway -- NAT --+
//!                                       internet -- cloud gateway -- web .5
//!   plc .2 -- factory2 gateway -- NAT --+
//! ```

use anyhow::{Context, Result, ensure};
use netns_tests::agent::{Agent, Peer};
use netns_tests::authority::{Authority, identity};
use netns_tests::{
    Download, Families, Family, Lab, Plan, Setup, Station, TcpServer, World, story, wait_until, wait_within,
};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// From the news, or the end of a certificate, to the end of the tunnel and its flows.
const END: Duration = Duration::from_secs(2);
/// More than the buffers of both hosts hold.
const DOWNLOAD_BYTES: usize = 32 << 20;

fn by_certificate(peer: &mut Peer, certificate: &Path) {
    peer.certificate = Some(certificate.to_owned());
}

fn reload(agent: &Agent) -> Result<()> {
    agent.write_config()?;
    agent.ctl("reload").map(drop)
}

fn services(web: &str, mail: &str) -> String {
    let service = |name: &str, port: u16, allow: &str| {
        format!(
            "  - {{name: {name}, target: {{web}}, ports: [tcp/{port}], allow: [\"{allow}\"], source: masquerade}}\n"
        )
    };
    format!("expose:\n{}{}", service("web", 80, web), service("mail", 25, mail))
}

fn world(lab: &Lab, plan: &Plan, factories: usize) -> Result<World> {
    let cloud = services("group:edge", "tenant:acme");
    let factory = "map:\n  - service: \"*.cloud\"\n".to_owned();
    World::new(lab, &Setup { factories, cloud, factory, ..Setup::new(plan) })
}

/// All sites know each other by certificates of this authority.
fn certify(world: &mut World, authority: &Authority) -> Result<Vec<PathBuf>> {
    let mut files = vec![authority.issue("cloud", &world.cloud.agent, "")?];
    for factory in &world.factories {
        files.push(authority.issue(&factory.site.name, &factory.agent, "--group edge,north")?);
    }
    for (number, factory) in world.factories.iter_mut().enumerate() {
        by_certificate(&mut world.cloud.agent.config.peers[number], &files[number + 1]);
        by_certificate(&mut factory.agent.config.peers[0], &files[0]);
        factory.agent.config.rest += &identity(&[authority], &files[number + 1]);
    }
    world.cloud.agent.config.rest += &identity(&[authority], &files[0]);
    for station in world.factories.iter().chain([&world.cloud]) {
        reload(&station.agent)?;
    }
    Ok(files)
}

/// A download that stays open for as long as nobody reads it.
fn download(station: &Station) -> Result<Download> {
    let presence = station.agent.presence("web.cloud")?;
    let mut download = Download::start(&station.host.namespace, presence, "web of cloud", DOWNLOAD_BYTES)?;
    download.read(100_000)?;
    Ok(download)
}

fn now() -> Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())
}

fn records(agent: &Agent) -> Result<Vec<Value>> {
    let log = fs::read_to_string(agent.directory().join("audit.jsonl"))?;
    log.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

/// Whether the audit log has a record of this event, with this reason, of this peer.
fn is_told(agent: &Agent, event: &str, reason: &str, peer: &str) -> Result<bool> {
    let is_it = |record: &Value| record["event"] == event && record["reason"] == reason && record["peer"] == peer;
    Ok(records(agent)?.iter().any(is_it))
}

fn peer(agent: &Agent, site: &str) -> Result<Value> {
    let status = agent.status()?;
    let peers = status["peers"].as_array().context("peers")?;
    Ok(peers.iter().find(|peer| peer["site"] == site).with_context(|| status.to_string())?.clone())
}

/// Until the peer is gone for this reason, with its flows, and the audit log says so.
fn wait_gone(agent: &Agent, site: &str, reason: &str, within: Duration) -> Result<()> {
    wait_within(within, &format!("{site} to be gone from {}", agent.config.site), || {
        let is_over = is_told(agent, "flow-closed", "revoked", site)?
            && is_told(agent, &format!("certificate-{reason}"), reason, site)?;
        Ok(is_over.then_some(()))
    })?;
    let peer = peer(agent, site)?;
    ensure!(peer["state"] == reason && peer["handshake_age_seconds"].is_null(), "{peer}");
    Ok(())
}

#[test]
fn a_group_and_a_tenant_open_what_a_name_alone_does_not() {
    story(|lab| {
        let plan = Plan::named("same", Families::V4)?;
        let mut world = world(lab, &plan, 2)?;
        let acme = Authority::new(lab, "acme", "acme")?;
        let host = &world.cloud.host.namespace;
        let address = world.cloud.address(Family::V4)?;
        let _web = TcpServer::http(host, (address, 80), "web of cloud")?;
        let _mail = TcpServer::http(host, (address, 25), "mail of cloud")?;
        ensure!(world.factories[0].agent.status()?["presences"].as_array().is_some_and(Vec::is_empty));

        // The first one by certificate, the second by key: it gets its tenant by what it presents.
        let first = acme.issue("factory1", &world.factories[0].agent, "--group edge,north")?;
        let second = acme.issue("factory2", &world.factories[1].agent, "")?;
        let cloud = acme.issue("cloud", &world.cloud.agent, "")?;
        by_certificate(&mut world.cloud.agent.config.peers[0], &first);
        world.cloud.agent.config.rest += &identity(&[&acme], &cloud);
        world.factories[0].agent.config.rest += &identity(&[&acme], &first);
        world.factories[1].agent.config.rest += &identity(&[&acme], &second);
        for station in world.factories.iter().chain([&world.cloud]) {
            reload(&station.agent)?;
        }
        let [one, two] = &world.factories[..] else { return Ok(()) };
        ensure!(one.host.namespace.curl(one.agent.presence("web.cloud")?, "/")?.starts_with("web of cloud"));
        for station in [one, two] {
            let mail = station.agent.presence("mail.cloud")?;
            let page = station.host.namespace.http((mail, 25), "/")?;
            ensure!(String::from_utf8_lossy(&page).contains("mail of cloud"));
        }
        ensure!(!two.agent.ctl("services")?.contains("web.cloud"), "web is for group edge");
        let status = world.cloud.agent.status()?;
        ensure!(status["certificate"]["state"] == "valid", "{status}");
        let [one, two] = ["factory1", "factory2"].map(|site| peer(&world.cloud.agent, site));
        let (one, two) = (one?, two?);
        ensure!(one["tenant"] == "acme" && one["groups"] == serde_json::json!(["edge", "north"]), "{one}");
        ensure!(two["tenant"] == "acme" && two["certificate"]["state"] == "valid", "{two}");
        let shown = world.cloud.agent.ctl("status")?;
        ensure!(shown.contains("Certificates") && shown.contains("edge,north"), "{shown}");
        ensure!(world.cloud.agent.figure("vp_certificate_remaining_seconds")? > 3 * 80 * 24 * 3600);
        Ok(())
    });
}

#[test]
fn a_certificate_that_ends_takes_an_open_download_with_it_and_a_new_one_brings_the_peer_back() {
    story(|lab| {
        const VALID: Duration = Duration::from_secs(6);
        let plan = Plan::named("same", Families::V4)?;
        let mut world = world(lab, &plan, 1)?;
        let acme = Authority::new(lab, "acme", "acme")?;
        let _web =
            TcpServer::http(&world.cloud.host.namespace, (world.cloud.address(Family::V4)?, 80), "web of cloud")?;
        let files = certify(&mut world, &acme)?;
        let factory = &world.factories[0];
        let _first = download(factory)?;

        let short = acme.issue("short", &factory.agent, &format!("--group edge --valid {}s", VALID.as_secs()))?;
        let ends = Instant::now() + VALID;
        by_certificate(&mut world.cloud.agent.config.peers[0], &short);
        reload(&world.cloud.agent)?;
        ensure!(peer(&world.cloud.agent, "factory1")?["certificate"]["state"] == "valid");
        wait_gone(&world.cloud.agent, "factory1", "expired", ends + END - Instant::now())?;
        let doctor = world.cloud.agent.ctl("doctor")?;
        ensure!(doctor.contains("certificate-not-valid"), "{doctor}");
        refused(
            &world.cloud.agent,
            "ping metrics.factory1",
            &["no peer at present, its certificate does not hold: expired"],
        )?;

        // As who renews certificates would put it there.
        acme.issue("short", &factory.agent, "--group edge")?;
        world.cloud.agent.wait_peer("factory1")?;
        let _second = download(factory)?;
        ensure!(files[1].exists());
        Ok(())
    });
}

#[test]
fn a_revocation_ends_the_tunnel_where_it_is_given_and_spreads_to_others_and_outlives_restarts() {
    story(|lab| {
        let plan = Plan::named("same", Families::V4)?;
        let mut world = world(lab, &plan, 2)?;
        let acme = Authority::new(lab, "acme", "acme")?;
        let _web =
            TcpServer::http(&world.cloud.host.namespace, (world.cloud.address(Family::V4)?, 80), "web of cloud")?;
        let files = certify(&mut world, &acme)?;
        // The third site knows the first too, without a tunnel.
        let stranger = Peer { certificate: Some(files[1].clone()), ..Peer::default() };
        world.factories[1].agent.config.peers.push(stranger);
        reload(&world.factories[1].agent)?;
        ensure!(peer(&world.factories[1].agent, "factory1")?["certificate"]["state"] == "valid");
        let (_lost, mut kept) = (download(&world.factories[0])?, download(&world.factories[1])?);

        let list = acme.revoke(&files[1])?;
        let older = fs::read(&list)?;
        let given = Instant::now();
        let said = world.cloud.agent.ctl(&format!("revocations add {}", list.display()))?;
        ensure!(said == "acme: version 1, 1 revoked\n", "{said}");
        wait_gone(&world.cloud.agent, "factory1", "revoked", given + END - Instant::now())?;
        wait_within(given + 2 * END - Instant::now(), "the list at the third site", || {
            Ok((peer(&world.factories[1].agent, "factory1")?["state"] == "revoked").then_some(()))
        })?;
        kept.read(DOWNLOAD_BYTES / 2)?;
        ensure!(is_told(&world.factories[1].agent, "certificate-revoked", "revoked", "factory1")?);

        // Of the next version is the same and one more; the one before is refused then, also after a restart.
        let unused = acme.issue("unused", &world.factories[0].agent, "")?;
        acme.revoke(&unused)?;
        world.cloud.agent.ctl(&format!("revocations add {}", list.display()))?;
        for station in [&mut world.cloud, &mut world.factories[1]] {
            station.agent.kill()?;
            station.agent.start_again(lab)?;
            ensure!(peer(&station.agent, "factory1")?["state"] == "revoked");
        }
        fs::write(&list, older)?;
        let refused = world.cloud.agent.ctl_output(&format!("revocations add {}", list.display()))?;
        let said = String::from_utf8_lossy(&refused.stderr);
        ensure!(refused.status.code() == Some(1) && said.contains("older: a later one is known"), "{said}");
        ensure!(world.cloud.agent.figure("vp_certificates_refused_total")? == 1);
        ensure!(world.cloud.agent.figure("vp_revocations_version")? == 2);

        // A certificate issued since, for the same key, is another one.
        acme.issue("factory1", &world.factories[0].agent, "--group edge")?;
        world.cloud.agent.wait_peer("factory1")
    });
}

#[test]
fn an_authority_takes_the_place_of_another_while_a_download_goes_on() {
    story(|lab| {
        let plan = Plan::named("same", Families::V4)?;
        let mut world = world(lab, &plan, 1)?;
        let (old, new) = (Authority::new(lab, "acme", "old")?, Authority::new(lab, "acme", "new")?);
        let _web =
            TcpServer::http(&world.cloud.host.namespace, (world.cloud.address(Family::V4)?, 80), "web of cloud")?;
        let files = certify(&mut world, &old)?;
        let made = now()?;
        let open = download(&world.factories[0])?;
        let serial = |world: &World| Ok(peer(&world.cloud.agent, "factory1")?["certificate"]["serial"].clone());
        let before: Result<Value> = serial(&world);
        let before = before?;

        // Both are trusted; then each site puts its new certificate in place of the old one, and presents it.
        for agent in [&mut world.cloud.agent, &mut world.factories[0].agent] {
            agent.config.rest = agent.config.rest.replace(&old.trusted(), &(old.trusted() + &new.trusted()));
            reload(agent)?;
        }
        wait_until("another second, for certificates count in these", || Ok(now()? > made))?;
        new.issue("cloud", &world.cloud.agent, "")?;
        new.issue("factory1", &world.factories[0].agent, "--group edge")?;
        wait_until("the new certificate at the cloud", || {
            let now: Result<Value> = serial(&world);
            Ok(now? != before)
        })?;
        // The old one goes.
        for agent in [&mut world.cloud.agent, &mut world.factories[0].agent] {
            agent.config.rest = agent.config.rest.replace(&old.trusted(), "");
            reload(agent)?;
        }
        open.finish()?;
        ensure!(peer(&world.cloud.agent, "factory1")?["certificate"]["state"] == "valid");

        // What the old one signs now is nothing.
        let late = old.issue("late", &world.factories[0].agent, "--group edge")?;
        by_certificate(&mut world.cloud.agent.config.peers[0], &late);
        world.cloud.agent.write_config()?;
        refused(&world.cloud.agent, "reload", &["agent.yaml:", "late.certificate", "unknown-authority"])?;
        ensure!(files.len() == 2);
        Ok(())
    });
}

fn refused(agent: &Agent, arguments: &str, expected: &[&str]) -> Result<()> {
    let output = agent.ctl_output(arguments)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(1), "{arguments}: {said}");
    for words in expected {
        ensure!(said.contains(words), "no {words:?} in: {said}");
    }
    Ok(())
}

#[test]
fn certificates_of_others_from_the_future_and_altered_ones_are_refused_with_the_reason() {
    story(|lab| {
        let plan = Plan::named("same", Families::V4)?;
        let mut world = world(lab, &plan, 1)?;
        let (acme, beta) = (Authority::new(lab, "acme", "acme")?, Authority::new(lab, "beta", "beta")?);
        let factory = &mut world.factories[0].agent;
        let cloud = &mut world.cloud.agent;
        let plain = cloud.config.rest.clone();
        // Presented over the tunnel, by a peer whose authority nobody here knows.
        let own = acme.issue("cloud", cloud, "")?;
        cloud.config.rest += &identity(&[&acme], &own);
        reload(cloud)?;
        let foreign = beta.issue("factory1", factory, "--group edge")?;
        factory.config.rest += &identity(&[&beta], &foreign);
        reload(factory)?;
        wait_until("the refusal", || is_told(cloud, "certificate-refused", "unknown-authority", "factory1"))?;
        ensure!(peer(cloud, "factory1")?["tenant"].is_null());
        ensure!(cloud.figure("vp_certificates_refused_total")? >= 1);

        // In the file.
        let mistaken = beta.trusted().replace("beta", "acme");
        cloud.config.rest = format!("{plain}trust:\n{mistaken}");
        by_certificate(&mut cloud.config.peers[0], &foreign);
        cloud.write_config()?;
        refused(cloud, "reload", &["agent.yaml:9:18: certificate: ", "wrong-tenant"])?;
        cloud.config.rest = plain + &identity(&[&acme], &own);
        let good = acme.issue("good", factory, "--group edge")?;
        let text = fs::read_to_string(&good)?;
        let (at, letter) = text.char_indices().nth(100).context("long enough")?;
        let altered = format!("{}{}{}", &text[..at], if letter == 'A' { 'B' } else { 'A' }, &text[at + 1..]);
        fs::write(&good, altered)?;
        by_certificate(&mut cloud.config.peers[0], &good);
        cloud.write_config()?;
        refused(cloud, "reload", &["agent.yaml:9:18: certificate: ", "good.certificate"])?;
        let future = acme.issue("future", factory, "--group edge --starts-in 1h")?;
        by_certificate(&mut cloud.config.peers[0], &future);
        reload(cloud)?;
        ensure!(peer(cloud, "factory1")?["state"] == "not-yet-valid");
        wait_until("the record", || is_told(cloud, "certificate-refused", "not-yet-valid", "factory1"))
    });
}
