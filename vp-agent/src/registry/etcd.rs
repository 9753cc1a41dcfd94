//! The store that hubs share: an etcd cluster, by its API of version 3. Any of its members will do; one that is away, or knows
//! no leader, makes room for the next. What is watched and was cut is read again whole.

use super::StoreError;
use crate::config::one_line;
use crate::identity::Place;
use futures_util::StreamExt;
use std::convert::Infallible;
use std::fmt::Display;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};
use vp_proto::etcd::event::EventType;
use vp_proto::etcd::kv_client::KvClient;
use vp_proto::etcd::watch_client::WatchClient;
use vp_proto::etcd::watch_request::RequestUnion;
use vp_proto::etcd::{
    DeleteRangeRequest, KeyValue, PutRequest, RangeRequest, WatchCreateRequest, WatchRequest, WatchResponse,
};

/// For one member; a new leader takes a second (etcd's default election timeout).
const STEP: Duration = Duration::from_millis(1500);
/// For all members together. Who registers something waits for 6 s.
const WRITE_MAX: Duration = Duration::from_secs(5);
/// Between one member and the next, when all are tried again.
const AGAIN_PAUSE: Duration = Duration::from_millis(200);
/// Between two pings, and for the answer: a member that is silent for longer is away. It hangs up on who pings more than once in 5 s
/// (`--grpc-keepalive-min-time`).
const PING_PAUSE: Duration = Duration::from_secs(6);
const PONG_MAX: Duration = Duration::from_secs(2);
/// Records read at a time: of the largest kind, 2 MB.
const PAGE_RECORDS: i64 = 500;

const NOBODY: &str = "nobody takes what it tells";

/// Where it is, as the file says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EtcdSettings {
    /// `host:port` of each member.
    pub members: Vec<String>,
    /// Before each place.
    pub prefix: String,
}

pub struct Etcd {
    members: Vec<(String, Channel)>,
    prefix: String,
    /// The member that answered last.
    current: AtomicUsize,
    /// Why it is not followed at present; none while it is.
    away: Mutex<Option<String>>,
    reads: AtomicU64,
    /// It is to be read again.
    pub again: Notify,
}

/// What is told of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum News {
    /// All that stood there when it was read.
    All(Vec<(Place, Vec<u8>)>),
    Put(Place, Vec<u8>),
    Removed(Place),
}

enum Change {
    Put(PutRequest),
    Remove(DeleteRangeRequest),
}

impl Change {
    async fn ask(&self, mut client: KvClient<Channel>) -> Result<(), Status> {
        match self {
            Self::Put(request) => client.put(request.clone()).await.map(drop),
            Self::Remove(request) => client.delete_range(request.clone()).await.map(drop),
        }
    }
}

impl Etcd {
    /// Nothing is connected before it is used. Called within the runtime.
    pub fn new(settings: &EtcdSettings) -> Result<Self, StoreError> {
        let channel = |member: &String| {
            let endpoint = Endpoint::from_shared(format!("http://{member}"))
                .map_err(|error| StoreError(format!("etcd at {member}: {error}")))?
                .connect_timeout(STEP)
                .http2_keep_alive_interval(PING_PAUSE)
                .keep_alive_timeout(PONG_MAX)
                .keep_alive_while_idle(true);
            Ok((member.clone(), endpoint.connect_lazy()))
        };
        Ok(Self {
            members: settings.members.iter().map(channel).collect::<Result<_, _>>()?,
            prefix: settings.prefix.clone(),
            current: AtomicUsize::new(0),
            away: Mutex::new(Some("not connected yet".to_owned())),
            reads: AtomicU64::new(0),
            again: Notify::new(),
        })
    }

    /// Kept by most of its members when this returns.
    pub async fn put(&self, place: &str, bytes: &[u8]) -> Result<(), StoreError> {
        self.write(&Change::Put(PutRequest { key: self.key(place), value: bytes.to_vec() })).await
    }

    pub async fn remove(&self, place: &str) -> Result<(), StoreError> {
        self.write(&Change::Remove(DeleteRangeRequest { key: self.key(place) })).await
    }

    /// Tells what stands there, and then what changes, for ever.
    pub async fn follow(&self, news: mpsc::Sender<News>) -> Infallible {
        loop {
            let (member, channel) = self.member();
            let ended = tokio::select! {
                Err(ended) = self.session(channel, &news) => ended,
                () = self.again.notified() => continue,
            };
            tracing::warn!("the registry at {member}: {ended}");
            self.set_away(Some(format!("{member}: {ended}")));
            self.next();
            sleep(AGAIN_PAUSE).await;
        }
    }

    /// Why it is not followed at present.
    #[must_use]
    pub fn away(&self) -> Option<String> {
        self.away.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How often it was read whole.
    #[must_use]
    pub fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    async fn session(&self, channel: Channel, news: &mpsc::Sender<News>) -> Result<Infallible, String> {
        let (all, revision) = self.read(channel.clone()).await?;
        self.reads.fetch_add(1, Ordering::Relaxed);
        news.send(News::All(all)).await.map_err(|_| NOBODY)?;
        let asked = WatchCreateRequest {
            key: self.prefix.clone().into_bytes(),
            range_end: after(&self.prefix),
            start_revision: revision + 1,
        };
        let (ask, asking) = mpsc::channel(1);
        let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(asked)) };
        ask.send(create).await.map_err(|_| "it cannot be asked")?;
        let mut request = Request::new(ReceiverStream::new(asking));
        // A member that is cut off from the others says so, where it would be silent otherwise.
        request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
        let mut watch = WatchClient::new(channel);
        let watching = timeout(STEP, watch.watch(request)).await.map_err(|_| "no answer")?;
        let mut told = watching.map_err(said)?.into_inner();
        self.set_away(None);
        while let Some(response) = told.next().await {
            let WatchResponse { canceled, compact_revision, cancel_reason, events } = response.map_err(said)?;
            if canceled || compact_revision != 0 {
                return Err(format!("the watch has ended: {}", one_line(&cancel_reason)));
            }
            for event in events {
                let kind = event.r#type();
                let Some((place, bytes)) = event.kv.and_then(|kv| self.entry(kv)) else { continue };
                let told = match kind {
                    EventType::Put => News::Put(place, bytes),
                    EventType::Delete => News::Removed(place),
                };
                news.send(told).await.map_err(|_| NOBODY)?;
            }
        }
        Err("it ended the watch".to_owned())
    }

    /// All there is, at one revision.
    async fn read(&self, channel: Channel) -> Result<(Vec<(Place, Vec<u8>)>, i64), String> {
        let mut client = KvClient::new(channel);
        let (mut all, mut revision, mut key) = (Vec::new(), 0, self.prefix.clone().into_bytes());
        loop {
            let range_end = after(&self.prefix);
            let asked = client.range(RangeRequest { key, range_end, limit: PAGE_RECORDS, revision });
            let page = timeout(STEP, asked).await.map_err(|_| "no answer")?.map_err(said)?.into_inner();
            if revision == 0 {
                revision = page.header.map_or(0, |header| header.revision);
            }
            let last = page.kvs.last().map(|kv| kv.key.clone());
            all.extend(page.kvs.into_iter().filter_map(|kv| self.entry(kv)));
            match last.filter(|_| page.more) {
                Some(last) => key = [last, vec![0]].concat(),
                None => return Ok((all, revision)),
            }
        }
    }

    /// By any member that takes it.
    async fn write(&self, change: &Change) -> Result<(), StoreError> {
        let start = Instant::now();
        loop {
            let (member, channel) = self.member();
            let error = match timeout(STEP, change.ask(KvClient::new(channel))).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(status)) => said(status),
                Err(_) => "no answer".to_owned(),
            };
            self.next();
            if start.elapsed() + STEP > WRITE_MAX {
                return Err(StoreError(format!("etcd at {member}: {error}")));
            }
            sleep(AGAIN_PAUSE).await;
        }
    }

    fn entry(&self, kv: KeyValue) -> Option<(Place, Vec<u8>)> {
        let place = String::from_utf8(kv.key).ok()?;
        Some((place.strip_prefix(&self.prefix)?.to_owned(), kv.value))
    }

    fn key(&self, place: &str) -> Vec<u8> {
        format!("{}{place}", self.prefix).into_bytes()
    }

    fn member(&self) -> (&str, Channel) {
        let (member, channel) = &self.members[self.current.load(Ordering::Relaxed) % self.members.len()];
        (member, channel.clone())
    }

    fn next(&self) {
        self.current.fetch_add(1, Ordering::Relaxed);
    }

    fn set_away(&self, away: Option<String>) {
        *self.away.lock().unwrap_or_else(PoisonError::into_inner) = away;
    }
}

/// The first key after all that begin so: prefixes end in a slash.
fn after(prefix: &str) -> Vec<u8> {
    let mut key = prefix.as_bytes().to_vec();
    if let Some(last) = key.last_mut() {
        *last += 1;
    }
    key
}

fn said(status: impl Display) -> String {
    one_line(&status.to_string())
}
