//! Calls the peer's control service as long as the peer is up, and hands each of its offers to the node. Whatever
//! happens to the channel, the last good offer stays until a better one comes.

use super::connection::{Connection, Wire};
use super::credentials;
use super::link::Link;
use super::offer::{self, MESSAGE_BYTES_MAX, Refusal};
use super::{Notice, Notices};
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
use vp_proto::control::OffersRequest;
use vp_proto::control::control_client::ControlClient;

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
        let mut said = std::mem::take(&mut self.said);
        let (link, notices) = (self.link.clone(), self.notices.clone());
        let taker = credentials::Taker { peer: self.peer, link, notices, said: &mut said };
        let ended = tokio::select! {
            ended = self.follow_offers(channel.clone(), had_offer) => ended,
            never = taker.follow(channel) => match never {},
        };
        self.said = said;
        ended
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
