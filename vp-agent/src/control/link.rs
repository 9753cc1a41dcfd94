//! What the control channel asks of the gateway it speaks for.

use crate::identity::{Offered, Place, Presented};
use crate::joining::{Ask, JoinError};
use crate::registry::Unregistered;
use std::future::ready;
use std::net::IpAddr;
use std::sync::Arc;
use tokio::sync::watch;
use vp::addr::{Name, PeerId, Protocol};
use vp::catalogue::Offer;
use vp::hub::Attendance;
use vp::identity::{JoinRefusal, List, Refusal};
use vp::node::{Allowed, Introductions, OfferError, Reason};

/// A port of a service, as a peer names it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    pub service: Name,
    pub protocol: Protocol,
    /// 0 for ICMP echo.
    pub port: u16,
}

/// The gateway's node, wherever it runs.
pub trait Link: Clone + Send + Sync + 'static {
    /// Whether the peer has a control channel at all: a stock WireGuard peer has none, and a peer that is no longer
    /// configured has none either.
    fn has_agent(&self, peer: PeerId) -> impl Future<Output = bool> + Send;

    /// Packets of the control channel, to the peer.
    fn send(&self, peer: PeerId, packets: Vec<Vec<u8>>) -> impl Future<Output = ()> + Send;

    /// What this site offers to the peer now.
    fn offer(&self, peer: PeerId) -> impl Future<Output = Offer> + Send;

    /// What the peer offers to this site now.
    fn set_offer(&self, peer: PeerId, offer: Offer) -> impl Future<Output = Result<(), OfferError>> + Send;

    /// Whether the peer is a hub of this site's.
    fn is_hub(&self, peer: PeerId) -> impl Future<Output = bool> + Send;

    /// What this site has to say to that hub now.
    fn attendance(&self, hub: PeerId) -> impl Future<Output = Attendance> + Send;

    /// Whom that hub tells this site of now.
    fn introduce(&self, hub: PeerId, introductions: Introductions) -> impl Future<Output = ()> + Send;

    /// What a site of this hub's says now. False if this gateway is no hub.
    fn attend(&self, peer: PeerId, attendance: Attendance) -> impl Future<Output = bool> + Send;

    /// Whom this hub tells that site of now.
    fn introductions(&self, peer: PeerId) -> impl Future<Output = Introductions> + Send;

    /// At a hub: registers what the peer presented of itself, and was taken. Where that stands then, if it is new.
    fn present(
        &self,
        peer: PeerId,
        certificate: Vec<u8>,
    ) -> impl Future<Output = Result<Option<Place>, Refusal>> + Send;

    /// What a site of this hub's has registered: where it stands then, if it is new. None if this gateway is no hub.
    fn register(
        &self,
        peer: PeerId,
        offered: Offered,
    ) -> impl Future<Output = Option<Result<Option<Place>, Unregistered>>> + Send;

    /// What this gateway would decide about a call of the peer's caller (none: any host of its site).
    fn explain(
        &self,
        peer: PeerId,
        target: Target,
        caller: Option<u16>,
    ) -> impl Future<Output = Result<Allowed, Reason>> + Send;

    /// What this site presents to every peer.
    fn credentials(&self) -> watch::Receiver<Arc<Presented>>;

    /// What the peer presents for itself. True if it is new.
    fn take_certificate(&self, peer: PeerId, bytes: Vec<u8>) -> impl Future<Output = Result<bool, Refusal>> + Send;

    /// A list of revocations, whosever it is. True if it is new.
    fn take_revocations(&self, bytes: Vec<u8>) -> impl Future<Output = Result<(List, bool), Refusal>> + Send;

    /// Whether the peer is here to join, and for nothing else.
    fn is_invited(&self, _peer: PeerId) -> impl Future<Output = bool> + Send {
        ready(false)
    }

    /// Certifies the key of who was invited.
    fn join(
        &self,
        _peer: PeerId,
        _public_key: Vec<u8>,
        _possession: Vec<u8>,
    ) -> impl Future<Output = Result<Vec<u8>, JoinError>> + Send {
        ready(Err(JoinRefusal::NotIssuer.into()))
    }

    /// What the peer has after the certificate of this serial.
    fn renew(&self, _peer: PeerId, _serial: Vec<u8>) -> impl Future<Output = Result<Vec<u8>, JoinError>> + Send {
        ready(Err(JoinRefusal::NotIssuer.into()))
    }

    /// What this site asks of the peer while it is joining; none: it has joined, or never did.
    fn joining(&self, _peer: PeerId) -> impl Future<Output = Option<Ask>> + Send {
        ready(None)
    }

    /// What the issuer answered: a certificate, or the word for why not.
    fn joined(&self, _answer: Result<Vec<u8>, String>) -> impl Future<Output = ()> + Send {
        ready(())
    }

    /// A backend of the service, if the peer may use it and the port is one of its ports.
    fn probe_target(&self, peer: PeerId, target: Target) -> impl Future<Output = Option<IpAddr>> + Send;
}
