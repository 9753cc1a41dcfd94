//! Packets for tests, written byte by byte, and the check of all their checksums by another implementation.

#![allow(dead_code)] // each test file uses its own part

use etherparse::{NetHeaders, PacketHeaders, PayloadSlice, TransportHeader};
use proptest::collection::vec;
use proptest::prelude::*;
use std::net::IpAddr;
use vp::addr::Family;
use vp::packet::{FiveTuple, Head, Kind, Offload, Packet, TcpHead, protocol};

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;
pub const CWR: u8 = 0x80;

/// Everything that may vary in a packet; [`Sample::bytes`] makes it one.
#[derive(Clone, Debug)]
pub struct Sample {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub traffic_class: u8,
    pub id: u16,
    pub flow_label: u32,
    pub dont_fragment: bool,
    pub hops: u8,
    /// IPv4 options, a multiple of 4 bytes.
    pub options: Vec<u8>,
    /// IPv6 extension headers: number and bytes from the second on, a multiple of 8 less 1.
    pub extensions: Vec<(u8, Vec<u8>)>,
    pub l4: Layer4,
    pub payload: Vec<u8>,
}

#[derive(Clone, Debug)]
pub enum Layer4 {
    Tcp { ports: (u16, u16), head: TcpHead, urgent: u16, options: Vec<u8> },
    Udp { ports: (u16, u16), has_checksum: bool },
    Echo { id: u16, is_request: bool },
    IcmpError { kind: u8, code: u8, rest: [u8; 4] },
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

impl Sample {
    pub fn tcp(source: &str, destination: &str, payload: &[u8]) -> Self {
        let head = TcpHead { flags: ACK, sequence: 1000, acknowledgment: 2000, window: 512 };
        let l4 = Layer4::Tcp { ports: (40000, 443), head, urgent: 0, options: Vec::new() };
        Self::new(source, destination, l4, payload)
    }

    pub fn udp(source: &str, destination: &str, payload: &[u8]) -> Self {
        Self::new(source, destination, Layer4::Udp { ports: (40000, 53), has_checksum: true }, payload)
    }

    pub fn echo(source: &str, destination: &str, payload: &[u8]) -> Self {
        Self::new(source, destination, Layer4::Echo { id: 77, is_request: true }, payload)
    }

    pub fn icmp_error(source: &str, destination: &str, kind: u8, code: u8, rest: [u8; 4], quoted: &[u8]) -> Self {
        Self::new(source, destination, Layer4::IcmpError { kind, code, rest }, quoted)
    }

    fn new(source: &str, destination: &str, l4: Layer4, payload: &[u8]) -> Self {
        Self {
            source: ip(source),
            destination: ip(destination),
            traffic_class: 0,
            id: 7,
            flow_label: 0,
            dont_fragment: true,
            hops: 64,
            options: Vec::new(),
            extensions: Vec::new(),
            l4,
            payload: payload.to_vec(),
        }
    }

    pub fn is_v4(&self) -> bool {
        self.source.is_ipv4()
    }

    pub fn protocol(&self) -> u8 {
        match self.l4 {
            Layer4::Tcp { .. } => protocol::TCP,
            Layer4::Udp { .. } => protocol::UDP,
            Layer4::Echo { .. } | Layer4::IcmpError { .. } if self.is_v4() => protocol::ICMP,
            Layer4::Echo { .. } | Layer4::IcmpError { .. } => protocol::ICMPV6,
        }
    }

    pub fn tcp_sequence(&self) -> Option<u32> {
        match &self.l4 {
            Layer4::Tcp { head, .. } => Some(head.sequence),
            Layer4::Udp { .. } | Layer4::Echo { .. } | Layer4::IcmpError { .. } => None,
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        let l4 = self.l4_bytes();
        let mut bytes = self.ip_header(l4.len());
        bytes.extend(l4);
        bytes
    }

    /// The packet in fragments of at most that many payload bytes, a multiple of 8.
    pub fn fragments(&self, payload_bytes: usize) -> Vec<Vec<u8>> {
        let l4 = self.l4_bytes();
        let count = l4.chunks(payload_bytes).len();
        l4.chunks(payload_bytes)
            .enumerate()
            .map(|(index, piece)| self.fragment(index * payload_bytes, index + 1 < count, piece))
            .collect()
    }

    /// One fragment with that payload.
    pub fn fragment(&self, offset: usize, more: bool, piece: &[u8]) -> Vec<u8> {
        let place = u16::try_from(offset).expect("fits");
        if self.is_v4() {
            let mut bytes = self.ip_header(piece.len());
            let flags = (place >> 3) | (u16::from(more) << 13);
            bytes[6..8].copy_from_slice(&flags.to_be_bytes());
            mend_ipv4_header(&mut bytes);
            bytes.extend(piece);
            return bytes;
        }
        let place = (place | u16::from(more)).to_be_bytes();
        let id = u32::from(self.id).to_be_bytes();
        let header = vec![0, place[0], place[1], id[0], id[1], id[2], id[3]];
        let mut with_fragment_header = self.clone();
        with_fragment_header.extensions.push((44, header));
        let mut bytes = with_fragment_header.ip_header(piece.len());
        bytes.extend(piece);
        bytes
    }

    fn ip_header(&self, l4_bytes: usize) -> Vec<u8> {
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let header_bytes = 20 + self.options.len();
                let mut bytes = vec![0x40 | u8::try_from(header_bytes / 4).expect("fits"), self.traffic_class];
                bytes.extend(u16::try_from(header_bytes + l4_bytes).expect("fits").to_be_bytes());
                bytes.extend(self.id.to_be_bytes());
                bytes.extend([if self.dont_fragment { 0x40 } else { 0 }, 0, self.hops, self.protocol(), 0, 0]);
                bytes.extend(source.octets());
                bytes.extend(destination.octets());
                bytes.extend(&self.options);
                mend_ipv4_header(&mut bytes);
                bytes
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let extension_bytes: usize = self.extensions.iter().map(|(_, rest)| 1 + rest.len()).sum();
                let word = 6 << 28 | u32::from(self.traffic_class) << 20 | self.flow_label & 0xf_ffff;
                let mut numbers: Vec<u8> = self.extensions.iter().map(|(number, _)| *number).collect();
                numbers.push(self.protocol());
                let mut bytes = word.to_be_bytes().to_vec();
                bytes.extend(u16::try_from(extension_bytes + l4_bytes).expect("fits").to_be_bytes());
                bytes.extend([numbers[0], self.hops]);
                bytes.extend(source.octets());
                bytes.extend(destination.octets());
                for ((_, rest), next) in self.extensions.iter().zip(&numbers[1..]) {
                    bytes.push(*next);
                    bytes.extend(rest);
                }
                bytes
            }
            _ => panic!("one family"),
        }
    }

    fn l4_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let checksum_at = match &self.l4 {
            Layer4::Tcp { ports, head, urgent, options } => {
                bytes.extend(ports.0.to_be_bytes());
                bytes.extend(ports.1.to_be_bytes());
                bytes.extend(head.sequence.to_be_bytes());
                bytes.extend(head.acknowledgment.to_be_bytes());
                bytes.extend([u8::try_from(5 + options.len() / 4).expect("fits") << 4, head.flags]);
                bytes.extend(head.window.to_be_bytes());
                bytes.extend([0, 0]);
                bytes.extend(urgent.to_be_bytes());
                bytes.extend(options);
                16
            }
            Layer4::Udp { ports, .. } => {
                bytes.extend(ports.0.to_be_bytes());
                bytes.extend(ports.1.to_be_bytes());
                bytes.extend(u16::try_from(8 + self.payload.len()).expect("fits").to_be_bytes());
                bytes.extend([0, 0]);
                6
            }
            Layer4::Echo { id, is_request } => {
                let kind = match (self.is_v4(), is_request) {
                    (true, true) => 8,
                    (true, false) => 0,
                    (false, true) => 128,
                    (false, false) => 129,
                };
                bytes.extend([kind, 0, 0, 0]);
                bytes.extend(id.to_be_bytes());
                bytes.extend([0, 1]);
                2
            }
            Layer4::IcmpError { kind, code, rest } => {
                bytes.extend([*kind, *code, 0, 0]);
                bytes.extend(rest);
                2
            }
        };
        bytes.extend(&self.payload);
        if matches!(self.l4, Layer4::Udp { has_checksum: false, .. }) {
            return bytes;
        }
        let mut checksum = !(self.pseudo_header(bytes.len()).chain_sum(&bytes));
        if checksum == 0 && self.protocol() == protocol::UDP {
            checksum = 0xffff;
        }
        bytes[checksum_at..checksum_at + 2].copy_from_slice(&checksum.to_be_bytes());
        bytes
    }

    fn pseudo_header(&self, l4_bytes: usize) -> Words {
        let mut words = Words(0);
        if self.protocol() == protocol::ICMP {
            return words;
        }
        for address in [self.source, self.destination] {
            match address {
                IpAddr::V4(address) => words.add(&address.octets()),
                IpAddr::V6(address) => words.add(&address.octets()),
            }
        }
        words.0 += u64::from(self.protocol()) + l4_bytes as u64;
        words
    }
}

/// A sum of 16-bit words, by the book.
struct Words(u64);

impl Words {
    fn add(&mut self, bytes: &[u8]) {
        for pair in bytes.chunks(2) {
            self.0 += u64::from(pair[0]) << 8 | u64::from(pair.get(1).copied().unwrap_or(0));
        }
    }

    fn chain_sum(mut self, bytes: &[u8]) -> u16 {
        self.add(bytes);
        while self.0 > 0xffff {
            self.0 = (self.0 >> 16) + (self.0 & 0xffff);
        }
        u16::try_from(self.0).expect("fits")
    }
}

pub fn mend_ipv4_header(packet: &mut [u8]) {
    let header_bytes = usize::from(packet[0] & 0x0f) * 4;
    packet[10..12].fill(0);
    let checksum = !Words(0).chain_sum(&packet[..header_bytes]);
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
}

pub fn parse(bytes: &mut [u8]) -> Packet<'_> {
    Packet::parse(bytes, Offload::default()).expect("a packet")
}

/// As a kernel hands over what it would have left to a network card: only the pseudo-header is summed.
pub fn make_partial(bytes: &mut [u8]) {
    let head = parse(bytes).head;
    let l4_bytes = head.total_bytes - u32::from(head.ip_bytes);
    let mut words = Words(u64::from(head.tuple.protocol) + u64::from(l4_bytes));
    let addresses = if head.family == Family::V4 { 12..20 } else { 8..40 };
    words.add(&bytes[addresses]);
    let at = checksum_at(&head);
    bytes[at..at + 2].copy_from_slice(&words.chain_sum(&[]).to_be_bytes());
}

/// Where the layer-4 checksum stands in the packet.
pub fn checksum_at(head: &Head) -> usize {
    let in_l4 = match head.kind {
        Kind::Tcp(_) => 16,
        Kind::Udp => 6,
        Kind::EchoRequest | Kind::EchoReply | Kind::IcmpError => 2,
        Kind::FragmentTail => panic!("a tail has none"),
    };
    usize::from(head.ip_bytes) + in_l4
}

/// Whether all checksums are right, as etherparse sees it. `None` where it cannot judge: fragments.
pub fn is_sound(bytes: &[u8]) -> Option<bool> {
    let headers = PacketHeaders::from_ip_slice(bytes).expect("etherparse reads it");
    let payload = match headers.payload {
        PayloadSlice::Tcp(p) | PayloadSlice::Udp(p) | PayloadSlice::Icmpv4(p) | PayloadSlice::Icmpv6(p) => p,
        _ => return None,
    };
    let is_right = match (headers.net?, headers.transport?) {
        (NetHeaders::Ipv4(ip, _), transport) => {
            let l4_is_right = match transport {
                TransportHeader::Tcp(tcp) => tcp.calc_checksum_ipv4(&ip, payload).expect("lengths fit") == tcp.checksum,
                TransportHeader::Udp(udp) => {
                    udp.checksum == 0 || udp.calc_checksum_ipv4(&ip, payload).expect("lengths fit") == udp.checksum
                }
                TransportHeader::Icmpv4(icmp) => icmp.icmp_type.calc_checksum(payload) == icmp.checksum,
                _ => return None,
            };
            ip.calc_header_checksum() == ip.header_checksum && l4_is_right
        }
        (NetHeaders::Ipv6(ip, _), transport) => match transport {
            TransportHeader::Tcp(tcp) => tcp.calc_checksum_ipv6(&ip, payload).expect("lengths fit") == tcp.checksum,
            TransportHeader::Udp(udp) => udp.calc_checksum_ipv6(&ip, payload).expect("lengths fit") == udp.checksum,
            TransportHeader::Icmpv6(icmp) => {
                icmp.icmp_type.calc_checksum(ip.source, ip.destination, payload).expect("lengths fit") == icmp.checksum
            }
            _ => return None,
        },
        _ => return None,
    };
    Some(is_right)
}

#[track_caller]
pub fn assert_sound(bytes: &[u8]) {
    assert_eq!(is_sound(bytes), Some(true), "checksums of {bytes:02x?}");
}

/// Addresses of both families that collide as well as differ.
pub fn any_address(family: Family) -> BoxedStrategy<IpAddr> {
    match family {
        Family::V4 => prop_oneof![
            any::<u32>().prop_map(|bits| IpAddr::V4(bits.into())),
            (0u32..4).prop_map(|low| IpAddr::V4((0x0a00_0000 + low).into())),
        ]
        .boxed(),
        Family::V6 => prop_oneof![
            any::<u128>().prop_map(|bits| IpAddr::V6(bits.into())),
            (0u128..4).prop_map(|low| IpAddr::V6(((0xfd << 120) + low).into())),
        ]
        .boxed(),
    }
}

pub fn any_family() -> impl Strategy<Value = Family> {
    prop_oneof![Just(Family::V4), Just(Family::V6)]
}

fn any_tcp_options() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        Just(vec![]),
        any::<[u8; 8]>().prop_map(|stamps| {
            let mut options = vec![1, 1, 8, 10];
            options.extend(stamps);
            options
        }),
        any::<u16>().prop_map(|mss| {
            let [high, low] = mss.to_be_bytes();
            vec![1, 2, 4, high, low, 1, 1, 0]
        }),
        any::<u16>().prop_map(|mss| {
            let [high, low] = mss.to_be_bytes();
            vec![2, 4, high, low]
        }),
    ]
}

fn any_layer4() -> impl Strategy<Value = Layer4> {
    let head = any::<(u8, u32, u32, u16)>().prop_map(|(flags, sequence, acknowledgment, window)| TcpHead {
        flags,
        sequence,
        acknowledgment,
        window,
    });
    prop_oneof![
        (any::<(u16, u16)>(), head, any::<u16>(), any_tcp_options())
            .prop_map(|(ports, head, urgent, options)| Layer4::Tcp { ports, head, urgent, options }),
        (any::<(u16, u16)>(), prop::bool::weighted(0.9))
            .prop_map(|(ports, has_checksum)| Layer4::Udp { ports, has_checksum }),
        any::<(u16, bool)>().prop_map(|(id, is_request)| Layer4::Echo { id, is_request }),
    ]
}

fn any_extensions() -> impl Strategy<Value = Vec<(u8, Vec<u8>)>> {
    let pad = vec![0, 1, 4, 0, 0, 0, 0];
    let router_alert = vec![0, 5, 2, 0, 0, 1, 0];
    let atomic_fragment = vec![0, 0, 0, 1, 2, 3, 4];
    prop_oneof![
        4 => Just(vec![]),
        1 => Just(vec![(0, router_alert)]),
        1 => Just(vec![(0, pad.clone()), (60, pad.clone())]),
        1 => Just(vec![(60, vec![1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])]),
        1 => Just(vec![(60, pad), (44, atomic_fragment)]),
    ]
}

/// Any packet that a gateway translates, whole and right.
pub fn any_sample() -> impl Strategy<Value = Sample> {
    any_family().prop_flat_map(|family| any_sample_of(family, 600))
}

pub fn any_sample_of(family: Family, payload_max: usize) -> impl Strategy<Value = Sample> {
    let addresses = (any_address(family), any_address(family));
    let numbers = (any::<u8>(), any::<u16>(), 0u32..1 << 20, any::<bool>(), any::<u8>());
    let options = prop_oneof![4 => Just(vec![]), 1 => Just(vec![1, 1, 1, 0]), 1 => Just(vec![148, 4, 0, 0])];
    (addresses, numbers, options, any_extensions(), any_layer4(), vec(any::<u8>(), 0..payload_max)).prop_map(
        move |((source, destination), numbers, options, extensions, mut l4, payload)| {
            let (traffic_class, id, flow_label, dont_fragment, hops) = numbers;
            if let Layer4::Udp { has_checksum, .. } = &mut l4 {
                *has_checksum |= family == Family::V6;
            }
            Sample {
                source,
                destination,
                traffic_class,
                id,
                flow_label,
                dont_fragment,
                hops,
                options,
                extensions,
                l4,
                payload,
            }
        },
    )
}

/// What else the packet may become: of its family and protocol. The identifier of an echo stays.
pub fn any_tuple_for(head: &Head) -> impl Strategy<Value = FiveTuple> + use<> {
    let FiveTuple { protocol, source_port: id, .. } = head.tuple;
    let is_echo = matches!(head.kind, Kind::EchoRequest | Kind::EchoReply);
    (any_address(head.family), any_address(head.family), any::<(u16, u16)>()).prop_map(
        move |(source, destination, ports)| {
            let (source_port, destination_port) = if is_echo { (id, id) } else { ports };
            FiveTuple { source, destination, source_port, destination_port, protocol }
        },
    )
}
