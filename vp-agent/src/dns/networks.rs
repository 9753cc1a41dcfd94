//! Who is of this site. Everybody else is a stranger, and gets no answer.

use crate::netlink::HostNetworks;
use ipnet::IpNet;
use std::net::IpAddr;
use vp::addr::Pool;

/// Addresses that a site gives itself (RFC 1918, RFC 6598, RFC 4193) or that are of one link.
const PRIVATE: [&str; 7] =
    ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16", "fc00::/7", "fe80::/10"];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Who {
    Gateway,
    Host(IpAddr),
    Stranger,
}

impl Who {
    /// As the node is asked.
    #[must_use]
    pub fn host(self) -> Option<IpAddr> {
        match self {
            Self::Host(address) => Some(address),
            Self::Gateway | Self::Stranger => None,
        }
    }
}

#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Networks {
    own: Vec<IpAddr>,
    site: Vec<IpNet>,
    pool: Pool,
}

impl Networks {
    /// `clients` are what the operator says; without them, the networks that this host is in, but no public one where
    /// its default route leads, and private ones that it has a route to. `interface` is the tunnels'.
    #[must_use]
    pub fn new(host: &HostNetworks, clients: &[IpNet], pool: Pool, interface: &str) -> Self {
        let own = host.addresses.iter().map(|own| own.address).collect();
        if !clients.is_empty() {
            return Self { own, site: clients.to_vec(), pool };
        }
        let uplinks: Vec<&str> = host
            .routes
            .iter()
            .filter(|route| route.destination.prefix_len() == 0)
            .filter_map(|route| route.interface.as_deref())
            .collect();
        let is_ours = |network: &IpNet, at: &str| is_private(network) || !uplinks.contains(&at);
        let attached = host.addresses.iter().filter(|own| own.interface != interface);
        let attached = attached.filter(|own| is_ours(&own.network, &own.interface)).map(|own| own.network);
        let routed = host.routes.iter().filter(|route| route.interface.as_deref().is_some_and(|at| at != interface));
        let routed = routed.map(|route| route.destination).filter(is_private);
        let mut site: Vec<IpNet> = attached.chain(routed).collect();
        site.sort();
        site.dedup();
        Self { own, site: IpNet::aggregate(&site), pool }
    }

    /// What calls from the pool came through a tunnel, unless it is the gateway itself.
    #[must_use]
    pub fn who(&self, source: IpAddr) -> Who {
        if source.is_loopback() || self.own.contains(&source) {
            Who::Gateway
        } else if !self.pool.contains(source) && self.site.iter().any(|network| network.contains(&source)) {
            Who::Host(source)
        } else {
            Who::Stranger
        }
    }
}

fn is_private(network: &IpNet) -> bool {
    PRIVATE.iter().filter_map(|private| private.parse().ok()).any(|private: IpNet| private.contains(network))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::{HostAddress, HostRoute};

    fn host(addresses: &[(&str, &str)], routes: &[(&str, &str)]) -> HostNetworks {
        let address = |(interface, text): &(&str, &str)| {
            let network: IpNet = text.parse().expect("network");
            HostAddress { interface: (*interface).to_owned(), address: network.addr(), network: network.trunc() }
        };
        let route = |(interface, text): &(&str, &str)| HostRoute {
            destination: text.parse().expect("network"),
            interface: Some((*interface).to_owned()),
            gateway: None,
            table: 254,
        };
        HostNetworks {
            interfaces: Vec::new(),
            addresses: addresses.iter().map(address).collect(),
            routes: routes.iter().map(route).collect(),
        }
    }

    fn strangers(networks: &Networks, sources: &[&str]) -> Vec<bool> {
        sources.iter().map(|text| networks.who(text.parse().expect("address")) == Who::Stranger).collect()
    }

    #[test]
    fn hosts_of_the_site_are_known_by_their_networks() {
        let addresses =
            [("lo", "127.0.0.1/8"), ("lan0", "10.0.0.1/24"), ("wan0", "203.0.113.2/24"), ("vp0", "10.0.1.1/32")];
        let routes =
            [("wan0", "0.0.0.0/0"), ("lan0", "10.5.0.0/16"), ("wan0", "198.51.100.0/24"), ("vp0", "10.9.0.0/16")];
        let pool = Pool::new(vec!["10.0.1.0/24".parse().expect("prefix")]).expect("pool");
        let networks = Networks::new(&host(&addresses, &routes), &[], pool.clone(), "vp0");
        assert_eq!(networks.who([10, 0, 0, 2].into()), Who::Host([10, 0, 0, 2].into()));
        let gateway = ["127.0.0.53", "10.0.0.1", "203.0.113.2", "10.0.1.1"];
        assert!(gateway.iter().all(|text| networks.who(text.parse().expect("address")) == Who::Gateway));
        let sources = ["10.5.6.7", "10.0.1.2", "203.0.113.9", "198.51.100.1", "8.8.8.8", "10.9.0.1"];
        assert_eq!(strangers(&networks, &sources), [false, true, true, true, true, true]);
        // What the operator says stands for all of that.
        let clients = ["203.0.113.0/24".parse().expect("prefix")];
        let networks = Networks::new(&host(&addresses, &routes), &clients, pool, "vp0");
        assert_eq!(strangers(&networks, &["203.0.113.9", "10.0.0.2", "10.0.1.2"]), [false, true, true]);
    }

    #[test]
    fn a_gateway_on_one_private_lan_serves_that() {
        let networks =
            host(&[("eth0", "192.168.1.2/24"), ("eth0", "2001:db8::2/64")], &[("eth0", "0.0.0.0/0"), ("eth0", "::/0")]);
        let networks = Networks::new(&networks, &[], Pool::default(), "vp0");
        assert_eq!(strangers(&networks, &["192.168.1.9", "192.168.2.9", "2001:db8::9"]), [false, true, true]);
    }
}
