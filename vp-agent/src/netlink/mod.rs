//! What the host's network has to know of this gateway: the interface and its addresses, the way to the pool, and who
//! answers for presences on a LAN. Desired state is compared with what the kernel has, so that a predecessor that was
//! killed leaves nothing behind and applying twice changes nothing.
//!
//! The way to the pool is a table of our own, asked before the main table, so that no route of the host (a DHCP
//! server's, another VPN's) leads presences elsewhere. It also holds a route that makes presences unreachable, which
//! stays when the agent is killed: what hosts send to a presence never leaves for the host's default gateway.
//!
//! Never touches rules, routes and neighbour entries that are not ours.

mod host;
mod proxy;
#[cfg(test)]
mod tests;

pub use host::{HostAddress, HostNetworks, HostRoute};

use anyhow::{Context, Result, bail};
use futures_util::TryStreamExt;
use ipnet::IpNet;
use proxy::Proxy;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use rtnetlink::packet_route::link::{
    AfSpecInet, AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InetDevConf, LinkAttribute, LinkMessage,
};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteScope, RouteType};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::packet_route::{AddressFamily, address::AddressFlags};
use rtnetlink::{Handle, IpVersion, LinkUnspec, RouteMessageBuilder};
use std::collections::BTreeSet;
use std::net::IpAddr;
use tokio::task::JoinHandle;

/// Our routing table, and the priority of the rules that lead to it: before the main table (32766).
pub const TABLE: u32 = 7076;
/// Behind any route that leads somewhere.
const UNREACHABLE_METRIC: u32 = u32::MAX - 1;
/// What one TUN read takes is then what one send takes: 64 segments, 65507 bytes, seals included.
const SUPER_PACKET_BYTES_MAX: u32 = 61_000;
const SEGMENTS_MAX: u32 = 64;

/// What the host should know.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Wanted {
    pub mtu: u16,
    pub pool: Vec<IpNet>,
    /// The gateway's own presences.
    pub gateway: Vec<IpAddr>,
    /// The LAN interface on which this host answers for presences.
    pub proxy: Option<String>,
    /// All presences, the gateway's too; only those are answered for.
    pub presences: Vec<IpNet>,
}

/// This gateway's part of the host's network.
pub struct Network {
    link: Link,
    interface: String,
    index: u32,
    proxy: Option<Proxy>,
    pool: Vec<IpNet>,
}

impl Network {
    /// `interface` is the TUN device, which exists. Removes the rules of a predecessor that was killed.
    pub async fn open(interface: &str) -> Result<Self> {
        let link = Link::open()?;
        let index = link.index(interface).await?.with_context(|| format!("there is no interface {interface}"))?;
        let network = Self { link, interface: interface.to_owned(), index, proxy: None, pool: Vec::new() };
        for route in network.link.routes(TABLE).await? {
            let to = output_interface(&route);
            if route.header.kind == RouteType::Unicast && to != Some(index) {
                bail!("routing table {TABLE} is in use by another interface; does another agent run on this host?");
            }
        }
        network.apply_rules(&[]).await?;
        Ok(network)
    }

    /// The interface's number.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Brings the host to what is wanted. What could not be done and does not keep packets from passing is returned,
    /// one line each.
    pub async fn apply(&mut self, wanted: &Wanted) -> Result<Vec<String>> {
        let mut warnings = self.apply_link(wanted).await?;
        self.apply_addresses(&wanted.gateway).await?;
        self.apply_routes(&wanted.pool, &wanted.gateway).await?;
        self.apply_rules(&wanted.pool).await?;
        if self.proxy.as_ref().map(Proxy::interface) != wanted.proxy.as_deref() || self.pool != wanted.pool {
            if let Some(proxy) = self.proxy.take() {
                proxy.remove(&self.link, &self.pool).await?;
            }
            self.proxy = match &wanted.proxy {
                Some(interface) => Some(Proxy::open(&self.link, interface, &wanted.pool).await?),
                None => None,
            };
            self.pool.clone_from(&wanted.pool);
        }
        warnings.extend(self.set_presences(&wanted.presences).await?);
        Ok(warnings)
    }

    /// Presences came or went: answers for those and no others.
    pub async fn set_presences(&mut self, presences: &[IpNet]) -> Result<Vec<String>> {
        match &self.proxy {
            Some(proxy) => proxy.apply(&self.link, &self.pool, presences).await,
            None => Ok(Vec::new()),
        }
    }

    /// The host as it was. The interface itself goes with its owner.
    pub async fn remove(mut self) -> Result<()> {
        if let Some(proxy) = self.proxy.take() {
            proxy.remove(&self.link, &self.pool).await?;
        }
        self.apply_rules(&[]).await?;
        self.apply_routes(&[], &[]).await
    }

    async fn apply_link(&self, wanted: &Wanted) -> Result<Vec<String>> {
        let mut warnings = Vec::new();
        let what = |text: &str| format!("{text} of interface {}", self.interface);
        let message = || LinkUnspec::new_with_index(self.index);
        let set = |message: LinkMessage| self.link.handle.link().set(message).execute();
        let mut limits = message().build();
        limits.attributes.push(LinkAttribute::GsoMaxSize(SUPER_PACKET_BYTES_MAX));
        limits.attributes.push(LinkAttribute::GsoMaxSegs(SEGMENTS_MAX));
        if let Err(error) = set(limits).await {
            warnings.push(format!("cannot set {}: {}", what("the super-packet limits"), reason(error)));
        }
        // Fails where IPv6 is off, and then there is nothing to keep from having an address of its own.
        let generation = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
        set(with_family(message().build(), AfSpecUnspec::Inet6(vec![generation]))).await.ok();
        // A service on the gateway's own 127.0.0.1 can be exposed: packets to it come in here.
        let mut conf = InetDevConf::default();
        // The gateway's own answers (time exceeded, prohibited) come in here from its own presence.
        (conf.forwarding, conf.route_localnet, conf.accept_local) = (1, 1, 1);
        let conf = AfSpecInet::DevConfRequest(conf);
        set(with_family(message().build(), AfSpecUnspec::Inet(vec![conf])))
            .await
            .map_err(|error| failed(&format!("set {}", what("forwarding")), error))?;
        let set_up = message().mtu(wanted.mtu.into()).up().build();
        set(set_up).await.map_err(|error| failed(&format!("set {}", what("the MTU")), error))?;
        if wanted.pool.iter().any(|prefix| matches!(prefix, IpNet::V6(_))) {
            set_conf(&format!("ipv6/conf/{}/disable_ipv6", self.interface), "0");
            // Linux 6.17; before it, forwarding of IPv6 is for all interfaces or none.
            set_conf(&format!("ipv6/conf/{}/force_forwarding", self.interface), "1");
        }
        Ok(warnings)
    }

    async fn apply_addresses(&self, wanted: &[IpAddr]) -> Result<()> {
        for message in self.link.addresses(self.index).await? {
            let is_ours = message.header.scope == AddressScope::Universe;
            let is_wanted = address_of(&message).is_some_and(|address| wanted.contains(&address));
            if is_ours && !is_wanted {
                let removed = self.link.handle.address().del(message).execute().await;
                removed.map_err(|error| failed(&format!("remove an address of {}", self.interface), error))?;
            }
        }
        for address in wanted {
            let bits = IpNet::from(*address).max_prefix_len();
            let mut request = self.link.handle.address().add(self.index, *address, bits).replace();
            if address.is_ipv6() {
                // There is nobody on this interface to ask, and an address must work at once.
                request.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
            }
            let added = request.execute().await;
            added.map_err(|error| failed(&format!("add address {address} to {}", self.interface), error))?;
        }
        Ok(())
    }

    async fn apply_routes(&self, pool: &[IpNet], gateway: &[IpAddr]) -> Result<()> {
        for message in self.link.routes(TABLE).await? {
            let is_wanted = destination(&message).is_some_and(|prefix| pool.contains(&prefix));
            if !is_wanted {
                let removed = self.link.handle.route().del(message).execute().await;
                removed.map_err(|error| failed("remove a route of ours", error))?;
            }
        }
        for prefix in pool {
            let source = gateway.iter().find(|address| address.is_ipv4() == prefix.addr().is_ipv4());
            let route = || {
                let route = RouteMessageBuilder::<IpAddr>::new().table_id(TABLE);
                route.destination_prefix(prefix.network(), prefix.prefix_len()).context("a prefix of the pool")
            };
            let mut to_us = route()?.output_interface(self.index).scope(RouteScope::Link);
            if let Some(source) = source {
                to_us = to_us.pref_source(*source).context("the gateway's presence")?;
            }
            let to_nobody = route()?.kind(RouteType::Unreachable).priority(UNREACHABLE_METRIC);
            for message in [to_us.build(), to_nobody.build()] {
                let added = self.link.handle.route().add(message).replace().execute().await;
                added.map_err(|error| failed(&format!("add the route to pool {prefix}"), error))?;
            }
        }
        Ok(())
    }

    async fn apply_rules(&self, pool: &[IpNet]) -> Result<()> {
        let mut present = BTreeSet::new();
        for message in self.link.rules().await? {
            match rule_prefix(&message).filter(|prefix| pool.contains(prefix)) {
                Some(prefix) if present.insert(prefix) => {}
                Some(_) | None => {
                    let removed = self.link.handle.rule().del(message).execute().await;
                    removed.map_err(|error| failed("remove a routing rule of ours", error))?;
                }
            }
        }
        for prefix in pool.iter().filter(|prefix| !present.contains(prefix)) {
            let rule = self.link.handle.rule().add().table_id(TABLE).priority(TABLE).action(RuleAction::ToTable);
            let added = match *prefix {
                IpNet::V4(p) => rule.v4().destination_prefix(p.network(), p.prefix_len()).execute().await,
                IpNet::V6(p) => rule.v6().destination_prefix(p.network(), p.prefix_len()).execute().await,
            };
            added.map_err(|error| failed(&format!("add the routing rule for pool {prefix}"), error))?;
        }
        Ok(())
    }
}

/// A connection to the kernel.
struct Link {
    handle: Handle,
    task: JoinHandle<()>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Link {
    /// In the network namespace of the calling thread; needs a tokio runtime.
    fn open() -> Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection().context("cannot open a netlink socket")?;
        Ok(Self { handle, task: tokio::spawn(connection) })
    }

    async fn links(&self) -> Result<Vec<LinkMessage>> {
        let links = self.handle.link().get().execute().try_collect().await;
        links.map_err(|error| failed("list interfaces", error))
    }

    async fn index(&self, interface: &str) -> Result<Option<u32>> {
        let is_it = |link: &LinkMessage| link_name(link) == Some(interface);
        Ok(self.links().await?.iter().find(|link| is_it(link)).map(|link| link.header.index))
    }

    async fn addresses(&self, index: u32) -> Result<Vec<AddressMessage>> {
        let addresses = self.handle.address().get().set_link_index_filter(index).execute().try_collect().await;
        addresses.map_err(|error| failed("list addresses", error))
    }

    /// Of both families, of one table or (0) of all.
    async fn routes(&self, table: u32) -> Result<Vec<RouteMessage>> {
        let mut routes: Vec<RouteMessage> = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            let answer: Result<Vec<_>, _> = self.handle.route().get(message).execute().try_collect().await;
            match answer {
                Ok(answer) => routes.extend(answer),
                // A kernel without IPv6.
                Err(_) if family == AddressFamily::Inet6 => {}
                Err(error) => return Err(failed("list routes", error)),
            }
        }
        routes.retain(|route| table == 0 || route_table(route) == table);
        Ok(routes)
    }

    /// Of both families, those that lead to our table.
    async fn rules(&self) -> Result<Vec<RuleMessage>> {
        let mut rules: Vec<RuleMessage> = Vec::new();
        for version in [IpVersion::V4, IpVersion::V6] {
            let is_v6 = version == IpVersion::V6;
            let answer: Result<Vec<_>, _> = self.handle.rule().get(version).execute().try_collect().await;
            match answer {
                Ok(answer) => rules.extend(answer),
                Err(_) if is_v6 => {}
                Err(error) => return Err(failed("list routing rules", error)),
            }
        }
        rules.retain(|rule| rule.attributes.contains(&RuleAttribute::Table(TABLE)));
        Ok(rules)
    }
}

fn with_family(mut message: LinkMessage, of_family: AfSpecUnspec) -> LinkMessage {
    message.attributes.push(LinkAttribute::AfSpecUnspec(vec![of_family]));
    message
}

fn link_name(link: &LinkMessage) -> Option<&str> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    })
}

/// The host's own address; on a point-to-point link `Address` would be the other end's.
fn address_of(message: &AddressMessage) -> Option<IpAddr> {
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    local.or_else(|| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })
}

fn route_table(route: &RouteMessage) -> u32 {
    let attribute = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    attribute.unwrap_or(route.header.table.into())
}

fn output_interface(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}

fn destination(route: &RouteMessage) -> Option<IpNet> {
    let address = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(address) => ip(address),
        _ => None,
    });
    let address = address.or(match route.header.address_family {
        AddressFamily::Inet => Some(IpAddr::from([0; 4])),
        AddressFamily::Inet6 => Some(IpAddr::from([0; 16])),
        _ => None,
    });
    IpNet::new(address?, route.header.destination_prefix_length).ok()
}

/// Whereto a rule of ours is; none if it is not as we make them.
fn rule_prefix(rule: &RuleMessage) -> Option<IpNet> {
    let as_ours = rule.attributes.contains(&RuleAttribute::Priority(TABLE)) && rule.header.src_len == 0;
    let address = rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Destination(address) => Some(*address),
        _ => None,
    });
    IpNet::new(address?, rule.header.dst_len).ok().filter(|_| as_ours)
}

fn failed(what: &str, error: rtnetlink::Error) -> anyhow::Error {
    anyhow::anyhow!("cannot {what}: {}", reason(error))
}

/// The kernel's word where it has one.
fn reason(error: rtnetlink::Error) -> String {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io().to_string(),
        error => error.to_string(),
    }
}

fn is_code(error: &rtnetlink::Error, code: i32) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message) if message.raw_code() == -code)
}

const CONF: &str = "/proc/sys/net";

/// For what netlink cannot set; the value before, if it was another and could be set.
fn set_conf(path: &str, value: &str) -> Option<String> {
    let path = format!("{CONF}/{path}");
    let before = std::fs::read_to_string(&path).ok()?.trim().to_owned();
    (before != value).then(|| std::fs::write(&path, value).ok().map(|()| before)).flatten()
}

fn conf(path: &str) -> Option<String> {
    Some(std::fs::read_to_string(format!("{CONF}/{path}")).ok()?.trim().to_owned())
}
