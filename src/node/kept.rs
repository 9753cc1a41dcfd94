//! A change of settings is made whole or not at all: what a refused one has to put back.

use super::{Node, Settings};
use crate::addr::{Leases, Name, Pool};
use crate::catalogue::{Clients, ExposedServices, Presences};
use std::collections::BTreeSet;
use std::time::Instant;

pub(super) struct Kept {
    leases: Leases,
    exposed: ExposedServices,
    presences: Presences,
    clients: Clients,
    pool: Option<Pool>,
    unmapped: BTreeSet<Name>,
    map_next: Option<Instant>,
    /// How many there were.
    events: usize,
}

impl Node {
    /// Copies cost as much again as the change itself, so there are none where it only adds, which a refusal takes back
    /// by the settings before, nor where it only takes away, which nobody refuses.
    pub(super) fn keep_for(&self, wanted: &Settings) -> Option<Kept> {
        let known = &self.settings;
        let is_simple = is_part(known, wanted) || is_part(wanted, known);
        (known.pool != wanted.pool || !is_simple).then(|| Kept {
            leases: self.leases.clone(),
            exposed: self.exposed.clone(),
            presences: self.presences.clone(),
            clients: self.clients.clone(),
            pool: self.pool.clone(),
            unmapped: self.unmapped.clone(),
            map_next: self.map_next,
            events: self.events.len(),
        })
    }

    /// After a refusal, with the settings of before in force again.
    pub(super) fn put_back(&mut self, kept: Option<Kept>, now: Instant) {
        let Some(kept) = kept else {
            let known = self.settings.mappings.clone();
            // What was in force had what it needed, and still has.
            self.apply_addresses(&known, now).ok();
            return;
        };
        self.leases = kept.leases;
        self.exposed = kept.exposed;
        self.presences = kept.presences;
        self.clients = kept.clients;
        self.pool = kept.pool;
        self.unmapped = kept.unmapped;
        self.map_next = kept.map_next;
        self.events.truncate(kept.events);
    }
}

/// Whether all that wants addresses in `one` is in `other` too, in the same order.
fn is_part(one: &Settings, other: &Settings) -> bool {
    is_within(&one.exposures, &other.exposures)
        && is_within(&one.mappings, &other.mappings)
        && is_within(&one.clients, &other.clients)
}

fn is_within<T: PartialEq>(some: &[T], all: &[T]) -> bool {
    let mut all = all.iter();
    some.iter().all(|one| all.any(|other| other == one))
}
