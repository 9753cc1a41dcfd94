//! The peers, by number, by key and by site. A guest's name is nobody's here: another may have the same.

use super::PeerSettings;
use crate::addr::{Identity, Name, PeerId};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug)]
pub(super) struct Peer {
    pub settings: PeerSettings,
    pub flows: u32,
}

impl Peer {
    /// As whom policy knows it.
    pub fn identity(&self) -> Option<&Identity> {
        self.settings.guest.is_none().then_some(&self.settings.identity)
    }
}

#[derive(Debug, Default)]
pub(super) struct Peers {
    slots: Vec<Option<Peer>>,
    by_key: BTreeMap<[u8; 32], u32>,
    by_site: BTreeSet<(Name, u32)>,
}

impl Peers {
    pub fn get(&self, peer: PeerId) -> Option<&Peer> {
        self.slots.get(peer.0 as usize)?.as_ref()
    }

    pub fn get_mut(&mut self, peer: PeerId) -> Option<&mut Peer> {
        self.slots.get_mut(peer.0 as usize)?.as_mut()
    }

    pub fn by_key(&self, key: &[u8; 32]) -> Option<PeerId> {
        self.by_key.get(key).copied().map(PeerId)
    }

    /// A peer that this site deals with.
    pub fn by_site(&self, site: &Name) -> Option<PeerId> {
        let (of, number) = self.by_site.range((site.clone(), 0)..).next()?;
        (of == site).then_some(PeerId(*number))
    }

    pub fn ids(&self) -> impl Iterator<Item = PeerId> + '_ {
        self.iter().map(|(peer, _)| peer)
    }

    pub fn iter(&self) -> impl Iterator<Item = (PeerId, &Peer)> {
        (0..).map(PeerId).zip(&self.slots).filter_map(|(number, peer)| Some((number, peer.as_ref()?)))
    }

    /// For another peer. Numbers are not used again: what an earlier peer said on its way out must never count as another's.
    pub fn next(&self) -> PeerId {
        PeerId(self.slots.len() as u32)
    }

    pub fn put(&mut self, number: PeerId, peer: Peer) {
        self.remove(number);
        let PeerId(number) = number;
        self.by_key.insert(peer.settings.public_key, number);
        if peer.settings.guest.is_none() {
            self.by_site.insert((peer.settings.identity.site.clone(), number));
        }
        while self.slots.len() <= number as usize {
            self.slots.push(None);
        }
        self.slots[number as usize] = Some(peer);
    }

    pub fn remove(&mut self, number: PeerId) -> Option<Peer> {
        let peer = self.slots.get_mut(number.0 as usize)?.take()?;
        self.by_key.remove(&peer.settings.public_key);
        self.by_site.remove(&(peer.settings.identity.site.clone(), number.0));
        Some(peer)
    }
}
