//! Why a site is not certified, or not for longer: a closed list, one word each.

use std::fmt;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum JoinRefusal {
    Used,
    Expired,
    TakenBack,
    Malformed,
    WrongKey,
    KeyTaken,
    NotIssuer,
    NotIssuedHere,
    Revoked,
    TooEarly,
    NotLonger,
    TooMany,
}

impl JoinRefusal {
    pub const ALL: [Self; 12] = [
        Self::Used,
        Self::Expired,
        Self::TakenBack,
        Self::Malformed,
        Self::WrongKey,
        Self::KeyTaken,
        Self::NotIssuer,
        Self::NotIssuedHere,
        Self::Revoked,
        Self::TooEarly,
        Self::NotLonger,
        Self::TooMany,
    ];

    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Used => "used",
            Self::Expired => "expired",
            Self::TakenBack => "taken-back",
            Self::Malformed => "malformed",
            Self::WrongKey => "wrong-key",
            Self::KeyTaken => "key-taken",
            Self::NotIssuer => "not-issuer",
            Self::NotIssuedHere => "not-issued-here",
            Self::Revoked => "revoked",
            Self::TooEarly => "too-early",
            Self::NotLonger => "not-longer",
            Self::TooMany => "too-many",
        }
    }

    #[must_use]
    pub fn of_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|refusal| refusal.word() == word)
    }

    /// For people: half a sentence.
    #[must_use]
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Used => "it was used as often as it may be",
            Self::Expired => "its time, or that of the certificate to be renewed, is over",
            Self::TakenBack => "it was taken back",
            Self::Malformed => "the request is not what the schema says",
            Self::WrongKey => "the site did not show that it has the key that it asks for",
            Self::KeyTaken => "another site has that key already",
            Self::NotIssuer => "that site is no issuer, or not any more",
            Self::NotIssuedHere => "that issuer did not certify this site with this key",
            Self::Revoked => "the certificate to be renewed is on a list of revocations",
            Self::TooEarly => "more than two thirds of the certificate's time are left",
            Self::NotLonger => "the issuer's own right to sign ends as soon",
            Self::TooMany => "the issuer has no room for another site",
        }
    }
}

impl fmt::Display for JoinRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.word(), self.meaning())
    }
}

impl std::error::Error for JoinRefusal {}
