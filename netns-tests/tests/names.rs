//! Names: what hosts of a site find under the names of services, hosts and addresses of other sites, and what they do not.
//!
//! ```text
//!   plc .2 ---------+                                             +-- web .5
//!                   +-- factory1 gateway -- NAT -- internet -- cloud gateway
//!   neighbour .6 ---+                                             +-- neighbour .6
//! ```

use anyhow::{Context, Result, ensure};
use netns_tests::names::{ask, dig, wait_soon};
use netns_tests::resolved::{Resolved, STUB};
use netns_tests::world::{expose, map};
use netns_tests::{Lab, Namespace, Plan, Process, Setup, Station, TcpServer, World, for_each_plan, nth, wait_until};
use std::net::IpAddr;
use std::time::Instant;

const DNS: &str = "dns: {zone: vp}\n";

for_each_plan!(names_resolve_to_presences_and_carry_a_page);
for_each_plan!(what_a_client_may_not_use_is_a_name_that_never_was);
for_each_plan!(records_come_and_go_within_a_second);
for_each_plan!(ports_are_found_where_they_are_here);
for_each_plan!(hosts_of_a_prefix_have_names);
for_each_plan!(callers_have_names);
for_each_plan!(strangers_get_no_answer);
for_each_plan!(other_names_are_forwarded_while_all_of_ours_is_away);
for_each_plan!(a_port_that_another_has_is_said_and_taken_when_it_is_free);
for_each_plan!(systemd_resolved_asks_the_gateway_for_its_names_alone);

/// A name server with one name for every family, at these addresses of a machine.
fn dnsmasq(lab: &Lab, machine: &Namespace, address: IpAddr, name: &str) -> Result<Process> {
    let line = format!(
        "dnsmasq --keep-in-foreground --conf-file=/dev/null --no-resolv --no-hosts --bind-interfaces --except-interface=lo \
         --listen-address={address} --pid-file= --user=root --txt-record={name},answered"
    );
    Process::start_line(lab, machine, &line)
}

/// The gateway's own presence: the name server.
fn server(station: &Station, plan: &Plan) -> Result<IpAddr> {
    let status = station.agent.status()?;
    let listening = status["dns"]["listening"].as_array().context("names are not served")?;
    let addresses = listening.iter().filter_map(|at| at.as_str()?.parse::<std::net::SocketAddr>().ok());
    let mut of_family = addresses.filter(|at| netns_tests::Family::of(at.ip()) == plan.family());
    Ok(of_family.next().with_context(|| format!("listening: {listening:?}"))?.ip())
}

/// A `clients:` section of one host.
fn client(name: &str, address: IpAddr) -> String {
    format!("clients:\n  - {{name: {name}, addresses: [\"{address}\"]}}\n")
}

/// The record type of the plan's addresses.
fn kind(plan: &Plan) -> &'static str {
    if plan.family() == netns_tests::Family::V4 { "A" } else { "AAAA" }
}

fn names_resolve_to_presences_and_carry_a_page(lab: &Lab, plan: &Plan) -> Result<()> {
    let setup = Setup::new(plan);
    let setup = Setup { cloud: setup.cloud.clone() + DNS, factory: setup.factory.clone() + DNS, ..setup };
    let world = World::new(lab, &setup)?;
    let factory = &world.factories[0];
    let web = world.cloud.address(plan.family())?;
    let _web = TcpServer::http(&world.cloud.host.namespace, (web, 80), "web of cloud")?;
    let presence = factory.agent.presence("web.cloud")?;
    let server = server(factory, plan)?;
    let plc = &factory.host.namespace;
    let kind = kind(plan);
    // From the LAN, from the gateway itself, by UDP and by TCP, in any case.
    for machine in [plc, &factory.neighbour.namespace, &factory.site.gateway] {
        for question in ["web.cloud.vp", "web.cloud.vp +tcp", "WEB.Cloud.vP", "web.cloud.vp +noedns"] {
            let answer = ask(machine, server, &format!("{question} {kind}"))?;
            ensure!(answer.records == [presence.to_string()], "{answer:?}");
            ensure!(answer.flags.contains(&"aa".to_owned()) && !answer.flags.contains(&"ra".to_owned()), "{answer:?}");
        }
    }
    // As an application does that knows the name alone.
    let shown = ask(plc, server, &format!("web.cloud.vp {kind}"))?.records[0].clone();
    let shown = if shown.contains(':') { format!("[{shown}]") } else { shown };
    let page = plc.sh(&format!("curl -sS -m 20 --resolve web.cloud.vp:80:{shown} http://web.cloud.vp/"))?;
    ensure!(page.starts_with("web of cloud\n"), "{page}");
    // And back.
    let back = ask(plc, server, &format!("-x {presence}"))?;
    ensure!(back.records == ["web.cloud.vp."], "{back:?}");
    let own = ask(plc, server, &format!("-x {server}"))?;
    ensure!(own.records == ["factory1.vp."], "{own:?}");
    // What is not there, and what is there and has nothing of that kind.
    let other = if kind == "A" { "AAAA" } else { "A" };
    for (question, status) in [
        (format!("web.cloud.vp {other}"), "NOERROR"),
        ("web.cloud.vp MX".to_owned(), "NOERROR"),
        (format!("cloud.vp {kind}"), "NOERROR"),
        ("_tcp.web.cloud.vp A".to_owned(), "NOERROR"),
        (format!("nothing.cloud.vp {kind}"), "NXDOMAIN"),
        (format!("web.nowhere.vp {kind}"), "NXDOMAIN"),
        (format!("_x.web.cloud.vp {kind}"), "NXDOMAIN"),
        (format!("example.com {kind}"), "REFUSED"),
        ("vp AXFR".to_owned(), "REFUSED"),
        ("web.cloud.vp CH TXT".to_owned(), "REFUSED"),
        ("web.cloud.vp +opcode=NOTIFY".to_owned(), "NOTIMP"),
        (format!("web.cloud.vp {kind} +edns=1 +noednsneg"), "BADVERS"),
    ] {
        if question.ends_with("AXFR") {
            let transfer = plc.sh(&format!("dig @{server} +time=2 +tries=1 {question}"))?;
            ensure!(transfer.contains("Transfer failed"), "{transfer}");
            continue;
        }
        let answer = ask(plc, server, &question)?;
        ensure!(answer.status == status && answer.records.is_empty(), "{question}: {answer:?}");
        let negative = answer.text.contains("SOA\tfactory1.vp. hostmaster.vp.");
        ensure!(negative == ["NOERROR", "NXDOMAIN"].contains(&status), "{question}: {answer:?}");
    }
    ensure!(ask(plc, server, "vp SOA")?.records[0].starts_with("factory1.vp. hostmaster.vp."));
    ensure!(ask(plc, server, "vp NS")?.records == ["factory1.vp."]);
    ensure!(ask(plc, server, &format!("factory1.vp {kind}"))?.records == [server.to_string()]);
    ensure!(ask(plc, server, "web.cloud.vp ANY")?.records == ["\"RFC8482\" \"\""]);
    // A service of this site itself is called where it is; so is a host of this site.
    let own = factory.address(plan.family())?;
    let real = ask(plc, server, &format!("metrics.factory1.vp {kind}"))?;
    ensure!(real.records == [own.to_string()], "{real:?}");
    ensure!(factory.agent.ctl("services")?.contains("web.cloud.vp"));
    ensure!(factory.agent.figure("vp_dns_queries_total")? > 20);
    Ok(())
}

fn what_a_client_may_not_use_is_a_name_that_never_was(lab: &Lab, plan: &Plan) -> Result<()> {
    let clients = client("plc", nth(&plan.factory_lan[0], 2));
    let factory = clients + &map("web.cloud") + "    callers: [plc]\n" + DNS;
    let world = World::new(lab, &Setup { factory, ..Setup::new(plan) })?;
    let station = &world.factories[0];
    let presence = station.agent.presence("web.cloud")?;
    let (server, kind) = (server(station, plan)?, kind(plan));
    let (plc, neighbour) = (&station.host.namespace, &station.neighbour.namespace);
    ensure!(ask(plc, server, &format!("web.cloud.vp {kind}"))?.records == [presence.to_string()]);
    ensure!(ask(plc, server, &format!("-x {presence}"))?.records == ["web.cloud.vp."]);
    // Nothing in the answers is another but the name that was asked for.
    let pairs = [
        (format!("web.cloud.vp {kind}"), format!("wob.cloud.vp {kind}")),
        ("web.cloud.vp ANY".to_owned(), "wob.cloud.vp ANY".to_owned()),
        ("_tcp.web.cloud.vp SRV".to_owned(), "_tcp.wob.cloud.vp SRV".to_owned()),
        (format!("cloud.vp {kind}"), format!("clout.vp {kind}")),
    ];
    for machine in [neighbour, &station.site.gateway] {
        for (hidden, never) in &pairs {
            let hidden = ask(machine, server, hidden)?;
            let never = ask(machine, server, never)?.text.replace("wob", "web").replace("clout", "cloud");
            let never = never.replace("MSG SIZE  rcvd: ", "");
            ensure!(hidden.status == "NXDOMAIN", "{hidden:?}");
            ensure!(hidden.text.replace("MSG SIZE  rcvd: ", "").lines().count() == never.lines().count());
            let differ = hidden.text.lines().zip(never.lines()).filter(|(a, b)| a != b && !a.contains("MSG SIZE"));
            ensure!(differ.count() == 0, "{}\n\n{never}", hidden.text);
        }
        ensure!(ask(machine, server, &format!("-x {presence}"))?.status == "NXDOMAIN");
    }
    Ok(())
}

fn records_come_and_go_within_a_second(lab: &Lab, plan: &Plan) -> Result<()> {
    let world = World::new(lab, &Setup { factory: DNS.to_owned(), ..Setup::new(plan) })?;
    let station = &world.factories[0];
    let (server, kind) = (server(station, plan)?, kind(plan));
    let plc = &station.host.namespace;
    let web = world.cloud.address(plan.family())?;
    let question = format!("web.cloud.vp {kind}");
    wait_until("web.cloud to be offered", || Ok(station.agent.ctl("services")?.contains("web.cloud")))?;
    let mut presence = String::new();
    for _ in 0..2 {
        let cause = Instant::now();
        presence = station.agent.ctl("map web.cloud")?.trim().to_owned();
        wait_soon(plc, server, &question, &presence, cause)?;
        wait_soon(plc, server, &format!("-x {presence}"), "web.cloud.vp.", cause)?;
        let cause = Instant::now();
        station.agent.ctl("unmap web.cloud")?;
        wait_soon(plc, server, &question, "NXDOMAIN", cause)?;
    }
    ensure!(station.agent.ctl("map web.cloud")?.trim() == presence);
    station.agent.ctl("map *.cloud")?;
    for _ in 0..2 {
        let cause = Instant::now();
        world.cloud.agent.ctl(&format!("expose more --target {web} --port tcp/81 --allow any"))?;
        let more = format!("more.cloud.vp {kind}");
        let address = station.agent.presence("more.cloud")?.to_string();
        wait_soon(plc, server, &more, &address, cause)?;
        let cause = Instant::now();
        world.cloud.agent.ctl("unexpose more")?;
        wait_soon(plc, server, &more, "NXDOMAIN", cause)?;
    }
    Ok(())
}

fn ports_are_found_where_they_are_here(lab: &Lab, plan: &Plan) -> Result<()> {
    let cloud = expose("web", "{web}", "tcp/8000-8010, tcp/443, udp/5000", "any", "masquerade");
    let factory = map("web.cloud") + "    ports: [tcp/80=tcp/8005, udp/5000]\n" + DNS;
    let world = World::new(lab, &Setup { cloud, factory, ..Setup::new(plan) })?;
    let station = &world.factories[0];
    let presence = station.agent.presence("web.cloud")?;
    let (server, plc) = (server(station, plan)?, &station.host.namespace);
    for (name, records) in [
        ("_tcp.web.cloud.vp", vec!["0 0 80 web.cloud.vp."]),
        ("_web._tcp.web.cloud.vp", vec!["0 0 80 web.cloud.vp."]),
        ("_8005._tcp.web.cloud.vp", vec!["0 0 80 web.cloud.vp."]),
        ("_udp.web.cloud.vp", vec!["0 0 5000 web.cloud.vp."]),
        ("_443._tcp.web.cloud.vp", vec![]),
        ("_8005._udp.web.cloud.vp", vec![]),
    ] {
        let answer = ask(plc, server, &format!("{name} SRV"))?;
        ensure!(answer.records == records, "{name}: {answer:?}");
        let status = if records.is_empty() { "NXDOMAIN" } else { "NOERROR" };
        ensure!(answer.status == status, "{name}: {answer:?}");
        // The address comes with it.
        ensure!(answer.text.contains(&format!("\t{presence}")) != records.is_empty(), "{name}: {answer:?}");
    }
    Ok(())
}

fn hosts_of_a_prefix_have_names(lab: &Lab, plan: &Plan) -> Result<()> {
    let lan = plan.cloud_lan[0];
    let first = nth(&lan, 4);
    let block = ipnet::IpNet::new(first, if first.is_ipv4() { 30 } else { 126 })?;
    let clients = client("web", nth(&lan, 5)) + &format!("  - {{name: other, addresses: [\"{}\"]}}\n", nth(&lan, 9));
    let cloud = expose("pages", &format!("\"{block}\""), "tcp/80", "any", "presence") + &clients;
    let cloud = cloud + &map("metrics.factory1") + DNS;
    let factory = client("plc", nth(&plan.factory_lan[0], 2))
        + &expose("metrics", "{plc}", "tcp/9100", "site:cloud", "masquerade")
        + &map("pages.cloud")
        + DNS;
    let world = World::new(lab, &Setup { cloud, factory, ..Setup::new(plan) })?;
    let station = &world.factories[0];
    let _web = TcpServer::http(&world.cloud.host.namespace, (world.cloud.address(plan.family())?, 80), "web")?;
    let (server, kind) = (server(station, plan)?, kind(plan));
    let plc = &station.host.namespace;
    wait_soon(plc, server, "pages.cloud.vp TXT", "NOERROR", Instant::now())?;
    let answer = ask(plc, server, &format!("pages.web.cloud.vp {kind}"))?;
    let [address] = answer.records.as_slice() else { anyhow::bail!("{answer:?}") };
    let page = plc.curl(address.parse()?, "/")?;
    ensure!(page.starts_with("web\n"), "{page}");
    ensure!(ask(plc, server, &format!("-x {address}"))?.records == ["pages.web.cloud.vp."]);
    ensure!(ask(plc, server, &format!("web.cloud.vp {kind}"))?.status == "NOERROR");
    // Of a service with one target, too.
    let single = ask(
        &world.cloud.host.namespace,
        self::server(&world.cloud, plan)?,
        &format!("metrics.plc.factory1.vp {kind}"),
    )?;
    ensure!(single.records == [world.cloud.agent.presence("metrics.factory1")?.to_string()], "{single:?}");
    for nobody in ["pages.other.cloud.vp", "pages.none.cloud.vp", "other.cloud.vp"] {
        ensure!(ask(plc, server, &format!("{nobody} {kind}"))?.status == "NXDOMAIN", "{nobody}");
    }
    Ok(())
}

fn callers_have_names(lab: &Lab, plan: &Plan) -> Result<()> {
    let clients = client("plc", nth(&plan.factory_lan[0], 2));
    let cloud = expose("web", "{web}", "tcp/80", "any", "presence") + DNS;
    let world = World::new(lab, &Setup { cloud, factory: map("web.cloud") + &clients, ..Setup::new(plan) })?;
    let (station, cloud) = (&world.factories[0], &world.cloud);
    let web = TcpServer::http(&cloud.host.namespace, (cloud.address(plan.family())?, 80), "web")?;
    let presence = station.agent.presence("web.cloud")?;
    let (server, kind) = (server(cloud, plan)?, kind(plan));
    for (caller, is_named) in [(&station.host, true), (&station.neighbour, false)] {
        caller.namespace.curl(presence, "/")?;
        let seen = web.callers.all().last().context("a caller")?.ip();
        let answer = ask(&cloud.host.namespace, server, &format!("-x {seen}"))?;
        let [name] = answer.records.as_slice() else { anyhow::bail!("{answer:?}") };
        ensure!((name == "plc.factory1.vp.") == is_named, "{name}");
        ensure!(is_named || (name.starts_with("caller-") && name.ends_with(".factory1.vp.")), "{name}");
        // There and back.
        let back = ask(&cloud.host.namespace, server, &format!("{name} {kind}"))?;
        ensure!(back.records == [seen.to_string()], "{back:?}");
    }
    Ok(())
}

fn strangers_get_no_answer(lab: &Lab, plan: &Plan) -> Result<()> {
    let setup = Setup::new(plan);
    let world = World::new(lab, &Setup { cloud: setup.cloud.clone() + DNS, ..setup })?;
    let cloud = &world.cloud;
    let (server, kind) = (server(cloud, plan)?, kind(plan));
    let question = format!("web.cloud.vp {kind}");
    ensure!(ask(&cloud.host.namespace, server, &question)?.records.len() == 1);
    // From the internet, by way of the gateway's own uplink.
    let stranger = &world.internet.namespace;
    let uplink = cloud.site.uplink.address(plan.family());
    stranger.ip(&format!("route add {server} via {uplink}"))?;
    for question in [question.clone(), format!("{question} +tcp")] {
        ensure!(dig(stranger, server, &question)?.is_none(), "a stranger was answered");
    }
    let counted = cloud.agent.figure("vp_dns_queries_total{kind=\"other\",outcome=\"stranger\"}")?;
    ensure!(counted >= 2, "{counted} queries reached it");
    ensure!(ask(&cloud.host.namespace, server, &question)?.records.len() == 1);
    Ok(())
}

fn other_names_are_forwarded_while_all_of_ours_is_away(lab: &Lab, plan: &Plan) -> Result<()> {
    let (silent, other) = (nth(&plan.factory_lan[0], 77), nth(&plan.factory_lan[0], 6));
    let dns = format!("dns: {{zone: vp, forward: [\"{silent}\", \"{other}\"]}}\n");
    let setup = Setup::new(plan);
    let mut world = World::new(lab, &Setup { factory: setup.factory.clone() + &dns, ..setup })?;
    world.factories[0].agent.presence("web.cloud")?;
    world.cloud.agent.kill()?;
    let station = &world.factories[0];
    let server = server(station, plan)?;
    let plc = &station.host.namespace;
    let _server = dnsmasq(lab, &station.neighbour.namespace, other, "www.example")?;
    // The first one is never there; its turn passes.
    for question in ["www.example TXT", "www.example TXT +tcp", "wWw.Example TXT"] {
        let question = format!("{question} +time=8");
        wait_until("dnsmasq to answer", || Ok(ask(plc, server, &question)?.status == "NOERROR"))?;
        let answer = ask(plc, server, &question)?;
        ensure!(answer.records == ["\"answered\""], "{answer:?}");
    }
    // Ours stay ours, and are told while their site is away.
    let answer = ask(plc, server, &format!("web.cloud.vp {}", kind(plan)))?;
    ensure!(answer.records.len() == 1 && answer.flags.contains(&"ra".to_owned()), "{answer:?}");
    ensure!(ask(plc, server, "nothing.vp TXT")?.status == "NXDOMAIN");
    ensure!(station.agent.figure("vp_dns_queries_total{kind=\"other\",outcome=\"forwarded\"}")? >= 3);
    Ok(())
}

fn a_port_that_another_has_is_said_and_taken_when_it_is_free(lab: &Lab, plan: &Plan) -> Result<()> {
    let mut world = World::new(lab, &Setup::new(plan))?;
    let station = &mut world.factories[0];
    let any: IpAddr = if kind(plan) == "A" { [0; 4].into() } else { [0_u16; 8].into() };
    let other = station.site.gateway.run(|| std::net::UdpSocket::bind((any, 53)))??;
    station.agent.config.rest += DNS;
    station.agent.write_config()?;
    station.agent.ctl("reload")?;
    wait_until("the doctor to say so", || Ok(findings(station)?.contains("dns-not-listening")))?;
    // All else goes on.
    station.agent.presence("web.cloud")?;
    drop(other);
    wait_until("the port to be taken", || Ok(server(station, plan).is_ok()))?;
    ensure!(!findings(station)?.contains("dns-not-listening"));
    ensure!(ask(&station.host.namespace, server(station, plan)?, "vp SOA")?.records.len() == 1);
    Ok(())
}

/// The doctor ends with 1 where it finds an error.
fn findings(station: &Station) -> Result<String> {
    Ok(String::from_utf8_lossy(&station.agent.ctl_output("doctor")?.stdout).into_owned())
}

fn systemd_resolved_asks_the_gateway_for_its_names_alone(lab: &Lab, plan: &Plan) -> Result<()> {
    let setup = Setup::new(plan);
    let mut world = World::new(lab, &Setup { factory: setup.factory.clone() + DNS, ..setup })?;
    let station = &mut world.factories[0];
    let presence = station.agent.presence("web.cloud")?;
    let gateway = &station.site.gateway;
    let mut resolved = Resolved::start(lab, &station.agent)?;
    let stub = IpAddr::from(STUB);
    let question = format!("web.cloud.vp {}", kind(plan));
    for _ in 0..2 {
        wait_until("systemd-resolved to know the name", || {
            station.agent.ctl("reload")?;
            let answer = dig(gateway, stub, &question)?;
            Ok(answer.is_some_and(|answer| answer.records == [presence.to_string()]))
        })?;
        let back = ask(gateway, stub, &format!("-x {presence}"))?;
        ensure!(back.records == ["web.cloud.vp."], "{back:?}");
        // Another one knows nothing until it is told.
        resolved.restart(lab, &station.agent)?;
    }
    let asked = station.agent.figure("vp_dns_queries_total")?;
    dig(gateway, stub, "www.example A")?;
    ensure!(station.agent.figure("vp_dns_queries_total")? == asked, "it asked for another's name");
    station.agent.stop()?;
    wait_until("systemd-resolved to have forgotten it", || {
        let answer = dig(gateway, stub, &question)?;
        Ok(answer.is_none_or(|answer| answer.records.is_empty()))
    })
}
