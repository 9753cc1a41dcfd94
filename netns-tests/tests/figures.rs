//! The figures: every one described as Prometheus wants it, true where another program counts too, scraped through the tunnel by
//! who may; and the alerts and the dashboard of `examples/`, which ask for nothing that there is not.
//!
//! ```text
//!   plc .2 ---- factory1 gateway -- NAT --+
//!                                         +-- internet -- cloud gateway -- web .5
//!   plc .2 ---- factory2 gateway -- NAT --+
//! ```

use anyhow::{Context, Result, ensure};
use netns_tests::names::ask;
use netns_tests::world::expose;
use netns_tests::{Agent, Families, Family, Plan, Process, Setup, TcpServer, World, story, wait_until};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Only of certificates, of logs beside the file, and of hubs that share their registry.
const ELSEWHERE: [&str; 6] = [
    "vp_certificate_remaining_seconds",
    "vp_revocations_version",
    "vp_audit_not_forwarded_total",
    "vp_service_denials_total",
    "vp_registry_shared_reads_total",
    "vp_registry_shared_up",
];
const IPERF_PORT: u16 = 5201;

#[test]
fn every_figure_is_described_and_the_examples_ask_for_no_other() {
    story(|lab| {
        let plan = Plan::named("same", Families::Both)?;
        let factory =
            "map:\n  - service: web.cloud\n    callers: [10.0.0.2]\ndns: {zone: vp}\nuplink: 1Gbit\n".to_owned();
        let setup = Setup::new(&plan);
        let cloud = setup.cloud.clone() + "hub: {}\n";
        let world = World::new(lab, &Setup { factory, cloud, ..setup })?;
        let factory = &world.factories[0];
        let web = world.cloud.address(Family::V4)?;
        let _server = TcpServer::http(&world.cloud.host.namespace, (web, 80), "web of cloud")?;
        let presence = presence_v4(&factory.agent, "web.cloud")?;
        factory.host.namespace.curl(presence, "/")?;
        ensure!(factory.neighbour.namespace.tcp((presence, 80)).is_err());
        let (mut known, mut text) = (BTreeSet::new(), String::new());
        for agent in [&factory.agent, &world.cloud.agent] {
            text = scrape(agent, "*/*")?;
            promtool(&["check", "metrics"], Some(&text))?;
            known.extend(described(&text));
        }
        let open = scrape(&world.cloud.agent, "application/openmetrics-text")?;
        ensure!(open.ends_with("# EOF\n") && !text.contains("# EOF"), "{open}");

        let documented: BTreeSet<String> = documented()?.into_iter().collect();
        let missing: Vec<&String> = known.difference(&documented).collect();
        ensure!(missing.is_empty(), "not in the README: {missing:?}");
        let never: Vec<&String> =
            documented.difference(&known).filter(|name| !ELSEWHERE.contains(&name.as_str())).collect();
        ensure!(never.is_empty(), "in the README, but there are none: {never:?}");

        let examples = examples();
        promtool(&["check", "rules", &at(&examples, "prometheus/alerts.yml")], None)?;
        promtool(&["test", "rules", &at(&examples, "prometheus/alerts-test.yml")], None)?;
        promtool(&["check", "config", &at(&examples, "prometheus/prometheus.yml")], None)?;
        let dashboard: Value = serde_json::from_str(&fs::read_to_string(examples.join("grafana/dashboard.json"))?)?;
        let panels = dashboard["panels"].as_array().context("panels")?;
        let queries = panels.iter().flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
        let queries: Vec<String> = queries.filter_map(|target| Some(target["expr"].as_str()?.to_owned())).collect();
        ensure!(queries.len() > 20, "{queries:?}");
        // As rules, with what Grafana puts in: promtool reads each query.
        let rule = |(number, query): (usize, &String)| {
            let query = query.replace("$__rate_interval", "5m").replace("$instance", ".*");
            format!("      - {{record: \"panel:number{number}\", expr: {}}}\n", serde_json::json!(query))
        };
        let rules: String = queries.iter().enumerate().map(rule).collect();
        let file = lab.directory().join("dashboard-rules.yml");
        fs::write(&file, format!("groups:\n  - name: dashboard\n    rules:\n{rules}"))?;
        promtool(&["check", "rules", &file.to_string_lossy()], None)?;
        let alerts = fs::read_to_string(examples.join("prometheus/alerts.yml"))?;
        for name in queries.iter().flat_map(|query| names(query)).chain(names(&alerts)) {
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(&name);
            ensure!(documented.contains(&name) || documented.contains(base), "there is no figure {name}");
        }
        Ok(())
    });
}

#[test]
fn bytes_are_counted_as_iperf3_counts_them_and_connections_denials_and_losses_as_they_were() {
    story(|lab| {
        let plan = Plan::named("same", Families::V4)?;
        let cloud =
            expose("web", "{web}", &format!("tcp/80, tcp/{IPERF_PORT}, udp/9"), "client:plc.factory1", "masquerade");
        let factory = "clients:\n  - {name: plc, addresses: [{plc}]}\nmap:\n  - service: web.cloud\n".to_owned();
        let world = World::new(lab, &Setup { cloud, factory, ..Setup::new(&plan) })?;
        let factory = &world.factories[0];
        let presence = factory.agent.presence("web.cloud")?;
        let web = world.cloud.address(Family::V4)?;
        let server = &world.cloud.host.namespace;
        let _http = TcpServer::http(server, (web, 80), "web of cloud")?;
        let _iperf = Process::start_line(lab, server, &format!("iperf3 -s -p {IPERF_PORT}"))?;
        wait_until("iperf3 to listen", || {
            Ok(server.sh(&format!("ss -Hltn sport = :{IPERF_PORT}"))?.contains("LISTEN"))
        })?;

        let run = |more: &str| -> Result<u64> {
            let line = format!("iperf3 -c {presence} -p {IPERF_PORT} -n 300M -J {more}");
            let said: Value = serde_json::from_str(&factory.host.namespace.sh(&line)?)?;
            said["end"]["sum_sent"]["bytes"].as_u64().context("bytes")
        };
        for (more, at_factory, at_cloud) in [("", "outbound", "inbound"), ("-R", "inbound", "outbound")] {
            let here = format!("vp_presence_payload_bytes_total{{service=\"web.cloud\",direction=\"{at_factory}\"}}");
            let there = format!("vp_service_payload_bytes_total{{service=\"web\",direction=\"{at_cloud}\"}}");
            let count = || Ok::<_, anyhow::Error>((value(&factory.agent, &here)?, value(&world.cloud.agent, &there)?));
            let before = count()?;
            let sent = run(more)? as f64;
            let after = count()?;
            for counted in [after.0 - before.0, after.1 - before.1] {
                ensure!((counted / sent - 1.0).abs() < 0.01, "iperf3 {more} says {sent}, counted {counted}");
            }
        }

        let connects = "vp_service_connect_seconds_count{service=\"web\"}";
        let opened = "vp_service_flows_opened_total{service=\"web\"}";
        let before = (value(&world.cloud.agent, connects)?, value(&world.cloud.agent, opened)?);
        for _ in 0..5 {
            factory.host.namespace.curl(presence, "/")?;
        }
        let after = (value(&world.cloud.agent, connects)?, value(&world.cloud.agent, opened)?);
        ensure!((after.0 - before.0, after.1 - before.1) == (5.0, 5.0), "{before:?} {after:?}");
        let sum = value(&world.cloud.agent, "vp_service_connect_seconds_sum{service=\"web\"}")?;
        let within = value(&world.cloud.agent, "vp_service_connect_seconds_bucket{le=\"10.0\",service=\"web\"}")?;
        ensure!(within == after.0 && sum > 0.0 && sum < after.0 * 10.0, "{within} {sum}");

        ensure!(factory.neighbour.namespace.tcp((presence, 80)).is_err());
        let denied = "vp_service_denials_total{service=\"web\",reason=\"unknown-caller\"}";
        wait_until("the denial to be counted", || Ok(value(&world.cloud.agent, denied)? >= 1.0))?;

        // Of 100 datagrams 20 are lost on the way.
        let uplink = &world.cloud.site.uplink;
        let lost = || {
            let of =
                |name: &str| value(&world.cloud.agent, &format!("vp_peer_{name}_packets_total{{peer=\"factory1\"}}"));
            Ok::<_, anyhow::Error>((of("expected")?, of("arrived")?))
        };
        let before = lost()?;
        world.internet.lose(uplink, 200)?;
        let socket = factory.host.namespace.udp((presence, 9))?;
        // Nobody listens there, and the server says so.
        (0..5000).for_each(|_| drop(socket.send(b"to be counted")));
        world.internet.calm()?;
        wait_until("the losses to show", || {
            socket.send(b"the last one").ok();
            let (expected, arrived) = lost()?;
            let (expected, arrived) = (expected - before.0, arrived - before.1);
            let share = 1.0 - arrived / expected;
            ensure!(expected > 4000.0 && (0.1..0.3).contains(&share), "{expected} {arrived}");
            Ok(true)
        })
    });
}

#[test]
fn a_peer_that_may_scrapes_through_the_tunnel_and_no_other_does() {
    story(|lab| {
        let plan = Plan::named("same", Families::V4)?;
        let cloud = expose("metrics", "127.0.0.1", "tcp/9107", "site:factory1", "masquerade")
            + "metrics: 127.0.0.1:9107\nclients:\n  - {name: agent, addresses: [127.0.0.1]}\n";
        let factory = "map:\n  - service: \"*.cloud\"\ndns: {zone: vp}\n".to_owned();
        let world = World::new(lab, &Setup { cloud, factory, factories: 2, ..Setup::new(&plan) })?;
        let factory = &world.factories[0];
        let presence = factory.agent.presence("metrics.cloud")?;
        let gateway = netns_tests::nth(&plan.factory_pool[0], 1);
        let answer = ask(&factory.host.namespace, gateway, "metrics.agent.cloud.vp A")?;
        ensure!(answer.records == [presence.to_string()], "{answer:?}");
        let body = factory.host.namespace.http((presence, 9107), "/metrics")?;
        let text = String::from_utf8(body)?;
        promtool(&["check", "metrics"], Some(&text))?;
        ensure!(text.contains("vp_build_info{version=") && text.contains("site=\"cloud\"}"), "{text}");

        let other = &world.factories[1];
        ensure!(ask(&other.host.namespace, gateway, "metrics.agent.cloud.vp A")?.records.is_empty());
        ensure!(other.host.namespace.tcp((presence, 9107)).is_err(), "its pool is the same");
        Ok(())
    });
}

#[test]
fn strangers_at_the_port_of_the_figures_cost_little_and_scrapes_go_on() {
    story(|lab| {
        let plan = Plan::named("same", Families::V4)?;
        let world = World::new(
            lab,
            &Setup { cloud: "metrics: 0.0.0.0:9107\n".to_owned(), factory: String::new(), ..Setup::new(&plan) },
        )?;
        let agent = &world.cloud.agent;
        let at = SocketAddr::new(world.cloud.site.gateway_address(Family::V4)?, 9107);
        let files = || Ok::<_, anyhow::Error>(fs::read_dir(format!("/proc/{}/fd", agent.process().pid()))?.count());
        let before = files()?;
        let stranger = &world.cloud.neighbour.namespace;
        // As many as it likes that say nothing, half a word, or what is no HTTP.
        let mut held = Vec::new();
        for said in
            [&b""[..], b"GET /metr", b"\x16\x03\x01\x00\xff", b"POST /v1/map HTTP/1.1\r\n"].iter().cycle().take(400)
        {
            let mut stream = stranger.tcp(at)?;
            // One that was closed already says so.
            stream.write_all(said).ok();
            held.push(stream);
        }
        let mut big = stranger.tcp(at)?;
        let line = format!("GET /metrics HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(1 << 20));
        big.write_all(line.as_bytes()).ok();
        ensure!(files()? < before + 64, "{before} files, now {}", files()?);
        let body = world.cloud.host.namespace.http(at, "/metrics")?;
        ensure!(body.starts_with(b"# HELP"), "another host of the site is answered");
        // Nothing but the figures is there.
        let mut stream = world.cloud.host.namespace.tcp(at)?;
        stream.write_all(b"GET /v1/status HTTP/1.1\r\nHost: vp\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure!(answer.starts_with("HTTP/1.1 404"), "{answer}");
        for mut stream in held {
            stream.set_read_timeout(Some(Duration::from_secs(20)))?;
            // Closed, by whichever way.
            stream.read_to_end(&mut Vec::new()).ok();
        }
        wait_until("all of it to be closed", || Ok(files()? <= before + 2))
    });
}

fn presence_v4(agent: &Agent, service: &str) -> Result<IpAddr> {
    agent.presence(service)?;
    let status = agent.status()?;
    let presences = status["presences"].as_array().context("presences")?;
    let addresses = presences.iter().filter_map(|presence| presence["address"].as_str()?.parse::<IpAddr>().ok());
    addresses.into_iter().find(IpAddr::is_ipv4).context("no IPv4 presence")
}

fn scrape(agent: &Agent, accept: &str) -> Result<String> {
    let mut curl = Command::new("curl");
    curl.args(["-sS", "--fail", "-m", "20", "-H", &format!("Accept: {accept}"), "http://vp/metrics", "--unix-socket"]);
    let output = curl.arg(agent.socket()).output()?;
    ensure!(output.status.success(), "curl: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

/// Of one series, however its labels are ordered; 0 where there is none yet.
fn value(agent: &Agent, series: &str) -> Result<f64> {
    let labels =
        |text: &str| -> BTreeSet<String> { text.trim_end_matches('}').split(',').map(str::to_owned).collect() };
    let (name, wanted) = series.split_once('{').context("labels")?;
    let text = scrape(agent, "*/*")?;
    let line = text.lines().find(|line| {
        let of = line.strip_prefix(name).and_then(|rest| rest.strip_prefix('{')?.rsplit_once(' '));
        of.is_some_and(|(of, _)| labels(of) == labels(wanted))
    });
    Ok(line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0.0))
}

/// What the text says that there is.
fn described(text: &str) -> BTreeSet<String> {
    text.lines().filter_map(|line| Some(line.strip_prefix("# TYPE ")?.split(' ').next()?.to_owned())).collect()
}

/// The names in the README's table.
fn documented() -> Result<Vec<String>> {
    let readme = fs::read_to_string(examples().join("../README.md"))?;
    let section =
        readme.split("\n## Metrics\n").nth(1).and_then(|rest| rest.split("\n## ").next()).context("the section")?;
    let rows = section.lines().filter_map(|line| line.strip_prefix("| `vp_"));
    Ok(rows.filter_map(|row| Some(format!("vp_{}", row.split('`').next()?))).collect())
}

/// All that begin as ours do.
fn names(text: &str) -> Vec<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|word| word.starts_with("vp_")).map(str::to_owned).collect()
}

fn examples() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples")
}

fn at(folder: &Path, file: &str) -> String {
    folder.join(file).to_string_lossy().into_owned()
}

fn promtool(arguments: &[&str], input: Option<&str>) -> Result<()> {
    let mut child = Command::new("promtool")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    child.stdin.take().context("piped")?.write_all(input.unwrap_or_default().as_bytes())?;
    let output = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    // `check metrics` has remarks without failing.
    ensure!(
        output.status.success() && (arguments[1] != "metrics" || said.trim().is_empty()),
        "promtool {arguments:?}: {said}"
    );
    Ok(())
}
