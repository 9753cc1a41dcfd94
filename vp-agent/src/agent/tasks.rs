//! What waits for name servers, other programs or the disk: beside the loop, each in a task of its own.

use super::{Agent, identity, resolve};
use crate::state::Syncer;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

/// How often it is seen whether the nftables table is still there.
const RESTORE_PAUSE: Duration = Duration::from_secs(30);
/// How often the lease journal goes to the disk, and what peers presented.
const KEEP_PAUSE: Duration = Duration::from_secs(1);
/// Between two writes of where peers were seen. An agent that is killed and started again calls them there: without it
/// they notice only after 15 s (KEEPALIVE_TIMEOUT + REKEY_TIMEOUT of WireGuard).
const ENDPOINTS_PAUSE: Duration = Duration::from_millis(100);

/// They end with the runtime.
pub(super) fn spawn(agent: &Arc<Agent>, syncer: &Arc<Syncer>) {
    tokio::spawn(resolve::run(agent.clone()));
    tokio::spawn(identity::follow(agent.clone()));
    tokio::spawn(identity::settle(agent.clone()));
    tokio::spawn(identity::look_at_files(agent.clone()));
    tokio::spawn(follow_presences(agent.clone()));
    if let Some(registry) = agent.registry.clone() {
        let following = registry.clone();
        tokio::spawn(async move { following.follow().await });
        tokio::spawn(every(crate::registry::REVIEW_PAUSE, async move || registry.review().await));
    }
    tokio::spawn(crate::dns::run(agent.clone()));
    tokio::spawn(crate::health::run(agent.clone()));
    tokio::spawn(follow_endpoints(agent.clone()));
    tokio::spawn(follow_audit(agent.clone()));
    let restored = agent.clone();
    tokio::spawn(every(RESTORE_PAUSE, async move || restore(&restored).await));
    let (agent, syncer) = (agent.clone(), syncer.clone());
    tokio::spawn(every(KEEP_PAUSE, async move || {
        let (agent, syncer) = (agent.clone(), syncer.clone());
        spawn_blocking(move || keep(&agent, &syncer)).await.ok();
    }));
}

async fn every(pause: Duration, task: impl AsyncFn()) {
    let mut interval = interval_at(Instant::now() + pause, pause);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        task().await;
    }
}

async fn follow_presences(agent: Arc<Agent>) {
    loop {
        agent.presences_changed.notified().await;
        let changed = agent.wanted.lock().await.presences_changed(&agent.handle).await;
        changed.unwrap_or_else(|error| tracing::warn!("presences: {error}"));
    }
}

async fn follow_endpoints(agent: Arc<Agent>) {
    loop {
        agent.endpoint_learnt.notified().await;
        let saving = agent.clone();
        spawn_blocking(move || keep_endpoints(&saving)).await.ok();
        tokio::time::sleep(ENDPOINTS_PAUSE).await;
    }
}

/// Where the audit log is required the node hears whether it can be written.
async fn follow_audit(agent: Arc<Agent>) {
    let Some(mut failing) = agent.audit.failing() else { return };
    loop {
        let failed = *failing.borrow_and_update();
        let told = agent.handle.call(move |node, _, _| node.require_audit(failed)).await;
        if failed {
            tracing::warn!("no new flows: {}", agent.audit.failure().unwrap_or_default());
        }
        if told.is_err() || failing.changed().await.is_err() {
            return;
        }
    }
}

/// What another program took away: `nft flush ruleset` is what restarting many a firewall begins with.
async fn restore(agent: &Agent) {
    let mut wanted = agent.wanted.lock().await;
    let Some(nft) = &mut wanted.nft else { return };
    match nft.restore().await {
        Ok(false) => {}
        Ok(true) => tracing::warn!("another program had removed the gateway's nftables table; it is there again"),
        Err(error) => tracing::warn!("nftables: {error:#}"),
    }
}

/// Leases, where peers were seen, and what is certified and revoked, to the disk.
pub(super) fn keep(agent: &Agent, syncer: &Syncer) {
    if let Err(error) = syncer.sync() {
        tracing::warn!("the lease journal does not reach the disk: {error}");
    }
    keep_endpoints(agent);
    agent.keep_identity().unwrap_or_else(|error| tracing::warn!("{error}"));
}

/// What could not be written is tried again with the leases.
fn keep_endpoints(agent: &Agent) {
    let _one_at_a_time = agent.endpoints_file.lock().unwrap_or_else(PoisonError::into_inner);
    let unsaved = {
        let mut learnt = agent.learnt();
        std::mem::take(&mut learnt.unsaved).then(|| learnt.endpoints.clone())
    };
    let Some(endpoints) = unsaved else { return };
    if let Err(error) = endpoints.save(&agent.state) {
        tracing::warn!("{error}");
        agent.learnt().unsaved = true;
    }
}
