//! The remote services that have a local address here: mappings, joined with what the peers offer.

use super::settings::{Mapping, ServicePattern};
use super::{Offer, OfferedService};
use crate::addr::{
    Family, Grant, Holder, LeaseError, Leases, Name, PeerId, Pool, PortMap, PortRange, Protocol, ServiceName,
    from_bits, to_bits,
};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

/// A service presence. Its number stays the same as long as it is mapped.
#[derive(Debug)]
pub struct Presence {
    pub service: ServiceName,
    pub block: IpNet,
    pub mapping: Mapping,
    pub flows: u32,
}

/// What a peer offers, found by name and by wire index.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct PeerOffer {
    offer: Offer,
    by_name: BTreeMap<Name, usize>,
    by_index: BTreeMap<u16, usize>,
}

#[derive(Debug, Default)]
pub struct Presences {
    presences: BTreeMap<u32, Presence>,
    /// Numbers are not used again: an old flow's number must never mean another presence.
    last_number: u32,
    by_service: BTreeMap<(ServiceName, Family), u32>,
    by_address: BTreeMap<(Family, u128), u32>,
}

/// What changed in leases.
#[derive(Debug, Default)]
pub struct LeaseChanges {
    pub granted: Vec<Grant>,
    pub released: Vec<Grant>,
    /// Mappings that got no address, and why.
    pub refused: Vec<(ServiceName, LeaseError)>,
}

impl PeerOffer {
    #[must_use]
    pub fn new(offer: Offer) -> Self {
        let by_name = offer.services.iter().enumerate().map(|(i, s)| (s.name.clone(), i)).collect();
        let by_index = offer.services.iter().enumerate().map(|(i, s)| (s.index, i)).collect();
        Self { offer, by_name, by_index }
    }

    #[must_use]
    pub fn services(&self) -> &[OfferedService] {
        &self.offer.services
    }

    #[must_use]
    pub fn by_name(&self, name: &Name) -> Option<&OfferedService> {
        Some(&self.offer.services[*self.by_name.get(name)?])
    }

    #[must_use]
    pub fn by_index(&self, index: u16) -> Option<&OfferedService> {
        let (_, at) = self.by_index.range(..=index).next_back()?;
        let service = &self.offer.services[*at];
        (u32::from(index - service.index) < 1 << service.host_bits).then_some(service)
    }

    /// The name that the peer's site gave to its caller.
    #[must_use]
    pub fn caller(&self, index: u16) -> Option<&Name> {
        let at = self.offer.callers.binary_search_by_key(&index, |caller| caller.index).ok()?;
        Some(&self.offer.callers[at].name)
    }
}

impl Presence {
    /// Address of the block for the `offset`th address of the service.
    #[must_use]
    pub fn address(&self, offset: u16) -> IpAddr {
        from_bits(Family::of(self.block.addr()), to_bits(self.block.network()) + u128::from(offset))
    }

    #[must_use]
    pub fn offset(&self, address: IpAddr) -> u16 {
        u16::try_from(to_bits(address) - to_bits(self.block.network())).unwrap_or(0)
    }

    /// The service's port behind a port of the presence: as the mapping says, else unchanged.
    #[must_use]
    pub fn remote_port(&self, protocol: Protocol, port: u16) -> Option<u16> {
        if self.mapping.ports.is_empty() {
            return Some(port);
        }
        self.mapping.ports.iter().find_map(|map| map.remote(protocol, port))
    }

    /// The inverse of [`Self::remote_port`].
    #[must_use]
    pub fn local_port(&self, protocol: Protocol, port: u16) -> Option<u16> {
        if self.mapping.ports.is_empty() {
            return Some(port);
        }
        self.mapping.ports.iter().find_map(|map| map.local(protocol, port))
    }

    /// The ports that answer here, as far as the service offers them.
    #[must_use]
    pub fn ports(&self, offered: Option<&OfferedService>) -> Vec<String> {
        let Some(service) = offered else { return self.mapping.ports.iter().map(PortMap::to_string).collect() };
        if self.mapping.ports.is_empty() {
            return service.ports.iter().map(PortRange::to_string).collect();
        }
        let is_offered = |map: &&PortMap| {
            let wanted = map.remote_range();
            service.ports.iter().any(|p| p.contains(wanted.protocol, wanted.first))
        };
        self.mapping.ports.iter().filter(is_offered).map(PortMap::to_string).collect()
    }
}

impl Presences {
    /// Makes it so: every mapping, for every service that it names and that is offered, was offered, or may be.
    pub fn set(
        &mut self,
        mappings: &[Mapping],
        peers: &BTreeMap<Name, (PeerId, PeerOffer)>,
        pool: &Pool,
        leases: &mut Leases,
        now: Instant,
    ) -> LeaseChanges {
        let mut changes = LeaseChanges::default();
        let wanted = wanted(mappings, peers, pool, leases);
        let gone: Vec<_> = self.by_service.keys().filter(|key| !wanted.contains_key(*key)).cloned().collect();
        for key in gone {
            self.remove(&key);
        }
        let holder = |(service, family): &(ServiceName, Family)| Holder::ServicePresence {
            service: service.clone(),
            family: *family,
        };
        let stale: Vec<Holder> = leases
            .iter()
            .map(|grant| grant.holder)
            .filter(|h| matches!(h, Holder::ServicePresence { service, family } if !wanted.contains_key(&(service.clone(), *family))))
            .collect();
        changes.released.extend(stale.iter().filter_map(|holder| leases.release(holder, now)));
        // Fixed addresses first, so that no leased one is in their way.
        let mut in_order: Vec<_> = wanted.into_iter().collect();
        in_order.sort_by_key(|(_, want)| want.fixed.is_none());
        for (key, want) in in_order {
            match leases.grant(&holder(&key), pool, want.host_bits, want.fixed, now) {
                Ok((grant, is_new)) => {
                    self.place(key, &grant, want.mapping);
                    if is_new {
                        changes.granted.push(grant);
                    }
                }
                Err(error) => {
                    self.remove(&key);
                    changes.refused.push((key.0, error));
                }
            }
        }
        let place =
            |(number, p): (&u32, &Presence)| ((Family::of(p.block.addr()), to_bits(p.block.network())), *number);
        self.by_address = self.presences.iter().map(place).collect();
        changes
    }

    fn place(&mut self, key: (ServiceName, Family), grant: &Grant, mapping: &Mapping) {
        let service = key.0.clone();
        let number = *self.by_service.entry(key).or_insert_with(|| {
            self.last_number += 1;
            self.last_number
        });
        let flows = self.get(number).map_or(0, |presence| presence.flows);
        let presence = Presence { service, block: grant.block, mapping: mapping.clone(), flows };
        self.presences.insert(number, presence);
    }

    fn remove(&mut self, key: &(ServiceName, Family)) {
        if let Some(number) = self.by_service.remove(key) {
            self.presences.remove(&number);
        }
    }

    #[must_use]
    pub fn get(&self, number: u32) -> Option<&Presence> {
        self.presences.get(&number)
    }

    pub fn get_mut(&mut self, number: u32) -> Option<&mut Presence> {
        self.presences.get_mut(&number)
    }

    #[must_use]
    pub fn by_address(&self, address: IpAddr) -> Option<(u32, &Presence)> {
        let family = Family::of(address);
        let (key, number) = self.by_address.range(..=(family, to_bits(address))).next_back()?;
        let presence = self.get(*number)?;
        (key.0 == family && presence.block.contains(&address)).then_some((*number, presence))
    }

    #[must_use]
    pub fn by_service(&self, service: &ServiceName, family: Family) -> Option<(u32, &Presence)> {
        let number = *self.by_service.get(&(service.clone(), family))?;
        Some((number, self.get(number)?))
    }

    pub fn iter(&self) -> impl Iterator<Item = &Presence> {
        self.by_service.values().filter_map(|number| self.get(*number))
    }
}

struct Wanted<'a> {
    mapping: &'a Mapping,
    host_bits: u8,
    fixed: Option<IpNet>,
}

/// Every presence there should be. The mapping of one service wins over one of all services of its site.
fn wanted<'a>(
    mappings: &'a [Mapping],
    peers: &BTreeMap<Name, (PeerId, PeerOffer)>,
    pool: &Pool,
    leases: &Leases,
) -> BTreeMap<(ServiceName, Family), Wanted<'a>> {
    let mut wanted = BTreeMap::new();
    let in_pool = |family: Family| pool.prefixes().iter().any(|p| Family::of(p.addr()) == family);
    let mut in_order: Vec<&Mapping> = mappings.iter().collect();
    in_order.sort_by_key(|mapping| matches!(mapping.service, ServicePattern::AllOf(_)));
    for mapping in in_order {
        for service in services_of(mapping, peers, leases) {
            if wanted.contains_key(&(service.clone(), Family::V4))
                || wanted.contains_key(&(service.clone(), Family::V6))
            {
                continue;
            }
            let offered = peers.get(&service.site).and_then(|(_, offer)| offer.by_name(&service.service));
            for family in families(&service, mapping, offered, leases, in_pool) {
                let held = leases.block(&Holder::ServicePresence { service: service.clone(), family });
                let held_bits = held.map_or(0, |block| block.max_prefix_len() - block.prefix_len());
                let host_bits = offered.map_or(held_bits, |offered| offered.host_bits);
                let fixed = mapping
                    .address
                    .filter(|address| Family::of(*address) == family)
                    .and_then(|address| IpNet::new(address, family.bits() - host_bits).ok());
                wanted.insert((service.clone(), family), Wanted { mapping, host_bits, fixed });
            }
        }
    }
    wanted
}

fn services_of(
    mapping: &Mapping,
    peers: &BTreeMap<Name, (PeerId, PeerOffer)>,
    leases: &Leases,
) -> BTreeSet<ServiceName> {
    match &mapping.service {
        ServicePattern::One(service) => BTreeSet::from([service.clone()]),
        ServicePattern::AllOf(site) => {
            let offered = peers.get(site).into_iter().flat_map(|(_, offer)| offer.services());
            let offered = offered.map(|s| ServiceName { service: s.name.clone(), site: site.clone() });
            let known = leases.iter().filter_map(|grant| match grant.holder {
                Holder::ServicePresence { service, .. } if service.site == *site => Some(service),
                _ => None,
            });
            offered.chain(known).collect()
        }
    }
}

/// The families a presence is given for: what is offered and the pool has; before anything is known, what it was
/// before, else the pool's first.
fn families(
    service: &ServiceName,
    mapping: &Mapping,
    offered: Option<&OfferedService>,
    leases: &Leases,
    in_pool: impl Fn(Family) -> bool,
) -> Vec<Family> {
    let has_lease = |family| leases.block(&Holder::ServicePresence { service: service.clone(), family }).is_some();
    let known: Vec<Family> = match offered {
        Some(offered) => Family::BOTH.into_iter().filter(|f| offered.has(*f) && in_pool(*f)).collect(),
        None => Family::BOTH.into_iter().filter(|f| has_lease(*f) && in_pool(*f)).collect(),
    };
    if !known.is_empty() {
        return known;
    }
    let fixed = mapping.address.map(Family::of);
    fixed.or_else(|| Family::BOTH.into_iter().find(|f| in_pool(*f))).into_iter().collect()
}
