//! A gateway with many peers, services, callers and flows, and the far ends of its tunnels, which seal real datagrams.
//! Time passes only here.

#![allow(dead_code)] // each file that uses it uses its own part

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};
use vp::addr::{Family, Identity, Limits, Name, PeerId, Pool, wire};
use vp::catalogue::{Offer, OfferedService};
use vp::node::{Event, Exposure, Mapping, Node, Output, PeerSettings, Settings, Source, Target};
use vp::packet::Offload;
use vp::tunnel::{Opened, Transmits, TunnelSettings, Tunnels};
use x25519_dalek::{PublicKey, StaticSecret};

pub const INNER_MTU: u16 = 1420;
pub const FLOWS_MAX: u32 = 4_500_000;
/// Where the service of this site runs, and what hosts of it call from.
const TARGET: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 10);
/// More handshakes in one second are asked for cookies.
const HANDSHAKES_PER_SECOND: usize = 90;
/// Callers of one peer, fewer than there are wire indices.
pub const CALLERS_PER_PEER: usize = 50_000;
/// Services of one peer.
pub const SERVICES_PER_PEER: usize = 4000;

pub type End = (Ipv4Addr, u16);

/// Both views of a flow, from whoever opened it to whom it called.
#[derive(Clone, Copy)]
pub struct Open {
    pub far: u32,
    pub wire: (End, End),
    pub site: (End, End),
    pub by_site: bool,
}

/// The other end of one tunnel.
pub struct Far {
    pub tunnels: Tunnels,
    pub transmits: Transmits,
    pub endpoint: SocketAddr,
}

pub struct Hub {
    pub node: Node,
    pub output: Output,
    pub fars: Vec<Far>,
    pub now: Instant,
}

const HUB: PeerId = PeerId(0);
const HUB_KEY: [u8; 32] = [9; 32];

pub fn name(text: &str) -> Name {
    Name::new(text).expect("name")
}

fn hub_endpoint() -> SocketAddr {
    "192.0.2.1:7076".parse().expect("endpoint")
}

fn far_key(number: usize) -> StaticSecret {
    let mut key = [7; 32];
    key[8..16].copy_from_slice(&(number as u64).to_le_bytes());
    StaticSecret::from(key)
}

pub fn site_of(number: usize) -> Name {
    name(&format!("site{number}"))
}

/// This many peers that call us, one service for all of them, and a pool of `10.64.0.0/10`.
pub fn settings(peers: usize) -> Settings {
    let peer = |number: usize| PeerSettings {
        identity: Identity { site: site_of(number), tenant: None, groups: Vec::new() },
        public_key: PublicKey::from(&far_key(number)).to_bytes(),
        preshared_key: None,
        endpoint: None,
        carrier: None,
        keepalive_seconds: None,
        stock: false,
        hub: false,
    };
    Settings {
        site: name("hub"),
        pool: Pool::new(vec!["10.64.0.0/10".parse().expect("prefix")]).expect("pool"),
        inner_mtu: INNER_MTU,
        flows_max: FLOWS_MAX,
        second_cipher: true,
        peers: (0..peers).map(peer).collect(),
        clients: Vec::new(),
        exposures: vec![exposure("web")],
        mappings: Vec::new(),
        hub: None,
    }
}

pub fn exposure(service: &str) -> Exposure {
    Exposure {
        name: name(service),
        target: Target::Backends(vec![TARGET.into()]),
        ports: vec!["udp/80".parse().expect("ports")],
        allow: vec!["any".parse().expect("selector")],
        source: Source::Presence,
        limits: Limits::default(),
    }
}

/// Mappings of `count` services, [`SERVICES_PER_PEER`] of each peer.
pub fn mappings(count: usize) -> Vec<Mapping> {
    let service = |n: usize| format!("s{}.{}", n % SERVICES_PER_PEER, site_of(n / SERVICES_PER_PEER));
    let mapping = |n: usize| Mapping {
        service: service(n).parse().expect("service"),
        address: None,
        ports: Vec::new(),
        callers: Vec::new(),
    };
    (0..count).map(mapping).collect()
}

/// `count` services, as a peer offers them.
pub fn offer(count: usize) -> Offer {
    let service = |n: usize| OfferedService {
        name: name(&format!("s{n}")),
        index: wire::FIRST + n as u16,
        host_bits: 0,
        ipv4: true,
        ipv6: false,
        ports: vec!["udp/80".parse().expect("ports")],
        labels: Default::default(),
        healthy: true,
    };
    Offer { services: (0..count).map(service).collect(), ..Offer::default() }
}

/// A UDP datagram of 64 bytes.
pub fn packet(from: End, to: End) -> Vec<u8> {
    let mut packet = vec![0; 64];
    packet[..10].copy_from_slice(&[0x45, 0, 0, 64, 0, 7, 0x40, 0, 64, 17]);
    packet[12..16].copy_from_slice(&from.0.octets());
    packet[16..20].copy_from_slice(&to.0.octets());
    let sum: u32 = packet[..20].chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    packet[10..12].copy_from_slice(&(!((folded & 0xffff) + (folded >> 16)) as u16).to_be_bytes());
    packet[20..22].copy_from_slice(&from.1.to_be_bytes());
    packet[22..24].copy_from_slice(&to.1.to_be_bytes());
    packet[24..26].copy_from_slice(&44u16.to_be_bytes());
    packet
}

impl Open {
    /// As the site sends it.
    pub fn outbound(&self) -> Vec<u8> {
        if self.by_site { packet(self.site.0, self.site.1) } else { packet(self.site.1, self.site.0) }
    }

    /// As the peer sends it, before it is sealed.
    pub fn inbound(&self) -> Vec<u8> {
        if self.by_site { packet(self.wire.1, self.wire.0) } else { packet(self.wire.0, self.wire.1) }
    }
}

impl Far {
    pub fn new(number: usize, now: Instant) -> Self {
        let mut tunnels = Tunnels::new(far_key(number), number as u64 + 1, now);
        let hub = TunnelSettings {
            public_key: PublicKey::from(&StaticSecret::from(HUB_KEY)).to_bytes(),
            preshared_key: None,
            endpoint: Some(hub_endpoint()),
            carrier: None,
            keepalive_seconds: None,
            held: false,
            second_cipher: true,
        };
        tunnels.add(HUB, hub, now).expect("settings");
        let endpoint = SocketAddr::new(Ipv4Addr::from(0x6440_0000 + number as u32).into(), 7076);
        Self { tunnels, transmits: Transmits::new(2048), endpoint }
    }

    /// The inner packet as one datagram to the hub.
    pub fn seal(&mut self, inner: &[u8], now: Instant) -> Vec<u8> {
        self.tunnels.seal(HUB, inner, INNER_MTU, &mut self.transmits, now).expect("sealed");
        let datagram = self.transmits.batches().map(|(_, bytes)| bytes.to_vec()).next().expect("one datagram");
        self.transmits.clear();
        datagram
    }
}

impl Hub {
    pub fn new(settings: Settings, now: Instant) -> Self {
        let node = Node::new(settings, Vec::new(), StaticSecret::from(HUB_KEY), 1, now).expect("settings");
        let mut hub = Self { node, output: Output::new(1 << 20, 1 << 20), fars: Vec::new(), now };
        hub.settle();
        hub
    }

    /// Sessions with the first `count` peers.
    pub fn connect(&mut self, count: usize) {
        for number in self.fars.len()..count {
            if number % HANDSHAKES_PER_SECOND == HANDSHAKES_PER_SECOND - 1 {
                self.now += Duration::from_secs(1);
            }
            let mut far = Far::new(number, self.now);
            let Far { tunnels, transmits, endpoint } = &mut far;
            tunnels.seal(HUB, &[], INNER_MTU, transmits, self.now).expect("queued");
            let mut into = [0; 2048];
            while !transmits.is_empty() {
                let datagrams: Vec<Vec<u8>> = datagrams(transmits);
                transmits.clear();
                for datagram in datagrams {
                    let stride = datagram.len();
                    self.node.handle_datagrams(*endpoint, &datagram, stride, &mut self.output, self.now);
                }
                for answer in datagrams_to(&self.output.transmits, *endpoint) {
                    let opened = tunnels.open(hub_endpoint(), &answer, &mut into, transmits, self.now);
                    assert_eq!(opened, Opened::Nothing);
                }
                self.output.clear();
            }
            assert!(tunnels.is_up(HUB));
            self.settle();
            self.fars.push(far);
        }
    }

    /// Callers of the peers' sites open flows to this site's service, spread over `callers` of them.
    pub fn open_inbound(&mut self, flows: usize, callers: usize) -> Vec<Open> {
        (0..flows).map(|n| self.open_one_inbound(n % callers, (n / callers) as u16)).collect()
    }

    /// The `caller`th of all peers' callers: those of the first peer first, then those of the next.
    pub fn open_one_inbound(&mut self, caller: usize, port: u16) -> Open {
        let far = caller / CALLERS_PER_PEER;
        let index = wire::FIRST + (caller % CALLERS_PER_PEER) as u16;
        self.open_from(far, index, port)
    }

    pub fn open_from(&mut self, far: usize, index: u16, port: u16) -> Open {
        let wire = ((v4(wire::caller(Family::V4, index)), port), (v4(wire::service(Family::V4, wire::FIRST)), 80));
        self.receive(far, &packet(wire.0, wire.1));
        let presence = {
            let delivery = self.output.joiner.deliveries().next().expect("delivered");
            let header = delivery.slices().next().expect("header").to_vec();
            Ipv4Addr::new(header[12], header[13], header[14], header[15])
        };
        self.settle();
        let site = ((presence, port), (TARGET, 80));
        let open = Open { far: far as u32, wire, site, by_site: false };
        self.send(&open);
        open
    }

    /// A host of this site opens a flow to the `service`th service of a peer, mapped at `presence`.
    pub fn open_outbound(&mut self, far: usize, service: u16, presence: Ipv4Addr, port: u16) -> Open {
        let site = ((TARGET, port), (presence, 80));
        let caller = (v4(wire::caller(Family::V4, wire::FIRST)), port);
        let wire = (caller, (v4(wire::service(Family::V4, wire::FIRST + service)), 80));
        let open = Open { far: far as u32, wire, site, by_site: true };
        self.send(&open);
        self.receive(far, &open.inbound());
        self.settle();
        open
    }

    fn send(&mut self, open: &Open) {
        self.node.handle_packet(&mut open.outbound(), Offload::default(), &mut self.output, self.now);
        assert!(!self.output.transmits.is_empty(), "sealed");
        self.settle();
    }

    fn receive(&mut self, far: usize, inner: &[u8]) {
        let datagram = self.fars[far].seal(inner, self.now);
        let stride = datagram.len();
        let from = self.fars[far].endpoint;
        self.node.handle_datagrams(from, &datagram, stride, &mut self.output, self.now);
        self.node.handle_batch_end(&mut self.output, self.now);
        assert_eq!(self.output.joiner.deliveries().count(), 1, "delivered");
    }

    /// Does what the shell does after each batch.
    pub fn settle(&mut self) {
        while self.node.poll_event().is_some() {}
        self.output.clear();
    }

    /// Lets time pass for the hub alone, as its timers want. Returns how often they did.
    pub fn idle(&mut self, time: Duration) -> usize {
        let end = self.now + time;
        let mut calls = 0;
        while let Some(next) = self.node.poll_timeout().filter(|next| *next <= end) {
            self.now = next.max(self.now);
            self.node.handle_timeout(&mut self.output, self.now);
            self.settle();
            calls += 1;
        }
        self.now = end;
        calls
    }

    /// What became of the peers' sessions since the last call.
    pub fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.node.poll_event()).collect()
    }
}

pub fn v4(address: IpAddr) -> Ipv4Addr {
    match address {
        IpAddr::V4(address) => address,
        IpAddr::V6(_) => panic!("{address} is IPv6"),
    }
}

fn datagrams(transmits: &Transmits) -> Vec<Vec<u8>> {
    transmits.batches().flat_map(|(batch, bytes)| bytes.chunks(batch.segment_bytes).map(<[u8]>::to_vec)).collect()
}

fn datagrams_to(transmits: &Transmits, to: SocketAddr) -> Vec<Vec<u8>> {
    let batches = transmits.batches().filter(|(batch, _)| batch.to == to);
    batches.flat_map(|(batch, bytes)| bytes.chunks(batch.segment_bytes).map(<[u8]>::to_vec)).collect()
}
