//! Records for the audit log, from wherever they come about.

use std::sync::{Mutex, PoisonError};
use tokio::sync::Notify;
use vp_proto::api::AuditRecord;

/// Until the agent takes them, at once; what finds no room is in the agent's own log alone.
const RECORDS_MAX: usize = 1024;

#[derive(Default)]
pub struct Told {
    records: Mutex<Vec<AuditRecord>>,
    pub changed: Notify,
}

impl Told {
    pub fn tell(&self, record: AuditRecord) {
        tracing::info!(
            "{}: {}{}",
            record.event,
            record.detail.as_deref().unwrap_or_default(),
            record.reason.as_deref().map(|reason| format!(" ({reason})")).unwrap_or_default()
        );
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        if records.len() < RECORDS_MAX {
            records.push(record);
        }
        self.changed.notify_one();
    }

    pub fn take(&self) -> Vec<AuditRecord> {
        std::mem::take(&mut self.records.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
