//! Why a certificate, an invitation or a list of revocations is not believed: a closed list, one word each.

use std::fmt;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Refusal {
    TooLarge,
    Malformed,
    UnknownAuthority,
    WrongTenant,
    WrongSite,
    WrongKey,
    NotYetValid,
    Expired,
    Revoked,
    Older,
    TooMany,
    BadSignature,
}

impl Refusal {
    pub const ALL: [Self; 12] = [
        Self::TooLarge,
        Self::Malformed,
        Self::UnknownAuthority,
        Self::WrongTenant,
        Self::WrongSite,
        Self::WrongKey,
        Self::NotYetValid,
        Self::Expired,
        Self::Revoked,
        Self::Older,
        Self::TooMany,
        Self::BadSignature,
    ];

    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::TooLarge => "too-large",
            Self::Malformed => "malformed",
            Self::UnknownAuthority => "unknown-authority",
            Self::WrongTenant => "wrong-tenant",
            Self::WrongSite => "wrong-site",
            Self::WrongKey => "wrong-key",
            Self::NotYetValid => "not-yet-valid",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
            Self::Older => "older",
            Self::TooMany => "too-many",
            Self::BadSignature => "bad-signature",
        }
    }

    /// For people: half a sentence.
    #[must_use]
    pub fn meaning(self) -> &'static str {
        match self {
            Self::TooLarge => "larger than anything that is signed may be",
            Self::Malformed => "not what the schema says",
            Self::UnknownAuthority => "the authority behind it is not in `trust`",
            Self::WrongTenant => "it is another tenant's, or its authority is trusted for another tenant",
            Self::WrongSite => "it is for another site than the peer is configured as",
            Self::WrongKey => "it is for another key than the tunnel's",
            Self::NotYetValid => "it is from the future, by more than the tolerance for clocks",
            Self::Expired => "its time, or that of its issuer's delegation, is over",
            Self::Revoked => "it, or its issuer's delegation, is on a list of revocations",
            Self::Older => "a later one is known",
            Self::TooMany => "no room is left for it: for another signer's list, or another record of the tenant",
            Self::BadSignature => "the signature does not hold",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.word(), self.meaning())
    }
}

impl std::error::Error for Refusal {}
