//! A site's certificate. What it says counts only while it holds: an identity comes out of [`Certificate::judge`] alone.

use super::envelope::{Envelope, Kind, Window, name, serial};
use super::{CERTIFICATE_BYTES_MAX, GROUPS_MAX, Refusal, Revocations, Serial, SignerKey, Trust};
use crate::addr::{Identity, Name};
use prost::Message;
use vp_proto::identity as proto;

/// All of its signatures hold. Whether anybody trusts who made them, and whether it holds now, is [`Self::judge`]'s.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Certificate {
    envelope: Envelope,
    tenant: Name,
    site: Name,
    groups: Vec<Name>,
    public_key: [u8; 32],
    serial: Serial,
    window: Window,
}

/// Proof that a certificate held when it was judged.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Certified {
    identity: Identity,
    public_key: [u8; 32],
    serial: Serial,
    not_after: u64,
}

impl Certificate {
    /// Whatever holds in itself, for who shows it, or has to know whose it is before it holds.
    pub fn read(bytes: &[u8]) -> Result<Self, Refusal> {
        let certificate = Self::decode(bytes)?;
        certificate.envelope.verify(Kind::Certificate)?;
        Ok(certificate)
    }

    /// What a peer presents for itself, of this site and with this key: refused before a signature is looked at, if it would
    /// not hold anyway.
    pub fn verify(
        bytes: &[u8],
        (site, public_key): (&Name, &[u8; 32]),
        trust: &Trust,
        revocations: &Revocations,
        now: u64,
    ) -> Result<Self, Refusal> {
        let certificate = Self::decode(bytes)?;
        if certificate.site != *site {
            return Err(Refusal::WrongSite);
        }
        if certificate.public_key != *public_key {
            return Err(Refusal::WrongKey);
        }
        certificate.verified(trust, revocations, now)
    }

    /// What a site of this tenant brings, its own or another's of the tenant: as [`Self::verify`].
    pub fn verify_of_tenant(
        bytes: &[u8],
        tenant: &Name,
        trust: &Trust,
        revocations: &Revocations,
        now: u64,
    ) -> Result<Self, Refusal> {
        let certificate = Self::decode(bytes)?;
        if certificate.tenant != *tenant {
            return Err(Refusal::WrongTenant);
        }
        certificate.verified(trust, revocations, now)
    }

    fn verified(self, trust: &Trust, revocations: &Revocations, now: u64) -> Result<Self, Refusal> {
        self.judge(trust, revocations, now)?;
        self.envelope.verify(Kind::Certificate)?;
        Ok(self)
    }

    fn decode(bytes: &[u8]) -> Result<Self, Refusal> {
        let envelope = Envelope::decode(bytes, CERTIFICATE_BYTES_MAX)?;
        let payload = envelope.statement.payload.as_slice();
        let payload = proto::Certificate::decode(payload).map_err(|_| Refusal::Malformed)?;
        if payload.groups.len() > GROUPS_MAX {
            return Err(Refusal::Malformed);
        }
        Ok(Self {
            tenant: name(&payload.tenant)?,
            site: name(&payload.site)?,
            groups: payload.groups.iter().map(|group| name(group)).collect::<Result<_, _>>()?,
            public_key: payload.public_key.as_slice().try_into().map_err(|_| Refusal::Malformed)?,
            serial: serial(&payload.serial)?,
            window: Window::new(payload.not_before, payload.not_after)?,
            envelope,
        })
    }

    /// Whether it holds now, for who trusts these authorities and knows of these revocations.
    pub fn judge(&self, trust: &Trust, revocations: &Revocations, now: u64) -> Result<Certified, Refusal> {
        self.envelope.holds((&self.tenant, &self.serial, self.window), trust, revocations, now)?;
        let (tenant, site, groups) = (Some(self.tenant.clone()), self.site.clone(), self.groups.clone());
        Ok(Certified {
            identity: Identity { site, tenant, groups },
            public_key: self.public_key,
            serial: self.serial,
            not_after: self.not_after(),
        })
    }

    /// Whether it was issued after the other one.
    #[must_use]
    pub fn is_newer_than(&self, other: &Self) -> bool {
        let order = |one: &Self| (one.window.not_before, one.window.not_after, one.serial);
        order(self) > order(other)
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
    pub fn site(&self) -> &Name {
        &self.site
    }

    #[must_use]
    pub fn groups(&self) -> &[Name] {
        &self.groups
    }

    #[must_use]
    pub fn public_key(&self) -> &[u8; 32] {
        &self.public_key
    }

    #[must_use]
    pub fn serial(&self) -> Serial {
        self.serial
    }

    #[must_use]
    pub fn not_before(&self) -> u64 {
        self.window.not_before
    }

    /// Its own end, or that of its issuer's delegation where that comes before.
    #[must_use]
    pub fn not_after(&self) -> u64 {
        self.envelope.end(self.window)
    }

    /// The key of the authority that has to be trusted for it.
    #[must_use]
    pub fn authority(&self) -> &SignerKey {
        self.envelope.authority()
    }

    /// The serial of the delegation that it was issued by, if the authority did not sign it itself.
    #[must_use]
    pub fn delegation(&self) -> Option<Serial> {
        self.envelope.delegation.as_ref().map(|delegation| delegation.serial)
    }
}

impl Certified {
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    #[must_use]
    pub fn public_key(&self) -> &[u8; 32] {
        &self.public_key
    }

    #[must_use]
    pub fn serial(&self) -> Serial {
        self.serial
    }

    #[must_use]
    pub fn not_after(&self) -> u64 {
        self.not_after
    }
}
