//! This site's own certificate, renewed before it ends: by the issuer that it joined by, over the tunnel that the certificate which
//! still holds opens.

use super::Told;
use crate::config::credentials::read_certificate;
use crate::state::{StateDir, StateError, read_json, write_json, write_whole};
use rand_core::{OsRng, RngCore};
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use vp::addr::Name;
use vp::identity::text::{Label, encode};
use vp::identity::{Certificate, JoinRefusal};
use vp_proto::api::{self, AuditRecord, Finding};
use vp_proto::time::rfc3339;

const FILE: &str = "issuer.json";
/// A certificate is renewed when this part of its time is left.
const LEFT_PART: u64 = 3;
/// Between two attempts: at first, at most, and never more than this part of what is left.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(300);
const PAUSE_PART: u32 = 10;

/// By whom this site joined. Kept in `state_dir`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    pub issuer: Name,
}

impl Kept {
    pub fn load(state: &StateDir) -> Result<Option<Self>, StateError> {
        read_json(&state.file(FILE))
    }

    pub fn save(&self, state: &StateDir) -> Result<(), StateError> {
        write_json(&state.file(FILE), self)
    }
}

pub struct Renewal {
    site: Name,
    pub issuer: Name,
    told: Arc<Told>,
    failure: Mutex<Option<String>>,
    attempts: AtomicU64,
    renewed: AtomicU64,
    failed: AtomicU64,
}

impl Renewal {
    /// None: this site has its certificate from elsewhere.
    pub fn load(site: Name, state: &StateDir, told: Arc<Told>) -> Result<Option<Self>, StateError> {
        let renewal = |Kept { issuer }: Kept| Self {
            site,
            issuer,
            told,
            failure: Mutex::default(),
            attempts: AtomicU64::default(),
            renewed: AtomicU64::default(),
            failed: AtomicU64::default(),
        };
        Ok(Kept::load(state)?.map(renewal))
    }

    /// When it is to be renewed: seconds since 1970.
    #[must_use]
    pub fn due(certificate: &Certificate) -> u64 {
        let all = certificate.not_after().saturating_sub(certificate.not_before());
        certificate.not_after().saturating_sub(all / LEFT_PART)
    }

    /// The pause before the next attempt. A random part of it, so that sites that joined together do not ask together.
    pub fn pause(&self, certificate: &Certificate, now: u64) -> Duration {
        let attempts = u32::try_from(self.attempts.load(Ordering::Relaxed)).unwrap_or(u32::MAX);
        let left = Duration::from_secs(certificate.not_after().saturating_sub(now));
        let most = PAUSE.saturating_mul(1 << attempts.min(16)).min(PAUSE_MAX).min(left / PAUSE_PART).max(PAUSE);
        most.mul_f64(0.5 + f64::from(OsRng.next_u32()) / f64::from(u32::MAX) / 2.0)
    }

    /// What the issuer answered, or why there is no answer. Writes the new one where the certificate is kept.
    pub fn answered(&self, answer: Result<Vec<u8>, String>, before: &Certificate, file: &Path) -> bool {
        let taken = answer.and_then(|bytes| {
            let renewed = Certificate::read(&bytes).map_err(|refusal| refusal.word().to_owned())?;
            let same = |of: &Certificate| (of.tenant().clone(), of.site().clone(), *of.public_key());
            if same(&renewed) != same(before) || !renewed.is_newer_than(before) {
                return Err("the answer is not this site's next certificate".to_owned());
            }
            // Whoever put another one there meanwhile knows better.
            if read_certificate(file).is_ok_and(|known| known.is_newer_than(&renewed)) {
                return Err(format!("{} has a newer one already", file.display()));
            }
            let text = encode(Label::Certificate, &renewed.to_bytes());
            write_whole(file, text.as_bytes()).map_err(|error| error.to_string())?;
            Ok(renewed)
        });
        match taken {
            Ok(renewed) => {
                self.attempts.store(0, Ordering::Relaxed);
                self.renewed.fetch_add(1, Ordering::Relaxed);
                *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = None;
                let (serial, end) = (renewed.serial(), rfc3339(renewed.not_after()));
                self.tell("certificate-renewed", None, format!("serial {serial}, until {end}"));
                true
            }
            Err(why) => {
                self.fail(&why);
                false
            }
        }
    }

    /// Each reason is told once, until something else happens.
    fn fail(&self, why: &str) {
        self.attempts.fetch_add(1, Ordering::Relaxed);
        self.failed.fetch_add(1, Ordering::Relaxed);
        let reason = JoinRefusal::of_word(why).map_or_else(|| why.to_owned(), |refusal| refusal.to_string());
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        if failure.as_ref() != Some(&reason) {
            *failure = Some(reason);
            drop(failure);
            self.tell("renewal-failed", Some(why.to_owned()), format!("by {}", self.issuer));
        }
    }

    fn failure(&self) -> Option<String> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    #[must_use]
    pub fn shown(&self, certificate: &Certificate) -> api::Renewal {
        let (issuer, due) = (self.issuer.to_string(), rfc3339(Self::due(certificate)));
        api::Renewal { issuer, due, failure: self.failure() }
    }

    /// Renewed, and attempts that failed, since the start.
    #[must_use]
    pub fn counts(&self) -> [u64; 2] {
        [&self.renewed, &self.failed].map(|count| count.load(Ordering::Relaxed))
    }

    #[must_use]
    pub fn finding(&self, certificate: &Certificate) -> Option<Finding> {
        let (failure, end) = (self.failure()?, rfc3339(certificate.not_after()));
        Some(Finding {
            name: "renewal-failed".to_owned(),
            severity: "error".to_owned(),
            detail: format!("{} did not renew this site's certificate, which ends at {end}: {failure}", self.issuer),
            fix: Some(format!("see that {} is up and an issuer; or join anew with another invitation", self.issuer)),
        })
    }

    fn tell(&self, event: &str, reason: Option<String>, detail: String) {
        self.told.tell(AuditRecord {
            event: event.to_owned(),
            site: self.site.to_string(),
            peer: Some(self.issuer.to_string()),
            reason,
            detail: Some(detail),
            ..AuditRecord::default()
        });
    }
}
