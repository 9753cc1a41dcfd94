//! The loop of the control thread: what the node tells, until the stop. Nothing in it waits for the disk, for name
//! servers or for other programs.

use super::names::{Known, Names, peer_of};
use super::records::{Own, denial_record, flow_record, limited_record, lost_record, observed_record, peer_record};
use super::{Agent, tasks};
use crate::audit::Entry;
use crate::control::Notice;
use crate::dataplane;
use crate::state::Syncer;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::mpsc;
use vp::addr::PeerId;
use vp::node::{Event, Node, Output};

/// Events taken at a time, before others of the control thread have their turn: a millisecond's work.
const EVENTS_MAX: usize = 256;
/// Flows whose ends are told at a time at a stop: what the event queue has room for.
const FLOWS_AT_A_TIME: u32 = 4096;
/// How often denials that were summed up are written.
const TICK: Duration = Duration::from_secs(1);

/// What ends with the process.
pub struct Running {
    pub agent: Arc<Agent>,
    events: mpsc::Receiver<Event>,
    notices: mpsc::Receiver<Notice>,
    syncer: Arc<Syncer>,
    data: JoinHandle<()>,
    names: Names,
    /// Events that the audit log says were lost.
    lost_told: u64,
}

impl Running {
    pub(super) fn new(
        agent: Arc<Agent>,
        events: mpsc::Receiver<Event>,
        notices: mpsc::Receiver<Notice>,
        syncer: Syncer,
        data: JoinHandle<()>,
    ) -> Self {
        Self { agent, events, notices, syncer: Arc::new(syncer), data, names: Names::default(), lost_told: 0 }
    }

    /// Carries events until told to stop. An error when there is nothing to carry any more.
    pub async fn run(&mut self, mut stop: impl Future<Output = ()> + Unpin) -> Result<(), dataplane::Gone> {
        tasks::spawn(&self.agent, &self.syncer);
        let mut tick = tokio::time::interval(TICK);
        let mut events = Vec::with_capacity(EVENTS_MAX);
        loop {
            tokio::select! {
                () = &mut stop => return Ok(()),
                taken = self.events.recv_many(&mut events, EVENTS_MAX) => {
                    if taken == 0 {
                        return Err(dataplane::Gone);
                    }
                    self.take(&mut events).await;
                    tokio::task::yield_now().await;
                }
                Some(notice) = self.notices.recv() => self.notice(notice).await,
                _ = tick.tick() => {
                    self.agent.audit.tick();
                    self.tell_lost().await;
                }
            }
        }
    }

    /// What found no room on its way here is missing in the log, which says so.
    async fn tell_lost(&mut self) {
        let of_node = self.agent.handle.call(|node, _, _| node.events_lost()).await.unwrap_or(0);
        let lost = of_node + self.agent.handle.counters().events_lost.load(Ordering::Relaxed);
        if lost > self.lost_told {
            let more = lost - self.lost_told;
            self.lost_told = lost;
            self.agent.audit.write([Entry::Record(lost_record(self.agent.site.as_str(), more))]);
        }
    }

    async fn take(&mut self, events: &mut Vec<Event>) {
        let mut is_asked = self.agent.peers_changed.swap(false, Ordering::Relaxed);
        if is_asked {
            self.names.ask(&self.agent.handle).await;
        }
        let mut entries = Vec::with_capacity(events.len());
        for event in events.drain(..) {
            let unknown = peer_of(&event).is_some_and(|peer| self.names.of(peer).is_none());
            if unknown && !is_asked {
                self.names.ask(&self.agent.handle).await;
                is_asked = true;
            }
            self.agent.control.handle_event(&event);
            entries.extend(self.entry(&event));
            self.act(&event);
            if let Event::PeerDown(peer) = event {
                self.names.forget(peer);
                is_asked = false;
            }
        }
        self.agent.audit.write(entries);
    }

    fn act(&self, event: &Event) {
        match event {
            Event::Granted(_) | Event::Released(_) | Event::PresencesChanged => {
                self.agent.presences_changed.notify_one();
            }
            Event::PeerUp(peer) => tracing::info!("peer {} is up", self.name(*peer)),
            Event::PeerDown(peer) => tracing::info!("peer {} is down", self.name(*peer)),
            Event::PeerMoved { peer, to } => {
                if let Some(Known { name, .. }) = self.names.of(*peer) {
                    tracing::info!("peer {name} is at {to}");
                    to.endpoint().into_iter().for_each(|endpoint| self.agent.learn_endpoint(name, endpoint));
                }
            }
            Event::Control { .. }
            | Event::OfferChanged(_)
            | Event::IntroductionsChanged(_)
            | Event::FlowOpened(_)
            | Event::FlowClosed { .. }
            | Event::Denied(_)
            | Event::Observed(_)
            | Event::Limited(_) => {}
        }
    }

    /// What the audit log has of this event.
    fn entry(&self, event: &Event) -> Option<Entry> {
        let own = Own { site: self.agent.site.as_str(), public_key: &self.agent.public_key };
        let peer = |peer| self.names.of(peer);
        match event {
            Event::PeerUp(of) => Some(Entry::Record(peer_record("peer-up", &own, peer(*of)?))),
            Event::PeerDown(of) => Some(Entry::Record(peer_record("peer-down", &own, peer(*of)?))),
            Event::FlowOpened(flow) => {
                Some(Entry::Record(flow_record("flow-opened", &own, peer(flow.peer), flow, None)))
            }
            Event::FlowClosed { flow, end } => {
                Some(Entry::Record(flow_record("flow-closed", &own, peer(flow.peer), flow, Some(*end))))
            }
            Event::Denied(denial) => Some(Entry::Denial(denial_record(&own, denial.peer.and_then(peer), denial))),
            Event::Observed(denial) => Some(Entry::Denial(observed_record(&own, denial.peer.and_then(peer), denial))),
            Event::Limited(limited) => Some(Entry::Record(limited_record(&own, limited))),
            Event::Granted(_)
            | Event::Released(_)
            | Event::Control { .. }
            | Event::PeerMoved { .. }
            | Event::OfferChanged(_)
            | Event::IntroductionsChanged(_)
            | Event::PresencesChanged => None,
        }
    }

    async fn notice(&mut self, notice: Notice) {
        let (Notice::Opened(peer)
        | Notice::Closed(peer)
        | Notice::OfferTaken { peer, .. }
        | Notice::OfferRefused { peer, .. }
        | Notice::Introduced { hub: peer, .. }
        | Notice::IntroductionsRefused { hub: peer, .. }
        | Notice::CredentialRefused { peer, .. }
        | Notice::RevocationsTaken { peer, .. }
        | Notice::Registered { peer, .. }
        | Notice::RegistrationRefused { peer, .. }) = notice;
        if self.names.of(peer).is_none() {
            self.names.ask(&self.agent.handle).await;
        }
        let site = self.name(peer);
        match notice {
            Notice::Opened(_) => tracing::info!("peer {site}: the control channel is open"),
            Notice::Closed(_) => tracing::info!("peer {site}: the control channel is closed"),
            Notice::OfferTaken { services, .. } => {
                tracing::info!("peer {site}: its offer was taken, services: {services}")
            }
            Notice::Introduced { sites, .. } => tracing::info!("hub {site} told of other sites: {sites}"),
            Notice::IntroductionsRefused { reason, .. } => {
                tracing::warn!("hub {site}: what it told of other sites was refused: {reason}");
                self.agent.tell("introductions-refused", format!("{site}: {reason}"));
            }
            Notice::OfferRefused { reason, .. } => {
                tracing::warn!("peer {site}: its offer was refused: {reason}");
                self.agent.tell("offer-refused", format!("{site}: {reason}"));
            }
            Notice::CredentialRefused { what, refusal, .. } => {
                tracing::warn!("peer {site}: {what:?} refused: {refusal}");
                self.agent.tell_refused(Some(&site), what, refusal);
            }
            Notice::RevocationsTaken { tenant, version, .. } => {
                tracing::info!("peer {site}: revocations of {tenant}, version {version}");
                self.agent.tell_revocations(Some(&site), &tenant, version);
            }
            Notice::Registered { place, .. } => {
                tracing::info!("peer {site}: registered {place}");
                self.agent.tell_registered(self.names.of(peer), Ok(place));
            }
            Notice::RegistrationRefused { refusal, .. } => {
                tracing::warn!("peer {site}: not registered: {refusal}");
                self.agent.tell_registered(self.names.of(peer), Err(refusal));
            }
        }
    }

    /// For people; one that was just removed from the configuration may have none.
    fn name(&self, peer: PeerId) -> String {
        self.names.of(peer).map_or_else(|| "(removed)".to_owned(), |known| known.name.to_string())
    }

    /// The host as it was before.
    pub async fn stop(mut self) {
        self.agent.dns.stop().await;
        let mut wanted = self.agent.wanted.lock().await;
        if let Some(network) = wanted.network.take() {
            network.remove().await.unwrap_or_else(|error| tracing::warn!("routes: {error:#}"));
        }
        if let Some(nft) = wanted.nft.take() {
            nft.remove().await.unwrap_or_else(|error| tracing::warn!("nftables: {error:#}"));
        }
        drop(wanted);
        let mut last = Vec::new();
        // What comes meanwhile may open flows again: no more than are there now.
        let flows = self.agent.handle.call(|node, _, _| node.settings().flows_max).await.unwrap_or(0);
        for _ in 0..flows.div_ceil(FLOWS_AT_A_TIME) {
            let stop = |node: &mut Node, _: &mut Output, now| node.stop_flows(FLOWS_AT_A_TIME as usize, now);
            let Ok(1..) = self.agent.handle.call(stop).await else { break };
            while let Ok(event) = self.events.try_recv() {
                last.extend(self.entry(&event));
            }
        }
        self.agent.handle.stop();
        // Until the data thread has ended.
        while let Some(event) = self.events.recv().await {
            last.extend(self.entry(&event));
        }
        self.data.join().ok();
        self.agent.audit.write(last);
        self.agent.write_told();
        self.agent.audit.stop().await;
        tasks::keep(&self.agent, &self.syncer);
    }
}
