//! What is done with each of them, and how it is measured.

use crate::peers::{AGENT_PORTS, B, Kind, Machines, PORTS, Running};
use anyhow::{Context, Result, ensure};
use netns_tests::{Namespace, Process, TcpServer, wait_for};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Clock ticks a second in /proc (USER_HZ, the same on every Linux that Debian runs on).
const TICKS: f64 = 100.0;
const SMALL_BYTES: usize = 64;
const LARGE_BYTES: usize = 1400;
/// After so much a stream has met what limits it: five times the largest window that Linux gives by default (tcp_rmem).
const SLOW_START_BYTES: u64 = 32 << 20;
/// What counts as no loss.
const LOSS_MAX: f64 = 0.01;
/// Thousands of packets a second that are tried: from, up to, and until the bounds are so near.
const RATE: (f64, f64) = (5.0, 600.0);
const RATE_STEP: f64 = 1.1;
const PROBE_SECONDS: u64 = 1;
const CONNECTIONS: usize = 16;

/// A figure's name, its unit, and whether more of it is better.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Metric {
    Stream,
    StreamCpu,
    StreamRetransmits,
    StreamPlainUnderlay,
    EightStreams,
    BothWays,
    SmallDatagrams,
    SmallDatagramsCpu,
    LargeDatagrams,
    RoundTrip,
    RoundTripTail,
    RoundTripLoaded,
    RoundTripLoadedTail,
    Connections,
    Memory,
    Idle,
}

impl Metric {
    pub const ALL: [Self; 16] = [
        Self::Stream,
        Self::StreamCpu,
        Self::StreamRetransmits,
        Self::StreamPlainUnderlay,
        Self::EightStreams,
        Self::BothWays,
        Self::SmallDatagrams,
        Self::SmallDatagramsCpu,
        Self::LargeDatagrams,
        Self::RoundTrip,
        Self::RoundTripTail,
        Self::RoundTripLoaded,
        Self::RoundTripLoadedTail,
        Self::Connections,
        Self::Memory,
        Self::Idle,
    ];

    /// The word in JSON, and the words for people.
    pub fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Stream => ("stream_gbit_s", "one TCP stream, Gbit/s"),
            Self::StreamCpu => ("stream_cpu_s_per_gb", "CPU of both gateways in it, s/GB"),
            Self::StreamRetransmits => ("stream_retransmits", "its retransmissions"),
            Self::StreamPlainUnderlay => {
                ("stream_plain_underlay_gbit_s", "one TCP stream, an underlay without UDP super-packets, Gbit/s")
            }
            Self::EightStreams => ("eight_streams_gbit_s", "eight TCP streams, Gbit/s"),
            Self::BothWays => ("both_ways_gbit_s", "a TCP stream each way at once, Gbit/s in sum"),
            Self::SmallDatagrams => ("udp64_kpackets_s", "UDP of 64 bytes under 1 % loss, 1,000 packets/s"),
            Self::SmallDatagramsCpu => ("udp64_cpu_us_per_packet", "CPU of both gateways in it, us a packet"),
            Self::LargeDatagrams => ("udp1400_kpackets_s", "UDP of 1400 bytes under 1 % loss, 1,000 packets/s"),
            Self::RoundTrip => ("round_trip_p50_us", "request and response of 64 bytes, p50, us"),
            Self::RoundTripTail => ("round_trip_p99_us", "the same, p99, us"),
            Self::RoundTripLoaded => ("round_trip_loaded_p50_us", "the same beside a saturating TCP stream, p50, us"),
            Self::RoundTripLoadedTail => ("round_trip_loaded_p99_us", "the same, p99, us"),
            Self::Connections => ("connections_s", "new TCP connections/s (wrk to nginx, closed each time)"),
            Self::Memory => ("memory_mb", "resident memory of both gateways after all that, MB"),
            Self::Idle => ("idle_cpu_percent", "CPU of both gateways when idle, % of a core"),
        }
    }

    pub fn more_is_better(self) -> bool {
        use Metric::{
            BothWays, Connections, EightStreams, LargeDatagrams, SmallDatagrams, Stream, StreamPlainUnderlay,
        };
        matches!(
            self,
            Stream | StreamPlainUnderlay | EightStreams | BothWays | SmallDatagrams | LargeDatagrams | Connections
        )
    }
}

/// What of it is to be done.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Work {
    Streams,
    PlainUnderlay,
    RoundTrips,
    Datagrams,
    Connections,
}

impl Work {
    pub const ALL: [Self; 5] =
        [Self::Streams, Self::PlainUnderlay, Self::RoundTrips, Self::Datagrams, Self::Connections];

    pub fn name(self) -> &'static str {
        match self {
            Self::Streams => "streams",
            Self::PlainUnderlay => "plain-underlay",
            Self::RoundTrips => "round-trips",
            Self::Datagrams => "datagrams",
            Self::Connections => "connections",
        }
    }
}

pub type Figures = BTreeMap<Metric, f64>;

/// The servers on machine `b`, for all that are measured.
pub struct Servers {
    _iperf: [Process; 2],
    _nginx: Process,
    _echo: TcpServer,
}

impl Servers {
    pub fn start(machines: &Machines) -> Result<Self> {
        let Machines { lab, b, .. } = machines;
        let folder = lab.directory().display().to_string();
        let config = lab.directory().join("web.conf");
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
        let temporary: String = temporary.iter().map(|kind| format!("{kind}_temp_path {folder}/{kind}; ")).collect();
        let text = format!(
            "daemon off; error_log /dev/null; pid {folder}/web.pid; worker_processes 1;\n\
             events {{ worker_connections 4096; }}\nhttp {{ access_log off; {temporary}\n\
             server {{ listen {} backlog=4096; location / {{ return 200 \"ok\\n\"; }} }} }}\n",
            PORTS.http
        );
        fs::write(&config, text)?;
        let nginx = Process::start_line(lab, b, &format!("nginx -c {}", config.display()))?;
        let iperf = |port, options: &str| Process::start_line(lab, b, &format!("iperf3 -s -p {port} {options}"));
        // A UDP server that is bound to no address answers from that of the interface, which is not the one called.
        let iperf = [iperf(PORTS.iperf, "")?, iperf(AGENT_PORTS.datagrams, &format!("-B {B}"))?];
        let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORTS.echo));
        let echo = TcpServer::start(b, address, |mut stream, _| {
            let _ = stream.set_nodelay(true);
            let mut message = [0; SMALL_BYTES];
            while stream.read_exact(&mut message).and_then(|()| stream.write_all(&message)).is_ok() {}
        })?;
        Ok(Self { _iperf: iperf, _nginx: nginx, _echo: echo })
    }
}

/// The work, with one that is up.
pub fn measure(machines: &Machines, kind: Kind, running: &Running, work: &[Work], seconds: u64) -> Result<Figures> {
    let mut figures = Figures::new();
    let a = &machines.a;
    wait_for("a first stream", || stream(a, running, "", 1).map(Some)).context(kind.name())?;
    if work.contains(&Work::Streams) {
        let before = cpu_seconds(running);
        let end = stream(a, running, "", seconds)?;
        let cpu = cpu_seconds(running) - before;
        figures.insert(Metric::Stream, gigabits(&end, "sum_received")?);
        figures.insert(Metric::StreamCpu, cpu / (number(&end["sum_received"]["bytes"])? / 1e9));
        figures.insert(Metric::StreamRetransmits, number(&end["sum_sent"]["retransmits"]).unwrap_or(0.0));
        let end = stream(a, running, "-P 8", seconds)?;
        figures.insert(Metric::EightStreams, gigabits(&end, "sum_received")?);
        let end = stream(a, running, "--bidir", seconds)?;
        let both = gigabits(&end, "sum_received")? + gigabits(&end, "sum_received_bidir_reverse")?;
        figures.insert(Metric::BothWays, both);
    }
    if work.contains(&Work::RoundTrips) {
        let (p50, p99) = round_trips(a, running, seconds)?;
        figures.extend([(Metric::RoundTrip, p50), (Metric::RoundTripTail, p99)]);
        let (p50, p99) = beside_stream(a, running, seconds)?;
        figures.extend([(Metric::RoundTripLoaded, p50), (Metric::RoundTripLoadedTail, p99)]);
    }
    if work.contains(&Work::Datagrams) && !kind.is_proxy() {
        let (rate, cpu) = datagrams(a, running, SMALL_BYTES)?;
        figures.extend([(Metric::SmallDatagrams, rate), (Metric::SmallDatagramsCpu, cpu)]);
        figures.insert(Metric::LargeDatagrams, datagrams(a, running, LARGE_BYTES)?.0);
    }
    if work.contains(&Work::Connections) {
        figures.insert(Metric::Connections, connections(a, running, seconds)?);
    }
    figures.insert(Metric::Memory, memory_megabytes(running));
    figures.insert(Metric::Idle, idle_percent(running, seconds));
    if work.contains(&Work::PlainUnderlay) {
        underlay(machines, false)?;
        let plain = stream(a, running, "", seconds).and_then(|end| gigabits(&end, "sum_received"));
        underlay(machines, true)?;
        figures.insert(Metric::StreamPlainUnderlay, plain?);
    }
    if kind == Kind::Veth {
        // It has no gateways.
        for metric in [Metric::StreamCpu, Metric::SmallDatagramsCpu, Metric::Memory, Metric::Idle] {
            figures.remove(&metric);
        }
    }
    Ok(figures)
}

/// One run of iperf3 over TCP.
fn stream(a: &Namespace, running: &Running, options: &str, seconds: u64) -> Result<Value> {
    iperf(a, &format!("-C cubic -c {} -p {} -t {seconds} {options}", running.host, running.ports.iperf))
}

/// One run of iperf3: what it says of its end.
fn iperf(a: &Namespace, options: &str) -> Result<Value> {
    let output = a.sh(&format!("iperf3 -J {options}"))?;
    let json: Value = serde_json::from_str(&output)?;
    ensure!(json["end"]["sum_sent"].is_object(), "iperf3 {options}: {output}");
    Ok(json["end"].clone())
}

/// Whether the link carries super-packets whole, or as a network card without UDP segmentation has to.
fn underlay(machines: &Machines, whole: bool) -> Result<()> {
    let (segmentation, join) = if whole { ("on", "off") } else { ("off", "on") };
    for machine in [&machines.a, &machines.b] {
        machine.sh(&format!("ethtool -K wan0 tso {segmentation} tx-udp-segmentation {segmentation} gro {join}"))?;
    }
    Ok(())
}

/// Thousands of packets a second that pass with under 1 % loss, and the gateways' CPU in microseconds for each.
fn datagrams(a: &Namespace, running: &Running, bytes: usize) -> Result<(f64, f64)> {
    let (mut low, mut high) = RATE;
    let mut best = (0.0, f64::NAN);
    while high / low > RATE_STEP {
        let rate = (low * high).sqrt();
        let bits = (rate * 1000.0) as usize * bytes * 8;
        let (host, port) = (running.host, running.ports.datagrams);
        let before = cpu_seconds(running);
        let end = iperf(a, &format!("-u -l {bytes} -b {bits} -c {host} -p {port} -t {PROBE_SECONDS}"))?;
        let cpu = cpu_seconds(running) - before;
        let sum = &end["sum"];
        let (sent, lost) = (number(&sum["packets"])?, number(&sum["lost_packets"])?);
        let arrived = (sent - lost) / number(&sum["seconds"])? / 1000.0;
        let is_good = lost <= sent * LOSS_MAX;
        if is_good && arrived > best.0 {
            best = (arrived, cpu * 1e6 / (sent - lost));
        }
        // A sender that cannot send more is the end of what can be known.
        if is_good && arrived < rate * 0.95 {
            break;
        }
        if is_good { low = rate } else { high = rate }
    }
    Ok(best)
}

/// p50 and p99 in microseconds, of a request and a response at a time.
fn round_trips(a: &Namespace, running: &Running, seconds: u64) -> Result<(f64, f64)> {
    ping_pong(a, (running.host, running.ports.echo).into(), Duration::from_secs(seconds))
}

fn ping_pong(a: &Namespace, to: SocketAddr, duration: Duration) -> Result<(f64, f64)> {
    let times = a.run(|| -> Result<Vec<Duration>> {
        let mut stream = TcpStream::connect(to)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let (mut message, mut times) = ([7; SMALL_BYTES], Vec::new());
        let end = Instant::now() + duration;
        while Instant::now() < end {
            let start = Instant::now();
            stream.write_all(&message)?;
            stream.read_exact(&mut message)?;
            times.push(start.elapsed());
        }
        Ok(times)
    })?;
    let mut times = times?;
    ensure!(!times.is_empty(), "no round trip");
    times.sort();
    let at = |part: usize| times[(times.len() * part / 100).min(times.len() - 1)].as_secs_f64() * 1e6;
    Ok((at(50), at(99)))
}

/// The same while a stream takes all it can.
fn beside_stream(a: &Namespace, running: &Running, seconds: u64) -> Result<(f64, f64)> {
    let (is_over, before) = (AtomicBool::new(false), sent(a)?);
    std::thread::scope(|scope| {
        let is_over = &is_over;
        let stream = scope.spawn(move || {
            let ended = stream(a, running, "", seconds + 2);
            is_over.store(true, Ordering::Relaxed);
            ended.map(drop)
        });
        wait_for("a stream past its slow start", || Ok((sent(a)? >= before + SLOW_START_BYTES).then_some(())))?;
        let figures = round_trips(a, running, seconds);
        ensure!(!is_over.load(Ordering::Relaxed), "the stream ended too early");
        stream.join().map_err(|_| anyhow::anyhow!("the stream's thread"))??;
        figures
    })
}

/// Bytes that left by the link.
fn sent(a: &Namespace) -> Result<u64> {
    let table = a.run(|| fs::read_to_string("/proc/thread-self/net/dev"))??;
    let line = table.lines().find_map(|line| line.trim().strip_prefix("wan0:")).context("no wan0")?;
    Ok(line.split_whitespace().nth(8).context("no count of bytes sent")?.parse()?)
}

fn connections(a: &Namespace, running: &Running, seconds: u64) -> Result<f64> {
    let url = format!("http://{}:{}/", running.host, running.ports.http);
    let mut command = a.command("wrk");
    command.args(["-t1", &format!("-c{CONNECTIONS}"), &format!("-d{seconds}"), "-H", "Connection: close", &url]);
    let output = command.output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let rate = text.lines().find_map(|line| line.trim().strip_prefix("Requests/sec:"));
    Ok(rate.with_context(|| format!("wrk: {text}"))?.trim().parse()?)
}

fn idle_percent(running: &Running, seconds: u64) -> f64 {
    let before = cpu_seconds(running);
    // The time over which idleness is measured.
    std::thread::sleep(Duration::from_secs(seconds));
    (cpu_seconds(running) - before) / seconds as f64 * 100.0
}

/// User and system time until now, of children that ended too.
fn cpu_seconds(running: &Running) -> f64 {
    let of = |pid: u32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // After the command's name, which may hold anything but ends with the last parenthesis: proc(5), 14 to 17.
        let times = stat.rsplit_once(')')?.1.split_whitespace().skip(11).take(4);
        Some(times.filter_map(|field| field.parse::<f64>().ok()).sum::<f64>())
    };
    running.pids().into_iter().filter_map(of).sum::<f64>() / TICKS
}

fn memory_megabytes(running: &Running) -> f64 {
    let of = |pid: u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.split_whitespace().next()?.parse::<f64>().ok()
    };
    running.pids().into_iter().filter_map(of).sum::<f64>() / 1024.0
}

fn gigabits(end: &Value, sum: &str) -> Result<f64> {
    Ok(number(&end[sum]["bits_per_second"])? / 1e9)
}

fn number(value: &Value) -> Result<f64> {
    value.as_f64().with_context(|| format!("no number of iperf3's: {value}"))
}
