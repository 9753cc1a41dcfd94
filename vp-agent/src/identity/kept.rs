//! What is kept of certified identity between runs: the certificates that peers presented, and lists of revocations.

use super::Identities;
use crate::state::{KeptIdentity, StateDir, StateError};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use vp::identity::{Certificate, Refusal, Revocations};

#[derive(Default, Debug)]
pub struct Kept {
    pub certificates: Vec<Certificate>,
    pub revocations: Revocations,
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
            let certificates = state.learnt.values().map(|certificate| text(&certificate.to_bytes()));
            let revocations = state.revocations.all().map(|list| text(&list.to_bytes()));
            KeptIdentity::new(certificates.collect(), revocations.collect())
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
