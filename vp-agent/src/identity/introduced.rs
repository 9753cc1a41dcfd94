//! Peers that the file does not name: a hub introduced them, and a certificate of a trusted authority says who they are.

use super::{Identities, PublicKey, State};
use crate::config::Member;
use std::collections::{BTreeMap, BTreeSet};
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
    /// The certificate that proves a hub's claim. One at a time, as checking a signature takes a while.
    pub fn check(&self, hub: &Name, claim: &Claim, now: u64) -> Result<Certificate, Refusal> {
        let Claim { site, public_key, certificate } = claim;
        let mut state = self.state();
        let known = state.introduced.get(hub).and_then(|known| known.get(site)).map(|known| &known.certificate);
        let is_same = |known: &&Certificate| known.public_key() == public_key && known.to_bytes() == *certificate;
        if let Some(known) = known.filter(is_same) {
            return Ok(known.clone());
        }
        let State { trust, revocations, .. } = &*state;
        let checked = Certificate::verify(certificate, (site, public_key), trust, revocations, now);
        checked.inspect_err(|refusal| *state.refused.entry(*refusal).or_default() += 1)
    }

    /// Whom the hub introduces now, in place of those before; none: its claim was refused. Who is a peer of the file's stays
    /// what the file says.
    pub fn introduce(&self, hub: &Name, claimed: BTreeMap<Name, Option<Certificate>>, now: u64) {
        let mut state = self.state();
        let known = state.introduced.get(hub).cloned().unwrap_or_default();
        let missed = known.iter().filter(|(site, _)| !claimed.contains_key(*site));
        let missed = missed
            .map(|(site, known)| (site.clone(), Acquaintance { missed: known.missed.or(Some(now)), ..known.clone() }));
        let told = claimed.iter().filter_map(|(site, checked)| Some((site.clone(), checked.clone()?.into())));
        let told: BTreeMap<Name, Acquaintance> = told.chain(missed).collect();
        if told != known {
            state.introduced.insert(hub.clone(), told);
            state.assemble(&self.site, &self.key);
            (state.unsaved, state.is_due) = (true, true);
            drop(state);
            self.changed.notify_one();
        }
    }

    /// What the peer shows for itself, for others to judge.
    #[must_use]
    pub fn certificate_of(&self, site: &Name) -> Option<Vec<u8>> {
        self.state().certificate(site).map(Certificate::to_bytes)
    }
}

impl State {
    /// All peers by certificate: those of the file, and those that are introduced and whom nothing else speaks of.
    pub(super) fn assemble(&mut self, own_site: &Name, own_key: &PublicKey) {
        let mut members = self.written.clone();
        let of_file = members.values().map(|member| &member.settings.public_key).chain(self.keys.values());
        let mut keys: BTreeSet<PublicKey> = of_file.copied().collect();
        for (site, Acquaintance { certificate, .. }) in self.introduced.values().flatten() {
            let key = certificate.public_key();
            let is_taken = members.contains_key(site) || self.keys.contains_key(site) || keys.contains(key);
            if !is_taken && site != own_site && key != own_key && members.len() < BINDINGS_MAX {
                keys.insert(*key);
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
    };
    Member { file: None, certificate: certificate.clone(), settings }
}
