//! Who somebody is: certificates that a tenant's authority signed, the lists of those that were taken back, and invitations. All of it
//! is judged as a function of the bytes, of whom this site trusts, of what is known to be revoked, and of the time.
//!
//! What costs little is looked at first: sizes before anything is decoded, names and times before a signature. Nothing
//! here opens a file or reads a clock, and nothing trusts a key because of what its own certificate says.

mod bundle;
mod certificate;
mod envelope;
mod invitation;
mod issue;
mod join_refusal;
mod possession;
mod refusal;
mod revocations;
#[cfg(test)]
mod tests;
pub mod text;
mod token;
#[cfg(test)]
mod token_tests;
mod trust;

pub use bundle::Bundle;
pub use certificate::{Certificate, Certified};
pub use invitation::Invitation;
pub use issue::{IssueError, Issuer, Subject, Validity};
pub use join_refusal::JoinRefusal;
pub use possession::{is_possession, possession};
pub use refusal::Refusal;
pub use revocations::{List, Revocations};
pub use token::{Gateway, Terms, Token};
pub use trust::{Trust, TrustError};

use std::fmt;

/// A certificate of the longest names with 16 groups is some 1.5 KB.
pub const CERTIFICATE_BYTES_MAX: usize = 4 * 1024;
/// 4,096 serials with their ends, 30 bytes each, and the signatures around them.
pub const REVOCATIONS_BYTES_MAX: usize = 160 * 1024;
/// Revoked and not yet expired at once. An authority that takes back more is to be replaced.
pub const REVOKED_MAX: usize = 4096;
/// Each is compared with each `allow` entry.
pub const GROUPS_MAX: usize = 16;
/// A token of the longest names with eight authorities and hubs is some 3.5 KB.
pub const TOKEN_BYTES_MAX: usize = 4 * 1024;
/// A token, a configuration as `vp-ctl join` writes it, and the unit: some 6 KB.
pub const BUNDLE_BYTES_MAX: usize = 64 * 1024;
/// What the clock of an issuer may be ahead of ours: what was signed a moment ago is good at once. No certificate outlives
/// its end for it.
pub const CLOCK_TOLERANCE_SECONDS: u64 = 60;

/// The Ed25519 public key of an authority or an issuer.
pub type SignerKey = [u8; 32];

/// Names one certificate or delegation among all.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Serial(pub [u8; 16]);

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl std::str::FromStr for Serial {
    type Err = SerialError;
    fn from_str(text: &str) -> Result<Self, SerialError> {
        if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(SerialError);
        }
        u128::from_str_radix(text, 16).map(|number| Self(number.to_be_bytes())).map_err(|_| SerialError)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("no serial, expected 32 hexadecimal digits")]
pub struct SerialError;
