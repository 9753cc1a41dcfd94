//! The joining site's side. While `state_dir` has a token, the gateway is whom that invited, and nothing else: it asks the issuer
//! to certify the key that it has made, and forgets the token.

use super::renewal::Kept;
use super::{PublicKey, Told};
use crate::carrier::CarrierSettings;
use crate::clock::unix_seconds;
use crate::config::{Config, KeyFileError, keys};
use crate::state::{StateDir, StateError, write_whole};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Notify;
use vp::addr::{Identity, Name};
use vp::identity::text::{Label, encode};
use vp::identity::{
    Certificate, Gateway, JoinRefusal, Refusal, Revocations, TOKEN_BYTES_MAX, Token, Trust, possession,
};
use vp::node::PeerSettings;
use vp_proto::api::{self, AuditRecord, Finding};
use vp_proto::time::rfc3339;
use x25519_dalek::{PublicKey as X25519, StaticSecret};

/// Where `vp-ctl join` puts it.
const TOKEN: &str = "invitation";
/// So that an issuer behind a hub, and a hub, are reached through NATs for as long as it takes.
const KEEPALIVE_SECONDS: u16 = 25;

/// What a joining site asks of one of its peers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Ask {
    /// The issuer: to be certified.
    Join { public_key: PublicKey, possession: Vec<u8> },
    /// A hub: to meet the issuer.
    Introductions,
}

#[derive(Debug, thiserror::Error)]
pub enum SeekingError {
    #[error("{0}")]
    File(#[from] KeyFileError),
    #[error("{}: {refusal}; remove it to go on without joining, or join anew with another token", file.display())]
    Token { file: PathBuf, refusal: Refusal },
    #[error("{}: it is for site {token}, expected one for {site}", file.display())]
    Site { file: PathBuf, token: Name, site: Name },
    #[error("{0}")]
    State(#[from] StateError),
}

impl SeekingError {
    /// The word for it, where there is one.
    #[must_use]
    pub fn reason(&self) -> Option<&'static str> {
        match self {
            Self::Token { refusal, .. } => Some(refusal.word()),
            Self::Site { .. } => Some(Refusal::WrongSite.word()),
            Self::File(_) | Self::State(_) => None,
        }
    }
}

pub struct Seeking {
    token: Token,
    /// The site's own, which is to be certified.
    key: StaticSecret,
    /// Where its certificate goes.
    certificate: PathBuf,
    trust: Trust,
    state: Arc<StateDir>,
    told: Arc<Told>,
    refused: Mutex<Option<String>>,
    /// The site has joined: the agent is to begin anew.
    pub joined: Notify,
}

impl Seeking {
    /// None: this site does not join anything.
    pub fn load(
        config: &Config,
        key: &StaticSecret,
        state: &Arc<StateDir>,
        told: &Arc<Told>,
    ) -> Result<Option<Self>, SeekingError> {
        let file = state.file(TOKEN);
        let text = match keys::read_text(&file, TOKEN_BYTES_MAX as u64 * 2) {
            Ok(text) => text,
            Err(KeyFileError::Missing(_)) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let refused = |refusal| SeekingError::Token { file: file.clone(), refusal };
        let token = Token::parse(&text).map_err(refused)?;
        let site = &config.settings.site;
        if token.terms().site != *site {
            return Err(SeekingError::Site { file, token: token.terms().site.clone(), site: site.clone() });
        }
        let trust = token.trust().map_err(refused)?;
        Ok(Some(Self {
            token,
            key: key.clone(),
            certificate: config.credentials.own_file.clone(),
            trust,
            state: state.clone(),
            told: told.clone(),
            refused: Mutex::default(),
            joined: Notify::new(),
        }))
    }

    /// The key of the invitation, which is this gateway's until it has joined.
    pub fn key(&self) -> StaticSecret {
        StaticSecret::from(*self.token.terms().secret)
    }

    /// What the gateway is meanwhile: nobody's but the issuer's and the hubs'. Where the file knows more of one of these, such as a
    /// proxy on the way, that is taken.
    pub fn instead(&self, mut config: Config) -> Config {
        let (mut peers, mut endpoints, mut carriers) = (Vec::new(), Vec::new(), Vec::new());
        for gateway in self.gateways() {
            let known = config.settings.peers.iter().find(|peer| peer.public_key == gateway.public_key);
            let site = known.map_or(&gateway.site, |known| &known.identity.site);
            let endpoint = config.endpoints.iter().find(|(of, _)| of == site).map(|(_, endpoint)| endpoint.clone());
            endpoints.extend(endpoint.or_else(|| gateway.endpoint.clone()).map(|endpoint| (site.clone(), endpoint)));
            let carrier = config.carriers.iter().find(|(of, _)| of == site).map(|(_, carrier)| carrier.clone());
            let told = || gateway.tls.clone().map(|hub| CarrierSettings { hub, proxy: None });
            carriers.extend(carrier.or_else(told).map(|carrier| (site.clone(), carrier)));
            peers.push(known.cloned().unwrap_or_else(|| peer(gateway)));
        }
        config.settings.peers = peers;
        (config.endpoints, config.carriers) = (endpoints, carriers);
        config.settings.hub = None;
        config.settings.clients.clear();
        config.settings.exposures.clear();
        config.settings.mappings.clear();
        config.credentials.trust = Trust::default();
        config.credentials.own = None;
        config.credentials.revocations = None;
        config.credentials.members.clear();
        (config.hub_tls, config.dns, config.issuer) = (None, None, None);
        config
    }

    fn gateways(&self) -> impl Iterator<Item = &Gateway> {
        let terms = self.token.terms();
        std::iter::once(&terms.issuer).chain(&terms.hubs)
    }

    /// What is asked of the peer with this key; nothing of the issuer once it has refused.
    #[must_use]
    pub fn ask(&self, peer: &PublicKey) -> Ask {
        let terms = self.token.terms();
        if terms.issuer.public_key != *peer || self.refused().is_some() {
            return Ask::Introductions;
        }
        let public_key = X25519::from(&self.key).to_bytes();
        let invited = X25519::from(&self.key()).to_bytes();
        Ask::Join { public_key, possession: possession(&self.key, &terms.issuer.public_key, &invited, &public_key) }
    }

    /// What the issuer answered: a certificate, or the word for why not. May wait for the disk.
    pub fn answered(&self, answer: Result<Vec<u8>, String>) {
        match answer.and_then(|certificate| self.take(&certificate)) {
            Ok(certificate) => {
                let (serial, end) = (certificate.serial(), rfc3339(certificate.not_after()));
                self.tell("joined", None, format!("tenant {}, serial {serial}, until {end}", certificate.tenant()));
                self.joined.notify_one();
            }
            Err(why) => {
                let reason = match JoinRefusal::of_word(&why) {
                    Some(refusal) => refusal.to_string(),
                    None => why.clone(),
                };
                tracing::warn!("this site does not join: {reason}; ask for another invitation");
                *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
                self.tell("join-refused", Some(why), format!("by {}", self.token.terms().issuer.site));
            }
        }
    }

    fn take(&self, bytes: &[u8]) -> Result<Certificate, String> {
        let key = X25519::from(&self.key).to_bytes();
        let site = &self.token.terms().site;
        let certificate =
            Certificate::verify(bytes, (site, &key), &self.trust, &Revocations::default(), unix_seconds());
        let certificate = certificate.map_err(|refusal| refusal.word().to_owned())?;
        let issuer = self.token.terms().issuer.site.clone();
        let text = encode(Label::Certificate, &certificate.to_bytes());
        let kept = write_whole(&self.certificate, text.as_bytes())
            .and_then(|()| Kept { issuer }.save(&self.state))
            .and_then(|()| self.state.remove(TOKEN));
        kept.map_err(|error| error.to_string())?;
        Ok(certificate)
    }

    fn refused(&self) -> Option<String> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    #[must_use]
    pub fn shown(&self) -> api::Joining {
        let terms = self.token.terms();
        api::Joining {
            tenant: terms.tenant.to_string(),
            issuer: terms.issuer.site.to_string(),
            expires: rfc3339(self.token.not_after()),
            refused: self.refused(),
        }
    }

    #[must_use]
    pub fn finding(&self) -> Finding {
        let api::Joining { tenant, issuer, expires, refused } = self.shown();
        let (severity, detail, fix) = match refused {
            // Its issuer decides; but one that has long forgotten it says nothing.
            None if unix_seconds() >= self.token.not_after() => {
                let detail =
                    format!("this site has an invitation of {tenant} that ended at {expires}, and did not join");
                ("error", detail, "ask for another invitation, then vp-ctl join")
            }
            None => {
                let detail = format!("this site has an invitation of {tenant} until {expires} and asks {issuer}");
                ("warning", detail, "see that UDP passes, to it or to a hub that is up")
            }
            Some(reason) => {
                let detail = format!("{issuer} did not let this site join: {reason}");
                ("error", detail, "ask for another invitation, then vp-ctl join")
            }
        };
        let (name, severity, fix) = ("joining".to_owned(), severity.to_owned(), Some(fix.to_owned()));
        Finding { name, severity, detail, fix }
    }

    fn tell(&self, event: &str, reason: Option<String>, detail: String) {
        let (site, peer) = (self.token.terms().site.to_string(), self.token.terms().issuer.site.to_string());
        self.told.tell(AuditRecord {
            event: event.to_owned(),
            site,
            peer: Some(peer),
            reason,
            detail: Some(detail),
            ..AuditRecord::default()
        });
    }
}

fn peer(of: &Gateway) -> PeerSettings {
    PeerSettings {
        identity: Identity { site: of.site.clone(), tenant: None, groups: Vec::new() },
        public_key: of.public_key,
        preshared_key: None,
        endpoint: of.endpoint.as_ref().and_then(|endpoint| endpoint.parse().ok()),
        carrier: None,
        keepalive_seconds: Some(KEEPALIVE_SECONDS),
        stock: false,
        hub: of.hub,
        guest: None,
    }
}
