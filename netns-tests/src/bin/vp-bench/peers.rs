//! What is measured: the plain link, two agents, other tunnels and proxies, each between the same two machines.

use anyhow::{Context, Result, ensure};
use netns_tests::{Agent, Config, Key, Lab, Namespace, Peer, Process, wait_for};
use std::fmt::Write as _;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

/// What fits an underlay of 1500 bytes over IPv6; the same for every tunnel.
pub const INNER_MTU: u16 = 1420;
const A: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub const B: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const TUNNEL_A: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const TUNNEL_B: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);

/// The servers on machine `b`.
#[derive(Clone, Copy)]
pub struct Ports {
    pub iperf: u16,
    pub datagrams: u16,
    pub http: u16,
    pub echo: u16,
}

pub const PORTS: Ports = Ports { iperf: 5201, datagrams: 5201, http: 80, echo: 7000 };
/// The same for the agents.
pub const AGENT_PORTS: Ports = Ports { datagrams: 5202, ..PORTS };
/// Where a proxy on machine `a` listens for them.
const PROXY_PORTS: Ports = Ports { iperf: 9501, datagrams: 9501, http: 9080, echo: 9700 };

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Veth,
    Agents,
    WireguardGoSid,
    WireguardGo,
    Boringtun,
    Gotatun,
    Nebula,
    Socat,
    Nginx,
}

impl Kind {
    pub const ALL: [Self; 9] = [
        Self::Veth,
        Self::Agents,
        Self::WireguardGoSid,
        Self::WireguardGo,
        Self::Boringtun,
        Self::Gotatun,
        Self::Nebula,
        Self::Socat,
        Self::Nginx,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Veth => "veth",
            Self::Agents => "vp-agent",
            Self::WireguardGoSid => "wireguard-go-sid",
            Self::WireguardGo => "wireguard-go",
            Self::Boringtun => "boringtun-1-thread",
            Self::Gotatun => "gotatun",
            Self::Nebula => "nebula",
            Self::Socat => "socat",
            Self::Nginx => "nginx-stream",
        }
    }

    pub fn is_proxy(self) -> bool {
        matches!(self, Self::Socat | Self::Nginx)
    }

    /// Other tunnels, for the goals that name "the best tunnel peer".
    pub fn is_other_tunnel(self) -> bool {
        !matches!(self, Self::Veth | Self::Agents | Self::Socat | Self::Nginx)
    }
}

/// One of them, up.
pub struct Running {
    pub host: IpAddr,
    pub ports: Ports,
    pids: Vec<u32>,
    agents: Vec<Agent>,
    /// Ended when this is dropped.
    _processes: Vec<Process>,
}

impl Running {
    /// Its processes with their children.
    pub fn pids(&self) -> Vec<u32> {
        self.pids.iter().flat_map(|pid| descendants(*pid)).collect()
    }

    /// Leaves the machines as they were: nothing of the one may slow the next.
    pub fn stop(mut self) -> Result<()> {
        self.agents.iter_mut().try_for_each(Agent::stop)
    }
}

pub struct Machines {
    pub lab: Lab,
    pub a: Namespace,
    pub b: Namespace,
    peers: PathBuf,
    /// Of each agent, as its configuration says it.
    workers: String,
}

impl Machines {
    pub fn new(peers: &Path, workers: &str) -> Result<Self> {
        let lab = Lab::named("bench")?;
        let (a, b) = (lab.namespace("a")?, lab.namespace("b")?);
        a.ip(&format!("link add name wan0 type veth peer name wan0 netns {}", b.name()))?;
        for (machine, address) in [(&a, A), (&b, B)] {
            machine.ip(&format!("addr add {address}/24 dev wan0\nlink set wan0 up"))?;
            machine.forward()?;
            machine.sysctl("net/ipv4/ip_local_port_range", "1025 65000")?;
            machine.sysctl("net/ipv4/tcp_tw_reuse", "1")?;
        }
        Ok(Self { lab, a, b, peers: peers.to_owned(), workers: workers.to_owned() })
    }

    pub fn start(&self, kind: Kind) -> Result<Running> {
        match kind {
            Kind::Veth => Ok(running(B.into(), PORTS, Vec::new())),
            Kind::Agents => self.agents(),
            Kind::WireguardGoSid => self.wireguard(&format!("{} -f", self.sid("wireguard-go")?)),
            Kind::WireguardGo => self.wireguard("wireguard-go -f"),
            Kind::Boringtun => {
                self.wireguard(&format!("{} -f --disable-drop-privileges -t 1", self.built("boringtun-cli")?))
            }
            Kind::Gotatun => {
                self.wireguard(&format!("{} -f --disable-drop-privileges -v error", self.built("gotatun")?))
            }
            Kind::Nebula => self.nebula(),
            Kind::Socat => self.socat(),
            Kind::Nginx => self.nginx(),
        }
    }

    /// `b` exposes its own address, `a` maps it; all that an operator has on is on.
    fn agents(&self) -> Result<Running> {
        let (key_a, key_b) = (Key::new()?, Key::new()?);
        let peer = |site: &str, key: &Key, address: Ipv4Addr| Peer {
            certificate: None,
            site: site.to_owned(),
            public_key: key.public(),
            endpoint: Some(SocketAddr::from((address, 51820))),
            ..Peer::default()
        };
        let config = |site: &str, pool: &str, peer: Peer, rest: String| -> Result<Config> {
            let listen = Some(([0; 4], 51820).into());
            let rest = format!("workers: {}\n{rest}", self.workers);
            Ok(Config { site: site.to_owned(), pool: vec![pool.parse()?], listen, peers: vec![peer], rest })
        };
        let Ports { iperf, datagrams, http, echo } = AGENT_PORTS;
        let exposed = format!(
            "expose:\n  - name: all\n    target: {B}\n    ports: [tcp/{iperf}, tcp/{datagrams}, udp/{datagrams}, tcp/{http}, tcp/{echo}]\n    \
             allow: [\"site:a\"]\n    source: presence\n"
        );
        let config_b = config("b", "10.0.2.0/24", peer("a", &key_a, A), exposed)?;
        let config_a = config("a", "10.0.1.0/24", peer("b", &key_b, B), "map:\n  - service: all.b\n".to_owned())?;
        let agents = vec![
            Agent::start(&self.lab, &self.b, config_b, key_b)?,
            Agent::start(&self.lab, &self.a, config_a, key_a)?,
        ];
        let host = agents[1].presence("all.b")?;
        let pids = agents.iter().map(|agent| agent.process().pid()).collect();
        Ok(Running { host, ports: AGENT_PORTS, pids, agents, _processes: Vec::new() })
    }

    /// A program that takes an interface's name and is configured by `wg`.
    fn wireguard(&self, line: &str) -> Result<Running> {
        let keys = [Key::new()?, Key::new()?];
        // The control sockets of all namespaces share one directory, so the interfaces' names differ.
        let name = |side: &str| format!("wg{}{side}", std::process::id());
        let mut processes = Vec::new();
        for (machine, side) in [(&self.a, "a"), (&self.b, "b")] {
            processes.push(Process::start_line(&self.lab, machine, &format!("{line} {}", name(side)))?);
        }
        for (machine, side, own, other, far, near) in
            [(&self.a, "a", &keys[0], &keys[1], B, TUNNEL_A), (&self.b, "b", &keys[1], &keys[0], A, TUNNEL_B)]
        {
            let (interface, file) = (name(side), self.lab.directory().join(format!("wireguard-{side}.key")));
            own.write(&file)?;
            let set = format!(
                "wg set {interface} listen-port 51821 private-key {} peer {} endpoint {far}:51821 allowed-ips 10.77.0.0/24",
                file.display(),
                other.public()
            );
            wait_for(line, || machine.sh(&set).map(Some))?;
            machine.ip(&format!("addr add {near}/24 dev {interface}\nlink set {interface} mtu {INNER_MTU} up"))?;
        }
        Ok(running(TUNNEL_B.into(), PORTS, processes))
    }

    fn nebula(&self) -> Result<Running> {
        let folder = self.lab.directory().join("nebula");
        if !folder.exists() {
            fs::create_dir_all(&folder)?;
            let nebula_cert = self.sid("nebula-cert")?;
            for words in ["ca -name bench", "sign -name a -ip 10.77.0.1/24", "sign -name b -ip 10.77.0.2/24"] {
                let mut command = std::process::Command::new(&nebula_cert);
                let status = command.args(words.split(' ')).current_dir(&folder).status()?;
                ensure!(status.success(), "nebula-cert {words}: {status}");
            }
        }
        let nebula = self.sid("nebula")?;
        let mut processes = Vec::new();
        for (machine, side, lighthouse) in [(&self.b, "b", true), (&self.a, "a", false)] {
            let at = folder.display();
            let (hosts, map) = match lighthouse {
                true => ("[]", "{}".to_owned()),
                false => ("[\"10.77.0.2\"]", format!("{{\"10.77.0.2\": [\"{B}:4242\"]}}")),
            };
            let mut text = format!("pki: {{ca: {at}/ca.crt, cert: {at}/{side}.crt, key: {at}/{side}.key}}\n");
            let _ = write!(
                text,
                "static_host_map: {map}\nlighthouse: {{am_lighthouse: {lighthouse}, hosts: {hosts}}}\n\
                 listen: {{host: 0.0.0.0, port: 4242}}\ntun: {{dev: nebula0, mtu: {INNER_MTU}}}\n\
                 logging: {{level: warning}}\nfirewall:\n  outbound: [{{port: any, proto: any, host: any}}]\n  \
                 inbound: [{{port: any, proto: any, host: any}}]\n"
            );
            let file = folder.join(format!("{side}.yml"));
            fs::write(&file, text)?;
            processes.push(Process::start_line(&self.lab, machine, &format!("{nebula} -config {}", file.display()))?);
        }
        Ok(running(TUNNEL_B.into(), PORTS, processes))
    }

    fn socat(&self) -> Result<Running> {
        let start = |(from, to): (u16, u16)| {
            let line = format!("socat TCP-LISTEN:{from},fork,reuseaddr,backlog=1024,nodelay TCP:{B}:{to},nodelay");
            Process::start_line(&self.lab, &self.a, &line)
        };
        let processes = proxied().into_iter().map(start).collect::<Result<_>>()?;
        Ok(running(Ipv4Addr::LOCALHOST.into(), PROXY_PORTS, processes))
    }

    fn nginx(&self) -> Result<Running> {
        let folder = self.lab.directory().display().to_string();
        let mut text = format!(
            "load_module /usr/lib/nginx/modules/ngx_stream_module.so; daemon off; error_log /dev/null;\n\
             pid {folder}/proxy.pid; worker_processes 1; events {{ worker_connections 8192; }}\nstream {{\n"
        );
        for (from, to) in proxied() {
            let _ = writeln!(text, "server {{ listen 127.0.0.1:{from} backlog=4096; proxy_pass {B}:{to}; }}");
        }
        let file = self.lab.directory().join("proxy.conf");
        fs::write(&file, text + "}\n")?;
        let process = Process::start_line(&self.lab, &self.a, &format!("nginx -c {}", file.display()))?;
        Ok(running(Ipv4Addr::LOCALHOST.into(), PROXY_PORTS, vec![process]))
    }

    fn sid(&self, program: &str) -> Result<String> {
        self.program(&format!("sid/usr/bin/{program}"))
    }

    fn built(&self, program: &str) -> Result<String> {
        self.program(&format!("bin/{program}"))
    }

    fn program(&self, path: &str) -> Result<String> {
        let path = self.peers.join(path);
        ensure!(path.exists(), "{} is not there: netns-tests/scripts/prepare-bench makes it", path.display());
        Ok(path.to_str().context("a path in UTF-8")?.to_owned())
    }
}

fn proxied() -> [(u16, u16); 3] {
    let (from, to) = (PROXY_PORTS, PORTS);
    [(from.iperf, to.iperf), (from.http, to.http), (from.echo, to.echo)]
}

fn running(host: IpAddr, ports: Ports, processes: Vec<Process>) -> Running {
    let pids = processes.iter().map(Process::pid).collect();
    Running { host, ports, pids, agents: Vec::new(), _processes: processes }
}

fn descendants(pid: u32) -> Vec<u32> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let children = tasks.filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    let children: Vec<u32> =
        children.flat_map(|c| c.split(' ').filter_map(|p| p.parse().ok()).collect::<Vec<_>>()).collect();
    std::iter::once(pid).chain(children.into_iter().flat_map(descendants)).collect()
}
