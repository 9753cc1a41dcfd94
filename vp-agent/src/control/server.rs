//! The control service as the peer calls it. Who calls is known from the tunnel; what a message says about it is
//! not looked at.

use super::connection::Connection;
use super::credentials;
use super::link::{Link, Target};
use super::{Notice, Notices, attend, join, offer, register};
use crate::registry::Unregistered;
use futures_util::stream::{self, Stream, StreamExt};
use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use tracing::debug;
use vp::addr::{Name, PeerId, Protocol, wire};
use vp::node::{Allowed, Source};
use vp::policy::Bucket;
use vp_proto::control::control_server::{Control, ControlServer};
use vp_proto::control::{
    Attendance, ClockRequest, ClockResponse, Credential, CredentialsRequest, ExplainRequest, ExplainResponse,
    Introductions, JoinRequest, JoinResponse, OffersRequest, ProbeOutcome, ProbeRequest, ProbeResponse,
    RegisterRequest, RegisterResponse, RenewRequest, RenewResponse, ReplyRoute,
};

/// Most requests are a few names and numbers; the largest is a site's attendance.
const REQUEST_BYTES_MAX: usize = attend::ATTENDANCE_BYTES_MAX;
const HEADER_BYTES_MAX: u32 = 8 * 1024;
/// An agent has one stream of offers open and asks one thing at a time for its operator.
const STREAMS_MAX: u32 = 16;
/// Each request costs the data thread a look at its tables.
const REQUESTS_A_SECOND: u64 = 10;
const REQUESTS_AT_ONCE: u64 = 30;
const PROBES_MAX: usize = 4;
const PROBE_SECONDS_MAX: u64 = 3;
/// For everything but a stream of offers; a probe takes longest.
const ANSWER_SECONDS_MAX: u64 = 10;
/// A state is looked at anew that often even if no change was announced.
const REVIEW_SECONDS: u64 = 30;

/// What makes the peer's streams move on.
#[derive(Default, Debug)]
pub struct Announcements {
    /// The offer may have changed.
    pub offer: Announcement,
    /// Whom the peer is introduced to may have changed.
    pub introductions: Announcement,
    /// Never announced: what there is to present is watched itself.
    credentials: Announcement,
}

#[derive(Default, Debug)]
pub struct Announcement(watch::Sender<Changes>);

#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Changes {
    announced: u64,
    /// The newest stream; those before it end.
    pub(super) stream: u64,
}

impl Announcement {
    pub fn announce(&self) {
        self.0.send_modify(|changes| changes.announced += 1);
    }

    /// A stream of what `fetch` gives: now, and whenever it is another after an announcement.
    fn stream<M, F>(&self, fetch: impl Fn() -> F + Send + 'static) -> States<M>
    where
        M: Clone + PartialEq + Send + 'static,
        F: Future<Output = M> + Send + 'static,
    {
        let (stream, changes) = self.open();
        let feed = Feed { fetch, changes, stream, last: None };
        Box::pin(stream::unfold(feed, Feed::next))
    }

    /// The newest stream's number, which ends those before it.
    fn open(&self) -> (u64, watch::Receiver<Changes>) {
        let mut stream = 0;
        self.0.send_modify(|changes| {
            changes.stream += 1;
            stream = changes.stream;
        });
        (stream, self.0.subscribe())
    }
}

type States<M> = Pin<Box<dyn Stream<Item = Result<M, Status>> + Send>>;

/// Serves the connections the peer opens, until no more can come.
pub async fn run<L: Link>(
    peer: PeerId,
    link: &L,
    announcements: Arc<Announcements>,
    accepted: mpsc::Receiver<Connection>,
    notices: Notices,
) {
    let bucket = |rate, at_once| Mutex::new(Bucket::new(rate, at_once, Instant::now().into_std()));
    let service = Service {
        peer,
        invited: link.is_invited(peer).await,
        link: link.clone(),
        announcements,
        notices,
        requests: bucket(REQUESTS_A_SECOND, REQUESTS_AT_ONCE),
        registrations: bucket(register::REGISTRATIONS_A_SECOND, register::REGISTRATIONS_AT_ONCE),
        probes: Semaphore::new(PROBES_MAX),
    };
    let service = ControlServer::new(service).max_decoding_message_size(REQUEST_BYTES_MAX);
    let mut server = tonic::transport::Server::builder()
        .timeout(Duration::from_secs(ANSWER_SECONDS_MAX))
        .max_concurrent_streams(STREAMS_MAX)
        .http2_max_header_list_size(HEADER_BYTES_MAX);
    let incoming = ReceiverStream::new(accepted).map(Ok::<_, io::Error>);
    if let Err(error) = server.add_service(service).serve_with_incoming(incoming).await {
        debug!(peer = peer.0, %error, "the control service ended");
    }
}

struct Service<L> {
    peer: PeerId,
    /// It may join, and nothing else.
    invited: bool,
    link: L,
    announcements: Arc<Announcements>,
    notices: Notices,
    requests: Mutex<Bucket>,
    registrations: Mutex<Bucket>,
    probes: Semaphore,
}

impl<L> Service<L> {
    fn admit(&self) -> Result<(), Status> {
        if self.invited {
            return Err(Status::permission_denied("who was invited may join, and nothing else"));
        }
        self.admit_any()
    }

    fn admit_any(&self) -> Result<(), Status> {
        take(&self.requests, REQUESTS_A_SECOND, "requests")
    }
}

fn take(from: &Mutex<Bucket>, rate: u64, what: &str) -> Result<(), Status> {
    let mut bucket = from.lock().unwrap_or_else(PoisonError::into_inner);
    match bucket.take(1, Instant::now().into_std()) {
        true => Ok(()),
        false => Err(Status::resource_exhausted(format!("at most {rate} {what} a second are answered"))),
    }
}

#[tonic::async_trait]
impl<L: Link> Control for Service<L> {
    type OffersStream = States<vp_proto::control::Offer>;
    type AttendStream = States<Introductions>;
    type CredentialsStream = States<Credential>;

    async fn offers(&self, request: Request<OffersRequest>) -> Result<Response<Self::OffersStream>, Status> {
        self.admit()?;
        let OffersRequest { versions, agent } = request.into_inner();
        speaks(&versions)?;
        let agent: String = agent.chars().take(80).collect();
        debug!(peer = self.peer.0, ?agent, "asks for offers");
        let (link, peer) = (self.link.clone(), self.peer);
        let fetch = move || {
            let link = link.clone();
            async move { offer::to_message(link.offer(peer).await) }
        };
        Ok(Response::new(self.announcements.offer.stream(fetch)))
    }

    async fn attend(&self, request: Request<Attendance>) -> Result<Response<Self::AttendStream>, Status> {
        self.admit()?;
        let attendance = request.into_inner();
        speaks(&attendance.versions)?;
        let attendance = attend::read_attendance(&attendance);
        let attendance = attendance.map_err(|refusal| Status::invalid_argument(refusal.to_string()))?;
        if !self.link.attend(self.peer, attendance).await {
            return Err(Status::unimplemented("this agent is no hub"));
        }
        let (link, peer) = (self.link.clone(), self.peer);
        let fetch = move || {
            let link = link.clone();
            async move { attend::write_introductions(link.introductions(peer).await, offer::VERSION) }
        };
        Ok(Response::new(self.announcements.introductions.stream(fetch)))
    }

    async fn credentials(&self, _: Request<CredentialsRequest>) -> Result<Response<Self::CredentialsStream>, Status> {
        self.admit()?;
        let (stream, changes) = self.announcements.credentials.open();
        let feed = credentials::Feed {
            presented: self.link.credentials(),
            changes,
            stream,
            sent: Arc::default(),
            next: VecDeque::new(),
        };
        Ok(Response::new(Box::pin(stream::unfold(feed, credentials::Feed::next))))
    }

    async fn register(&self, request: Request<RegisterRequest>) -> Result<Response<RegisterResponse>, Status> {
        self.admit()?;
        take(&self.registrations, register::REGISTRATIONS_A_SECOND, "registrations")?;
        let (peer, offered) = (self.peer, register::read(request.into_inner())?);
        let Some(registered) = self.link.register(peer, offered).await else {
            return Err(Status::unimplemented("this agent is no hub"));
        };
        match &registered {
            Ok(Some(place)) => self.notices.tell(Notice::Registered { peer, place: place.clone() }),
            Err(Unregistered::Refused(refusal)) => {
                self.notices.tell(Notice::RegistrationRefused { peer, refusal: *refusal });
            }
            Ok(None) | Err(Unregistered::Store(_)) => {}
        }
        register::answer(registered.map(|_| ())).map(Response::new)
    }

    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinResponse>, Status> {
        self.admit_any()?;
        let JoinRequest { versions, public_key, possession } = request.into_inner();
        speaks(&versions)?;
        if !self.invited {
            return Err(Status::permission_denied("this site has joined already, or never was invited"));
        }
        let (refused, certificate) = join::write_answer(self.link.join(self.peer, public_key, possession).await)?;
        Ok(Response::new(JoinResponse { refused, certificate }))
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<RenewResponse>, Status> {
        self.admit()?;
        let RenewRequest { serial } = request.into_inner();
        let (refused, certificate) = join::write_answer(self.link.renew(self.peer, serial).await)?;
        Ok(Response::new(RenewResponse { refused, certificate }))
    }

    async fn clock(&self, _: Request<ClockRequest>) -> Result<Response<ClockResponse>, Status> {
        self.admit()?;
        Ok(Response::new(ClockResponse { unix_millis: crate::clock::unix_millis() }))
    }

    async fn probe(&self, request: Request<ProbeRequest>) -> Result<Response<ProbeResponse>, Status> {
        self.admit()?;
        let ProbeRequest { service, protocol, port } = request.into_inner();
        let target = read_target(&service, protocol, port)?;
        let Ok(_permit) = self.probes.try_acquire() else {
            return Err(Status::resource_exhausted(format!("{PROBES_MAX} probes are under way")));
        };
        let Some(address) = self.link.probe_target(self.peer, target.clone()).await else {
            return Ok(probed(ProbeOutcome::NotAllowed, Duration::ZERO));
        };
        Ok(match target.protocol {
            Protocol::Tcp => probe_tcp(SocketAddr::new(address, target.port)).await,
            // Nothing that a service of unknown kind must answer can be sent to it.
            Protocol::Udp | Protocol::Icmp => probed(ProbeOutcome::Unspecified, Duration::ZERO),
        })
    }

    async fn explain(&self, request: Request<ExplainRequest>) -> Result<Response<ExplainResponse>, Status> {
        self.admit()?;
        let ExplainRequest { service, caller, protocol, port } = request.into_inner();
        let target = read_target(&service, protocol, port)?;
        let caller = match u16::try_from(caller) {
            Ok(0) => None,
            Ok(index) if (wire::FIRST..=wire::LAST).contains(&index) => Some(index),
            Ok(_) | Err(_) => return Err(Status::invalid_argument("caller: expected a wire index or 0")),
        };
        let verdict = match self.link.explain(self.peer, target, caller).await {
            Ok(Allowed { rule, limit, observed, source }) => ExplainResponse {
                allowed: true,
                reason: String::new(),
                rule,
                limit: Some(limit.map_or_else(String::new, |reason| reason.word().to_owned())),
                reply_route: reply_route(source).into(),
                observed: observed.map_or_else(String::new, |reason| reason.word().to_owned()),
            },
            Err(reason) => ExplainResponse { reason: reason.word().to_owned(), ..ExplainResponse::default() },
        };
        Ok(Response::new(verdict))
    }
}

/// One stream of states. It looks at the state only when the message before was taken, so changes that come faster than the
/// peer reads become one.
struct Feed<M, F> {
    fetch: F,
    changes: watch::Receiver<Changes>,
    stream: u64,
    last: Option<M>,
}

impl<M: Clone + PartialEq, F: Fn() -> A, A: Future<Output = M>> Feed<M, F> {
    async fn next(mut self) -> Option<(Result<M, Status>, Self)> {
        loop {
            let newest = self.changes.borrow_and_update().stream;
            if newest != self.stream {
                return None;
            }
            let state = (self.fetch)().await;
            if self.last.as_ref() != Some(&state) {
                self.last = Some(state.clone());
                return Some((Ok(state), self));
            }
            match timeout(Duration::from_secs(REVIEW_SECONDS), self.changes.changed()).await {
                Ok(Ok(())) | Err(_) => {}
                // The peer's channel is over.
                Ok(Err(_)) => return None,
            }
        }
    }
}

fn speaks(versions: &[u32]) -> Result<(), Status> {
    match versions.contains(&offer::VERSION) {
        true => Ok(()),
        false => Err(Status::failed_precondition(format!("this agent speaks version {}", offer::VERSION))),
    }
}

fn read_target(service: &str, protocol: i32, port: u32) -> Result<Target, Status> {
    let invalid = |what: &str| Status::invalid_argument(what.to_owned());
    let service = Name::new(service).map_err(|error| invalid(&format!("service: {error}")))?;
    let protocol = offer::read_protocol(protocol).ok_or_else(|| invalid("protocol: expected TCP, UDP or ICMP"))?;
    let port = u16::try_from(port).map_err(|_| invalid("port: expected at most 65535"))?;
    if (port == 0) != (protocol == Protocol::Icmp) {
        return Err(invalid("port: expected 0 for ICMP and only for it"));
    }
    Ok(Target { service, protocol, port })
}

fn reply_route(source: Source) -> ReplyRoute {
    match source {
        Source::Masquerade => ReplyRoute::Masquerade,
        Source::Presence => ReplyRoute::Presence,
    }
}

async fn probe_tcp(target: SocketAddr) -> Response<ProbeResponse> {
    let start = Instant::now();
    let connected = timeout(Duration::from_secs(PROBE_SECONDS_MAX), TcpStream::connect(target)).await;
    let outcome = match connected {
        Ok(Ok(_)) => ProbeOutcome::Answered,
        Ok(Err(error)) => match error.kind() {
            io::ErrorKind::ConnectionRefused => ProbeOutcome::Refused,
            io::ErrorKind::TimedOut => ProbeOutcome::TimedOut,
            _ => ProbeOutcome::Unreachable,
        },
        Err(_) => ProbeOutcome::TimedOut,
    };
    probed(outcome, start.elapsed())
}

fn probed(outcome: ProbeOutcome, round_trip: Duration) -> Response<ProbeResponse> {
    let round_trip_micros = u64::try_from(round_trip.as_micros()).unwrap_or(u64::MAX);
    Response::new(ProbeResponse { outcome: outcome.into(), round_trip_micros })
}
