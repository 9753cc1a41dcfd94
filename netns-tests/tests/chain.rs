//! The audit log as evidence: both gateways' records of one flow have one id, and no line can be edited, dropped or moved, nor
//! be lost to a full disk or a crash, without a trace.
//!
//! ```text
//!   plc .2 -- factory1 gateway -- NAT -- internet -- cloud gateway -- web .5
//! ```

use anyhow::{Context, Result, ensure};
use netns_tests::world::{expose, map};
use netns_tests::{
    Agent, Families, Lab, Plan, Setup, Station, TcpServer, UdpEcho, World, for_each_plan, story, wait_until,
};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

for_each_plan!(both_gateways_call_one_flow_by_one_id);

fn both_gateways_call_one_flow_by_one_id(lab: &Lab, plan: &Plan) -> Result<()> {
    let family = plan.family();
    let cloud = expose("web", "{web}", "tcp/80, udp/7, icmp", "any", "presence");
    let factory = "clients:\n  - name: plc\n    addresses: [{plc}]\n".to_owned() + &map("web.cloud");
    let world = World::new(lab, &Setup { cloud, factory, ..Setup::new(plan) })?;
    let (cloud, factory) = (&world.cloud.agent, &world.factories[0].agent);
    let web = world.cloud.address(family)?;
    let _page = TcpServer::http(&world.cloud.host.namespace, (web, 80), "web of cloud")?;
    let _echo = UdpEcho::start(&world.cloud.host.namespace, (web, 7))?;
    let presence = factory.presence("web.cloud")?;
    let plc = &world.factories[0].host.namespace;
    (0..3).try_for_each(|_| plc.curl(presence, "/").map(drop))?;
    let socket = plc.udp((presence, 7))?;
    socket.send(b"x")?;
    socket.recv(&mut [0; 8])?;
    plc.sh(&format!("ping -c 1 -W 5 {presence}"))?;

    let opened = |agent: &Agent| ids(agent, "--since 1h --event flow-opened --service web.cloud --client plc");
    wait_until("five flows at both", || Ok(opened(cloud)?.len() == 5 && opened(factory)?.len() == 5))?;
    let known = opened(cloud)?;
    ensure!(known == opened(factory)?, "{known:?} and {:?}", opened(factory)?);
    ensure!(known.iter().filter(|id| id.len() == 25).count() == 3, "three connections: {known:?}");
    let live = |agent: &Agent| -> Result<BTreeSet<String>> {
        let flows = agent.ask("flows")?;
        Ok(flows.as_array().context("flows")?.iter().map(|flow| text(&flow["flow"])).collect())
    };
    ensure!(live(cloud)?.is_subset(&known) && live(factory)?.is_subset(&known));

    // One of them, at both.
    let one = known.iter().find(|id| id.len() == 25).context("a connection")?;
    for agent in [cloud, factory] {
        wait_until("its end", || Ok(events(agent, &format!("--flow {one}"))? == ["flow-opened", "flow-closed"]))?;
        let (ends, _) = one.split_once('-').context("two halves")?;
        ensure!(events(agent, &format!("--flow {ends}"))?.len() >= 2);
        ensure!(events(agent, "--since 1h --reason idle")?.is_empty());
    }
    // What each knows of it: its own addresses and those inside the tunnel.
    let [there, here] = [cloud, factory].map(|agent| records(agent, &format!("--flow {one}")));
    let (there, here) = (there?, here?);
    for record in [&there[1], &here[1]] {
        ensure!(record["port"] == 80 && record["verdict"] == "allowed" && record["rule"].is_string(), "{record}");
        ensure!(record["duration_ms"].is_u64() && record["outbound_packets"].is_u64(), "{record}");
    }
    ensure!(there[1]["wire_view"] == here[1]["wire_view"]);
    ensure!(text(&there[1]["site_view"]["service"]).contains(&web.to_string()));
    ensure!(text(&here[1]["site_view"]["service"]).contains(&presence.to_string()));
    Ok(())
}

#[test]
fn the_chain_holds_through_kill_9_rotation_and_restart_and_shows_what_was_done_to_it() {
    story(|lab| {
        let plan = Plan::named("same", Families::V4)?;
        let mut world = World::new(lab, &Setup::new(&plan))?;
        let _web =
            TcpServer::http(&world.cloud.host.namespace, (world.cloud.address(plan.family())?, 80), "web of cloud")?;
        let presence = world.factories[0].agent.presence("web.cloud")?;
        let plc = world.factories[0].host.namespace.clone();
        let cloud = &mut world.cloud.agent;
        let log = cloud.directory().join("audit.jsonl");
        let rotated = log.with_extension("jsonl.1");
        let oldest = log.with_extension("jsonl.2");
        let opened = |agent: &Agent| events(agent, "-n 1000 --event flow-opened").map(|events| events.len());
        let call = |agent: &Agent| -> Result<()> {
            let before = opened(agent)?;
            plc.curl(presence, "/")?;
            wait_until("the record", || Ok(opened(agent)? > before))
        };
        call(cloud)?;
        cloud.kill()?;
        cloud.start_again(lab)?;
        call(cloud)?;
        // As logrotate does it.
        fs::rename(&log, &oldest)?;
        cloud.ctl("reload")?;
        call(cloud)?;
        // And while the agent is away; half a line is left as well.
        cloud.kill()?;
        OpenOptions::new().append(true).open(&log)?.write_all(b"{\"time\":\"2026-")?;
        cloud.start_again(lab)?;
        call(cloud)?;
        cloud.kill()?;
        fs::rename(&log, &rotated)?;
        cloud.start_again(lab)?;
        call(cloud)?;
        cloud.stop()?;
        ensure!(Command::new("gzip").arg(&oldest).status()?.success());
        let oldest = oldest.with_extension("2.gz");

        let head = format!("--head {}", cloud.directory().join("state/audit.head").display());
        let said = verify(&[&rotated, &log, &oldest], &head)?;
        ensure!(said.starts_with("good  lines 1 to "), "{said}");
        // Without the one in the middle, and then tampered with.
        ensure!(verify(&[&log, &oldest], "")?.contains("dropped: lines "));
        let written = fs::read_to_string(&rotated)?;
        ensure!(written.contains("\"event\":\"lost\""), "{written}");
        let lines: Vec<&str> = written.lines().collect();
        for (tampered, found) in [
            (written.replacen("flow-opened", "flow-opener", 1), "edited: "),
            (without(&lines, 1), "dropped: line "),
            (swapped(&lines, 1), "reordered: "),
            (lines[..lines.len() - 1].join("\n") + "\n", "dropped: line "),
        ] {
            fs::write(&rotated, tampered)?;
            let said = verify(&[&rotated, &log, &oldest], "")?;
            ensure!(said.contains(found), "expected {found}: {said}");
        }
        Ok(())
    });
}

#[test]
fn a_full_disk_costs_lines_that_are_counted_or_new_flows_where_the_log_is_required() {
    story(|lab| {
        let plan = Plan::named("same", Families::V4)?;
        let disk = Disk::mount(&lab.directory().join("disk"))?;
        let mut world = World::new(lab, &Setup::new(&plan))?;
        let _web =
            TcpServer::http(&world.cloud.host.namespace, (world.cloud.address(plan.family())?, 80), "web of cloud")?;
        let plc = world.factories[0].host.namespace.clone();
        let log = disk.0.join("audit.jsonl");
        for required in [true, false] {
            log_to(&mut world.cloud, lab, &format!("{{file: {}, required: {required}}}", log.display()))?;
            let presence = world.factories[0].agent.presence("web.cloud")?;
            let cloud = &world.cloud.agent;
            wait_until("a call", || Ok(plc.curl(presence, "/").is_ok()))?;
            let mut old = plc.tcp((presence, 80))?;
            wait_until("it to be there", || Ok(cloud.ask("flows")?.as_array().is_some_and(|flows| !flows.is_empty())))?;
            disk.fill()?;
            if required {
                let refused = || cloud.drops("audit-failed");
                wait_until("new flows to be refused", || Ok(plc.curl(presence, "/").is_err() && refused()? > 0))?;
                ensure!(cloud.figure("vp_audit_lost_total")? == 0);
                ensure!(explain(&world, "web.cloud")?.contains("limits there  cloud says audit-failed"));
            } else {
                let lost = || cloud.figure("vp_audit_lost_total");
                wait_until("lines to be lost", || Ok(plc.curl(presence, "/").is_ok() && lost()? > 3))?;
            }
            let status = cloud.status()?.to_string();
            ensure!(status.contains("audit-not-written") && status.contains("No space left"), "{status}");
            write!(old, "GET / HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n")?;
            let mut page = String::new();
            old.read_to_string(&mut page)?;
            ensure!(page.contains("web of cloud"), "{page}");

            disk.free()?;
            wait_until("new flows to pass", || Ok(plc.curl(presence, "/").is_ok()))?;
            ensure!(explain(&world, "web.cloud")?.ends_with("allowed\n"));
            if required {
                ensure!(!cloud.status()?.to_string().contains("audit-not-written"));
            }
            world.cloud.agent.stop()?;
            let said = verify(&[&log], "")?;
            ensure!(said.starts_with("good  "), "{said}");
            let text = fs::read_to_string(&log)?;
            ensure!(text.contains("\"event\":\"lost\"") != required, "{text}");
        }
        Ok(())
    });
}

/// A small disk of its own, gone with this.
struct Disk(PathBuf);

impl Disk {
    fn mount(at: &Path) -> Result<Self> {
        fs::create_dir_all(at)?;
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=256k", "tmpfs"]).arg(at).status()?;
        ensure!(mounted.success(), "no tmpfs at {}", at.display());
        Ok(Self(at.to_owned()))
    }

    fn fill(&self) -> Result<()> {
        let mut file = fs::File::create(self.0.join("filler"))?;
        while file.write_all(&[0; 4096]).is_ok() {}
        Ok(())
    }

    fn free(&self) -> Result<()> {
        Ok(fs::remove_file(self.0.join("filler"))?)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily: an agent may still have a file open there.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// Starts the agent anew with another `audit`.
fn log_to(station: &mut Station, lab: &Lab, audit: &str) -> Result<()> {
    let agent = &mut station.agent;
    agent.stop().ok();
    let file = agent.directory().join("agent.yaml");
    let text = fs::read_to_string(&file)?;
    let lines =
        text.lines().map(|line| if line.starts_with("audit: ") { format!("audit: {audit}") } else { line.to_owned() });
    fs::write(&file, lines.collect::<Vec<_>>().join("\n") + "\n")?;
    agent.start_again(lab)
}

fn explain(world: &World, service: &str) -> Result<String> {
    let output = world.factories[0].agent.ctl_output(&format!("explain --to {service} --port tcp/80"))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What `vp-ctl audit verify` says, on either stream.
fn verify(files: &[&PathBuf], options: &str) -> Result<String> {
    let mut command = Command::new(netns_tests::agent::binary("vp-ctl")?);
    let output = command.args(["audit", "verify"]).args(options.split_whitespace()).args(files).output()?;
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    ensure!(output.status.success() == said.starts_with("good"), "{said}");
    Ok(said)
}

fn records(agent: &Agent, filters: &str) -> Result<Vec<Value>> {
    let out = agent.ctl(&format!("-o json audit {filters}"))?;
    out.lines().map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

fn events(agent: &Agent, filters: &str) -> Result<Vec<String>> {
    Ok(records(agent, filters)?.iter().map(|record| text(&record["event"])).collect())
}

fn ids(agent: &Agent, filters: &str) -> Result<BTreeSet<String>> {
    Ok(records(agent, filters)?.iter().map(|record| text(&record["flow"])).collect())
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn without(lines: &[&str], index: usize) -> String {
    lines.iter().enumerate().filter(|(at, _)| *at != index).map(|(_, line)| format!("{line}\n")).collect()
}

fn swapped(lines: &[&str], index: usize) -> String {
    let mut lines = lines.to_vec();
    lines.swap(index, index + 1);
    lines.iter().map(|line| format!("{line}\n")).collect()
}
