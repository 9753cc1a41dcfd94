//! One hub of fifty tenants, whose sites, services and addresses are all called and numbered the same.
//!
//! ```text
//!   tenant-00: factory 10.0.0.1 --\                         /-- cloud, web at 127.0.0.1 :tenant-00
//!   tenant-01: factory 10.0.0.1 ---+-- exchange -- hub ----+--- cloud, web at 127.0.0.1 :tenant-01
//!   ...                           /                         \   ...
//! ```

use anyhow::{Context, Result, ensure};
use netns_tests::authority::{Authority, identity};
use netns_tests::world::{PORT, expose};
use netns_tests::{Agent, Config, Key, Lab, Namespace, Peer, TcpServer, story, wait_within};
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

const TENANTS: u8 = 50;
const HUB: Ipv4Addr = Ipv4Addr::new(100, 64, 255, 1);
/// What stands for `web.cloud` at each factory.
const PRESENCE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 1, 2));
/// A hundred agents share the machine.
const PATIENCE: Duration = Duration::from_secs(120);

struct Tenant {
    name: String,
    authority: Authority,
    factory: Member,
    cloud: Member,
}

/// A site that is going to be one of the tenant's.
struct Member {
    machine: Namespace,
    key: Key,
    certificate: PathBuf,
}

struct Running {
    name: String,
    factory: (Agent, Namespace),
    cloud: Agent,
    _web: TcpServer,
}

/// A machine at the exchange, with the LAN address that all have.
fn machine(lab: &Lab, exchange: &Namespace, label: &str, number: u16, address: Ipv4Addr) -> Result<Namespace> {
    let machine = lab.namespace(label)?;
    machine.forward()?;
    exchange.ip(&format!(
        "link add name port{number} type veth peer name wan0 netns {}
         link set port{number} master br0
         link set port{number} up",
        machine.name()
    ))?;
    machine.ip(&format!(
        "addr add {address}/16 dev wan0
         link set wan0 up
         link add name lan0 type bridge
         addr add 10.0.0.1/24 dev lan0
         link set lan0 up"
    ))?;
    Ok(machine)
}

fn tenant(lab: &Lab, exchange: &Namespace, number: u8) -> Result<Tenant> {
    let name = format!("tenant-{number:02}");
    let authority = Authority::new(lab, &name, &name)?;
    let member = |site: &str, of_two: u8| {
        let (label, key) = (format!("{site}{number}"), Key::new()?);
        let address = Ipv4Addr::new(100, 64, number, of_two + 1);
        let machine = machine(lab, exchange, &label, 2 * u16::from(number) + u16::from(of_two), address)?;
        let certificate = authority.issue_for(&format!("{name}-{site}"), site, &key, "--group edge")?;
        anyhow::Ok(Member { machine, key, certificate })
    };
    let (factory, cloud) = (member("factory", 0)?, member("cloud", 1)?);
    Ok(Tenant { name, authority, factory, cloud })
}

fn start(lab: &Lab, tenant: Tenant, hub: &Peer) -> Result<Running> {
    let Tenant { name, authority, factory, cloud } = tenant;
    let pool = vec!["10.0.1.0/24".parse()?];
    let start = |site: &str, Member { machine, key, certificate }: Member, rest: String| {
        let rest = rest + &identity(&[&authority], &certificate);
        let config = Config { site: site.to_owned(), pool: pool.clone(), listen: None, peers: vec![hub.clone()], rest };
        anyhow::Ok((Agent::start(lab, &machine, config, key)?, machine))
    };
    let exposes = expose("web", "127.0.0.1", "tcp/80", "group:edge", "masquerade");
    let (cloud, at) = start("cloud", cloud, exposes)?;
    let web = TcpServer::http(&at, (Ipv4Addr::LOCALHOST, 80), &name)?;
    let mapping = format!("map:\n  - {{service: web.cloud, address: {PRESENCE}}}\n");
    Ok(Running { factory: start("factory", factory, mapping)?, cloud, name, _web: web })
}

/// All names of tenants in a text.
fn tenants_in(text: &str) -> BTreeSet<&str> {
    text.match_indices("tenant-").filter_map(|(at, _)| text.get(at..at + "tenant-00".len())).collect()
}

fn peers(status: &Value) -> Result<Vec<(&str, Option<&str>)>> {
    let peers = status["peers"].as_array().context("no peers")?;
    let mut peers: Vec<_> =
        peers.iter().map(|peer| (peer["site"].as_str().unwrap_or_default(), peer["tenant"].as_str())).collect();
    peers.sort_unstable();
    Ok(peers)
}

#[test]
fn fifty_tenants_of_the_same_names_and_addresses_share_a_hub_and_never_meet() {
    story(|lab| {
        let exchange = lab.namespace("exchange")?;
        exchange.ip("link add name br0 type bridge forward_delay 0\nlink set br0 up")?;
        let tenants: Vec<Tenant> = (0..TENANTS).map(|number| tenant(lab, &exchange, number)).collect::<Result<_>>()?;
        let at = machine(lab, &exchange, "hub", u16::MAX, HUB)?;
        let known = |member: &Member| Peer { certificate: Some(member.certificate.clone()), ..Peer::default() };
        let members = tenants.iter().flat_map(|tenant| [&tenant.factory, &tenant.cloud]).map(known);
        let trusted: String = tenants.iter().map(|tenant| tenant.authority.trusted()).collect();
        let hub_key = Key::new()?;
        let entry = Peer {
            site: "hub".to_owned(),
            public_key: hub_key.public(),
            endpoint: Some(SocketAddr::new(HUB.into(), PORT)),
            rest: "hub: true".to_owned(),
            ..Peer::default()
        };
        let config = Config {
            site: "hub".to_owned(),
            pool: vec!["10.0.1.0/24".parse()?],
            listen: Some(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), PORT)),
            peers: members.collect(),
            rest: format!("hub: {{}}\ntrust:\n{trusted}"),
        };
        let hub = Agent::start(lab, &at, config, hub_key)?;
        let running: Vec<Running> =
            tenants.into_iter().map(|tenant| start(lab, tenant, &entry)).collect::<Result<_>>()?;
        let sites = 2 * usize::from(TENANTS);
        wait_within(PATIENCE, "all sites to attend", || {
            Ok((hub.figure("vp_hub_sites")? == sites as u64).then_some(()))
        })?;
        for Running { name, factory: (agent, machine), cloud, .. } in &running {
            let page = wait_within(PATIENCE, &format!("the page of {name}"), || Ok(machine.curl(PRESENCE, "/").ok()))?;
            ensure!(page.starts_with(&format!("{name}\n")), "{name}: {page}");
            for (agent, other) in [(agent, "cloud"), (cloud, "factory")] {
                let status = agent.status()?;
                ensure!(peers(&status)? == [(other, Some(name.as_str())), ("hub", None)], "{name}: {status}");
                let audit = std::fs::read_to_string(agent.directory().join("audit.jsonl"))?;
                for text in [&status.to_string(), &audit, &agent.process().log()] {
                    ensure!(tenants_in(text).iter().all(|found| found == name), "{name}: {text}");
                }
            }
        }
        let status = hub.status()?;
        let known: BTreeSet<_> = peers(&status)?.into_iter().collect();
        ensure!(known.len() == sites, "the hub knows {} sites by name and tenant", known.len());
        ensure!(hub.figure("vp_peer_up")? == sites as u64, "not all of them are counted");
        Ok(())
    });
}
