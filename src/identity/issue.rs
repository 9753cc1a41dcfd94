//! Signing: what an authority does offline, and an issuer on its behalf. Randomness comes in as an argument.

use super::certificate::Certificate;
use super::envelope::{Delegation, Envelope, Kind, Statement, Window, name};
use super::{CERTIFICATE_BYTES_MAX, GROUPS_MAX, Invitation, List, REVOKED_MAX, Refusal, Serial, SignerKey};
use crate::addr::Name;
use ed25519_dalek::SigningKey;
use prost::Message;
use std::collections::BTreeMap;
use vp_proto::identity as proto;
use zeroize::Zeroizing;

/// What was revoked stays on the lists for so long after its end: by then no clock says that it still holds.
const PRUNE_AFTER_SECONDS: u64 = 24 * 3600;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum IssueError {
    #[error("not the file of an authority or an issuer: {0}")]
    Key(Refusal),
    #[error("an issuer may not delegate, expected the key of the authority itself")]
    NotAuthority,
    #[error("it would end before it begins")]
    Validity,
    #[error("the delegation of this issuer has ended")]
    DelegationEnded,
    #[error("more than {GROUPS_MAX} groups")]
    TooManyGroups,
    #[error("this list is of another tenant or signer, expected one that this key signed, or a new file")]
    OtherList,
    #[error("the list is full: {REVOKED_MAX} serials; take a new authority in its place")]
    Full,
    #[error("{0} is revoked already")]
    Already(Serial),
}

/// Seconds since 1970: from the first on, and before the second.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Validity {
    pub not_before: u64,
    pub not_after: u64,
}

/// What a certificate is to say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Subject {
    pub site: Name,
    pub groups: Vec<Name>,
    /// WireGuard's.
    pub public_key: [u8; 32],
}

/// Who signs for a tenant: its authority, or an issuer by its leave. The key is wiped from memory with it.
#[derive(Debug)]
pub struct Issuer {
    tenant: Name,
    key: SigningKey,
    delegation: Option<Delegation>,
}

impl Issuer {
    #[must_use]
    pub fn authority(tenant: Name, seed: &[u8; 32]) -> Self {
        Self { tenant, key: SigningKey::from_bytes(seed), delegation: None }
    }

    /// From the file's content.
    pub fn read(bytes: &[u8]) -> Result<Self, IssueError> {
        let decode = || {
            if bytes.len() > CERTIFICATE_BYTES_MAX {
                return Err(Refusal::TooLarge);
            }
            let file = proto::SigningKey::decode(bytes).map_err(|_| Refusal::Malformed)?;
            let seed = Zeroizing::new(file.seed);
            let seed = seed.as_slice().try_into().map(Zeroizing::<[u8; 32]>::new).map_err(|_| Refusal::Malformed)?;
            let (tenant, key) = (name(&file.tenant)?, SigningKey::from_bytes(&seed));
            let delegation = file.delegation.map(|signed| Delegation::decode(Statement::from_message(signed)?));
            let delegation = delegation.transpose()?;
            let fits = |of: &Delegation| of.tenant == tenant && of.issuer == key.verifying_key().to_bytes();
            if delegation.as_ref().is_some_and(|delegation| !fits(delegation)) {
                return Err(Refusal::Malformed);
            }
            Ok(Self { tenant, key, delegation })
        };
        decode().map_err(IssueError::Key)
    }

    /// For the file.
    #[must_use]
    pub fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        let delegation = self.delegation.as_ref().map(|delegation| delegation.statement.to_message());
        let mut file = proto::SigningKey { tenant: self.tenant.to_string(), seed: Vec::new(), delegation };
        file.seed = Zeroizing::new(self.key.to_bytes()).to_vec();
        let bytes = Zeroizing::new(file.encode_to_vec());
        drop(Zeroizing::new(file.seed));
        bytes
    }

    #[must_use]
    pub fn tenant(&self) -> &Name {
        &self.tenant
    }

    #[must_use]
    pub fn public_key(&self) -> SignerKey {
        self.key.verifying_key().to_bytes()
    }

    /// When its right to sign ends; the authority's never does.
    #[must_use]
    pub fn not_after(&self) -> Option<u64> {
        self.delegation.as_ref().map(|delegation| delegation.window.not_after)
    }

    /// The serial to revoke when an issuer's key may be known to others.
    #[must_use]
    pub fn delegation(&self) -> Option<Serial> {
        self.delegation.as_ref().map(|delegation| delegation.serial)
    }

    pub fn certificate(&self, of: &Subject, serial: Serial, valid: Validity) -> Result<Certificate, IssueError> {
        if of.groups.len() > GROUPS_MAX {
            return Err(IssueError::TooManyGroups);
        }
        let payload = proto::Certificate {
            tenant: self.tenant.to_string(),
            site: of.site.to_string(),
            groups: of.groups.iter().map(ToString::to_string).collect(),
            public_key: of.public_key.to_vec(),
            serial: serial.0.to_vec(),
            not_before: valid.not_before,
            not_after: valid.not_after,
        };
        let bytes = self.sign(Kind::Certificate, payload.encode_to_vec(), valid)?;
        // Names of the longest kind fit, so what does not read is its times alone.
        Certificate::read(&bytes).map_err(|_| IssueError::Validity)
    }

    /// For who has this WireGuard key, to join through this site.
    pub fn invitation(
        &self,
        site: &Name,
        public_key: [u8; 32],
        serial: Serial,
        valid: Validity,
    ) -> Result<Invitation, IssueError> {
        let payload = proto::Invitation {
            tenant: self.tenant.to_string(),
            site: site.to_string(),
            public_key: public_key.to_vec(),
            serial: serial.0.to_vec(),
            not_before: valid.not_before,
            not_after: valid.not_after,
        };
        let bytes = self.sign(Kind::Invitation, payload.encode_to_vec(), valid)?;
        Invitation::read(&bytes).map_err(|_| IssueError::Validity)
    }

    /// A new key that may sign for the tenant until its end.
    pub fn delegate(&self, seed: &[u8; 32], serial: Serial, valid: Validity) -> Result<Self, IssueError> {
        if self.delegation.is_some() {
            return Err(IssueError::NotAuthority);
        }
        let key = SigningKey::from_bytes(seed);
        let payload = proto::Delegation {
            tenant: self.tenant.to_string(),
            issuer_key: key.verifying_key().to_bytes().to_vec(),
            serial: serial.0.to_vec(),
            not_before: valid.not_before,
            not_after: valid.not_after,
        };
        let statement = Statement::sign(Kind::Delegation, payload.encode_to_vec(), &self.key);
        let delegation = Delegation::decode(statement).map_err(|_| IssueError::Validity)?;
        Ok(Self { tenant: self.tenant.clone(), key, delegation: Some(delegation) })
    }

    /// The list after `before`, with this on it too. `not_after`: when what is revoked would have ended, 0 if not known.
    pub fn revoke(&self, before: Option<&List>, serial: Serial, not_after: u64, now: u64) -> Result<List, IssueError> {
        let is_own = |list: &List| list.tenant() == &self.tenant && list.signer() == &self.public_key();
        if before.is_some_and(|list| !is_own(list)) {
            return Err(IssueError::OtherList);
        }
        let mut revoked = before.map(|list| list.revoked().clone()).unwrap_or_default();
        revoked.retain(|_, end| *end == 0 || end.saturating_add(PRUNE_AFTER_SECONDS) > now);
        if revoked.insert(serial, not_after).is_some() {
            return Err(IssueError::Already(serial));
        }
        self.list(&revoked, before.map_or(1, |list| list.version().saturating_add(1)), now)
    }

    fn list(&self, revoked: &BTreeMap<Serial, u64>, version: u64, now: u64) -> Result<List, IssueError> {
        if revoked.len() > REVOKED_MAX {
            return Err(IssueError::Full);
        }
        let entry = |(serial, end): (&Serial, &u64)| proto::Revoked { serial: serial.0.to_vec(), not_after: *end };
        let payload = proto::Revocations {
            tenant: self.tenant.to_string(),
            version,
            issued: now,
            revoked: revoked.iter().map(entry).collect(),
        };
        let now = Validity { not_before: now, not_after: now.saturating_add(1) };
        let bytes = self.sign(Kind::Revocations, payload.encode_to_vec(), now)?;
        List::read(&bytes).map_err(IssueError::Key)
    }

    /// Who has to be trusted for what it signs: the authority that delegated to it, or itself.
    #[must_use]
    pub fn authority_key(&self) -> SignerKey {
        self.delegation.as_ref().map_or_else(|| self.public_key(), |delegation| delegation.statement.signer)
    }

    /// Nothing is signed that its own delegation would not cover when it begins.
    pub(super) fn sign(&self, kind: Kind, payload: Vec<u8>, valid: Validity) -> Result<Vec<u8>, IssueError> {
        Window::new(valid.not_before, valid.not_after).map_err(|_| IssueError::Validity)?;
        if self.delegation.as_ref().is_some_and(|of| valid.not_before >= of.window.not_after) {
            return Err(IssueError::DelegationEnded);
        }
        let statement = Statement::sign(kind, payload, &self.key);
        Ok(Envelope { statement, delegation: self.delegation.clone() }.encode())
    }
}
