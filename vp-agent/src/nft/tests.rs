//! Against the real kernel, each test in network namespaces of its own that end with it.

use super::*;
use crate::netlink::{self, Network};
use crate::sys::{Tun, enter_new_network_namespace};
use std::io::IoSlice;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use vp::addr::{Limits, Name};
use vp::catalogue::{Source, Target};
use vp::packet::virtio;

const LONG: Duration = Duration::from_secs(10);

fn sh(command: &str) -> String {
    let output = Command::new("sh").args(["-ec", command]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn packets(counter: &str) -> u32 {
    let text = sh(&format!("nft list counter inet vp_vp_test {counter}"));
    let mut words = text.split_whitespace().skip_while(|word| *word != "packets");
    words.nth(1).unwrap().parse().unwrap()
}

fn service(name: &str, target: &str, ports: &[&str], source: Source) -> Exposure {
    let target = match target.parse::<IpNet>() {
        Ok(prefix) => Target::Prefix(prefix),
        Err(_) => Target::Backends(target.split(' ').map(|address| address.parse().unwrap()).collect()),
    };
    Exposure {
        name: Name::new(name).unwrap(),
        target,
        ports: ports.iter().map(|ports| ports.parse().unwrap()).collect(),
        allow: Vec::new(),
        source,
        limits: Limits::default(),
    }
}

fn wanted() -> Wanted {
    Wanted {
        pool: vec!["10.0.1.0/24".parse().unwrap(), "fd00:1::/64".parse().unwrap()],
        services: vec![
            service("dns", "10.0.0.5", &["udp/53", "icmp"], Source::Masquerade),
            service("log", "10.0.0.5", &["udp/54"], Source::Presence),
        ],
        own_ports: vec![51820],
    }
}

fn block_on<F: Future>(test: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test)
}

/// A host of the LAN, in a namespace of a thread's own: runs what it is sent, there.
struct Host(mpsc::Sender<Box<dyn FnOnce() + Send>>);

impl Host {
    /// The far end of `far`, which is in the calling thread's namespace, goes there.
    fn new(far: &str) -> Self {
        let (jobs, inbox) = mpsc::channel::<Box<dyn FnOnce() + Send>>();
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || {
            enter_new_network_namespace();
            tell.send(std::fs::read_link("/proc/thread-self").unwrap()).unwrap();
            inbox.into_iter().for_each(|job| job());
        });
        let thread = told.recv().unwrap();
        sh(&format!("ip link set {far} netns {}", thread.file_name().unwrap().to_str().unwrap()));
        Self(jobs)
    }

    fn run<R: Send + 'static>(&self, job: impl FnOnce() -> R + Send + 'static) -> R {
        let (tell, told) = mpsc::channel();
        self.0.send(Box::new(move || tell.send(job()).unwrap())).unwrap();
        told.recv_timeout(LONG).unwrap()
    }

    fn listen(&self, address: &'static str) -> UdpSocket {
        self.run(move || {
            let socket = UdpSocket::bind(address).unwrap();
            socket.set_read_timeout(Some(LONG)).unwrap();
            socket
        })
    }
}

/// As if opened from a tunnel: a UDP packet over IPv4, without a checksum.
fn write_packet(tun: &Tun, from: &str, to: &str) {
    let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
    let (IpAddr::V4(source), IpAddr::V4(destination)) = (from.ip(), to.ip()) else { panic!("IPv4 only") };
    let mut packet = [0u8; 32];
    packet[..10].copy_from_slice(&[0x45, 0, 0, 32, 0, 0, 0, 0, 64, 17]);
    packet[12..16].copy_from_slice(&source.octets());
    packet[16..20].copy_from_slice(&destination.octets());
    let sum: u32 = packet[..20].chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum();
    let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
    packet[20..22].copy_from_slice(&from.port().to_be_bytes());
    packet[22..24].copy_from_slice(&to.port().to_be_bytes());
    packet[25] = 12;
    let header = [0; virtio::HEADER_BYTES];
    tun.write(&[IoSlice::new(&header), IoSlice::new(&packet)]).unwrap();
}

/// Waits for a packet into the tunnel with these addresses.
fn read_packet(tun: &Tun, from: &str, to: &str) {
    let (from, to): (Ipv4Addr, Ipv4Addr) = (from.parse().unwrap(), to.parse().unwrap());
    let (mut read, wanted, deadline) = ([0; 2048], [from.octets(), to.octets()].concat(), Instant::now() + LONG);
    while !tun.read(&mut read).is_ok_and(|_| read[virtio::HEADER_BYTES + 12..][..8] == wanted) {
        assert!(Instant::now() < deadline, "no packet from {from} to {to}");
        std::thread::yield_now();
    }
}

fn sender_of_next(socket: &UdpSocket) -> SocketAddr {
    socket.recv_from(&mut [0; 64]).unwrap().1
}

/// This thread's namespace becomes a gateway of 10.0.0.0/24 with a host 10.0.0.5 beside it.
async fn gateway() -> (Tun, Network, Firewall, Host) {
    sh("ip link set lo up; ip link add lan type veth peer name far");
    let host = Host::new("far");
    sh("ip link set lan up; ip address add 10.0.0.1/24 dev lan; sysctl -qw net.ipv4.ip_forward=1");
    host.run(|| sh("ip link set far up; ip address add 10.0.0.5/24 dev far; ip route add default via 10.0.0.1"));
    let tun = Tun::open("vp-test").unwrap();
    let mut network = Network::open("vp-test").await.unwrap();
    let pool = wanted().pool;
    network.apply(&netlink::Wanted { mtu: 1420, pool, ..netlink::Wanted::default() }).await.unwrap();
    let mut firewall = Firewall::new("vp-test");
    firewall.apply(wanted()).await.unwrap();
    (tun, network, firewall, host)
}

#[test]
fn servers_see_the_gateway_or_the_presence_as_the_service_says() {
    enter_new_network_namespace();
    block_on(async {
        let (tun, _network, mut firewall, host) = gateway().await;
        let (dns, log) = (host.listen("10.0.0.5:53"), host.listen("10.0.0.5:54"));
        write_packet(&tun, "10.0.1.9:5000", "10.0.0.5:53");
        assert_eq!(sender_of_next(&dns).to_string(), "10.0.0.1:5000");
        write_packet(&tun, "10.0.1.9:5000", "10.0.0.5:54");
        assert_eq!(sender_of_next(&log).to_string(), "10.0.1.9:5000");
        // Two callers with one port, and one with the tunnels' port.
        write_packet(&tun, "10.0.1.10:5000", "10.0.0.5:53");
        let second = sender_of_next(&dns);
        assert!(second.ip().to_string() == "10.0.0.1" && second.port() >= 1024 && second.port() != 5000, "{second}");
        write_packet(&tun, "10.0.1.9:51820", "10.0.0.5:53");
        assert_ne!(sender_of_next(&dns).port(), 51820);
        // What came before goes on as it was when the table changes.
        let more = service("more", "10.0.0.0/28", &["udp/50-60"], Source::Masquerade);
        firewall.apply(Wanted { services: [wanted().services, vec![more]].concat(), ..wanted() }).await.unwrap();
        write_packet(&tun, "10.0.1.10:5000", "10.0.0.5:53");
        assert_eq!(sender_of_next(&dns), second);
        write_packet(&tun, "10.0.1.9:5001", "10.0.0.5:54");
        assert_eq!(sender_of_next(&log).to_string(), "10.0.1.9:5001");
    });
}

#[test]
fn nobody_but_the_tun_sends_from_a_presence_and_strangers_do_not_reach_one() {
    enter_new_network_namespace();
    block_on(async {
        let (tun, _network, _firewall, host) = gateway().await;
        let here = UdpSocket::bind("10.0.0.1:7").unwrap();
        here.set_read_timeout(Some(LONG)).unwrap();
        let send = |from: &'static str, to: &'static str| {
            host.run(move || UdpSocket::bind(from).unwrap().send_to(b"x", to).unwrap());
        };
        host.run(|| sh("ip address add 10.0.1.50/32 dev far; ip address add 203.0.113.1/32 dev far"));
        send("10.0.1.50:1", "10.0.0.1:7");
        send("10.0.0.5:1", "10.0.0.1:7");
        assert_eq!(sender_of_next(&here).to_string(), "10.0.0.5:1");
        assert_eq!((packets("spoofed"), packets("elsewhere")), (1, 0));
        send("203.0.113.1:1", "10.0.1.3:7");
        send("10.0.0.5:1", "10.0.1.3:7");
        read_packet(&tun, "10.0.0.5", "10.0.1.3");
        assert_eq!((packets("spoofed"), packets("elsewhere")), (1, 1));
    });
}

#[test]
fn flows_through_the_gateway_keep_long_timers_even_when_the_table_changes() {
    enter_new_network_namespace();
    block_on(async {
        let (tun, _network, mut firewall, host) = gateway().await;
        let dns = host.listen("10.0.0.5:53");
        let seconds_left = || {
            let listing = std::fs::read_to_string("/proc/thread-self/net/nf_conntrack").unwrap_or_default();
            let listing = if listing.is_empty() { sh("conntrack -L -p udp 2>/dev/null") } else { listing };
            let line = listing.lines().find(|line| line.contains("dport=53")).unwrap().to_owned();
            let mut words = line.split_whitespace().skip_while(|word| *word != "17");
            words.nth(1).unwrap().parse::<u32>().unwrap()
        };
        write_packet(&tun, "10.0.1.9:5000", "10.0.0.5:53");
        let gateway = sender_of_next(&dns);
        assert!(seconds_left() > 290);
        firewall.apply(Wanted { own_ports: vec![9107], ..wanted() }).await.unwrap();
        host.run(move || dns.send_to(b"answer", gateway).unwrap());
        read_packet(&tun, "10.0.0.5", "10.0.1.9");
        assert!(seconds_left() > 290);
    });
}

#[test]
fn the_table_comes_back_when_flushed_and_goes_when_removed_and_others_stay() {
    enter_new_network_namespace();
    block_on(async {
        sh("nft add table inet other; nft add table inet vp_vp_test; nft add chain inet vp_vp_test leftover");
        let mut firewall = Firewall::new("vp-test");
        firewall.apply(wanted()).await.unwrap();
        let rules = sh("nft list ruleset");
        assert!(!rules.contains("leftover") && rules.contains("table inet other"), "{rules}");
        assert!(!firewall.restore().await.unwrap());
        sh("nft flush ruleset");
        assert!(firewall.restore().await.unwrap());
        assert_eq!(sh("nft list ruleset"), rules.replace("table inet other {\n}\n", ""));
        sh("nft flush ruleset; nft add table inet other");
        firewall.apply(Wanted { own_ports: vec![], ..wanted() }).await.unwrap();
        assert!(firewall.is_in_place().await.unwrap());
        firewall.remove().await.unwrap();
        assert_eq!(sh("nft list ruleset"), "table inet other {\n}\n");
    });
}

#[test]
fn the_kernel_takes_services_that_overlap_in_any_way() {
    enter_new_network_namespace();
    block_on(async {
        let services = vec![
            service("a", "10.0.0.0/24", &["tcp/80-90", "icmp"], Source::Masquerade),
            service("b", "10.0.0.5 10.0.0.6 fd00::5", &["tcp/85-95", "tcp/86", "udp/53", "icmp"], Source::Masquerade),
            service("c", "10.0.0.5", &["tcp/1-65535"], Source::Masquerade),
            service("d", "10.0.0.7", &["tcp/88"], Source::Presence),
            service("e", "fd00::/64", &["udp/1-65535", "icmp"], Source::Masquerade),
            service("f", "127.0.0.1", &["tcp/22"], Source::Masquerade),
        ];
        let mut firewall = Firewall::new("vp-test");
        firewall.apply(Wanted { services, ..wanted() }).await.unwrap();
        let many = (0..1000).map(|n| format!("10.7.{}.{}", n / 250, n % 250 + 1));
        let many = many.map(|target| service("many", &target, &["tcp/443"], Source::Masquerade)).collect();
        firewall.apply(Wanted { services: many, ..wanted() }).await.unwrap();
    });
}

#[test]
fn a_refusal_carries_the_programs_own_words() {
    enter_new_network_namespace();
    let error = block_on(run("table inet x {\nnonsense\n}\n".to_owned())).unwrap_err().to_string();
    assert!(error.contains("syntax error, unexpected"), "{error}");
}
