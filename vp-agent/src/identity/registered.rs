//! A hub's sites that its file does not name: who was registered, as certificates and invitations say and as long as they
//! hold. Whoever stores records may lose or withhold some; it cannot make any that is believed.

use super::{Identities, PeerName, PublicKey, State};
use crate::config::Member;
use std::collections::BTreeMap;
use std::fmt::Write;
use vp::addr::{Identity, Name};
use vp::hub::BINDINGS_MAX;
use vp::identity::{Certificate, Invitation, Refusal, Revocations, Trust};
use vp::node::{Guest, PeerSettings};

/// No site can be introduced to more.
pub const SITES_A_TENANT_MAX: usize = BINDINGS_MAX;
/// Those that were not used yet, or whose time is not over.
pub const INVITATIONS_A_TENANT_MAX: usize = 256;
/// A record is thrown away so long after its end: a clock that jumps ahead by less costs nobody anything.
const KEPT_AFTER_END_SECONDS: u64 = 24 * 3600;
/// As much of an invited key as its name has; there are few, and only its tenant could make two alike.
const NAME_BYTES: usize = 6;

/// Where a record is kept, such as `site/acme/factory`: of two for one place the later one decides.
pub type Place = String;

/// One that is believed, or was when it was taken. Its signatures hold.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Record {
    Site(Certificate),
    Invitation(Invitation),
}

/// What somebody hands over, as it came.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Offered {
    Site(Vec<u8>),
    Invitation(Vec<u8>),
}

#[derive(Clone, Default, Debug)]
pub(super) struct Registered {
    records: BTreeMap<Place, Record>,
    /// Whose each key is.
    places: BTreeMap<PublicKey, Place>,
}

impl Record {
    /// Whatever holds in itself, if it is of this place.
    pub fn read(place: &str, bytes: &[u8]) -> Result<Self, Refusal> {
        let record = match place.split_once('/') {
            Some(("site", _)) => Self::Site(Certificate::read(bytes)?),
            Some(("invitation", _)) => Self::Invitation(Invitation::read(bytes)?),
            Some(_) | None => return Err(Refusal::Malformed),
        };
        if record.place() == place { Ok(record) } else { Err(Refusal::Malformed) }
    }

    #[must_use]
    pub fn place(&self) -> Place {
        match self {
            Self::Site(certificate) => format!("site/{}/{}", certificate.tenant(), certificate.site()),
            Self::Invitation(of) => format!("invitation/{}/{}", of.tenant(), hex(of.public_key())),
        }
    }

    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Site(certificate) => certificate.to_bytes(),
            Self::Invitation(invitation) => invitation.to_bytes(),
        }
    }

    #[must_use]
    pub fn tenant(&self) -> &Name {
        match self {
            Self::Site(certificate) => certificate.tenant(),
            Self::Invitation(invitation) => invitation.tenant(),
        }
    }

    fn public_key(&self) -> &PublicKey {
        match self {
            Self::Site(certificate) => certificate.public_key(),
            Self::Invitation(invitation) => invitation.public_key(),
        }
    }

    fn is_of_trusted(&self, trust: &Trust) -> bool {
        trust.has(
            self.tenant(),
            match self {
                Self::Site(certificate) => certificate.authority(),
                Self::Invitation(invitation) => invitation.authority(),
            },
        )
    }

    fn not_after(&self) -> u64 {
        match self {
            Self::Site(certificate) => certificate.not_after(),
            Self::Invitation(invitation) => invitation.not_after(),
        }
    }

    fn judge(&self, trust: &Trust, revocations: &Revocations, now: u64) -> Result<(), Refusal> {
        match self {
            Self::Site(certificate) => certificate.judge(trust, revocations, now).map(|_| ()),
            Self::Invitation(invitation) => invitation.judge(trust, revocations, now),
        }
    }

    /// Of two of one place.
    fn is_newer_than(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Site(one), Self::Site(other)) => one.is_newer_than(other),
            (Self::Invitation(one), Self::Invitation(other)) => one.is_newer_than(other),
            (Self::Site(_), Self::Invitation(_)) | (Self::Invitation(_), Self::Site(_)) => false,
        }
    }
}

impl Identities {
    /// What this site of this tenant hands over, if it is new; it counts only when it was admitted.
    pub fn judge_record(&self, by: (&Name, &Name), offered: &Offered, now: u64) -> Result<Option<Record>, Refusal> {
        let mut state = self.state();
        let judged = state.judge_record(by, offered, now);
        if let Err(refusal) = &judged {
            *state.unregistered.entry(*refusal).or_default() += 1;
        }
        judged
    }

    /// What another hub took, and a store that hubs share says. None if it is nothing for this one: known, over, or of
    /// a tenant that is none of its own.
    pub fn judge_shared(&self, record: Record, now: u64) -> Result<Option<Record>, Refusal> {
        let state = self.state();
        let is_for_us = record.is_of_trusted(&state.trust) && !state.is_over(&record, now);
        Ok((is_for_us && state.registered.accept(&record, now)?).then_some(record))
    }

    /// What comes from somebody who may register nothing.
    #[must_use]
    pub fn refuse_record(&self, refusal: Refusal) -> Refusal {
        *self.state().unregistered.entry(refusal).or_default() += 1;
        refusal
    }

    /// As what its certificate says.
    #[must_use]
    pub fn tenant_of(&self, peer: &PeerName) -> Option<Name> {
        self.state().certificate(peer).map(|certificate| certificate.tenant().clone())
    }

    /// One that is kept. False if one that is as late is known.
    pub fn admit(&self, record: Record) -> bool {
        let mut state = self.state();
        if !state.registered.put(record) {
            return false;
        }
        state.assemble(&self.site, &self.key);
        state.is_due = true;
        drop(state);
        self.changed.notify_one();
        true
    }

    #[must_use]
    pub fn record(&self, place: &str) -> Option<Record> {
        self.state().registered.records.get(place).cloned()
    }

    /// All, those included that do not hold now.
    #[must_use]
    pub fn records(&self) -> Vec<Record> {
        self.state().registered.records.values().cloned().collect()
    }

    /// Throws away what ended long ago or was taken back, and says what that was.
    pub fn clear_records(&self, now: u64) -> Vec<Place> {
        let mut state = self.state();
        let over = state.registered.records.iter().filter(|(_, record)| state.is_over(record, now));
        let over: Vec<Place> = over.map(|(place, _)| place.clone()).collect();
        if over.is_empty() {
            return over;
        }
        over.iter().for_each(|place| state.registered.remove(place));
        state.assemble(&self.site, &self.key);
        state.is_due = true;
        drop(state);
        self.changed.notify_one();
        over
    }

    /// Where the record of this key stands, if it is registered.
    #[must_use]
    pub fn place_of(&self, key: &PublicKey) -> Option<Place> {
        self.state().registered.places.get(key).cloned()
    }

    /// Whether it was taken back, or ended so long ago that it is thrown away.
    #[must_use]
    pub fn is_over(&self, record: &Record, now: u64) -> bool {
        self.state().is_over(record, now)
    }

    /// Sites and invitations that are registered.
    #[must_use]
    pub fn registered(&self) -> (usize, usize) {
        let state = self.state();
        (state.registered.of("site/").count(), state.registered.of("invitation/").count())
    }

    /// Records that were refused since the start, by reason.
    #[must_use]
    pub fn unregistered(&self) -> Vec<(Refusal, u64)> {
        let state = self.state();
        Refusal::ALL.iter().map(|refusal| (*refusal, state.unregistered.get(refusal).copied().unwrap_or(0))).collect()
    }
}

impl State {
    fn is_over(&self, record: &Record, now: u64) -> bool {
        match record.judge(&self.trust, &self.revocations, now) {
            Err(Refusal::Revoked) => true,
            Ok(()) | Err(_) => record.not_after().saturating_add(KEPT_AFTER_END_SECONDS) <= now,
        }
    }

    /// What costs least is looked at first, and others' keys only when its signatures hold.
    fn judge_record(
        &self,
        (tenant, site): (&Name, &Name),
        offered: &Offered,
        now: u64,
    ) -> Result<Option<Record>, Refusal> {
        let (trust, revocations) = (&self.trust, &self.revocations);
        let record = match offered {
            Offered::Site(bytes) => {
                Record::Site(Certificate::verify_of_tenant(bytes, tenant, trust, revocations, now)?)
            }
            Offered::Invitation(bytes) => {
                Record::Invitation(Invitation::verify(bytes, (tenant, site), trust, revocations, now)?)
            }
        };
        if let Record::Site(certificate) = &record {
            let is_other = |written: &Certificate| {
                (written.tenant(), written.site()) == (tenant, certificate.site())
                    && written.public_key() != certificate.public_key()
            };
            // The file says which key this site has.
            if self.written.values().any(|member| is_other(&member.certificate)) {
                return Err(Refusal::WrongKey);
            }
        }
        let is_new = self.registered.accept(&record, now)?;
        Ok(is_new.then_some(record))
    }

    /// The tenant that this gateway is of: its own certificate's, that which it certifies sites of, or the only one that it trusts.
    pub(super) fn own_tenant(&self) -> Option<&Name> {
        let mut trusted = self.trust.authorities().map(|(tenant, _)| tenant);
        let first = trusted.next();
        let only = first.filter(|first| trusted.all(|other| other == *first));
        self.own.as_ref().map(Certificate::tenant).or(self.issues_for.as_ref()).or(only)
    }

    /// Those that were registered and whom the file does not name: peers if they are of this gateway's tenant and their name
    /// is free here, and guests otherwise.
    pub(super) fn registered_members(&self, is_free: impl Fn(&Name) -> bool) -> Vec<(PeerName, Member)> {
        let own_tenant = self.own_tenant();
        let member = |certificate: &Certificate| {
            let (tenant, site) = (certificate.tenant(), certificate.site());
            let is_peer = own_tenant == Some(tenant) && is_free(site);
            let (name, guest) = match is_peer {
                true => (site.clone().into(), None),
                false => (PeerName::guest(site.clone(), tenant.clone()), Some(Guest::Site)),
            };
            (name, super::introduced::member(certificate, guest))
        };
        let certificates = self.registered.of("site/").filter_map(|record| match record {
            Record::Site(certificate) => Some(certificate),
            Record::Invitation(_) => None,
        });
        certificates.map(member).collect()
    }

    /// Invited keys, with what their invitations say now. A key that is a peer's already is no guest's.
    pub(super) fn invited(&self, now: u64) -> impl Iterator<Item = (&Invitation, Result<(), Refusal>)> {
        let invited = self.registered.of("invitation/").filter_map(|record| match record {
            Record::Invitation(invitation) => Some(invitation),
            Record::Site(_) => None,
        });
        let free = invited.filter(|invitation| !self.taken.contains(invitation.public_key()));
        free.map(move |invitation| (invitation, invitation.judge(&self.trust, &self.revocations, now)))
    }

    pub(super) fn invited_peers(&self, now: u64) -> impl Iterator<Item = PeerSettings> {
        self.invited(now).filter(|(_, verdict)| verdict.is_ok()).map(|(invitation, _)| invited_peer(invitation))
    }
}

impl Registered {
    /// Those whose place begins so.
    fn of<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a Record> {
        let from = self.records.range(prefix.to_owned()..);
        from.take_while(move |(place, _)| place.starts_with(prefix)).map(|(_, record)| record)
    }

    /// Whether there is room for it, none that is later, and nobody else with its key. False if it is known.
    fn accept(&self, record: &Record, now: u64) -> Result<bool, Refusal> {
        let place = record.place();
        match self.records.get(&place) {
            Some(known) if known == record => return Ok(false),
            Some(known) if !record.is_newer_than(known) => return Err(Refusal::Older),
            Some(_) => {}
            None if !self.has_room(record, now) => return Err(Refusal::TooMany),
            None => {}
        }
        match self.places.get(record.public_key()) {
            Some(other) if *other != place => Err(Refusal::WrongKey),
            Some(_) | None => Ok(true),
        }
    }

    fn has_room(&self, record: &Record, now: u64) -> bool {
        let (kind, max) = match record {
            Record::Site(_) => ("site", SITES_A_TENANT_MAX),
            Record::Invitation(_) => ("invitation", INVITATIONS_A_TENANT_MAX),
        };
        let prefix = format!("{kind}/{}/", record.tenant());
        self.of(&prefix).filter(|known| known.not_after() > now).count() < max
    }

    fn put(&mut self, record: Record) -> bool {
        let place = record.place();
        if self.records.get(&place).is_some_and(|known| !record.is_newer_than(known)) {
            return false;
        }
        self.remove(&place);
        self.places.insert(*record.public_key(), place.clone());
        self.records.insert(place, record);
        true
    }

    fn remove(&mut self, place: &str) {
        let Some(gone) = self.records.remove(place) else { return };
        if self.places.get(gone.public_key()).is_some_and(|of| of == place) {
            self.places.remove(gone.public_key());
        }
    }
}

fn invited_peer(invitation: &Invitation) -> PeerSettings {
    let site = invited_name(invitation.public_key());
    PeerSettings {
        identity: Identity { site, tenant: Some(invitation.tenant().clone()), groups: Vec::new() },
        public_key: *invitation.public_key(),
        preshared_key: None,
        endpoint: None,
        carrier: None,
        keepalive_seconds: None,
        stock: false,
        hub: false,
        guest: Some(Guest::Invited(invitation.site().clone())),
    }
}

/// What an invited key is called as long as it is no site's.
#[must_use]
pub fn invited_name(key: &PublicKey) -> Name {
    let text = format!("invited-{}", hex(&key[..NAME_BYTES]));
    // Letters, digits and a hyphen within.
    Name::new(&text).unwrap_or_else(|_| unreachable!("a name of hexadecimal digits"))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        write!(text, "{byte:02x}").ok();
        text
    })
}
