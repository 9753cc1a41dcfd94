//! Who holds which address. One place, one small interface, the same answers for the same history.

use super::{Family, Name, Pool, ServiceName, from_bits, to_bits, wire};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// How long a given-up lease stays unused, so that what still calls it does not meet somebody else. The TIME-WAIT of
/// a TCP connection (RFC 9293: 2 MSL of 2 minutes) and an idle UDP flow (RFC 4787 REQ-5) are over by then.
pub const QUARANTINE: Duration = Duration::from_secs(600);

/// To whom a lease belongs. The first three are pool addresses, the others wire indices.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Holder {
    /// The gateway's own presence.
    Gateway {
        family: Family,
    },
    ServicePresence {
        service: ServiceName,
        family: Family,
    },
    CallerPresence {
        site: Name,
        index: u16,
        family: Family,
    },
    /// A service that this site exposes.
    ServiceIndex {
        service: Name,
    },
    /// A host of this site that calls others.
    CallerIndex {
        address: IpAddr,
    },
}

/// A lease: its holder and what is held. A wire index is written as the service or caller address of IPv4.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Grant {
    pub holder: Holder,
    pub block: IpNet,
}

#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum LeaseError {
    #[error("the pool is full")]
    PoolFull,
    #[error("no addresses inside tunnels are left for it")]
    WireUsedUp,
    #[error("all services of one site may take half of the pool, and they have")]
    ShareUsedUp,
    #[error("{0} is not in the pool, or is its network or broadcast address")]
    OutsidePool(IpNet),
    #[error("{block} is held by {by}")]
    Taken { block: IpNet, by: Holder },
}

type Space = BTreeMap<(Family, u128), Held>;

#[derive(Clone, Debug)]
struct Held {
    last: u128,
    holder: Holder,
}

/// Every lease of a site, and what was given up lately.
#[derive(Clone, Debug, Default)]
pub struct Leases {
    held: BTreeMap<Holder, IpNet>,
    taken: Space,
    callers: BTreeMap<(Name, Family), usize>,
    /// Services that have a presence, by their site.
    services: BTreeMap<Name, BTreeSet<(Name, Family)>>,
    given_up: BTreeMap<Holder, (IpNet, Instant)>,
    resting: Space,
    /// When each has rested, the first first: every rest is as long. Who got its lease back may still be listed.
    rests: VecDeque<(Instant, Holder)>,
    /// Where the last search of a kind ended: the next one goes on there, so that reuse comes as late as it can and no
    /// search passes what is taken again.
    cursors: BTreeMap<(Kind, u8), u128>,
    /// Kinds whose search found nothing; asking again is cheap until something was given up or rests no longer.
    full: BTreeMap<(Kind, u8), Option<Instant>>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Kind {
    Pool(Family),
    ServiceIndex,
    CallerIndex,
}

impl Holder {
    fn kind(&self) -> Kind {
        match self {
            Self::Gateway { family } | Self::ServicePresence { family, .. } | Self::CallerPresence { family, .. } => {
                Kind::Pool(*family)
            }
            Self::ServiceIndex { .. } => Kind::ServiceIndex,
            Self::CallerIndex { .. } => Kind::CallerIndex,
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gateway { .. } => f.write_str("the gateway"),
            Self::ServicePresence { service, .. } => write!(f, "service {service}"),
            Self::CallerPresence { site, index, family } => {
                write!(f, "caller {} of {site}", wire::caller(*family, *index))
            }
            Self::ServiceIndex { service } => write!(f, "service {service}"),
            Self::CallerIndex { address } => write!(f, "host {address}"),
        }
    }
}

impl Leases {
    /// Gives a lease up without rest: for what nothing has used for long.
    pub fn reclaim(&mut self, holder: &Holder) -> Option<Grant> {
        let block = self.held.remove(holder)?;
        self.forget(holder, &block);
        self.full.clear();
        Some(Grant { holder: holder.clone(), block })
    }

    /// A lease from before a restart.
    pub fn restore(&mut self, grant: Grant) -> Result<(), LeaseError> {
        if let Some(by) = overlapping(&self.taken, &grant.block) {
            return Err(LeaseError::Taken { block: grant.block, by: by.clone() });
        }
        self.insert(grant);
        Ok(())
    }

    #[must_use]
    pub fn block(&self, holder: &Holder) -> Option<IpNet> {
        self.held.get(holder).copied()
    }

    /// Who holds this address.
    #[must_use]
    pub fn holder(&self, address: IpAddr) -> Option<&Holder> {
        overlapping(&self.taken, &address.into())
    }

    /// How many of the peer's callers have a presence.
    #[must_use]
    pub fn callers_of(&self, site: &Name, family: Family) -> usize {
        self.callers.get(&(site.clone(), family)).copied().unwrap_or(0)
    }

    /// The services of the site that have a presence.
    pub fn services_of(&self, site: &Name) -> impl Iterator<Item = &(Name, Family)> {
        self.services.get(site).into_iter().flatten()
    }

    /// The sites with services that have a presence.
    pub fn service_sites(&self) -> impl Iterator<Item = &Name> {
        self.services.keys()
    }

    /// What was given up and nobody else may have yet.
    pub fn resting(&self) -> impl Iterator<Item = (&Holder, IpNet)> {
        self.given_up.iter().map(|(holder, (block, _))| (holder, *block))
    }

    pub fn iter(&self) -> impl Iterator<Item = Grant> + '_ {
        self.held.iter().map(|(holder, block)| Grant { holder: holder.clone(), block: *block })
    }

    pub fn blocks(&self) -> impl Iterator<Item = (&Holder, &IpNet)> {
        self.held.iter()
    }

    /// The block that `holder` has, or a new one of `host_bits` free host bits: `wanted`, the one it had before, or
    /// the next that is free. The flag tells a new lease from an old one.
    pub fn grant(
        &mut self,
        holder: &Holder,
        pool: &Pool,
        host_bits: u8,
        wanted: Option<IpNet>,
        now: Instant,
    ) -> Result<(Grant, bool), LeaseError> {
        let kind = holder.kind();
        if let Some(wanted) = wanted.filter(|w| !allows(kind, pool, w)) {
            return Err(LeaseError::OutsidePool(wanted));
        }
        if let Some(block) = self.block(holder) {
            let fits = host_bits_of(&block) == host_bits && allows(kind, pool, &block);
            if fits && wanted.is_none_or(|w| w == block) {
                return Ok((Grant { holder: holder.clone(), block }, false));
            }
        }
        let block = match wanted {
            Some(block) => match all_overlapping(&self.taken, &block).find(|by| *by != holder) {
                Some(by) => return Err(LeaseError::Taken { block, by: by.clone() }),
                None => block,
            },
            None => self.find(holder, pool, host_bits, now).ok_or(match kind {
                Kind::Pool(_) => LeaseError::PoolFull,
                Kind::ServiceIndex | Kind::CallerIndex => LeaseError::WireUsedUp,
            })?,
        };
        self.release(holder, now);
        let grant = Grant { holder: holder.clone(), block };
        self.insert(grant.clone());
        Ok((grant, true))
    }

    /// The pool may have become another: where nothing was found there may be something now.
    pub fn look_again(&mut self) {
        self.full.clear();
    }

    /// Gives a lease up; its addresses rest for [`QUARANTINE`] before anyone else may have them.
    pub fn release(&mut self, holder: &Holder, now: Instant) -> Option<Grant> {
        let block = self.held.remove(holder)?;
        self.forget(holder, &block);
        self.rest(holder, block, now + QUARANTINE);
        Some(Grant { holder: holder.clone(), block })
    }

    fn rest(&mut self, holder: &Holder, block: IpNet, until: Instant) {
        // A later owner of a part of it (by the operator's explicit wish) may have gone to rest already.
        if overlapping(&self.resting, &block).is_none() {
            self.resting.insert(first(&block), Held { last: last(&block), holder: holder.clone() });
            self.rests.push_back((until, holder.clone()));
            self.given_up.insert(holder.clone(), (block, until));
        }
        self.full.clear();
    }

    fn find(&mut self, holder: &Holder, pool: &Pool, host_bits: u8, now: Instant) -> Option<IpNet> {
        self.wake(now);
        let kind = holder.kind();
        if let Some((block, _)) = self.given_up.get(holder) {
            let fits = host_bits_of(block) == host_bits && allows(kind, pool, block);
            if fits && overlapping(&self.taken, block).is_none() {
                return Some(*block);
            }
        }
        let still_full = |until: &Option<Instant>| until.is_none_or(|until| now < until);
        if self.full.get(&(kind, host_bits)).is_some_and(still_full) {
            return None;
        }
        let cursor = self.cursors.get(&(kind, host_bits)).copied().unwrap_or(0);
        let free =
            |block: &IpNet| overlapping(&self.taken, block).is_none() && overlapping(&self.resting, block).is_none();
        let after = blocks(kind, pool, host_bits, cursor).find(free);
        let found = after.or_else(|| blocks(kind, pool, host_bits, 0).find(free));
        match found {
            Some(block) => {
                self.cursors.insert((kind, host_bits), to_bits(block.addr()));
            }
            None => {
                self.full.insert((kind, host_bits), self.rests.front().map(|(until, _)| *until));
            }
        }
        found
    }

    /// Ends the rest of what has rested.
    pub fn wake(&mut self, now: Instant) {
        while let Some((until, holder)) = self.rests.front() {
            let given_up = self.given_up.get(holder).filter(|(_, of)| of == until);
            match given_up {
                Some(_) if *until > now => return,
                Some((block, _)) => {
                    self.resting.remove(&first(block));
                    self.given_up.remove(holder);
                }
                None => {}
            }
            self.rests.pop_front();
        }
    }

    fn forget(&mut self, holder: &Holder, block: &IpNet) {
        self.taken.remove(&first(block));
        if let Holder::CallerPresence { site, family, .. } = holder {
            let count = self.callers.entry((site.clone(), *family)).or_default();
            *count = count.saturating_sub(1);
        }
        if let Holder::ServicePresence { service, family } = holder
            && let Some(services) = self.services.get_mut(&service.site)
        {
            services.remove(&(service.service.clone(), *family));
            if services.is_empty() {
                self.services.remove(&service.site);
            }
        }
    }

    fn insert(&mut self, grant: Grant) {
        if let Some((block, _)) = self.given_up.remove(&grant.holder) {
            self.resting.remove(&first(&block));
        }
        if let Holder::CallerPresence { site, family, .. } = &grant.holder {
            *self.callers.entry((site.clone(), *family)).or_default() += 1;
        }
        if let Holder::ServicePresence { service, family } = &grant.holder {
            let services = self.services.entry(service.site.clone()).or_default();
            services.insert((service.service.clone(), *family));
        }
        let held = Held { last: last(&grant.block), holder: grant.holder.clone() };
        self.taken.insert(first(&grant.block), held);
        self.held.insert(grant.holder, grant.block);
    }
}

fn first(block: &IpNet) -> (Family, u128) {
    (Family::of(block.addr()), to_bits(block.network()))
}

fn last(block: &IpNet) -> u128 {
    to_bits(block.broadcast())
}

fn host_bits_of(block: &IpNet) -> u8 {
    block.max_prefix_len() - block.prefix_len()
}

/// Who in `space` has a part of `block`, if anyone.
fn overlapping<'a>(space: &'a Space, block: &IpNet) -> Option<&'a Holder> {
    all_overlapping(space, block).next()
}

/// All who have a part of it. Blocks of a space never overlap, so the first that ends below it ends the search.
fn all_overlapping<'a>(space: &'a Space, block: &IpNet) -> impl Iterator<Item = &'a Holder> + use<'a> {
    let (family, start) = first(block);
    let below = space.range(..=(family, last(block))).rev();
    below.take_while(move |(key, held)| key.0 == family && held.last >= start).map(|(_, held)| &held.holder)
}

fn allows(kind: Kind, pool: &Pool, block: &IpNet) -> bool {
    match kind {
        Kind::Pool(_) => pool.allows(block),
        Kind::ServiceIndex | Kind::CallerIndex => true,
    }
}

/// What a search looks through, above the address `after`.
fn blocks<'a>(kind: Kind, pool: &'a Pool, host_bits: u8, after: u128) -> Box<dyn Iterator<Item = IpNet> + 'a> {
    let indices = move |role| {
        let size = 1u32 << host_bits.min(15);
        let searched = wire::parse(from_bits(Family::V4, after)).map_or(0, |(_, index)| u32::from(index) + 1);
        let (low, high) = (searched.max(wire::FIRST.into()).div_ceil(size), u32::from(wire::LAST) / size);
        (low..=high).filter_map(move |n| {
            let index = u16::try_from(n * size).ok().filter(|i| u32::from(*i) + size - 1 <= u32::from(wire::LAST))?;
            IpNet::new(wire::address(Family::V4, role, index), 32 - host_bits).ok()
        })
    };
    match kind {
        Kind::Pool(family) => Box::new(pool.blocks(family, host_bits, after)),
        Kind::ServiceIndex => Box::new(indices(wire::Role::Service)),
        Kind::CallerIndex => Box::new(indices(wire::Role::Caller)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pool(text: &str) -> Pool {
        Pool::new(vec![text.parse().expect("prefix")]).expect("pool")
    }

    fn presence(service: &str) -> Holder {
        Holder::ServicePresence { service: service.parse().expect("name"), family: Family::V4 }
    }

    fn caller(site: &str, index: u16) -> Holder {
        Holder::CallerPresence { site: Name::new(site).expect("name"), index, family: Family::V4 }
    }

    fn net(text: &str) -> IpNet {
        text.parse().expect("prefix")
    }

    #[test]
    fn a_holder_keeps_what_it_has_and_others_get_the_next() {
        let (mut leases, pool, now) = (Leases::default(), pool("10.0.1.0/24"), Instant::now());
        let mut grant = |holder: &Holder| leases.grant(holder, &pool, 0, None, now).map(|(g, new)| (g.block, new));
        assert_eq!(grant(&presence("web.cloud")), Ok((net("10.0.1.1/32"), true)));
        assert_eq!(grant(&caller("cloud", 2)), Ok((net("10.0.1.2/32"), true)));
        assert_eq!(grant(&presence("web.cloud")), Ok((net("10.0.1.1/32"), false)));
    }

    #[test]
    fn a_fixed_address_is_given_or_refused_with_its_holder() {
        let (mut leases, pool, now) = (Leases::default(), pool("10.0.1.0/24"), Instant::now());
        let web = presence("web.cloud");
        let wanted = Some(net("10.0.1.77/32"));
        assert_eq!(leases.grant(&web, &pool, 0, wanted, now).map(|(g, _)| g.block), Ok(net("10.0.1.77/32")));
        let taken = leases.grant(&presence("db.cloud"), &pool, 0, wanted, now);
        assert_eq!(taken, Err(LeaseError::Taken { block: net("10.0.1.77/32"), by: web }));
        let outside = leases.grant(&presence("db.cloud"), &pool, 0, Some(net("10.0.2.1/32")), now);
        assert_eq!(outside, Err(LeaseError::OutsidePool(net("10.0.2.1/32"))));
    }

    #[test]
    fn a_given_up_address_rests_but_its_former_holder_gets_it_back() {
        let (mut leases, pool, now) = (Leases::default(), pool("10.0.1.0/30"), Instant::now());
        let (web, db) = (presence("web.cloud"), presence("db.cloud"));
        leases.grant(&web, &pool, 0, None, now).expect("room");
        leases.release(&web, now);
        assert_eq!(leases.grant(&db, &pool, 0, None, now).map(|(g, _)| g.block), Ok(net("10.0.1.2/32")));
        assert_eq!(leases.grant(&caller("x", 2), &pool, 0, None, now), Err(LeaseError::PoolFull));
        assert_eq!(leases.grant(&web, &pool, 0, None, now).map(|(g, _)| g.block), Ok(net("10.0.1.1/32")));
        leases.release(&web, now);
        let later = now + QUARANTINE;
        assert_eq!(leases.grant(&caller("x", 2), &pool, 0, None, later).map(|(g, _)| g.block), Ok(net("10.0.1.1/32")));
    }

    #[test]
    fn a_holder_whose_block_grows_over_others_is_refused() {
        let (mut leases, pool, now) = (Leases::default(), pool("10.0.1.0/24"), Instant::now());
        let (rack, web) = (presence("rack.cloud"), presence("web.cloud"));
        leases.grant(&web, &pool, 0, Some(net("10.0.1.18/32")), now).expect("room");
        leases.grant(&rack, &pool, 0, Some(net("10.0.1.24/32")), now).expect("room");
        let wider = net("10.0.1.16/28");
        let taken = leases.grant(&rack, &pool, 4, Some(wider), now);
        assert_eq!(taken, Err(LeaseError::Taken { block: wider, by: web }));
        assert_eq!(leases.block(&rack), Some(net("10.0.1.24/32")));
    }

    #[test]
    fn a_pool_that_was_full_is_looked_through_again_when_it_is_larger() {
        let (mut leases, small, now) = (Leases::default(), pool("10.0.1.0/30"), Instant::now());
        (1..3).for_each(|index| drop(leases.grant(&caller("x", index), &small, 0, None, now).expect("room")));
        assert_eq!(leases.grant(&caller("x", 3), &small, 0, None, now), Err(LeaseError::PoolFull));
        leases.look_again();
        let large = pool("10.0.1.0/24");
        assert_eq!(leases.grant(&caller("x", 3), &large, 0, None, now).map(|(g, _)| g.block), Ok(net("10.0.1.3/32")));
    }

    #[test]
    fn wire_indices_start_at_two_and_blocks_of_them_are_aligned() {
        let (mut leases, none, now) = (Leases::default(), Pool::default(), Instant::now());
        let service = |name: &str| Holder::ServiceIndex { service: Name::new(name).expect("name") };
        let mut grant = |name: &str, bits| leases.grant(&service(name), &none, bits, None, now).map(|(g, _)| g.block);
        assert_eq!(grant("a", 0), Ok(net("198.18.0.2/32")));
        assert_eq!(grant("rack", 4), Ok(net("198.18.0.16/28")));
        assert_eq!(grant("b", 0), Ok(net("198.18.0.3/32")));
    }

    proptest! {
        #[test]
        fn no_address_has_two_holders_whatever_happens(
            steps in proptest::collection::vec((0u8..12, 0u8..3, any::<bool>(), 0u64..900), 1..200)
        ) {
            let (mut leases, pool, mut now) = (Leases::default(), pool("10.0.1.0/27"), Instant::now());
            let mut journal: BTreeMap<Holder, IpNet> = BTreeMap::new();
            for (who, bits, grants, seconds) in steps {
                now += Duration::from_secs(seconds);
                let holder = caller("x", who.into());
                if grants {
                    if let Ok((grant, _)) = leases.grant(&holder, &pool, bits, None, now) {
                        journal.insert(grant.holder, grant.block);
                    }
                } else if let Some(grant) = leases.release(&holder, now) {
                    prop_assert_eq!(journal.remove(&grant.holder), Some(grant.block));
                }
                let blocks: Vec<_> = journal.values().collect();
                for (i, a) in blocks.iter().enumerate() {
                    for b in &blocks[..i] {
                        prop_assert!(!a.contains(*b) && !b.contains(*a), "{} and {}", a, b);
                    }
                }
                let mut restored = Leases::default();
                for grant in leases.iter() {
                    prop_assert_eq!(restored.restore(grant), Ok(()));
                }
                prop_assert_eq!(restored.iter().collect::<Vec<_>>(), leases.iter().collect::<Vec<_>>());
            }
        }
    }
}
