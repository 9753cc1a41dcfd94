//! The remote services that have a local address here: mappings, joined with what the peers offer.

use super::settings::{Mapping, ServicePattern};
use super::{Offer, OfferedService};
use crate::addr::{
    Family, Grant, Holder, LeaseError, Leases, Name, PeerId, Pool, PortMap, Protocol, ServiceName, from_bits, to_bits,
};
use ipnet::IpNet;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

/// All services of one site, mapped together, may take one part in so many of the pool: that site alone decides how many
/// there are and what they are called.
const POOL_SHARE: usize = 2;
/// And no more addresses than a site can have inside its tunnels, however large the pool is: what was offered once keeps
/// its address while there is room.
const SHARE_MAX: usize = 1 << 16;
/// Callers, or wire indices of services, that are found by one name of a host: a query for it looks at each, and the peer
/// alone decides what it calls how many.
const NAMED_MAX: usize = 256;

/// A service presence. Its number stays the same as long as it is mapped.
#[derive(Clone, Debug)]
pub struct Presence {
    pub service: ServiceName,
    pub block: IpNet,
    pub mapping: Arc<Mapping>,
    pub flows: u32,
}

/// What a peer offers, found by name and by wire index.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct PeerOffer {
    offer: Offer,
    by_name: BTreeMap<Name, usize>,
    by_index: BTreeMap<u16, usize>,
    callers_by_name: BTreeSet<(Name, u16)>,
    hosts_by_name: BTreeMap<(Name, u16), [bool; 2]>,
}

#[derive(Clone, Debug, Default)]
pub struct Presences {
    presences: BTreeMap<u32, Presence>,
    /// Numbers are not used again: an old flow's number must never mean another presence.
    last_number: u32,
    /// By site, and then by service: what one site offers is its own matter.
    by_service: BTreeMap<Name, BTreeMap<(Name, Family), u32>>,
    by_address: BTreeMap<(Family, u128), u32>,
    /// By site; those of one service before those of all.
    mappings: BTreeMap<Name, Vec<Arc<Mapping>>>,
    refused: Vec<(ServiceName, LeaseError)>,
    /// Those of them that were to have an address of the operator's choice.
    fixed_refused: BTreeMap<ServiceName, (IpAddr, LeaseError)>,
}

/// What changed in leases.
#[derive(Debug, Default)]
pub struct LeaseChanges {
    pub granted: Vec<Grant>,
    pub released: Vec<Grant>,
}

impl PeerOffer {
    #[must_use]
    pub fn new(offer: Offer) -> Self {
        let by_name = offer.services.iter().enumerate().map(|(i, s)| (s.name.clone(), i)).collect();
        let by_index = offer.services.iter().enumerate().map(|(i, s)| (s.index, i)).collect();
        let callers_by_name = {
            let mut is_found = first_of_each();
            let callers = offer.callers.iter().filter(|caller| is_found(&caller.name));
            callers.map(|caller| (caller.name.clone(), caller.index)).collect()
        };
        let mut hosts_by_name: BTreeMap<_, [bool; 2]> = BTreeMap::new();
        {
            let mut is_found = first_of_each();
            for host in offer.hosts.iter().filter(|host| is_found(&host.name)) {
                let [ipv4, ipv6] = hosts_by_name.entry((host.name.clone(), host.index)).or_default();
                (*ipv4, *ipv6) = (*ipv4 || host.ipv4, *ipv6 || host.ipv6);
            }
        }
        Self { offer, by_name, by_index, callers_by_name, hosts_by_name }
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
        service.has_index(index).then_some(service)
    }

    /// The name that the peer's site gave to its caller.
    #[must_use]
    pub fn caller(&self, index: u16) -> Option<&Name> {
        let at = self.offer.callers.binary_search_by_key(&index, |caller| caller.index).ok()?;
        Some(&self.offer.callers[at].name)
    }

    /// Its callers of this name.
    pub fn callers_named(&self, name: &Name) -> impl Iterator<Item = u16> {
        let named = self.callers_by_name.range((name.clone(), 0)..);
        named.take_while(move |(of, _)| of == name).map(|(_, index)| *index)
    }

    /// Wire indices of services, from `first` to `last`, that this host of the peer's site serves, with the families.
    pub fn indices_of(&self, host: &Name, first: u16, last: u16) -> impl Iterator<Item = (u16, [bool; 2])> {
        let named = self.hosts_by_name.range((host.clone(), first)..=(host.clone(), last));
        named.map(|((_, index), families)| (*index, *families))
    }

    /// The name of the host that serves this wire index.
    #[must_use]
    pub fn host(&self, index: u16, family: Family) -> Option<&Name> {
        let first = self.offer.hosts.partition_point(|host| host.index < index);
        let of_index = self.offer.hosts[first..].iter().take_while(|host| host.index == index);
        of_index.into_iter().find(|host| host.has(family)).map(|host| &host.name)
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
    pub fn ports(&self, offered: Option<&OfferedService>) -> Vec<PortMap> {
        let Some(service) = offered else { return self.mapping.ports.clone() };
        if self.mapping.ports.is_empty() {
            return service.ports.iter().copied().map(PortMap::same).collect();
        }
        let is_offered = |map: &&PortMap| {
            let wanted = map.remote_range();
            service.ports.iter().any(|p| p.contains(wanted.protocol, wanted.first))
        };
        self.mapping.ports.iter().filter(is_offered).copied().collect()
    }
}

impl Presences {
    /// What the operator maps, whole. The sites for which it changed: they are to be [`Self::set`].
    pub fn configure(&mut self, mappings: &[Mapping]) -> BTreeSet<Name> {
        let mut by_site: BTreeMap<&Name, Vec<&Mapping>> = BTreeMap::new();
        for mapping in mappings {
            by_site.entry(mapping.service.site()).or_default().push(mapping);
        }
        let gone = self.mappings.keys().filter(|site| !by_site.contains_key(site));
        let mut changed: BTreeSet<Name> = gone.cloned().collect();
        self.mappings.retain(|site, _| by_site.contains_key(site));
        for (site, mut wanted) in by_site {
            wanted.sort_by_key(|mapping| matches!(mapping.service, ServicePattern::AllOf(_)));
            let known = self.mappings.get(site);
            if known.is_none_or(|known| !known.iter().map(|mapping| &**mapping).eq(wanted.iter().copied())) {
                self.mappings.insert(site.clone(), wanted.into_iter().cloned().map(Arc::new).collect());
                changed.insert(site.clone());
            }
        }
        changed
    }

    /// The sites of which something is mapped.
    pub fn sites(&self) -> impl Iterator<Item = Name> + '_ {
        self.mappings.keys().cloned()
    }

    /// The sites of which something is mapped that got no address.
    pub fn sites_refused(&self) -> BTreeSet<Name> {
        self.refused.iter().map(|(service, _)| service.site.clone()).collect()
    }

    /// Makes it so for these sites: every mapping, for every service that it names and that is offered, was offered, or
    /// may be.
    pub fn set(
        &mut self,
        sites: &BTreeSet<Name>,
        peers: &BTreeMap<Name, (PeerId, PeerOffer)>,
        pool: &Pool,
        leases: &mut Leases,
        now: Instant,
    ) -> LeaseChanges {
        let mut changes = LeaseChanges::default();
        leases.wake(now);
        let mut wanted = BTreeMap::new();
        for site in sites {
            want(site, self.mappings.get(site).map_or(&[], Vec::as_slice), peers, pool, leases, &mut wanted);
        }
        let mut shares = shares(&mut wanted, pool, leases);
        let is_wanted = |site: &Name, (service, family): &(Name, Family)| {
            wanted.contains_key(&(ServiceName { service: service.clone(), site: site.clone() }, *family))
        };
        for site in sites {
            let name = |(service, family): &(Name, Family)| {
                (ServiceName { service: service.clone(), site: site.clone() }, *family)
            };
            let placed = self.by_service.get(site).into_iter().flat_map(BTreeMap::keys);
            let gone: Vec<_> = placed.filter(|key| !is_wanted(site, key)).map(name).collect();
            gone.iter().for_each(|key| self.remove(key));
            let stale: Vec<_> = leases.services_of(site).filter(|key| !is_wanted(site, key)).map(name).collect();
            changes.released.extend(stale.iter().filter_map(|key| leases.release(&holder(key), now)));
        }
        self.refused.retain(|(service, _)| !sites.contains(&service.site));
        self.fixed_refused.retain(|service, _| !sites.contains(&service.site));
        // Who is to have another fixed address makes room first: two may change places.
        let moves = |(key, want): (&(ServiceName, Family), &Wanted)| {
            let holder = holder(key);
            let from = leases.block(&holder).filter(|block| want.fixed.is_some_and(|fixed| fixed != *block));
            from.map(|_| holder)
        };
        let moved: Vec<Holder> = wanted.iter().filter_map(moves).collect();
        changes.released.extend(moved.iter().filter_map(|holder| leases.release(holder, now)));
        // Fixed addresses first, so that no leased one is in their way; new names do not take what old ones have.
        let mut in_order: Vec<_> = wanted.into_iter().collect();
        in_order.sort_by_key(|(_, want)| (want.fixed.is_none(), want.held.is_none()));
        for (key, want) in in_order {
            let is_new = want.of_all && !want.has_lease();
            let share = shares.get_mut(&(key.0.site.clone(), key.1)).filter(|_| is_new);
            let granted = match share {
                Some(share) if want.addresses() > *share => Err(LeaseError::ShareUsedUp),
                share => {
                    share.into_iter().for_each(|share| *share -= want.addresses());
                    leases.grant(&holder(&key), pool, want.host_bits, want.fixed, now)
                }
            };
            match granted {
                Ok((grant, is_new)) => {
                    self.place(key, &grant, &want.mapping);
                    if is_new {
                        changes.granted.push(grant);
                    }
                }
                Err(error) => {
                    self.remove(&key);
                    if let Some(address) = want.mapping.address {
                        self.fixed_refused.insert(key.0.clone(), (address, error.clone()));
                    }
                    self.refused.push((key.0, error));
                }
            }
        }
        changes
    }

    fn place(&mut self, key: (ServiceName, Family), grant: &Grant, mapping: &Arc<Mapping>) {
        let (service, family) = key;
        let of_site = self.by_service.entry(service.site.clone()).or_default();
        let number = *of_site.entry((service.service.clone(), family)).or_insert_with(|| {
            self.last_number += 1;
            self.last_number
        });
        self.leave(number);
        let flows = self.get(number).map_or(0, |presence| presence.flows);
        let presence = Presence { service, block: grant.block, mapping: Arc::clone(mapping), flows };
        self.presences.insert(number, presence);
        self.by_address.insert(place(&grant.block), number);
    }

    fn remove(&mut self, (service, family): &(ServiceName, Family)) {
        let Some(of_site) = self.by_service.get_mut(&service.site) else { return };
        let Some(number) = of_site.remove(&(service.service.clone(), *family)) else { return };
        if of_site.is_empty() {
            self.by_service.remove(&service.site);
        }
        self.leave(number);
        self.presences.remove(&number);
    }

    /// Its address may be another's already.
    fn leave(&mut self, number: u32) {
        let Some(presence) = self.presences.get(&number) else { return };
        if let Entry::Occupied(entry) = self.by_address.entry(place(&presence.block))
            && *entry.get() == number
        {
            entry.remove();
        }
    }

    /// Mappings that got no address, and why.
    #[must_use]
    pub fn refused(&self) -> &[(ServiceName, LeaseError)] {
        &self.refused
    }

    /// One of them that was to have a certain address, by a mapping that is not among the `known`.
    #[must_use]
    pub fn fixed_refused(&self, known: &[Mapping]) -> Option<(&ServiceName, IpAddr, &LeaseError)> {
        let is_known = |service: &ServiceName, address: IpAddr| {
            known.iter().any(|mapping| mapping.address == Some(address) && mapping.service.matches(service))
        };
        let mut refused = self.fixed_refused.iter().filter(|(service, (address, _))| !is_known(service, *address));
        let (service, (address, error)) = refused.next()?;
        Some((service, *address, error))
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
        let number = *self.by_service.get(&service.site)?.get(&(service.service.clone(), family))?;
        Some((number, self.get(number)?))
    }

    /// Those of a site's services.
    pub fn of_site(&self, site: &Name) -> impl Iterator<Item = &Presence> {
        let numbers = self.by_service.get(site).into_iter().flat_map(BTreeMap::values);
        numbers.filter_map(|number| self.get(*number))
    }

    /// In order of their names.
    pub fn iter(&self) -> impl Iterator<Item = &Presence> {
        let mut numbers: Vec<u32> = self.by_service.values().flat_map(BTreeMap::values).copied().collect();
        numbers.sort_by_key(|number| self.get(*number).map(|p| (&p.service, Family::of(p.block.addr()))));
        numbers.into_iter().filter_map(|number| self.get(number))
    }
}

/// Whether it is one of the first of its name.
fn first_of_each<'a>() -> impl FnMut(&'a Name) -> bool {
    let mut counts: BTreeMap<&Name, usize> = BTreeMap::new();
    move |name| {
        let count = counts.entry(name).or_default();
        *count += 1;
        *count <= NAMED_MAX
    }
}

fn place(block: &IpNet) -> (Family, u128) {
    (Family::of(block.addr()), to_bits(block.network()))
}

fn holder((service, family): &(ServiceName, Family)) -> Holder {
    Holder::ServicePresence { service: service.clone(), family: *family }
}

struct Wanted {
    mapping: Arc<Mapping>,
    held: Option<IpNet>,
    host_bits: u8,
    fixed: Option<IpNet>,
    /// By a mapping of all services of its site.
    of_all: bool,
    offered: bool,
}

impl Wanted {
    fn addresses(&self) -> u128 {
        1 << self.host_bits
    }

    fn has_lease(&self) -> bool {
        self.held.is_some_and(|block| host_bits_of(&block) == self.host_bits)
    }
}

/// What is left of its share for new services of each site that is mapped whole. Where that is not enough, services that
/// are no longer offered lose their addresses; those rest, and count until they have.
fn shares(
    wanted: &mut BTreeMap<(ServiceName, Family), Wanted>,
    pool: &Pool,
    leases: &Leases,
) -> BTreeMap<(Name, Family), u128> {
    // Of each site: what it has, and what it wants in addition.
    let mut needs: BTreeMap<(Name, Family), (u128, u128)> = BTreeMap::new();
    for (key, want) in wanted.iter().filter(|(_, want)| want.of_all) {
        let (kept, new) = needs.entry((key.0.site.clone(), key.1)).or_default();
        *if want.has_lease() { kept } else { new } += want.addresses();
    }
    let mut rests: BTreeMap<(Name, Family), u128> = BTreeMap::new();
    for (holder, block) in leases.resting() {
        let Holder::ServicePresence { service, family } = holder else { continue };
        let key = (service.site.clone(), *family);
        if needs.contains_key(&key) && !wanted.contains_key(&(service.clone(), *family)) {
            *rests.entry(key).or_default() += 1 << host_bits_of(&block);
        }
    }
    let left = |key: &(Name, Family), kept: u128| {
        let resting = rests.get(key).copied().unwrap_or(0);
        let most = (pool.size(key.1) / POOL_SHARE).min(SHARE_MAX);
        (most as u128).saturating_sub(resting + kept)
    };
    let scarce = |key: &(Name, Family)| needs.get(key).is_some_and(|(kept, new)| *new > left(key, *kept));
    wanted.retain(|(service, family), want| !want.of_all || want.offered || !scarce(&(service.site.clone(), *family)));
    needs.iter().map(|(key, (kept, _))| (key.clone(), left(key, *kept))).collect()
}

/// Every presence of the site there should be. The mapping of one service wins over one of all services of its site.
fn want(
    site: &Name,
    mappings: &[Arc<Mapping>],
    peers: &BTreeMap<Name, (PeerId, PeerOffer)>,
    pool: &Pool,
    leases: &Leases,
    wanted: &mut BTreeMap<(ServiceName, Family), Wanted>,
) {
    let in_pool = |family: Family| pool.prefixes().iter().any(|p| Family::of(p.addr()) == family);
    let offer = peers.get(site).map(|(_, offer)| offer);
    for mapping in mappings {
        for service in services_of(mapping, offer, leases) {
            if wanted.contains_key(&(service.clone(), Family::V4))
                || wanted.contains_key(&(service.clone(), Family::V6))
            {
                continue;
            }
            let offered = offer.and_then(|offer| offer.by_name(&service.service));
            let held = |family| leases.block(&Holder::ServicePresence { service: service.clone(), family });
            let held = Family::BOTH.map(|family| (family, held(family)));
            for (family, held) in families(mapping, offered, held, in_pool) {
                let host_bits = offered.map_or(held.map_or(0, |block| host_bits_of(&block)), |o| o.host_bits);
                let fixed = mapping
                    .address
                    .filter(|address| Family::of(*address) == family)
                    .and_then(|address| IpNet::new(address, family.bits() - host_bits).ok());
                let of_all = matches!(mapping.service, ServicePattern::AllOf(_));
                let (mapping, offered) = (Arc::clone(mapping), offered.is_some());
                wanted.insert((service.clone(), family), Wanted { mapping, held, host_bits, fixed, of_all, offered });
            }
        }
    }
}

fn services_of(mapping: &Mapping, offer: Option<&PeerOffer>, leases: &Leases) -> BTreeSet<ServiceName> {
    match &mapping.service {
        ServicePattern::One(service) => BTreeSet::from([service.clone()]),
        ServicePattern::AllOf(site) => {
            let offered = offer.into_iter().flat_map(PeerOffer::services).map(|service| &service.name);
            let known = leases.services_of(site).map(|(service, _)| service);
            let name = |service: &Name| ServiceName { service: service.clone(), site: site.clone() };
            offered.chain(known).map(name).collect()
        }
    }
}

/// The families a presence is given for: what is offered and the pool has; before anything is known, what it was
/// before, else the pool's first.
fn families(
    mapping: &Mapping,
    offered: Option<&OfferedService>,
    held: [(Family, Option<IpNet>); 2],
    in_pool: impl Fn(Family) -> bool,
) -> Vec<(Family, Option<IpNet>)> {
    let is_known = |family, held: Option<IpNet>| offered.map_or(held.is_some(), |offered| offered.has(family));
    let known = held.into_iter().filter(|(family, held)| is_known(*family, *held) && in_pool(*family));
    let known: Vec<_> = known.collect();
    if !known.is_empty() {
        return known;
    }
    let fixed = mapping.address.map(Family::of);
    let family = fixed.or_else(|| Family::BOTH.into_iter().find(|f| in_pool(*f)));
    held.into_iter().filter(|(of, _)| Some(*of) == family).collect()
}

fn host_bits_of(block: &IpNet) -> u8 {
    block.max_prefix_len() - block.prefix_len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::QUARANTINE;
    use std::time::Duration;

    /// A gateway with a pool, that maps all of site `cloud` and one service of site `plant`.
    struct Gateway {
        presences: Presences,
        leases: Leases,
        pool: Pool,
        mappings: Vec<Mapping>,
        now: Instant,
    }

    impl Gateway {
        fn new(pool: &str) -> Self {
            let mapping = |service: &str| Mapping {
                service: service.parse().expect("pattern"),
                address: None,
                ports: Vec::new(),
                callers: Vec::new(),
            };
            Self {
                presences: Presences::default(),
                leases: Leases::default(),
                pool: Pool::new(vec![pool.parse().expect("prefix")]).expect("pool"),
                mappings: vec![mapping("*.cloud"), mapping("plc.plant")],
                now: Instant::now(),
            }
        }

        fn offered(&mut self, names: impl Iterator<Item = String>) -> LeaseChanges {
            let service = |(index, name): (u16, String)| OfferedService {
                name: Name::new(&name).expect("name"),
                index,
                host_bits: 0,
                ipv4: true,
                ipv6: false,
                ports: vec!["tcp/80".parse().expect("port")],
                labels: BTreeMap::new(),
                healthy: true,
            };
            let offer = Offer { services: (2..).zip(names).map(service).collect(), ..Offer::default() };
            let cloud = Name::new("cloud").expect("name");
            let offers = BTreeMap::from([(cloud, (PeerId(0), PeerOffer::new(offer)))]);
            let sites = ["cloud", "plant"].map(|site| Name::new(site).expect("name"));
            self.presences.configure(&self.mappings);
            self.presences.set(&BTreeSet::from(sites), &offers, &self.pool, &mut self.leases, self.now)
        }

        fn named(&self, text: &str) -> Option<IpNet> {
            Some(self.presences.by_service(&text.parse().expect("name"), Family::V4)?.1.block)
        }
    }

    fn numbered(prefix: &str, count: usize) -> impl Iterator<Item = String> {
        let prefix = prefix.to_owned();
        (0..count).map(move |n| format!("{prefix}{n}"))
    }

    #[test]
    fn a_site_that_renames_its_services_gets_no_more_than_its_share_of_the_pool() {
        let mut gateway = Gateway::new("10.0.1.0/26");
        gateway.offered(numbered("z", 5));
        let before = gateway.named("z3.cloud");
        assert!(before.is_some());
        // Names that come before the known ones in every order.
        for round in 0..50 {
            gateway.offered(numbered(&format!("a{round}x"), 40).chain(numbered("z", 5)));
        }
        assert_eq!(gateway.named("z3.cloud"), before);
        assert!(gateway.named("plc.plant").is_some());
        let held = gateway.leases.iter().count() + gateway.leases.resting().count();
        assert!(held <= 31 + 1, "{held}");
        assert!(gateway.presences.refused().iter().all(|(_, error)| *error == LeaseError::ShareUsedUp));
        // What it gave up has rested, and is its share again.
        gateway.now += QUARANTINE + Duration::from_secs(1);
        gateway.offered(numbered("b", 20));
        gateway.now += QUARANTINE + Duration::from_secs(1);
        gateway.offered(numbered("b", 20));
        assert!(gateway.named("b19.cloud").is_some() && gateway.presences.refused().is_empty());
    }

    #[test]
    fn a_site_that_renames_its_services_has_an_end_in_the_largest_pool_too() {
        let mut gateway = Gateway::new("10.0.0.0/8");
        for round in 0..20 {
            gateway.offered(numbered(&format!("a{round}x"), 4000));
        }
        let held = gateway.leases.iter().count() + gateway.leases.resting().count();
        assert!(held <= SHARE_MAX + 1, "{held}");
    }

    #[test]
    fn two_fixed_addresses_change_places() {
        let mut gateway = Gateway::new("10.0.1.0/24");
        let fixed = |service: &str, address: &str| Mapping {
            service: service.parse().expect("pattern"),
            address: Some(address.parse().expect("address")),
            ports: Vec::new(),
            callers: Vec::new(),
        };
        for (a, b) in [("10.0.1.5", "10.0.1.6"), ("10.0.1.6", "10.0.1.5")] {
            gateway.mappings = vec![fixed("a0.cloud", a), fixed("plc.plant", b)];
            gateway.offered(numbered("a", 1));
            let blocks =
                ["a0.cloud", "plc.plant"].map(|name| gateway.named(name).map(|block| block.addr().to_string()));
            assert_eq!(blocks, [a, b].map(|address| Some(address.to_owned())));
        }
    }

    #[test]
    fn what_is_no_longer_offered_keeps_its_address_while_there_is_room() {
        let mut gateway = Gateway::new("10.0.1.0/24");
        gateway.offered(numbered("a", 10));
        let before = gateway.named("a7.cloud");
        gateway.offered(numbered("b", 10));
        assert_eq!(gateway.named("a7.cloud"), before);
        let changes = gateway.offered(numbered("a", 10));
        assert!(changes.granted.is_empty() && changes.released.is_empty());
    }
}
