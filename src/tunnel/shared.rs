//! One peer's tunnel as several threads hold it: sealing and opening take its lock and no other, so that what costs most
//! is done beside the node.
//!
//! Locks are taken in one order: the node's (or whatever guards the [`Tunnels`](super::Tunnels)), then a tunnel's. Whoever
//! holds a tunnel's takes no other.

use super::peer::{Message, Peer};
use super::{Opened, SealError, Transmits};
use crate::addr::{Path, PeerId};
use boringtun::noise::{Packet, Tunn};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

#[derive(Clone)]
pub struct Tunnel {
    pub(super) id: PeerId,
    peer: Arc<Mutex<Peer>>,
}

impl std::fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tunnel").finish_non_exhaustive()
    }
}

impl PartialEq for Tunnel {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.peer, &other.peer)
    }
}

/// A tunnel that nobody else uses at present: long enough for a super-packet or a message.
pub struct Locked<'a>(MutexGuard<'a, Peer>);

impl Tunnel {
    pub(super) fn new(peer: Peer) -> Self {
        Self { id: peer.id, peer: Arc::new(Mutex::new(peer)) }
    }

    #[must_use]
    pub fn lock(&self) -> Locked<'_> {
        Locked(self.peer())
    }

    pub(super) fn peer(&self) -> MutexGuard<'_, Peer> {
        self.peer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Locked<'_> {
    /// Seals one inner packet, padded to 16 bytes but not beyond `inner_mtu`; queues it and asks for a session when
    /// there is none. `scratch` has room for the padded packet.
    pub fn seal(
        &mut self,
        inner: &[u8],
        inner_mtu: u16,
        scratch: &mut [u8],
        transmits: &mut Transmits,
        now: Instant,
    ) -> Result<(), SealError> {
        self.0.seal(inner, inner_mtu, scratch, transmits, now)
    }

    /// One datagram from the network; none if it is not of a session of this tunnel. `into` should be as long as the
    /// datagram, and 148 bytes at least; `scratch` is.
    pub fn open(
        &mut self,
        from: impl Into<Path>,
        datagram: &[u8],
        into: &mut [u8],
        scratch: &mut [u8],
        transmits: &mut Transmits,
        now: Instant,
    ) -> Option<Opened> {
        let Ok(Packet::PacketData(data)) = Tunn::parse_incoming_packet(datagram) else { return None };
        let message = Message::data(&data, datagram);
        (data.receiver_idx >> 8 == self.0.index)
            .then(|| self.0.open(message, from.into(), datagram, (into, scratch), transmits, now))
    }

    /// Whether [`Tunnels::hear`](super::Tunnels::hear) is to be called.
    #[must_use]
    pub fn has_news(&self, now: Instant) -> bool {
        self.0.has_news(now)
    }
}
