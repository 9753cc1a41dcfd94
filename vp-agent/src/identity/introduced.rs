//! Peers that the file does not name: a hub introduced them, and a certificate of a trusted authority says who they are.

use super::{Identities, PublicKey, State};
use crate::config::Member;
use std::collections::BTreeMap;
use vp::addr::{Identity, Name};
use vp::hub::BINDINGS_MAX;
use vp::identity::{Certificate, Refusal};
use vp::node::PeerSettings;

/// Whom each hub introduces.
pub(super) type Introduced = BTreeMap<Name, BTreeMap<Name, Acquaintance>>;

/// A hub that was restarted knows nobody at first, and says so. Whom it does not speak of stays so many seconds; what it may
/// do, and its certificate, are judged elsewhere.
const LINGER_SECONDS: u64 = 600;

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Acquaintance {
    pub certificate: Certificate,
    /// Since when the hub has not spoken of it.
    pub missed: Option<u64>,
}

impl From<Certificate> for Acquaintance {
    fn from(certificate: Certificate) -> Self {
        Self { certificate, missed: None }
    }
}

/// What a hub says of a site.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Claim {
    pub site: Name,
    pub public_key: PublicKey,
    pub certificate: Vec<u8>,
}

impl Identities {
    /// Whom the hub introduces now, in place of those before; who is a peer of the file's stays what the file says. Those
    /// that are refused, each with its reason.
    pub fn introduce(&self, hub: &Name, claims: &[Claim], now: u64) -> Vec<(Name, Refusal)> {
        let mut state = self.state();
        let (mut told, mut refused) = (BTreeMap::new(), Vec::new());
        for Claim { site, public_key, certificate } in claims {
            let known = state.introduced.get(hub).and_then(|known| known.get(site)).map(|known| &known.certificate);
            let is_same = |known: &&Certificate| known.public_key() == public_key && known.to_bytes() == *certificate;
            if let Some(known) = known.filter(is_same) {
                told.insert(site.clone(), known.clone().into());
                continue;
            }
            let State { trust, revocations, .. } = &*state;
            match Certificate::verify(certificate, (site, public_key), trust, revocations, now) {
                Ok(certificate) => drop(told.insert(site.clone(), certificate.into())),
                Err(refusal) => {
                    *state.refused.entry(refusal).or_default() += 1;
                    refused.push((site.clone(), refusal));
                }
            }
        }
        for (site, known) in state.introduced.get(hub).into_iter().flatten() {
            if !claims.iter().any(|claim| claim.site == *site) {
                let missed = known.missed.or(Some(now));
                told.insert(site.clone(), Acquaintance { missed, ..known.clone() });
            }
        }
        if state.introduced.get(hub) != Some(&told) {
            state.introduced.insert(hub.clone(), told);
            state.assemble(&self.site, &self.key);
            (state.unsaved, state.is_due) = (true, true);
            drop(state);
            self.changed.notify_one();
        }
        refused
    }

    /// What the peer shows for itself, for others to judge.
    #[must_use]
    pub fn certificate_of(&self, site: &Name) -> Option<Vec<u8>> {
        self.state().certificate(site).map(Certificate::to_bytes)
    }
}

impl State {
    /// All peers by certificate: those of the file, those that this gateway certified, and those that are introduced and whom
    /// nothing else speaks of.
    pub(super) fn assemble(&mut self, own_site: &Name, own_key: &PublicKey) {
        let mut members = self.written.clone();
        let issued = self.issued.iter().map(|certificate| (certificate.site(), certificate));
        let introduced = self.introduced.values().flatten().map(|(site, known)| (site, &known.certificate));
        for (site, certificate) in issued.chain(introduced) {
            let key = certificate.public_key();
            let is_taken = members.contains_key(site)
                || self.keys.contains_key(site)
                || self.keys.values().any(|known| known == key)
                || members.values().any(|member| member.settings.public_key == *key);
            if !is_taken && site != own_site && key != own_key && members.len() < BINDINGS_MAX {
                members.insert(site.clone(), member(site, certificate));
            }
        }
        self.members = members;
    }

    /// Those whom no hub has spoken of for long.
    pub(super) fn forget_missed(&mut self, own_site: &Name, own_key: &PublicKey, now: u64) {
        let lingers =
            |known: &Acquaintance| known.missed.is_none_or(|since| now < since.saturating_add(LINGER_SECONDS));
        if self.introduced.values().flat_map(BTreeMap::values).all(lingers) {
            return;
        }
        self.introduced.values_mut().for_each(|sites| sites.retain(|_, known| lingers(known)));
        self.assemble(own_site, own_key);
        (self.unsaved, self.is_due) = (true, true);
    }
}

/// Reached as hubs say, and nowhere else.
fn member(site: &Name, certificate: &Certificate) -> Member {
    let settings = PeerSettings {
        identity: Identity { site: site.clone(), tenant: None, groups: Vec::new() },
        public_key: *certificate.public_key(),
        preshared_key: None,
        endpoint: None,
        carrier: None,
        keepalive_seconds: None,
        stock: false,
        hub: false,
        guest: None,
    };
    Member { file: None, certificate: certificate.clone(), settings }
}
