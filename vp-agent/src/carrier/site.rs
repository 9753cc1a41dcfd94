//! A site's end: it connects when the tunnels send something to the hub this way, and UDP does not get there.

use super::{Ended, Patience, carry, loopback, tls, tune, websocket, within_step};
use crate::dataplane::Handle;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_tungstenite::client_async_with_config;
use tracing::{debug, info};

/// UDP gets this start.
const UDP_FIRST: Duration = Duration::from_millis(800);
/// Between attempts, doubled each time up to the second.
const RETRY: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// A connection that carries nothing for so long is closed; a path in use is asked more often.
const PATIENCE: Patience = Patience { first: Duration::from_secs(60), then: Duration::from_secs(60) };
const PATH: &str = "/vp";
/// Of a proxy's answer.
const ANSWER_BYTES_MAX: usize = 8 << 10;

/// How a hub is reached over TLS.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CarrierSettings {
    /// HOST:PORT of the hub.
    pub hub: String,
    /// HOST:PORT of a proxy that knows CONNECT.
    pub proxy: Option<String>,
}

/// One hub's. It ends when this is dropped.
#[derive(Debug)]
pub struct Carrier {
    pub settings: CarrierSettings,
    /// What the tunnels know the hub by this way.
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Carrier {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Carrier {
    /// `tunnels`: where the tunnels' own socket is. Nothing is connected before something is to be carried.
    pub async fn start(settings: CarrierSettings, tunnels: SocketAddr, handle: Handle) -> anyhow::Result<Self> {
        let socket = loopback(tunnels).await?;
        let (address, connector) = (socket.local_addr()?, tls::connector()?);
        let task = tokio::spawn(run(settings.clone(), socket, address, connector, handle));
        Ok(Self { settings, address, task })
    }
}

async fn run(settings: CarrierSettings, socket: UdpSocket, own: SocketAddr, connector: TlsConnector, handle: Handle) {
    let mut pause = RETRY;
    loop {
        if socket.readable().await.is_err() {
            return;
        }
        sleep(UDP_FIRST).await;
        if !is_needed(&handle, own).await {
            drain(&socket);
            continue;
        }
        let ended = match connect(&settings, &connector).await {
            Ok(connection) => {
                info!("hub {}: connected over TLS", settings.hub);
                pause = RETRY;
                carry(connection, &socket, PATIENCE).await
            }
            Err(ended) => {
                pause = (pause * 2).min(RETRY_MAX);
                ended
            }
        };
        match &ended {
            Ended::Idle(_) => debug!("hub {} over TLS: {ended}", settings.hub),
            _ => info!("hub {} over TLS: {ended}", settings.hub),
        }
        sleep(pause).await;
        drain(&socket);
    }
}

/// Whether the hub is not reached otherwise at present.
async fn is_needed(handle: &Handle, own: SocketAddr) -> bool {
    handle.call(move |node, _, now| node.needs_carrier(own, now)).await.unwrap_or(false)
}

/// What waited too long is lost.
fn drain(socket: &UdpSocket) {
    let mut byte = [0];
    while socket.try_recv(&mut byte).is_ok() {}
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

async fn connect(
    settings: &CarrierSettings,
    connector: &TlsConnector,
) -> Result<tokio_tungstenite::WebSocketStream<impl Stream + use<>>, Ended> {
    let CarrierSettings { hub, proxy } = settings;
    let mut connection = within_step(TcpStream::connect(proxy.as_ref().unwrap_or(hub))).await??;
    tune(&connection)?;
    if proxy.is_some() {
        within_step(pass_proxy(&mut connection, hub)).await??;
    }
    let host = hub.rsplit_once(':').map_or(hub.as_str(), |(host, _)| host).trim_matches(['[', ']']);
    let name = ServerName::try_from(host.to_owned()).map_err(|error| Ended::Refused(error.to_string()))?;
    let connection = within_step(connector.connect(name, connection)).await??;
    let upgrade = client_async_with_config(format!("wss://{hub}{PATH}"), connection, Some(websocket()));
    Ok(within_step(upgrade).await??.0)
}

/// RFC 9110 section 9.3.6.
async fn pass_proxy(connection: &mut TcpStream, hub: &str) -> Result<(), Ended> {
    connection.write_all(format!("CONNECT {hub} HTTP/1.1\r\nHost: {hub}\r\n\r\n").as_bytes()).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= ANSWER_BYTES_MAX {
            return Err(Ended::Refused("the proxy's answer has no end".to_owned()));
        }
        match connection.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(Ended::Closed),
            Err(error) => return Err(error.into()),
        }
    }
    let status = head.split(|byte| *byte == b' ').nth(1).unwrap_or_default();
    if status.first() == Some(&b'2') {
        return Ok(());
    }
    let line = String::from_utf8_lossy(head.split(|byte| *byte == b'\r').next().unwrap_or_default()).into_owned();
    Err(Ended::Refused(format!("the proxy refused: {}", line.escape_debug())))
}
