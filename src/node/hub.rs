//! Both ends of introductions: what a hub tells its sites and passes on between them, and what a site makes of it.

use super::{Event, Node, Reason};
use crate::addr::{Binding, Name, Path, PeerId};
use crate::hub::{Acquaintance, Attendance, Onward, RelayError};
use crate::policy::Bucket;
use crate::tunnel::{Tunnel, same_binding, set_binding};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Instant;

/// What may come at once: a quarter of a second's worth, and a message of the kernel's making in any case.
const BURST: u64 = 4;
const BURST_BITS_MIN: u64 = 65_536 * 8;

/// What a hub passes on a second, in bits; none: whatever it can.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct RelayRates {
    pub site: Option<u64>,
    pub tenant: Option<u64>,
}

/// What is left of them.
#[derive(Default, Debug)]
pub(super) struct RelayBuckets {
    sites: BTreeMap<PeerId, Bucket>,
    tenants: BTreeMap<Name, Bucket>,
}

/// Whose the datagrams at the beginning of a message are, and how many bytes they have.
#[derive(Debug)]
pub struct Sorted {
    pub whose: Whose,
    pub bytes: usize,
}

#[derive(Debug)]
pub enum Whose {
    /// Of a session: for [`super::Output::open`].
    Session(Tunnel, Path),
    /// For [`Node::handle_datagrams`].
    Node(Path),
    /// To be sent there as they are now.
    Relay(SocketAddr),
    /// Dropped, and counted.
    Nobody,
}

/// What a hub tells one of its sites.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Introductions {
    /// Where the hub sees the site.
    pub seen: Option<SocketAddr>,
    pub sites: Vec<Introduction>,
}

/// What a site is told of another, of which it knows who it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Introduction {
    pub site: Name,
    pub public_key: [u8; 32],
    pub binding: Binding,
    pub addresses: Vec<SocketAddr>,
    /// What it shows for itself, which is for others to judge; empty if it has none.
    pub certificate: Vec<u8>,
}

/// What was passed on for others.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Relayed {
    pub datagrams: u64,
    pub bytes: u64,
}

/// Whom hubs told this site of, and which hub said what.
#[derive(Default, Debug)]
pub(super) struct IntroducedSites {
    by_key: BTreeMap<[u8; 32], BTreeMap<PeerId, Introduction>>,
}

impl IntroducedSites {
    fn put(&mut self, hub: PeerId, site: Introduction) {
        self.by_key.entry(site.public_key).or_default().insert(hub, site);
    }

    fn forget(&mut self, key: &[u8; 32], hub: PeerId) {
        let Some(hubs) = self.by_key.get_mut(key) else { return };
        hubs.remove(&hub);
        if hubs.is_empty() {
            self.by_key.remove(key);
        }
    }

    fn keys_of(&self, hub: PeerId) -> Vec<[u8; 32]> {
        self.by_key.iter().filter(|(_, hubs)| hubs.contains_key(&hub)).map(|(key, _)| *key).collect()
    }
}

impl Node {
    /// Sorts the datagrams at the beginning of a message: as many as go the same way. They are left as they are to go on.
    pub fn sort(&mut self, from: SocketAddr, message: &mut [u8], stride: usize, now: Instant) -> Sorted {
        let (binding, bytes) = same_binding(message, stride);
        let run = &mut message[..bytes];
        let relayed = binding.and_then(|binding| self.hub.onward(from, binding));
        if let Some(onward) = relayed {
            return Sorted { whose: self.pass_on(onward, run, stride, now), bytes };
        }
        if binding.is_some() {
            run.chunks_mut(stride.max(1)).for_each(|datagram| set_binding(datagram, None));
        }
        let path = Path { address: from, binding };
        let first = run.get(..stride).unwrap_or(run);
        let whose = match self.tunnels.tunnel_of(first) {
            Some(tunnel) => Whose::Session(tunnel.clone(), path),
            None => Whose::Node(path),
        };
        Sorted { whose, bytes }
    }

    fn pass_on(&mut self, onward: Result<Onward, RelayError>, run: &mut [u8], stride: usize, now: Instant) -> Whose {
        let datagrams = run.len().div_ceil(stride.max(1)) as u64;
        let allowed = match onward {
            Err(RelayError::NotBound) => Err(Reason::NotBound),
            Err(RelayError::NoPath) => Err(Reason::NoPath),
            Ok(onward) if !self.relays(onward.from, run.len() as u64 * 8, now) => Err(Reason::RelayLimit),
            Ok(onward) => Ok(onward),
        };
        match allowed {
            Ok(onward) => {
                run.chunks_mut(stride.max(1)).for_each(|datagram| set_binding(datagram, Some(onward.binding)));
                self.relayed.datagrams += datagrams;
                self.relayed.bytes += run.len() as u64;
                Whose::Relay(onward.to)
            }
            Err(reason) => {
                self.drops.add(reason, datagrams);
                Whose::Nobody
            }
        }
    }

    /// Whether so much of this site's may be passed on now.
    fn relays(&mut self, from: PeerId, bits: u64, now: Instant) -> bool {
        let RelayRates { site, tenant } = self.settings.hub.unwrap_or_default();
        let full = |rate: u64| Bucket::new(rate, (rate / BURST).max(BURST_BITS_MIN), now);
        let buckets = &mut self.relay_buckets;
        let of_site = site.map(|rate| buckets.sites.entry(from).or_insert_with(|| full(rate)));
        if of_site.is_some_and(|bucket| !bucket.take(bits, now)) {
            return false;
        }
        let name = self.peers.get(from).and_then(|peer| peer.settings.identity.tenant.as_ref());
        let of_tenant = tenant.zip(name);
        of_tenant.is_none_or(|(rate, name)| {
            buckets.tenants.entry(name.clone()).or_insert_with(|| full(rate)).take(bits, now)
        })
    }

    /// What a site of this hub's says now, in place of what it said before. False if this gateway is no hub.
    pub fn attend(&mut self, peer: PeerId, attendance: Attendance) -> bool {
        let identity = self.peer(peer).map(|peer| peer.settings.identity.clone());
        let Some(identity) = identity.filter(|_| self.settings.hub.is_some()) else { return false };
        let seen = self.seen(peer);
        let concerned = self.hub.attend(peer, identity, attendance, seen);
        self.events.extend(concerned.into_iter().map(Event::IntroductionsChanged));
        true
    }

    /// Whom a site of this hub's is told of now.
    #[must_use]
    pub fn introductions(&self, peer: PeerId) -> Introductions {
        let (seen, known) = self.hub.acquaintances(peer);
        let introduction = |Acquaintance { peer, binding, addresses }| {
            let settings = &self.peer(peer)?.settings;
            let (site, public_key) = (settings.identity.site.clone(), settings.public_key);
            Some(Introduction { site, public_key, binding, addresses, certificate: Vec::new() })
        };
        Introductions { seen, sites: known.into_iter().filter_map(introduction).collect() }
    }

    /// What this site says to its hubs: whose services it wants, and whom its own admit.
    #[must_use]
    pub fn attendance(&self) -> Attendance {
        let wants = self.settings.mappings.iter().map(|mapping| mapping.service.site().clone()).collect();
        let admits = self.settings.exposures.iter().flat_map(|exposure| exposure.allow.iter().cloned()).collect();
        Attendance { wants, admits, addresses: Vec::new() }
    }

    /// Whom a hub told this site of, in place of whom it told before. Those that are no peers of this site are kept for when
    /// they are.
    pub fn introduce(&mut self, hub: PeerId, sites: Vec<Introduction>, now: Instant) {
        let before = self.introduced.keys_of(hub);
        before.iter().for_each(|key| self.introduced.forget(key, hub));
        let told: Vec<[u8; 32]> = sites.iter().map(|site| site.public_key).collect();
        sites.into_iter().for_each(|site| self.introduced.put(hub, site));
        let keys: BTreeSet<[u8; 32]> = before.into_iter().chain(told).collect();
        keys.iter().for_each(|key| self.find_paths(key, now));
    }

    /// The paths to a peer, as all hubs tell.
    pub(super) fn find_paths(&mut self, key: &[u8; 32], now: Instant) {
        let Some(peer) = self.peers.by_key(key) else { return };
        let (mut paths, mut direct) = (Vec::new(), Vec::new());
        for (hub, site) in self.introduced.by_key.get(key).into_iter().flatten() {
            let address = self.tunnels.path(*hub).and_then(|path| path.straight());
            paths.extend(address.map(|address| Path { address, binding: Some(site.binding) }));
            direct.extend(site.addresses.iter().map(|address| Path::from(*address)));
        }
        direct.sort();
        direct.dedup();
        paths.append(&mut direct);
        self.tunnels.set_paths(peer, &paths, now);
    }

    /// After a peer came, went or moved: it may be a site of this hub's, or a hub of this site's.
    pub(super) fn follow(&mut self, peer: PeerId, now: Instant) {
        let concerned = self.hub.moved(peer, self.seen(peer));
        self.events.extend(concerned.into_iter().map(Event::IntroductionsChanged));
        self.introduced.keys_of(peer).iter().for_each(|key| self.find_paths(key, now));
    }

    /// After a change of the settings: who a site is may be another matter than when it attended, and whom a hub told this site
    /// of may be a peer now.
    pub(super) fn apply_introductions(&mut self, now: Instant) {
        let changed = |(peer, known): (PeerId, &super::Peer)| {
            let (identity, attendance) = self.hub.attendance(peer)?;
            (*identity != known.settings.identity).then(|| (peer, attendance.clone()))
        };
        let changed: Vec<_> = self.peers.iter().filter_map(changed).collect();
        for (peer, attendance) in changed {
            self.attend(peer, attendance);
        }
        if self.settings.hub.is_none() {
            let sites: Vec<PeerId> = self.hub.sites().collect();
            sites.into_iter().for_each(|site| self.forget_attending(site));
        }
        let keys: Vec<[u8; 32]> = self.introduced.by_key.keys().copied().collect();
        keys.iter().for_each(|key| self.find_paths(key, now));
    }

    /// The peer was removed.
    pub(super) fn forget_attending(&mut self, peer: PeerId) {
        let concerned = self.hub.remove(peer);
        self.events.extend(concerned.into_iter().map(Event::IntroductionsChanged));
        self.relay_buckets.sites.remove(&peer);
        self.introduced.keys_of(peer).iter().for_each(|key| self.introduced.forget(key, peer));
    }

    /// Whether a hub that this address on the host stands for is not reached otherwise at present.
    #[must_use]
    pub fn needs_carrier(&self, carrier: SocketAddr, now: Instant) -> bool {
        let of_carrier = self.peers.iter().filter(|(_, peer)| peer.settings.carrier == Some(carrier));
        let is_reached = |peer| self.tunnels.is_up(peer) && !self.tunnels.is_doubtful(peer, now);
        let is_used = |peer| self.tunnels.path(peer).is_some_and(|path| path.address == carrier);
        let is_needed = |peer| !is_reached(peer) || is_used(peer);
        of_carrier.map(|(peer, _)| peer).any(is_needed)
    }

    /// Sites that attend at this hub.
    #[must_use]
    pub fn hub_sites(&self) -> usize {
        self.hub.sites().count()
    }

    /// The peer's own address, if it is reached there.
    #[must_use]
    pub fn endpoint(&self, peer: PeerId) -> Option<SocketAddr> {
        self.tunnels.path(peer)?.endpoint()
    }

    /// Where the peer's tunnel to this gateway was last authentic, while it is up.
    fn seen(&self, peer: PeerId) -> Option<SocketAddr> {
        self.tunnels.path(peer).filter(|_| self.tunnels.is_up(peer))?.straight()
    }

    /// What was passed on since the start.
    #[must_use]
    pub fn relayed(&self) -> Relayed {
        self.relayed
    }
}
