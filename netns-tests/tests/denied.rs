//! Who is not allowed is refused at its own gateway: at once, with a reason that `vp-ctl explain` names too, and
//! nothing of it is on the wire. And of all ports of a presence only the exposed one answers.
//!
//! ```text
//!   plc .2 --------+                                             +-- web .5
//!   neighbour .6 --+-- factory1 gateway --wire-- NAT -- internet -- cloud gateway
//! ```

use anyhow::{Context, Result, ensure};
use netns_tests::{Agent, Capture, Lab, Namespace, Plan, Setup, TcpServer, World, for_each_plan, nth, wait_until};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// A refusal takes a round trip in the own LAN; an application would notice no more than this.
const FAST: Duration = Duration::from_millis(500);
const ATTEMPTS: usize = 20;
/// Of datagrams that must not leave; nothing else in the story is as long.
const MARKED_BYTES: usize = 1111;

for_each_plan!(who_is_not_allowed_is_refused_at_its_own_gateway);
for_each_plan!(of_all_ports_only_the_exposed_one_answers);
for_each_plan!(a_permission_taken_away_ends_its_flows);

fn who_is_not_allowed_is_refused_at_its_own_gateway(lab: &Lab, plan: &Plan) -> Result<()> {
    let family = plan.family();
    let factory = "clients:\n  - name: plc\n    addresses: [{plc}]\nmap:\n  - service: web.cloud\n    callers: [plc]\n";
    let factory = factory.to_owned();
    let world = World::new(lab, &Setup { factory, ..Setup::new(plan) })?;
    let web = TcpServer::http(&world.cloud.host.namespace, (world.cloud.address(family)?, 80), "web of cloud")?;
    let factory = &world.factories[0];
    let (plc, neighbour) = (&factory.host.namespace, &factory.neighbour.namespace);
    let presence = factory.agent.presence("web.cloud")?;
    plc.curl(presence, "/")?;
    ensure!(web.callers.count() == 1);
    let unmapped = unused_pool_address(plan, &factory.agent)?;

    let wire = Capture::start(lab, &factory.site.gateway, "wan0")?;
    for (machine, to, reason) in [
        (neighbour, SocketAddr::from((presence, 80)), "not-allowed"),
        (plc, SocketAddr::from((presence, 81)), "port-not-exposed"),
        (plc, SocketAddr::from((unmapped, 80)), "not-mapped"),
    ] {
        let before = factory.agent.drops(reason)?;
        for _ in 0..ATTEMPTS {
            refused_fast(machine, to).with_context(|| reason.to_owned())?;
        }
        let attempts = u64::try_from(ATTEMPTS)?;
        ensure!(factory.agent.drops(reason)? == before + attempts, "{reason} is not counted");
        let socket = machine.udp(to)?;
        let began = Instant::now();
        socket.send(&[0x5a; MARKED_BYTES])?;
        let error = socket.recv(&mut [0; 16]).err().context("an answer")?;
        ensure!(error.kind() != ErrorKind::WouldBlock && began.elapsed() < FAST, "{reason}: {error}");
    }
    let data = wire.stop()?.into_iter().filter(|packet| packet.sent);
    let lengths: Vec<usize> = data.map(|packet| packet.bytes.len()).collect();
    ensure!(lengths.iter().all(|bytes| *bytes < MARKED_BYTES) && lengths.len() < ATTEMPTS, "on the wire: {lengths:?}");
    ensure!(web.callers.count() == 1);

    let neighbour = factory.neighbour.address(family)?;
    explained(&factory.agent, &format!("--from {neighbour} --to web.cloud --port tcp/80"), "not-allowed")?;
    explained(&factory.agent, "--from plc --to web.cloud --port tcp/81", "port-not-exposed")?;
    explained(&factory.agent, "--from plc --to web.cloud --port tcp/80", "")
}

fn refused_fast(machine: &Namespace, to: SocketAddr) -> Result<()> {
    let began = Instant::now();
    let error = machine.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(5)))?.err().context("connected")?;
    ensure!(error.kind() == ErrorKind::ConnectionRefused && began.elapsed() < FAST, "{error} in {:?}", began.elapsed());
    Ok(())
}

/// An empty reason: it must be allowed.
fn explained(agent: &Agent, question: &str, reason: &str) -> Result<()> {
    let output = agent.ctl_output(&format!("-o json explain {question}"))?;
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("{question}: {}", String::from_utf8_lossy(&output.stderr)))?;
    let verdict = if reason.is_empty() { "allowed" } else { "denied" };
    ensure!(answer["verdict"] == verdict && answer["reason"].as_str().unwrap_or("") == reason, "{question}: {answer}");
    Ok(())
}

fn unused_pool_address(plan: &Plan, agent: &Agent) -> Result<IpAddr> {
    let used = agent.status()?["presences"].to_string();
    let candidates = (100..200).map(|number| nth(&plan.factory_pool[0], number));
    candidates.into_iter().find(|address| !used.contains(&address.to_string())).context("a full pool")
}

fn of_all_ports_only_the_exposed_one_answers(lab: &Lab, plan: &Plan) -> Result<()> {
    let family = plan.family();
    let world = World::new(lab, &Setup::new(plan))?;
    // Everything listens; only port 80 of the web host is exposed.
    let mut servers = Vec::new();
    for machine in [&world.cloud.host, &world.cloud.neighbour] {
        for port in [22, 80, 443, 8080, 65535] {
            servers.push(TcpServer::http(&machine.namespace, (machine.address(family)?, port), "cloud")?);
        }
    }
    for port in [22, 80] {
        servers.push(TcpServer::http(
            &world.cloud.site.gateway,
            (world.cloud.site.gateway_address(family)?, port),
            "",
        )?);
    }
    let factory = &world.factories[0];
    let plc = &factory.host.namespace;
    let presence = factory.agent.presence("web.cloud")?;
    let open = plc.scan(presence, 1..=65535)?;
    ensure!(open == [80], "of the presence {open:?} answer");
    let open = plc.scan(factory.site.gateway_address(family)?, 1..=65535)?;
    ensure!(open.is_empty(), "of the gateway {open:?} answer");
    for number in 0..40 {
        let address = nth(&plan.factory_pool[0], number);
        let open = plc.scan(address, [22, 80, 443, 8080, 65535])?;
        ensure!(open == if address == presence { vec![80] } else { Vec::new() }, "of {address} {open:?} answer");
    }
    ensure!(servers.iter().map(|server| server.callers.count()).sum::<usize>() == 2);
    Ok(())
}

fn a_permission_taken_away_ends_its_flows(lab: &Lab, plan: &Plan) -> Result<()> {
    let family = plan.family();
    let (cloud, factory) = (String::new(), String::new());
    let world = World::new(lab, &Setup { cloud, factory, ..Setup::new(plan) })?;
    let web = world.cloud.address(family)?;
    let echo = TcpServer::echo(&world.cloud.host.namespace, (web, 7))?;
    let factory = &world.factories[0];
    world.cloud.agent.ctl(&format!("expose echo --target {web} --port tcp/7 --allow site:factory1"))?;
    factory.agent.ctl("map echo.cloud")?;
    let presence = factory.agent.presence("echo.cloud")?;
    let stream = factory.host.namespace.tcp((presence, 7))?;
    wait_until("the connection to be accepted", || Ok(echo.callers.count() == 1))?;
    world.cloud.agent.ctl("unexpose echo")?;
    wait_until("the flow to end", || Ok(factory.agent.ask("flows")?.as_array().is_some_and(Vec::is_empty)))?;
    wait_until("the flow to end", || Ok(world.cloud.agent.ask("flows")?.as_array().is_some_and(Vec::is_empty)))?;
    drop(stream);
    refused_fast(&factory.host.namespace, (presence, 7).into())?;
    explained(&factory.agent, "--to echo.cloud --port tcp/7", "not-offered")?;
    Ok(())
}
