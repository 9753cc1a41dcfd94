//! What certificates, lists of revocations and the clock say about peers, made true: who is not certified any more goes at
//! once, who is comes, and both are told.

use super::{Agent, Refused};
use crate::audit::Entry;
use crate::clock::unix_seconds;
use crate::control::What;
use crate::identity::{News, Review};
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval, sleep};
use vp::addr::Name;
use vp::identity::Refusal;
use vp::identity::text::{Label, decode};
use vp_proto::api::{AuditRecord, RevocationsResponse};
use vp_proto::time::rfc3339;

/// How often the clock is asked whether something has ended. It may jump, so nothing is reckoned ahead.
const PAUSE: Duration = Duration::from_millis(500);
/// How often files are looked at for renewed certificates.
const FILES_PAUSE: Duration = Duration::from_secs(5);

/// Waits for nothing but the data thread: what ends has to end in time, whatever else is under way.
pub(super) async fn follow(agent: Arc<Agent>) {
    let mut tick = interval(PAUSE);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = agent.identities.changed.notified() => {}
        }
        agent.review().await;
    }
}

pub(super) async fn settle(agent: Arc<Agent>) {
    loop {
        agent.reviewed.notified().await;
        agent.settle().await;
        // At once: whom a hub introduced is to be known after a crash, when perhaps no hub is there.
        let keeping = agent.clone();
        if let Ok(Err(error)) = spawn_blocking(move || keeping.keep_identity()).await {
            tracing::warn!("{error}");
        }
    }
}

pub(super) async fn look_at_files(agent: Arc<Agent>) {
    loop {
        sleep(FILES_PAUSE).await;
        let looking = agent.clone();
        spawn_blocking(move || looking.identities.look_at_files(unix_seconds())).await.ok();
    }
}

impl Agent {
    /// Takes a list that the operator gives, and acts on it before it answers.
    pub async fn add_revocations(self: &Arc<Self>, text: &str) -> Result<RevocationsResponse, Refused> {
        let bytes = decode(Label::Revocations, text).map_err(|error| Refused::Request(error.to_string()))?;
        let taken = self.identities.take_revocations(&bytes, unix_seconds());
        let (list, is_new) = taken.map_err(|refusal| {
            self.tell_refused(None, What::Revocations, refusal);
            Refused::Request(refusal.to_string())
        })?;
        if is_new {
            self.tell_revocations(None, list.tenant(), list.version());
        }
        self.review().await;
        self.settle().await;
        let keeping = self.clone();
        let kept = spawn_blocking(move || keeping.keep_identity()).await;
        kept.map_err(|error| Refused::Host(error.into()))??;
        let revoked = list.revoked().len() as u64;
        Ok(RevocationsResponse { tenant: list.tenant().to_string(), version: list.version(), revoked, is_new })
    }

    /// The peers that there may be no more go by the shortest way.
    async fn review(&self) {
        // Whoever comes second finds nothing, and what the first found done.
        let _one_at_a_time = self.reviewing.lock().await;
        let Some(Review { ended, news }) = self.identities.review(unix_seconds()) else { return };
        let revoke = self.handle.call(move |node, _, now| ended.iter().for_each(|key| node.revoke(key, now)));
        // Without a data thread there are no peers.
        revoke.await.ok();
        self.audit.write(news.iter().map(|news| Entry::Record(self.certificate_record(news))));
        self.reviewed.notify_one();
    }

    /// All peers as what they are now; a change of the configuration that is under way takes its time.
    pub(super) async fn settle(&self) {
        let wanted = self.wanted.lock().await;
        let (settings, _) = self.effective(&wanted.config, &wanted.runtime);
        if let Err(error) = self.configure(settings, &wanted.config.carriers, &wanted.runtime.drained).await {
            tracing::warn!("what peers are certified as is not in force yet: {error}");
            self.identities.review_again();
        }
        drop(wanted);
        self.endpoints_changed.notify_one();
    }

    pub(super) fn keep_identity(&self) -> Result<(), crate::state::StateError> {
        let _one_at_a_time = self.identity_file.lock().unwrap_or_else(PoisonError::into_inner);
        self.identities.keep(&self.state)
    }

    fn certificate_record(&self, news: &News) -> AuditRecord {
        let News { peer, certificate, verdict } = news;
        let event = match verdict {
            Ok(()) => "certificate-accepted",
            Err(Refusal::Expired) => "certificate-expired",
            Err(Refusal::Revoked) => "certificate-revoked",
            Err(_) => "certificate-refused",
        };
        let whose = peer.as_ref().map_or_else(|| self.site.to_string(), ToString::to_string);
        match verdict {
            Ok(()) => tracing::info!("the certificate {} of {whose} holds", certificate.serial()),
            Err(refusal) => tracing::warn!("the certificate {} of {whose}: {refusal}", certificate.serial()),
        }
        let (serial, tenant, end) = (certificate.serial(), certificate.tenant(), rfc3339(certificate.not_after()));
        AuditRecord {
            event: event.to_owned(),
            site: self.site.to_string(),
            peer: peer.as_ref().map(|peer| peer.site.to_string()),
            tenant: peer.as_ref().map(|_| certificate.tenant().to_string()),
            reason: verdict.err().map(|refusal| refusal.word().to_owned()),
            detail: Some(format!("serial {serial}, tenant {tenant}, until {end}")),
            ..AuditRecord::default()
        }
    }

    pub(super) fn tell_refused(&self, peer: Option<&str>, what: What, refusal: Refusal) {
        let event = match what {
            What::Certificate => "certificate-refused",
            What::Revocations => "revocations-refused",
        };
        let record = AuditRecord {
            event: event.to_owned(),
            site: self.site.to_string(),
            peer: peer.map(ToOwned::to_owned),
            reason: Some(refusal.word().to_owned()),
            ..AuditRecord::default()
        };
        self.audit.write([Entry::Record(record)]);
    }

    pub(super) fn tell_revocations(&self, peer: Option<&str>, tenant: &Name, version: u64) {
        let record = AuditRecord {
            event: "revocations-accepted".to_owned(),
            site: self.site.to_string(),
            peer: peer.map(ToOwned::to_owned),
            detail: Some(format!("tenant {tenant}, version {version}")),
            ..AuditRecord::default()
        };
        self.audit.write([Entry::Record(record)]);
    }
}
