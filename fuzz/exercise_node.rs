//! What the `datagram` target does with its input: the bytes meet a whole gateway, as a stranger's and as a peer's. The
//! tests replay the corpus through the same function.
//!
//!     10.0.0.0/24 --[gateway "cloud", pool 10.0.9.0/24]==+== factory: may use web and rack, offers plant and line
//!                                                        +== office: a peer that may use nothing
//!                                                        +== depot: a peer without a session

use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::{Packet as Message, Tunn};
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};
use vp::addr::{Identity, Limits, Name, PeerId, Pool, PortRange, Protocol, wire};
use vp::catalogue::{NamedCaller, Offer, OfferedService};
use vp::node::{Client, Exposure, Mapping, Node, Output, PeerSettings, Settings, Source, Target};
use vp::packet::{self, Kind, Offload, Packet, virtio};
use vp::tunnel::{Opened, Transmits, TunnelSettings, Tunnels};
use x25519_dalek::{PublicKey, StaticSecret};

const INNER_MTU: u16 = 1420;
/// A cookie reply, and the answer to an initiation.
const COOKIE_BYTES: usize = 64;
const RESPONSE_BYTES: usize = 92;
/// More handshake messages than a gateway takes in a second before it is under load.
const FLOOD: usize = 110;
/// Of one input.
const PACKETS_MAX: usize = 48;
const BYTES_MAX: usize = 4096;
const GATEWAY_KEY: u8 = 1;
const PEERS: [(&str, u8); 3] = [("factory", 2), ("office", 3), ("depot", 4)];
/// The bytes as messages of the network; as packets inside the tunnel of a peer that may use something; of one that may
/// not; and as packets of both sites in turn. How many packets left the gateway.
pub fn datagram(bytes: &[u8]) -> usize {
    let bytes = &bytes[..bytes.len().min(BYTES_MAX)];
    if bytes.is_empty() {
        return 0;
    }
    let mut world = World::new();
    world.as_messages(bytes);
    let packets = cut(bytes);
    world.joined(&packets);
    // A session costs more than all the rest, so the office has one only for what is good for something.
    if world.given.packets > 0 {
        world.as_office(&packets);
    }
    world.in_turn(&packets);
    world.given.packets
}

struct World {
    node: Node,
    output: Output,
    factory: FarEnd,
    office: FarEnd,
    now: Instant,
    /// Whoever sent a packet at the site's door may be answered there.
    callers: BTreeSet<IpAddr>,
    fed: Size,
    given: Size,
}

#[derive(Default, Debug)]
struct Size {
    packets: usize,
    bytes: usize,
}

impl Size {
    fn add(&mut self, bytes: usize) {
        self.packets += 1;
        self.bytes += bytes;
    }
}

/// The other gateway of a tunnel, whose inner packets are the input.
struct FarEnd {
    peer: PeerId,
    tunnels: Tunnels,
    transmits: Transmits,
    address: SocketAddr,
}

impl World {
    fn new() -> Self {
        let now = Instant::now();
        let node = Node::new(settings(), Vec::new(), key(GATEWAY_KEY), 1, now).expect("settings");
        let output = Output::new(1 << 16, 1 << 16);
        let [factory, office] = [(0, "192.0.2.2:40000"), (1, "[2001:db8::3]:51820")]
            .map(|(number, address)| FarEnd::new(PeerId(number), PEERS[number as usize].1, address, now));
        let (callers, fed, given) = (BTreeSet::new(), Size::default(), Size::default());
        let mut world = Self { node, output, factory, office, now, callers, fed, given };
        world.factory.connect(&mut world.node, &mut world.output, now);
        world.node.set_offer(PeerId(0), offer(), now).expect("a peer");
        while world.node.poll_event().is_some() {}
        world
    }

    /// From strangers and from where peers are, as one datagram and as several joined. No key made them, so nothing comes of
    /// it; but a depot's initiation, recorded, is answered, and who floods the gateway is asked to prove his address.
    fn as_messages(&mut self, bytes: &[u8]) {
        let strangers = ["198.51.100.9:1", "[2001:db8::9]:53"].map(|text| text.parse().expect("address"));
        for from in [strangers[0], strangers[1], self.factory.address, self.office.address] {
            for stride in [bytes.len(), 148, 1 + bytes.len() / 2] {
                self.as_message(from, &mut bytes.to_vec(), stride);
            }
        }
        if bytes.len() == 148 || bytes.len() == RESPONSE_BYTES {
            self.as_message(strangers[0], &mut bytes.repeat(FLOOD), bytes.len());
        }
    }

    fn as_message(&mut self, from: SocketAddr, message: &mut [u8], stride: usize) {
        self.receive(from, message, stride);
        let answers = sent(&self.output);
        for (to, answer) in &answers {
            assert_eq!(*to, from, "an answer to another");
            let is_cookie = answer.len() == COOKIE_BYTES && message.len() >= FLOOD * RESPONSE_BYTES;
            let is_response = answer.len() == RESPONSE_BYTES && message.chunks(stride).any(is_of_a_peer);
            assert!(is_cookie || is_response, "{answer:02x?}");
        }
        assert!(answers.iter().map(|(_, answer)| answer.len()).sum::<usize>() <= message.len(), "amplified");
        self.output.transmits.clear();
        self.nothing();
        self.now += Duration::from_secs(1);
    }

    fn receive(&mut self, from: SocketAddr, message: &mut [u8], stride: usize) {
        self.node.handle_datagrams(from, message, stride, &mut self.output, self.now);
        self.node.handle_batch_end(&mut self.output, self.now);
    }

    /// Nothing leaves, and there is nothing to tell.
    fn nothing(&mut self) {
        assert_eq!(self.output.joiner.deliveries().count(), 0);
        assert!(self.output.packets.is_empty() && self.output.transmits.is_empty());
        assert!(self.node.poll_event().is_none());
        self.output.clear();
    }

    /// The packets of a peer with a good key that is allowed nothing: neither delivered nor answered, also where the
    /// factory has such a flow.
    fn as_office(&mut self, packets: &[Vec<u8>]) {
        self.office.connect(&mut self.node, &mut self.output, self.now);
        packets.iter().for_each(|packet| self.office.seal(packet, self.now));
        for (mut message, stride) in self.office.take() {
            self.receive(self.office.address, &mut message, stride);
            while self.node.poll_event().is_some() {}
            self.nothing();
        }
    }

    /// All of the factory's packets in one batch. Cut wrongly they are nothing, and a second time they are replays.
    fn joined(&mut self, packets: &[Vec<u8>]) {
        packets.iter().for_each(|packet| self.queue(packet));
        let (messages, from) = (self.factory.take(), self.factory.address);
        for (message, stride) in messages.iter().filter(|(message, stride)| message.len() > *stride) {
            self.receive(from, &mut message.clone(), stride + 1);
            self.nothing();
        }
        for (message, stride) in &messages {
            self.node.handle_datagrams(from, message, *stride, &mut self.output, self.now);
        }
        self.node.handle_batch_end(&mut self.output, self.now);
        self.settle();
        for (mut message, stride) in messages {
            self.receive(from, &mut message, stride);
            self.nothing();
        }
    }

    /// Each packet at the site's door and at the factory's, with the checksum of its IPv4 header mended, so that what is
    /// behind that check is reached.
    fn in_turn(&mut self, packets: &[Vec<u8>]) {
        for packet in packets {
            let mut packet = packet.clone();
            mend(&mut packet);
            if let Ok(parsed) = Packet::parse(&mut packet.clone(), Offload::default()) {
                self.callers.insert(parsed.head.tuple.source);
            }
            self.fed.add(packet.len());
            self.node.handle_packet(&mut packet.clone(), Offload::default(), &mut self.output, self.now);
            self.settle();
            self.queue(&packet);
            for (mut message, stride) in self.factory.take() {
                self.receive(self.factory.address, &mut message, stride);
            }
            self.settle();
            self.now += Duration::from_millis(20);
        }
        self.now += Duration::from_secs(40);
        self.node.handle_timeout(&mut self.output, self.now);
        self.settle();
    }

    fn queue(&mut self, packet: &[u8]) {
        self.fed.add(packet.len());
        self.factory.seal(packet, self.now);
    }

    /// What the shell does after a batch; and what must hold of everything that leaves.
    fn settle(&mut self) {
        while self.node.poll_event().is_some() {}
        let plain = Offload::default();
        let mut delivered: Vec<_> = self.output.packets.drain(..).map(|bytes| (bytes, plain)).collect();
        for delivery in self.output.joiner.deliveries() {
            let offload = virtio::decode(&delivery.virtio).expect("our own header");
            delivered.push((delivery.slices().flatten().copied().collect(), offload));
        }
        for (mut bytes, offload) in delivered {
            self.given.add(bytes.len());
            let packet = Packet::parse(&mut bytes, offload).expect("a delivery is a packet");
            assert!(self.may_deliver(&packet), "delivered {:?}", packet.head);
        }
        for (to, bytes) in sent(&self.output) {
            let far = if to == self.factory.address { &mut self.factory } else { &mut self.office };
            assert_eq!(to, far.address);
            let Some(mut inner) = far.open(&bytes, self.now) else { continue };
            assert_eq!(to, self.factory.address, "to a peer that offers nothing and may use nothing");
            self.given.add(inner.len());
            only_wire_addresses(&Packet::parse(&mut inner, plain).expect("what is sent is a packet"));
        }
        self.output.clear();
        let (fed, given) = (&self.fed, &self.given);
        assert!(given.packets <= 2 * fed.packets + fed.bytes / 1000, "{fed:?} became {given:?}");
        assert!(given.bytes <= 2 * fed.bytes + 1500 * fed.packets, "{fed:?} became {given:?}");
    }

    /// To what is exposed, or to whoever spoke first; and from a presence, unless it is an answer of the gateway's own.
    fn may_deliver(&self, packet: &Packet) -> bool {
        let tuple = packet.head.tuple;
        let settings = self.node.settings();
        let is_target = |exposure: &Exposure| match &exposure.target {
            Target::Backends(backends) => backends.contains(&tuple.destination),
            Target::Prefix(prefix) => prefix.contains(&tuple.destination),
        };
        let protocol = Protocol::from_number(tuple.protocol);
        let is_port = |exposure: &Exposure| match packet.head.kind {
            Kind::Tcp(_) | Kind::Udp | Kind::EchoRequest | Kind::EchoReply => {
                protocol.is_some_and(|p| exposure.ports.iter().any(|range| range.contains(p, tuple.destination_port)))
            }
            Kind::IcmpError | Kind::FragmentTail => true,
        };
        let is_exposed = settings.exposures.iter().any(|exposure| is_target(exposure) && is_port(exposure));
        let is_caller = self.callers.contains(&tuple.destination);
        is_caller || is_exposed && settings.pool.contains(tuple.source)
    }
}

/// No site learns an address of the other.
fn only_wire_addresses(packet: &Packet) {
    let tuple = packet.head.tuple;
    let mut addresses = vec![tuple.source, tuple.destination];
    if packet.head.kind == Kind::IcmpError {
        let quoted = packet::quote(packet).expect("a quote").tuple;
        addresses.extend([quoted.source, quoted.destination]);
    }
    assert!(addresses.iter().all(|address| wire::parse(*address).is_some()), "{addresses:?}");
}

impl FarEnd {
    fn new(peer: PeerId, seed: u8, address: &str, now: Instant) -> Self {
        let mut tunnels = Tunnels::new(key(seed), seed.into(), now);
        let settings = TunnelSettings {
            public_key: public(GATEWAY_KEY),
            preshared_key: None,
            endpoint: Some("192.0.2.1:51820".parse().expect("address")),
            carrier: None,
            keepalive_seconds: None,
            held: false,
            second_cipher: false,
        };
        tunnels.add(peer, settings, now).expect("a peer");
        Self { peer, tunnels, transmits: Transmits::new(1 << 15), address: address.parse().expect("address") }
    }

    fn connect(&mut self, node: &mut Node, output: &mut Output, now: Instant) {
        self.seal(&[], now);
        while !self.transmits.is_empty() {
            for (message, stride) in self.take() {
                node.handle_datagrams(self.address, &message, stride, output, now);
            }
            for (_, answer) in sent(output) {
                self.open(&answer, now);
            }
            output.clear();
        }
        assert!(self.tunnels.is_up(self.peer));
    }

    fn seal(&mut self, packet: &[u8], now: Instant) {
        self.tunnels.seal(self.peer, packet, INNER_MTU, &mut self.transmits, now).expect("room");
    }

    /// The messages that wait, each with its stride.
    fn take(&mut self) -> Vec<(Vec<u8>, usize)> {
        let messages = self.transmits.batches().map(|(batch, bytes)| (bytes.to_vec(), batch.segment_bytes)).collect();
        self.transmits.clear();
        messages
    }

    /// The packet in a datagram of the gateway.
    fn open(&mut self, datagram: &[u8], now: Instant) -> Option<Vec<u8>> {
        let mut into = vec![0; 2048];
        let from: SocketAddr = "192.0.2.1:51820".parse().expect("address");
        match self.tunnels.open(from, datagram, &mut into, &mut self.transmits, now) {
            Opened::Packet { bytes, .. } => Some(into[..bytes].to_vec()),
            Opened::Nothing => None,
            Opened::Dropped(error) => panic!("the gateway sent what its peer drops: {error:?}"),
        }
    }
}

/// The datagrams that are to leave.
fn sent(output: &Output) -> Vec<(SocketAddr, Vec<u8>)> {
    let datagrams = output.transmits.batches();
    let chunks = datagrams.flat_map(|(batch, bytes)| bytes.chunks(batch.segment_bytes).map(|bytes| (batch.to, bytes)));
    chunks.map(|(to, bytes)| (to, bytes.to_vec())).collect()
}

/// Whether it is an initiation that a peer's key made.
fn is_of_a_peer(datagram: &[u8]) -> bool {
    let Ok(Message::HandshakeInit(initiation)) = Tunn::parse_incoming_packet(datagram) else { return false };
    let half = parse_handshake_anon(&key(GATEWAY_KEY), &PublicKey::from(&key(GATEWAY_KEY)), &initiation);
    half.is_ok_and(|half| PEERS.iter().any(|(_, seed)| public(*seed) == half.peer_static_public))
}

/// The input as packets, each as long as its header says; where it says nothing good, all that is left.
fn cut(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    while !bytes.is_empty() && packets.len() < PACKETS_MAX {
        let word = |at: usize| bytes.get(at..at + 2).map_or(0, |w| usize::from(u16::from_be_bytes([w[0], w[1]])));
        let announced = match bytes[0] >> 4 {
            4 => word(2),
            6 => 40 + word(4),
            _ => 0,
        };
        let length = if (20..bytes.len()).contains(&announced) { announced } else { bytes.len() };
        let (packet, rest) = bytes.split_at(length);
        packets.push(packet.to_vec());
        bytes = rest;
    }
    packets
}

/// Sets the checksum of an IPv4 header.
fn mend(packet: &mut [u8]) {
    let Some(first) = packet.first().filter(|first| **first >> 4 == 4) else { return };
    let length = usize::from(first & 15) * 4;
    let Some(header) = packet.get_mut(..length).filter(|header| header.len() >= 20) else { return };
    header[10..12].fill(0);
    let sum: u32 = header.chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = !((folded & 0xffff) + (folded >> 16)) as u16;
    header[10..12].copy_from_slice(&folded.to_be_bytes());
}

fn settings() -> Settings {
    let exposure = |service: &str, target: Target, ports: &[&str]| Exposure {
        name: name(service),
        target,
        ports: ranges(ports),
        allow: vec!["site:factory".parse().expect("selector")],
        source: Source::Presence,
        limits: Limits::default(),
    };
    let web = Target::Backends(["10.0.0.5", "fd00::5"].map(address).to_vec());
    let rack = Target::Prefix("10.0.0.16/28".parse().expect("prefix"));
    let peer = |(site, seed): (&str, u8)| PeerSettings {
        identity: Identity { site: name(site), tenant: None, groups: Vec::new() },
        public_key: public(seed),
        preshared_key: None,
        endpoint: None,
        carrier: None,
        keepalive_seconds: None,
        stock: false,
        hub: false,
    };
    let service = "*.factory".parse().expect("pattern");
    let pool = ["10.0.9.0/24", "fd00:9::/64"].map(|prefix| prefix.parse().expect("prefix"));
    Settings {
        site: name("cloud"),
        pool: Pool::new(pool.to_vec()).expect("pool"),
        inner_mtu: INNER_MTU,
        flows_max: 64,
        second_cipher: false,
        peers: PEERS.map(peer).to_vec(),
        clients: vec![Client { name: name("desk"), addresses: vec![address("10.0.0.2")] }],
        exposures: vec![
            exposure("web", web, &["tcp/80", "udp/53", "icmp"]),
            exposure("rack", rack, &["tcp/22", "udp/69"]),
        ],
        mappings: vec![Mapping { service, address: None, ports: Vec::new(), callers: Vec::new() }],
        hub: None,
    }
}

fn offer() -> Offer {
    let service = |service: &str, index, host_bits| OfferedService {
        name: name(service),
        index,
        host_bits,
        ipv4: true,
        ipv6: host_bits == 0,
        ports: ranges(&["tcp/80", "udp/53", "icmp"]),
        labels: Default::default(),
        healthy: true,
    };
    let callers = vec![NamedCaller { index: 2, name: name("plc") }];
    Offer { services: vec![service("plant", 2, 0), service("line", 16, 4)], callers, hosts: Vec::new() }
}

fn key(seed: u8) -> StaticSecret {
    StaticSecret::from([seed; 32])
}

fn public(seed: u8) -> [u8; 32] {
    PublicKey::from(&key(seed)).to_bytes()
}

fn name(text: &str) -> Name {
    Name::new(text).expect("name")
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("address")
}

fn ranges(texts: &[&str]) -> Vec<PortRange> {
    texts.iter().map(|text| text.parse().expect("ports")).collect()
}
