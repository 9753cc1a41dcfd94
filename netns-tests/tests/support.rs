//! What support asks for: why a call does not pass, step by step, and all of a gateway in one archive, without its keys.
//!
//! ```text
//!   plc .2 --------+
//!   neighbour .6 --+-- factory1 gateway -- NAT -- internet -- cloud gateway -- web .5
//! ```

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use netns_tests::{Agent, Families, Key, Lab, Plan, Setup, TcpServer, World, agent, for_each_plan, story, wait_until};
use serde_json::Value;
use std::fs;
use std::process::Command;

const STEPS: [&str; 11] = [
    "name",
    "presence",
    "caller",
    "policy here",
    "limits here",
    "peer",
    "path",
    "policy there",
    "limits there",
    "target port",
    "reply route",
];

for_each_plan!(each_step_of_a_call_is_named_and_on_a_denial_who_must_change_what);

fn each_step_of_a_call_is_named_and_on_a_denial_who_must_change_what(lab: &Lab, plan: &Plan) -> Result<()> {
    let family = plan.family();
    let entry = |name: &str, allow: &str, more: &str| {
        format!("  - name: {name}\n    target: {{web}}\n    ports: [tcp/80, tcp/81]\n    allow: [\"{allow}\"]\n{more}")
    };
    let cloud = "expose:\n".to_owned()
        + &entry("web", "site:factory1", "")
        + &entry("robots", "client:robot.factory1", "")
        + &entry("busy", "any", "    source: presence\n    limits: {flows: 1}\n");
    let factory = "clients:\n  - name: plc\n    addresses: [{plc}]\n\
                   map:\n  - service: web.cloud\n    callers: [plc]\n  - service: robots.cloud\n  - service: busy.cloud\n";
    let world = World::new(lab, &Setup { cloud, factory: factory.to_owned(), ..Setup::new(plan) })?;
    let web = world.cloud.address(family)?;
    let server = TcpServer::http(&world.cloud.host.namespace, (web, 80), "web of cloud")?;
    let factory = &world.factories[0];
    let busy = factory.agent.presence("busy.cloud")?;
    let neighbour = factory.neighbour.address(family)?;

    let plc = "--from plc --port tcp/80";
    is(&factory.agent, &format!("{plc} --to web.cloud"), "allowed", None, "reply route", "masquerades")?;
    let elsewhere = format!("--from {neighbour} --port tcp/80 --to web.cloud");
    is(&factory.agent, &elsewhere, "denied", Some("not-allowed"), "policy here", "here, add the host to `callers`")?;
    is(
        &factory.agent,
        &format!("{plc} --to robots.cloud"),
        "denied",
        Some("not-allowed"),
        "policy there",
        "cloud's operator: add",
    )?;
    let unnamed = format!("--from {neighbour} --port tcp/80 --to robots.cloud");
    is(&factory.agent, &unnamed, "denied", Some("unknown-caller"), "policy there", "here, give the host a name")?;
    is(&factory.agent, &format!("{plc} --to nothing.cloud"), "denied", Some("not-mapped"), "presence", "map it here")?;
    is(&factory.agent, &format!("{plc} --to web.depot"), "denied", Some("not-offered"), "name", "`peers`")?;
    is(
        &factory.agent,
        "--from plc --port tcp/82 --to web.cloud",
        "denied",
        Some("port-not-exposed"),
        "policy here",
        "",
    )?;
    is(
        &factory.agent,
        "--from plc --port tcp/81 --to web.cloud",
        "unanswered",
        None,
        "target port",
        "start the server",
    )?;
    let open = factory.host.namespace.tcp((busy, 80))?;
    let flows = || world.cloud.agent.ask("flows --service busy");
    wait_until("the service's only flow", || Ok(flows()?.as_array().is_some_and(|flows| flows.len() == 1)))?;
    is(
        &factory.agent,
        &format!("{plc} --to busy.cloud"),
        "denied",
        Some("flow-limit"),
        "limits there",
        "cloud's operator: raise `limits` of busy",
    )?;
    drop((open, server));
    is(&factory.agent, &format!("{plc} --to web.cloud"), "unanswered", None, "target port", "start the server")
}

/// What is said, and of which step, or of what to change about it.
fn is(agent: &Agent, question: &str, verdict: &str, reason: Option<&str>, of: &str, said: &str) -> Result<()> {
    let output = agent.ctl_output(&format!("-o json explain {question}"))?;
    let answer: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("{question}: {}", String::from_utf8_lossy(&output.stderr)))?;
    let steps = answer["steps"].as_array().context("steps")?;
    let names: Vec<&str> = steps.iter().filter_map(|step| step["step"].as_str()).collect();
    ensure!(names == STEPS, "{question}: {names:?}");
    ensure!(answer["verdict"] == verdict && answer["reason"].as_str() == reason, "{question}: {answer:#}");
    ensure!(output.status.success() == (verdict == "allowed"), "{question}: {}", output.status);
    let step = steps.iter().find(|step| step["step"] == of).context("the step")?;
    ensure!(step.to_string().contains(said), "{question}: {step}");
    let failed = steps.iter().filter(|step| step["outcome"] == "failed").count();
    ensure!(failed == usize::from(verdict != "allowed"), "{question}: {answer:#}");
    // It ends where it fails; only the server's absence keeps nobody from asking on.
    let at = names.iter().position(|name| *name == of).unwrap_or(0);
    let skipped = steps[at + 1..].iter().all(|step| step["outcome"] == "skipped");
    ensure!(verdict != "denied" || (step["outcome"] == "failed" && skipped), "{question}: {answer:#}");
    Ok(())
}

#[test]
fn an_archive_for_support_has_everything_but_keys() {
    story(|lab| {
        let plan = Plan::named("same", Families::V4)?;
        let mut world = World::new(lab, &Setup::new(&plan))?;
        let agent = &mut world.factories[0].agent;
        let psk = Key::new()?;
        let directory = agent.directory().to_owned();
        psk.write(&directory.join("cloud.psk"))?;
        let file = directory.join("agent.yaml");
        let private = BASE64_STANDARD.encode(agent.key.private.as_bytes());
        let shared = BASE64_STANDARD.encode(psk.private.as_bytes());
        let text = fs::read_to_string(&file)?;
        let text = text.replace("    public_key:", "    preshared_key_file: PSK\n    public_key:");
        let text = text.replace("PSK", &directory.join("cloud.psk").to_string_lossy());
        fs::write(
            &file,
            format!("{text}# once it was {private}, and {shared}; otlp http://me:hidden@collector:4318\n"),
        )?;
        agent.ctl("reload")?;

        for running in [true, false] {
            if !running {
                agent.stop()?;
            }
            let archive = directory.join(format!("gathered-{running}.tar.gz"));
            let mut command = agent.machine.command(&agent::binary("vp-ctl")?.to_string_lossy());
            command.arg("--socket").arg(agent.socket()).args(["-o", "json", "gather"]).arg(&archive);
            let output = command.arg("--config").arg(&file).output()?;
            let said =
                [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned()).concat();
            ensure!(output.status.success(), "{said}");
            let unpacked = directory.join(format!("unpacked-{running}"));
            fs::create_dir(&unpacked)?;
            ensure!(Command::new("tar").arg("-xzf").arg(&archive).arg("-C").arg(&unpacked).status()?.success());
            let folder = fs::read_dir(&unpacked)?.next().context("a folder")??.path();
            let read = |name: &str| fs::read_to_string(folder.join(name)).with_context(|| name.to_owned());
            for (name, part) in [
                ("versions.txt", "vp-ctl 0."),
                ("configuration.yaml", "site: factory1"),
                ("host/sysctl.txt", "net/ipv4/ip_forward = 1"),
                ("host/links.txt", "lan0"),
                ("host/kernel.txt", "Linux"),
            ] {
                ensure!(read(name)?.contains(part), "{name}: {}", read(name)?);
            }
            for (name, part) in [
                ("agent/status.json", "\"site\":\"factory1\""),
                ("agent/doctor.json", "\"severity\""),
                ("agent/metrics.txt", "vp_flows_open"),
                ("agent/audit.jsonl", "\"event\":\"started\""),
                ("host/nft.txt", "vp_vp0"),
                ("host/routes-ipv4.txt", "7076"),
            ] {
                let text = read(name)?;
                let expected = if running { part } else { "error: no agent at " };
                ensure!(text.contains(expected) || (!running && name.starts_with("host/")), "{name}: {text}");
            }
            let tar = Command::new("gzip").arg("-dc").arg(&archive).output()?.stdout;
            let secrets = [agent.key.private.as_bytes(), psk.private.as_bytes()];
            for secret in secrets {
                let text = BASE64_STANDARD.encode(secret);
                let hex: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
                for form in [text.trim_end_matches('=').as_bytes(), hex.as_bytes(), secret.as_slice(), b"hidden"] {
                    ensure!(!tar.windows(form.len()).any(|window| window == form), "a secret is in the archive");
                }
            }
            ensure!(String::from_utf8_lossy(&tar).contains("(key "));
        }
        Ok(())
    });
}
