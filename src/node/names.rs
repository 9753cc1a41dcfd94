//! What names mean to a host of this site, and what it may call addresses. On the live tables, in names without their
//! zone: `[web, cloud]`. What a host may not use is to it as if it were not there.

use super::Node;
use super::admit::caller_rule;
use crate::addr::{Family, Holder, Name, PortMap, ServiceName, wire};
use crate::catalogue::{PeerOffer, Presence};
use std::net::IpAddr;

/// What callers have for a name whose site gave them none: this and their wire index.
const UNNAMED: &str = "caller-";

/// What is found under a name. The name of another site has nothing of its own; nor has a service that is a prefix, of
/// which only the hosts have addresses.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Meaning {
    pub addresses: Vec<IpAddr>,
    /// The ports that answer at these addresses.
    pub ports: Vec<PortMap>,
}

impl Node {
    /// What a name means to a host of this site; to the gateway itself without a host. None: there is no such name.
    #[must_use]
    pub fn meaning(&self, labels: &[Name], from: Option<IpAddr>) -> Option<Meaning> {
        View::new(self, from).meaning(labels)
    }

    /// The name of what stands behind an address of the pool.
    #[must_use]
    pub fn called(&self, address: IpAddr, from: Option<IpAddr>) -> Option<Vec<Name>> {
        View::new(self, from).called(address)
    }
}

/// The site as one of its hosts sees it.
struct View<'a> {
    node: &'a Node,
    /// None: the gateway itself.
    from: Option<IpAddr>,
    /// The addresses that it calls from, of each family.
    sources: [Vec<IpAddr>; 2],
}

impl<'a> View<'a> {
    fn new(node: &'a Node, from: Option<IpAddr>) -> Self {
        let sources = |family| match from {
            None => node.gateway_address(family).into_iter().collect(),
            Some(host) if Family::of(host) == family => vec![host],
            // Who asks in one family may call in the other; what it has there is known if it has a name.
            Some(host) => {
                let named = node.clients.name(host).map(|name| node.clients.addresses(name));
                let others = named.into_iter().flatten().filter(|other| Family::of(*other) == family);
                let others: Vec<_> = others.collect();
                if others.is_empty() { vec![host] } else { others }
            }
        };
        Self { node, from, sources: Family::BOTH.map(sources) }
    }

    fn meaning(&self, labels: &[Name]) -> Option<Meaning> {
        match labels {
            [] => Some(Meaning::default()),
            [one] => self.site(one).or_else(|| self.tenant(one)),
            [rest @ .., site, tenant] if self.is_of(site, tenant) => self.in_site(rest, site),
            [rest @ .., site] => self.in_site(rest, site),
        }
    }

    fn in_site(&self, rest: &[Name], site: &Name) -> Option<Meaning> {
        match rest {
            [] => self.site(site),
            [one] => self.service(one, None, site).or_else(|| self.host(one, site)),
            [service, host] => self.service(service, Some(host), site),
            _ => None,
        }
    }

    /// This site's own name is its gateway's.
    fn site(&self, site: &Name) -> Option<Meaning> {
        if *site == self.node.settings.site {
            return Some(Meaning { addresses: self.node.gateway_addresses(), ports: Vec::new() });
        }
        let has_callers = || Family::BOTH.into_iter().any(|family| self.node.leases.callers_of(site, family) > 0);
        let exists = has_callers() || self.node.presences.of_site(site).any(|presence| self.may_use(presence));
        exists.then(Meaning::default)
    }

    fn tenant(&self, tenant: &Name) -> Option<Meaning> {
        let identities = self.node.peers.iter().filter_map(|(_, peer)| peer.identity());
        let mut sites = identities.filter(|identity| identity.tenant.as_ref() == Some(tenant)).map(|of| &of.site);
        sites.find_map(|site| self.site(site)).map(|_| Meaning::default())
    }

    /// Names that the operators chose come before those that a peer's site gives its hosts.
    fn is_of(&self, site: &Name, tenant: &Name) -> bool {
        let peer = self.node.peers.by_site(site).and_then(|peer| self.node.peer(peer));
        peer.is_some_and(|peer| peer.settings.identity.tenant.as_ref() == Some(tenant))
    }

    fn service(&self, service: &Name, host: Option<&Name>, site: &Name) -> Option<Meaning> {
        if *site == self.node.settings.site {
            return self.own_service(service, host);
        }
        let name = ServiceName { service: service.clone(), site: site.clone() };
        let of_family = |family| self.node.presences.by_service(&name, family).map(|(_, presence)| presence);
        let presences: Vec<&Presence> = Family::BOTH.into_iter().filter_map(of_family).collect();
        let usable: Vec<&Presence> = presences.into_iter().filter(|presence| self.may_use(presence)).collect();
        let offer = self.offer(site);
        let offered = offer.and_then(|offer| offer.by_name(service));
        let ports = usable.first()?.ports(offered);
        let addresses = match host {
            None => usable.iter().filter(|presence| is_one(presence)).map(|presence| presence.address(0)).collect(),
            Some(host) => {
                let offered = offered?;
                let last = offered.index + ((1 << offered.host_bits) - 1);
                let indices: Vec<_> = offer?.indices_of(host, offered.index, last).collect();
                let of_presence = |presence: &&Presence| {
                    let family = Family::of(presence.block.addr());
                    let of_family = indices.iter().filter(|(_, families)| families[family as usize]);
                    let addresses = of_family.map(|(index, _)| presence.address(index - offered.index));
                    addresses.filter(|address| presence.block.contains(address)).collect::<Vec<_>>()
                };
                let addresses: Vec<IpAddr> = usable.iter().flat_map(of_presence).collect();
                (!addresses.is_empty()).then_some(addresses)?
            }
        };
        Some(Meaning { addresses, ports })
    }

    /// Hosts of this site call a service of this site where it is.
    fn own_service(&self, service: &Name, host: Option<&Name>) -> Option<Meaning> {
        let (_, exposed) = self.node.exposed.by_name(service)?;
        let ports = exposed.exposure.ports.iter().copied().map(PortMap::same).collect();
        let addresses: Vec<IpAddr> = match host {
            None => exposed.exposure.target.addresses(),
            Some(host) => {
                let of_host = self.node.clients.addresses(host);
                let targets = of_host.filter(|address| exposed.index_of(*address).is_some()).collect::<Vec<_>>();
                (!targets.is_empty()).then_some(targets)?
            }
        };
        // The gateway's own loopback is nobody else's.
        let reached = addresses.into_iter().filter(|address| self.from.is_none() || !address.is_loopback());
        Some(Meaning { addresses: reached.collect(), ports })
    }

    /// A host of this site that has a name, a caller of another that has a presence here, or what runs on a host there.
    fn host(&self, host: &Name, site: &Name) -> Option<Meaning> {
        if *site == self.node.settings.site {
            let addresses: Vec<IpAddr> = self.node.clients.addresses(host).collect();
            return (!addresses.is_empty()).then_some(Meaning { addresses, ports: Vec::new() });
        }
        let offer = self.offer(site);
        let named = offer.into_iter().flat_map(|offer| offer.callers_named(host));
        let unnamed = unnamed(host).filter(|index| offer.is_none_or(|offer| offer.caller(*index).is_none()));
        let presence = |index: u16, family| {
            let holder = Holder::CallerPresence { site: site.clone(), index, family };
            self.node.leases.block(&holder).map(|block| block.addr())
        };
        let of_caller = |index| Family::BOTH.into_iter().filter_map(move |family| presence(index, family));
        let addresses: Vec<IpAddr> = named.chain(unnamed).flat_map(of_caller).collect();
        let exists = !addresses.is_empty() || offer.is_some_and(|offer| self.serves(offer, host, site));
        exists.then_some(Meaning { addresses, ports: Vec::new() })
    }

    /// Whether something that may be used runs on that host.
    fn serves(&self, offer: &PeerOffer, host: &Name, site: &Name) -> bool {
        let services = offer.indices_of(host, wire::FIRST, wire::LAST).filter_map(|(index, _)| offer.by_index(index));
        services.into_iter().any(|offered| self.service(&offered.name, Some(host), site).is_some())
    }

    fn called(&self, address: IpAddr) -> Option<Vec<Name>> {
        match self.node.leases.holder(address)? {
            Holder::Gateway { .. } => Some(vec![self.node.settings.site.clone()]),
            Holder::ServicePresence { .. } => {
                let (_, presence) = self.node.presences.by_address(address).filter(|(_, p)| self.may_use(p))?;
                let ServiceName { service, site } = presence.service.clone();
                let offer = self.offer(&site);
                let host = offer.filter(|_| !is_one(presence)).and_then(|offer| {
                    let index = offer.by_name(&service)?.index.checked_add(presence.offset(address))?;
                    offer.host(index, Family::of(address)).cloned()
                });
                Some([Some(service), host, Some(site)].into_iter().flatten().collect())
            }
            Holder::CallerPresence { site, index, .. } => {
                let named = self.offer(site).and_then(|offer| offer.caller(*index)).cloned();
                let name = named.or_else(|| Name::new(&format!("{UNNAMED}{index}")).ok())?;
                Some(vec![name, site.clone()])
            }
            Holder::ServiceIndex { .. } | Holder::CallerIndex { .. } => None,
        }
    }

    fn offer(&self, site: &Name) -> Option<&'a PeerOffer> {
        self.node.offers.get(site).map(|(_, offer)| offer)
    }

    /// Whether its site offers it, as far as is known, and its mapping is for this host.
    fn may_use(&self, presence: &Presence) -> bool {
        let ServiceName { service, site } = &presence.service;
        let is_offered = || match self.offer(site) {
            Some(offer) => offer.by_name(service).is_some(),
            None => self.node.peers.by_site(site).is_some(),
        };
        let family = Family::of(presence.block.addr());
        let is_for = |source: &IpAddr| {
            let client = self.node.clients.name(*source);
            caller_rule(presence, *source, client).is_some() && self.node.may_call(*source)
        };
        self.sources[family as usize].iter().any(is_for) && is_offered()
    }
}

fn is_one(presence: &Presence) -> bool {
    presence.block.prefix_len() == presence.block.max_prefix_len()
}

/// The caller that has this name for want of another.
fn unnamed(name: &Name) -> Option<u16> {
    let index: u16 = name.as_str().strip_prefix(UNNAMED)?.parse().ok()?;
    // No second spelling.
    (format!("{UNNAMED}{index}") == name.as_str()).then_some(index)
}
