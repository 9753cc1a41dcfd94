//! Whose datagrams are passed on to whom. Two sites that may talk are bound: each is given a number for the
//! other, which it writes into its datagrams, and which it finds in those that come from the other.
//!
//! It has no key that opens them and never looks into them. It passes on only what comes from the address where the hub's own
//! tunnel to a site was last authentic, and only to such an address; so whoever forges a sender makes no site a target.

use crate::addr::{Binding, PeerId};
use foldhash::quality::FixedState;
use std::collections::{BTreeMap, HashMap};
use std::hash::BuildHasher;
use std::net::SocketAddr;

/// Sites that one site may be bound to: it is a caller or a service of each.
pub const BINDINGS_MAX: usize = 4096;

/// Of 2^24 numbers at most 2^12 are taken: that all of so many are does not happen.
const NUMBERS_TRIED: u32 = 64;

/// Why a datagram was not passed on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RelayError {
    /// The site has no such binding.
    NotBound,
    /// Nobody knows where the other end is.
    NoPath,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a site may be bound to {BINDINGS_MAX} others")]
pub(super) struct TooManyBindings;

/// What a datagram is to become.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Onward {
    pub from: PeerId,
    pub to: SocketAddr,
    /// What the other end knows the sender by.
    pub binding: Binding,
}

#[derive(Debug)]
pub(super) struct Relay {
    sites: BTreeMap<PeerId, Site>,
    by_address: HashMap<SocketAddr, PeerId, FixedState>,
}

#[derive(Default, Debug)]
struct Site {
    address: Option<SocketAddr>,
    /// The other end of each binding, and what that knows this site by.
    ends: BTreeMap<Binding, (PeerId, Binding)>,
    by_site: BTreeMap<PeerId, Binding>,
}

impl Relay {
    pub fn new(seed: u64) -> Self {
        Self { sites: BTreeMap::new(), by_address: HashMap::with_hasher(FixedState::with_seed(seed)) }
    }

    /// Binds two sites, if they are not. What each of them knows the other by.
    pub fn bind(&mut self, one: PeerId, other: PeerId) -> Result<(Binding, Binding), TooManyBindings> {
        if let Some(known) = self.binding(one, other) {
            return Ok(known);
        }
        for site in [one, other] {
            if self.sites.entry(site).or_default().ends.len() >= BINDINGS_MAX {
                return Err(TooManyBindings);
            }
        }
        let numbers = self.number(one, other).zip(self.number(other, one));
        let (for_one, for_other) = numbers.ok_or(TooManyBindings)?;
        self.insert(one, for_one, other, for_other);
        self.insert(other, for_other, one, for_one);
        Ok((for_one, for_other))
    }

    pub fn unbind(&mut self, one: PeerId, other: PeerId) {
        for (site, end) in [(one, other), (other, one)] {
            if let Some(site) = self.sites.get_mut(&site) {
                let binding = site.by_site.remove(&end);
                binding.map(|binding| site.ends.remove(&binding));
            }
        }
    }

    /// What each of the two knows the other by.
    pub fn binding(&self, one: PeerId, other: PeerId) -> Option<(Binding, Binding)> {
        let of = |site: PeerId, end: PeerId| self.sites.get(&site)?.by_site.get(&end).copied();
        Some((of(one, other)?, of(other, one)?))
    }

    /// The other ends of its bindings.
    pub fn bound(&self, site: PeerId) -> impl Iterator<Item = PeerId> + '_ {
        self.sites.get(&site).into_iter().flat_map(|site| site.by_site.keys().copied())
    }

    /// Where the site is.
    pub fn address(&self, site: PeerId) -> Option<SocketAddr> {
        self.sites.get(&site)?.address
    }

    /// Where the hub's own tunnel to the site was last authentic; none: it is away.
    pub fn moved(&mut self, site: PeerId, to: Option<SocketAddr>) {
        let before = std::mem::replace(&mut self.sites.entry(site).or_default().address, to);
        if let Some(before) = before.filter(|before| self.by_address.get(before) == Some(&site)) {
            self.by_address.remove(&before);
        }
        to.map(|to| self.by_address.insert(to, site));
    }

    /// The site is none of this hub's any more.
    pub fn remove(&mut self, site: PeerId) {
        let others: Vec<PeerId> = self.bound(site).collect();
        others.into_iter().for_each(|other| self.unbind(site, other));
        let address = self.sites.remove(&site).and_then(|site| site.address);
        if let Some(address) = address.filter(|address| self.by_address.get(address) == Some(&site)) {
            self.by_address.remove(&address);
        }
    }

    /// What becomes of a datagram with this binding. None if its sender is no site of this hub's: then it is the hub's own.
    pub fn onward(&self, from: SocketAddr, binding: Binding) -> Option<Result<Onward, RelayError>> {
        let from = *self.by_address.get(&from)?;
        let end = self.sites.get(&from)?.ends.get(&binding);
        let Some((other, known_by)) = end else { return Some(Err(RelayError::NotBound)) };
        let to = self.sites.get(other).and_then(|other| other.address);
        Some(to.map(|to| Onward { from, to, binding: *known_by }).ok_or(RelayError::NoPath))
    }

    fn insert(&mut self, site: PeerId, binding: Binding, end: PeerId, known_by: Binding) {
        let site = self.sites.entry(site).or_default();
        site.ends.insert(binding, (end, known_by));
        site.by_site.insert(end, binding);
    }

    /// A number that this site has for nobody else, and that nobody guesses easily: the seed is this hub's own.
    fn number(&self, site: PeerId, other: PeerId) -> Option<Binding> {
        let numbers = (0..NUMBERS_TRIED).map(|again| self.by_address.hasher().hash_one((site, other, again)) >> 40);
        let is_taken = |binding: &Binding| self.sites.get(&site).is_some_and(|site| site.ends.contains_key(binding));
        numbers.filter_map(|number| Binding::new(number as u32)).find(|binding| !is_taken(binding))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: PeerId = PeerId(1);
    const B: PeerId = PeerId(2);
    const C: PeerId = PeerId(3);

    fn at(host: u8) -> SocketAddr {
        ([192, 0, 2, host], 1).into()
    }

    fn relay() -> Relay {
        let mut relay = Relay::new(7);
        [(A, 1), (B, 2), (C, 3)].into_iter().for_each(|(site, host)| relay.moved(site, Some(at(host))));
        relay
    }

    #[test]
    fn what_one_end_sends_goes_to_the_other_with_the_number_that_it_knows() {
        let mut relay = relay();
        let (of_a, of_b) = relay.bind(A, B).expect("room");
        assert_eq!(relay.bind(B, A), Ok((of_b, of_a)), "it is the same binding");
        assert_eq!(relay.onward(at(1), of_a), Some(Ok(Onward { from: A, to: at(2), binding: of_b })));
        assert_eq!(relay.onward(at(2), of_b), Some(Ok(Onward { from: B, to: at(1), binding: of_a })));
    }

    #[test]
    fn a_binding_is_worth_nothing_to_others_nor_elsewhere() {
        let mut relay = relay();
        let (of_a, _) = relay.bind(A, B).expect("room");
        assert_eq!(relay.onward(at(3), of_a), Some(Err(RelayError::NotBound)));
        assert_eq!(relay.onward(at(9), of_a), None);
        relay.moved(A, Some(at(9)));
        assert_eq!(relay.onward(at(1), of_a), None, "it is no longer there");
        assert!(relay.onward(at(9), of_a).is_some_and(|onward| onward.is_ok()));
        relay.unbind(B, A);
        assert_eq!(relay.onward(at(9), of_a), Some(Err(RelayError::NotBound)));
    }

    #[test]
    fn a_site_that_goes_takes_its_bindings_with_it_and_not_the_address_that_another_has_now() {
        let mut relay = relay();
        let (_, of_b) = relay.bind(A, B).expect("room");
        relay.moved(C, Some(at(1)));
        relay.remove(A);
        assert_eq!(relay.onward(at(2), of_b), Some(Err(RelayError::NotBound)));
        assert_eq!(relay.onward(at(1), of_b), Some(Err(RelayError::NotBound)), "of C");
        assert_eq!(relay.binding(A, B), None);
    }

    #[test]
    fn what_cannot_be_passed_on_says_so_and_bindings_are_bounded() {
        let mut relay = relay();
        let away = PeerId(9);
        let (of_a, _) = relay.bind(A, away).expect("room");
        assert_eq!(relay.onward(at(1), of_a), Some(Err(RelayError::NoPath)));
        let others = (100..100 + BINDINGS_MAX as u32).map(PeerId);
        let bound = others.filter(|other| relay.bind(A, *other).is_ok()).count();
        assert_eq!(bound, BINDINGS_MAX - 1);
        assert_eq!(relay.bind(A, B), Err(TooManyBindings));
    }
}
