//! Two hubs that share a registry in etcd: what is registered at one is known at the other, and either may die.
//!
//! ```text
//!                  etcd0  etcd1  etcd2
//!                      \    |    /
//!              hub1 --- internet --- hub2
//!                       |      |
//!   plc .2 -- factory - NAT    NAT - cloud -- web .5
//! ```

use anyhow::{Context, Result, ensure};
use netns_tests::authority::{Authority, identity};
use netns_tests::world::{PORT, expose, map};
use netns_tests::{
    Access, Agent, Config, Download, Etcd, Families, Internet, Key, Lab, Peer, Plan, Site, Station, TcpServer, story,
    wait_until, wait_within,
};
use std::net::SocketAddr;
use std::time::Duration;

/// More than the buffers of both hosts hold.
const DOWNLOAD_BYTES: usize = 48 << 20;
/// How long a download may stand still when the hub that relays it dies.
const MOVE_MAX: Duration = Duration::from_secs(5);
/// How long it takes until one hub knows what the other has registered.
const SHARE_MAX: Duration = Duration::from_secs(1);
const SITES: &str = "vp_registry_records{kind=\"site\"}";

struct Hubs {
    internet: Internet,
    etcd: Etcd,
    authority: Authority,
    plan: Plan,
    hubs: [Hub; 2],
    cloud: Station,
    factory: Station,
}

struct Hub {
    agent: Agent,
    entry: Peer,
    _site: Site,
}

impl Hubs {
    /// The first hub's file names both sites; the second's names nobody.
    fn new(lab: &Lab) -> Result<Self> {
        let plan = Plan::named("same", Families::V4)?;
        let internet = Internet::new(lab)?;
        let etcd = Etcd::new(lab, &internet)?;
        let authority = Authority::new(lab, "acme", "acme")?;
        let keys = [Key::new()?, Key::new()?];
        let sites = ["cloud", "factory"];
        let certify = |(site, key): (&str, &Key)| authority.issue_for(site, site, key, "--group edge");
        let certificates = sites.into_iter().zip(&keys).map(certify).collect::<Result<Vec<_>>>()?;
        let hub = |name: &str, peers: Vec<Peer>| {
            let (site, key) = (Site::new(lab, name, &plan.cloud_lan, &internet, Access::Direct)?, Key::new()?);
            let at = SocketAddr::new(site.uplink.v4.into(), PORT);
            let rest = format!("hub:\n  store: \"{}\"\ntrust:\n{}", etcd.store(), authority.trusted());
            let entry = Peer {
                site: name.to_owned(),
                public_key: key.public(),
                endpoint: Some(at),
                rest: "hub: true".to_owned(),
                ..Peer::default()
            };
            let listen = Some(([0; 4], PORT).into());
            let config = Config { site: name.to_owned(), pool: plan.cloud_pool.clone(), listen, peers, rest };
            anyhow::Ok(Hub { agent: Agent::start(lab, &site.gateway, config, key)?, entry, _site: site })
        };
        let known = |file| Peer { certificate: Some(file), ..Peer::default() };
        let hubs = [hub("hub1", certificates.iter().cloned().map(known).collect())?, hub("hub2", Vec::new())?];
        let [cloud_key, factory_key] = keys;
        let station = |name: &str, key: Key, certificate, host: (&str, u32), rest: String| {
            let site = Site::new(lab, name, &plan.cloud_lan, &internet, Access::SYMMETRIC_NAT)?;
            let (neighbour, host) = (site.host(lab, "neighbour", 6)?, site.host(lab, host.0, host.1)?);
            let rest = rest + &identity(&[&authority], certificate);
            let peers = hubs.iter().map(|hub| hub.entry.clone()).collect();
            let config = Config { site: name.to_owned(), pool: plan.cloud_pool.clone(), listen: None, peers, rest };
            let agent = Agent::start(lab, &site.gateway, config, key)?;
            anyhow::Ok(Station { agent, site, host, neighbour })
        };
        let exposes = expose("web", "10.0.0.5", "tcp/80", "group:edge", "masquerade");
        let cloud = station("cloud", cloud_key, &certificates[0], ("web", 5), exposes)?;
        let factory = station("factory", factory_key, &certificates[1], ("plc", 2), map("web.cloud"))?;
        let world = Self { internet, etcd, authority, plan, hubs, cloud, factory };
        world.hubs.iter().try_for_each(|hub| hub.wait_attended())?;
        Ok(world)
    }

    fn serve(&self) -> Result<TcpServer> {
        let host = &self.cloud.host;
        TcpServer::http(&host.namespace, (*host.addresses.first().context("no address")?, 80), "web of cloud")
    }

    fn fetch(&self) -> Result<()> {
        let presence = self.factory.agent.presence("web.cloud")?;
        let page = self.factory.host.namespace.curl(presence, "/")?;
        ensure!(page.starts_with("web of cloud\n"), "{page}");
        Ok(())
    }

    /// A site that the first hub's file names from now on, and that calls it: until both hubs know it, or the first alone.
    fn register(&mut self, lab: &Lab, site: &str, hubs: usize) -> Result<Agent> {
        let (machine, key) = (lab.namespace(site)?, Key::new()?);
        self.internet.connect(&machine)?;
        let certificate = self.authority.issue_for(site, site, &key, "--group edge")?;
        let before = self.hubs[0].agent.figure(SITES)?;
        self.hubs[0].agent.config.peers.push(Peer { certificate: Some(certificate.clone()), ..Peer::default() });
        self.hubs[0].agent.write_config()?;
        self.hubs[0].agent.ctl("reload")?;
        let (pool, rest) = (self.plan.cloud_pool.clone(), identity(&[&self.authority], &certificate));
        let peers = self.hubs.iter().map(|hub| hub.entry.clone()).collect();
        let config = Config { site: site.to_owned(), pool, listen: None, peers, rest };
        let agent = Agent::start(lab, &machine, config, key)?;
        self.hubs[0].wait_records(before + 1)?;
        if hubs == 2 {
            let second = &self.hubs[1].agent;
            wait_within(SHARE_MAX, "the second hub to know what the first has registered", || {
                Ok((second.figure(SITES)? == before + 1).then_some(()))
            })?;
        }
        Ok(agent)
    }
}

impl Hub {
    /// Until both sites attend here.
    fn wait_attended(&self) -> Result<()> {
        let what = format!("both sites to attend at {}", self.agent.config.site);
        wait_until(&what, || Ok(self.agent.figure("vp_hub_sites")? >= 2))
    }

    fn wait_records(&self, sites: u64) -> Result<()> {
        let what = format!("{sites} sites to be registered at {}", self.agent.config.site);
        wait_until(&what, || Ok(self.agent.figure(SITES)? == sites))
    }

    fn has_finding(&self, name: &str) -> Result<bool> {
        let status = self.agent.status()?;
        let health = status["health"].as_array().context("no health")?;
        Ok(health.iter().any(|finding| finding["name"] == name))
    }

    fn wait_finding(&self, name: &str, is_there: bool) -> Result<()> {
        let what = format!("{name} at {}: {is_there}", self.agent.config.site);
        wait_until(&what, || Ok(self.has_finding(name)? == is_there))
    }
}

#[test]
fn a_download_moves_to_the_other_hub_when_either_dies() {
    story(|lab| {
        let mut world = Hubs::new(lab)?;
        let _web = world.serve()?;
        world.fetch()?;
        let presence = world.factory.agent.presence("web.cloud")?;
        let plc = &world.factory.host.namespace;
        let mut download = Download::start(plc, presence, "web of cloud", DOWNLOAD_BYTES)?;
        download.patience(MOVE_MAX)?;
        for first in [0, 1] {
            download.read(DOWNLOAD_BYTES / 4)?;
            world.hubs[first].agent.kill()?;
            download.read(DOWNLOAD_BYTES / 4)?;
            world.hubs[first].agent.start_again(lab)?;
            world.hubs[first].wait_attended()?;
        }
        download.finish()?;
        for hub in &world.hubs {
            let reads = hub.agent.figure("vp_registry_shared_reads_total")?;
            ensure!(reads == 1, "{} has lost etcd {} times", hub.agent.config.site, reads - 1);
        }
        world.fetch()
    });
}

#[test]
fn what_one_hub_registers_the_other_knows_within_a_second_whatever_happens_to_etcd() {
    story(|lab| {
        let mut world = Hubs::new(lab)?;
        let mut sites = Vec::new();
        world.hubs.iter().try_for_each(|hub| hub.wait_records(2))?;
        sites.push(world.register(lab, "depot", 2)?);
        // Each hub follows one of them.
        for member in [0, 1] {
            world.etcd.kill(member)?;
            if member == 0 {
                world.hubs.iter().try_for_each(|hub| hub.wait_finding("registry-away", false))?;
                sites.push(world.register(lab, "mill", 2)?);
            }
        }
        // One of three decides nothing.
        world.hubs.iter().try_for_each(|hub| hub.wait_finding("registry-away", true))?;
        let _web = world.serve()?;
        world.fetch()?;
        world.etcd.start_again(lab)?;
        world.hubs.iter().try_for_each(|hub| hub.wait_finding("registry-away", false))?;
        // Silent, and there again.
        world.etcd.cut(&world.internet)?;
        world.hubs.iter().try_for_each(|hub| hub.wait_finding("registry-away", true))?;
        world.internet.calm()?;
        world.hubs.iter().try_for_each(|hub| hub.wait_finding("registry-away", false))?;
        sites.push(world.register(lab, "yard", 2)?);
        // Cut off for so long that its watch cannot go on.
        world.hubs[1].agent.kill()?;
        sites.push(world.register(lab, "shop", 1)?);
        world.etcd.compact()?;
        world.hubs[1].agent.start_again(lab)?;
        world.hubs[1].wait_records(6)?;
        world.hubs[1].agent.wait_peer("shop")
    });
}

#[test]
fn nothing_registered_is_lost_when_all_hubs_and_all_of_etcd_restart_or_etcd_forgets() {
    story(|lab| {
        let mut world = Hubs::new(lab)?;
        let _web = world.serve()?;
        world.hubs.iter().try_for_each(|hub| hub.wait_records(2))?;
        // The second hub knows its sites from the registry alone.
        world.etcd.kill_all()?;
        for hub in &mut world.hubs {
            hub.agent.kill()?;
            hub.agent.start_again(lab)?;
        }
        world.hubs.iter().try_for_each(|hub| hub.wait_attended())?;
        ensure!(world.hubs[1].has_finding("registry-away")?, "etcd is away and nobody says so");
        world.fetch()?;
        world.etcd.start_again(lab)?;
        world.hubs.iter().try_for_each(|hub| hub.wait_finding("registry-away", false))?;
        let kept = || world.etcd.ctl("get --prefix /virtual-presence/site/ --keys-only");
        let before = kept()?;
        world.etcd.ctl("del --prefix /virtual-presence/")?;
        wait_until("the hubs to put back what etcd lost", || Ok(kept()? == before))?;
        world.hubs.iter().try_for_each(|hub| hub.wait_records(2))?;
        world.fetch()
    });
}

#[test]
fn a_hubs_file_that_is_damaged_is_told_and_the_rest_of_it_counts() {
    story(|lab| {
        let mut world = Hubs::new(lab)?;
        world.hubs.iter().try_for_each(|hub| hub.wait_records(2))?;
        let hub = &mut world.hubs[1];
        hub.agent.kill()?;
        let file = hub.agent.directory().join("state/registry.records");
        let text = std::fs::read_to_string(&file)?;
        std::fs::write(&file, text.replacen("site/acme/cloud", "site/acme/cl0ud", 1))?;
        world.etcd.kill_all()?;
        let hub = &mut world.hubs[1];
        hub.agent.start_again(lab)?;
        hub.wait_finding("registry-damaged", true)?;
        hub.wait_records(1)?;
        world.etcd.start_again(lab)?;
        world.hubs[1].wait_records(2)?;
        world.hubs[1].wait_attended()
    });
}
