//! An answer as it goes out: never larger than its client takes.

use super::counts::{Kind, Outcome};
use hickory_proto::op::Message;

pub struct Reply {
    message: Message,
    bytes_max: u16,
    pub kind: Kind,
    pub outcome: Outcome,
}

impl Reply {
    #[must_use]
    pub fn new(message: Message, bytes_max: u16, kind: Kind, outcome: Outcome) -> Self {
        Self { message, bytes_max, kind, outcome }
    }

    /// What does not fit is left out, and said to be (RFC 2181 section 9): the client asks again by TCP.
    #[must_use]
    pub fn to_bytes(&self) -> Option<Vec<u8>> {
        let whole = self.message.to_vec().ok()?;
        if whole.len() <= usize::from(self.bytes_max) {
            return Some(whole);
        }
        let cut = self.message.truncate().to_vec().ok()?;
        (cut.len() <= usize::from(self.bytes_max)).then_some(cut)
    }
}
