//! The control channel: what the agents of a tunnel say to each other, over TCP that ends inside them. For each peer
//! that has an agent there is a stack, a service that the peer calls, and a client that calls the peer's: offers and
//! credentials go both ways.
//!
//! It opens no port of the host, decides nothing about packets, and keeps nothing: offers belong to the node.

mod attend;
mod client;
mod connection;
mod credentials;
mod join;
mod link;
pub mod offer;
mod register;
mod server;
mod stack;
#[cfg(test)]
mod tests;

pub use credentials::What;
pub use link::{Link, Target};
pub use register::RegisterError;

use crate::identity::Place;
use client::Client;
use connection::Wire;
use server::Announcements;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tonic::transport::Channel;
use tracing::warn;
use vp::addr::{Name, PeerId};
use vp::identity::Refusal;
use vp::node::Event;
use vp_proto::control::control_client::ControlClient;
use vp_proto::control::{
    ClockRequest, ClockResponse, ExplainRequest, ExplainResponse, ProbeOutcome, ProbeRequest, ProbeResponse, ReplyRoute,
};

/// Packets of one peer that wait for their turn; TCP sends again what finds no room.
const PACKETS_MAX: usize = 256;
/// Connections of one peer that wait for the service.
const ACCEPTED_MAX: usize = stack::CONNECTIONS_MAX;
/// News that wait to be read; what finds no room is lost and logged.
const NOTICES_MAX: usize = 256;
/// For an answer to an operator's question: longer than the far gateway waits for its target.
const ANSWER: Duration = Duration::from_secs(6);
/// The rule of a peer, for people.
const RULE_CHARACTERS_MAX: usize = 100;

/// What happened, to be audited and shown.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Notice {
    /// The peer's control service answers.
    Opened(PeerId),
    Closed(PeerId),
    OfferTaken {
        peer: PeerId,
        services: usize,
    },
    /// The offer was bad and the one before it stays; `reason` is one line, safe to print.
    OfferRefused {
        peer: PeerId,
        reason: String,
    },
    /// A hub told of so many sites that this one may deal with.
    Introduced {
        hub: PeerId,
        sites: usize,
    },
    /// What a hub told was bad, and what it told before stays; `reason` is one line, safe to print.
    IntroductionsRefused {
        hub: PeerId,
        reason: String,
    },
    /// A certificate or a list of revocations was bad; what was known stays.
    CredentialRefused {
        peer: PeerId,
        what: What,
        refusal: Refusal,
    },
    RevocationsTaken {
        peer: PeerId,
        tenant: Name,
        version: u64,
    },
    /// The peer had something registered here, which stands there now.
    Registered {
        peer: PeerId,
        place: Place,
    },
    RegistrationRefused {
        peer: PeerId,
        refusal: Refusal,
    },
}

/// All peers' channels.
#[derive(Clone)]
pub struct Control<L> {
    shared: Arc<Shared<L>>,
}

struct Shared<L> {
    link: L,
    notices: Notices,
    peers: Mutex<Peers>,
    packets_lost: AtomicU64,
    /// What this site says to its hubs may have changed.
    attendance: watch::Sender<()>,
}

struct Peers {
    channels: BTreeMap<PeerId, Peer>,
    random: u64,
}

/// One peer's channel; it ends when this is dropped.
struct Peer {
    packets: mpsc::Sender<Vec<u8>>,
    announcements: Arc<Announcements>,
    hurry: Arc<Notify>,
    channel: watch::Receiver<Option<ControlClient<Channel>>>,
    task: JoinHandle<()>,
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Clone)]
struct Notices(mpsc::Sender<Notice>);

/// What the far gateway found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Probe {
    pub outcome: ProbeOutcome,
    /// Between the far gateway and its target.
    pub target_round_trip: Duration,
    /// Between this gateway and the far one, through the tunnel.
    pub gateway_round_trip: Duration,
}

/// What the far gateway would decide, or the reason that does not allow it.
pub type Verdict = Result<FarAllowed, String>;

/// What the far gateway says of a call that its policy allows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FarAllowed {
    pub rule: String,
    /// Why a new flow would be refused all the same: empty for none, absent where the agent does not say.
    pub limit: Option<String>,
    /// What it would be refused for if the limits that only observe were enforced; empty for nothing.
    pub observed: String,
    pub reply_route: ReplyRoute,
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AskError {
    #[error("the control channel is closed")]
    Closed,
    #[error("the far gateway did not answer within {} s", ANSWER.as_secs())]
    Silent,
    #[error("the far gateway answered: {0}")]
    Refused(String),
}

impl<L: Link> Control<L> {
    /// Nothing runs before the first event. `seed` must differ from start to start.
    pub fn start(link: L, seed: u64) -> (Self, mpsc::Receiver<Notice>) {
        let (notices, read) = mpsc::channel(NOTICES_MAX);
        let peers = Mutex::new(Peers { channels: BTreeMap::new(), random: seed });
        let (packets_lost, attendance) = (AtomicU64::new(0), watch::Sender::default());
        let shared = Shared { link, notices: Notices(notices), peers, packets_lost, attendance };
        (Self { shared: Arc::new(shared) }, read)
    }

    /// Takes what concerns the control channel and leaves the rest. Called within the runtime.
    pub fn handle_event(&self, event: &Event) {
        match event {
            Event::Control { peer, packet } => self.receive(*peer, packet),
            Event::PeerUp(peer) => self.peer_up(*peer),
            Event::PeerDown(peer) => {
                let ended = self.peers().channels.remove(peer);
                if ended.is_some_and(|ended| ended.channel.borrow().is_some()) {
                    self.shared.notices.tell(Notice::Closed(*peer));
                }
            }
            Event::OfferChanged(peer) => {
                if let Some(channel) = self.peers().channels.get(peer) {
                    channel.announcements.offer.announce();
                }
            }
            Event::IntroductionsChanged(peer) => {
                if let Some(channel) = self.peers().channels.get(peer) {
                    channel.announcements.introductions.announce();
                }
            }
            _ => {}
        }
    }

    /// What this site wants of others, or allows them, is perhaps not what it was.
    pub fn attendance_changed(&self) {
        self.shared.attendance.send_replace(());
    }

    /// Packets of peers that found no room or nobody to take them.
    #[must_use]
    pub fn packets_lost(&self) -> u64 {
        self.shared.packets_lost.load(Ordering::Relaxed)
    }

    /// Whether the peer's control service answers.
    #[must_use]
    pub fn is_open(&self, peer: PeerId) -> bool {
        self.client(peer).is_some()
    }

    /// Asks the far gateway whether the service's target answers.
    pub async fn probe(&self, peer: PeerId, target: &Target) -> Result<Probe, AskError> {
        let mut client = self.client(peer).ok_or(AskError::Closed)?;
        let start = Instant::now();
        let request = ProbeRequest {
            service: target.service.to_string(),
            protocol: offer::write_protocol(target.protocol).into(),
            port: target.port.into(),
        };
        let ProbeResponse { outcome, round_trip_micros } = answer(client.probe(request)).await?;
        let elapsed = start.elapsed();
        let target_round_trip = Duration::from_micros(round_trip_micros).min(elapsed);
        Ok(Probe {
            outcome: ProbeOutcome::try_from(outcome).unwrap_or(ProbeOutcome::Unspecified),
            target_round_trip,
            gateway_round_trip: elapsed - target_round_trip,
        })
    }

    /// Asks the far gateway what it would decide about this site's caller; none: any host of this site.
    pub async fn explain(&self, peer: PeerId, target: &Target, caller: Option<u16>) -> Result<Verdict, AskError> {
        let mut client = self.client(peer).ok_or(AskError::Closed)?;
        let request = ExplainRequest {
            service: target.service.to_string(),
            caller: caller.unwrap_or(0).into(),
            protocol: offer::write_protocol(target.protocol).into(),
            port: target.port.into(),
        };
        let response = answer(client.explain(request)).await?;
        if !response.allowed {
            return Ok(Err(printable(&response.reason)));
        }
        let reply_route = response.reply_route();
        let ExplainResponse { rule, limit, observed, .. } = response;
        let (rule, observed) = (printable(&rule), printable(&observed));
        Ok(Ok(FarAllowed { rule, limit: limit.map(|limit| printable(&limit)), observed, reply_route }))
    }

    /// By how many milliseconds the peer's clock is ahead of this one, as of the middle of the question.
    pub async fn clock(&self, peer: PeerId) -> Result<i64, AskError> {
        let mut client = self.client(peer).ok_or(AskError::Closed)?;
        let (start, begun) = (Instant::now(), crate::clock::unix_millis());
        let ClockResponse { unix_millis } = answer(client.clock(ClockRequest {})).await?;
        let middle = begun.saturating_add(u64::try_from(start.elapsed().as_millis() / 2).unwrap_or(u64::MAX));
        Ok(i64::try_from(i128::from(unix_millis) - i128::from(middle)).unwrap_or(i64::MAX))
    }

    fn client(&self, peer: PeerId) -> Option<ControlClient<Channel>> {
        self.peers().channels.get(&peer)?.channel.borrow().clone()
    }

    fn peer_up(&self, peer: PeerId) {
        let mut peers = self.peers();
        match peers.channels.get(&peer) {
            Some(channel) if !channel.task.is_finished() => channel.hurry.notify_one(),
            Some(_) | None => {
                let channel = self.open(peer, peers.next_seed());
                peers.channels.insert(peer, channel);
            }
        }
    }

    /// A packet of a peer whose coming up was not noticed brings it up too.
    fn receive(&self, peer: PeerId, packet: &[u8]) {
        let mut peers = self.peers();
        let seed = peers.next_seed();
        let channel = peers.channels.entry(peer).or_insert_with(|| self.open(peer, seed));
        if channel.packets.try_send(packet.to_vec()).is_err() {
            self.shared.packets_lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn open(&self, peer: PeerId, seed: u64) -> Peer {
        let (packets, taken) = mpsc::channel(PACKETS_MAX);
        let (channel, open) = watch::channel(None);
        let announcements = Arc::new(Announcements::default());
        let hurry = Arc::new(Notify::new());
        let (link, notices) = (self.shared.link.clone(), self.shared.notices.clone());
        let attendance = self.shared.attendance.subscribe();
        let client =
            Client { peer, link, notices, channel, attendance, jitter: seed | 1, refused: None, said: BTreeSet::new() };
        let task = run(client, taken, announcements.clone(), hurry.clone(), seed);
        Peer { packets, announcements, hurry, channel: open, task: tokio::spawn(task) }
    }

    fn peers(&self) -> MutexGuard<'_, Peers> {
        self.shared.peers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Peers {
    /// splitmix64 (Steele, Lea, Flood 2014): every stack's ports and sequence numbers are its own.
    fn next_seed(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.random ^ (self.random >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

impl Notices {
    fn tell(&self, notice: Notice) {
        if let Err(lost) = self.0.try_send(notice) {
            warn!(notice = ?lost.into_inner(), "nobody reads what the control channel tells");
        }
    }
}

/// One peer's channel, for as long as it is not dropped. A stock peer's ends at once.
async fn run<L: Link>(
    client: Client<L>,
    packets: mpsc::Receiver<Vec<u8>>,
    announcements: Arc<Announcements>,
    hurry: Arc<Notify>,
    seed: u64,
) {
    let (peer, link) = (client.peer, client.link.clone());
    if !link.has_agent(peer).await {
        return;
    }
    let wire = Wire::new(seed);
    let (accepted, incoming) = mpsc::channel(ACCEPTED_MAX);
    tokio::select! {
        () = wire.run(peer, &link, packets, accepted, &hurry) => {}
        () = server::run(peer, &link, announcements, incoming, client.notices.clone()) => {}
        () = client.run(&wire, &hurry) => {}
    }
}

async fn answer<T>(asked: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>) -> Result<T, AskError> {
    match timeout(ANSWER, asked).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(AskError::Refused(printable(status.message()))),
        Err(_) => Err(AskError::Silent),
    }
}

/// A peer's text, for people.
fn printable(text: &str) -> String {
    let cut: String = text.chars().take(RULE_CHARACTERS_MAX).collect();
    if offer::is_printable(&cut) { cut } else { cut.escape_debug().to_string() }
}
