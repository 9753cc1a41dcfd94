//! A simulator: nodes on a wire with delay, loss, reordering, duplication and a small MTU; time passes only here.

#![allow(dead_code)] // each test file uses its own part

use etherparse::PacketBuilder;
use std::collections::{BTreeMap, BinaryHeap};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};
use vp::addr::{Grant, Identity, Limits, Name, PeerId, Pool, PortRange};
use vp::node::{Client, Event, Exposure, Mapping, Node, Output, PeerSettings, Reason, Settings, Source, Target};
use vp::packet::Offload;
use x25519_dalek::{PublicKey, StaticSecret};

pub const INNER_MTU: u16 = 1420;

pub fn name(text: &str) -> Name {
    Name::new(text).expect("name")
}

pub fn address(text: &str) -> IpAddr {
    text.parse().expect("address")
}

pub fn key(seed: u8) -> StaticSecret {
    StaticSecret::from([seed; 32])
}

/// How the wire treats datagrams. Chances are out of 1000.
#[derive(Clone, Copy, Default)]
pub struct Weather {
    pub delay: Duration,
    pub jitter: Duration,
    pub loss: u32,
    pub duplicates: u32,
    pub mtu: Option<usize>,
}

pub struct Gateway {
    pub node: Node,
    pub output: Output,
    pub endpoint: SocketAddr,
    pub peers: BTreeMap<Name, PeerId>,
    /// What came out of the TUN, as whole packets.
    pub delivered: Vec<Vec<u8>>,
    pub journal: Vec<Grant>,
    pub events: Vec<Event>,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct InFlight {
    arrives: std::cmp::Reverse<(Instant, u64)>,
    from: SocketAddr,
    to: SocketAddr,
    bytes: Vec<u8>,
}

pub struct World {
    pub now: Instant,
    pub weather: Weather,
    pub gateways: BTreeMap<&'static str, Gateway>,
    wire: BinaryHeap<InFlight>,
    sent: u64,
    random: u64,
    /// Every datagram that was on the wire.
    pub seen: Vec<Vec<u8>>,
}

/// A site's settings, to be changed before it starts.
pub fn settings(site: &str, pool: &[&str]) -> Settings {
    Settings {
        site: name(site),
        pool: Pool::new(pool.iter().map(|p| p.parse().expect("prefix")).collect()).expect("pool"),
        inner_mtu: INNER_MTU,
        flows_max: 10_000,
        second_cipher: true,
        peers: Vec::new(),
        clients: Vec::new(),
        exposures: Vec::new(),
        mappings: Vec::new(),
        hub: None,
    }
}

pub fn peer(site: &str, seed: u8, endpoint: Option<&str>) -> PeerSettings {
    PeerSettings {
        identity: Identity { site: name(site), tenant: None, groups: Vec::new() },
        public_key: PublicKey::from(&key(seed)).to_bytes(),
        preshared_key: None,
        endpoint: endpoint.map(|e| e.parse().expect("endpoint")),
        carrier: None,
        keepalive_seconds: endpoint.map(|_| 25),
        stock: false,
        hub: false,
    }
}

pub fn exposure(service: &str, target: &str, ports: &[&str], allow: &[&str]) -> Exposure {
    let target = match target.contains('/') {
        true => Target::Prefix(target.parse().expect("prefix")),
        false => Target::Backends(target.split(',').map(address).collect()),
    };
    Exposure {
        name: name(service),
        target,
        ports: ports.iter().map(|p| p.parse().expect("ports")).collect::<Vec<PortRange>>(),
        allow: allow.iter().map(|a| a.parse().expect("selector")).collect(),
        source: Source::Presence,
        limits: Limits::default(),
    }
}

pub fn mapping(service: &str) -> Mapping {
    Mapping { service: service.parse().expect("service"), address: None, ports: Vec::new(), callers: Vec::new() }
}

pub fn client(client: &str, host: &str) -> Client {
    Client { name: name(client), addresses: vec![address(host)] }
}

impl World {
    pub fn new() -> Self {
        Self {
            now: Instant::now(),
            weather: Weather { delay: Duration::from_millis(5), ..Weather::default() },
            gateways: BTreeMap::new(),
            wire: BinaryHeap::new(),
            sent: 0,
            random: 0x9e37_79b9_7f4a_7c15,
            seen: Vec::new(),
        }
    }

    /// Starts (or starts again) a gateway with what its journal holds.
    pub fn start(&mut self, site: &'static str, endpoint: &str, seed: u8, settings: Settings) {
        let leases = self.gateways.remove(site).map_or_else(Vec::new, |old| old.journal);
        let node = Node::new(settings, leases.clone(), key(seed), seed.into(), self.now).expect("settings");
        let peers = node.peer_settings().map(|(id, peer)| (peer.identity.site.clone(), id)).collect();
        let output = Output::new(1 << 20, 1 << 20);
        let endpoint = endpoint.parse().expect("endpoint");
        let gateway =
            Gateway { node, output, endpoint, peers, delivered: Vec::new(), journal: leases, events: Vec::new() };
        self.gateways.insert(site, gateway);
        self.settle(site);
    }

    pub fn gateway(&mut self, site: &str) -> &mut Gateway {
        self.gateways.get_mut(site).expect("site")
    }

    /// Each peer learns what the other offers, as the control channel would tell it.
    pub fn exchange_offers(&mut self) {
        let sites: Vec<&'static str> = self.gateways.keys().copied().collect();
        for from in &sites {
            for to in &sites {
                let Some(peer) = self.gateways[from].peers.get(&name(to)).copied() else { continue };
                let offer = self.gateways[from].node.offer(peer);
                let now = self.now;
                let gateway = self.gateway(to);
                let Some(back) = gateway.peers.get(&name(from)).copied() else { continue };
                gateway.node.set_offer(back, offer, now).expect("offer");
                self.settle(to);
            }
        }
    }

    /// A host of the site sends a packet into the TUN.
    pub fn send(&mut self, site: &str, packet: &[u8]) {
        self.send_offloaded(site, packet, Offload::default());
    }

    pub fn send_offloaded(&mut self, site: &str, packet: &[u8], offload: Offload) {
        let now = self.now;
        let gateway = self.gateway(site);
        gateway.node.handle_packet(&mut packet.to_vec(), offload, &mut gateway.output, now);
        self.settle(site);
    }

    /// Lets time pass, with everything that happens in it.
    pub fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let arrival = self.wire.peek().map(|next| next.arrives.0.0);
            let timers = self.gateways.values().filter_map(|g| g.node.poll_timeout()).min();
            let next = [arrival, timers].into_iter().flatten().min().filter(|next| *next <= end);
            let Some(next) = next else { break };
            // A timer that wants to be called at once still lets a little time pass.
            self.now = next.max(self.now + Duration::from_micros(1)).min(end);
            self.deliver_due();
            self.fire_timers();
            if self.now >= end {
                break;
            }
        }
        self.now = end;
    }

    fn deliver_due(&mut self) {
        while self.wire.peek().is_some_and(|next| next.arrives.0.0 <= self.now) {
            let Some(datagram) = self.wire.pop() else { break };
            let to = self.gateways.iter().find(|(_, g)| g.endpoint == datagram.to).map(|(site, _)| *site);
            let Some(site) = to else { continue };
            let now = self.now;
            let gateway = self.gateway(site);
            let stride = datagram.bytes.len();
            let from = datagram.from;
            gateway.node.handle_datagrams(from, &datagram.bytes, stride, &mut gateway.output, now);
            gateway.node.handle_batch_end(&mut gateway.output, now);
            self.settle(site);
        }
    }

    fn fire_timers(&mut self) {
        let now = self.now;
        let sites: Vec<&'static str> = self.gateways.keys().copied().collect();
        for site in sites {
            let gateway = self.gateway(site);
            if gateway.node.poll_timeout().is_some_and(|at| at <= now) {
                gateway.node.handle_timeout(&mut gateway.output, now);
                self.settle(site);
            }
        }
    }

    /// Does what the shell does after each batch.
    pub fn settle(&mut self, site: &str) {
        let gateway = self.gateways.get_mut(site).expect("site");
        while let Some(event) = gateway.node.poll_event() {
            match &event {
                Event::Granted(grant) => gateway.journal.push(grant.clone()),
                Event::Released(grant) => gateway.journal.retain(|kept| kept != grant),
                _ => {}
            }
            gateway.events.push(event);
        }
        let from = gateway.endpoint;
        for delivery in gateway.output.joiner.deliveries() {
            let packet: Vec<u8> = delivery.slices().flatten().copied().collect();
            gateway.delivered.push(packet);
        }
        gateway.delivered.append(&mut gateway.output.packets);
        let mut datagrams = Vec::new();
        for (batch, bytes) in gateway.output.transmits.batches() {
            datagrams.extend(bytes.chunks(batch.segment_bytes).map(|bytes| (batch.to, bytes.to_vec())));
        }
        gateway.output.clear();
        for (to, bytes) in datagrams {
            self.carry(from, to, bytes);
        }
    }

    fn carry(&mut self, from: SocketAddr, to: SocketAddr, bytes: Vec<u8>) {
        self.seen.push(bytes.clone());
        let Weather { delay, jitter, loss, duplicates, mtu } = self.weather;
        if mtu.is_some_and(|mtu| bytes.len() + 28 > mtu) || self.chance(loss) {
            return;
        }
        let copies = if self.chance(duplicates) { 2 } else { 1 };
        for _ in 0..copies {
            let extra = self.below(jitter.as_micros().try_into().unwrap_or(u64::MAX).max(1));
            let arrives = self.now + delay + Duration::from_micros(extra);
            self.sent += 1;
            self.wire.push(InFlight {
                arrives: std::cmp::Reverse((arrives, self.sent)),
                from,
                to,
                bytes: bytes.clone(),
            });
        }
    }

    fn chance(&mut self, of_1000: u32) -> bool {
        self.below(1000) < u64::from(of_1000)
    }

    /// xorshift64*: a seed makes a run repeatable.
    fn below(&mut self, limit: u64) -> u64 {
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        (self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % limit.max(1)
    }
}

impl Gateway {
    pub fn drops(&self, reason: Reason) -> u64 {
        self.node.drops().of(reason)
    }

    pub fn all_drops(&self) -> Vec<(&'static str, u64)> {
        Reason::ALL.iter().map(|r| (r.word(), self.drops(*r))).filter(|(_, count)| *count > 0).collect()
    }

    /// The local address of a service.
    pub fn presence(&self, service: &str) -> IpAddr {
        let presences = self.node.presences();
        let found =
            presences.iter().find(|p| p.service == service).unwrap_or_else(|| panic!("{service} is not mapped"));
        address(&found.address)
    }

    /// What was delivered since the last call.
    pub fn take_delivered(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.delivered)
    }

    pub fn take_one(&mut self) -> Vec<u8> {
        let mut delivered = self.take_delivered();
        assert_eq!(delivered.len(), 1, "one packet; drops: {:?}", self.all_drops());
        delivered.remove(0)
    }
}

/// A TCP segment or UDP datagram, both families.
pub fn tcp(
    from: (IpAddr, u16),
    to: (IpAddr, u16),
    flags: &str,
    sequence: u32,
    acknowledgment: u32,
    payload: &[u8],
) -> Vec<u8> {
    let mut header = etherparse::TcpHeader::new(from.1, to.1, sequence, 64_000);
    header.syn = flags.contains('S');
    header.ack = flags.contains('A');
    header.fin = flags.contains('F');
    header.rst = flags.contains('R');
    header.psh = flags.contains('P');
    header.acknowledgment_number = acknowledgment;
    if header.syn {
        header.set_options(&[etherparse::TcpOptionElement::MaximumSegmentSize(1460)]).expect("options");
    }
    let mut packet = Vec::new();
    let builder = ip(from.0, to.0, 64);
    builder.tcp_header(header).write(&mut packet, payload).expect("packet");
    packet
}

pub fn udp(from: (IpAddr, u16), to: (IpAddr, u16), payload: &[u8]) -> Vec<u8> {
    let mut packet = Vec::new();
    ip(from.0, to.0, 64).udp(from.1, to.1).write(&mut packet, payload).expect("packet");
    packet
}

pub fn ping(from: IpAddr, to: IpAddr, id: u16, hops: u8) -> Vec<u8> {
    let mut packet = Vec::new();
    let builder = ip(from, to, hops);
    match from {
        IpAddr::V4(_) => builder.icmpv4_echo_request(id, 1).write(&mut packet, b"ping").expect("packet"),
        IpAddr::V6(_) => builder.icmpv6_echo_request(id, 1).write(&mut packet, b"ping").expect("packet"),
    }
    packet
}

pub fn ip(from: IpAddr, to: IpAddr, hops: u8) -> etherparse::PacketBuilderStep<etherparse::IpHeaders> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ip(etherparse::IpHeaders::Ipv4(
            etherparse::Ipv4Header {
                time_to_live: hops,
                dont_fragment: true,
                source: from.octets(),
                destination: to.octets(),
                identification: 7,
                ..Default::default()
            },
            Default::default(),
        )),
        (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ip(etherparse::IpHeaders::Ipv6(
            etherparse::Ipv6Header {
                hop_limit: hops,
                source: from.octets(),
                destination: to.octets(),
                ..Default::default()
            },
            Default::default(),
        )),
        _ => panic!("one family"),
    }
}

/// Source, destination and their ports, and the payload, with every checksum verified.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seen {
    pub from: (IpAddr, u16),
    pub to: (IpAddr, u16),
    pub hops: u8,
    pub flags: String,
    pub sequence: u32,
    pub acknowledgment: u32,
    pub mss: Option<u16>,
    pub payload: Vec<u8>,
}

pub fn read(packet: &[u8]) -> Seen {
    let sliced = etherparse::SlicedPacket::from_ip(packet).expect("valid packet");
    let (from, to, hops) = match sliced.net.as_ref().expect("ip") {
        etherparse::NetSlice::Ipv4(ip) => {
            let header = ip.header().to_header();
            assert_eq!(header.calc_header_checksum(), header.header_checksum, "IPv4 header checksum");
            (IpAddr::from(header.source), IpAddr::from(header.destination), header.time_to_live)
        }
        etherparse::NetSlice::Ipv6(ip) => {
            let header = ip.header().to_header();
            (IpAddr::from(header.source), IpAddr::from(header.destination), header.hop_limit)
        }
        other => panic!("{other:?}"),
    };
    let mut seen = Seen {
        from: (from, 0),
        to: (to, 0),
        hops,
        flags: String::new(),
        sequence: 0,
        acknowledgment: 0,
        mss: None,
        payload: Vec::new(),
    };
    match sliced.transport.as_ref().expect("layer 4") {
        etherparse::TransportSlice::Tcp(tcp) => {
            let header = tcp.to_header();
            (seen.from.1, seen.to.1) = (header.source_port, header.destination_port);
            let flags = [('S', header.syn), ('A', header.ack), ('F', header.fin), ('R', header.rst)];
            seen.flags = flags.iter().filter(|(_, set)| *set).map(|(flag, _)| *flag).collect();
            (seen.sequence, seen.acknowledgment) = (header.sequence_number, header.acknowledgment_number);
            seen.mss = header.options_iterator().find_map(|option| match option {
                Ok(etherparse::TcpOptionElement::MaximumSegmentSize(mss)) => Some(mss),
                _ => None,
            });
            seen.payload = tcp.payload().to_vec();
            check(from, to, header.checksum, &header, tcp.payload());
        }
        etherparse::TransportSlice::Udp(udp) => {
            (seen.from.1, seen.to.1) = (udp.source_port(), udp.destination_port());
            seen.payload = udp.payload().to_vec();
            if udp.checksum() != 0 {
                let header = udp.to_header();
                let right = match (from, to) {
                    (IpAddr::V4(a), IpAddr::V4(b)) => {
                        header.calc_checksum_ipv4_raw(a.octets(), b.octets(), udp.payload())
                    }
                    (IpAddr::V6(a), IpAddr::V6(b)) => {
                        header.calc_checksum_ipv6_raw(a.octets(), b.octets(), udp.payload())
                    }
                    _ => panic!("one family"),
                };
                assert_eq!(right.expect("length"), udp.checksum(), "UDP checksum");
            }
        }
        etherparse::TransportSlice::Igmp(_) => panic!("IGMP"),
        etherparse::TransportSlice::Icmpv4(icmp) => {
            let header = icmp.header();
            assert_eq!(header.icmp_type.calc_checksum(icmp.payload()), header.checksum, "ICMP checksum");
            seen.flags = format!("{:?}", header.icmp_type).split('(').next().unwrap_or_default().to_owned();
            seen.payload = icmp.payload().to_vec();
        }
        etherparse::TransportSlice::Icmpv6(icmp) => {
            let header = icmp.header();
            let (IpAddr::V6(a), IpAddr::V6(b)) = (from, to) else { panic!("one family") };
            let right = header.icmp_type.calc_checksum(a.octets(), b.octets(), icmp.payload()).expect("length");
            assert_eq!(right, header.checksum, "ICMPv6 checksum");
            seen.flags = format!("{:?}", header.icmp_type).split('(').next().unwrap_or_default().to_owned();
            seen.payload = icmp.payload().to_vec();
        }
    }
    seen
}

fn check(from: IpAddr, to: IpAddr, checksum: u16, header: &etherparse::TcpHeader, payload: &[u8]) {
    let right = match (from, to) {
        (IpAddr::V4(a), IpAddr::V4(b)) => header.calc_checksum_ipv4_raw(a.octets(), b.octets(), payload),
        (IpAddr::V6(a), IpAddr::V6(b)) => header.calc_checksum_ipv6_raw(a.octets(), b.octets(), payload),
        _ => panic!("one family"),
    };
    assert_eq!(right.expect("length"), checksum, "TCP checksum");
}
