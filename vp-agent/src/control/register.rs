//! What is handed to a hub to be registered, as a message and as a value. Whether it is believed is the registry's.

use super::{ANSWER, AskError, Control, Link, printable};
use crate::identity::Offered;
use crate::registry::Unregistered;
use tokio::time::timeout;
use tonic::{Code, Status};
use vp::addr::PeerId;
use vp_proto::control::register_request::Record;
use vp_proto::control::{RegisterRequest, RegisterResponse};

/// A renewal now and then, and of an issuer what it invites and lets in: each costs up to two signatures and a write to the
/// disk.
pub const REGISTRATIONS_A_SECOND: u64 = 2;
pub const REGISTRATIONS_AT_ONCE: u64 = 20;

/// Why a hub did not take something.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RegisterError {
    /// For good; the word is of the closed list of reasons.
    #[error("the hub refused it: {0}")]
    Refused(String),
    #[error("it is no hub")]
    NoHub,
    /// Later, perhaps.
    #[error(transparent)]
    Later(#[from] AskError),
}

pub fn read(request: RegisterRequest) -> Result<Offered, Status> {
    match request.record {
        Some(Record::Certificate(bytes)) => Ok(Offered::Site(bytes)),
        Some(Record::Invitation(bytes)) => Ok(Offered::Invitation(bytes)),
        None => Err(Status::invalid_argument("record: expected a certificate or an invitation")),
    }
}

fn write(offered: Offered) -> RegisterRequest {
    let record = match offered {
        Offered::Site(bytes) => Record::Certificate(bytes),
        Offered::Invitation(bytes) => Record::Invitation(bytes),
    };
    RegisterRequest { record: Some(record) }
}

pub fn answer(registered: Result<(), Unregistered>) -> Result<RegisterResponse, Status> {
    match registered {
        Ok(()) => Ok(RegisterResponse::default()),
        Err(Unregistered::Refused(refusal)) => Ok(RegisterResponse { refused: refusal.word().to_owned() }),
        // Where its store is is nobody else's affair.
        Err(Unregistered::Store(_)) => Err(Status::unavailable("this hub cannot keep it now")),
    }
}

impl<L: Link> Control<L> {
    /// Has the hub keep this, and admit whom it speaks of.
    pub async fn register(&self, hub: PeerId, offered: Offered) -> Result<(), RegisterError> {
        let mut client = self.client(hub).ok_or(AskError::Closed)?;
        let asked = timeout(ANSWER, client.register(write(offered)));
        match asked.await.map_err(|_| AskError::Silent)? {
            Ok(response) => match response.into_inner().refused.as_str() {
                "" => Ok(()),
                refused => Err(RegisterError::Refused(printable(refused))),
            },
            Err(status) if status.code() == Code::Unimplemented => Err(RegisterError::NoHub),
            Err(status) => Err(AskError::Refused(printable(status.message())).into()),
        }
    }
}
