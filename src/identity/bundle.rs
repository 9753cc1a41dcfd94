//! All that a new gateway needs beside the programs, in one file: a token, the configuration and the unit. Who signed the token
//! signed all of it.

use super::envelope::{Envelope, Kind};
use super::{BUNDLE_BYTES_MAX, IssueError, Issuer, Refusal, Token, Validity};
use prost::Message;
use vp_proto::joining as proto;
use zeroize::Zeroizing;

/// All of its signatures hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bundle {
    envelope: Envelope,
    pub token: Token,
    /// agent.yaml.
    pub configuration: String,
    /// vp-agent.service.
    pub unit: String,
}

impl Issuer {
    pub fn bundle(&self, token: &Token, configuration: String, unit: String, now: u64) -> Result<Bundle, IssueError> {
        let payload = proto::Bundle { token: token.to_bytes().to_vec(), configuration, unit };
        let valid = Validity { not_before: now, not_after: token.not_after() };
        let bytes = self.sign(Kind::Bundle, payload.encode_to_vec(), valid)?;
        Bundle::read(&bytes).map_err(IssueError::Key)
    }
}

impl Bundle {
    pub fn read(bytes: &[u8]) -> Result<Self, Refusal> {
        let envelope = Envelope::decode(bytes, BUNDLE_BYTES_MAX)?;
        let payload = envelope.statement.payload.as_slice();
        let proto::Bundle { token, configuration, unit } =
            proto::Bundle::decode(payload).map_err(|_| Refusal::Malformed)?;
        let token = Token::read(&Zeroizing::new(token))?;
        envelope.judge(&token.terms().tenant, &token.trust()?)?;
        if envelope.statement.signer != token.envelope.statement.signer {
            return Err(Refusal::WrongKey);
        }
        envelope.verify(Kind::Bundle)?;
        Ok(Self { envelope, token, configuration, unit })
    }

    /// As it travels.
    #[must_use]
    pub fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        Zeroizing::new(self.envelope.encode())
    }
}
