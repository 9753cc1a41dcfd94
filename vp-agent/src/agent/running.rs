//! The loop of the control thread: what the node tells, until the stop.

use super::Agent;
use crate::control::Notice;
use crate::dataplane;
use crate::state::Syncer;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::mpsc;
use vp::node::Event;

/// How often names of peers that are away are resolved again.
const RESOLVE_PAUSE: Duration = Duration::from_secs(30);
/// How often the lease journal goes to the disk, and what was learnt of peers' endpoints.
const SYNC_PAUSE: Duration = Duration::from_secs(1);

/// What ends with the process.
pub struct Running {
    pub agent: Arc<Agent>,
    pub(super) events: mpsc::Receiver<Event>,
    pub(super) notices: mpsc::Receiver<Notice>,
    pub(super) syncer: Syncer,
    pub(super) data: JoinHandle<()>,
}

impl Running {
    /// Carries events until told to stop. An error when there is nothing to carry any more.
    pub async fn run(&mut self, mut stop: impl Future<Output = ()> + Unpin) -> Result<(), dataplane::Gone> {
        let mut resolve = tokio::time::interval(RESOLVE_PAUSE);
        let mut sync = tokio::time::interval(SYNC_PAUSE);
        loop {
            tokio::select! {
                () = &mut stop => return Ok(()),
                event = self.events.recv() => match event {
                    Some(event) => self.take(event).await,
                    None => return Err(dataplane::Gone),
                },
                Some(notice) = self.notices.recv() => self.notice(notice).await,
                _ = resolve.tick() => {
                    self.agent.resolve().await;
                    self.agent.restore().await;
                }
                _ = sync.tick() => self.sync().await,
            }
        }
    }

    async fn take(&mut self, event: Event) {
        self.agent.control.handle_event(&event);
        match event {
            Event::Granted(_) | Event::Released(_) | Event::PresencesChanged => {
                let changed = self.agent.wanted.lock().await.presences_changed(&self.agent.handle).await;
                changed.unwrap_or_else(|error| tracing::warn!("presences: {error}"));
            }
            Event::PeerUp(peer) => {
                if let Some(site) = self.agent.site_of(peer).await {
                    tracing::info!("peer {site} is up");
                    self.agent.tell_peer("peer-up", &site).await;
                }
            }
            Event::PeerDown(peer) => {
                if let Some(site) = self.agent.site_of(peer).await {
                    tracing::info!("peer {site} is down");
                    self.agent.tell_peer("peer-down", &site).await;
                }
            }
            Event::PeerMoved { peer, to } => {
                if let Some(site) = self.agent.site_of(peer).await {
                    tracing::info!("peer {site} is at {to}");
                    let mut wanted = self.agent.wanted.lock().await;
                    wanted.endpoints.0.insert(site.to_string(), to);
                    wanted.endpoints_unsaved = true;
                }
            }
            Event::Control { .. } | Event::OfferChanged(_) => {}
            event @ (Event::FlowOpened(_) | Event::FlowClosed { .. } | Event::Denied(_)) => {
                self.agent.tell_flow(event).await;
            }
        }
    }

    async fn notice(&mut self, notice: Notice) {
        if let Notice::OfferRefused { peer, reason } = &notice {
            let site = self.agent.site_of(*peer).await.map(|site| site.to_string()).unwrap_or_default();
            tracing::warn!("peer {site}: its offer was refused: {reason}");
            self.agent.tell("offer-refused", format!("{site}: {reason}")).await;
        }
    }

    async fn sync(&self) {
        self.agent.audit.lock().await.tick();
        if let Err(error) = self.syncer.sync() {
            tracing::warn!("the lease journal does not reach the disk: {error}");
        }
        let mut wanted = self.agent.wanted.lock().await;
        if wanted.endpoints_unsaved {
            match wanted.endpoints.save(&wanted.state) {
                Ok(()) => wanted.endpoints_unsaved = false,
                Err(error) => tracing::warn!("{error}"),
            }
        }
    }

    /// The host as it was before.
    pub async fn stop(self) {
        let mut wanted = self.agent.wanted.lock().await;
        if let Some(network) = wanted.network.take() {
            network.remove().await.unwrap_or_else(|error| tracing::warn!("routes: {error:#}"));
        }
        if let Some(nft) = wanted.nft.take() {
            nft.remove().await.unwrap_or_else(|error| tracing::warn!("nftables: {error:#}"));
        }
        self.agent.handle.stop();
        self.data.join().ok();
        self.syncer.sync().ok();
    }
}
