//! A configuration that is not right: one clear line that says where and what was expected, exit code 1; a running agent
//! keeps the one that it has.
//!
//! ```text
//!   plc .2 -- factory1 gateway -- NAT -- internet -- cloud gateway -- web .5
//! ```

use anyhow::{Context, Result, ensure};
use netns_tests::{Families, Key, Lab, Plan, Setup, TcpServer, World, agent, story};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// What is wrong, the file's text (`{dir}` stands for a directory with a good key), and what the line must say: the
/// place (line and column, if the text has one) and some of the words.
type Case<'a> = (&'a str, &'a str, &'a [&'a str]);

const CASES: [Case<'static>; 14] = [
    ("an unknown key", "site: a\npool: [10.9.0.0/24]\npols: [10.8.0.0/24]\n", &["bad.yaml:3:1", "pols"]),
    (
        "a key in the wrong place",
        "site: a\npool: [10.9.0.0/24]\npeers:\n  - site: b\n    public_kye: x\n",
        &["bad.yaml:5:5", "public_kye"],
    ),
    ("a wrong type", "site: a\npool: [10.9.0.0/24]\nexpose: true\n", &["bad.yaml:3:9"]),
    ("no address", "site: a\npool: [10.9.0/24]\n", &["bad.yaml:2:8", "10.9.0/24"]),
    ("a pool with host bits", "site: a\npool: [10.9.0.1/24]\n", &["bad.yaml:2", "10.9.0.0/24"]),
    ("a pool over a local network", "site: a\npool: [10.0.0.0/16]\n", &["bad.yaml:2", "10.0.0.0/16", "10.0.0."]),
    ("a name that is none", "site: My Site\npool: [10.9.0.0/24]\n", &["bad.yaml:1:7"]),
    (
        "a duplicate service",
        "site: a\npool: [10.9.0.0/24]\nexpose:\n  - {name: web, target: 10.0.0.2, ports: [tcp/80], allow: [any]}\n  - {name: web, target: 10.0.0.3, ports: [tcp/80], allow: [any]}\n",
        &["bad.yaml:5", "web"],
    ),
    (
        "a service without ports",
        "site: a\npool: [10.9.0.0/24]\nexpose:\n  - {name: web, target: 10.0.0.2, ports: [], allow: [any]}\n",
        &["bad.yaml:4", "ports"],
    ),
    ("a missing key file", "site: a\nkey: {dir}/missing.key\npool: [10.9.0.0/24]\n", &["missing.key"]),
    ("a key that all may read", "site: a\nkey: {dir}/open.key\npool: [10.9.0.0/24]\n", &["open.key", "0600"]),
    ("a key that is none", "site: a\nkey: {dir}/wrong.key\npool: [10.9.0.0/24]\n", &["wrong.key"]),
    ("no YAML", "site: [a\npool: {\n", &["bad.yaml:"]),
    ("nothing", "", &["bad.yaml"]),
];

#[test]
fn a_bad_file_gives_one_clear_line_and_exit_code_1() {
    story(|lab| {
        let machine = lab.namespace("gateway")?;
        machine.ip("link add name lan0 type bridge\naddr add 10.0.0.1/24 dev lan0\nlink set lan0 up")?;
        let directory = lab.directory();
        Key::new()?.write(&directory.join("good.key"))?;
        Key::new()?.write(&directory.join("open.key"))?;
        fs::set_permissions(directory.join("open.key"), fs::Permissions::from_mode(0o644))?;
        fs::write(directory.join("wrong.key"), "not a key\n")?;
        fs::set_permissions(directory.join("wrong.key"), fs::Permissions::from_mode(0o600))?;
        let file = directory.join("bad.yaml");
        let bombs = [alias_bomb(0), alias_bomb(10 << 20)];
        let bombs: [Case; 2] =
            [("aliases of aliases", &bombs[0], &["bad.yaml"]), ("10 MB of aliases", &bombs[1], &["bad.yaml"])];
        for (what, text, expected) in CASES.iter().chain(&bombs) {
            fs::write(&file, complete(text, directory))?;
            let agent = agent::binary("vp-agent")?;
            let mut command = machine.command(&agent.to_string_lossy());
            one_clear_line(what, command.arg("--config").arg(&file), expected)?;
            if !what.contains("local network") {
                let mut command = machine.command(&agent::binary("vp-ctl")?.to_string_lossy());
                one_clear_line(what, command.arg("check").arg(&file), expected)?;
            }
        }
        ensure!(!Path::new(&directory.join("state")).join("leases").exists());
        Ok(())
    });
}

/// The keys that every file of the story has, so that nothing outside the lab's directory is touched.
fn complete(text: &str, directory: &Path) -> String {
    let directory = directory.display().to_string();
    let mut text = text.replace("{dir}", &directory);
    if !text.is_empty() && text.contains("pool: [") {
        if !text.contains("key: ") {
            text += &format!("key: {directory}/good.key\n");
        }
        text += &format!("state_dir: {directory}/state\nsocket: {directory}/agent.sock\n");
    }
    text
}

/// Ten of ten of ten and so on, in at least so many bytes.
fn alias_bomb(bytes: usize) -> String {
    let mut text = "site: a\npool: [10.9.0.0/24]\na: &a [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for (name, before) in ('b'..='z').zip('a'..) {
        let aliases = vec![format!("*{before}"); 10].join(", ");
        text += &format!("{name}: &{name} [{aliases}]\n");
    }
    for line in 0.. {
        if text.len() >= bytes {
            break;
        }
        text += &format!("more{line}: [*z, *z, *z, *z, *z, *z, *z, *z]\n");
    }
    text
}

fn one_clear_line(what: &str, command: &mut Command, expected: &[&str]) -> Result<()> {
    let began = Instant::now();
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    let line = said.trim();
    ensure!(output.status.code() == Some(1), "{what}: exit {:?}: {line}", output.status.code());
    ensure!(line.lines().count() == 1 && line.len() < 400, "{what}: not one line: {line}");
    ensure!(began.elapsed() < Duration::from_secs(5), "{what}: took {:?}", began.elapsed());
    for words in expected {
        ensure!(line.contains(words), "{what}: no {words:?} in: {line}");
    }
    Ok(())
}

#[test]
fn a_bad_reload_keeps_the_old_configuration_and_its_flows() {
    story(|lab| {
        let plan = Plan::named("same", Families::V4)?;
        let world = World::new(lab, &Setup::new(&plan))?;
        let family = plan.family();
        let web = &world.cloud.host;
        let _http = TcpServer::http(&web.namespace, (web.address(family)?, 80), "web of cloud")?;
        let presence = world.factories[0].agent.presence("web.cloud")?;
        let plc = &world.factories[0].host.namespace;
        let mut open = plc.tcp((presence, 80))?;

        let file = world.cloud.agent.directory().join("agent.yaml");
        let good = fs::read_to_string(&file)?;
        let lines = good.lines().count();
        fs::write(&file, format!("{good}colour: blue\n"))?;
        let output = world.cloud.agent.ctl_output("reload")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.code() == Some(1), "{said}");
        ensure!(said.contains(&format!("agent.yaml:{}:1", lines + 1)) && said.contains("colour"), "{said}");
        world.cloud.agent.process().signal(libc::SIGHUP);
        plc.curl(presence, "/")?;

        // A good one: a service more, and the open flow stays.
        let more = "  - {name: more, target: 10.0.0.6, ports: [tcp/81], allow: [any]}\n";
        fs::write(&file, good.replace("map:", &format!("{more}map:")) + if good.contains("map:") { "" } else { more })?;
        world.cloud.agent.ctl("reload")?;
        let status = world.cloud.agent.status()?;
        ensure!(status["services"].as_array().context("services")?.len() == 2, "{}", status["services"]);
        std::io::Write::write_all(&mut open, b"GET / HTTP/1.1\r\n\r\n")?;
        let mut page = String::new();
        std::io::Read::read_to_string(&mut open, &mut page)?;
        ensure!(page.contains("web of cloud"), "{page}");

        // By signal too.
        fs::write(&file, &good)?;
        world.cloud.agent.process().signal(libc::SIGHUP);
        netns_tests::wait_until("the reload", || {
            Ok(world.cloud.agent.status()?["services"].as_array().is_some_and(|services| services.len() == 1))
        })
    });
}

#[test]
fn nobody_but_root_and_its_group_may_use_the_socket() {
    story(|lab: &Lab| {
        let plan = Plan::named("same", Families::V4)?;
        let world = World::new(lab, &Setup { factories: 0, ..Setup::new(&plan) })?;
        let socket = world.cloud.agent.socket();
        let nobody = |line: &str| {
            let mut command = Command::new("setpriv");
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).args(line.split_whitespace());
            command.output()
        };
        let ctl = agent::binary("vp-ctl")?;
        let output = nobody(&format!("{} --socket {} status", ctl.display(), socket.display()))?;
        ensure!(output.status.code() == Some(3), "{}", String::from_utf8_lossy(&output.stderr));
        let output =
            Command::new(&ctl).arg("--socket").arg(lab.directory().join("none.sock")).arg("status").output()?;
        ensure!(output.status.code() == Some(3));
        let output = Command::new(&ctl).arg("stauts").output()?;
        ensure!(output.status.code() == Some(2));
        Ok(())
    });
}
