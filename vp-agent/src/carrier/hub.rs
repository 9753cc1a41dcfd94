//! A hub's end: whoever connects may speak to the tunnels' socket. Those whom the tunnels do not answer are strangers.

use super::tls::{self, CertificateFiles};
use super::{Ended, Patience, carry, loopback, tune, websocket, within_step};
use anyhow::{Context, Result};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
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
/// Of one source: the sites behind one NAT. Whoever wants to keep all others out needs many addresses.
const SOURCE_CONNECTIONS_MAX: u32 = 64;
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
    let (room, sources) = (Arc::new(Semaphore::new(CONNECTIONS_MAX)), Arc::new(Sources::default()));
    let mut connections = tokio::task::JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let Ok(permit) = room.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((connection, from)) => match sources.enter(from.ip()) {
                Some(entered) => {
                    connections.spawn(serve(connection, from, acceptor.clone(), tunnels, (permit, entered)));
                }
                None => debug!("a TLS connection of {from} was not taken: it has {SOURCE_CONNECTIONS_MAX}"),
            },
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
    _room: (OwnedSemaphorePermit, Entered),
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

/// Connections by their source; of IPv6 by its /64, for whoever has one address of that has all.
#[derive(Default, Debug)]
struct Sources(Mutex<BTreeMap<IpAddr, u32>>);

/// One of them, until it is dropped.
#[derive(Debug)]
struct Entered {
    sources: Arc<Sources>,
    source: IpAddr,
}

impl Sources {
    fn enter(self: &Arc<Self>, from: IpAddr) -> Option<Entered> {
        let source = match from.to_canonical() {
            IpAddr::V4(address) => IpAddr::V4(address),
            IpAddr::V6(address) => IpAddr::V6((address.to_bits() >> 64 << 64).into()),
        };
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(source).or_default();
        if *count >= SOURCE_CONNECTIONS_MAX {
            return None;
        }
        *count += 1;
        Some(Entered { sources: self.clone(), source })
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut counts = self.sources.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_source_has_its_share_of_connections_and_others_theirs() {
        let sources = Arc::new(Sources::default());
        let at = |text: &str| text.parse::<IpAddr>().expect("address");
        let mut entered: Vec<_> = (0..200).filter_map(|n| sources.enter(at(&format!("2001:db8::{n:x}")))).collect();
        assert_eq!(entered.len(), SOURCE_CONNECTIONS_MAX as usize);
        assert!(sources.enter(at("2001:db8:0:1::1")).is_some() && sources.enter(at("192.0.2.1")).is_some());
        entered.pop();
        assert!(sources.enter(at("2001:db8::1")).is_some());
        drop(entered);
        assert!(sources.0.lock().expect("counts").is_empty());
    }
}
