//! Invitations, joining and renewal, made true: whom this issuer invited is a peer, and what the clock says is done.

use super::{Agent, Refused};
use crate::audit::Entry;
use crate::clock::unix_seconds;
use crate::config::Config;
use crate::control::RegisterError;
use crate::joining::{Order, Renewal, Way};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::spawn_blocking;
use tokio::time::{MissedTickBehavior, interval, sleep};
use vp::addr::Name;
use vp::identity::{Certificate, Gateway};
use vp_proto::api;

/// How often the clock is asked whether an invitation has expired, or a certificate is to be renewed.
const PAUSE: Duration = Duration::from_secs(1);
const EXPIRES_SECONDS: u64 = 15 * 60;
const CERTIFICATE_SECONDS: u64 = 30 * 24 * 3600;

/// What is to be told goes to the audit log.
pub(super) async fn tell(agent: Arc<Agent>) {
    loop {
        agent.told.changed.notified().await;
        agent.write_told();
    }
}

/// Guests come and go with their invitations.
pub(super) async fn follow_invitations(agent: Arc<Agent>) {
    let mut tick = interval(PAUSE);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {
                let issuing = agent.issuing.clone();
                spawn_blocking(move || issuing.review(unix_seconds())).await.ok();
            }
            () = agent.issuing.changed.notified() => agent.settle().await,
        }
    }
}

/// This site's certificate, where an issuer renews it.
pub(super) async fn renew(agent: Arc<Agent>) {
    let Some(renewal) = agent.renewal.clone() else { return };
    loop {
        let (certificate, file) = agent.identities.own_certificate();
        let now = unix_seconds();
        let Some(certificate) = certificate.filter(|certificate| now >= Renewal::due(certificate)) else {
            sleep(PAUSE).await;
            continue;
        };
        let issuer = renewal.issuer.clone();
        let peer = agent.handle.call(move |node, _, _| node.peer_by_site(&issuer)).await;
        let answer = match peer.ok().flatten() {
            None => Err(format!("{} is no peer of this site", renewal.issuer)),
            Some(peer) => match agent.control.renew(peer, certificate.serial().0).await {
                Ok(answer) => answer,
                Err(error) => Err(error.to_string()),
            },
        };
        let (taking, before, looking) = (renewal.clone(), certificate.clone(), agent.identities.clone());
        let taken = spawn_blocking(move || {
            let is_renewed = taking.answered(answer, &before, &file);
            if is_renewed {
                looking.look_at_files(unix_seconds());
            }
            is_renewed
        });
        if !taken.await.unwrap_or(false) {
            sleep(renewal.pause(&certificate, unix_seconds())).await;
        }
    }
}

impl Agent {
    pub(super) fn write_told(&self) {
        self.audit.write(self.told.take().into_iter().map(Entry::Record));
    }

    /// Until this site has joined; for ever, if it does not join.
    pub async fn joined(&self) {
        match &self.seeking {
            Some(seeking) => seeking.joined.notified().await,
            None => std::future::pending().await,
        }
    }

    /// What is not to be changed while the gateway is nobody yet.
    pub(super) fn check_joined(&self) -> Result<(), Refused> {
        match &self.seeking {
            None => Ok(()),
            Some(seeking) => {
                let issuer = seeking.shown().issuer;
                Err(Refused::Request(format!("this site is joining by {issuer}, expected to wait until it has joined")))
            }
        }
    }

    /// Of a site that joined, as long as it has a certificate.
    #[must_use]
    pub fn renewing(&self) -> Option<(&Renewal, Certificate)> {
        Some((self.renewal.as_deref()?, self.identities.own_certificate().0?))
    }

    /// An invitation that whoever has the token may use from now on.
    pub async fn invite(&self, request: api::InviteRequest) -> Result<api::InviteResponse, Refused> {
        self.check_joined()?;
        let name = |text: &str| Name::new(text).map_err(|error| Refused::Request(format!("{text:?}: {error}")));
        let order = Order {
            site: name(&request.site)?,
            groups: request.groups.iter().map(|group| name(group)).collect::<Result<_, _>>()?,
            expires_seconds: request.expires_seconds.unwrap_or(EXPIRES_SECONDS),
            uses: request.uses.unwrap_or(1),
            valid_seconds: request.certificate_seconds.unwrap_or(CERTIFICATE_SECONDS),
        };
        let way = {
            let wanted = self.wanted.lock().await;
            if wanted.runtime.peers.iter().any(|peer| peer.site == request.site) {
                let message = format!("{} is a peer of vp-ctl peer add, expected another site", request.site);
                return Err(Refused::Request(message));
            }
            Way { is_hub: wanted.config.settings.hub.is_some(), hubs: hubs(&wanted.config) }
        };
        let issuing = self.issuing.clone();
        let invited = spawn_blocking(move || issuing.invite(&order, way, unix_seconds())).await;
        let (token, invitation) = invited.map_err(|error| Refused::Host(error.into()))?.map_err(Refused::Request)?;
        // Who has the token finds the door open, also behind a hub.
        self.settle().await;
        let warnings = self.register_at_hubs().await;
        let token = token.to_text().to_string();
        Ok(api::InviteResponse { invitation, token, warnings })
    }
}

/// What hubs are to know of whom this issuer invited and certified; again and again until they do.
pub(super) async fn follow_hubs(agent: Arc<Agent>) {
    let mut tick = interval(PAUSE);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = agent.issuing.issued.notified() => {}
        }
        agent.register_at_hubs().await;
    }
}

impl Agent {
    /// What could not be done, one line each; it is tried again.
    async fn register_at_hubs(&self) -> Vec<String> {
        if self.issuing.tenant().is_none() {
            return Vec::new();
        }
        let _one_at_a_time = self.registering.lock().await;
        let hubs = self.handle.call(|node, _, _| {
            let hubs = node.peer_settings().filter(|(_, peer)| peer.hub);
            hubs.map(|(id, peer)| (id, peer.identity.site.clone())).collect::<Vec<_>>()
        });
        let mut failed = Vec::new();
        for (id, hub) in hubs.await.unwrap_or_default() {
            let mut done = Vec::new();
            for (key, offered) in self.issuing.unregistered(&hub) {
                match self.control.register(id, offered).await {
                    Ok(()) | Err(RegisterError::NoHub) => done.push(key),
                    Err(error @ RegisterError::Refused(_)) => {
                        tracing::warn!("hub {hub}: {error}");
                        failed.push(format!("hub {hub}: {error}"));
                        done.push(key);
                    }
                    Err(error @ RegisterError::Later(_)) => {
                        failed.push(format!("hub {hub} does not know of it yet: {error}"));
                        break;
                    }
                }
            }
            if !done.is_empty() {
                let issuing = self.issuing.clone();
                spawn_blocking(move || issuing.registered(&done, &hub)).await.ok();
            }
        }
        failed
    }
}

/// Those that a site can be told of: by key or by certificate.
fn hubs(config: &Config) -> Vec<Gateway> {
    let members = config.credentials.members.iter().map(|member| &member.settings);
    let hubs = config.settings.peers.iter().chain(members).filter(|peer| peer.hub);
    let gateway = |peer: &vp::node::PeerSettings| {
        let site = peer.identity.site.clone();
        let endpoint = config.endpoints.iter().find(|(of, _)| *of == site).map(|(_, endpoint)| endpoint.clone());
        let tls = config.carriers.iter().find(|(of, _)| *of == site).map(|(_, carrier)| carrier.hub.clone());
        Gateway { site, public_key: peer.public_key, endpoint, tls, hub: true }
    };
    hubs.map(gateway).collect()
}
