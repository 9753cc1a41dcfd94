//! What an operator asks, and what is answered: every verb of `vp-ctl`, for people and for programs.
//!
//! ```text
//!   plc .2 -- factory1 gateway -- NAT -- internet -- cloud gateway -- web .5
//! ```

use anyhow::{Context, ensure};
use netns_tests::{Families, Plan, Setup, TcpServer, World, agent, story, wait_until};
use std::fs::File;
use std::process::Command;

#[test]
fn an_operator_maps_asks_and_unmaps() {
    story(|lab| {
        let plan = Plan::named("same", Families::V4)?;
        let factory = "clients:\n  - name: plc\n    addresses: [{plc}]\n".to_owned();
        let world = World::new(lab, &Setup { factory, ..Setup::new(&plan) })?;
        let (cloud, factory) = (&world.cloud.agent, &world.factories[0].agent);
        let web = world.cloud.address(plan.family())?;
        let server = TcpServer::http(&world.cloud.host.namespace, (web, 80), "web of cloud")?;
        let plc = &world.factories[0].host.namespace;

        wait_until("web.cloud to be offered", || Ok(factory.ask("services")?[0]["service"] == "web.cloud"))?;
        let said = factory.ctl("map web.cloud --address 10.0.1.20")?;
        ensure!(said.contains("10.0.1.20"), "{said}");
        let presence = factory.presence("web.cloud")?;
        ensure!(presence.to_string() == "10.0.1.20");
        let mut open = plc.tcp((presence, 80))?;
        wait_until("the call", || Ok(server.callers.count() == 1))?;

        let flows = factory.ask("flows --service web.cloud")?;
        let flow = &flows[0];
        ensure!(flow["protocol"] == "tcp" && flow["client"] == "plc" && flow["peer"] == "cloud", "{flows}");
        ensure!(flow["site"]["service"] == "10.0.1.20:80", "{flows}");
        let flows = cloud.ask("flows")?;
        let caller =
            flows[0]["site"]["caller"].as_str().context("a caller")?.split(':').next().context("an address")?;
        ensure!(flows[0]["client"] == "plc" && flows[0]["peer"] == "factory1", "{flows}");
        let whois = cloud.ask(&format!("whois {caller}"))?;
        ensure!(whois["client"] == "plc" && whois["site"] == "factory1" && whois["kind"] == "caller", "{whois}");

        let ping = factory.ask("ping web.cloud")?;
        let steps = ping.as_array().context("steps")?;
        ensure!(steps.len() >= 3 && steps.iter().all(|step| step["outcome"] == "ok"), "{ping}");
        for verb in ["status", "services", "flows", "whois 10.0.1.20", "ping web.cloud", "doctor"] {
            ensure!(!factory.ctl(verb)?.trim().is_empty(), "{verb} says nothing");
            factory.ask(verb)?;
        }
        let events = factory.ctl("-o json audit -n 100")?;
        let events = events.lines().map(serde_json::from_str).collect::<Result<Vec<serde_json::Value>, _>>()?;
        for wanted in ["started", "peer-up", "configuration", "flow-opened"] {
            ensure!(events.iter().any(|event| event["event"] == wanted), "no {wanted} in {events:?}");
        }
        for wanted in ["peer cloud: the control channel is open", "peer cloud: its offer was taken, services: 1"] {
            ensure!(factory.process().log().contains(wanted), "{}", factory.process().log());
        }
        ensure!(factory.figure("vp_control_packets_lost_total")? == 0);
        let key = File::open(cloud.directory().join("site.key"))?;
        let output = Command::new(agent::binary("vp-ctl")?).args(["key", "public"]).stdin(key).output()?;
        ensure!(String::from_utf8_lossy(&output.stdout).trim() == cloud.key.public());
        ensure!(cloud.status()?["public_key"] == cloud.key.public());

        factory.ctl("unmap web.cloud")?;
        ensure!(factory.status()?["presences"].as_array().is_some_and(Vec::is_empty));
        wait_until("its flow to end", || Ok(factory.ask("flows")?.as_array().is_some_and(Vec::is_empty)))?;
        let _ = std::io::Write::write_all(&mut open, b"x");
        ensure!(plc.curl(presence, "/").is_err());
        ensure!(factory.ctl_output("unmap web.cloud")?.status.code() == Some(1));
        Ok(())
    });
}
