//! Calls the peer's control service as long as the peer is up, and hands each of its offers to the node. Whatever
//! happens to the channel, the last good offer stays until a better one comes.

use super::attend;
use super::connection::{Connection, Wire};
use super::credentials;
use super::join;
use super::link::Link;
use super::offer::{self, MESSAGE_BYTES_MAX, Refusal};
use super::{Notice, Notices};
use crate::joining::Ask;
use futures_util::FutureExt;
use hyper_util::rt::TokioIo;
use prost::Message;
use prost::bytes::Buf;
use std::future::{Ready, ready};
use std::io;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{Notify, watch};
use tokio::time::{sleep, timeout};
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request, Status, Streaming};
use tracing::debug;
use vp::addr::PeerId;
use vp::catalogue::Offer;
use vp::hub::Attendance;
use vp_proto::control::control_client::ControlClient;
use vp_proto::control::{Introductions, OffersRequest};

/// Names nobody: the connection is there already.
const AUTHORITY: &str = "http://agent.invalid";
const OFFERS: &str = "/vp.control.v1.Control/Offers";
const HEADER_BYTES_MAX: u32 = 8 * 1024;
const AGENT: &str = concat!("virtual-presence/", env!("CARGO_PKG_VERSION"));
/// For the TCP handshake, and for each answer of the channel.
const STEP_SECONDS_MAX: u64 = 10;
/// A large offer takes its time on a poor path; a peer that is gone is noticed by TCP, long before.
const FIRST_OFFER_SECONDS_MAX: u64 = 60;
/// Between attempts, doubled each time up to the second.
const RETRY_MS: u64 = 250;
const RETRY_MS_MAX: u64 = 15_000;
/// Between two things said to a hub, and how often it is seen whether there is more even if nobody says so: the host's own
/// address may be another.
const SAID_PAUSE: Duration = Duration::from_millis(200);
const SAID_REVIEW: Duration = Duration::from_secs(30);
/// After a refused offer: each is a line in the audit log.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);
/// After an offer was taken, and more for each of its services: applying one holds packets up (30 us a service where all
/// of them get a new presence, measured), and the peer alone decides how often it sends one.
const TAKEN_PAUSE: Duration = Duration::from_millis(100);
const TAKEN_PAUSE_A_SERVICE: Duration = Duration::from_micros(250);

/// One peer's client.
pub struct Client<L> {
    pub peer: PeerId,
    pub link: L,
    pub notices: Notices,
    /// For the operator's own questions; none while the channel is closed.
    pub channel: watch::Sender<Option<ControlClient<Channel>>>,
    /// What this site says to a hub may have changed.
    pub attendance: watch::Receiver<()>,
    pub jitter: u64,
    /// Why the last offer was refused, if it was: said once, not at every attempt.
    pub refused: Option<String>,
    pub said: credentials::Said,
}

#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("no connection: {0}")]
    Connect(#[from] io::Error),
    #[error("no channel: {0}")]
    Channel(#[from] tonic::transport::Error),
    #[error("{0}")]
    Status(#[from] Status),
    #[error("no answer")]
    Silent,
    #[error("the peer ended the stream")]
    Closed,
}

impl<L: Link> Client<L> {
    /// Connects again and again. `hurry` cuts a pause short.
    pub async fn run(mut self, wire: &Wire, hurry: &Notify) {
        let mut attempts = 0;
        loop {
            let mut had_offer = false;
            let Err(ended) = self.session(wire, &mut had_offer).await;
            if matches!(&ended, Ended::Status(status) if status.code() == Code::OutOfRange) {
                self.refuse(Refusal::TooLarge.to_string());
            }
            if self.channel.send_replace(None).is_some() {
                self.notices.tell(Notice::Closed(self.peer));
            }
            debug!(peer = self.peer.0, %ended, "the control channel is closed");
            attempts = if had_offer { 0 } else { attempts + 1 };
            sleep(Duration::from_millis(RETRY_MS)).await;
            tokio::select! {
                () = sleep(self.pause(attempts)) => {}
                () = hurry.notified() => attempts = 0,
            }
        }
    }

    /// One connection, from its first packet to its end.
    async fn session(&mut self, wire: &Wire, had_offer: &mut bool) -> Result<std::convert::Infallible, Ended> {
        let channel = self.open(wire).await?;
        if let Some(ask) = self.link.joining(self.peer).await {
            return self.seek(ask, channel).await;
        }
        let mut said = std::mem::take(&mut self.said);
        let (link, notices) = (self.link.clone(), self.notices.clone());
        let taker = credentials::Taker { peer: self.peer, link, notices, said: &mut said, presented: None };
        let attending = self.attending();
        let ended = tokio::select! {
            ended = self.follow_offers(channel.clone(), had_offer) => ended,
            ended = attending.run(channel.clone()) => ended,
            never = taker.follow(channel) => match never {},
        };
        self.said = said;
        ended
    }

    fn attending(&self) -> Attending<L> {
        Attending {
            hub: self.peer,
            link: self.link.clone(),
            notices: self.notices.clone(),
            attendance: self.attendance.clone(),
        }
    }

    /// All that a site says that has not joined yet.
    async fn seek(&self, ask: Ask, channel: Channel) -> Result<std::convert::Infallible, Ended> {
        match ask {
            Ask::Introductions => self.attending().run(channel).await,
            Ask::Join { public_key, possession } => {
                let mut client = ControlClient::new(channel);
                let asked = within_step(client.join(join::write_join(&public_key, possession))).await?;
                let answer = join::read_join(asked.map(tonic::Response::into_inner))?;
                self.link.joined(answer).await;
                // Whatever it was, there is nothing more to ask.
                std::future::pending().await
            }
        }
    }

    async fn follow_offers(
        &mut self,
        channel: Channel,
        had_offer: &mut bool,
    ) -> Result<std::convert::Infallible, Ended> {
        let mut offers = self.ask_for_offers(channel.clone()).await?;
        let first = timeout(Duration::from_secs(FIRST_OFFER_SECONDS_MAX), offers.message()).await;
        let mut next = first.map_err(|_| Ended::Silent)??.ok_or(Ended::Closed)?;
        let _ = self.channel.send_replace(Some(ControlClient::new(channel)));
        self.notices.tell(Notice::Opened(self.peer));
        loop {
            // Of several offers that came since, only the last counts.
            while let Some(newer) = offers.message().now_or_never() {
                next = newer?.ok_or(Ended::Closed)?;
            }
            let pause = match next {
                Ok(offer) => {
                    *had_offer = true;
                    self.take(offer).await
                }
                Err(refusal) => self.refuse(refusal.to_string()),
            };
            sleep(pause).await;
            next = offers.message().await?.ok_or(Ended::Closed)?;
        }
    }

    async fn open(&self, wire: &Wire) -> Result<Channel, Ended> {
        let connection = within_step(wire.connect()).await??;
        let endpoint = Endpoint::from_static(AUTHORITY).http2_max_header_list_size(HEADER_BYTES_MAX);
        Ok(within_step(endpoint.connect_with_connector(Once(Some(connection)))).await??)
    }

    async fn ask_for_offers(&self, channel: Channel) -> Result<Streaming<Result<Offer, Refusal>>, Ended> {
        let mut client = tonic::client::Grpc::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX);
        let ready = within_step(client.ready()).await?;
        ready?;
        let request = OffersRequest { versions: vec![offer::VERSION], agent: AGENT.to_owned() };
        let path = PathAndQuery::from_static(OFFERS);
        let asked = client.server_streaming(Request::new(request), path, OffersCodec);
        Ok(within_step(asked).await??.into_inner())
    }

    async fn take(&mut self, offer: Offer) -> Duration {
        let services = offer.services.len();
        let per_service = TAKEN_PAUSE_A_SERVICE * u32::try_from(services).unwrap_or(u32::MAX);
        match self.link.set_offer(self.peer, offer).await {
            Ok(()) => {
                self.refused = None;
                self.notices.tell(Notice::OfferTaken { peer: self.peer, services });
                TAKEN_PAUSE + per_service
            }
            Err(error) => self.refuse(error.to_string()) + per_service,
        }
    }

    fn refuse(&mut self, reason: String) -> Duration {
        if self.refused.as_ref() != Some(&reason) {
            self.refused = Some(reason.clone());
            self.notices.tell(Notice::OfferRefused { peer: self.peer, reason });
        }
        REFUSED_PAUSE
    }

    /// Doubles with each attempt; a random part of it, so that the peers of a gateway that restarts do not all call at
    /// once. (xorshift64, Marsaglia 2003)
    fn pause(&mut self, attempts: u32) -> Duration {
        self.jitter ^= self.jitter << 13;
        self.jitter ^= self.jitter >> 7;
        self.jitter ^= self.jitter << 17;
        let most = RETRY_MS.saturating_mul(1 << attempts.min(16)).min(RETRY_MS_MAX);
        Duration::from_millis(most / 2 + self.jitter % (most / 2))
    }
}

/// What a site says to its hub and hears from it, over one connection.
struct Attending<L> {
    hub: PeerId,
    link: L,
    notices: Notices,
    attendance: watch::Receiver<()>,
}

impl<L: Link> Attending<L> {
    /// For ever, if the peer is no hub.
    async fn run(mut self, channel: Channel) -> Result<std::convert::Infallible, Ended> {
        if !self.link.is_hub(self.hub).await {
            return std::future::pending().await;
        }
        let mut client = ControlClient::new(channel).max_decoding_message_size(attend::INTRODUCTIONS_BYTES_MAX);
        loop {
            self.attendance.mark_unchanged();
            let said = self.link.attendance(self.hub).await;
            let asked = client.attend(attend::write_attendance(said.clone(), offer::VERSION));
            match within_step(asked).await? {
                Ok(told) => {
                    let mut told = told.into_inner();
                    while !self.has_more_to_say(&said, &mut told).await? {}
                }
                Err(status) if is_final(status.code()) => {
                    let reason = super::printable(status.message());
                    self.notices.tell(Notice::IntroductionsRefused { hub: self.hub, reason });
                    while self.link.attendance(self.hub).await == said {
                        sleep(SAID_REVIEW).await;
                    }
                }
                Err(status) => return Err(status.into()),
            }
            // Not more often than the hub answers.
            sleep(SAID_PAUSE).await;
        }
    }

    /// Takes what the hub tells next. True when this site has something else to say.
    async fn has_more_to_say(&mut self, said: &Attendance, told: &mut Streaming<Introductions>) -> Result<bool, Ended> {
        tokio::select! {
            message = told.message() => {
                let message = message?.ok_or(Ended::Closed)?;
                self.take(&message).await;
                Ok(false)
            }
            _ = self.attendance.changed() => Ok(self.link.attendance(self.hub).await != *said),
            () = sleep(SAID_REVIEW) => Ok(self.link.attendance(self.hub).await != *said),
        }
    }

    async fn take(&self, message: &Introductions) {
        let hub = self.hub;
        match attend::read_introductions(message) {
            Ok(introductions) => {
                let sites = introductions.sites.len();
                self.link.introduce(hub, introductions).await;
                self.notices.tell(Notice::Introduced { hub, sites });
            }
            Err(refusal) => self.notices.tell(Notice::IntroductionsRefused { hub, reason: refusal.to_string() }),
        }
        // What comes meanwhile is one message: the hub looks anew when this one was read.
        sleep(TAKEN_PAUSE).await;
    }
}

/// Whether the answer will be the same as long as the question is.
fn is_final(code: Code) -> bool {
    matches!(code, Code::Unimplemented | Code::InvalidArgument | Code::FailedPrecondition)
}

async fn within_step<T>(step: impl Future<Output = T>) -> Result<T, Ended> {
    timeout(Duration::from_secs(STEP_SECONDS_MAX), step).await.map_err(|_| Ended::Silent)
}

/// Gives the one connection to the channel; when that has ended, the channel has ended.
struct Once(Option<Connection>);

impl tower::Service<Uri> for Once {
    type Response = TokioIo<Connection>;
    type Error = io::Error;
    type Future = Ready<io::Result<TokioIo<Connection>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        ready(self.0.take().map(TokioIo::new).ok_or_else(|| io::ErrorKind::NotConnected.into()))
    }
}

/// Offers come out of the stream judged: a bad one is a value, not the end of the stream.
struct OffersCodec;

impl Codec for OffersCodec {
    type Encode = OffersRequest;
    type Decode = Result<Offer, Refusal>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for OffersCodec {
    type Item = OffersRequest;
    type Error = Status;

    fn encode(&mut self, request: OffersRequest, into: &mut EncodeBuf<'_>) -> Result<(), Status> {
        request.encode(into).map_err(|error| Status::internal(error.to_string()))
    }
}

impl Decoder for OffersCodec {
    type Item = Result<Offer, Refusal>;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Self::Item>, Status> {
        let message = from.copy_to_bytes(from.remaining());
        Ok(Some(offer::read(&message)))
    }
}
