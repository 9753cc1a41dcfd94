//! Whose signatures this site believes.

use super::{Certificate, Refusal, SignerKey};
use crate::addr::Name;
use ed25519_dalek::VerifyingKey;
use std::collections::BTreeMap;

/// An old and a new authority for each of some tenants; more is no list that anybody keeps in mind.
const AUTHORITIES_MAX: usize = 64;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TrustError {
    #[error("this is no public key of an authority, expected one as `vp-ctl authority new` prints it")]
    Key,
    #[error("this authority is trusted already, for tenant {0}")]
    Twice(Name),
    #[error("more than {AUTHORITIES_MAX} authorities")]
    TooMany,
}

/// A tenant may have several authorities, so that one can take the place of another; an authority has one tenant.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Trust(BTreeMap<SignerKey, Name>);

impl Trust {
    pub fn add(&mut self, tenant: Name, authority: SignerKey) -> Result<(), TrustError> {
        if VerifyingKey::from_bytes(&authority).map_or(true, |key| key.is_weak()) {
            return Err(TrustError::Key);
        }
        if let Some(known) = self.0.get(&authority) {
            return Err(TrustError::Twice(known.clone()));
        }
        if self.0.len() >= AUTHORITIES_MAX {
            return Err(TrustError::TooMany);
        }
        self.0.insert(authority, tenant);
        Ok(())
    }

    /// And the authority of one's own certificate, which one shows whether one trusts it or not.
    #[must_use]
    pub fn with_own(&self, own: &Certificate) -> Self {
        let mut trust = self.clone();
        // A key that is trusted for another tenant stays so.
        trust.0.entry(*own.authority()).or_insert_with(|| own.tenant().clone());
        trust
    }

    pub fn authorities(&self) -> impl Iterator<Item = (&Name, &SignerKey)> {
        self.0.iter().map(|(key, tenant)| (tenant, key))
    }

    #[must_use]
    pub fn has(&self, tenant: &Name, authority: &SignerKey) -> bool {
        self.0.get(authority) == Some(tenant)
    }

    /// Whether the authority may speak for the tenant.
    pub(super) fn judge(&self, tenant: &Name, authority: &SignerKey) -> Result<(), Refusal> {
        match self.0.get(authority) {
            None => Err(Refusal::UnknownAuthority),
            Some(trusted) if trusted != tenant => Err(Refusal::WrongTenant),
            Some(_) => Ok(()),
        }
    }
}
