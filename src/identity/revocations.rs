//! What was taken back. Each signer has one list, the latest, and speaks for itself: a list never hides another's, and an
//! issuer that lost its right takes its list with it.

use super::envelope::{Envelope, Kind, name, serial};
use super::{CLOCK_TOLERANCE_SECONDS, REVOCATIONS_BYTES_MAX, REVOKED_MAX, Refusal, Serial, SignerKey, Trust};
use crate::addr::Name;
use prost::Message;
use std::collections::BTreeMap;
use vp_proto::identity as proto;

/// Lists of authorities, and as many of issuers. No more authorities can be trusted, so theirs always have room.
const LISTS_MAX: usize = 64;

/// One signer's list; its signatures hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct List {
    envelope: Envelope,
    tenant: Name,
    version: u64,
    issued: u64,
    /// With the end of what was revoked, 0 where that is not known.
    revoked: BTreeMap<Serial, u64>,
}

/// All lists that are known. Whether one counts depends on who is trusted when it is asked.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Revocations(BTreeMap<(Name, SignerKey), List>);

impl List {
    pub fn read(bytes: &[u8]) -> Result<Self, Refusal> {
        let list = Self::decode(bytes)?;
        list.envelope.verify(Kind::Revocations)?;
        Ok(list)
    }

    /// An entry of two bytes becomes one of 32 in memory, so the largest message becomes 2.6 MB, for a moment.
    fn decode(bytes: &[u8]) -> Result<Self, Refusal> {
        let envelope = Envelope::decode(bytes, REVOCATIONS_BYTES_MAX)?;
        let payload = envelope.statement.payload.as_slice();
        let payload = proto::Revocations::decode(payload).map_err(|_| Refusal::Malformed)?;
        if payload.revoked.len() > REVOKED_MAX || payload.version == 0 {
            return Err(Refusal::Malformed);
        }
        if !payload.revoked.is_sorted_by(|a, b| a.serial < b.serial) {
            return Err(Refusal::Malformed);
        }
        let entry = |revoked: &proto::Revoked| Ok((serial(&revoked.serial)?, revoked.not_after));
        Ok(Self {
            tenant: name(&payload.tenant)?,
            version: payload.version,
            issued: payload.issued,
            revoked: payload.revoked.iter().map(entry).collect::<Result<_, Refusal>>()?,
            envelope,
        })
    }

    fn key(&self) -> (Name, SignerKey) {
        (self.tenant.clone(), self.envelope.statement.signer)
    }

    fn is_of_authority(&self) -> bool {
        self.envelope.delegation.is_none()
    }

    /// As it travels.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.envelope.encode()
    }

    #[must_use]
    pub fn tenant(&self) -> &Name {
        &self.tenant
    }

    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    #[must_use]
    pub fn issued(&self) -> u64 {
        self.issued
    }

    #[must_use]
    pub fn signer(&self) -> &SignerKey {
        &self.envelope.statement.signer
    }

    #[must_use]
    pub fn revoked(&self) -> &BTreeMap<Serial, u64> {
        &self.revoked
    }
}

impl Revocations {
    /// Takes a list that somebody gave. What it was, and false if it is known already.
    pub fn add(&mut self, bytes: &[u8], trust: &Trust, now: u64) -> Result<(List, bool), Refusal> {
        let list = List::decode(bytes)?;
        list.envelope.judge(&list.tenant, trust)?;
        if list.issued > now.saturating_add(CLOCK_TOLERANCE_SECONDS) {
            return Err(Refusal::NotYetValid);
        }
        if let Some(known) = self.0.get(&list.key()) {
            if *known == list {
                return Ok((list, false));
            }
            if known.version >= list.version {
                return Err(Refusal::Older);
            }
        }
        if let Some(delegation) = &list.envelope.delegation {
            delegation.window.judge(now)?;
            if self.has_delegation(trust, &list.tenant, &delegation.serial) {
                return Err(Refusal::Revoked);
            }
        }
        list.envelope.verify(Kind::Revocations)?;
        self.make_room(&list, trust)?;
        self.0.insert(list.key(), list.clone());
        Ok((list, true))
    }

    /// Takes one that was known before a restart: what was taken back stays so, also when the right of its issuer, or the
    /// trust in its authority, has ended meanwhile.
    pub fn restore(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        let list = List::read(bytes)?;
        if self.0.get(&list.key()).is_none_or(|known| known.version < list.version) {
            self.make_room(&list, &Trust::default())?;
            self.0.insert(list.key(), list);
        }
        Ok(())
    }

    /// All, to be kept.
    pub fn all(&self) -> impl Iterator<Item = &List> {
        self.0.values()
    }

    /// Those that count for who trusts these authorities.
    pub fn in_force<'a>(&'a self, trust: &'a Trust) -> impl Iterator<Item = &'a List> {
        self.0.values().filter(|list| self.counts(list, trust))
    }

    pub(super) fn has(&self, trust: &Trust, tenant: &Name, serial: &Serial) -> bool {
        let mut lists = self.0.values().filter(|list| list.tenant == *tenant && list.revoked.contains_key(serial));
        lists.any(|list| self.counts(list, trust))
    }

    /// Only authorities take delegations back, or two issuers could each silence the other.
    pub(super) fn has_delegation(&self, trust: &Trust, tenant: &Name, serial: &Serial) -> bool {
        let mut lists = self.0.values().filter(|list| list.tenant == *tenant && list.is_of_authority());
        lists.any(|list| list.revoked.contains_key(serial) && list.envelope.judge(tenant, trust).is_ok())
    }

    fn counts(&self, list: &List, trust: &Trust) -> bool {
        let delegation = list.envelope.delegation.as_ref();
        let is_revoked = delegation.is_some_and(|of| self.has_delegation(trust, &list.tenant, &of.serial));
        !is_revoked && list.envelope.judge(&list.tenant, trust).is_ok()
    }

    /// Lists of those who are trusted no more make room for others of their kind.
    fn make_room(&mut self, list: &List, trust: &Trust) -> Result<(), Refusal> {
        let alike = |known: &&List| known.is_of_authority() == list.is_of_authority();
        if self.0.contains_key(&list.key()) || self.0.values().filter(alike).count() < LISTS_MAX {
            return Ok(());
        }
        let silent = self.0.values().filter(alike).find(|known| !self.counts(known, trust));
        let silent = silent.map(List::key).ok_or(Refusal::TooMany)?;
        self.0.remove(&silent);
        Ok(())
    }
}
