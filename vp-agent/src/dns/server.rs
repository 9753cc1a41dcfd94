//! The sockets: a query in, an answer out. Each waits in a task of its own, so that a name server that is silent keeps
//! nobody else; there are only so many at a time.

use super::counts::{Counts, Kind, Outcome};
use super::forward::Forwarder;
use super::limit::{Limiter, Verdict};
use super::networks::{Networks, Who};
use super::query::{Query, Read, Transport};
use super::zone::Zone;
use crate::dataplane::Handle;
use hickory_proto::op::ResponseCode;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Notify, Semaphore};
use tokio::time::timeout;

/// A question with all that is ever put into one; what is longer is none.
const QUERY_BYTES_MAX: usize = 4096;
/// Queries by UDP that are being answered. Most wait for a forwarder.
const QUERIES_MAX: usize = 512;
/// Connections, and those of one source (RFC 7766 section 6.2.2).
const CONNECTIONS_MAX: usize = 64;
const CONNECTIONS_OF_ONE_MAX: usize = 8;
/// A connection that is silent, or does not read, for so long ends (RFC 7766 section 6.2.3: a few seconds).
const CONNECTION_PATIENCE: Duration = Duration::from_secs(5);
/// A socket that fails does so for want of memory or descriptors, which come back.
const FAILURE_PAUSE: Duration = Duration::from_millis(100);

/// What is served, as it is configured now.
pub struct Served {
    pub zone: Zone,
    pub networks: Networks,
    pub forward: Vec<SocketAddr>,
}

/// What all sockets share.
pub struct Server {
    handle: Handle,
    served: Mutex<Option<Arc<Served>>>,
    /// By UDP, and by TCP, where one that others make up cannot use up another's share.
    datagrams: Limiter,
    streams: Limiter,
    forwarder: Forwarder,
    queries: Arc<Semaphore>,
    connections: Mutex<BTreeMap<IpAddr, usize>>,
    pub counts: Counts,
    /// A stranger asked: the networks of this site may have become others.
    pub stranger: Notify,
}

impl Server {
    #[must_use]
    pub fn new(handle: Handle) -> Self {
        Self {
            handle,
            served: Mutex::default(),
            datagrams: Limiter::new(Instant::now()),
            streams: Limiter::new(Instant::now()),
            forwarder: Forwarder::default(),
            queries: Arc::new(Semaphore::new(QUERIES_MAX)),
            connections: Mutex::default(),
            counts: Counts::default(),
            stranger: Notify::new(),
        }
    }

    pub fn serve(&self, served: Option<Served>) {
        *self.served.lock().unwrap_or_else(PoisonError::into_inner) = served.map(Arc::new);
    }

    fn served(&self) -> Option<Arc<Served>> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Until the task is ended.
    pub async fn answer_udp(self: Arc<Self>, socket: UdpSocket) {
        let socket = Arc::new(socket);
        let mut buffer = vec![0; QUERY_BYTES_MAX];
        loop {
            let Ok((bytes, source)) = socket.recv_from(&mut buffer).await else {
                tokio::time::sleep(FAILURE_PAUSE).await;
                continue;
            };
            let Some((served, who)) = self.known(source.ip()) else { continue };
            let Ok(permit) = self.queries.clone().try_acquire_owned() else {
                self.counts.add(Kind::Other, Outcome::Overload);
                continue;
            };
            let (server, socket, query) = (self.clone(), socket.clone(), buffer[..bytes].to_vec());
            tokio::spawn(async move {
                let answer = match server.datagrams.judge(source.ip(), Instant::now()) {
                    Verdict::Answer => server.answer(&served, who, &query, Transport::Udp).await,
                    Verdict::Truncate => server.truncated(&query),
                    Verdict::Drop => {
                        server.counts.add(Kind::Other, Outcome::Limited);
                        None
                    }
                };
                if let Some(answer) = answer {
                    // Who is gone asks no more.
                    socket.send_to(&answer, source).await.ok();
                }
                drop(permit);
            });
        }
    }

    /// Until the task is ended.
    pub async fn answer_tcp(self: Arc<Self>, listener: TcpListener) {
        loop {
            let Ok((stream, source)) = listener.accept().await else {
                tokio::time::sleep(FAILURE_PAUSE).await;
                continue;
            };
            let source = source.ip();
            if self.known(source).is_none() {
                continue;
            }
            if !self.connected(source) {
                self.counts.add(Kind::Other, Outcome::Overload);
                continue;
            }
            let server = self.clone();
            tokio::spawn(async move {
                server.answer_stream(stream, source).await;
                server.disconnected(source);
            });
        }
    }

    /// One query after the other, until the client ends it or is silent.
    async fn answer_stream(&self, mut stream: TcpStream, source: IpAddr) {
        loop {
            let Ok(Ok(query)) = timeout(CONNECTION_PATIENCE, read_query(&mut stream)).await else { return };
            let Some((served, who)) = self.known(source) else { return };
            if self.streams.judge(source, Instant::now()) != Verdict::Answer {
                return self.counts.add(Kind::Other, Outcome::Limited);
            }
            let Some(answer) = self.answer(&served, who, &query, Transport::Tcp).await else { return };
            let Ok(bytes) = u16::try_from(answer.len()) else { return };
            let framed = [&bytes.to_be_bytes(), answer.as_slice()].concat();
            let Ok(Ok(())) = timeout(CONNECTION_PATIENCE, stream.write_all(&framed)).await else { return };
        }
    }

    /// Who it is, if it is of this site; strangers are counted.
    fn known(&self, source: IpAddr) -> Option<(Arc<Served>, Who)> {
        let served = self.served()?;
        match served.networks.who(source) {
            Who::Stranger => {
                self.counts.add(Kind::Other, Outcome::Stranger);
                self.stranger.notify_one();
                None
            }
            who @ (Who::Gateway | Who::Host(_)) => Some((served, who)),
        }
    }

    async fn answer(&self, served: &Served, who: Who, bytes: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let query = match Read::new(bytes, transport) {
            Read::Nothing => {
                self.counts.add(Kind::Other, Outcome::Malformed);
                return None;
            }
            Read::Said(reply) => {
                self.counts.add(reply.kind, reply.outcome);
                return reply.to_bytes();
            }
            Read::Asked(query) => query,
        };
        let Some(place) = served.zone.place(query.question.name()) else {
            return self.forward(served, &query, bytes, transport).await;
        };
        let looked_up = {
            let place = place.clone();
            self.handle.call(move |node, _, _| place.look_up(node, who.host())).await
        };
        let reply = match looked_up {
            Ok(found) => served.zone.answer(&query, &place, &found, !served.forward.is_empty()),
            Err(_) => query.said(ResponseCode::ServFail, Outcome::Failed),
        };
        self.counts.add(reply.kind, reply.outcome);
        reply.to_bytes()
    }

    async fn forward(&self, served: &Served, query: &Query, bytes: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let reply = if served.forward.is_empty() {
            query.said(ResponseCode::Refused, Outcome::Refused)
        } else {
            match self.forwarder.ask(&served.forward, bytes, transport).await {
                Some(answer) if query.takes(answer.len()) => {
                    self.counts.add(query.kind(), Outcome::Forwarded);
                    return Some(answer);
                }
                Some(_) => query.truncated(Outcome::Forwarded),
                None => query.said(ResponseCode::ServFail, Outcome::Failed),
            }
        };
        self.counts.add(reply.kind, reply.outcome);
        reply.to_bytes()
    }

    fn truncated(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        self.counts.add(Kind::Other, Outcome::Limited);
        match Read::new(bytes, Transport::Udp) {
            Read::Asked(query) => query.truncated(Outcome::Limited).to_bytes(),
            Read::Nothing | Read::Said(_) => None,
        }
    }

    fn connected(&self, source: IpAddr) -> bool {
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = connections.values().sum();
        let of_source = connections.entry(source).or_default();
        if all >= CONNECTIONS_MAX || *of_source >= CONNECTIONS_OF_ONE_MAX {
            connections.retain(|_, count| *count > 0);
            return false;
        }
        *of_source += 1;
        true
    }

    fn disconnected(&self, source: IpAddr) {
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = connections.get_mut(&source) {
            *count -= 1;
        }
        connections.retain(|_, count| *count > 0);
    }
}

async fn read_query(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let bytes = usize::from(stream.read_u16().await?);
    if bytes > QUERY_BYTES_MAX {
        return Err(std::io::ErrorKind::InvalidData.into());
    }
    let mut query = vec![0; bytes];
    stream.read_exact(&mut query).await?;
    Ok(query)
}
