//! Ways to the pool, to peers and what they carry, and peers' clocks.

use super::{Surroundings, finding};
use crate::agent::Agent;
use crate::sys::PathQuestion;
use futures_util::future::join_all;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};
use tokio::time::sleep;
use vp_proto::api::Finding;

/// Peers that are asked.
const PEERS_MAX: usize = 64;
/// For a router to say what it does not carry.
const ROUTERS_ANSWER: Duration = Duration::from_millis(400);
const LOOK_EVERY: Duration = Duration::from_millis(40);
/// What WireGuard adds, with the UDP and IP header.
const OVERHEAD_V4: usize = 60;
const OVERHEAD_V6: usize = 80;
/// A certificate counts up to 60 s before its time: half of that is not late yet.
const SKEW_MAX: Duration = Duration::from_secs(30);

/// Routes of the host into the pool.
pub(super) fn overlapping_routes(around: &Surroundings) -> Vec<Finding> {
    let into_pool = around.host.routes.iter().filter(|route| {
        let is_own = route.interface.as_deref() == Some(around.own.as_str());
        let is_inside = around.pool.iter().any(|prefix| prefix.contains(&route.destination));
        !is_own && route.destination.prefix_len() > 0 && is_inside
    });
    into_pool
        .map(|route| {
            let via = route.interface.as_deref().unwrap_or("several ways");
            let detail = format!("the host has a route to {} by {via}, inside the pool", route.destination);
            let fix = format!("choose a pool that no network of the site uses, or: ip route del {}", route.destination);
            finding("pool-overlaps-route", "warning", detail, &fix)
        })
        .collect()
}

/// Whether the paths to peers carry the tunnels' packets in one piece.
pub(super) async fn mtu(agent: &Agent, around: &Surroundings) -> Vec<Finding> {
    let peers = agent.handle.call(|node, _, now| node.peers(now)).await.unwrap_or_default();
    let up = peers.into_iter().filter(|(_, peer)| peer.path == "direct" || peer.path == "relayed");
    let mut asked = BTreeSet::new();
    let ends = up.filter_map(|(_, peer)| {
        let to = peer.endpoint?.parse::<SocketAddr>().ok()?.ip().to_canonical();
        (!to.is_loopback() && asked.insert(to)).then_some((peer.site, to))
    });
    let ends: Vec<(String, IpAddr)> = ends.take(PEERS_MAX).collect();
    let inner = usize::from(around.inner_mtu);
    let found = ends.into_iter().map(|(site, to)| async move {
        let overhead = if to.is_ipv4() { OVERHEAD_V4 } else { OVERHEAD_V6 };
        let carried = carried(to, inner + overhead).await.filter(|carried| *carried < inner + overhead)?;
        let detail = format!(
            "the path to {site} carries packets of {carried} bytes, those of the tunnel have up to {}: each is cut in two, \
             which costs speed, and is lost where fragments are dropped",
            inner + overhead
        );
        let fix = format!("`mtu: {}` at both gateways, or a path that carries more", carried.saturating_sub(OVERHEAD_V6));
        Some(finding("path-mtu", "warning", detail, &fix))
    });
    join_all(found).await.into_iter().flatten().collect()
}

/// None where it cannot be asked.
async fn carried(to: IpAddr, bytes: usize) -> Option<usize> {
    let question = PathQuestion::ask(to, bytes).ok()?;
    let begun = Instant::now();
    loop {
        let carried = question.mtu().ok()?;
        if carried < bytes || begun.elapsed() >= ROUTERS_ANSWER {
            return Some(carried);
        }
        sleep(LOOK_EVERY).await;
    }
}

/// Whether peers' clocks say what this one does.
pub(super) async fn clocks(agent: &Agent) -> Vec<Finding> {
    let peers = agent.handle.call(|node, _, now| node.peers(now)).await.unwrap_or_default();
    let open = peers.into_iter().filter(|(id, _)| agent.control.is_open(*id)).take(PEERS_MAX);
    let asked = open.map(|(id, peer)| async move {
        // One that is older, or silent, is not asked for its clock.
        let ahead = agent.control.clock(id).await.ok()?;
        let apart = Duration::from_millis(ahead.unsigned_abs());
        (apart > SKEW_MAX).then(|| {
            let word = if ahead > 0 { "ahead of" } else { "behind" };
            let detail = format!(
                "the clock of {} is {} s {word} this gateway's: certificates begin and end at other times there",
                peer.site,
                apart.as_secs()
            );
            finding("clock-skew", "warning", detail, "timedatectl set-ntp true, at the gateway whose clock is wrong")
        })
    });
    join_all(asked).await.into_iter().flatten().collect()
}
