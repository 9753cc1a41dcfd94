//! The control channel's way to the node: through the data thread, between two batches; and to what is certified.

use crate::clock::unix_seconds;
use crate::control::{Link, Target};
use crate::dataplane::Handle;
use crate::identity::{Claim, Identities, Presented};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use tokio::sync::watch;
use tokio::task::yield_now;
use vp::addr::PeerId;
use vp::catalogue::Offer;
use vp::hub::Attendance;
use vp::identity::{List, Refusal};
use vp::node::{Allowed, Introduction, Introductions, OfferError, Reason};

/// One for all peers.
#[derive(Clone)]
pub struct AgentLink {
    pub handle: Handle,
    pub identities: Arc<Identities>,
}

impl Link for AgentLink {
    async fn has_agent(&self, peer: PeerId) -> bool {
        let has_agent =
            move |node: &mut vp::node::Node| node.peer_settings().any(|(id, settings)| id == peer && !settings.stock);
        self.handle.call(move |node, _, _| has_agent(node)).await.unwrap_or(false)
    }

    async fn send(&self, peer: PeerId, packets: Vec<Vec<u8>>) {
        let send = self.handle.call(move |node, output, now| {
            packets.iter().for_each(|packet| node.send_control(peer, packet, output, now));
        });
        // A data thread that is gone takes the whole agent with it; nobody waits for this packet then.
        send.await.ok();
    }

    async fn offer(&self, peer: PeerId) -> Offer {
        self.handle.call(move |node, _, _| node.offer(peer)).await.unwrap_or_default()
    }

    async fn set_offer(&self, peer: PeerId, offer: Offer) -> Result<(), OfferError> {
        let set = self.handle.call(move |node, _, now| node.set_offer(peer, offer, now)).await;
        set.unwrap_or(Err(OfferError::UnknownPeer))
    }

    async fn is_hub(&self, peer: PeerId) -> bool {
        let is_hub =
            move |node: &mut vp::node::Node| node.peer_settings().any(|(id, settings)| id == peer && settings.hub);
        self.handle.call(move |node, _, _| is_hub(node)).await.unwrap_or(false)
    }

    async fn attendance(&self, hub: PeerId) -> Attendance {
        let said = self.handle.call(move |node, _, _| (node.attendance(), node.endpoint(hub))).await;
        let (attendance, hub) = said.unwrap_or_default();
        let own = hub.and_then(own_address_towards).map(|own| SocketAddr::new(own, self.handle.port()));
        Attendance { addresses: own.into_iter().collect(), ..attendance }
    }

    async fn introduce(&self, hub: PeerId, introductions: Introductions) {
        let named = self.handle.call(move |node, _, _| node.peer_site(hub).cloned()).await;
        if let Ok(Some(name)) = named {
            let mut claimed = BTreeMap::new();
            for shown in introductions.sites.iter().filter(|site| !site.certificate.is_empty()) {
                let checked = self.identities.check(&name, &claim(shown), unix_seconds()).inspect_err(|refusal| {
                    tracing::warn!("hub {name}: the certificate of {} was refused: {refusal}", shown.site);
                });
                claimed.insert(shown.site.clone(), checked.ok());
                // All else on the control thread goes on meanwhile.
                yield_now().await;
            }
            self.identities.introduce(&name, claimed, unix_seconds());
        }
        let introduce = self.handle.call(move |node, _, now| node.introduce(hub, introductions.sites, now));
        introduce.await.ok();
    }

    async fn attend(&self, peer: PeerId, attendance: Attendance) -> bool {
        self.handle.call(move |node, _, _| node.attend(peer, attendance)).await.unwrap_or(false)
    }

    async fn introductions(&self, peer: PeerId) -> Introductions {
        let told = self.handle.call(move |node, _, _| node.introductions(peer)).await;
        let mut told = told.unwrap_or_default();
        for site in &mut told.sites {
            site.certificate = self.identities.certificate_of(&site.site).unwrap_or_default();
        }
        told
    }

    async fn explain(&self, peer: PeerId, target: Target, caller: Option<u16>) -> Result<Allowed, Reason> {
        let Target { service, protocol, port } = target;
        let explain =
            self.handle.call(move |node, _, now| node.explain_inbound(peer, &service, caller, (protocol, port), now));
        explain.await.unwrap_or(Err(Reason::NoPath))
    }

    async fn probe_target(&self, peer: PeerId, target: Target) -> Option<IpAddr> {
        let Target { service, protocol, port } = target;
        let target = self.handle.call(move |node, _, _| node.probe_target(peer, &service, protocol, port)).await;
        target.ok().flatten()
    }

    fn credentials(&self) -> watch::Receiver<Arc<Presented>> {
        self.identities.presented()
    }

    async fn take_certificate(&self, peer: PeerId, bytes: Vec<u8>) -> Result<bool, Refusal> {
        let subject = self.handle.call(move |node, _, _| {
            let (_, settings) = node.peer_settings().find(|(id, _)| *id == peer)?;
            Some((settings.identity.site.clone(), settings.public_key))
        });
        // One that was just taken away presents nothing.
        let Ok(Some((site, key))) = subject.await else { return Ok(false) };
        self.identities.take_certificate(&site, &key, &bytes, unix_seconds())
    }

    async fn take_revocations(&self, bytes: Vec<u8>) -> Result<(List, bool), Refusal> {
        self.identities.take_revocations(&bytes, unix_seconds())
    }
}

fn claim(of: &Introduction) -> Claim {
    Claim { site: of.site.clone(), public_key: of.public_key, certificate: of.certificate.clone() }
}

/// The host's own address that its routes would send from. Nothing is sent.
/// Which of the host's addresses its routes choose for this one. Nothing is sent.
#[must_use]
pub fn own_address_towards(to: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(to).ok()?;
    Some(socket.local_addr().ok()?.ip())
}
