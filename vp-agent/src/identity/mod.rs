//! Certified identity as this gateway knows it: whom it trusts, what peers presented, what was revoked. Says which peers
//! there may be now, and as whom; who asks tells it the time. It changes nothing itself.
//!
//! Of several certificates of one site and key the one issued last decides alone: one before it never comes back.

mod introduced;
mod issued;
mod kept;
mod name;
mod registered;
mod show;
#[cfg(test)]
mod tests;

pub use introduced::Claim;
pub use kept::Kept;
pub use name::PeerName;
pub use registered::{Offered, Place, Record, invited_name};

use crate::config::credentials::read_certificate;
use crate::config::{Credentials, Member};
use introduced::Introduced;
use registered::Registered;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, watch};
use vp::addr::Name;
use vp::identity::{CERTIFICATE_BYTES_MAX, Certificate, Certified, List, Refusal, Revocations, Serial, Trust};
use vp::node::PeerSettings;

type PublicKey = [u8; 32];

pub struct Identities {
    site: Name,
    key: PublicKey,
    state: Mutex<State>,
    presented: watch::Sender<Arc<Presented>>,
    /// There may be something for [`Self::review`].
    pub changed: Notify,
}

/// What this site shows to its peers: its own certificate while it holds, and the lists that count here.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Presented {
    pub certificate: Option<Vec<u8>>,
    pub revocations: Vec<Vec<u8>>,
}

/// What a look at the clock, or at something new, has changed.
#[derive(Default, Debug)]
pub struct Review {
    /// Keys of peers that may not be there any more.
    pub ended: Vec<PublicKey>,
    pub news: Vec<News>,
}

/// For the audit log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct News {
    /// None: this site itself.
    pub peer: Option<PeerName>,
    pub certificate: Certificate,
    pub verdict: Result<(), Refusal>,
}

#[derive(Clone)]
struct State {
    trust: Trust,
    revocations: Revocations,
    own_file: PathBuf,
    own: Option<Certificate>,
    /// By certificate, in the file.
    written: BTreeMap<PeerName, Member>,
    introduced: Introduced,
    registered: Registered,
    /// The tenant that this gateway certifies sites of.
    issues_for: Option<Name>,
    /// All of these.
    members: BTreeMap<PeerName, Member>,
    /// Their keys, those of peers by key, and this site's own.
    taken: BTreeSet<PublicKey>,
    /// Of peers by key.
    keys: BTreeMap<PeerName, PublicKey>,
    /// The last that was taken from each peer.
    learnt: BTreeMap<PeerName, Certificate>,
    /// Presented and refused for a reason that may pass.
    waiting: BTreeMap<PeerName, Vec<u8>>,
    /// What was last told of each; none: of this site.
    standings: BTreeMap<Option<PeerName>, Standing>,
    /// Invited keys that were guests at the last review.
    guests: BTreeSet<PublicKey>,
    /// The next review has something to say even if no standing changed.
    is_due: bool,
    refused: BTreeMap<Refusal, u64>,
    /// Records for the registry.
    unregistered: BTreeMap<Refusal, u64>,
    unsaved: bool,
}

type Standing = (Serial, Result<(), Refusal>);

/// What is put back when a new configuration is not taken after all.
pub struct Before(State);

impl Identities {
    pub fn new(site: Name, key: PublicKey, credentials: &Credentials, by_key: &[PeerSettings], kept: Kept) -> Self {
        let Kept { certificates, revocations, introduced } = kept;
        let learnt = certificates.into_iter().map(|certificate| (certificate.site().clone().into(), certificate));
        let state = State {
            trust: Trust::default(),
            revocations,
            own_file: PathBuf::new(),
            own: None,
            written: BTreeMap::new(),
            introduced,
            registered: Registered::default(),
            issues_for: None,
            members: BTreeMap::new(),
            taken: BTreeSet::new(),
            keys: BTreeMap::new(),
            learnt: learnt.collect(),
            waiting: BTreeMap::new(),
            standings: BTreeMap::new(),
            guests: BTreeSet::new(),
            is_due: true,
            refused: BTreeMap::new(),
            unregistered: BTreeMap::new(),
            unsaved: false,
        };
        let identities =
            Self { site, key, state: Mutex::new(state), presented: watch::Sender::default(), changed: Notify::new() };
        identities.configure(credentials, by_key);
        identities
    }

    /// What the file says now.
    pub fn configure(&self, credentials: &Credentials, by_key: &[PeerSettings]) -> Before {
        let mut state = self.state();
        let before = Before(state.clone());
        state.trust = credentials.trust.clone();
        state.own_file.clone_from(&credentials.own_file);
        state.own.clone_from(&credentials.own);
        let members = credentials.members.iter().cloned();
        state.written = members.map(|member| (written_name(&member), member)).collect();
        state.keys = by_key.iter().map(|peer| (peer.identity.site.clone().into(), peer.public_key)).collect();
        // Whoever is no hub any more introduces nobody.
        state.introduced.retain(|hub, _| {
            by_key.iter().chain(members_settings(credentials)).any(|peer| peer.hub && peer.identity.site == *hub)
        });
        state.assemble(&self.site, &self.key);
        if let Some(list) = &credentials.revocations {
            // Its signatures were checked; without room for it, what is known stays.
            state.unsaved |= state.revocations.restore(&list.to_bytes()).is_ok();
        }
        let State { keys, members, learnt, trust, waiting, .. } = &mut *state;
        learnt.retain(|site, learnt| match members.get(site) {
            // Where the authority of a later one is trusted no more, what the file says decides again.
            Some(member) if !trust.has(learnt.tenant(), learnt.authority()) => {
                if subject(learnt) == subject(&member.certificate) {
                    waiting.insert(site.clone(), learnt.to_bytes());
                }
                false
            }
            Some(member) => subject(learnt) == subject(&member.certificate),
            None => keys.get(site) == Some(learnt.public_key()),
        });
        state.is_due = true;
        drop(state);
        self.changed.notify_one();
        before
    }

    /// What came from elsewhere meanwhile stays.
    pub fn put_back(&self, Before(before): Before) {
        let mut state = self.state();
        state.trust = before.trust;
        state.own_file = before.own_file;
        state.own = before.own;
        state.written = before.written;
        state.keys = before.keys;
        state.introduced = before.introduced;
        state.assemble(&self.site, &self.key);
        for (site, certificate) in before.learnt {
            let is_later = |known: &Certificate| known.is_newer_than(&certificate);
            if !state.learnt.get(&site).is_some_and(is_later) {
                state.learnt.insert(site, certificate);
            }
        }
        state.is_due = true;
        drop(state);
        self.changed.notify_one();
    }

    /// All peers that there may be now, each as who it is now.
    pub fn peers(&self, by_key: &[PeerSettings], now: u64) -> Vec<PeerSettings> {
        let state = self.state();
        let by_key = by_key.iter().map(|peer| {
            let mut peer = peer.clone();
            if let Some(Ok(certified)) = state.judge(&peer.identity.site.clone().into(), now) {
                let certified = certified.identity();
                peer.identity.tenant.clone_from(&certified.tenant);
                peer.identity.groups.extend(certified.groups.iter().cloned());
                peer.identity.groups.sort();
                peer.identity.groups.dedup();
            }
            peer
        });
        let members = state.members.iter().filter_map(|(site, member)| {
            let certified = state.judge(site, now)?.ok()?;
            Some(PeerSettings { identity: certified.identity().clone(), ..member.settings.clone() })
        });
        by_key.chain(members).chain(state.invited_peers(now)).collect()
    }

    /// Takes those away whose certificate does not hold any more.
    pub fn keep_in_force(&self, peers: &mut Vec<PeerSettings>, now: u64) {
        let ended: BTreeSet<PublicKey> = self.state().ended(now).into_iter().collect();
        peers.retain(|peer| !ended.contains(&peer.public_key));
    }

    /// What has changed since the last review; none if nothing has.
    pub fn review(&self, now: u64) -> Option<Review> {
        let mut state = self.state();
        state.try_waiting(now);
        state.forget_missed(&self.site, &self.key, now);
        let mut standings = BTreeMap::new();
        let mut news = Vec::new();
        for (peer, certificate) in state.certificates() {
            let verdict = state.verdict(peer.as_ref(), certificate, now);
            let standing = (certificate.serial(), verdict);
            if state.standings.get(&peer) != Some(&standing) {
                news.push(News { peer: peer.clone(), certificate: certificate.clone(), verdict });
            }
            standings.insert(peer, standing);
        }
        let guests: BTreeSet<PublicKey> = state.invited_peers(now).map(|guest| guest.public_key).collect();
        if news.is_empty() && guests == state.guests && !state.is_due {
            return None;
        }
        (state.is_due, state.guests) = (false, guests);
        state.standings = standings;
        let presented = Arc::new(state.presented(now));
        let ended = state.ended(now);
        drop(state);
        self.presented.send_if_modified(|known| {
            let is_new = *known != presented;
            *known = presented;
            is_new
        });
        Some(Review { ended, news })
    }

    /// What was found in the review is to be found again.
    pub fn review_again(&self) {
        self.state().is_due = true;
    }

    #[must_use]
    pub fn presented(&self) -> watch::Receiver<Arc<Presented>> {
        self.presented.subscribe()
    }

    /// What a peer of this site and with this key presents. True if it is new.
    pub fn take_certificate(&self, peer: &PeerName, key: &PublicKey, bytes: &[u8], now: u64) -> Result<bool, Refusal> {
        let mut state = self.state();
        let taken = state.take_certificate(peer, key, bytes, now);
        match taken {
            Ok(is_new) => {
                state.waiting.remove(peer);
                if is_new {
                    self.changed.notify_one();
                }
            }
            Err(refusal) => {
                *state.refused.entry(refusal).or_default() += 1;
                if may_pass(refusal) && bytes.len() <= CERTIFICATE_BYTES_MAX {
                    state.waiting.insert(peer.clone(), bytes.to_vec());
                }
            }
        }
        taken
    }

    /// A list, from whomever it comes. True if it is new.
    pub fn take_revocations(&self, bytes: &[u8], now: u64) -> Result<(List, bool), Refusal> {
        let mut state = self.state();
        let State { trust, revocations, .. } = &mut *state;
        let taken = revocations.add(bytes, trust, now);
        match &taken {
            Ok((_, true)) => {
                (state.unsaved, state.is_due) = (true, true);
                self.changed.notify_one();
            }
            Ok((_, false)) => {}
            Err(refusal) => *state.refused.entry(*refusal).or_default() += 1,
        }
        taken
    }

    /// Certificates that were renewed where the file says they are: this site's own, and of peers that are not there for
    /// want of one. Reads files.
    pub fn look_at_files(&self, now: u64) {
        let (own_file, ended) = {
            let state = self.state();
            let ended = state.ended(now);
            let is_ended = |member: &&Member| ended.contains(&member.settings.public_key);
            let ended: Vec<Member> = state.members.values().filter(is_ended).cloned().collect();
            (state.own_file.clone(), ended)
        };
        let own = read_certificate(&own_file).ok();
        if let Some(own) = own.filter(|own| *own.site() == self.site && *own.public_key() == self.key) {
            self.state().own = Some(own);
        }
        for Member { file, certificate: known, .. } in ended {
            let Some(Ok(found)) = file.as_deref().map(read_certificate) else { continue };
            let mut state = self.state();
            let mut written = state.written.values_mut();
            let member = written.find(|member| member.certificate == known);
            if let Some(member) = member.filter(|_| subject(&found) == subject(&known)) {
                member.certificate = found;
                state.assemble(&self.site, &self.key);
            }
        }
        self.changed.notify_one();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The certificate that decides about this peer.
    fn certificate(&self, peer: &PeerName) -> Option<&Certificate> {
        let learnt = self.learnt.get(peer);
        match (self.members.get(peer).map(|member| &member.certificate), learnt) {
            (Some(file), Some(learnt)) if learnt.is_newer_than(file) => Some(learnt),
            (Some(file), _) => Some(file),
            (None, learnt) => learnt,
        }
    }

    fn key(&self, peer: &PeerName) -> Option<PublicKey> {
        let member = self.members.get(peer).map(|member| member.settings.public_key);
        member.or_else(|| self.keys.get(peer).copied())
    }

    fn judge(&self, peer: &PeerName, now: u64) -> Option<Result<Certified, Refusal>> {
        Some(self.certificate(peer)?.judge(&self.trust, &self.revocations, now))
    }

    /// Whether it holds now. This site's own is shown to peers whether its authority is trusted here or not.
    fn verdict(&self, peer: Option<&PeerName>, certificate: &Certificate, now: u64) -> Result<(), Refusal> {
        let trust = match peer {
            Some(_) => Cow::Borrowed(&self.trust),
            None => Cow::Owned(self.trust.with_own(certificate)),
        };
        certificate.judge(&trust, &self.revocations, now).map(|_| ())
    }

    /// All that decide about somebody; without a name that of this site.
    fn certificates(&self) -> impl Iterator<Item = (Option<PeerName>, &Certificate)> {
        let sites = self.members.keys().chain(self.keys.keys());
        let of_peers = sites.filter_map(|site| Some((Some(site.clone()), self.certificate(site)?)));
        of_peers.chain(self.own.iter().map(|own| (None, own)))
    }

    /// Peers by certificate that may not be there.
    fn ended(&self, now: u64) -> Vec<PublicKey> {
        let ended = self.members.iter().filter(|(name, _)| !matches!(self.judge(name, now), Some(Ok(_))));
        let ended = ended.map(|(_, member)| member.settings.public_key);
        let uninvited = self.invited(now).filter(|(_, verdict)| verdict.is_err());
        ended.chain(uninvited.map(|(invitation, _)| *invitation.public_key())).collect()
    }

    fn presented(&self, now: u64) -> Presented {
        let own = self.own.as_ref().filter(|own| self.verdict(None, own, now).is_ok());
        let revocations = self.revocations.in_force(&self.trust).map(List::to_bytes).collect();
        Presented { certificate: own.map(Certificate::to_bytes), revocations }
    }

    fn take_certificate(&mut self, peer: &PeerName, key: &PublicKey, bytes: &[u8], now: u64) -> Result<bool, Refusal> {
        // It may have another key, or be gone, since that was asked.
        if self.key(peer) != Some(*key) {
            return Err(Refusal::WrongKey);
        }
        let known = self.certificate(peer);
        if known.is_some_and(|known| known.to_bytes() == bytes) {
            return Ok(false);
        }
        let taken = Certificate::verify(bytes, (&peer.site, key), &self.trust, &self.revocations, now)?;
        if known.is_some_and(|known| !taken.is_newer_than(known)) {
            return Err(Refusal::Older);
        }
        if self.members.get(peer).is_some_and(|member| member.certificate.tenant() != taken.tenant()) {
            return Err(Refusal::WrongTenant);
        }
        self.learnt.insert(peer.clone(), taken);
        (self.unsaved, self.is_due) = (true, true);
        Ok(true)
    }

    /// Trust may have come, or the time.
    fn try_waiting(&mut self, now: u64) {
        for (peer, bytes) in std::mem::take(&mut self.waiting) {
            let Some(key) = self.key(&peer) else { continue };
            if self.take_certificate(&peer, &key, &bytes, now).is_err_and(may_pass) {
                self.waiting.insert(peer, bytes);
            }
        }
    }
}

fn members_settings(credentials: &Credentials) -> impl Iterator<Item = &PeerSettings> {
    credentials.members.iter().map(|member| &member.settings)
}

fn written_name(member: &Member) -> PeerName {
    let (site, tenant) = (member.certificate.site().clone(), member.certificate.tenant().clone());
    PeerName { site, tenant: member.settings.guest.is_some().then_some(tenant) }
}

/// Whom a certificate speaks of.
fn subject(of: &Certificate) -> (&Name, &Name, &PublicKey) {
    (of.tenant(), of.site(), of.public_key())
}

/// All of these are found before a signature is looked at, so trying again costs little.
fn may_pass(refusal: Refusal) -> bool {
    matches!(refusal, Refusal::NotYetValid | Refusal::UnknownAuthority)
}
