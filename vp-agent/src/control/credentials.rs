//! Certificates and lists of revocations, in both directions. What a peer sends is a claim, of the peer's itself and at its
//! own pace: it is judged by the node's side, and here only handed over.

use super::link::Link;
use super::server::Changes;
use super::{Notice, Notices};
use crate::identity::Presented;
use std::collections::{BTreeSet, VecDeque};
use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::sleep;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};
use tracing::debug;
use vp::addr::PeerId;
use vp::identity::{REVOCATIONS_BYTES_MAX, Refusal};
use vp_proto::control::control_client::ControlClient;
use vp_proto::control::credential::Kind;
use vp_proto::control::{Credential, CredentialsRequest};

/// The largest list and what stands around it.
const MESSAGE_BYTES_MAX: usize = REVOCATIONS_BYTES_MAX + 16;
/// After each: to decode the largest list takes a millisecond, a signature a tenth of one.
const TAKEN_PAUSE: Duration = Duration::from_millis(20);
/// After one whose signature had to be looked at and was bad: no mistake of an honest peer.
const BAD_PAUSE: Duration = Duration::from_secs(1);
/// After a stream that ended while the channel goes on.
const AGAIN_PAUSE: Duration = Duration::from_secs(5);

/// What was said of a peer's credentials, so that it is said once.
pub type Said = BTreeSet<(What, Refusal)>;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum What {
    Certificate,
    Revocations,
}

/// Who takes what the peer sends.
pub struct Taker<'a, L> {
    pub peer: PeerId,
    pub link: L,
    pub notices: Notices,
    pub said: &'a mut Said,
    /// The certificate that it presented last, during this connection.
    pub presented: Option<Vec<u8>>,
}

impl<L: Link> Taker<'_, L> {
    /// As long as the channel goes on. A peer that does not know of credentials is not asked again.
    pub async fn follow(mut self, channel: Channel) -> Infallible {
        let mut client = ControlClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        loop {
            let ended = match client.credentials(CredentialsRequest {}).await {
                Ok(response) => self.take_all(response.into_inner()).await,
                Err(status) => status,
            };
            debug!(peer = self.peer.0, %ended, "no more credentials");
            match ended.code() {
                Code::Unimplemented => return pending().await,
                Code::OutOfRange => self.refuse(What::Certificate, Refusal::TooLarge),
                _ => {}
            }
            sleep(AGAIN_PAUSE).await;
        }
    }

    async fn take_all(&mut self, mut credentials: Streaming<Credential>) -> Status {
        loop {
            let pause = match credentials.message().await {
                Ok(Some(Credential { kind: Some(kind) })) => self.take(kind).await,
                Ok(Some(Credential { kind: None })) => TAKEN_PAUSE,
                Ok(None) => return Status::ok("the peer ended the stream"),
                Err(status) => return status,
            };
            sleep(pause).await;
        }
    }

    async fn take(&mut self, kind: Kind) -> Duration {
        let (what, taken) = match kind {
            Kind::Certificate(bytes) => {
                let taken = self.link.take_certificate(self.peer, bytes.clone()).await;
                if taken.is_ok() {
                    self.present(bytes).await;
                }
                (What::Certificate, taken)
            }
            Kind::Revocations(bytes) => (What::Revocations, self.take_revocations(bytes).await),
        };
        match taken {
            Ok(is_new) => {
                // One that is known already is no sign that anything was mended.
                self.said.retain(|(said, _)| !is_new || *said != what);
                TAKEN_PAUSE
            }
            Err(refusal) => {
                self.refuse(what, refusal);
                if refusal == Refusal::BadSignature { BAD_PAUSE } else { TAKEN_PAUSE }
            }
        }
    }

    /// What the peer shows of itself is a record, if this is a hub.
    async fn present(&mut self, certificate: Vec<u8>) {
        if self.presented.as_ref() == Some(&certificate) {
            return;
        }
        let peer = self.peer;
        match self.link.present(peer, certificate.clone()).await {
            Ok(Some(place)) => self.notices.tell(Notice::Registered { peer, place }),
            Ok(None) => {}
            Err(refusal) => self.notices.tell(Notice::RegistrationRefused { peer, refusal }),
        }
        self.presented = Some(certificate);
    }

    async fn take_revocations(&mut self, bytes: Vec<u8>) -> Result<bool, Refusal> {
        let (list, is_new) = self.link.take_revocations(bytes).await?;
        if is_new {
            let (tenant, version) = (list.tenant().clone(), list.version());
            self.notices.tell(Notice::RevocationsTaken { peer: self.peer, tenant, version });
        }
        Ok(is_new)
    }

    fn refuse(&mut self, what: What, refusal: Refusal) {
        // A peer of several tenants has lists of those that are nothing to this site.
        let is_foreign = what == What::Revocations && refusal == Refusal::UnknownAuthority;
        if !is_foreign && self.said.insert((what, refusal)) {
            self.notices.tell(Notice::CredentialRefused { peer: self.peer, what, refusal });
        }
    }
}

/// One stream to the peer. It looks at what there is to present only when all before was taken.
pub struct Feed {
    pub presented: watch::Receiver<Arc<Presented>>,
    pub changes: watch::Receiver<Changes>,
    /// Number of this stream; a newer one ends it.
    pub stream: u64,
    pub sent: Arc<Presented>,
    pub next: VecDeque<Kind>,
}

impl Feed {
    pub async fn next(mut self) -> Option<(Result<Credential, Status>, Self)> {
        loop {
            if self.changes.borrow_and_update().stream != self.stream {
                return None;
            }
            if let Some(kind) = self.next.pop_front() {
                return Some((Ok(Credential { kind: Some(kind) }), self));
            }
            self.look();
            if !self.next.is_empty() {
                continue;
            }
            tokio::select! {
                changed = self.presented.changed() => changed.ok()?,
                changed = self.changes.changed() => changed.ok()?,
            }
        }
    }

    fn look(&mut self) {
        let presented = self.presented.borrow_and_update().clone();
        let certificate = presented.certificate.iter().filter(|own| self.sent.certificate.as_ref() != Some(own));
        let new = |list: &&Vec<u8>| !self.sent.revocations.contains(list);
        let revocations = presented.revocations.iter().filter(new).cloned().map(Kind::Revocations);
        self.next = certificate.cloned().map(Kind::Certificate).chain(revocations).collect();
        self.sent = presented;
    }
}
