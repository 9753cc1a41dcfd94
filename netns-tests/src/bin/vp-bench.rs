//! `make bench`: one TCP stream between two gateways, by the plain link, through two agents and through wireguard-go, one
//! after the other in several rounds, so that a busy machine disturbs all alike.
//!
//! ```text
//!   iperf3 client, gateway a 192.0.2.1 --veth-- gateway b 192.0.2.2, iperf3 server
//! ```
//!
//! Gbit/s are to be compared within one run only; CPU seconds a GB are the figure to trust on a busy machine.

use anyhow::{Context, Result, bail, ensure};
use netns_tests::{Agent, Config, Key, Lab, Namespace, Peer, Process, wait_for};
use serde_json::{Value, json};
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::process::ExitCode;

const HELP: &str = "\
Measures one TCP stream through two agents against a plain link and wireguard-go.

Usage: vp-bench [--rounds N] [--seconds N] [--json]

  --rounds N    times each is measured (default 3)
  --seconds N   of each measurement (default 10)
  --json        print JSON only";

/// Of `ip link`'s and WireGuard's usual advice: what fits an underlay of 1500 bytes over IPv6.
const INNER_MTU: u16 = 1420;
const PORT: u16 = 5201;
/// Clock ticks a second in /proc (USER_HZ, the same on every Linux that Debian runs on).
const TICKS: f64 = 100.0;

struct Options {
    rounds: usize,
    seconds: u64,
    json: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Veth,
    Agents,
    WireguardGo,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Veth, Self::Agents, Self::WireguardGo];

    fn name(self) -> &'static str {
        match self {
            Self::Veth => "veth",
            Self::Agents => "vp-agent",
            Self::WireguardGo => "wireguard-go",
        }
    }
}

/// One measurement.
struct Sample {
    kind: Kind,
    gigabits_per_second: f64,
    /// Of both gateways' processes.
    cpu_seconds_per_gigabyte: f64,
    retransmits: u64,
}

fn main() -> ExitCode {
    let result = options().and_then(|options| {
        let Some(options) = options else {
            println!("{HELP}");
            return Ok(());
        };
        let samples = measure(&options)?;
        report(&options, &samples)
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
    let mut options = Options { rounds: 3, seconds: 10, json: false };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "-h" | "--help" => return Ok(None),
            "--json" => options.json = true,
            "--rounds" => options.rounds = arguments.next().context("--rounds N")?.parse()?,
            "--seconds" => options.seconds = arguments.next().context("--seconds N")?.parse()?,
            other => bail!("{other} is not known; see --help"),
        }
    }
    ensure!(options.rounds > 0 && options.seconds > 0, "nothing to measure");
    Ok(Some(options))
}

fn measure(options: &Options) -> Result<Vec<Sample>> {
    let lab = Lab::named("bench")?;
    let (a, b) = (lab.namespace("a")?, lab.namespace("b")?);
    a.ip(&format!("link add name wan0 type veth peer name wan0 netns {}", b.name()))?;
    for (gateway, address) in [(&a, "192.0.2.1"), (&b, "192.0.2.2")] {
        gateway.ip(&format!("addr add {address}/24 dev wan0\nlink set wan0 up"))?;
        gateway.forward()?;
    }
    let _server = Process::start_line(&lab, &b, &format!("iperf3 -s -p {PORT}"))?;
    let mut samples = Vec::new();
    for round in 1..=options.rounds {
        for kind in Kind::ALL {
            let sample = measure_one(&lab, &a, &b, kind, options.seconds)?;
            if !options.json {
                eprintln!(
                    "round {round}: {:<13} {:>6.2} Gbit/s  {:>6.2} CPU s/GB  {} retransmits",
                    kind.name(),
                    sample.gigabits_per_second,
                    sample.cpu_seconds_per_gigabyte,
                    sample.retransmits
                );
            }
            samples.push(sample);
        }
    }
    Ok(samples)
}

fn measure_one(lab: &Lab, a: &Namespace, b: &Namespace, kind: Kind, seconds: u64) -> Result<Sample> {
    match kind {
        Kind::Veth => stream(a, kind, "192.0.2.2".parse()?, seconds, &[]),
        Kind::Agents => {
            let (agents, presence) = agents(lab, a, b)?;
            stream(a, kind, presence, seconds, &agents.each_ref().map(|agent| agent.process().pid()))
        }
        Kind::WireguardGo => {
            let processes = wireguard_go(lab, a, b)?;
            stream(a, kind, "10.77.0.2".parse()?, seconds, &processes.each_ref().map(Process::pid))
        }
    }
}

/// `b` exposes its own address, `a` maps it.
fn agents(lab: &Lab, a: &Namespace, b: &Namespace) -> Result<([Agent; 2], IpAddr)> {
    let (key_a, key_b) = (Key::new()?, Key::new()?);
    let peer = |site: &str, key: &Key, address: &str| -> Result<Peer> {
        let endpoint: SocketAddr = (address.parse::<IpAddr>()?, 51820).into();
        Ok(Peer { site: site.to_owned(), public_key: key.public(), endpoint: Some(endpoint), ..Peer::default() })
    };
    let config = |site: &str, pool: &str, peer: Peer, rest: String| -> Result<Config> {
        let listen = Some(([0; 4], 51820).into());
        Ok(Config { site: site.to_owned(), pool: vec![pool.parse()?], listen, peers: vec![peer], rest })
    };
    let exposed = format!(
        "expose:\n  - name: stream\n    target: 192.0.2.2\n    ports: [tcp/{PORT}]\n    allow: [any]\n    source: presence\n"
    );
    let config_b = config("b", "10.0.2.0/24", peer("a", &key_a, "192.0.2.1")?, exposed)?;
    let mapped = "map:\n  - service: stream.b\n".to_owned();
    let config_a = config("a", "10.0.1.0/24", peer("b", &key_b, "192.0.2.2")?, mapped)?;
    let agents = [Agent::start(lab, b, config_b, key_b)?, Agent::start(lab, a, config_a, key_a)?];
    let presence = agents[1].presence("stream.b")?;
    Ok((agents, presence))
}

fn wireguard_go(lab: &Lab, a: &Namespace, b: &Namespace) -> Result<[Process; 2]> {
    let (key_a, key_b) = (Key::new()?, Key::new()?);
    // The control sockets of all namespaces share one directory, so the interfaces' names differ.
    let name = |side: &str| format!("wg{}{side}", std::process::id());
    let start =
        |machine: &Namespace, side: &str| Process::start_line(lab, machine, &format!("wireguard-go -f {}", name(side)));
    let processes = [start(a, "a")?, start(b, "b")?];
    for (machine, side, own, other, far, near) in
        [(a, "a", &key_a, &key_b, "192.0.2.2", "10.77.0.1"), (b, "b", &key_b, &key_a, "192.0.2.1", "10.77.0.2")]
    {
        let (interface, file) = (name(side), lab.directory().join(format!("wireguard-{side}.key")));
        own.write(&file)?;
        let set = format!(
            "wg set {interface} listen-port 51821 private-key {} peer {} endpoint {far}:51821 allowed-ips 10.77.0.0/24",
            file.display(),
            other.public()
        );
        wait_for("wireguard-go", || machine.sh(&set).map(Some))?;
        machine.ip(&format!("addr add {near}/24 dev {interface}\nlink set {interface} mtu {INNER_MTU} up"))?;
    }
    Ok(processes)
}

fn stream(client: &Namespace, kind: Kind, to: IpAddr, seconds: u64, gateways: &[u32]) -> Result<Sample> {
    let line = |seconds| format!("iperf3 -J -C cubic -c {to} -p {PORT} -t {seconds}");
    // The first call brings the tunnel up and is not measured.
    wait_for("a first stream", || client.sh(&line(1)).map(Some))?;
    let before = cpu_seconds(gateways)?;
    let output = client.sh(&line(seconds))?;
    let cpu = cpu_seconds(gateways)? - before;
    let end = &serde_json::from_str::<Value>(&output)?["end"];
    let number = |value: &Value| value.as_f64().context("a number of iperf3's");
    let bytes = number(&end["sum_received"]["bytes"])?;
    let gigabits_per_second = number(&end["sum_received"]["bits_per_second"])? / 1e9;
    let retransmits = end["sum_sent"]["retransmits"].as_u64().unwrap_or(0);
    Ok(Sample { kind, gigabits_per_second, cpu_seconds_per_gigabyte: cpu / (bytes / 1e9), retransmits })
}

/// User and system time of the processes until now.
fn cpu_seconds(processes: &[u32]) -> Result<f64> {
    let mut ticks = 0.0;
    for pid in processes {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // After the command's name, which may hold anything but ends with the last parenthesis: proc(5), 14 and 15.
        let fields = stat.rsplit_once(')').context("a stat line")?.1;
        let times = fields.split_whitespace().skip(11).take(2);
        ticks += times.map(|field| field.parse::<f64>().unwrap_or(0.0)).sum::<f64>();
    }
    Ok(ticks / TICKS)
}

fn report(options: &Options, samples: &[Sample]) -> Result<()> {
    let rate = |kind| figures(samples, kind, |sample| sample.gigabits_per_second);
    let cpu = |kind| figures(samples, kind, |sample| sample.cpu_seconds_per_gigabyte);
    let baseline = rate(Kind::WireguardGo).median;
    let ratio = |kind| rate(kind).median / baseline;
    let entry = |kind: Kind| {
        json!({
            "name": kind.name(),
            "gigabits_per_second": rate(kind).json(),
            "gateways_cpu_seconds_per_gigabyte": cpu(kind).json(),
            "ratio_to_wireguard_go": ratio(kind),
        })
    };
    let json = json!({
        "rounds": options.rounds,
        "seconds": options.seconds,
        "kernel": fs::read_to_string("/proc/sys/kernel/osrelease")?.trim(),
        "cores": std::thread::available_parallelism()?.get(),
        "results": Kind::ALL.map(entry),
    });
    if options.json {
        println!("{json}");
        return Ok(());
    }
    println!("\none TCP stream       Gbit/s median (least to most)   CPU s/GB of both gateways   to wireguard-go");
    for kind in Kind::ALL {
        let (rate, cpu) = (rate(kind), cpu(kind));
        let spread = format!("({:.2} to {:.2})", rate.least, rate.most);
        let name = kind.name();
        let cpu = if kind == Kind::Veth { "-".to_owned() } else { format!("{:.2}", cpu.median) };
        println!("{name:<13} {:>20.2} {spread:<22} {cpu:>17} {:>24.1}x", rate.median, ratio(kind));
    }
    println!("\n{json}");
    Ok(())
}

struct Figures {
    least: f64,
    median: f64,
    most: f64,
}

impl Figures {
    fn json(&self) -> Value {
        json!({"median": self.median, "least": self.least, "most": self.most})
    }
}

fn figures(samples: &[Sample], kind: Kind, of: impl Fn(&Sample) -> f64) -> Figures {
    let mut values: Vec<f64> = samples.iter().filter(|sample| sample.kind == kind).map(of).collect();
    values.sort_by(f64::total_cmp);
    let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
    let (low, high) = (values.len().saturating_sub(1) / 2, values.len() / 2);
    Figures { least: at(0), median: f64::midpoint(at(low), at(high)), most: at(values.len().saturating_sub(1)) }
}
