//! The world that most stories are told in.
//!
//! ```text
//!                                                               +-- web .5        http "web of cloud"
//!   plc .2 --+                                                  |
//!            +-- factory1 gateway -- NAT --+                    +-- neighbour .6
//!   neighbour .6                           |                    |
//!                                     internet -- cloud gateway-+
//!   plc .2 --+                             |
//!            +-- factory2 gateway -- NAT --+
//!   neighbour .6
//! ```

use crate::agent::{Agent, Config, Key, Peer};
use crate::{Access, Host, Internet, Lab, Plan, Shim, Site, Weather};
use anyhow::Result;
use std::net::SocketAddr;

pub const PORT: u16 = 51820;
const KEEPALIVE_SECONDS: u16 = 5;

/// What is told of; the rest is as in the picture.
#[derive(Clone)]
pub struct Setup<'a> {
    pub plan: &'a Plan,
    pub factories: usize,
    pub access: Access,
    /// Between the sites.
    pub underlay: crate::Family,
    /// Of the path from the factories to the cloud.
    pub weather: Option<Weather>,
    /// Further peers of the cloud.
    pub peers: Vec<Peer>,
    /// YAML of the cloud beside its peers: what it exposes. `{web}` stands for the web host's addresses.
    pub cloud: String,
    /// YAML of every factory. `{plc}` stands for the plc's addresses.
    pub factory: String,
}

impl<'a> Setup<'a> {
    /// One factory behind a NAT; the cloud exposes `web`, the factory maps it; the other way round `metrics`.
    #[must_use]
    pub fn new(plan: &'a Plan) -> Self {
        let cloud = expose("web", "{web}", "tcp/80", "any", "masquerade");
        let factory = expose("metrics", "{plc}", "tcp/9100", "site:cloud", "masquerade") + &map("web.cloud");
        Self {
            plan,
            factories: 1,
            access: Access::HOME_NAT,
            underlay: crate::Family::V4,
            weather: None,
            peers: Vec::new(),
            cloud,
            factory,
        }
    }
}

/// An `expose:` section of one service.
#[must_use]
pub fn expose(name: &str, target: &str, ports: &str, allow: &str, source: &str) -> String {
    format!(
        "expose:\n  - name: {name}\n    target: {target}\n    ports: [{ports}]\n    allow: [\"{allow}\"]\n    \
         source: {source}\n"
    )
}

/// A `map:` section of one service.
#[must_use]
pub fn map(service: &str) -> String {
    format!("map:\n  - service: \"{service}\"\n")
}

pub struct World {
    pub cloud: Station,
    pub factories: Vec<Station>,
    pub shim: Option<Shim>,
    pub internet: Internet,
}

impl Station {
    /// The host's address in the family that the story is told in.
    pub fn address(&self, family: crate::Family) -> Result<std::net::IpAddr> {
        self.host.address(family)
    }
}

/// A site with its agent running.
pub struct Station {
    pub agent: Agent,
    pub site: Site,
    /// `web` in the cloud, `plc` in a factory.
    pub host: Host,
    pub neighbour: Host,
}

impl World {
    /// Builds it, starts the agents and waits until they see each other.
    pub fn new(lab: &Lab, setup: &Setup) -> Result<Self> {
        let world = Self::build(lab, setup)?;
        for factory in &world.factories {
            factory.agent.wait_peer("cloud")?;
            world.cloud.agent.wait_peer(&factory.site.name)?;
        }
        Ok(world)
    }

    /// The same without waiting for the tunnels.
    pub fn build(lab: &Lab, setup: &Setup) -> Result<Self> {
        let plan = setup.plan;
        let internet = Internet::new(lab)?;
        let cloud = Site::new(lab, "cloud", &plan.cloud_lan, &internet, Access::Direct)?;
        let (web, cloud_neighbour) = (cloud.host(lab, "web", 5)?, cloud.host(lab, "neighbour", 6)?);
        let endpoint: SocketAddr = (cloud.uplink.address(setup.underlay), PORT).into();
        let shim = |weather| {
            // The internet's own end of the cloud's link stands for the cloud.
            let at = SocketAddr::from(([203, 0, 113, 1], PORT));
            Shim::start(&internet.namespace, at, endpoint, weather)
        };
        let shim = setup.weather.map(shim).transpose()?;
        let called = shim.as_ref().map_or(endpoint, |shim| shim.address);
        let cloud_key = Key::new()?;
        let mut cloud_config = Config {
            site: "cloud".to_owned(),
            pool: plan.cloud_pool.clone(),
            listen: Some(if endpoint.is_ipv4() { ([0; 4], PORT).into() } else { ([0_u16; 8], PORT).into() }),
            peers: setup.peers.clone(),
            rest: setup.cloud.replace("{web}", &addresses(&web)),
        };
        let mut factories = Vec::new();
        for number in 1..=setup.factories {
            let name = format!("factory{number}");
            let site = Site::new(lab, &name, &plan.factory_lan, &internet, setup.access)?;
            let (plc, neighbour) = (site.host(lab, "plc", 2)?, site.host(lab, "neighbour", 6)?);
            let key = Key::new()?;
            cloud_config.peers.push(Peer { site: name.clone(), public_key: key.public(), ..Peer::default() });
            let config = Config {
                site: name,
                pool: plan.factory_pool.clone(),
                listen: None,
                peers: vec![Peer {
                    site: "cloud".to_owned(),
                    public_key: cloud_key.public(),
                    certificate: None,
                    endpoint: Some(called),
                    keepalive_seconds: Some(KEEPALIVE_SECONDS),
                    rest: String::new(),
                }],
                rest: setup.factory.replace("{plc}", &addresses(&plc)),
            };
            factories.push((site, plc, neighbour, config, key));
        }
        let agent = Agent::start(lab, &cloud.gateway, cloud_config, cloud_key)?;
        let cloud = Station { agent, site: cloud, host: web, neighbour: cloud_neighbour };
        let start = |(site, host, neighbour, config, key): (Site, Host, Host, Config, Key)| {
            let agent = Agent::start(lab, &site.gateway, config, key)?;
            Ok(Station { agent, site, host, neighbour })
        };
        Ok(Self { cloud, factories: factories.into_iter().map(start).collect::<Result<_>>()?, shim, internet })
    }
}

/// As a target: one address, or a list of them.
fn addresses(host: &Host) -> String {
    let quoted: Vec<String> = host.addresses.iter().map(|address| format!("\"{address}\"")).collect();
    if let [one] = quoted.as_slice() { one.clone() } else { format!("[{}]", quoted.join(", ")) }
}
