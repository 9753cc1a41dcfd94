//! The audit log's file: what an operator sees when it cannot be written, and what a reload may not move.
//!
//! ```text
//!   cloud gateway -- web .5
//! ```

use anyhow::{Context, ensure};
use netns_tests::world::expose;
use netns_tests::{Families, Family, Plan, Setup, TcpServer, World, agent, story, wait_until};
use serde_json::Value;
use std::fs;
use std::io::{Read, Write};

fn finding(status: &Value) -> Option<String> {
    let health = status["health"].as_array()?;
    let finding = health.iter().find(|finding| finding["name"] == "audit-not-written")?;
    finding["detail"].as_str().map(str::to_owned)
}

#[test]
fn an_audit_log_that_cannot_be_opened_is_refused_at_start_and_said_at_a_reload() {
    story(|lab| {
        let plan = Plan::named("same", Families::V4)?;
        let mut world = World::new(lab, &Setup { factories: 0, ..Setup::new(&plan) })?;
        let cloud = &mut world.cloud.agent;
        let (file, logs) = (cloud.directory().join("agent.yaml"), cloud.directory().join("logs"));
        let written = fs::read_to_string(&file)?;
        let elsewhere = |text: &str| text.replace("/audit.jsonl", "/logs/audit.jsonl");
        cloud.stop()?;
        fs::write(&file, elsewhere(&written))?;
        let mut command = cloud.machine.command(&agent::binary("vp-agent")?.to_string_lossy());
        let output = command.arg("--config").arg(&file).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(1), "{said}");
        let last = said.trim().lines().last().context("nothing said")?;
        ensure!(last.starts_with("vp-agent: audit log ") && last.contains("logs/audit.jsonl: No such file"), "{said}");

        fs::create_dir(&logs)?;
        cloud.start_again(lab)?;
        ensure!(finding(&cloud.status()?).is_none());
        fs::rename(&logs, logs.with_extension("away"))?;
        let output = cloud.ctl_output("reload")?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success() && said.contains("logs/audit.jsonl: No such file"), "{said}");
        wait_until("the lost line to be counted", || {
            Ok(finding(&cloud.status()?).is_some_and(|detail| detail.ends_with("(1 lines lost)")))
        })?;
        // What is not in the file is in memory.
        ensure!(cloud.ctl("-o json audit -n 1")?.contains("the file was read again"));
        fs::create_dir(&logs)?;
        cloud.ctl("reload")?;
        ensure!(finding(&cloud.status()?).is_none());
        cloud.stop()?;
        let lines = fs::read_to_string(logs.join("audit.jsonl"))?;
        let told = lines.lines().map(|line| line.contains("\"event\":\"lost\",\"site\":\"cloud\",\"repeated\":1,"));
        ensure!(told.eq([true, false]) && lines.contains("the file was read again"), "{lines}");
        Ok(())
    });
}

#[test]
fn a_reload_moves_nothing_that_changes_at_a_restart() {
    story(|lab| {
        let plan = Plan::named("same", Families::V4)?;
        let mut world = World::new(lab, &Setup { factories: 0, ..Setup::new(&plan) })?;
        let cloud = &mut world.cloud.agent;
        let (socket, directory) = (cloud.socket(), cloud.directory().to_owned());
        let written = fs::read_to_string(directory.join("agent.yaml"))?;
        let other = written.replace("/agent.sock", "/other.sock").replace("/audit.jsonl", "/other.jsonl");
        fs::write(directory.join("agent.yaml"), other + "interface: vp9\nmetrics: 127.0.0.1:9\n")?;
        fs::write(directory.join("other.sock"), "not ours")?;
        let before = cloud.status()?["interface"].clone();
        for _ in 0..2 {
            let output = cloud.ctl_output("reload")?;
            let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
            for what in ["interface", "socket", "metrics", "audit"] {
                ensure!(said.contains(&format!("{what} changes at the next restart")), "{said}");
            }
        }
        ensure!(cloud.status()?["interface"] == before);
        ensure!(cloud.ctl("-o json audit -n 1")?.contains("the file was read again"));
        cloud.stop()?;
        ensure!(!socket.exists() && directory.join("other.sock").exists() && !directory.join("other.jsonl").exists());
        Ok::<(), anyhow::Error>(())
    });
}

#[test]
fn what_open_flows_carried_is_told_at_a_clean_stop() {
    story(|lab| {
        let plan = Plan::named("same", Families::V4)?;
        let cloud = expose("web", "{web}", "tcp/7", "any", "presence");
        let mut world = World::new(lab, &Setup { cloud, ..Setup::new(&plan) })?;
        let _echo = TcpServer::echo(&world.cloud.host.namespace, (world.cloud.address(Family::V4)?, 7))?;
        let presence = world.factories[0].agent.presence("web.cloud")?;
        let mut stream = world.factories[0].host.namespace.tcp((presence, 7))?;
        let mut message = [7; 1000];
        stream.write_all(&message)?;
        stream.read_exact(&mut message)?;
        for station in [&mut world.factories[0], &mut world.cloud] {
            station.agent.stop()?;
            let log = fs::read_to_string(station.agent.directory().join("audit.jsonl"))?;
            let records: Vec<Value> = log.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
            let is_end = |record: &&Value| record["event"] == "flow-closed" && record["reason"] == "stopped";
            let end = records.iter().find(is_end).with_context(|| log.clone())?;
            let bytes = ["outbound_bytes", "inbound_bytes"].map(|count| end[count].as_u64().unwrap_or(0));
            ensure!(bytes.iter().all(|bytes| *bytes > 1000), "{end}");
        }
        Ok(())
    });
}
