//! What the audit log has of the registry.

use super::Agent;
use super::names::Known;
use crate::audit::Entry;
use crate::config::Config;
use crate::identity::Place;
use std::collections::BTreeSet;
use vp::identity::Refusal;
use vp_proto::api::AuditRecord;

impl Agent {
    /// Those whom the file does not name any more, and who stay all the same.
    pub(super) fn still_registered(&self, before: &Config, now: &Config) -> Vec<String> {
        let known: BTreeSet<[u8; 32]> = keys(now).collect();
        let gone = keys(before).filter(|key| self.registry.is_some() && !known.contains(key));
        let places = gone.filter_map(|key| self.identities.place_of(&key));
        places.map(|place| format!("{place} stays: it is registered; to end that revoke its certificate")).collect()
    }

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

fn keys(config: &Config) -> impl Iterator<Item = [u8; 32]> {
    let members = config.credentials.members.iter().map(|member| &member.settings);
    config.settings.peers.iter().chain(members).map(|peer| peer.public_key)
}
