//! What is kept of certified identity between runs: the certificates that peers presented, lists of revocations, and whom hubs
//! introduced.

use super::Identities;
use super::introduced::Introduced;
use crate::state::{KeptIdentity, StateDir, StateError};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use vp::addr::Name;
use vp::identity::{Certificate, Refusal, Revocations};

#[derive(Default, Debug)]
pub struct Kept {
    pub certificates: Vec<Certificate>,
    pub revocations: Revocations,
    pub(super) introduced: Introduced,
}

impl Kept {
    /// What does not read is refused: a list that is lost would let in what was revoked.
    pub fn load(state: &StateDir) -> Result<Self, StateError> {
        let kept = KeptIdentity::load(state)?;
        let mut loaded = Self::default();
        for text in &kept.certificates {
            let certificate = bytes(text).and_then(|bytes| Certificate::read(&bytes));
            loaded.certificates.push(certificate.map_err(|refusal| KeptIdentity::damaged(state, refusal.to_string()))?);
        }
        for text in &kept.revocations {
            let restored = bytes(text).and_then(|bytes| loaded.revocations.restore(&bytes));
            restored.map_err(|refusal| KeptIdentity::damaged(state, refusal.to_string()))?;
        }
        for (hub, texts) in &kept.introduced {
            let hub = Name::new(hub).map_err(|error| KeptIdentity::damaged(state, error.to_string()))?;
            let of_hub = loaded.introduced.entry(hub).or_default();
            for text in texts {
                let certificate = bytes(text).and_then(|bytes| Certificate::read(&bytes));
                let certificate = certificate.map_err(|refusal| KeptIdentity::damaged(state, refusal.to_string()))?;
                of_hub.insert(certificate.site().clone(), certificate.into());
            }
        }
        Ok(loaded)
    }
}

impl Identities {
    /// Writes what is new. What could not be written is tried again the next time.
    pub fn keep(&self, state_dir: &StateDir) -> Result<(), StateError> {
        let kept = {
            let mut state = self.state();
            if !std::mem::take(&mut state.unsaved) {
                return Ok(());
            }
            // What guests present is in the registry.
            let learnt = state.learnt.iter().filter(|(peer, _)| peer.tenant.is_none());
            let certificates = learnt.map(|(_, certificate)| text(&certificate.to_bytes()));
            let revocations = state.revocations.all().map(|list| text(&list.to_bytes()));
            let introduced = state.introduced.iter().map(|(hub, sites)| {
                (hub.to_string(), sites.values().map(|known| text(&known.certificate.to_bytes())).collect())
            });
            KeptIdentity::new(certificates.collect(), revocations.collect(), introduced.collect())
        };
        kept.save(state_dir).inspect_err(|_| self.state().unsaved = true)
    }
}

fn text(bytes: &[u8]) -> String {
    BASE64_STANDARD.encode(bytes)
}

fn bytes(text: &str) -> Result<Vec<u8>, Refusal> {
    BASE64_STANDARD.decode(text).map_err(|_| Refusal::Malformed)
}
