//! Peers that this gateway itself has certified, as an issuer: no file names them.

use super::{Identities, PublicKey, Record};
use std::path::PathBuf;
use vp::addr::Name;
use vp::identity::{Certificate, Refusal, SignerKey};

impl Identities {
    /// Whose sites this gateway certifies, if anybody's.
    pub fn set_issuer(&self, tenant: Option<Name>) {
        let mut state = self.state();
        state.issues_for = tenant;
        state.assemble(&self.site, &self.key);
        state.is_due = true;
        drop(state);
        self.changed.notify_one();
    }

    /// A site that it has certified is a peer as long as that holds.
    pub fn set_issued(&self, issued: impl IntoIterator<Item = Certificate>) {
        for certificate in issued {
            self.admit(Record::Site(certificate));
        }
    }

    /// Whether the file speaks of this site.
    #[must_use]
    pub fn is_written(&self, site: &Name) -> bool {
        let state = self.state();
        let name = site.clone().into();
        state.written.contains_key(&name) || state.keys.contains_key(&name)
    }

    /// Whether a site of another name has this key.
    #[must_use]
    pub fn has_key_of_other(&self, key: &PublicKey, site: &Name) -> bool {
        let state = self.state();
        let members = state.members.iter().map(|(of, member)| (of, &member.settings.public_key));
        state.keys.iter().chain(members).any(|(of, known)| known == key && of.site != *site)
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
