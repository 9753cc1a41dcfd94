//! One token, with which a new gateway joins its tenant: a WireGuard key for that alone, whom to trust, and whom to call. An
//! issuer signs it, so that what was altered is found before anybody is called.

use super::envelope::{Envelope, Kind, Window, name};
use super::{IssueError, Issuer, Refusal, SignerKey, TOKEN_BYTES_MAX, Trust, Validity};
use crate::addr::Name;
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use prost::Message;
use std::fmt;
use vp_proto::joining as proto;
use zeroize::Zeroizing;

/// Before the base64: of this version of tokens.
const PREFIX: &str = "vp1.";
/// An old and a new authority, and room.
const AUTHORITIES_MAX: usize = 8;
/// A site attends at two hubs, or at one.
const HUBS_MAX: usize = 8;
/// A DNS name of 253 characters, and a port.
const ENDPOINT_BYTES_MAX: usize = 260;

/// All of its signatures hold, and an authority that it names itself stands behind it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    pub(super) envelope: Envelope,
    terms: Terms,
    window: Window,
}

/// What a token says. The secret is wiped from memory with it.
#[derive(Clone, PartialEq, Eq)]
pub struct Terms {
    pub tenant: Name,
    /// Which joins.
    pub site: Name,
    /// The private key that admits the site once.
    pub secret: Zeroizing<[u8; 32]>,
    /// Whom it is to trust for the tenant.
    pub authorities: Vec<SignerKey>,
    pub issuer: Gateway,
    /// The issuer itself is not among them.
    pub hubs: Vec<Gateway>,
}

/// A gateway that the joining site knows from the start.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Gateway {
    pub site: Name,
    pub public_key: [u8; 32],
    /// HOST:PORT; none: reached through a hub.
    pub endpoint: Option<String>,
    /// HOST:PORT, of a hub that is reached over TLS too.
    pub tls: Option<String>,
    pub hub: bool,
}

impl Issuer {
    pub fn token(&self, terms: &Terms, valid: Validity) -> Result<Token, IssueError> {
        let mut payload = proto::Token {
            tenant: self.tenant().to_string(),
            site: terms.site.to_string(),
            secret: terms.secret.to_vec(),
            not_before: valid.not_before,
            not_after: valid.not_after,
            authorities: terms.authorities.iter().map(|key| key.to_vec()).collect(),
            issuer: Some(terms.issuer.to_message()),
            hubs: terms.hubs.iter().map(Gateway::to_message).collect(),
        };
        let bytes = self.sign(Kind::Token, payload.encode_to_vec(), valid)?;
        drop(Zeroizing::new(std::mem::take(&mut payload.secret)));
        Token::read(&bytes).map_err(IssueError::Key)
    }
}

impl Token {
    /// As an operator gives it; what stands around it is white space.
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        let text = text.trim();
        if text.len() > PREFIX.len() + TOKEN_BYTES_MAX * 4 / 3 + 1 {
            return Err(Refusal::TooLarge);
        }
        let encoded = text.strip_prefix(PREFIX).ok_or(Refusal::Malformed)?;
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(encoded).map(Zeroizing::new).map_err(|_| Refusal::Malformed)?;
        Self::read(&bytes)
    }

    /// Whether a text is meant to be one.
    #[must_use]
    pub fn is_meant(text: &str) -> bool {
        text.starts_with(PREFIX)
    }

    pub(super) fn read(bytes: &[u8]) -> Result<Self, Refusal> {
        let envelope = Envelope::decode(bytes, TOKEN_BYTES_MAX)?;
        let payload = envelope.statement.payload.as_slice();
        let mut payload = proto::Token::decode(payload).map_err(|_| Refusal::Malformed)?;
        let secret = Zeroizing::new(std::mem::take(&mut payload.secret));
        let secret = secret.as_slice().try_into().map(Zeroizing::<[u8; 32]>::new).map_err(|_| Refusal::Malformed)?;
        let authorities = payload.authorities.iter().map(|key| key.as_slice().try_into());
        let terms = Terms {
            tenant: name(&payload.tenant)?,
            site: name(&payload.site)?,
            secret,
            authorities: authorities.collect::<Result<_, _>>().map_err(|_| Refusal::Malformed)?,
            issuer: Gateway::from_message(payload.issuer.as_ref().ok_or(Refusal::Malformed)?)?,
            hubs: payload.hubs.iter().map(Gateway::from_message).collect::<Result<_, _>>()?,
        };
        if terms.authorities.len() > AUTHORITIES_MAX || terms.hubs.len() > HUBS_MAX {
            return Err(Refusal::Malformed);
        }
        let window = Window::new(payload.not_before, payload.not_after)?;
        let token = Self { envelope, terms, window };
        let trust = token.trust()?;
        token.envelope.judge(&token.terms.tenant, &trust)?;
        token.envelope.verify(Kind::Token)?;
        Ok(token)
    }

    /// Whom the site that joins by it trusts.
    pub fn trust(&self) -> Result<Trust, Refusal> {
        let mut trust = Trust::default();
        for authority in &self.terms.authorities {
            trust.add(self.terms.tenant.clone(), *authority).map_err(|_| Refusal::Malformed)?;
        }
        Ok(trust)
    }

    /// Whether it is of use now.
    pub fn judge(&self, now: u64) -> Result<(), Refusal> {
        self.window.judge(now)?;
        self.envelope.delegation.as_ref().map_or(Ok(()), |delegation| delegation.window.judge(now))
    }

    #[must_use]
    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    #[must_use]
    pub fn not_after(&self) -> u64 {
        self.window.not_after
    }

    /// One line.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        let bytes = self.to_bytes();
        let mut text = Zeroizing::new(String::with_capacity(PREFIX.len() + 4 * bytes.len() / 3 + 4));
        text.push_str(PREFIX);
        BASE64_URL_SAFE_NO_PAD.encode_string(&*bytes, &mut text);
        text
    }

    pub(super) fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.envelope.encode())
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}, until {}", self.terms, self.window.not_after)
    }
}

/// Never the secret.
impl fmt::Debug for Terms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a token of {} for {} by {}", self.tenant, self.site, self.issuer.site)
    }
}

impl Gateway {
    fn to_message(&self) -> proto::Gateway {
        proto::Gateway {
            site: self.site.to_string(),
            public_key: self.public_key.to_vec(),
            endpoint: self.endpoint.clone().unwrap_or_default(),
            tls: self.tls.clone().unwrap_or_default(),
            hub: self.hub,
        }
    }

    fn from_message(message: &proto::Gateway) -> Result<Self, Refusal> {
        Ok(Self {
            site: name(&message.site)?,
            public_key: message.public_key.as_slice().try_into().map_err(|_| Refusal::Malformed)?,
            endpoint: endpoint(&message.endpoint)?,
            tls: endpoint(&message.tls)?,
            hub: message.hub,
        })
    }
}

/// Of characters that a configuration can quote; what it means is for whom it calls.
fn endpoint(text: &str) -> Result<Option<String>, Refusal> {
    let is_fit = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]%".contains(&byte);
    match text {
        "" => Ok(None),
        text if text.len() <= ENDPOINT_BYTES_MAX && text.bytes().all(is_fit) => Ok(Some(text.to_owned())),
        _ => Err(Refusal::Malformed),
    }
}
