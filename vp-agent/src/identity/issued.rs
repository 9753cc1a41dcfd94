//! Peers that this gateway itself has certified, as an issuer: no file names them.

use super::{Identities, PublicKey};
use std::path::PathBuf;
use vp::addr::Name;
use vp::identity::{Certificate, Refusal, SignerKey};

/// Letters of a key in the name of who was invited.
const INVITED_BYTES: usize = 6;

/// What a guest that has no name of its own is called: it is nobody's site.
#[must_use]
pub fn invited_name(key: &PublicKey) -> Name {
    let digits: String = key[..INVITED_BYTES].iter().map(|byte| format!("{byte:02x}")).collect();
    Name::new(&format!("invited-{digits}")).expect("letters, digits and a hyphen")
}

impl Identities {
    /// All that this issuer has certified, in place of those before.
    pub fn set_issued(&self, issued: Vec<Certificate>) {
        let mut state = self.state();
        state.issued = issued;
        state.assemble(&self.site, &self.key);
        state.is_due = true;
        drop(state);
        self.changed.notify_one();
    }

    /// Whether the file speaks of this site.
    #[must_use]
    pub fn is_written(&self, site: &Name) -> bool {
        let state = self.state();
        state.written.contains_key(site) || state.keys.contains_key(site)
    }

    /// Whether a site of another name has this key.
    #[must_use]
    pub fn has_key_of_other(&self, key: &PublicKey, site: &Name) -> bool {
        let state = self.state();
        let by_key = state.keys.iter().map(|(of, known)| (of, known));
        let members = state.members.iter().map(|(of, member)| (of, &member.settings.public_key));
        by_key.chain(members).any(|(of, known)| known == key && of != site)
    }

    /// Whom this gateway trusts for the tenant.
    #[must_use]
    pub fn authorities(&self, tenant: &Name) -> Vec<SignerKey> {
        let state = self.state();
        state.trust.authorities().filter(|(of, _)| *of == tenant).map(|(_, key)| *key).collect()
    }

    /// Whether this certificate holds now.
    pub fn verdict_of(&self, certificate: &Certificate, now: u64) -> Result<(), Refusal> {
        let state = self.state();
        certificate.judge(&state.trust, &state.revocations, now).map(|_| ())
    }

    /// This site's own certificate, and where it is kept.
    #[must_use]
    pub fn own_certificate(&self) -> (Option<Certificate>, PathBuf) {
        let state = self.state();
        (state.own.clone(), state.own_file.clone())
    }
}
