//! The host's own networks, for checking a configuration against them and for `doctor`. Only looks.

use super::{Link, address_of, destination, failed, link_name, output_interface, route_table};
use anyhow::Result;
use futures_util::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::packet_route::address::AddressMessage;
use rtnetlink::packet_route::link::LinkFlags;
use rtnetlink::packet_route::route::{RouteAttribute, RouteType};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// An address of this host, with the prefix of the network that it is in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostAddress {
    pub interface: String,
    pub address: IpAddr,
    pub network: IpNet,
}

/// A way to somewhere; `interface` is missing where there are several, and where packets are thrown away.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostRoute {
    pub destination: IpNet,
    pub interface: Option<String>,
    pub gateway: Option<IpAddr>,
    pub table: u32,
}

#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct HostNetworks {
    /// Those that are up, by name.
    pub interfaces: Vec<String>,
    pub addresses: Vec<HostAddress>,
    /// Those to other hosts, of all tables but ours.
    pub routes: Vec<HostRoute>,
}

impl HostNetworks {
    /// As the kernel has them now; needs a tokio runtime.
    pub async fn read() -> Result<Self> {
        let link = Link::open()?;
        let links = link.links().await?;
        let names: BTreeMap<u32, &str> =
            links.iter().filter_map(|link| Some((link.header.index, link_name(link)?))).collect();
        let is_up =
            |index: &u32| links.iter().any(|l| l.header.index == *index && l.header.flags.contains(LinkFlags::Up));
        let interfaces = names.iter().filter(|(index, _)| is_up(index)).map(|(_, name)| (*name).to_owned()).collect();
        let messages: Vec<AddressMessage> = link
            .handle
            .address()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(|error| failed("list addresses", error))?;
        let address = |message: &AddressMessage| {
            let interface = (*names.get(&message.header.index)?).to_owned();
            let address = address_of(message)?;
            let network = IpNet::new(address, message.header.prefix_len).ok()?.trunc();
            Some(HostAddress { interface, address, network })
        };
        let addresses = messages.iter().filter_map(address).collect();
        let mut routes = Vec::new();
        for message in link.routes(0).await? {
            let (kind, table) = (message.header.kind, route_table(&message));
            let leads_away = matches!(
                kind,
                RouteType::Unicast | RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit
            );
            let Some(destination) = destination(&message) else { continue };
            if leads_away && table != super::TABLE {
                let index = output_interface(&message);
                let interface = index.and_then(|index| names.get(&index)).map(|name| (*name).to_owned());
                let gateway = message.attributes.iter().find_map(|attribute| match attribute {
                    RouteAttribute::Gateway(address) => super::ip(address),
                    _ => None,
                });
                routes.push(HostRoute { destination, interface, gateway, table });
            }
        }
        routes.sort_by_key(|route| (route.table, route.destination));
        Ok(Self { interfaces, addresses, routes })
    }
}
