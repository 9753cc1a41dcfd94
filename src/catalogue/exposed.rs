//! The services of this site, by name and by wire index.

use super::settings::{Exposure, Target};
use super::{Clients, NamedCaller, NamedHost, Offer, OfferedService};
use crate::addr::{Family, Holder, Identity, LeaseError, Leases, Name, Pool, from_bits, to_bits, wire};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

/// A service of this site. Its number stays the same as long as it is exposed.
#[derive(Clone, Debug)]
pub struct Exposed {
    pub exposure: Exposure,
    /// First wire index; a prefix has one for each of its addresses.
    pub index: u16,
    pub host_bits: u8,
    pub flows: u32,
    pub resting: Resting,
}

/// What of a service takes no new flows, because it does not answer or the operator wants it empty. Open flows go on.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Resting {
    pub whole: bool,
    pub targets: BTreeSet<IpAddr>,
}

#[derive(Clone, Debug, Default)]
pub struct ExposedServices {
    services: BTreeMap<u32, Exposed>,
    /// Numbers are not used again: an old flow's number must never mean another service.
    last_number: u32,
    by_name: BTreeMap<Name, u32>,
    by_index: BTreeMap<u16, u32>,
    /// Whether anything rests, so that packets need not ask.
    any_rests: bool,
}

impl Exposed {
    #[must_use]
    pub fn has(&self, family: Family) -> bool {
        match &self.exposure.target {
            Target::Backends(backends) => backends.iter().any(|b| Family::of(*b) == family),
            Target::Prefix(prefix) => Family::of(prefix.addr()) == family,
        }
    }

    /// The backends a new flow to this wire index may go to.
    pub fn targets(&self, family: Family, index: u16) -> impl Iterator<Item = IpAddr> + '_ {
        let (backends, one) = match &self.exposure.target {
            Target::Backends(backends) => (backends.as_slice(), None),
            Target::Prefix(prefix) => {
                let offset = u128::from(index - self.index);
                let address = from_bits(Family::of(prefix.addr()), to_bits(prefix.network()) + offset);
                (&[][..], Some(address))
            }
        };
        backends.iter().copied().chain(one).filter(move |a| Family::of(*a) == family)
    }

    #[must_use]
    pub fn takes_new(&self, target: IpAddr) -> bool {
        !self.resting.whole && !self.resting.targets.contains(&target)
    }

    /// Whether nothing of it takes new flows.
    #[must_use]
    pub fn rests(&self) -> bool {
        match &self.exposure.target {
            Target::Backends(backends) => !backends.iter().any(|backend| self.takes_new(*backend)),
            Target::Prefix(_) => self.resting.whole,
        }
    }

    /// The wire index that stands for this target; none if it is not one of the service's.
    #[must_use]
    pub fn index_of(&self, target: IpAddr) -> Option<u16> {
        match &self.exposure.target {
            Target::Backends(backends) => backends.contains(&target).then_some(self.index),
            Target::Prefix(prefix) => {
                let offset = prefix.contains(&target).then(|| to_bits(target) - to_bits(prefix.network()))?;
                Some(self.index + u16::try_from(offset).ok()?)
            }
        }
    }

    /// The wire addresses, as one prefix a family.
    pub fn wire_blocks(&self) -> impl Iterator<Item = IpNet> + '_ {
        Family::BOTH
            .into_iter()
            .filter(|family| self.has(*family))
            .filter_map(|family| IpNet::new(wire::service(family, self.index), family.bits() - self.host_bits).ok())
    }

    /// As peers are told of it.
    #[must_use]
    pub fn offered(&self) -> OfferedService {
        OfferedService {
            name: self.exposure.name.clone(),
            index: self.index,
            host_bits: self.host_bits,
            ipv4: self.has(Family::V4),
            ipv6: self.has(Family::V6),
            ports: self.exposure.ports.clone(),
            labels: BTreeMap::new(),
            healthy: !self.rests(),
        }
    }

    /// The hosts that surely serve who calls a certain wire index, as far as they have names: each of a prefix's; of
    /// backends only one that has all of them, since a flow goes to any.
    #[must_use]
    pub fn hosts(&self, clients: &Clients) -> Vec<NamedHost> {
        let host = |index, name: &Name, family| {
            let (ipv4, ipv6) = (family == Family::V4, family == Family::V6);
            NamedHost { index, name: name.clone(), ipv4, ipv6 }
        };
        match &self.exposure.target {
            Target::Prefix(prefix) => {
                let named = clients.within(prefix);
                named.filter_map(|(at, name)| Some(host(self.index_of(at)?, name, Family::of(at)))).collect()
            }
            Target::Backends(_) => {
                let only = |family| {
                    let mut targets = self.targets(family, self.index);
                    let name = clients.name(targets.next()?)?;
                    targets.all(|target| clients.name(target) == Some(name)).then_some(name)
                };
                match (only(Family::V4), only(Family::V6)) {
                    (Some(one), Some(other)) if one == other => {
                        vec![NamedHost { ipv6: true, ..host(self.index, one, Family::V4) }]
                    }
                    (one, other) => {
                        let named = [(one, Family::V4), (other, Family::V6)].into_iter();
                        named.filter_map(|(name, family)| Some(host(self.index, name?, family))).collect()
                    }
                }
            }
        }
    }

    /// Whether anyone of the peer's site may use it.
    #[must_use]
    pub fn is_for(&self, peer: &Identity) -> bool {
        self.exposure.allow.iter().any(|selector| selector.may_match(peer))
    }
}

impl ExposedServices {
    /// Makes it so; numbers, leases and counts of what stays are kept. Or the service that cannot be.
    pub fn set(
        &mut self,
        exposures: &[Exposure],
        leases: &mut Leases,
        now: Instant,
    ) -> Result<Vec<crate::addr::Grant>, (Name, LeaseError)> {
        let mut granted = Vec::new();
        let mut next = BTreeMap::new();
        for exposure in exposures {
            let host_bits = match &exposure.target {
                Target::Backends(_) => 0,
                Target::Prefix(prefix) => prefix.max_prefix_len() - prefix.prefix_len(),
            };
            let holder = Holder::ServiceIndex { service: exposure.name.clone() };
            let lease = leases.grant(&holder, &Pool::default(), host_bits, None, now);
            let (grant, is_new) = lease.map_err(|error| (exposure.name.clone(), error))?;
            let Some((_, index)) = wire::parse(grant.block.addr()) else { continue };
            if is_new {
                granted.push(grant);
            }
            next.insert(exposure.name.clone(), (exposure, index, host_bits));
        }
        self.by_index.clear();
        let gone: Vec<Name> = self.by_name.keys().filter(|name| !next.contains_key(*name)).cloned().collect();
        for name in gone {
            if let Some(number) = self.by_name.remove(&name) {
                self.services.remove(&number);
            }
        }
        for (name, (exposure, index, host_bits)) in next {
            let number = self.number_for(&name);
            let known = self.get(number).map(|service| (service.flows, service.resting.clone()));
            let (flows, resting) = known.unwrap_or_default();
            self.services.insert(number, Exposed { exposure: exposure.clone(), index, host_bits, flows, resting });
            self.by_index.insert(index, number);
        }
        Ok(granted)
    }

    fn number_for(&mut self, name: &Name) -> u32 {
        if let Some(number) = self.by_name.get(name) {
            return *number;
        }
        self.last_number += 1;
        let number = self.last_number;
        self.by_name.insert(name.clone(), number);
        number
    }

    #[must_use]
    pub fn get(&self, number: u32) -> Option<&Exposed> {
        self.services.get(&number)
    }

    pub fn get_mut(&mut self, number: u32) -> Option<&mut Exposed> {
        self.services.get_mut(&number)
    }

    #[must_use]
    pub fn any_rests(&self) -> bool {
        self.any_rests
    }

    /// Whether something rests in another way than this.
    #[must_use]
    pub fn rests_otherwise(&self, resting: &BTreeMap<Name, Resting>) -> bool {
        let none = Resting::default();
        self.services.values().any(|service| service.resting != *resting.get(&service.exposure.name).unwrap_or(&none))
    }

    /// What rests now, by service, in place of what did before.
    pub fn rest(&mut self, mut resting: BTreeMap<Name, Resting>) {
        self.any_rests = !resting.is_empty();
        for service in self.services.values_mut() {
            service.resting = resting.remove(&service.exposure.name).unwrap_or_default();
        }
    }

    #[must_use]
    pub fn by_name(&self, name: &Name) -> Option<(u32, &Exposed)> {
        let number = *self.by_name.get(name)?;
        Some((number, self.get(number)?))
    }

    #[must_use]
    pub fn by_index(&self, index: u16) -> Option<(u32, &Exposed)> {
        let (_, number) = self.by_index.range(..=index).next_back()?;
        let service = self.get(*number)?;
        (u32::from(index - service.index) < 1 << service.host_bits).then_some((*number, service))
    }

    pub fn iter(&self) -> impl Iterator<Item = (u32, &Exposed)> {
        self.by_name.values().filter_map(|number| Some((*number, self.get(*number)?)))
    }

    /// What `peer` may use.
    #[must_use]
    pub fn offer(&self, peer: &Identity, callers: Vec<NamedCaller>, clients: &Clients) -> Offer {
        let allowed = || self.iter().map(|(_, service)| service).filter(|service| service.is_for(peer));
        let services = allowed().map(Exposed::offered).collect();
        Offer { services, callers, hosts: allowed().flat_map(|service| service.hosts(clients)).collect() }
    }
}
