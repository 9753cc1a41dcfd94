//! Denials that come in floods, summed up by the second.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use vp_proto::api::AuditRecord;

/// Different denials summed up at a time.
const KINDS_MAX: usize = 1024;

/// Denials of this second: for each kind the first one, and how many more there were.
#[derive(Default, Debug)]
pub(super) struct Denials(BTreeMap<Kind, (AuditRecord, u64)>);

/// Who was denied what, and why; source ports left out, as each try has its own.
#[derive(PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Kind {
    event: String,
    peer: Option<String>,
    service: Option<String>,
    reason: Option<String>,
    caller: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Added {
    /// To be written now.
    First,
    /// Will be in the sum.
    Alike,
    NoRoom,
}

impl Denials {
    pub(super) fn add(&mut self, record: &AuditRecord) -> Added {
        let kind = Kind::of(record);
        if let Some((_, more)) = self.0.get_mut(&kind) {
            *more += 1;
            return Added::Alike;
        }
        if self.0.len() >= KINDS_MAX {
            return Added::NoRoom;
        }
        self.0.insert(kind, (record.clone(), 0));
        Added::First
    }

    /// One record for each kind that there was more than one of.
    pub(super) fn take_sums(&mut self) -> Vec<AuditRecord> {
        let kinds = std::mem::take(&mut self.0).into_values().filter(|(_, more)| *more > 0);
        // Each of them has an id of its own.
        kinds.map(|(record, more)| AuditRecord { repeated: Some(more), flow: None, ..record }).collect()
    }
}

impl Kind {
    fn of(record: &AuditRecord) -> Self {
        let ends = record.site_view.as_ref().or(record.wire_view.as_ref());
        Self {
            event: record.event.clone(),
            peer: record.peer.clone(),
            service: record.service.clone(),
            reason: record.reason.clone(),
            caller: ends.map(|ends| without_port(&ends.caller)),
        }
    }
}

fn without_port(end: &str) -> String {
    match end.parse::<SocketAddr>() {
        Ok(address) => address.ip().to_string(),
        Err(_) => end.to_owned(),
    }
}
