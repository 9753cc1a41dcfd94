//! The hosts of this site that have names, by address and by name.

use super::settings::Client;
use crate::addr::Name;
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

#[derive(Clone, Debug, Default)]
pub struct Clients {
    by_address: BTreeMap<IpAddr, Name>,
    by_name: BTreeSet<(Name, IpAddr)>,
}

/// Below every other address.
const FIRST: IpAddr = IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);

impl Clients {
    #[must_use]
    pub fn new(clients: &[Client]) -> Self {
        let named =
            || clients.iter().flat_map(|client| client.addresses.iter().map(|address| (*address, &client.name)));
        Self {
            by_address: named().map(|(address, name)| (address, name.clone())).collect(),
            by_name: named().map(|(address, name)| (name.clone(), address)).collect(),
        }
    }

    #[must_use]
    pub fn name(&self, address: IpAddr) -> Option<&Name> {
        self.by_address.get(&address)
    }

    pub fn addresses(&self, name: &Name) -> impl Iterator<Item = IpAddr> {
        let all = self.by_name.range((name.clone(), FIRST)..);
        all.take_while(move |(of, _)| of == name).map(|(_, address)| *address)
    }

    /// Those of a network.
    pub fn within(&self, network: &IpNet) -> impl Iterator<Item = (IpAddr, &Name)> {
        let all = self.by_address.range(network.network()..=network.broadcast());
        all.map(|(address, name)| (*address, name))
    }

    pub fn iter(&self) -> impl Iterator<Item = (IpAddr, &Name)> {
        self.by_address.iter().map(|(address, name)| (*address, name))
    }
}
