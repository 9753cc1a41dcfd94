//! Names for what is here of other sites: a DNS server on the gateway's own presences, authoritative for one zone and for
//! the reverse names of the pool. Every answer is made from the live tables, for the client that asks: there is no copy
//! of anything that could be stale, and what a client may not use does not exist for it.
//!
//! Never resolves names itself, keeps no answers, and never touches /etc/resolv.conf.

pub mod counts;
mod forward;
mod limit;
mod networks;
pub mod query;
mod reply;
mod resolved;
mod reverse;
mod server;
#[cfg(test)]
mod tests;
pub mod zone;

use crate::agent::Agent;
use crate::config;
use crate::dataplane::{Gone, Handle};
use crate::netlink::HostNetworks;
use counts::Counts;
use networks::Networks;
use resolved::{Resolved, Split};
use server::{Served, Server};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use zone::Zone;

/// IANA's.
const PORT: u16 = 53;
/// How often the host's networks are looked at, and whether systemd-resolved still knows.
const LOOK_PAUSE: Duration = Duration::from_secs(30);
/// Between two looks at them that strangers or a failure brought about.
const PAUSE: Duration = Duration::from_secs(1);

/// The server as the rest of the agent knows it.
pub struct Dns {
    server: Arc<Server>,
    /// Why there is no answer at an address.
    failures: Mutex<BTreeMap<SocketAddr, String>>,
    listening: Mutex<Vec<SocketAddr>>,
    pub changed: Notify,
    resolved: tokio::sync::Mutex<Resolved>,
    /// Why it could not be told.
    resolved_failure: Mutex<Option<String>>,
}

impl Dns {
    #[must_use]
    pub fn new(handle: Handle) -> Self {
        Self {
            server: Arc::new(Server::new(handle)),
            failures: Mutex::default(),
            listening: Mutex::default(),
            changed: Notify::new(),
            resolved: tokio::sync::Mutex::default(),
            resolved_failure: Mutex::default(),
        }
    }

    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.server.counts
    }

    #[must_use]
    pub fn listening(&self) -> Vec<SocketAddr> {
        self.listening.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    #[must_use]
    pub fn failures(&self) -> Vec<(SocketAddr, String)> {
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.iter().map(|(address, why)| (*address, why.clone())).collect()
    }

    #[must_use]
    pub fn resolved_failure(&self) -> Option<String> {
        self.resolved_failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// systemd-resolved as it was.
    pub async fn stop(&self) {
        let reverted = self.resolved.lock().await.tell(None).await;
        reverted.unwrap_or_else(|error| tracing::warn!("systemd-resolved: {error}"));
    }
}

/// Keeps the server as it is wanted. Ends with the data threads.
pub async fn run(agent: Arc<Agent>) {
    let mut sockets = Sockets::default();
    loop {
        let Ok(is_complete) = follow(&agent, &mut sockets).await else { return };
        let dns = &agent.dns;
        tokio::select! {
            () = dns.changed.notified() => {}
            () = tokio::time::sleep(if is_complete { LOOK_PAUSE } else { PAUSE }) => {}
            () = async {
                dns.server.stranger.notified().await;
                tokio::time::sleep(PAUSE).await;
            } => {}
        }
    }
}

/// Brings it to what the file wants and the node has. Whether all of it could be done.
async fn follow(agent: &Agent, sockets: &mut Sockets) -> Result<bool, Gone> {
    let (dns, interface, link) = {
        let wanted = agent.wanted.lock().await;
        (wanted.config.dns.clone(), wanted.config.interface.clone(), wanted.link())
    };
    let Some(dns) = dns else {
        agent.dns.server.serve(None);
        sockets.set(agent, &[]).await;
        tell_resolved(agent, None).await;
        return Ok(true);
    };
    let (gateway, pool) =
        agent.handle.call(|node, _, _| (node.gateway_addresses(), node.settings().pool.clone())).await?;
    let Some(zone) = Zone::new(&dns.zone, agent.site.clone(), pool.clone()) else { return Ok(true) };
    let Ok(host) = HostNetworks::read().await else { return Ok(false) };
    let zones = [dns.zone.clone()].into_iter().chain(zone.reverse_zones()).collect();
    let networks = Networks::new(&host, &dns.clients, pool, &interface);
    let config::Dns { forward, listen, resolved, .. } = dns;
    agent.dns.server.serve(Some(Served { zone, networks, forward }));
    let own = gateway.iter().map(|address| SocketAddr::from((*address, PORT)));
    let addresses: Vec<SocketAddr> = own.chain(listen).collect();
    let is_complete = sockets.set(agent, &addresses).await;
    let split = link.filter(|_| resolved && !gateway.is_empty()).map(|link| Split { link, servers: gateway, zones });
    tell_resolved(agent, split.as_ref()).await;
    Ok(is_complete)
}

async fn tell_resolved(agent: &Agent, split: Option<&Split>) {
    let failure = agent.dns.resolved.lock().await.tell(split).await.err();
    let mut known = agent.dns.resolved_failure.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(failure) = failure.as_ref().filter(|failure| known.as_ref() != Some(*failure)) {
        tracing::warn!("systemd-resolved does not ask this gateway for names: {failure}");
    }
    *known = failure;
}

/// What listens, and the tasks that do.
#[derive(Default)]
struct Sockets(BTreeMap<SocketAddr, [AbortHandle; 2]>);

impl Sockets {
    /// Listens at these addresses and no others; whether it can.
    async fn set(&mut self, agent: &Agent, addresses: &[SocketAddr]) -> bool {
        self.0.retain(|address, tasks| {
            let stays = addresses.contains(address);
            if !stays {
                tasks.iter().for_each(AbortHandle::abort);
            }
            stays
        });
        let mut failures = BTreeMap::new();
        for address in addresses {
            if self.0.contains_key(address) {
                continue;
            }
            match listen(&agent.dns.server, *address).await {
                Ok(tasks) => drop(self.0.insert(*address, tasks)),
                Err(error) => drop(failures.insert(*address, error.to_string())),
            }
        }
        let is_complete = failures.is_empty();
        let known = &mut *agent.dns.failures.lock().unwrap_or_else(PoisonError::into_inner);
        for (address, why) in failures.iter().filter(|(address, why)| known.get(*address) != Some(*why)) {
            tracing::warn!("names are not served at {address}: {why}");
        }
        *known = failures;
        *agent.dns.listening.lock().unwrap_or_else(PoisonError::into_inner) = self.0.keys().copied().collect();
        is_complete
    }
}

async fn listen(server: &Arc<Server>, address: SocketAddr) -> std::io::Result<[AbortHandle; 2]> {
    let (udp, tcp) = (UdpSocket::bind(address).await?, TcpListener::bind(address).await?);
    let udp = tokio::spawn(server.clone().answer_udp(udp)).abort_handle();
    let tcp = tokio::spawn(server.clone().answer_tcp(tcp)).abort_handle();
    Ok([udp, tcp])
}
