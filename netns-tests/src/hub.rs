//! Two sites that only a hub brings together.
//!
//! ```text
//!                               hub
//!                                |
//!   plc .2 -- factory -- NAT -- internet -- NAT -- cloud -- web .5
//! ```

use crate::agent::{Agent, Config, Key, Peer};
use crate::authority::{Authority, identity};
use crate::world::{PORT, Station, expose, map};
use crate::{Access, Host, Internet, Lab, Plan, Site, wait_for};
use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use std::net::SocketAddr;

/// Where the hub takes connections over TLS.
pub const TLS_PORT: u16 = 443;

pub struct HubWorld {
    pub hub: Agent,
    pub hub_site: Site,
    pub cloud: Station,
    pub factory: Station,
}

/// How both sites reach the hub.
pub struct HubSetup {
    pub cloud: Access,
    pub factory: Access,
    /// Further keys of the factory's entry for its hub.
    pub entry: String,
    /// UDP does not pass the factory's NAT from the start.
    pub is_blocked: bool,
    /// Sites know nobody but the hub, and whom this authority certifies; the hub knows them by certificate.
    pub authority: Option<Authority>,
}

impl HubWorld {
    /// The cloud exposes `web` to the factory, which maps it. Neither knows where the other is.
    pub fn new(lab: &Lab, plan: &Plan, cloud: Access, factory: Access) -> Result<Self> {
        let setup = HubSetup { cloud, factory, entry: String::new(), is_blocked: false, authority: None };
        Self::build(lab, plan, &Internet::new(lab)?, &setup)
    }

    pub fn build(lab: &Lab, plan: &Plan, internet: &Internet, setup: &HubSetup) -> Result<Self> {
        let HubSetup { cloud, factory, entry, is_blocked, authority } = setup;
        let hub_site = Site::new(lab, "hub", &plan.cloud_lan, internet, Access::Direct)?;
        let keys = (Key::new()?, Key::new()?, Key::new()?);
        let at: SocketAddr = (hub_site.uplink.v4, PORT).into();
        let known = |site: &str, key: &Key| Peer { site: site.to_owned(), public_key: key.public(), ..Peer::default() };
        let mut hub_config = Config {
            site: "hub".to_owned(),
            pool: plan.cloud_pool.clone(),
            listen: Some(([0; 4], PORT).into()),
            peers: vec![known("cloud", &keys.1), known("factory", &keys.2)],
            rest: format!("hub:\n  tls: {{listen: \"0.0.0.0:{TLS_PORT}\"}}\n"),
        };
        let its_hub = Peer { endpoint: Some(at), rest: "hub: true".to_owned(), ..known("hub", &keys.0) };
        let cloud_site = Site::new(lab, "cloud", &plan.cloud_lan, internet, *cloud)?;
        let factory_site = Site::new(lab, "factory", &plan.factory_lan, internet, *factory)?;
        let (web, web_neighbour) = (cloud_site.host(lab, "web", 5)?, cloud_site.host(lab, "neighbour", 6)?);
        let (plc, plc_neighbour) = (factory_site.host(lab, "plc", 2)?, factory_site.host(lab, "neighbour", 6)?);
        let target = web.addresses.first().context("no address")?.to_string();
        let config = |site: &str, pool: &[IpNet], other: Peer, rest: String| Config {
            site: site.to_owned(),
            pool: pool.to_vec(),
            listen: None,
            peers: vec![its_hub.clone(), other],
            rest,
        };
        let allow = if authority.is_some() { "group:edge" } else { "site:factory" };
        let exposes = expose("web", &format!("\"{target}\""), "tcp/80, icmp", allow, "masquerade");
        let mut cloud_config = config("cloud", &plan.cloud_pool, known("factory", &keys.2), exposes);
        let mut factory_config = config("factory", &plan.factory_pool, known("cloud", &keys.1), map("web.cloud"));
        factory_config.peers[0].rest += &format!("\n{}", entry.replace("{hub}", &hub_site.uplink.v4.to_string()));
        if let Some(access) = factory_site.access.as_ref().filter(|_| *is_blocked) {
            access.block_udp()?;
        }
        if let Some(authority) = authority {
            for (config, key, number) in [(&mut cloud_config, &keys.1, 0), (&mut factory_config, &keys.2, 1)] {
                let certificate = authority.issue_for(&config.site, &config.site, key, "--group edge")?;
                config.peers.truncate(1);
                config.rest += &identity(&[authority], &certificate);
                hub_config.peers[number].certificate = Some(certificate);
            }
            hub_config.rest += &format!("trust:\n{}", authority.trusted());
        }
        let start = |site: Site, (host, neighbour): (Host, Host), config: Config, key: Key| {
            let agent = Agent::start(lab, &site.gateway, config, key)?;
            anyhow::Ok(Station { agent, site, host, neighbour })
        };
        let hub = Agent::start(lab, &hub_site.gateway, hub_config, keys.0)?;
        let cloud = start(cloud_site, (web, web_neighbour), cloud_config, keys.1)?;
        let factory = start(factory_site, (plc, plc_neighbour), factory_config, keys.2)?;
        let world = Self { hub, hub_site, cloud, factory };
        world.factory.agent.wait_peer("cloud")?;
        world.cloud.agent.wait_peer("factory")?;
        Ok(world)
    }

    /// Both sites, each with the name of the other.
    #[must_use]
    pub fn ends(&self) -> [(&Station, &'static str); 2] {
        [(&self.cloud, "factory"), (&self.factory, "cloud")]
    }

    /// Until both ends use this kind of path.
    pub fn wait_path(&self, wanted: &str) -> Result<()> {
        for (station, other) in self.ends() {
            wait_for(&format!("{} to reach {other}: {wanted}", station.site.name), || {
                let path = path(&station.agent, other)?;
                if path == wanted { Ok(Some(())) } else { bail!("it is {path}") }
            })?;
        }
        Ok(())
    }
}

/// How an agent reaches a peer now.
pub fn path(agent: &Agent, peer: &str) -> Result<String> {
    let status = agent.status()?;
    let peers = status["peers"].as_array().context("no peers")?;
    let peer = peers.iter().find(|known| known["site"] == peer).context("no such peer")?;
    Ok(peer["path"].as_str().context("no path")?.to_owned())
}
