//! Names of peers by their numbers, as records of flows need them.

use crate::dataplane::Handle;
use crate::identity::PeerName;
use std::collections::BTreeMap;
use vp::addr::{Name, PeerId};
use vp::node::{Event, PeerSettings};

/// Belongs to the loop alone. A number that one peer gave up may become another's: what the node told of the first, up
/// to its end, still gets the first one's name.
#[derive(Default)]
pub(super) struct Names(BTreeMap<PeerId, Known>);

/// What records say of a peer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Known {
    pub public_key: [u8; 32],
    pub name: PeerName,
    pub tenant: Option<Name>,
}

impl Names {
    pub(super) fn of(&self, peer: PeerId) -> Option<&Known> {
        self.0.get(&peer)
    }

    /// After the end of the peer's session: who has the number next is to be asked.
    pub(super) fn forget(&mut self, peer: PeerId) {
        self.0.remove(&peer);
    }

    pub(super) async fn ask(&mut self, handle: &Handle) {
        let peers = handle.call(|node, _, _| {
            let named = node.peer_settings();
            let known = |settings: &PeerSettings| {
                let (name, tenant) = (PeerName::of(settings), settings.identity.tenant.clone());
                Known { public_key: settings.public_key, name, tenant }
            };
            named.map(|(peer, settings)| (peer, known(settings))).collect()
        });
        // Without a data thread there is nobody to ask, and soon no agent.
        self.learn(peers.await.unwrap_or_default());
    }

    fn learn(&mut self, peers: Vec<(PeerId, Known)>) {
        for (peer, known) in peers {
            match self.0.get(&peer) {
                Some(other) if other.public_key != known.public_key => {}
                Some(_) | None => drop(self.0.insert(peer, known)),
            }
        }
    }
}

/// Whose name the record of this event needs.
pub(super) fn peer_of(event: &Event) -> Option<PeerId> {
    match event {
        Event::PeerUp(peer) | Event::PeerDown(peer) | Event::PeerMoved { peer, .. } => Some(*peer),
        Event::FlowOpened(flow) | Event::FlowClosed { flow, .. } => Some(flow.peer),
        Event::Denied(denial) | Event::Observed(denial) => denial.peer,
        Event::Granted(_)
        | Event::Released(_)
        | Event::Limited(_)
        | Event::Control { .. }
        | Event::OfferChanged(_)
        | Event::IntroductionsChanged(_)
        | Event::PresencesChanged => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(number: u32, key: u8, site: &str) -> (PeerId, Known) {
        (PeerId(number), Known { public_key: [key; 32], name: Name::new(site).expect("name").into(), tenant: None })
    }

    #[test]
    fn a_number_keeps_its_peers_name_until_that_peers_end() {
        let mut names = Names::default();
        names.learn(vec![peer(0, 1, "cloud"), peer(1, 2, "depot")]);
        names.learn(vec![peer(0, 3, "factory"), peer(1, 2, "warehouse")]);
        assert_eq!(names.of(PeerId(0)).map(|known| known.name.site.as_str()), Some("cloud"));
        assert_eq!(
            names.of(PeerId(1)).map(|known| known.name.site.as_str()),
            Some("warehouse"),
            "the same peer under another name"
        );
        names.forget(PeerId(0));
        names.learn(vec![peer(0, 3, "factory")]);
        assert_eq!(names.of(PeerId(0)).map(|known| known.name.site.as_str()), Some("factory"));
    }
}
