//! What was signed, by whom, and by what right: the part that certificates and revocations have in common.

use super::{Refusal, Revocations, Serial, SignerKey, Trust};
use crate::addr::Name;
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use prost::Message;
use vp_proto::identity as proto;

/// What a signature says that it signs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Certificate,
    Delegation,
    Revocations,
    Invitation,
    Token,
    Bundle,
}

impl Kind {
    fn prefix(self) -> &'static [u8] {
        match self {
            Self::Certificate => b"virtual-presence certificate v1\n",
            Self::Delegation => b"virtual-presence delegation v1\n",
            Self::Revocations => b"virtual-presence revocations v1\n",
            Self::Invitation => b"virtual-presence invitation v1\n",
            Self::Token => b"virtual-presence token v1\n",
            Self::Bundle => b"virtual-presence bundle v1\n",
        }
    }

    fn message(self, payload: &[u8]) -> Vec<u8> {
        [self.prefix(), payload].concat()
    }
}

/// Signed bytes, kept as they came: what a later version added to them is signed too.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Statement {
    pub payload: Vec<u8>,
    signature: [u8; 64],
    pub signer: SignerKey,
}

impl Statement {
    pub fn sign(kind: Kind, payload: Vec<u8>, key: &SigningKey) -> Self {
        let signature = key.sign(&kind.message(&payload)).to_bytes();
        Self { payload, signature, signer: key.verifying_key().to_bytes() }
    }

    pub fn from_message(message: proto::Signed) -> Result<Self, Refusal> {
        let signature = message.signature.as_slice().try_into().map_err(|_| Refusal::Malformed)?;
        let signer = message.signer.as_slice().try_into().map_err(|_| Refusal::Malformed)?;
        Ok(Self { payload: message.payload, signature, signer })
    }

    pub fn to_message(&self) -> proto::Signed {
        let Self { payload, signature, signer } = self;
        proto::Signed { payload: payload.clone(), signature: signature.to_vec(), signer: signer.to_vec() }
    }

    fn verify(&self, kind: Kind) -> Result<(), Refusal> {
        let key = VerifyingKey::from_bytes(&self.signer).map_err(|_| Refusal::BadSignature)?;
        let signature = Signature::from_bytes(&self.signature);
        key.verify_strict(&kind.message(&self.payload), &signature).map_err(|_| Refusal::BadSignature)
    }
}

/// When something holds: from the first second on, and before the second one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Window {
    pub not_before: u64,
    pub not_after: u64,
}

impl Window {
    pub fn new(not_before: u64, not_after: u64) -> Result<Self, Refusal> {
        if not_before < not_after { Ok(Self { not_before, not_after }) } else { Err(Refusal::Malformed) }
    }

    pub fn judge(self, now: u64) -> Result<(), Refusal> {
        if now.saturating_add(super::CLOCK_TOLERANCE_SECONDS) < self.not_before {
            return Err(Refusal::NotYetValid);
        }
        if now < self.not_after { Ok(()) } else { Err(Refusal::Expired) }
    }
}

/// The right of an issuer to sign for the tenant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Delegation {
    pub statement: Statement,
    pub tenant: Name,
    pub issuer: SignerKey,
    pub serial: Serial,
    pub window: Window,
}

impl Delegation {
    pub fn decode(statement: Statement) -> Result<Self, Refusal> {
        let payload = proto::Delegation::decode(statement.payload.as_slice()).map_err(|_| Refusal::Malformed)?;
        Ok(Self {
            tenant: name(&payload.tenant)?,
            issuer: payload.issuer_key.as_slice().try_into().map_err(|_| Refusal::Malformed)?,
            serial: serial(&payload.serial)?,
            window: Window::new(payload.not_before, payload.not_after)?,
            statement,
        })
    }
}

/// A statement and by what right it was signed; unchecked until [`Self::verify`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Envelope {
    pub statement: Statement,
    pub delegation: Option<Delegation>,
}

impl Envelope {
    pub fn decode(bytes: &[u8], bytes_max: usize) -> Result<Self, Refusal> {
        if bytes.len() > bytes_max {
            return Err(Refusal::TooLarge);
        }
        let chain = proto::Chain::decode(bytes).map_err(|_| Refusal::Malformed)?;
        let statement = Statement::from_message(chain.signed.ok_or(Refusal::Malformed)?)?;
        let delegation = chain.delegation.map(|signed| Delegation::decode(Statement::from_message(signed)?));
        let delegation = delegation.transpose()?;
        if delegation.as_ref().is_some_and(|delegation| delegation.issuer != statement.signer) {
            return Err(Refusal::Malformed);
        }
        Ok(Self { statement, delegation })
    }

    /// As it is passed on: what stood around the signed parts is not.
    pub fn encode(&self) -> Vec<u8> {
        let delegation = self.delegation.as_ref().map(|delegation| delegation.statement.to_message());
        proto::Chain { signed: Some(self.statement.to_message()), delegation }.encode_to_vec()
    }

    /// Who has to be trusted for this to hold.
    pub fn authority(&self) -> &SignerKey {
        self.delegation.as_ref().map_or(&self.statement.signer, |delegation| &delegation.statement.signer)
    }

    /// Whether its authority is trusted for the tenant, also in what it delegated.
    pub fn judge(&self, tenant: &Name, trust: &Trust) -> Result<(), Refusal> {
        if self.delegation.as_ref().is_some_and(|delegation| delegation.tenant != *tenant) {
            return Err(Refusal::WrongTenant);
        }
        trust.judge(tenant, self.authority())
    }

    /// Whether what it says of the tenant, under this serial and for this time, holds now for who trusts these authorities.
    pub fn holds(
        &self,
        (tenant, serial, window): (&Name, &Serial, Window),
        trust: &Trust,
        revocations: &Revocations,
        now: u64,
    ) -> Result<(), Refusal> {
        self.judge(tenant, trust)?;
        window.judge(now)?;
        if let Some(delegation) = &self.delegation {
            delegation.window.judge(now)?;
            if revocations.has_delegation(trust, tenant, &delegation.serial) {
                return Err(Refusal::Revoked);
            }
        }
        if revocations.has(trust, tenant, serial) { Err(Refusal::Revoked) } else { Ok(()) }
    }

    /// The end of this time, or that of its issuer's delegation where that comes before.
    pub fn end(&self, window: Window) -> u64 {
        let delegation = self.delegation.as_ref().map(|delegation| delegation.window.not_after);
        delegation.map_or(window.not_after, |end| end.min(window.not_after))
    }

    /// The dear part: one signature, or two.
    pub fn verify(&self, kind: Kind) -> Result<(), Refusal> {
        if let Some(delegation) = &self.delegation {
            delegation.statement.verify(Kind::Delegation)?;
        }
        self.statement.verify(kind)
    }
}

pub(super) fn name(text: &str) -> Result<Name, Refusal> {
    Name::new(text).map_err(|_| Refusal::Malformed)
}

pub(super) fn serial(bytes: &[u8]) -> Result<Serial, Refusal> {
    bytes.try_into().map(Serial).map_err(|_| Refusal::Malformed)
}
