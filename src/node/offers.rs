//! Whose offer changed: found from what changed, not from everybody's whole offer.

use super::{Node, Peer};
use crate::addr::{Holder, Identity, Name, PeerId, Selector, wire};
use crate::catalogue::{NamedCaller, NamedHost, Offer, OfferedService};
use std::collections::{BTreeMap, BTreeSet};

/// What all offers are made from.
pub(super) struct Offered {
    services: BTreeMap<Name, Service>,
    callers: Vec<NamedCaller>,
    peers: BTreeMap<PeerId, Identity>,
}

#[derive(PartialEq, Eq)]
struct Service {
    offered: OfferedService,
    hosts: Vec<NamedHost>,
    allow: Vec<Selector>,
}

impl Node {
    /// What this site offers to the peer now.
    #[must_use]
    pub fn offer(&self, peer: PeerId) -> Offer {
        let Some(identity) = self.peer(peer).and_then(Peer::identity) else { return Offer::default() };
        self.exposed.offer(identity, self.named_callers(), &self.clients)
    }

    pub(super) fn offered(&self) -> Offered {
        let service = |exposed: &crate::catalogue::Exposed| Service {
            offered: exposed.offered(),
            hosts: exposed.hosts(&self.clients),
            allow: exposed.exposure.allow.clone(),
        };
        Offered {
            services: self.exposed.iter().map(|(_, e)| (e.exposure.name.clone(), service(e))).collect(),
            callers: self.named_callers(),
            peers: self.peers.iter().filter_map(|(id, peer)| Some((id, peer.identity()?.clone()))).collect(),
        }
    }

    fn named_callers(&self) -> Vec<NamedCaller> {
        let index = |address| {
            let block = self.leases.block(&Holder::CallerIndex { address })?;
            wire::parse(block.addr()).map(|(_, index)| index)
        };
        let named = self.clients.iter();
        named.filter_map(|(address, name)| Some(NamedCaller { index: index(address)?, name: name.clone() })).collect()
    }
}

impl Offered {
    /// The peers to which something else was offered before, or nothing.
    pub fn changed_since(&self, before: &Self) -> Vec<PeerId> {
        let names: BTreeSet<&Name> = self.services.keys().chain(before.services.keys()).collect();
        let both = |name: &&Name| (before.services.get(*name), self.services.get(*name));
        let all: Vec<_> = names.iter().map(both).collect();
        let changed: Vec<_> = all.iter().copied().filter(|(before, now)| before != now).collect();
        let same_callers = self.callers == before.callers;
        let is_changed = |(peer, identity): &(&PeerId, &Identity)| {
            let Some(known) = before.peers.get(peer).filter(|_| same_callers) else { return true };
            let services = if known == *identity { &changed } else { &all };
            services.iter().any(|(before, now)| visible(*before, known) != visible(*now, identity))
        };
        self.peers.iter().filter(is_changed).map(|(peer, _)| *peer).collect()
    }
}

fn visible<'a>(service: Option<&'a Service>, peer: &Identity) -> Option<(&'a OfferedService, &'a [NamedHost])> {
    let service = service?;
    let is_for = service.allow.iter().any(|selector| selector.may_match(peer));
    is_for.then_some((&service.offered, service.hosts.as_slice()))
}
