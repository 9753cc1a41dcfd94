//! What the audit log has of the registry.

use super::Agent;
use super::names::Known;
use crate::audit::Entry;
use crate::identity::Place;
use vp::identity::Refusal;
use vp_proto::api::AuditRecord;

impl Agent {
    /// What this peer had registered, or why not.
    pub(super) fn tell_registered(&self, by: Option<&Known>, registered: Result<Place, Refusal>) {
        let event = if registered.is_ok() { "registered" } else { "registration-refused" };
        let record = AuditRecord {
            event: event.to_owned(),
            site: self.site.to_string(),
            tenant: by.and_then(|by| by.tenant.as_ref()).map(ToString::to_string),
            peer: by.map(|by| by.name.site.to_string()),
            reason: registered.as_ref().err().map(|refusal| refusal.word().to_owned()),
            detail: registered.ok(),
            ..AuditRecord::default()
        };
        self.audit.write([Entry::Record(record)]);
    }
}
