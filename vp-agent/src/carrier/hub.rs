//! A hub's end: whoever connects may speak to the tunnels' socket. Those whom the tunnels do not answer are strangers.

use super::tls::{self, CertificateFiles};
use super::{Ended, Patience, carry, loopback, tune, websocket, within_step};
use anyhow::{Context, Result};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::accept_async_with_config;
use tracing::debug;

/// Connections at a time, each with some 300 KB of buffers; a site has one.
const CONNECTIONS_MAX: usize = 4096;
/// A site's first datagram is answered at once; then it is asked every 20 s.
const PATIENCE: Patience = Patience { first: Duration::from_secs(10), then: Duration::from_secs(90) };
/// After the host had no room for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ListenerSettings {
    pub listen: SocketAddr,
    /// None: one of its own making.
    pub certificate: Option<CertificateFiles>,
}

/// It ends, and its connections with it, when this is dropped.
#[derive(Debug)]
pub struct Listener {
    task: JoinHandle<()>,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Listener {
    /// `tunnels`: where the tunnels' own socket is.
    pub async fn start(settings: &ListenerSettings, tunnels: SocketAddr) -> Result<Self> {
        let acceptor = tls::acceptor(settings.certificate.as_ref())?;
        let listener = TcpListener::bind(settings.listen).await;
        let listener = listener.with_context(|| format!("hub.tls: cannot listen on {}", settings.listen))?;
        Ok(Self { task: tokio::spawn(run(listener, acceptor, tunnels)) })
    }
}

async fn run(listener: TcpListener, acceptor: TlsAcceptor, tunnels: SocketAddr) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = tokio::task::JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((connection, from)) => {
                drop(connections.spawn(serve(connection, from, acceptor.clone(), tunnels, permit)))
            }
            Err(error) => {
                debug!("a TLS connection was not taken: {error}");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve(
    connection: TcpStream,
    from: SocketAddr,
    acceptor: TlsAcceptor,
    tunnels: SocketAddr,
    _permit: OwnedSemaphorePermit,
) {
    let Err(ended) = talk(connection, acceptor, tunnels).await;
    debug!("the TLS connection of {from} ended: {ended}");
}

async fn talk(
    connection: TcpStream,
    acceptor: TlsAcceptor,
    tunnels: SocketAddr,
) -> Result<std::convert::Infallible, Ended> {
    tune(&connection)?;
    let connection = within_step(acceptor.accept(connection)).await??;
    let connection = within_step(accept_async_with_config(connection, Some(websocket()))).await??;
    let socket = loopback(tunnels).await?;
    Err(carry(connection, &socket, PATIENCE).await)
}
