//! The corridor: the only room that knows the others. A packet enters each of them once, from here.
//!
//! In by `handle_*`, out by [`Output`] and `poll_*`; `now` comes last.

mod drop;
mod event;
mod report;
mod settings;

pub use drop::{Drops, Reason};
pub use event::{Denial, Event, FlowEnd, FlowRecord, Opener};
pub use settings::{PeerSettings, Settings};

pub use crate::addr::Limits;
use crate::addr::{Grant, PeerId};
use crate::catalogue::Offer;
pub use crate::catalogue::{CallerSelector, Client, Exposure, Mapping, ServicePattern, Source, Target};
use crate::packet::Offload;
use crate::tunnel::Transmits;
use std::net::SocketAddr;
use std::time::Instant;
use x25519_dalek::StaticSecret;

/// What leaves the node in one batch. The shell sends and writes all of it, then clears it.
#[derive(Debug)]
pub struct Output {
    /// To the network.
    pub transmits: Transmits,
    /// To the TUN: single packets with complete checksums.
    pub packets: Vec<Vec<u8>>,
}

#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error("{0}")]
    Lease(#[from] crate::addr::LeaseError),
}

#[derive(Debug, thiserror::Error)]
pub enum OfferError {
    #[error("the peer is not configured")]
    UnknownPeer,
    #[error("service {0:?}: {1}")]
    Service(String, String),
    #[error("caller {0:?}: {1}")]
    Caller(String, String),
}

/// One gateway.
pub struct Node {
    settings: Settings,
}

impl Node {
    /// `leases` are those kept from before. Fails when they contradict each other.
    pub fn new(
        settings: Settings,
        leases: Vec<Grant>,
        key: StaticSecret,
        seed: u64,
        now: Instant,
    ) -> Result<Self, SettingsError> {
        let _ = (leases, key, seed, now);
        Ok(Self { settings })
    }

    /// A packet from the TUN, or a super-packet of it.
    pub fn handle_packet(&mut self, packet: &mut [u8], offload: Offload, output: &mut Output, now: Instant) {
        let _ = (packet, offload, output, now);
    }

    /// A message from the UDP socket: datagrams of `stride` bytes back to back (the last may be shorter).
    pub fn handle_datagrams(
        &mut self,
        from: SocketAddr,
        message: &mut [u8],
        stride: usize,
        output: &mut Output,
        now: Instant,
    ) {
        let _ = (from, message, stride, output, now);
    }

    /// After the last message of a batch, before the output is sent: what was joined is translated now.
    pub fn handle_batch_end(&mut self, output: &mut Output, now: Instant) {
        let _ = (output, now);
    }

    pub fn handle_timeout(&mut self, output: &mut Output, now: Instant) {
        let _ = (output, now);
    }

    /// When [`Self::handle_timeout`] wants to be called next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        None
    }

    pub fn poll_event(&mut self) -> Option<Event> {
        None
    }

    /// Replaces what the operator wants. Flows that are still allowed go on.
    pub fn configure(&mut self, settings: Settings, now: Instant) -> Result<(), SettingsError> {
        let _ = now;
        self.settings = settings;
        Ok(())
    }

    /// A packet of the control channel, from 198.18.0.1 or 198.19.0.1, to the peer.
    pub fn send_control(&mut self, peer: PeerId, packet: &[u8], output: &mut Output, now: Instant) {
        let _ = (peer, packet, output, now);
    }

    /// What the peer offers to this site now; replaces what it offered before, whole.
    pub fn set_offer(&mut self, peer: PeerId, offer: Offer, now: Instant) -> Result<(), OfferError> {
        let _ = (peer, offer, now);
        Ok(())
    }

    /// What this site offers to the peer now.
    #[must_use]
    pub fn offer(&self, peer: PeerId) -> Offer {
        let _ = peer;
        Offer::default()
    }

    /// A new address for a peer's configured endpoint, as its name resolved.
    pub fn set_endpoint(&mut self, peer: PeerId, endpoint: SocketAddr) {
        let _ = (peer, endpoint);
    }

    #[must_use]
    pub fn drops(&self) -> &Drops {
        const { &Drops::NONE }
    }

    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }
}
