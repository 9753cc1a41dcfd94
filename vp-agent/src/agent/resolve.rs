//! Endpoints that are names: what they say now, for peers that are away. Each of a name's addresses has its turn.

use super::Agent;
use crate::dataplane::Gone;
use futures_util::{StreamExt, stream};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::lookup_host;
use tokio::time::MissedTickBehavior;
use vp::addr::Name;

/// Between two addresses of a peer that stays away: six handshakes are tried meanwhile.
const PAUSE: Duration = Duration::from_secs(30);
/// Names looked up at a time: each takes a thread for as long as the name server is silent.
const LOOKUPS_MAX: usize = 16;

/// By site: the addresses that a peer did not answer at.
type Tried = BTreeMap<Name, Vec<SocketAddr>>;

pub(super) async fn run(agent: Arc<Agent>) {
    let mut interval = tokio::time::interval(PAUSE);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut tried = Tried::new();
    loop {
        tokio::select! {
            _ = interval.tick() => {}
            () = agent.endpoints_changed.notified() => {}
        }
        if resolve(&agent, &mut tried).await.is_err() {
            return;
        }
    }
}

async fn resolve(agent: &Agent, tried: &mut Tried) -> Result<(), Gone> {
    let away = agent.handle.call(|node, _, now| {
        let peers = node.peers(now).into_iter();
        peers.filter(|(_, peer)| peer.state != "up").map(|(_, peer)| peer.site).collect::<BTreeSet<_>>()
    });
    let away = away.await?;
    tried.retain(|site, _| away.contains(site.as_str()));
    let (mut endpoints, pool) = {
        let wanted = agent.wanted.lock().await;
        (wanted.config.endpoints.clone(), wanted.config.settings.pool.clone())
    };
    endpoints.retain(|(site, _)| away.contains(site.as_str()));
    let lookups = endpoints.into_iter().map(|(site, endpoint)| async move {
        let addresses = lookup_host(&endpoint).await.map(Iterator::collect::<Vec<_>>);
        (site, endpoint, addresses)
    });
    let mut lookups = stream::iter(lookups).buffer_unordered(LOOKUPS_MAX);
    while let Some((site, endpoint, addresses)) = lookups.next().await {
        match addresses {
            Ok(mut addresses) => {
                // No tunnel leads through itself, whatever a name server says.
                addresses.retain(|address| !pool.contains(address.ip()));
                match next_address(&addresses, tried.entry(site.clone()).or_default()) {
                    Some(address) => call_at(agent, site, address).await?,
                    None => tracing::warn!("peer {site}: endpoint {endpoint} has no address outside the pool"),
                }
            }
            Err(error) => tracing::warn!("peer {site}: endpoint {endpoint}: {error}"),
        }
    }
    Ok(())
}

/// The peer may have come up from elsewhere while its name was looked up.
async fn call_at(agent: &Agent, site: Name, address: SocketAddr) -> Result<(), Gone> {
    let call = agent.handle.call(move |node, _, now| {
        let away = node.peers(now).into_iter().find(|(_, peer)| peer.site == site.as_str() && peer.state != "up");
        if let Some((peer, _)) = away {
            node.set_endpoint(peer, address, now);
        }
    });
    call.await
}

/// Name servers give addresses in any order, so what counts is which were tried.
fn next_address(addresses: &[SocketAddr], tried: &mut Vec<SocketAddr>) -> Option<SocketAddr> {
    if addresses.iter().all(|address| tried.contains(address)) {
        tried.clear();
    }
    let next = *addresses.iter().find(|address| !tried.contains(address))?;
    tried.push(next);
    Some(next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;

    #[test]
    fn each_address_of_a_name_has_its_turn_whatever_their_order() {
        let [a, b, c] = [1, 2, 3].map(|host| SocketAddr::from(([192, 0, 2, host], 51820)));
        let mut tried = Vec::new();
        assert_eq!(next_address(&[a, b, c], &mut tried), Some(a));
        assert_eq!(next_address(&[b, a, c], &mut tried), Some(b));
        assert_eq!(next_address(&[b, c, a], &mut tried), Some(c));
        assert_eq!(next_address(&[b, c, a], &mut tried), Some(b));
        assert_eq!(next_address(&[b], &mut tried), Some(b), "the only one is tried again and again");
        assert_eq!(next_address(&[], &mut tried), None);
    }

    #[tokio::test]
    async fn a_peer_that_is_away_is_called_where_its_name_leads_and_one_without_a_good_name_holds_nobody_up() {
        crate::sys::enter_new_network_namespace();
        let folder = tempfile::tempdir().expect("folder");
        let (file, directory) = (folder.path().join("agent.yaml"), folder.path().display());
        let text = format!(
            "site: factory\npool: [10.0.1.0/24]\ninterface: vp-test\nstate_dir: {directory}/state\npeers:\n  \
             - {{site: cloud, public_key: {}, endpoint: \"localhost:51820\"}}\n  \
             - {{site: depot, public_key: {}, endpoint: \"nowhere.invalid:51820\"}}\n",
            STANDARD.encode([1; 32]),
            STANDARD.encode([2; 32]),
        );
        std::fs::write(&file, text).expect("file");
        let running = Agent::start(&file).await.expect("agent");
        let mut tried = Tried::new();
        resolve(&running.agent, &mut tried).await.expect("data thread");
        let peers = running.agent.handle.call(|node, _, now| node.peers(now)).await.expect("data thread");
        let endpoint = |site: &str| {
            let peer = peers.iter().find(|(_, peer)| peer.site == site);
            peer.and_then(|(_, peer)| peer.endpoint.clone())
        };
        let tried = tried.values().flatten().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!((tried.first(), tried.len()), (endpoint("cloud").as_ref(), 1));
        assert_eq!(endpoint("depot"), None);
        running.stop().await;
    }
}
