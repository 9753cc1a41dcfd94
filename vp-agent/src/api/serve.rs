//! HTTP on a TCP port, for whoever gets there: connections are few, short, and not all of one caller.

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};

/// At a time, of all and of one address: a scrape is one, a browser has six.
const CONNECTIONS_MAX: usize = 128;
const CONNECTIONS_OF_ONE_MAX: usize = 32;
/// For a request's head.
const HEAD_MAX: Duration = Duration::from_secs(10);
/// Of requests that say more than a page or a scraper has to say.
const HEAD_BYTES_MAX: usize = 16 << 10;
/// A connection that is kept is closed then, and made again.
const CONNECTION_MAX: Duration = Duration::from_secs(60);
/// Out of descriptors, most likely: others are to let some go first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Who is connected, and how often.
#[derive(Clone, Default)]
struct Callers(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One connection; it counts until this is dropped.
struct Admitted {
    callers: Callers,
    caller: IpAddr,
}

/// For ever.
pub async fn serve(listener: TcpListener, routes: Router) {
    let callers = Callers::default();
    loop {
        match listener.accept().await {
            Ok((stream, caller)) => {
                // Whoever has too many loses the new one.
                if let Some(admitted) = callers.admit(caller.ip()) {
                    tokio::spawn(answer(stream, routes.clone(), admitted));
                }
            }
            Err(error) => {
                tracing::warn!("accepting a connection failed: {error}");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn answer(stream: TcpStream, routes: Router, _admitted: Admitted) {
    let mut connection = http1::Builder::new();
    connection.timer(TokioTimer::new()).header_read_timeout(HEAD_MAX).max_buf_size(HEAD_BYTES_MAX);
    let connection = connection.serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
    // What strangers do wrong is no news.
    timeout(CONNECTION_MAX, connection).await.ok();
}

impl Callers {
    fn admit(&self, caller: IpAddr) -> Option<Admitted> {
        let mut callers = self.lock();
        let all: usize = callers.values().sum();
        let of_one = callers.get(&caller).copied().unwrap_or(0);
        if all >= CONNECTIONS_MAX || of_one >= CONNECTIONS_OF_ONE_MAX {
            return None;
        }
        callers.insert(caller, of_one + 1);
        drop(callers);
        Some(Admitted { callers: self.clone(), caller })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut callers = self.callers.lock();
        match callers.get_mut(&self.caller) {
            Some(connections) if *connections > 1 => *connections -= 1,
            Some(_) | None => drop(callers.remove(&self.caller)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_caller_has_its_share_of_the_connections_and_all_have_no_more_than_there_are() {
        let callers = Callers::default();
        let address = |number: u8| IpAddr::from([127, 0, 0, number]);
        let mut held: Vec<Admitted> = (0..100).filter_map(|_| callers.admit(address(1))).collect();
        assert_eq!(held.len(), CONNECTIONS_OF_ONE_MAX);
        held.extend((2..255).flat_map(|number| callers.admit(address(number))));
        assert_eq!(held.len(), CONNECTIONS_MAX);
        held.clear();
        assert!(callers.lock().is_empty());
    }
}
