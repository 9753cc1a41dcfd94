//! Which targets of this site's services take new flows: those that answer their checks, and that the operator has not drained.
//! The node is told; open flows go on in any case.

mod check;

pub use check::Check;

use crate::agent::Agent;
use crate::state::Drained;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{info, warn};
use vp::addr::Name;
use vp::node::{Resting, Target};
use vp_proto::api::{self, RestingTarget};

/// Between the beginnings of two rounds. With what follows, a target that is gone gets no new flows after 4 s at most, as long as
/// no more than `AT_ONCE` hang at once.
const ROUND: Duration = Duration::from_secs(1);
/// Failures and successes in a row after which a target is taken for down, and for up again.
const IN_A_ROW: u8 = 2;
/// Checks under way at once; with `TARGETS_MAX`, a round in which none answers takes 2 s.
const AT_ONCE: usize = 256;
/// Targets of all services that are checked; those behind these are taken for up, and the doctor says so.
pub const TARGETS_MAX: usize = 512;

/// What the last checks said.
#[derive(Default)]
pub struct Health {
    targets: Mutex<BTreeMap<(Name, IpAddr), Judged>>,
}

#[derive(Clone, Default, Debug)]
struct Judged {
    is_down: bool,
    /// Checks in a row that say the opposite.
    against: u8,
    /// Of the last that failed.
    detail: String,
}

impl Judged {
    /// True if the verdict is another now.
    fn take(&mut self, checked: Result<(), String>) -> bool {
        let failed = checked.is_err();
        if let Err(detail) = checked {
            self.detail = detail;
        }
        self.against = if failed == self.is_down { 0 } else { self.against + 1 };
        let turns = self.against >= IN_A_ROW;
        if turns {
            (self.is_down, self.against) = (failed, 0);
        }
        turns
    }
}

/// Ends with the runtime.
pub async fn run(agent: Arc<Agent>) {
    let mut round = interval(ROUND);
    round.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        round.tick().await;
        let checks = agent.wanted.lock().await.checks();
        if agent.health.check(checks).await {
            agent.rest().await;
        }
    }
}

impl Health {
    /// One round. True if a verdict is another now.
    async fn check(&self, checks: BTreeMap<(Name, IpAddr), Check>) -> bool {
        let before = {
            let mut targets = self.targets();
            let before = targets.len();
            targets.retain(|target, _| checks.contains_key(target));
            before > targets.len()
        };
        let (at_once, mut asked) = (Arc::new(Semaphore::new(AT_ONCE)), JoinSet::new());
        for (target, check) in checks {
            let at_once = at_once.clone();
            asked.spawn(async move {
                let _permit = at_once.acquire().await;
                let verdict = check.run(target.1).await;
                (target, verdict)
            });
        }
        let mut changed = before;
        while let Some(joined) = asked.join_next().await {
            let Ok((target, verdict)) = joined else { continue };
            let mut targets = self.targets();
            let judged = targets.entry(target.clone()).or_default();
            if judged.take(verdict) {
                changed = true;
                let (service, address) = &target;
                match judged.is_down {
                    true => warn!("service {service}: {address} is down: {}", judged.detail),
                    false => info!("service {service}: {address} is up"),
                }
            }
        }
        changed
    }

    /// What takes no new flows.
    pub fn resting(&self, drained: &[Drained], services: &[vp::node::Exposure]) -> BTreeMap<Name, Resting> {
        let mut resting: BTreeMap<Name, Resting> = BTreeMap::new();
        for (service, address) in self.down() {
            resting.entry(service).or_default().targets.insert(address);
        }
        for service in services {
            let of_service = drained.iter().filter(|drained| is_of(drained, &service.name));
            for drained in of_service {
                let resting = resting.entry(service.name.clone()).or_default();
                match drained.target {
                    Some(target) => drop(resting.targets.insert(target)),
                    None => resting.whole = true,
                }
            }
        }
        resting
    }

    /// Fills in what the node does not know.
    pub fn show(&self, service: &mut api::Service, exposure: Option<&vp::node::Exposure>, drained: &[Drained]) {
        let Some(exposure) = exposure else { return };
        let drained: Vec<&Drained> = drained.iter().filter(|drained| is_of(drained, &exposure.name)).collect();
        let is_drained =
            |address: &IpAddr| drained.iter().any(|drained| drained.target.is_none_or(|one| one == *address));
        let targets = self.targets();
        let backends = match &exposure.target {
            Target::Backends(backends) => backends.as_slice(),
            Target::Prefix(_) => &[],
        };
        for address in backends {
            let judged = targets.get(&(exposure.name.clone(), *address)).filter(|judged| judged.is_down);
            let state = match judged {
                Some(_) => "down",
                None if is_drained(address) => "drained",
                None => continue,
            };
            let detail = judged.map(|judged| judged.detail.clone());
            service.resting.push(RestingTarget { address: address.to_string(), state: state.to_owned(), detail });
        }
        let whole = drained.iter().any(|drained| drained.target.is_none());
        let all_rest = !backends.is_empty() && service.resting.len() == backends.len();
        let all_drained = service.resting.iter().all(|target| target.state == "drained");
        let state = match (whole || all_rest && all_drained, all_rest) {
            (true, _) => "drained",
            (false, true) => "down",
            (false, false) => "up",
        };
        state.clone_into(&mut service.state);
    }

    fn down(&self) -> Vec<(Name, IpAddr)> {
        self.targets().iter().filter(|(_, judged)| judged.is_down).map(|(target, _)| target.clone()).collect()
    }

    /// For the findings: each that is down, and why.
    pub fn failures(&self) -> Vec<(Name, IpAddr, String)> {
        let targets = self.targets();
        let down = targets.iter().filter(|(_, judged)| judged.is_down);
        down.map(|((service, address), judged)| (service.clone(), *address, judged.detail.clone())).collect()
    }

    fn targets(&self) -> MutexGuard<'_, BTreeMap<(Name, IpAddr), Judged>> {
        self.targets.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_of(drained: &Drained, service: &Name) -> bool {
    drained.service.as_deref().is_none_or(|name| name == service.as_str())
}

/// Each target of these services that has a check, as far as there is room.
pub fn targets<'a>(
    services: impl IntoIterator<Item = (&'a Name, &'a Target, &'a Check)>,
) -> BTreeMap<(Name, IpAddr), Check> {
    let each = services.into_iter().flat_map(|(name, target, check)| {
        let addresses: BTreeSet<IpAddr> = target.addresses().into_iter().collect();
        addresses.into_iter().map(move |address| ((name.clone(), address), check.clone()))
    });
    each.take(TARGETS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_odd_check_changes_nothing_two_in_a_row_do() {
        let mut judged = Judged::default();
        let failure = || Err("no answer".to_owned());
        assert!(!judged.take(failure()) && !judged.take(Ok(())) && !judged.take(failure()) && !judged.is_down);
        assert!(judged.take(failure()) && judged.is_down);
        assert!(!judged.take(failure()) && !judged.take(Ok(())) && judged.is_down);
        assert!(judged.take(Ok(())) && !judged.is_down);
    }
}
