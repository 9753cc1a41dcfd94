//! A hub's part: what comes from a site of its own for another is passed on as it is.

use super::{Node, Reason};
use crate::addr::{Binding, Name, Path, PeerId};
use crate::policy::Bucket;
use crate::relay::{Onward, RelayError, TooManyBindings};
use crate::tunnel::{Tunnel, same_binding, set_binding};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Instant;

/// What may come at once, of a second's worth.
const BURST: u64 = 4;

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

/// What was passed on for others.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Relayed {
    pub datagrams: u64,
    pub bytes: u64,
}

impl Node {
    /// Sorts the datagrams at the beginning of a message: as many as go the same way. They are left as they are to go on.
    pub fn sort(&mut self, from: SocketAddr, message: &mut [u8], stride: usize, now: Instant) -> Sorted {
        let (binding, bytes) = same_binding(message, stride);
        let run = &mut message[..bytes];
        let relayed = binding.and_then(|binding| self.relay.onward(from, binding));
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
        let RelayRates { site, tenant } = self.settings.relay;
        let full = |rate: u64| Bucket::new(rate, rate / BURST, now);
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

    /// Binds two peers, so that each may reach the other through this hub. What each of them knows the other by.
    pub fn bind(&mut self, one: PeerId, other: PeerId) -> Result<(Binding, Binding), TooManyBindings> {
        let bound = self.relay.bind(one, other)?;
        [one, other].into_iter().for_each(|peer| self.follow_relayed(peer));
        Ok(bound)
    }

    pub fn unbind(&mut self, one: PeerId, other: PeerId) {
        self.relay.unbind(one, other);
    }

    /// A site is reached where its tunnel to this hub was last authentic, and nowhere when it is away.
    pub(super) fn follow_relayed(&mut self, peer: PeerId) {
        if self.relay.knows(peer) {
            let path = self.tunnels.path(peer).filter(|_| self.tunnels.is_up(peer));
            self.relay.moved(peer, path.and_then(|path| path.endpoint()));
        }
    }

    /// The peer was removed.
    pub(super) fn forget_relayed(&mut self, peer: PeerId) {
        self.relay.remove(peer);
        self.relay_buckets.sites.remove(&peer);
    }

    /// What was passed on since the start.
    #[must_use]
    pub fn relayed(&self) -> Relayed {
        self.relayed
    }
}
