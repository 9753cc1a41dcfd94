//! An invitation: a key of WireGuard that may call one site of a tenant for a while, to join. It gives no identity.

use super::envelope::{Envelope, Kind, Window, name, serial};
use super::{CERTIFICATE_BYTES_MAX, Refusal, Revocations, Serial, SignerKey, Trust};
use crate::addr::Name;
use prost::Message;
use vp_proto::identity as proto;

/// All of its signatures hold. Whether it holds now is [`Self::judge`]'s.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Invitation {
    envelope: Envelope,
    tenant: Name,
    site: Name,
    public_key: [u8; 32],
    serial: Serial,
    window: Window,
}

impl Invitation {
    /// Whatever holds in itself.
    pub fn read(bytes: &[u8]) -> Result<Self, Refusal> {
        let invitation = Self::decode(bytes)?;
        invitation.envelope.verify(Kind::Invitation)?;
        Ok(invitation)
    }

    /// What this site of this tenant brings: refused before a signature is looked at, if it would not hold anyway.
    pub fn verify(
        bytes: &[u8],
        (tenant, site): (&Name, &Name),
        trust: &Trust,
        revocations: &Revocations,
        now: u64,
    ) -> Result<Self, Refusal> {
        let invitation = Self::decode(bytes)?;
        if invitation.tenant != *tenant {
            return Err(Refusal::WrongTenant);
        }
        if invitation.site != *site {
            return Err(Refusal::WrongSite);
        }
        invitation.judge(trust, revocations, now)?;
        invitation.envelope.verify(Kind::Invitation)?;
        Ok(invitation)
    }

    fn decode(bytes: &[u8]) -> Result<Self, Refusal> {
        let envelope = Envelope::decode(bytes, CERTIFICATE_BYTES_MAX)?;
        let payload = envelope.statement.payload.as_slice();
        let payload = proto::Invitation::decode(payload).map_err(|_| Refusal::Malformed)?;
        Ok(Self {
            tenant: name(&payload.tenant)?,
            site: name(&payload.site)?,
            public_key: payload.public_key.as_slice().try_into().map_err(|_| Refusal::Malformed)?,
            serial: serial(&payload.serial)?,
            window: Window::new(payload.not_before, payload.not_after)?,
            envelope,
        })
    }

    /// Whether it holds now, for who trusts these authorities and knows of these revocations.
    pub fn judge(&self, trust: &Trust, revocations: &Revocations, now: u64) -> Result<(), Refusal> {
        self.envelope.holds((&self.tenant, &self.serial, self.window), trust, revocations, now)
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

    /// Whom it may call.
    #[must_use]
    pub fn site(&self) -> &Name {
        &self.site
    }

    #[must_use]
    pub fn public_key(&self) -> &[u8; 32] {
        &self.public_key
    }

    #[must_use]
    pub fn serial(&self) -> Serial {
        self.serial
    }

    /// The key of the authority that has to be trusted for it.
    #[must_use]
    pub fn authority(&self) -> &SignerKey {
        self.envelope.authority()
    }

    /// Its own end, or that of its issuer's delegation where that comes before.
    #[must_use]
    pub fn not_after(&self) -> u64 {
        self.envelope.end(self.window)
    }
}
