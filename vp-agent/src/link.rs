//! The control channel's way to the node: through the data thread, between two batches.

use crate::control::{Link, Target};
use crate::dataplane::Handle;
use std::net::IpAddr;
use vp::addr::PeerId;
use vp::catalogue::Offer;
use vp::node::{Allowed, OfferError, Reason};

impl Link for Handle {
    async fn has_agent(&self, peer: PeerId) -> bool {
        let has_agent =
            move |node: &mut vp::node::Node| node.peer_settings().any(|(id, settings)| id == peer && !settings.stock);
        self.call(move |node, _, _| has_agent(node)).await.unwrap_or(false)
    }

    async fn send(&self, peer: PeerId, packets: Vec<Vec<u8>>) {
        let send = self.call(move |node, output, now| {
            packets.iter().for_each(|packet| node.send_control(peer, packet, output, now));
        });
        // A data thread that is gone takes the whole agent with it; nobody waits for this packet then.
        send.await.ok();
    }

    async fn offer(&self, peer: PeerId) -> Offer {
        self.call(move |node, _, _| node.offer(peer)).await.unwrap_or_default()
    }

    async fn set_offer(&self, peer: PeerId, offer: Offer) -> Result<(), OfferError> {
        let set = self.call(move |node, _, now| node.set_offer(peer, offer, now)).await;
        set.unwrap_or(Err(OfferError::UnknownPeer))
    }

    async fn explain(&self, peer: PeerId, target: Target, caller: Option<u16>) -> Result<Allowed, Reason> {
        let Target { service, protocol, port } = target;
        let explain =
            self.call(move |node, _, now| node.explain_inbound(peer, &service, caller, (protocol, port), now));
        explain.await.unwrap_or(Err(Reason::NoPath))
    }

    async fn probe_target(&self, peer: PeerId, target: Target) -> Option<IpAddr> {
        let Target { service, protocol, port } = target;
        let target = self.call(move |node, _, _| node.probe_target(peer, &service, protocol, port)).await;
        target.ok().flatten()
    }
}
