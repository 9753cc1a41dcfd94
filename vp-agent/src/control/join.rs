//! To be certified and to stay so: what a joining site and its issuer say to each other. Who asks is known from the tunnel.

use super::{AskError, Control, Link, answer, offer, printable};
use crate::joining::JoinError;
use tonic::{Code, Status};
use vp::addr::PeerId;
use vp_proto::control::{JoinRequest, JoinResponse, RenewRequest, RenewResponse};

impl<L: Link> Control<L> {
    /// Asks an issuer for the certificate after this one: the certificate, or the word for why not.
    pub async fn renew(&self, peer: PeerId, serial: [u8; 16]) -> Result<Result<Vec<u8>, String>, AskError> {
        let mut client = self.client(peer).ok_or(AskError::Closed)?;
        let request = RenewRequest { serial: serial.to_vec() };
        let RenewResponse { refused, certificate } = answer(client.renew(request)).await?;
        Ok(judged(refused, certificate))
    }
}

pub fn write_join(public_key: &[u8; 32], possession: Vec<u8>) -> JoinRequest {
    JoinRequest { versions: vec![offer::VERSION], public_key: public_key.to_vec(), possession }
}

/// What an issuer said: a certificate, or the word for why not. An error: it may say something else when it is asked again.
pub fn read_join(said: Result<JoinResponse, Status>) -> Result<Result<Vec<u8>, String>, Status> {
    match said {
        Ok(JoinResponse { refused, certificate }) => Ok(judged(refused, certificate)),
        Err(status) if is_final(status.code()) => Ok(Err(printable(status.message()))),
        Err(status) => Err(status),
    }
}

fn judged(refused: String, certificate: Vec<u8>) -> Result<Vec<u8>, String> {
    if refused.is_empty() { Ok(certificate) } else { Err(printable(&refused)) }
}

fn is_final(code: Code) -> bool {
    matches!(code, Code::Unimplemented | Code::InvalidArgument | Code::FailedPrecondition | Code::PermissionDenied)
}

/// The word for why not, and the certificate, of which one is empty; or that it is to be asked again.
pub fn write_answer(answer: Result<Vec<u8>, JoinError>) -> Result<(String, Vec<u8>), Status> {
    match answer {
        Ok(certificate) => Ok((String::new(), certificate)),
        Err(JoinError::Refused(refusal)) => Ok((refusal.word().to_owned(), Vec::new())),
        Err(JoinError::NotKept(_)) => Err(Status::unavailable("it cannot be kept")),
    }
}
