//! `make demo`: a cloud and two factories, all on 10.0.0.0/24 and both factories with the same pool, use each other's
//! services at local addresses. Everything is in network namespaces of its own and goes with the demo.

use anyhow::{Context, Result, bail, ensure};
use netns_tests::agent::binary;
use netns_tests::world::expose;
use netns_tests::{Agent, Families, Family, Host, Lab, Plan, Setup, Station, TcpServer, World};
use std::io::IsTerminal;
use std::net::IpAddr;
use std::process::ExitCode;
use std::time::Instant;

const HELP: &str = "\
Shows two factories and a cloud that use the same network and each other's services.

Usage: vp-demo [--check | --stay]

  --check   show, check and clean up (the default when not on a terminal)
  --stay    stay up until Ctrl-C or SIGTERM (the default on a terminal)";

const PICTURE: &str = "
  factory1 10.0.0.0/24                                            cloud 10.0.0.0/24
  plc 10.0.0.2 ---- [vp-agent] --- NAT ---+                  +--- web 10.0.0.5
                                          |                  |
                                       internet --- [vp-agent]
  factory2 10.0.0.0/24                    |
  plc 10.0.0.2 ---- [vp-agent] --- NAT ---+
";

fn main() -> ExitCode {
    let stay = match std::env::args().nth(1).as_deref() {
        None => std::io::stdin().is_terminal() && std::io::stdout().is_terminal(),
        Some("--check") => false,
        Some("--stay") => true,
        Some(other) => {
            let asked = matches!(other, "-h" | "--help");
            println!("{HELP}");
            return ExitCode::from(if asked { 0 } else { 2 });
        }
    };
    let signals = Signals::block();
    match show(stay, &signals) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("demo failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn show(stay: bool, signals: &Signals) -> Result<()> {
    let paint = Paint(std::io::stdout().is_terminal());
    let lab = Lab::named("demo")?;
    println!("{}", paint.bold("Three sites, one network plan, nobody renumbers"));
    println!("{PICTURE}");

    let began = Instant::now();
    let plan = plan()?;
    let cloud = expose("web", "{web}", "tcp/80, icmp", "any", "presence");
    let factory = expose("metrics", "{plc}", "tcp/9100", "site:cloud", "masquerade");
    let world = World::new(&lab, &Setup { factories: 2, cloud, factory, ..Setup::new(&plan) })?;
    let mut servers = vec![serve(&world.cloud.host, 80, "The web page of the cloud")?];
    for factory in &world.factories {
        servers.push(serve(&factory.host, 9100, &format!("The metrics of {}", factory.site.name))?);
    }
    println!("The agents run and the factories have called the cloud ({:.1} s).", began.elapsed().as_secs_f64());

    println!("\n{}", paint.bold("Both factories map web.cloud, and their machines call it"));
    let mut seen = Vec::new();
    for factory in &world.factories {
        let presence = map(&paint, factory, "web.cloud")?;
        let page = curl(&paint, factory, &format!("http://{presence}/"))?;
        ensure!(page.starts_with("The web page of the cloud"), "not the cloud's page: {page}");
        seen.push(page);
    }
    println!(
        "\n  Two machines with the same address 10.0.0.2 call; the server tells them apart by addresses of its own\n  \
         pool, {}, and has never seen a 10.0.0.2.",
        plan.cloud_pool[0]
    );
    ensure!(seen[0] != seen[1], "both callers look the same to the server");
    for caller in servers[0].callers.addresses() {
        ensure!(plan.cloud_pool[0].contains(&caller), "the server saw {caller}");
        command(&paint, "cloud", &format!("vp-ctl whois {caller}"), world.cloud.agent.ctl(&format!("whois {caller}"))?);
    }

    println!("\n{}", paint.bold("The cloud maps metrics.factory1 and metrics.factory2, which are behind NAT"));
    for factory in &world.factories {
        let name = &factory.site.name;
        let presence = map(&paint, &world.cloud, &format!("metrics.{name}"))?;
        let page = curl(&paint, &world.cloud, &format!("http://{presence}:9100/"))?;
        ensure!(page.starts_with(&format!("The metrics of {name}")), "not the metrics of {name}: {page}");
        let dropped = factory.site.access.as_ref().context("a NAT")?.unsolicited()?;
        ensure!(dropped == 0, "the NAT of {name} had to drop {dropped} packets");
    }

    println!("\n{}", paint.bold("Nothing else is reachable"));
    let presence = world.factories[0].agent.presence("web.cloud")?;
    let plc = &world.factories[0].host.namespace;
    let open = plc.scan(presence, 1..=2000)?;
    ensure!(open == [80], "ports {open:?} answer");
    println!("  plc.factory1 $ (tries TCP ports 1 to 2000 of {presence})\n    only port 80 answers");
    let question = "explain --from 10.0.0.2 --to web.cloud --port tcp/22";
    let answer = world.factories[0].agent.ctl_output(question)?;
    command(&paint, "factory1", &format!("vp-ctl {question}"), String::from_utf8_lossy(&answer.stdout).into_owned());

    println!("\n{}", paint.bold("What a gateway knows"));
    command(&paint, "factory1", "vp-ctl status", world.factories[0].agent.ctl("status")?);
    lab.check_agent_logs()?;

    if stay {
        look_around(&paint, &world, presence)?;
        signals.wait()?;
        println!("\nCleaning up.");
    } else {
        println!("\nAll as it should be; everything is removed again.");
    }
    Ok(())
}

/// As in the picture; the pool of the cloud is another so that a reader can tell whose address is whose.
fn plan() -> Result<Plan> {
    Ok(Plan { cloud_pool: vec!["10.0.9.0/24".parse()?], ..Plan::named("same", Families::V4)? })
}

fn serve(host: &Host, port: u16, page: &str) -> Result<TcpServer> {
    TcpServer::http(&host.namespace, (host.address(Family::V4)?, port), page)
}

fn map(paint: &Paint, station: &Station, service: &str) -> Result<IpAddr> {
    let line = format!("map {service}");
    command(paint, &station.site.name, &format!("vp-ctl {line}"), station.agent.ctl(&line)?);
    station.agent.presence(service)
}

fn curl(paint: &Paint, station: &Station, url: &str) -> Result<String> {
    let host = format!("{}.{}", station.host.name, station.site.name);
    let page = station.host.namespace.sh(&format!("curl -sS --fail -m 20 {url}"))?;
    command(paint, &host, &format!("curl {url}"), page.clone());
    Ok(page)
}

/// A command as on a terminal of that machine, and what it said.
fn command(paint: &Paint, machine: &str, line: &str, said: String) {
    println!("\n  {} $ {}", paint.dim(machine), paint.bold(line));
    said.trim_end().lines().for_each(|line| println!("    {line}"));
}

fn look_around(paint: &Paint, world: &World, presence: IpAddr) -> Result<()> {
    let ctl = |agent: &Agent| -> Result<String> {
        Ok(format!("{} --socket {}", binary("vp-ctl")?.display(), agent.socket().display()))
    };
    let plc = world.factories[0].host.namespace.name();
    println!("\n{} (in another terminal; Ctrl-C here ends the demo and removes everything)", paint.bold("Look around"));
    println!("  ip netns exec {plc} curl http://{presence}/");
    println!("  ip netns exec {} tcpdump -ni wan0", world.factories[0].site.gateway.name());
    println!("  {} flows", ctl(&world.cloud.agent)?);
    println!("  {} unmap web.cloud", ctl(&world.factories[1].agent)?);
    Ok(())
}

struct Paint(bool);

impl Paint {
    fn bold(&self, text: &str) -> String {
        if self.0 { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn dim(&self, text: &str) -> String {
        if self.0 { format!("\x1b[2m{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// Ctrl-C and SIGTERM, held back so that the lab is always cleaned up. (Started processes do not inherit this.)
struct Signals(libc::sigset_t);

impl Signals {
    fn block() -> Self {
        // SAFETY: sigset_t is plain data that sigemptyset initialises; the calls only read and write it.
        unsafe {
            let mut set = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            libc::sigaddset(&raw mut set, libc::SIGINT);
            libc::sigaddset(&raw mut set, libc::SIGTERM);
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
            Self(set)
        }
    }

    fn wait(&self) -> Result<()> {
        let mut signal = 0;
        // SAFETY: both arguments live through the call.
        if unsafe { libc::sigwait(&raw const self.0, &raw mut signal) } != 0 {
            bail!("sigwait failed");
        }
        Ok(())
    }
}
