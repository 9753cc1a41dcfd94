//! Certificates as the status, the health block and the metrics show them.

use super::{Identities, PeerName, State};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use std::collections::BTreeSet;
use vp::addr::Name;
use vp::identity::{Certificate, Refusal};
use vp_proto::api::{self, Finding, PeerStatus};
use vp_proto::time::rfc3339;

/// A certificate ends soon in the last tenth of its time: nine days before the end of one of ninety.
const SOON_PART: u64 = 10;

impl Identities {
    /// This site's own.
    #[must_use]
    pub fn own(&self, now: u64) -> Option<api::Certificate> {
        let state = self.state();
        state.own.as_ref().map(|own| state.shown(None, own, now))
    }

    /// Adds to the peers of the node what they are certified as, and those that are not there for want of a certificate.
    pub fn show(&self, peers: &mut Vec<PeerStatus>, now: u64) {
        let state = self.state();
        for peer in peers.iter_mut() {
            let Some(name) = name(peer) else { continue };
            peer.certificate = state.certificate(&name).map(|certificate| state.shown(Some(&name), certificate, now));
        }
        let known: BTreeSet<String> = peers.iter().map(PeerStatus::name).collect();
        for name in state.members.keys().filter(|name| !known.contains(&name.to_string())) {
            let Some(Err(refusal)) = state.judge(name, now) else { continue };
            peers.push(PeerStatus {
                site: name.site.to_string(),
                guest: name.tenant.is_some(),
                state: refusal.word().to_owned(),
                path: "none".to_owned(),
                paths: Vec::new(),
                endpoint: None,
                handshake_age_seconds: None,
                cipher: None,
                rtt_ms: None,
                rx_bytes: 0,
                tx_bytes: 0,
                rx_packets: 0,
                tx_packets: 0,
                expected_packets: 0,
                arrived_packets: 0,
                waiting_packets: 0,
                control: "none".to_owned(),
                offered_services: 0,
                tenant: name.tenant.as_ref().map(ToString::to_string),
                groups: Vec::new(),
                certificate: state.certificate(name).map(|certificate| state.shown(Some(name), certificate, now)),
            });
        }
    }

    /// Why a peer by certificate is not there.
    #[must_use]
    pub fn gone(&self, site: &Name, now: u64) -> Option<Refusal> {
        let (state, name) = (self.state(), site.clone().into());
        state.members.get(&name)?;
        state.judge(&name, now)?.err()
    }

    /// Refused since the start, by reason.
    #[must_use]
    pub fn refused(&self) -> Vec<(Refusal, u64)> {
        let state = self.state();
        Refusal::ALL.iter().map(|refusal| (*refusal, state.refused.get(refusal).copied().unwrap_or(0))).collect()
    }

    /// Seconds until each certificate ends, this site's own and its peers', that holds or did.
    #[must_use]
    pub fn remaining(&self, now: u64) -> Vec<(String, u64)> {
        let state = self.state();
        let of = |(peer, certificate): (Option<PeerName>, &Certificate)| {
            (
                peer.map_or_else(|| self.site.to_string(), |peer| peer.to_string()),
                certificate.not_after().saturating_sub(now),
            )
        };
        state.certificates().map(of).collect()
    }

    /// Tenant, signer and version of each list that counts.
    #[must_use]
    pub fn versions(&self) -> Vec<(String, String, u64)> {
        let state = self.state();
        let lists = state.revocations.in_force(&state.trust);
        lists.map(|list| (list.tenant().to_string(), BASE64_STANDARD.encode(list.signer()), list.version())).collect()
    }

    /// Certificates that have ended or soon will; those of guests are their tenants' affair.
    #[must_use]
    pub fn findings(&self, now: u64) -> Vec<Finding> {
        let state = self.state();
        let is_own = |(peer, _): &(Option<PeerName>, _)| peer.as_ref().is_none_or(|peer| peer.tenant.is_none());
        let found = |(peer, certificate): (Option<PeerName>, _)| state.finding(peer.as_ref(), certificate, now);
        state.certificates().filter(is_own).filter_map(found).collect()
    }
}

fn name(of: &PeerStatus) -> Option<PeerName> {
    let tenant = of.tenant.as_ref().filter(|_| of.guest);
    let tenant = tenant.map(|tenant| Name::new(tenant)).transpose().ok()?;
    Some(PeerName { site: Name::new(&of.site).ok()?, tenant })
}

impl State {
    fn shown(&self, peer: Option<&PeerName>, certificate: &Certificate, now: u64) -> api::Certificate {
        let verdict = self.verdict(peer, certificate, now);
        api::Certificate {
            tenant: certificate.tenant().to_string(),
            groups: certificate.groups().iter().map(ToString::to_string).collect(),
            serial: certificate.serial().to_string(),
            not_after: rfc3339(certificate.not_after()),
            seconds_left: certificate.not_after().saturating_sub(now),
            state: verdict.map_or_else(Refusal::word, |()| "valid").to_owned(),
        }
    }

    fn finding(&self, peer: Option<&PeerName>, certificate: &Certificate, now: u64) -> Option<Finding> {
        let whose =
            peer.map_or_else(|| "this site's certificate".to_owned(), |peer| format!("the certificate of {peer}"));
        let end = rfc3339(certificate.not_after());
        let (name, severity, detail) = match self.verdict(peer, certificate, now) {
            Err(refusal) => {
                let severity = if peer.is_none() { "error" } else { "warning" };
                ("certificate-not-valid", severity, format!("{whose} does not hold: {refusal}"))
            }
            Ok(()) => {
                let all = certificate.not_after().saturating_sub(certificate.not_before());
                let is_soon = certificate.not_after().saturating_sub(now) < all / SOON_PART;
                is_soon.then(|| ("certificate-ends-soon", "warning", format!("{whose} ends at {end}")))?
            }
        };
        let fix = match peer {
            None => "vp-ctl authority issue, then put the new one in its place",
            Some(_) => "its operator: a new one from the tenant's authority",
        };
        Some(Finding { name: name.to_owned(), severity: severity.to_owned(), detail, fix: Some(fix.to_owned()) })
    }
}
