//! What is wanted of the node and of the host, and the host brought in line with it.

use super::Refused;
use crate::config::{self, Config, Reach};
use crate::dataplane::Handle;
use crate::health::{self, Check};
use crate::netlink::{self, Network};
use crate::nft;
use crate::state::Runtime;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use vp::addr::{Limits, Name};
use vp::node::{Exposure, Mapping};

/// What the file and vp-ctl want, and what of the host is ours.
pub struct Desired {
    pub config: Config,
    pub runtime: Runtime,
    pub(super) network: Option<Network>,
    pub(super) nft: Option<nft::Firewall>,
    pub(super) listen_port: u16,
    /// What is not as it should be with the host, from when it was last brought in line.
    pub warnings: Vec<String>,
}

impl Desired {
    /// Brings routes, neighbour entries and masquerading to what the node has now.
    pub(super) async fn apply_to_host(&mut self, handle: &Handle) -> Result<(), Refused> {
        let (gateway, presences, settings) = handle
            .call(|node, _, _| (node.gateway_addresses(), node.presence_blocks(), node.settings().clone()))
            .await?;
        let proxy = match &self.config.reach {
            Reach::Routed => None,
            Reach::ProxyArp(interface) => Some(interface.clone()),
        };
        let pool = settings.pool.prefixes().to_vec();
        let network = netlink::Wanted { mtu: settings.inner_mtu, pool, gateway, proxy, presences };
        self.warnings.clear();
        if let Some(own) = &mut self.network {
            self.warnings.extend(own.apply(&network).await?);
        }
        if let Some(nft) = &mut self.nft {
            let own_ports = self.config.metrics.iter().map(SocketAddr::port).chain([self.listen_port]).collect();
            nft.apply(nft::Wanted { pool: network.pool, services: settings.exposures, own_ports }).await?;
        }
        self.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        Ok(())
    }

    /// Each target that is checked, and how. The file's entry stands where vp-ctl speaks of the same service.
    #[must_use]
    pub fn checks(&self) -> BTreeMap<(Name, IpAddr), Check> {
        let of_file = self.config.settings.exposures.iter();
        let of_file =
            of_file.filter_map(|exposure| Some((exposure.clone(), self.config.checks.get(&exposure.name)?.clone())));
        let of_runtime = self.runtime.expose.iter().filter_map(|request| {
            let exposure = config::exposure(request, Limits::default(), &self.config.settings).ok()?;
            let in_file = self.config.exposed_at(&exposure.name).is_some();
            Some((exposure, config::check(request).ok()??)).filter(|_| !in_file)
        });
        let checked: Vec<(Exposure, Check)> = of_file.chain(of_runtime).collect();
        health::targets(checked.iter().map(|(exposure, check)| (&exposure.name, &exposure.target, check)))
    }

    /// The number of the tunnels' interface.
    #[must_use]
    pub fn link(&self) -> Option<i32> {
        i32::try_from(self.network.as_ref()?.index()).ok()
    }

    pub(super) async fn presences_changed(&mut self, handle: &Handle) -> Result<(), Refused> {
        let presences = handle.call(|node, _, _| node.presence_blocks()).await?;
        if let Some(network) = &mut self.network {
            let warnings = network.set_presences(&presences).await?;
            let news: Vec<String> = warnings.into_iter().filter(|warning| !self.warnings.contains(warning)).collect();
            news.iter().for_each(|warning| tracing::warn!("{warning}"));
            self.warnings.extend(news);
        }
        Ok(())
    }

    /// Whether the file says so, or vp-ctl did.
    #[must_use]
    pub fn origin_of_exposure(&self, name: &str) -> &'static str {
        let in_file = self.config.settings.exposures.iter().any(|exposure| exposure.name.as_str() == name);
        if in_file { "file" } else { "runtime" }
    }

    /// What a service is called in DNS, if names are served.
    #[must_use]
    pub fn dns_name(&self, service: &str) -> Option<String> {
        self.config.dns.as_ref().map(|dns| format!("{service}.{}", dns.zone))
    }

    #[must_use]
    pub fn origin_of_presence(&self, service: &str) -> &'static str {
        let matches = |mapping: &Mapping| service.parse().is_ok_and(|name| mapping.service.matches(&name));
        if self.config.settings.mappings.iter().any(matches) { "file" } else { "runtime" }
    }
}
