//! A hub's part: which sites may talk, what each is told of the others, and what is passed on between them.
//!
//! Two sites of one tenant are introduced when one wants services of the other and the other has a policy that may admit it.
//! Nobody hears of anybody else. The hub decides nothing about flows: that is the service's gateway's, as always.

mod relay;

pub use relay::{BINDINGS_MAX, Onward, RelayError};

use crate::addr::{Binding, Identity, Name, PeerId, Selector};
use relay::Relay;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

/// What a site tells its hub.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Attendance {
    /// Sites whose services it maps.
    pub wants: BTreeSet<Name>,
    /// Whom its services admit.
    pub admits: BTreeSet<Selector>,
    /// Its gateway's own, of which only a site behind the same NAT is told.
    pub addresses: Vec<SocketAddr>,
}

/// What a site is told of another.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Introduced {
    pub peer: PeerId,
    /// Through this hub.
    pub binding: Binding,
    /// Straight; where the hub sees it first.
    pub addresses: Vec<SocketAddr>,
}

#[derive(Debug)]
pub struct Hub {
    relay: Relay,
    sites: BTreeMap<PeerId, Site>,
}

#[derive(Debug)]
struct Site {
    identity: Identity,
    attendance: Attendance,
    others: BTreeSet<PeerId>,
}

impl Hub {
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { relay: Relay::new(seed), sites: BTreeMap::new() }
    }

    /// What the site says now, in place of what it said before; `seen`: where its tunnel was last authentic. For whom that
    /// changes something.
    pub fn attend(
        &mut self,
        peer: PeerId,
        identity: Identity,
        attendance: Attendance,
        seen: Option<SocketAddr>,
    ) -> BTreeSet<PeerId> {
        let site = Site { identity, attendance, others: BTreeSet::new() };
        let before = self.sites.insert(peer, site).map(|site| site.others).unwrap_or_default();
        self.relay.moved(peer, seen);
        let may_talk = |other: &PeerId| self.may_talk(peer, *other);
        let wanted: Vec<PeerId> = self.sites.keys().copied().filter(may_talk).collect();
        for gone in before.iter().filter(|other| !wanted.contains(other)) {
            self.part(peer, *gone);
        }
        for other in wanted {
            if self.relay.bind(peer, other).is_ok() {
                self.others(peer, |others| others.insert(other));
                self.others(other, |others| others.insert(peer));
            }
        }
        self.concerned(peer).into_iter().chain(before).collect()
    }

    /// The site is none of this hub's any more. Who knew it.
    pub fn remove(&mut self, peer: PeerId) -> BTreeSet<PeerId> {
        let others = self.sites.remove(&peer).map(|site| site.others).unwrap_or_default();
        others.iter().for_each(|other| self.others(*other, |others| others.remove(&peer)));
        self.relay.remove(peer);
        others
    }

    /// Where the hub's own tunnel to the site was last authentic; none: it is away. For whom that changes something.
    pub fn moved(&mut self, peer: PeerId, to: Option<SocketAddr>) -> BTreeSet<PeerId> {
        if !self.sites.contains_key(&peer) || self.relay.address(peer) == to {
            return BTreeSet::new();
        }
        self.relay.moved(peer, to);
        self.concerned(peer)
    }

    #[must_use]
    pub fn attendance(&self, peer: PeerId) -> Option<(&Identity, &Attendance)> {
        self.sites.get(&peer).map(|site| (&site.identity, &site.attendance))
    }

    /// Where the site is seen from, and of whom it is told.
    #[must_use]
    pub fn introductions(&self, peer: PeerId) -> (Option<SocketAddr>, Vec<Introduced>) {
        let Some(site) = self.sites.get(&peer) else { return (None, Vec::new()) };
        let seen = self.relay.address(peer).filter(|seen| !seen.ip().is_loopback());
        let introduced = |other: &PeerId| {
            let (binding, _) = self.relay.binding(peer, *other)?;
            Some(Introduced { peer: *other, binding, addresses: self.addresses(*other, seen) })
        };
        (seen, site.others.iter().filter_map(introduced).collect())
    }

    /// What becomes of a datagram with this binding; none if its sender is no site of this hub's.
    #[must_use]
    pub fn onward(&self, from: SocketAddr, binding: Binding) -> Option<Result<Onward, RelayError>> {
        self.relay.onward(from, binding)
    }

    /// Those that attend.
    pub fn sites(&self) -> impl Iterator<Item = PeerId> {
        self.sites.keys().copied()
    }

    /// Of a site, for one that is seen at `from`.
    fn addresses(&self, of: PeerId, from: Option<SocketAddr>) -> Vec<SocketAddr> {
        // One that comes over TLS has no address of its own.
        let seen = self.relay.address(of).filter(|seen| !seen.ip().is_loopback());
        let is_near = seen.zip(from).is_some_and(|(seen, from)| seen.ip() == from.ip());
        let own = self.sites.get(&of).filter(|_| is_near).map(|site| site.attendance.addresses.iter().copied());
        seen.into_iter().chain(own.into_iter().flatten()).collect()
    }

    fn may_talk(&self, one: PeerId, other: PeerId) -> bool {
        let (Some(a), Some(b)) = (self.sites.get(&one), self.sites.get(&other)) else { return false };
        let uses = |caller: &Site, server: &Site| {
            caller.attendance.wants.contains(&server.identity.site)
                && server.attendance.admits.iter().any(|selector| selector.may_match(&caller.identity))
        };
        one != other && a.identity.tenant == b.identity.tenant && (uses(a, b) || uses(b, a))
    }

    fn part(&mut self, one: PeerId, other: PeerId) {
        self.relay.unbind(one, other);
        self.others(one, |others| others.remove(&other));
        self.others(other, |others| others.remove(&one));
    }

    fn others(&mut self, of: PeerId, change: impl FnOnce(&mut BTreeSet<PeerId>) -> bool) {
        self.sites.get_mut(&of).map(|site| change(&mut site.others));
    }

    /// The site and all that know it.
    fn concerned(&self, peer: PeerId) -> BTreeSet<PeerId> {
        let others = self.sites.get(&peer).into_iter().flat_map(|site| site.others.iter().copied());
        others.chain([peer]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text).expect("name")
    }

    fn at(host: u8, port: u16) -> SocketAddr {
        ([192, 0, 2, host], port).into()
    }

    fn identity(site: &str, tenant: &str) -> Identity {
        Identity { site: name(site), tenant: Some(name(tenant)), groups: vec![name("edge")] }
    }

    fn attendance(wants: &[&str], admits: &[&str]) -> Attendance {
        Attendance {
            wants: wants.iter().map(|site| name(site)).collect(),
            admits: admits.iter().map(|selector| selector.parse().expect("selector")).collect(),
            addresses: vec![([10, 0, 0, 2], 51820).into()],
        }
    }

    fn known_to(hub: &Hub, peer: u32) -> Vec<u32> {
        hub.introductions(PeerId(peer)).1.iter().map(|introduced| introduced.peer.0).collect()
    }

    #[test]
    fn a_site_hears_of_those_that_want_and_may_and_of_nobody_else() {
        let mut hub = Hub::new(1);
        hub.attend(PeerId(1), identity("cloud", "acme"), attendance(&[], &["group:edge"]), Some(at(1, 1)));
        hub.attend(PeerId(2), identity("factory", "acme"), attendance(&["cloud"], &[]), Some(at(2, 1)));
        hub.attend(PeerId(3), identity("depot", "acme"), attendance(&["shop"], &["site:cloud"]), Some(at(3, 1)));
        assert_eq!([1, 2, 3].map(|peer| known_to(&hub, peer)), [vec![2], vec![1], vec![]]);
        // The wish alone is not enough, nor is the permission.
        hub.attend(PeerId(3), identity("depot", "acme"), attendance(&["factory"], &["any"]), Some(at(3, 1)));
        assert!(known_to(&hub, 3).is_empty());
        let told = hub.attend(PeerId(2), identity("factory", "acme"), attendance(&[], &["client:x.depot"]), None);
        assert_eq!(told, [1, 2, 3].map(PeerId).into());
        assert_eq!([1, 2, 3].map(|peer| known_to(&hub, peer)), [vec![], vec![3], vec![2]]);
    }

    #[test]
    fn fifty_tenants_of_the_same_names_never_meet() {
        let mut hub = Hub::new(1);
        for tenant in 0..50 {
            let identity = |site| identity(site, &format!("tenant-{tenant}"));
            hub.attend(PeerId(2 * tenant), identity("cloud"), attendance(&[], &["any"]), Some(at(1, 1)));
            hub.attend(PeerId(2 * tenant + 1), identity("factory"), attendance(&["cloud"], &[]), Some(at(2, 1)));
        }
        for tenant in 0..50 {
            assert_eq!(known_to(&hub, 2 * tenant), [2 * tenant + 1]);
            assert_eq!(known_to(&hub, 2 * tenant + 1), [2 * tenant]);
        }
    }

    #[test]
    fn own_addresses_are_told_only_to_a_site_behind_the_same_nat() {
        let mut hub = Hub::new(1);
        hub.attend(PeerId(1), identity("cloud", "acme"), attendance(&[], &["any"]), Some(at(1, 7)));
        hub.attend(PeerId(2), identity("factory", "acme"), attendance(&["cloud"], &[]), Some(at(2, 8)));
        let addresses = |hub: &Hub| hub.introductions(PeerId(2)).1.remove(0).addresses;
        assert_eq!(addresses(&hub), [at(1, 7)]);
        assert_eq!(hub.moved(PeerId(2), Some(at(1, 8))), [1, 2].map(PeerId).into());
        assert_eq!(addresses(&hub), [at(1, 7), ([10, 0, 0, 2], 51820).into()]);
    }

    #[test]
    fn a_site_that_goes_is_forgotten_by_all_who_knew_it() {
        let mut hub = Hub::new(1);
        hub.attend(PeerId(1), identity("cloud", "acme"), attendance(&[], &["any"]), Some(at(1, 1)));
        hub.attend(PeerId(2), identity("factory", "acme"), attendance(&["cloud"], &[]), Some(at(2, 1)));
        let (_, known) = hub.introductions(PeerId(2));
        assert!(hub.onward(at(2, 1), known[0].binding).is_some_and(|onward| onward.is_ok()));
        assert_eq!(hub.remove(PeerId(1)), [PeerId(2)].into());
        assert!(known_to(&hub, 2).is_empty());
        assert_eq!(hub.onward(at(2, 1), known[0].binding), Some(Err(RelayError::NotBound)));
    }
}
