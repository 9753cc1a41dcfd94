//! Datagrams over TLS, for a site where UDP does not pass: one WebSocket connection to the hub carries those of all its
//! tunnels. At each end they come from and go to a UDP socket on loopback, which the tunnels see as the address of the other
//! end; nothing else knows.
//!
//! TLS is a wrapping here, no protection: what is inside is sealed by WireGuard, and both ends of that know each other by
//! their keys. So a site takes any certificate, and a hub without one makes its own.

mod frame;
mod hub;
mod site;
mod tls;

pub use hub::{Listener, ListenerSettings};
pub use site::{Carrier, CarrierSettings};
pub use tls::CertificateFiles;

use frame::{DATAGRAM_BYTES_MAX, MESSAGE_BYTES_MAX, MalformedMessage};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use socket2::SockRef;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Message};

/// For each step until datagrams pass: TCP, TLS, the upgrade.
const STEP: Duration = Duration::from_secs(5);
/// Datagrams that wait for the connection: what TCP cannot take is better lost than late.
const QUEUE_BYTES: usize = 128 << 10;
/// What TCP may have that it has not sent yet, for the same reason.
const UNSENT_BYTES: u32 = 16 << 10;

/// Why a connection carries nothing any more.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    WebSocket(#[from] tungstenite::Error),
    #[error(transparent)]
    Malformed(#[from] MalformedMessage),
    #[error("the other end closed it")]
    Closed,
    #[error("nothing came or went for {} s", .0.as_secs())]
    Idle(Duration),
    #[error("a step of it took more than {} s", STEP.as_secs())]
    Slow,
    #[error("{0}")]
    Refused(String),
}

/// A socket on loopback that speaks with the tunnels' own.
async fn loopback(tunnels: SocketAddr) -> io::Result<UdpSocket> {
    let own: IpAddr = match tunnels.ip() {
        IpAddr::V6(ip) if !ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        IpAddr::V4(_) | IpAddr::V6(_) => Ipv4Addr::LOCALHOST.into(),
    };
    let socket = UdpSocket::bind((own, 0)).await?;
    let to = if tunnels.ip().is_unspecified() { own } else { tunnels.ip() };
    socket.connect((to, tunnels.port())).await?;
    SockRef::from(&socket).set_recv_buffer_size(QUEUE_BYTES)?;
    Ok(socket)
}

fn tune(connection: &TcpStream) -> io::Result<()> {
    connection.set_nodelay(true)?;
    SockRef::from(connection).set_tcp_notsent_lowat(UNSENT_BYTES)
}

fn websocket() -> WebSocketConfig {
    WebSocketConfig::default()
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .max_frame_size(Some(MESSAGE_BYTES_MAX))
        .read_buffer_size(MESSAGE_BYTES_MAX)
        .write_buffer_size(0)
        .max_write_buffer_size(2 * MESSAGE_BYTES_MAX)
}

async fn within_step<T>(step: impl Future<Output = T>) -> Result<T, Ended> {
    tokio::time::timeout(STEP, step).await.map_err(|_| Ended::Slow)
}

/// How long a connection may be silent before it is given up.
#[derive(Clone, Copy)]
struct Patience {
    /// Until the tunnels say anything.
    first: Duration,
    then: Duration,
}

/// Carries datagrams both ways until something ends it.
async fn carry<S>(connection: WebSocketStream<S>, tunnels: &UdpSocket, patience: Patience) -> Ended
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (into, from) = connection.split();
    let (ends, end) = watch::channel(Instant::now() + patience.first);
    let alive = || {
        ends.send_replace(Instant::now() + patience.then);
    };
    let idle = async {
        loop {
            let end = *end.borrow();
            if Instant::now() >= end {
                return Ended::Idle(patience.then);
            }
            sleep_until(end).await;
        }
    };
    tokio::select! {
        ended = outwards(tunnels, into, &alive) => ended,
        ended = inwards(from, tunnels) => ended,
        ended = idle => ended,
    }
}

/// What the tunnels sent, as much in one message as is there.
async fn outwards<S>(tunnels: &UdpSocket, mut into: SplitSink<WebSocketStream<S>, Message>, alive: &impl Fn()) -> Ended
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
    loop {
        let message = match frame::collect(tunnels, &mut buffer).await {
            Ok(message) => message,
            // The tunnels' socket is not there yet, or not any more.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
            Err(error) => return error.into(),
        };
        alive();
        if let Err(error) = into.send(Message::binary(message)).await {
            return error.into();
        }
    }
}

async fn inwards<S>(mut from: SplitStream<WebSocketStream<S>>, tunnels: &UdpSocket) -> Ended
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        let message = match from.next().await {
            Some(Ok(Message::Binary(message))) => message,
            Some(Ok(Message::Close(_))) | None => return Ended::Closed,
            Some(Ok(_)) => continue,
            Some(Err(error)) => return error.into(),
        };
        for datagram in frame::datagrams(&message) {
            match datagram {
                // What finds no room there is lost, as on any network.
                Ok(datagram) => drop(tunnels.send(datagram).await),
                Err(malformed) => return malformed.into(),
            }
        }
    }
}
