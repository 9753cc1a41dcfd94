//! The issuer's side. What it decides is kept before it is told, and survives a restart. All of it may wait for the disk.

use super::book::{Admission, Book, Invited, Issued, OPEN_MAX, USES_MAX};
use super::{PublicKey, Told, id};
use crate::config::values::is_weak;
use crate::identity::{Identities, Offered, invited_name};
use crate::state::{StateDir, StateError};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rand_core::{OsRng, RngCore};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;
use vp::addr::{Identity, Name};
use vp::identity::text::{Label, encode};
use vp::identity::{
    Certificate, Gateway, IssueError, Issuer, JoinRefusal, Refusal, Serial, Subject, Terms, Token, Validity,
    is_possession,
};
use vp::node::{Guest, PeerSettings};
use vp_proto::api::{self, AuditRecord, Finding};
use vp_proto::time::rfc3339;
use x25519_dalek::{PublicKey as X25519, StaticSecret};
use zeroize::Zeroizing;

/// Of a certificate's time may have gone before it is renewed, at least.
const RENEWED_AFTER_PART: u64 = 3;
/// A refusal of one invitation for one reason is a line of the audit log once in so many seconds: who was refused may go on.
const REFUSED_AGAIN_SECONDS: u64 = 60;
/// An invitation for a year is a key that lies about.
const EXPIRES_SECONDS_MAX: u64 = 366 * 24 * 3600;
/// The right to sign ends soon when so much is left: time enough to fetch the authority from where it is kept.
const DELEGATION_SOON_SECONDS: u64 = 3 * 24 * 3600;

const NO_ISSUER: &str = "this gateway is no issuer, expected `issuer:` in its configuration";

/// What the file says of this gateway as an issuer.
#[derive(Debug)]
pub struct IssuerSettings {
    pub file: PathBuf,
    pub issuer: Issuer,
    /// Where sites that join reach this gateway.
    pub endpoint: Option<String>,
    /// The same over TLS, if it is a hub.
    pub tls: Option<String>,
}

pub struct Issuing {
    site: Name,
    key: StaticSecret,
    settings: Mutex<Option<Arc<IssuerSettings>>>,
    book: Mutex<Book>,
    /// Held by whoever changes the book, from its reading to its writing.
    changing: Mutex<()>,
    state: Arc<StateDir>,
    identities: Arc<Identities>,
    told: Arc<Told>,
    /// By invitation or site: when it was last told that this was refused.
    refused_at: Mutex<BTreeMap<(String, JoinRefusal), u64>>,
    counts: Mutex<Counts>,
    /// There are other guests than before.
    pub changed: Notify,
    /// There is something that hubs do not know yet.
    pub issued: Notify,
}

/// Since the start.
#[derive(Clone, Default, Debug)]
pub struct Counts {
    pub joined: u64,
    pub renewed: u64,
    pub refused: BTreeMap<JoinRefusal, u64>,
}

/// What an operator wants of an invitation.
#[derive(Debug)]
pub struct Order {
    pub site: Name,
    pub groups: Vec<Name>,
    pub expires_seconds: u64,
    pub uses: u32,
    pub valid_seconds: u64,
}

/// How sites reach this gateway beside its own endpoint.
#[derive(Debug)]
pub struct Way {
    pub is_hub: bool,
    pub hubs: Vec<Gateway>,
}

#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error(transparent)]
    Refused(#[from] JoinRefusal),
    #[error("{0}")]
    NotKept(#[from] StateError),
}

impl Issuing {
    pub fn new(
        site: Name,
        key: StaticSecret,
        state: Arc<StateDir>,
        identities: Arc<Identities>,
        told: Arc<Told>,
    ) -> Result<Self, StateError> {
        let book = Book::load(&state)?;
        let issuing = Self {
            site,
            key,
            settings: Mutex::default(),
            book: Mutex::new(book),
            changing: Mutex::default(),
            state,
            identities,
            told,
            refused_at: Mutex::default(),
            counts: Mutex::default(),
            changed: Notify::new(),
            issued: Notify::new(),
        };
        issuing.show_issued();
        Ok(issuing)
    }

    /// This site.
    #[must_use]
    pub fn site(&self) -> &Name {
        &self.site
    }

    /// Whose sites it certifies, if anybody's.
    #[must_use]
    pub fn tenant(&self) -> Option<Name> {
        self.settings().map(|settings| settings.issuer.tenant().clone())
    }

    /// What the file says now. Whom it invited stays invited as long as it is an issuer at all.
    pub fn configure(&self, settings: Option<Arc<IssuerSettings>>) {
        self.identities.set_issuer(settings.as_ref().map(|settings| settings.issuer.tenant().clone()));
        *lock(&self.settings) = settings;
        self.changed.notify_one();
    }

    /// A token for the site, and its invitation kept.
    pub fn invite(&self, order: &Order, way: Way, now: u64) -> Result<(Token, api::Invitation), String> {
        let settings = self.settings().ok_or(NO_ISSUER)?;
        let Order { site, groups, expires_seconds, uses, valid_seconds } = order;
        if *site == self.site || self.identities.is_written(site) {
            return Err(format!("{site} is in the configuration of this gateway already, expected another site"));
        }
        if !(1..=USES_MAX).contains(uses) || !(1..=EXPIRES_SECONDS_MAX).contains(expires_seconds) {
            return Err(format!("expected 1 to {USES_MAX} uses within at most 366 days"));
        }
        if settings.endpoint.is_none() && way.hubs.is_empty() {
            return Err(
                "sites cannot reach this gateway: expected `issuer.endpoint`, or a hub among its peers".to_owned()
            );
        }
        let secret = random();
        let invited = Invited {
            public_key: X25519::from(&StaticSecret::from(*secret)).to_bytes(),
            site: site.clone(),
            groups: groups.clone(),
            valid_seconds: *valid_seconds,
            made: now,
            ends: now.saturating_add(*expires_seconds),
            uses: *uses,
            joined: Vec::new(),
            spent: None,
            hubs: BTreeSet::new(),
        };
        let token = self.token(&settings, &invited, secret, way).map_err(|error| error.to_string())?;
        // What cannot be signed is said now, and not to who joins.
        let signed = self.certified(&settings.issuer, &invited.public_key, (site, groups), *valid_seconds, now);
        signed.map_err(|error| error.to_string())?;
        let shown = shown(&invited);
        let kept = self.change(|book| {
            if book.invite(invited) { Ok(()) } else { Err(format!("{OPEN_MAX} invitations are open already")) }
        });
        match kept {
            Ok(()) => {}
            Err(Changing::Refused(refused)) => return Err(refused),
            Err(Changing::NotKept(error)) => return Err(error.to_string()),
        }
        let (groups, end) = (shown.groups.join(","), &shown.expires);
        let detail = format!("{}: {site}, groups [{groups}], until {end}, uses {uses}", shown.id);
        self.tell("invited", Some(site.as_str()), None, detail);
        self.changed.notify_one();
        Ok((token, shown))
    }

    fn token(
        &self,
        settings: &IssuerSettings,
        invited: &Invited,
        secret: Zeroizing<[u8; 32]>,
        way: Way,
    ) -> Result<Token, IssueError> {
        let tenant = settings.issuer.tenant();
        let issuer = Gateway {
            site: self.site.clone(),
            public_key: X25519::from(&self.key).to_bytes(),
            endpoint: settings.endpoint.clone(),
            tls: settings.tls.clone(),
            hub: way.is_hub,
        };
        let authorities = self.identities.authorities(tenant);
        let (tenant, site) = (tenant.clone(), invited.site.clone());
        let terms = Terms { tenant, site, secret, authorities, issuer, hubs: way.hubs };
        settings.issuer.token(&terms, Validity { not_before: invited.made, not_after: invited.ends })
    }

    /// A token of this issuer's and the rest that a new gateway needs, as one text.
    pub fn bundle(&self, request: api::BundleRequest, now: u64) -> Result<Zeroizing<String>, String> {
        let settings = self.settings().ok_or(NO_ISSUER)?;
        let api::BundleRequest { token, configuration, unit } = request;
        let token = Token::parse(&Zeroizing::new(token)).map_err(|refusal| format!("token: {refusal}"))?;
        let bundle = settings.issuer.bundle(&token, configuration, unit, now).map_err(|error| error.to_string())?;
        Ok(encode(Label::Bundle, &bundle.to_bytes()))
    }

    /// Certifies who has the invitation of this key.
    pub fn join(&self, invited: &PublicKey, key: &[u8], proof: &[u8], now: u64) -> Result<Vec<u8>, JoinError> {
        let joined = self.try_join(invited, key, proof, now);
        match &joined {
            Ok(_) => {}
            Err(JoinError::Refused(refusal)) => {
                let site = lock(&self.book).invited(invited).map(|invited| invited.site.to_string());
                self.refuse("join-refused", &id(invited), site.as_deref(), *refusal, now);
            }
            Err(JoinError::NotKept(error)) => tracing::warn!("nobody can join: {error}"),
        }
        joined
    }

    fn try_join(&self, invited: &PublicKey, key: &[u8], proof: &[u8], now: u64) -> Result<Vec<u8>, JoinError> {
        let settings = self.settings().ok_or(JoinRefusal::NotIssuer)?;
        let key: PublicKey = key.try_into().map_err(|_| JoinRefusal::Malformed)?;
        if is_weak(key) || !is_possession(proof, &self.key, &key, invited, &key) {
            return Err(JoinRefusal::WrongKey.into());
        }
        let joined = self.change(|book| {
            let (site, groups, valid_seconds) = match book.admission(invited, &key, now)? {
                Admission::Again(certificate) => return Ok((*certificate, false)),
                Admission::New { site, groups, valid_seconds } => (site, groups, valid_seconds),
            };
            if self.identities.has_key_of_other(&key, &site) || key == X25519::from(&self.key).to_bytes() {
                return Err(JoinRefusal::KeyTaken);
            }
            let certificate = self.certified(&settings.issuer, &key, (&site, &groups), valid_seconds, now);
            let certificate = certificate.map_err(|_| JoinRefusal::NotIssuer)?;
            book.joined(invited, Issued::new(certificate.clone(), valid_seconds), now);
            Ok((certificate, true))
        });
        let (certificate, is_new) = joined?;
        if is_new {
            lock(&self.counts).joined += 1;
            let (serial, end) = (certificate.serial(), rfc3339(certificate.not_after()));
            let detail = format!("{}: serial {serial}, until {end}", id(invited));
            self.tell("joined", Some(certificate.site().as_str()), None, detail);
            self.show_issued();
            self.changed.notify_one();
            self.issued.notify_one();
        }
        Ok(certificate.to_bytes())
    }

    /// What this site has, for longer. `serial` is of the certificate that it has.
    pub fn renew(&self, site: &Name, key: &PublicKey, serial: &[u8], now: u64) -> Result<Vec<u8>, JoinError> {
        let renewed = self.try_renew(site, key, serial, now);
        match &renewed {
            Ok(_) => {}
            Err(JoinError::Refused(refusal)) => {
                self.refuse("renewal-refused", site.as_str(), Some(site.as_str()), *refusal, now);
            }
            Err(JoinError::NotKept(error)) => tracing::warn!("nothing can be renewed: {error}"),
        }
        renewed
    }

    fn try_renew(&self, site: &Name, key: &PublicKey, serial: &[u8], now: u64) -> Result<Vec<u8>, JoinError> {
        let settings = self.settings().ok_or(JoinRefusal::NotIssuer)?;
        let serial = Serial(serial.try_into().map_err(|_| JoinRefusal::Malformed)?);
        let renewed = self.change(|book| {
            let Issued { certificate, valid_seconds, .. } = book
                .issued(site)
                .filter(|known| known.certificate.public_key() == key)
                .cloned()
                .ok_or(JoinRefusal::NotIssuedHere)?;
            match self.identities.verdict_of(&certificate, now) {
                Ok(()) => {}
                Err(Refusal::Revoked) => return Err(JoinRefusal::Revoked),
                Err(_) => return Err(JoinRefusal::Expired),
            }
            if !book.is_last(site, serial) {
                return Ok((certificate, false));
            }
            let all = certificate.not_after().saturating_sub(certificate.not_before());
            if now < certificate.not_before().saturating_add(all / RENEWED_AFTER_PART) {
                return Err(JoinRefusal::TooEarly);
            }
            let subject = (certificate.site(), certificate.groups());
            let renewed = self.certified(&settings.issuer, key, subject, valid_seconds, now);
            let renewed = renewed.map_err(|_| JoinRefusal::NotLonger)?;
            if renewed.not_after() <= certificate.not_after() {
                return Err(JoinRefusal::NotLonger);
            }
            book.put(Issued::new(renewed.clone(), valid_seconds));
            Ok((renewed, true))
        });
        let (certificate, is_new) = renewed?;
        if is_new {
            lock(&self.counts).renewed += 1;
            let (serial, end) = (certificate.serial(), rfc3339(certificate.not_after()));
            self.tell("renewed", Some(site.as_str()), None, format!("serial {serial}, until {end}"));
            self.show_issued();
        }
        Ok(certificate.to_bytes())
    }

    fn certified(
        &self,
        issuer: &Issuer,
        key: &PublicKey,
        (site, groups): (&Name, &[Name]),
        valid_seconds: u64,
        now: u64,
    ) -> Result<Certificate, IssueError> {
        let subject = Subject { site: site.clone(), groups: groups.to_vec(), public_key: *key };
        let mut serial = [0; 16];
        OsRng.fill_bytes(&mut serial);
        let valid = Validity { not_before: now, not_after: now.saturating_add(valid_seconds) };
        issuer.certificate(&subject, Serial(serial), valid)
    }

    /// Takes back an invitation that is open.
    pub fn take_back(&self, name: &str, now: u64) -> Result<api::Invitation, String> {
        let taken = self.change(|book| {
            book.take_back(name, now).ok_or_else(|| format!("no invitation {name:?} is open: see vp-ctl invitations"))
        });
        let taken = match taken {
            Ok(taken) => taken,
            Err(Changing::Refused(refused)) => return Err(refused),
            Err(Changing::NotKept(error)) => return Err(error.to_string()),
        };
        self.tell("invitation-taken-back", Some(taken.site.as_str()), None, name.to_owned());
        Ok(shown(&taken))
    }

    /// What the clock has changed.
    pub fn review(&self, now: u64) {
        if !lock(&self.book).is_due(now) {
            return;
        }
        match self.change(|book| Ok::<_, JoinRefusal>(book.review(now))) {
            Ok(expired) => {
                for Invited { public_key, site, .. } in expired {
                    self.tell("invitation-expired", Some(site.as_str()), None, id(&public_key));
                }
            }
            Err(error) => tracing::warn!("invitations that have expired: {error}"),
        }
        self.identities.clear_records(now);
        self.changed.notify_one();
    }

    /// Whom it invited: peers that may join, and nothing else. Those whose invitation is spent hear why.
    pub fn guests(&self) -> Vec<PeerSettings> {
        if self.settings().is_none() {
            return Vec::new();
        }
        let keys: Vec<PublicKey> = lock(&self.book).invited.iter().map(|invited| invited.public_key).collect();
        keys.into_iter().map(|key| self.guest(key)).collect()
    }

    fn guest(&self, public_key: PublicKey) -> PeerSettings {
        PeerSettings {
            identity: Identity { site: invited_name(&public_key), tenant: None, groups: Vec::new() },
            public_key,
            preshared_key: None,
            endpoint: None,
            carrier: None,
            keepalive_seconds: None,
            stock: false,
            hub: false,
            guest: Some(Guest::Invited(self.site.clone())),
        }
    }

    /// What that hub is to know and does not: who may call this gateway to join, and who has joined. By their keys.
    #[must_use]
    pub fn unregistered(&self, hub: &Name) -> Vec<(PublicKey, Offered)> {
        let Some(settings) = self.settings() else { return Vec::new() };
        let book = lock(&self.book);
        let invited = book.open().filter(|invited| !invited.hubs.contains(hub));
        let invitation = |invited: &Invited| {
            let Invited { public_key, made, ends, .. } = invited;
            // The same each time: a hub that knows it says so.
            let serial = Serial(*public_key.first_chunk()?);
            let valid = Validity { not_before: *made, not_after: *ends };
            let signed = settings.issuer.invitation(&self.site, *public_key, serial, valid).ok()?;
            Some((*public_key, Offered::Invitation(signed.to_bytes())))
        };
        let issued = book
            .issued
            .iter()
            .filter(|issued| !issued.hubs.contains(hub))
            .map(|issued| (*issued.certificate.public_key(), Offered::Site(issued.certificate.to_bytes())));
        invited.filter_map(invitation).chain(issued).collect()
    }

    /// That hub has them now.
    pub fn registered(&self, keys: &[PublicKey], hub: &Name) {
        let kept = self.change(|book| {
            keys.iter().for_each(|key| book.registered(key, hub));
            Ok::<_, JoinRefusal>(())
        });
        kept.unwrap_or_else(|error| tracing::warn!("what {hub} knows: {error}"));
    }

    /// Those that are known, the newest last.
    #[must_use]
    pub fn invitations(&self) -> Vec<api::Invitation> {
        lock(&self.book).invited.iter().map(shown).collect()
    }

    #[must_use]
    pub fn counts(&self) -> Counts {
        lock(&self.counts).clone()
    }

    #[must_use]
    pub fn open(&self) -> usize {
        lock(&self.book).open().count()
    }

    /// Whether this issuer will soon not be one.
    #[must_use]
    pub fn findings(&self, now: u64) -> Vec<Finding> {
        let settings = self.settings();
        let Some(end) = settings.as_ref().and_then(|settings| settings.issuer.not_after()) else { return Vec::new() };
        let severity = match end.saturating_sub(now) {
            0 => "error",
            left if left < DELEGATION_SOON_SECONDS => "warning",
            _ => return Vec::new(),
        };
        let file = settings.map(|settings| settings.file.display().to_string()).unwrap_or_default();
        vec![Finding {
            name: "issuer-ends".to_owned(),
            severity: severity.to_owned(),
            detail: format!("the right of this issuer to sign ends at {}, and what it signed with it", rfc3339(end)),
            fix: Some(format!("vp-ctl authority delegate, put the new key in place of {file}, then vp-ctl reload")),
        }]
    }

    fn show_issued(&self) {
        let issued: Vec<Certificate> =
            lock(&self.book).issued.iter().map(|issued| issued.certificate.clone()).collect();
        self.identities.set_issued(issued);
    }

    fn settings(&self) -> Option<Arc<IssuerSettings>> {
        lock(&self.settings).clone()
    }

    /// Makes a change of the book, and keeps it before anybody sees it.
    fn change<T, E>(&self, change: impl FnOnce(&mut Book) -> Result<T, E>) -> Result<T, Changing<E>> {
        let _one_at_a_time = lock(&self.changing);
        let before = lock(&self.book).clone();
        let mut book = before.clone();
        let changed = change(&mut book).map_err(Changing::Refused)?;
        if book != before {
            book.save(&self.state).map_err(Changing::NotKept)?;
            *lock(&self.book) = book;
        }
        Ok(changed)
    }

    fn refuse(&self, event: &str, whose: &str, site: Option<&str>, refusal: JoinRefusal, now: u64) {
        *lock(&self.counts).refused.entry(refusal).or_default() += 1;
        let mut told = lock(&self.refused_at);
        told.retain(|_, at| now < at.saturating_add(REFUSED_AGAIN_SECONDS));
        let key = (whose.to_owned(), refusal);
        if let Entry::Vacant(vacant) = told.entry(key) {
            vacant.insert(now);
            self.tell(event, site, Some(refusal.word()), whose.to_owned());
        }
    }

    fn tell(&self, event: &str, peer: Option<&str>, reason: Option<&str>, detail: String) {
        self.told.tell(AuditRecord {
            event: event.to_owned(),
            site: self.site.to_string(),
            peer: peer.map(ToOwned::to_owned),
            reason: reason.map(ToOwned::to_owned),
            detail: Some(detail),
            ..AuditRecord::default()
        });
    }
}

/// Why a change of the book was not made.
#[derive(Debug, thiserror::Error)]
enum Changing<E> {
    #[error("{0}")]
    Refused(E),
    #[error("{0}")]
    NotKept(StateError),
}

impl From<Changing<JoinRefusal>> for JoinError {
    fn from(changing: Changing<JoinRefusal>) -> Self {
        match changing {
            Changing::Refused(refusal) => Self::Refused(refusal),
            Changing::NotKept(error) => Self::NotKept(error),
        }
    }
}

fn shown(invited: &Invited) -> api::Invitation {
    let state = invited.spent.map_or("open", |spent| spent.why.refusal().word());
    api::Invitation {
        id: id(&invited.public_key),
        site: invited.site.to_string(),
        groups: invited.groups.iter().map(ToString::to_string).collect(),
        made: rfc3339(invited.made),
        expires: rfc3339(invited.ends),
        uses: invited.uses,
        uses_left: match invited.spent {
            Some(_) => 0,
            None => invited.uses.saturating_sub(u32::try_from(invited.joined.len()).unwrap_or(u32::MAX)),
        },
        certificate_seconds: invited.valid_seconds,
        state: state.to_owned(),
        joined: invited.joined.iter().map(|joined| BASE64_STANDARD.encode(joined.public_key)).collect(),
    }
}

fn random() -> Zeroizing<[u8; 32]> {
    let mut bytes = Zeroizing::new([0; 32]);
    OsRng.fill_bytes(&mut *bytes);
    bytes
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
