//! A thousand changes at random, with restarts in between: no address is given twice, none is lost, and at the end
//! nothing is left behind.
//!
//! ```text
//!   factory1 gateway -- NAT -- internet -- cloud gateway
//! ```

use anyhow::{Context, Result, ensure};
use netns_tests::server::Content;
use netns_tests::{Agent, Family, Lab, Plan, Setup, World, for_each_plan, wait_until};
use std::collections::{BTreeMap, BTreeSet};

const CHANGES: usize = 1000;
const SERVICES: u32 = 20;
/// A restart about every so many changes, by kill -9 every other time.
const RESTART_EVERY: u32 = 50;

for_each_plan!(a_thousand_changes_and_restarts_lose_no_address_and_leave_nothing, both);

fn a_thousand_changes_and_restarts_lose_no_address_and_leave_nothing(lab: &Lab, plan: &Plan) -> Result<()> {
    let mut world = World::new(lab, &Setup { cloud: String::new(), factory: String::new(), ..Setup::new(plan) })?;
    let target = world.cloud.address(Family::V4)?;
    let mut random = Random(Content::new("changes"));
    let mut model = Model::default();
    for change in 0..CHANGES {
        let name = format!("s{}", random.below(SERVICES));
        let (cloud, factory) = (&world.cloud.agent, &world.factories[0].agent);
        match random.below(4) {
            0 if model.exposed.insert(name.clone()) => {
                let port = 1 + random.below(65_535);
                cloud.ctl(&format!("expose {name} --target {target} --port tcp/{port} --allow any"))?;
            }
            1 if model.exposed.remove(&name) => drop(cloud.ctl(&format!("unexpose {name}"))?),
            2 if !model.mapped.contains_key(&name) => {
                factory.ctl(&format!("map {name}.cloud"))?;
                model.mapped.insert(name, BTreeSet::new());
            }
            3 if model.mapped.remove(&name).is_some() => drop(factory.ctl(&format!("unmap {name}.cloud"))?),
            _ => {}
        }
        if random.below(RESTART_EVERY) == 0 {
            let station = if random.below(2) == 0 { &mut world.cloud } else { &mut world.factories[0] };
            if random.below(2) == 0 {
                station.agent.kill()?
            } else {
                station.agent.stop()?
            }
            station.agent.start_again(lab)?;
        }
        if change % 25 == 0 {
            model.check(&world.factories[0].agent, &world.cloud.agent).with_context(|| format!("change {change}"))?;
        }
    }
    world.factories[0].agent.wait_peer("cloud")?;
    model.check(&world.factories[0].agent, &world.cloud.agent)?;
    for station in [&mut world.cloud, &mut world.factories[0]] {
        station.agent.stop()?;
    }
    for station in [&world.cloud, &world.factories[0]] {
        let (before, after) = (station.agent.machine_before(), station.site.gateway.network_state()?);
        ensure!(
            settled(before) == settled(&after),
            "left behind at {}:\n{after}\nin place of\n{before}",
            station.site.name
        );
    }
    Ok(())
}

struct Random(Content);

impl Random {
    fn below(&mut self, bound: u32) -> u32 {
        let mut bytes = [0; 4];
        self.0.fill(&mut bytes);
        u32::from_le_bytes(bytes) % bound
    }
}

/// What must be so.
#[derive(Default)]
struct Model {
    exposed: BTreeSet<String>,
    /// With the addresses that each was seen to have.
    mapped: BTreeMap<String, BTreeSet<String>>,
}

impl Model {
    fn check(&mut self, factory: &Agent, cloud: &Agent) -> Result<()> {
        let services = names(&cloud.status()?["services"], "name")?;
        ensure!(services == self.exposed, "exposed: {services:?} in place of {:?}", self.exposed);
        let mut last = String::new();
        let result = wait_until("presences as mapped", || {
            let status = factory.status()?;
            last = status["presences"].to_string();
            let seen = names(&status["presences"], "service")?;
            let wanted = self.mapped.keys().map(|name| format!("{name}.cloud")).collect::<BTreeSet<_>>();
            Ok(seen.is_subset(&wanted)
                && self
                    .exposed
                    .iter()
                    .filter(|n| self.mapped.contains_key(*n))
                    .all(|n| seen.contains(&format!("{n}.cloud"))))
        });
        result.context(last)?;
        let status = factory.status()?;
        let mut given = BTreeSet::new();
        for presence in status["presences"].as_array().context("presences")? {
            let (service, address) = (presence["service"].as_str(), presence["address"].as_str());
            let (service, address) = (service.context("service")?, address.context("address")?.to_owned());
            ensure!(given.insert(address.clone()), "{address} is given twice: {status}");
            let name = service.trim_end_matches(".cloud");
            // One of each family, and the same ones as long as it is mapped.
            let seen = self.mapped.get_mut(name).context("not mapped")?;
            seen.insert(address);
            ensure!(seen.len() <= 2, "{service} had {seen:?}");
        }
        Ok(())
    }
}

fn names(list: &serde_json::Value, key: &str) -> Result<BTreeSet<String>> {
    let entries = list.as_array().context("a list")?;
    entries.iter().map(|entry| Ok(entry[key].as_str().context("a name")?.to_owned())).collect()
}

/// Without what comes by itself once the other end of a link is up.
fn settled(state: &str) -> Vec<String> {
    let by_itself = |line: &&str| line.contains("fe80:") || line.contains("ff00::/8");
    let lines = state.lines().filter(|line| !by_itself(line));
    let carrier = [("NO-CARRIER,", ""), (",LOWER_UP", ""), ("state DOWN", "state UP"), (" linkdown", "")];
    lines.map(|line| carrier.iter().fold(line.to_owned(), |line, (from, to)| line.replace(from, to))).collect()
}
