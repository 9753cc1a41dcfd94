//! `make bench`: two agents, other tunnels and proxies between the same two machines, one after the other in several
//! rounds, so that a busy machine disturbs all alike.
//!
//! ```text
//!   clients, gateway a 192.0.2.1 --veth-- gateway b 192.0.2.2, servers
//! ```
//!
//! Rates are to be compared within one run only; CPU seconds a GB are the figure to trust on a busy machine.

mod limits;
mod peers;
mod plot;
mod report;
mod work;

use anyhow::{Context, Result, bail, ensure};
use peers::{Kind, Machines};
use report::Report;
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use work::{Metric, Servers, Work};

const HELP: &str = "\
Measures two agents side by side with a plain link, other tunnels and proxies.

Usage: vp-bench [--rounds N] [--seconds N] [--only NAME,...] [--work NAME,...] [--workers N] [--peers DIR]
                [--write DIR] [--json]

  --rounds N     times each is measured (default 3)
  --seconds N    of each measurement (default 5)
  --only NAMES   of: veth, vp-agent, wireguard-go-sid, wireguard-go, boringtun-1-thread, gotatun, nebula, socat,
                 nginx-stream (default all)
  --work NAMES   of: streams, plain-underlay, round-trips, datagrams, connections (default all)
  --workers N    of each agent, or auto (default auto)
  --peers DIR    where netns-tests/scripts/prepare-bench put the others (default target/peers)
  --write DIR    also write performance.json, performance.txt and plots there
  --json         print JSON only

Example: vp-bench --rounds 1 --seconds 2 --only vp-agent,wireguard-go";

struct Options {
    rounds: usize,
    seconds: u64,
    only: Vec<Kind>,
    work: Vec<Work>,
    workers: String,
    peers: PathBuf,
    write: Option<PathBuf>,
    json: bool,
}

fn main() -> ExitCode {
    let result = options().and_then(|options| {
        let Some(options) = options else {
            println!("{HELP}");
            return Ok(());
        };
        run(&options)
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vp-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn options() -> Result<Option<Options>> {
    let mut options = Options {
        rounds: 3,
        seconds: 5,
        only: Kind::ALL.to_vec(),
        work: Work::ALL.to_vec(),
        workers: "auto".to_owned(),
        peers: "target/peers".into(),
        write: None,
        json: false,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} wants a value; see --help"));
        match argument.as_str() {
            "-h" | "--help" => return Ok(None),
            "--json" => options.json = true,
            "--rounds" => options.rounds = value()?.parse().context("--rounds N")?,
            "--seconds" => options.seconds = value()?.parse().context("--seconds N")?,
            "--workers" => options.workers = value()?,
            "--peers" => options.peers = value()?.into(),
            "--write" => options.write = Some(value()?.into()),
            "--only" => options.only = named(&value()?, &Kind::ALL, Kind::name)?,
            "--work" => options.work = named(&value()?, &Work::ALL, Work::name)?,
            other => bail!("{other} is not known; see --help"),
        }
    }
    ensure!(options.rounds > 0 && options.seconds > 0 && !options.only.is_empty(), "nothing to measure");
    Ok(Some(options))
}

/// Those of `all` that are named, in their order.
fn named<T: Copy>(names: &str, all: &[T], name: fn(T) -> &'static str) -> Result<Vec<T>> {
    let known = |wanted: &str| all.iter().copied().find(|one| name(*one) == wanted);
    let find = |wanted: &str| known(wanted).with_context(|| format!("{wanted} is not known; see --help"));
    names.split(',').map(find).collect()
}

fn run(options: &Options) -> Result<()> {
    let peers = options.peers.canonicalize().unwrap_or_else(|_| options.peers.clone());
    let machines = Machines::new(&peers, &options.workers)?;
    let servers = Servers::start(&machines)?;
    let mut rounds = Vec::new();
    for round in 1..=options.rounds {
        for kind in &options.only {
            let running = machines.start(*kind).with_context(|| kind.name())?;
            let figures = work::measure(&machines, *kind, &running, &options.work, options.seconds)
                .with_context(|| kind.name())?;
            running.stop()?;
            eprintln!("round {round} of {}: {:<19}{}", options.rounds, kind.name(), brief(&figures));
            rounds.push((*kind, figures));
        }
    }
    drop((servers, machines));
    let report = Report { rounds, limits: limits::limits()?, machine: machine(options) };
    let (text, json) = (report.text(), report.json());
    if let Some(folder) = &options.write {
        fs::create_dir_all(folder)?;
        fs::write(folder.join("performance.txt"), text.trim_start())?;
        fs::write(folder.join("performance.json"), serde_json::to_string_pretty(&json)? + "\n")?;
        plot::plots(&report, folder)?;
    }
    match options.json {
        true => println!("{json}"),
        false => println!("{text}"),
    }
    Ok(())
}

fn brief(figures: &work::Figures) -> String {
    let shown = [
        (Metric::Stream, "Gbit/s"),
        (Metric::StreamCpu, "CPU s/GB"),
        (Metric::SmallDatagrams, "k packets/s"),
        (Metric::RoundTrip, "us"),
        (Metric::Connections, "connections/s"),
    ];
    let shown = shown.iter().filter_map(|(metric, unit)| Some(format!("{:>8.2} {unit}", figures.get(metric)?)));
    shown.collect::<Vec<_>>().join("  ")
}

/// What a reader needs to know of where this was measured.
fn machine(options: &Options) -> Value {
    let line = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().ok()?;
        String::from_utf8(output.stdout).ok()?.lines().next().map(|line| line.trim().to_owned())
    };
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu =
        cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':')).map(|(_, name)| name.trim());
    json!({
        "kernel": line("uname", &["-r"]),
        "architecture": line("uname", &["-m"]),
        "cpu": cpu,
        "cores": std::thread::available_parallelism().map_or(0, usize::from),
        "iperf3": line("iperf3", &["--version"]),
        "rounds": options.rounds,
        "seconds": options.seconds,
        "link": "veth, MTU 1500; inner MTU 1420; congestion control cubic",
    })
}
