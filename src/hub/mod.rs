//! A hub's part: which sites may talk, what each is told of the others, and what is passed on between them.
//!
//! Two sites of one tenant are introduced when one wants services of the other and the other has a policy that may admit it.
//! Who was invited to a site and that site are introduced in any case. Nobody hears of anybody else. The hub decides nothing about flows: that is the service's gateway's, as always.

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
pub struct Acquaintance {
    pub peer: PeerId,
    /// Through this hub.
    pub binding: Binding,
    /// Straight; where the hub sees it first.
    pub addresses: Vec<SocketAddr>,
}

/// Who knows whom is the relay's: sites that were introduced are bound.
#[derive(Debug)]
pub struct Hub {
    relay: Relay,
    sites: BTreeMap<PeerId, Site>,
    /// By whose name it is, and by whose name it wants, so that who may talk is found without looking at all.
    named: BTreeMap<SiteName, BTreeSet<PeerId>>,
    wanting: BTreeMap<SiteName, BTreeSet<PeerId>>,
}

/// A name means a site of its tenant only.
type SiteName = (Option<Name>, Name);

#[derive(Debug)]
struct Site {
    identity: Identity,
    attendance: Attendance,
    /// It was invited to this site of its tenant, and wants it alone.
    host: Option<Name>,
}

impl Site {
    fn name(&self) -> SiteName {
        (self.identity.tenant.clone(), self.identity.site.clone())
    }

    fn wants(&self) -> impl Iterator<Item = SiteName> + '_ {
        self.attendance.wants.iter().map(|site| (self.identity.tenant.clone(), site.clone()))
    }

    fn may_admit(&self, caller: &Self) -> bool {
        match &caller.host {
            Some(host) => self.host.is_none() && *host == self.identity.site,
            None => self.attendance.admits.iter().any(|selector| selector.may_match(&caller.identity)),
        }
    }
}

impl Hub {
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let (sites, named, wanting) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { relay: Relay::new(seed), sites, named, wanting }
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
        self.put(peer, Site { identity, attendance, host: None }, seen)
    }

    /// The same of one that was invited to the site `host` of its tenant, and may deal with nobody else.
    pub fn attend_invited(
        &mut self,
        peer: PeerId,
        identity: Identity,
        host: Name,
        addresses: Vec<SocketAddr>,
        seen: Option<SocketAddr>,
    ) -> BTreeSet<PeerId> {
        let attendance = Attendance { wants: [host.clone()].into(), admits: BTreeSet::new(), addresses };
        self.put(peer, Site { identity, attendance, host: Some(host) }, seen)
    }

    fn put(&mut self, peer: PeerId, site: Site, seen: Option<SocketAddr>) -> BTreeSet<PeerId> {
        self.leave(peer);
        self.named.entry(site.name()).or_default().insert(peer);
        for wanted in site.wants() {
            self.wanting.entry(wanted).or_default().insert(peer);
        }
        let others = self.others(peer, &site);
        self.sites.insert(peer, site);
        self.relay.moved(peer, seen);
        let before: BTreeSet<PeerId> = self.relay.bound(peer).collect();
        before.difference(&others).for_each(|gone| self.relay.unbind(peer, *gone));
        for other in others {
            // Who has too many others hears of no more.
            let _ = self.relay.bind(peer, other);
        }
        self.concerned(peer).into_iter().chain(before).collect()
    }

    /// The site is none of this hub's any more. Who knew it.
    pub fn remove(&mut self, peer: PeerId) -> BTreeSet<PeerId> {
        let others = self.relay.bound(peer).collect();
        self.leave(peer);
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

    /// As whom it attends, to whom it was invited, and what it says.
    #[must_use]
    pub fn attendance(&self, peer: PeerId) -> Option<(&Identity, Option<&Name>, &Attendance)> {
        self.sites.get(&peer).map(|site| (&site.identity, site.host.as_ref(), &site.attendance))
    }

    /// Where the site is seen from, and of whom it is told.
    #[must_use]
    pub fn acquaintances(&self, peer: PeerId) -> (Option<SocketAddr>, Vec<Acquaintance>) {
        let seen = self.seen(peer);
        let acquaintance = |other: PeerId| {
            let (binding, _) = self.relay.binding(peer, other)?;
            Some(Acquaintance { peer: other, binding, addresses: self.addresses(other, seen) })
        };
        (seen, self.relay.bound(peer).filter_map(acquaintance).collect())
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

    /// Nothing that it said counts any more.
    fn leave(&mut self, peer: PeerId) {
        let Some(site) = self.sites.remove(&peer) else { return };
        forget(&mut self.named, &site.name(), peer);
        site.wants().for_each(|wanted| forget(&mut self.wanting, &wanted, peer));
    }

    /// With whom the site may talk: whom it wants and who may admit it, and the other way round.
    fn others(&self, peer: PeerId, site: &Site) -> BTreeSet<PeerId> {
        let of = |peers: Option<&BTreeSet<PeerId>>| peers.into_iter().flatten().copied().collect::<Vec<_>>();
        let wanted = site.wants().flat_map(|wanted| of(self.named.get(&wanted)));
        let servers = wanted.filter(|other| self.sites.get(other).is_some_and(|other| other.may_admit(site)));
        let wanting = of(self.wanting.get(&site.name())).into_iter();
        let callers = wanting.filter(|other| self.sites.get(other).is_some_and(|other| site.may_admit(other)));
        servers.chain(callers).filter(|other| *other != peer).collect()
    }

    /// Where others may call it. One that comes over TLS has no address of its own.
    fn seen(&self, peer: PeerId) -> Option<SocketAddr> {
        self.relay.address(peer).filter(|seen| !seen.ip().is_loopback())
    }

    /// Of a site, for one that is seen at `from`.
    fn addresses(&self, of: PeerId, from: Option<SocketAddr>) -> Vec<SocketAddr> {
        let seen = self.seen(of);
        let is_near = seen.zip(from).is_some_and(|(seen, from)| seen.ip() == from.ip());
        let own = self.sites.get(&of).filter(|_| is_near).map(|site| site.attendance.addresses.iter().copied());
        seen.into_iter().chain(own.into_iter().flatten()).collect()
    }

    /// The site and all that know it.
    fn concerned(&self, peer: PeerId) -> BTreeSet<PeerId> {
        self.relay.bound(peer).chain([peer]).collect()
    }
}

fn forget(index: &mut BTreeMap<SiteName, BTreeSet<PeerId>>, name: &SiteName, peer: PeerId) {
    let Some(peers) = index.get_mut(name) else { return };
    peers.remove(&peer);
    if peers.is_empty() {
        index.remove(name);
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
        hub.acquaintances(PeerId(peer)).1.iter().map(|known| known.peer.0).collect()
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
    fn who_was_invited_meets_its_host_whatever_it_says_and_nobody_else() {
        let mut hub = Hub::new(1);
        let invite = |hub: &mut Hub, host: &str| {
            hub.attend_invited(PeerId(9), identity("invited-1", "acme"), name(host), Vec::new(), Some(at(9, 1)));
        };
        invite(&mut hub, "cloud");
        hub.attend(PeerId(1), identity("cloud", "acme"), attendance(&[], &[]), Some(at(1, 1)));
        hub.attend(PeerId(2), identity("depot", "acme"), attendance(&["invited-1"], &["any"]), Some(at(2, 1)));
        hub.attend(PeerId(3), identity("cloud", "evil"), attendance(&["invited-1"], &["any"]), Some(at(3, 1)));
        assert_eq!([1, 2, 3, 9].map(|peer| known_to(&hub, peer)), [vec![9], vec![], vec![], vec![1]]);
        invite(&mut hub, "depot");
        assert_eq!([1, 2, 3, 9].map(|peer| known_to(&hub, peer)), [vec![], vec![9], vec![], vec![2]]);
    }

    #[test]
    fn own_addresses_are_told_only_to_a_site_behind_the_same_nat() {
        let mut hub = Hub::new(1);
        hub.attend(PeerId(1), identity("cloud", "acme"), attendance(&[], &["any"]), Some(at(1, 7)));
        hub.attend(PeerId(2), identity("factory", "acme"), attendance(&["cloud"], &[]), Some(at(2, 8)));
        let addresses = |hub: &Hub| hub.acquaintances(PeerId(2)).1.remove(0).addresses;
        assert_eq!(addresses(&hub), [at(1, 7)]);
        assert_eq!(hub.moved(PeerId(2), Some(at(1, 8))), [1, 2].map(PeerId).into());
        assert_eq!(addresses(&hub), [at(1, 7), ([10, 0, 0, 2], 51820).into()]);
    }

    #[test]
    fn a_site_that_goes_is_forgotten_by_all_who_knew_it() {
        let mut hub = Hub::new(1);
        hub.attend(PeerId(1), identity("cloud", "acme"), attendance(&[], &["any"]), Some(at(1, 1)));
        hub.attend(PeerId(2), identity("factory", "acme"), attendance(&["cloud"], &[]), Some(at(2, 1)));
        let (_, known) = hub.acquaintances(PeerId(2));
        assert!(hub.onward(at(2, 1), known[0].binding).is_some_and(|onward| onward.is_ok()));
        assert_eq!(hub.remove(PeerId(1)), [PeerId(2)].into());
        assert!(known_to(&hub, 2).is_empty());
        assert_eq!(hub.onward(at(2, 1), known[0].binding), Some(Err(RelayError::NotBound)));
        hub.remove(PeerId(2));
        assert!(hub.named.is_empty() && hub.wanting.is_empty(), "{hub:?}");
    }

    #[test]
    fn a_site_that_takes_another_name_is_known_by_that_alone() {
        let mut hub = Hub::new(1);
        hub.attend(PeerId(1), identity("cloud", "acme"), attendance(&[], &["any"]), Some(at(1, 1)));
        hub.attend(PeerId(2), identity("factory", "acme"), attendance(&["cloud"], &[]), Some(at(2, 1)));
        hub.attend(PeerId(1), identity("cloud", "evil"), attendance(&[], &["any"]), Some(at(1, 1)));
        assert!(known_to(&hub, 1).is_empty() && known_to(&hub, 2).is_empty());
        hub.attend(PeerId(1), identity("cloud", "acme"), attendance(&[], &["any"]), Some(at(1, 1)));
        assert_eq!([1, 2].map(|peer| known_to(&hub, peer)), [[2], [1]]);
    }
}
