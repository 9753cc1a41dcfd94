//! Certificates, lists, signing keys and bundles as text for files: a line that names what it is, base64, a line that ends it.

use super::{BUNDLE_BYTES_MAX, CERTIFICATE_BYTES_MAX, REVOCATIONS_BYTES_MAX};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use std::fmt;
use zeroize::Zeroizing;

/// 64 characters of base64, as in PEM (RFC 7468 section 2).
const LINE_BYTES: usize = 48;
/// No text is larger: base64 of the largest list with its line ends, and room for a remark above.
pub const TEXT_BYTES_MAX: usize = 2 * REVOCATIONS_BYTES_MAX;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Label {
    Certificate,
    Revocations,
    SigningKey,
    Bundle,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum TextError {
    #[error("there is no line \"-----BEGIN VP {0}-----\", expected text as vp-ctl writes it")]
    NoBegin(Label),
    #[error("there is no line \"-----END VP {0}-----\": it is cut short")]
    NoEnd(Label),
    #[error("what stands in it is no base64")]
    NotBase64,
    #[error("it is too large")]
    TooLarge,
}

impl Label {
    fn bytes_max(self) -> usize {
        match self {
            Self::Certificate | Self::SigningKey => CERTIFICATE_BYTES_MAX,
            Self::Revocations => REVOCATIONS_BYTES_MAX,
            Self::Bundle => BUNDLE_BYTES_MAX,
        }
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Certificate => "CERTIFICATE",
            Self::Revocations => "REVOCATIONS",
            Self::SigningKey => "SIGNING KEY",
            Self::Bundle => "BUNDLE",
        })
    }
}

/// Wiped from memory after use, and never moved within it: it may be a key.
#[must_use]
pub fn encode(label: Label, bytes: &[u8]) -> Zeroizing<String> {
    const FRAME_BYTES: usize = 100;
    let mut text = Zeroizing::new(String::with_capacity(FRAME_BYTES + 2 * bytes.len()));
    text.push_str(&format!("-----BEGIN VP {label}-----\n"));
    for line in bytes.chunks(LINE_BYTES) {
        BASE64_STANDARD.encode_string(line, &mut text);
        text.push('\n');
    }
    text.push_str(&format!("-----END VP {label}-----\n"));
    text
}

/// What stands before the first line is for people.
pub fn decode(label: Label, text: &str) -> Result<Zeroizing<Vec<u8>>, TextError> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(TextError::TooLarge);
    }
    let (_, rest) = text.split_once(&format!("-----BEGIN VP {label}-----")).ok_or(TextError::NoBegin(label))?;
    let (body, _) = rest.split_once(&format!("-----END VP {label}-----")).ok_or(TextError::NoEnd(label))?;
    let mut joined = Zeroizing::new(String::with_capacity(body.len()));
    joined.extend(body.split_ascii_whitespace());
    let bytes = BASE64_STANDARD.decode(joined.as_bytes()).map(Zeroizing::new).map_err(|_| TextError::NotBase64)?;
    if bytes.len() > label.bytes_max() { Err(TextError::TooLarge) } else { Ok(bytes) }
}
