//! What holds for every packet: there and back is identity, a right checksum stays right and a wrong one wrong, segments
//! joined and split again are what they were, and no bytes make anything panic. etherparse is the oracle.

mod sim;

use proptest::prelude::*;
use sim::{read, tcp, udp};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU16;
use vp::addr::PeerId;
use vp::packet::{self, FiveTuple, Joiner, Kind, Offload, Packet, ParseError};
use vp::translate;

fn ipv4() -> impl Strategy<Value = IpAddr> {
    any::<[u8; 4]>().prop_map(|octets| Ipv4Addr::from(octets).into())
}

fn ipv6() -> impl Strategy<Value = IpAddr> {
    any::<[u8; 16]>().prop_map(|octets| Ipv6Addr::from(octets).into())
}

/// Two pairs of addresses of one family.
fn addresses() -> impl Strategy<Value = [IpAddr; 4]> {
    prop_oneof![[ipv4(), ipv4(), ipv4(), ipv4()], [ipv6(), ipv6(), ipv6(), ipv6()]]
}

fn payload() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 0..300)
}

fn segment() -> impl Strategy<Value = (Vec<u8>, FiveTuple)> {
    (addresses(), any::<[u16; 4]>(), payload(), any::<bool>(), any::<u32>()).prop_map(
        |([a, b, c, d], ports, payload, is_tcp, sequence)| {
            let (from, to) = ((a, ports[0]), (b, ports[1]));
            let bytes = match is_tcp {
                true => tcp(from, to, "PA", sequence, 1, &payload),
                false => udp(from, to, &payload),
            };
            let protocol = if is_tcp { 6 } else { 17 };
            let (source_port, destination_port) = (ports[2], ports[3]);
            (bytes, FiveTuple { source: c, destination: d, source_port, destination_port, protocol })
        },
    )
}

fn parse(bytes: &mut [u8]) -> Packet<'_> {
    Packet::parse(bytes, Offload::default()).expect("a packet")
}

proptest! {
    #[test]
    fn translated_there_and_back_is_the_same_packet((original, to) in segment()) {
        let mut bytes = original.clone();
        let from = parse(&mut bytes).head.tuple;
        translate::apply(&mut parse(&mut bytes), &to);
        let seen = read(&bytes); // verifies every checksum
        prop_assert_eq!((seen.from, seen.to), ((to.source, to.source_port), (to.destination, to.destination_port)));
        translate::apply(&mut parse(&mut bytes), &from);
        prop_assert_eq!(bytes, original);
    }

    #[test]
    fn a_wrong_checksum_stays_wrong((mut bytes, to) in segment(), flip in 1u8..=255) {
        let last = bytes.len() - 1;
        let packet = parse(&mut bytes);
        prop_assume!(!packet.payload().is_empty());
        bytes[last] ^= flip;
        let mut packet = parse(&mut bytes);
        prop_assume!(!packet.checksum_is_right());
        translate::apply(&mut packet, &to);
        prop_assert!(!packet.checksum_is_right());
    }

    #[test]
    fn a_udp_checksum_of_zero_stays_zero(payload in payload(), to in [ipv4(), ipv4()]) {
        let (a, b) = (IpAddr::from([10, 0, 0, 2]), IpAddr::from([10, 0, 1, 2]));
        let mut bytes = udp((a, 1), (b, 2), &payload);
        bytes[26..28].fill(0);
        let tuple = FiveTuple { source: to[0], destination: to[1], source_port: 1, destination_port: 9, protocol: 17 };
        translate::apply(&mut parse(&mut bytes), &tuple);
        prop_assert_eq!(&bytes[26..28], &[0, 0][..]);
    }

    #[test]
    fn one_hop_less_keeps_the_header_right((mut bytes, _) in segment()) {
        let mut packet = parse(&mut bytes);
        prop_assert!(packet.decrement_hops().is_ok());
        prop_assert_eq!(read(packet.bytes()).hops, 63);
    }

    #[test]
    fn a_clamped_mss_is_lowered_never_raised(max in 500u16..2000) {
        let (a, b) = (IpAddr::from([10, 0, 0, 2]), IpAddr::from([10, 0, 1, 2]));
        let mut bytes = tcp((a, 1), (b, 2), "S", 1, 0, b"");
        parse(&mut bytes).clamp_mss(max);
        prop_assert_eq!(read(&bytes).mss, Some(max.min(1460)));
    }

    #[test]
    fn a_super_packet_splits_into_right_packets_and_joins_again(
        length in 1usize..9000, segment in 100u16..1400, v6 in any::<bool>(), is_tcp in any::<bool>()
    ) {
        let payload: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
        let hosts: [IpAddr; 2] = match v6 {
            true => ["fd00::1".parse().expect("address"), "fd00::2".parse().expect("address")],
            false => ["10.0.0.1".parse().expect("address"), "10.0.0.2".parse().expect("address")],
        };
        let (from, to) = ((hosts[0], 4000), (hosts[1], 80));
        let mut whole = if is_tcp { tcp(from, to, "A", 77, 1, &payload) } else { udp(from, to, &payload) };
        let offload = Offload { checksum_partial: true, segment_bytes: NonZeroU16::new(segment) };
        let super_packet = Packet::parse(&mut whole, offload).expect("a packet");
        let mut scratch = vec![0; 1 << 16];
        let mut parts: Vec<Vec<u8>> = Vec::new();
        packet::split(&super_packet, &mut scratch, |part| parts.push(part.to_vec()));
        prop_assert_eq!(parts.len() as u32, packet::segment_count(&super_packet));
        let carried: Vec<u8> = parts.iter().flat_map(|part| read(part).payload).collect();
        prop_assert_eq!(&carried, &payload);
        let mut joiner = Joiner::new(1 << 20);
        for part in &parts {
            joiner.space()[..part.len()].copy_from_slice(part);
            joiner.push(PeerId(0), part.len()).expect("a packet");
        }
        let mut joined = Vec::new();
        for index in 0..joiner.len() {
            let group = joiner.group(index);
            prop_assert_eq!(group.packet.offload.checksum_partial, group.packets > 1);
            joiner.deliver(index);
        }
        for delivery in joiner.deliveries() {
            let mut bytes: Vec<u8> = delivery.slices().flatten().copied().collect();
            let offload = packet::virtio::decode(&delivery.virtio).expect("a header");
            let delivered = Packet::parse(&mut bytes, offload).expect("a packet");
            packet::split(&delivered, &mut scratch, |part| joined.push(read(part)));
        }
        let originals: Vec<_> = parts.iter().map(|part| read(part)).collect();
        prop_assert_eq!(joined, originals);
    }

    #[test]
    fn fragments_carry_all_of_a_packet(length in 1usize..8000, mtu in 576u16..1420) {
        let payload: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
        let (a, b) = (IpAddr::from([10, 0, 0, 2]), IpAddr::from([10, 0, 1, 2]));
        let mut whole = udp((a, 1), (b, 2), &payload);
        let original = whole[20..].to_vec();
        let mut scratch = vec![0; 1 << 17];
        let mut carried: Vec<u8> = Vec::new();
        let whole = parse(&mut whole);
        packet::fragment(&whole, mtu, &mut scratch, |part| {
            let mut part = part.to_vec();
            assert!(part.len() <= usize::from(mtu));
            let head = Packet::parse(&mut part, Offload::default()).expect("a fragment").head;
            let offset = head.fragment.map_or(0, |fragment| usize::from(fragment.offset));
            assert_eq!(offset, carried.len());
            carried.extend(&part[20..]);
        });
        prop_assert_eq!(carried, original);
    }

    #[test]
    fn no_bytes_make_anything_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), shape in 0u8..6) {
        exercise(shaped(bytes, shape));
    }
}

/// Random bytes get past the first checks only by luck: give them the begin of a header.
fn shaped(mut bytes: Vec<u8>, shape: u8) -> Vec<u8> {
    let length = bytes.len() as u16;
    match shape {
        1..=3 if bytes.len() >= 28 => {
            bytes[0] = 0x45;
            bytes[2..4].copy_from_slice(&length.to_be_bytes());
            bytes[6..8].fill(0);
            bytes[9] = [6, 17, 1][usize::from(shape) - 1];
            bytes[10..12].fill(0);
            let sum: u32 = bytes[..20].chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(w[1])).sum();
            let sum = (sum & 0xffff) + (sum >> 16);
            let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
            bytes[10..12].copy_from_slice(&checksum.to_be_bytes());
        }
        4 | 5 if bytes.len() >= 48 => {
            bytes[0] = 0x60;
            bytes[4..6].copy_from_slice(&(length - 40).to_be_bytes());
            bytes[6] = [58, 44][usize::from(shape) - 4];
        }
        _ => {}
    }
    bytes
}

/// Everything that is done to a packet from outside.
fn exercise(bytes: Vec<u8>) {
    let mut scratch = vec![0; 1 << 17];
    for segment in [0, 1, 700] {
        for checksum_partial in [false, true] {
            let mut bytes = bytes.clone();
            let offload = Offload { checksum_partial, segment_bytes: NonZeroU16::new(segment) };
            let Ok(mut packet) = Packet::parse(&mut bytes, offload) else { continue };
            let gateway = match packet.head.tuple.source {
                IpAddr::V4(_) => IpAddr::from([10, 0, 1, 1]),
                IpAddr::V6(_) => IpAddr::from(Ipv6Addr::LOCALHOST),
            };
            let answers = [
                packet::reset(&packet),
                packet::unreachable(&packet, packet::Unreachable::Host, gateway),
                packet::time_exceeded(&packet, gateway),
                packet::too_big(&packet, 1280, gateway),
            ];
            for mut answer in answers.into_iter().flatten() {
                Packet::parse(&mut answer, Offload::default()).expect("an answer is a packet");
            }
            let _ = packet.checksum_is_right();
            packet.clamp_mss(1000);
            packet.decrement_hops().ok();
            let tuple = packet.head.tuple.reversed();
            if packet.head.kind == Kind::IcmpError {
                if let Ok(quote) = packet::quote(&packet) {
                    translate::apply_error(&mut packet, &quote, &quote.tuple.reversed(), gateway, gateway, None);
                }
            } else {
                translate::apply(&mut packet, &tuple);
            }
            packet::split(&packet, &mut scratch, |part| assert!(part.len() <= 65_535));
            packet::fragment(&packet, 600, &mut scratch, |_| ());
        }
    }
    let mut joiner = Joiner::new(1 << 16);
    for _ in 0..3 {
        joiner.space()[..bytes.len()].copy_from_slice(&bytes);
        joiner.push(PeerId(0), bytes.len()).ok();
    }
    (0..joiner.len()).for_each(|index| joiner.deliver(index));
    joiner.deliveries().for_each(|delivery| assert!(delivery.slices().count() > 0));
}

#[test]
fn routing_options_and_headers_are_refused() {
    let (a, b) = (IpAddr::from([10, 0, 0, 2]), IpAddr::from([10, 0, 1, 2]));
    for option in [7, 131, 137] {
        let plain = udp((a, 1), (b, 2), b"x");
        let mut bytes = [&plain[..20], &[option, 7, 4, 10, 0, 0, 9, 0], &plain[20..]].concat();
        bytes[0] = 0x47;
        let length = bytes.len() as u16;
        bytes[2..4].copy_from_slice(&length.to_be_bytes());
        bytes[10..12].fill(0);
        let sum: u32 = bytes[..28].chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(w[1])).sum();
        let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
        bytes[10..12].copy_from_slice(&checksum.to_be_bytes());
        assert_eq!(Packet::parse(&mut bytes, Offload::default()).err(), Some(ParseError::SourceRoute));
    }
    let (a, b) = (IpAddr::from(Ipv6Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST));
    let plain = udp((a, 1), (b, 2), b"x");
    let mut bytes = [&plain[..40], &[17, 0, 0, 0, 0, 0, 0, 0], &plain[40..]].concat();
    bytes[6] = 43;
    let length = (bytes.len() - 40) as u16;
    bytes[4..6].copy_from_slice(&length.to_be_bytes());
    assert_eq!(Packet::parse(&mut bytes, Offload::default()).err(), Some(ParseError::SourceRoute));
}

#[test]
fn tunnels_in_tunnels_and_unknown_protocols_are_refused() {
    let (a, b) = (IpAddr::from([10, 0, 0, 2]), IpAddr::from([10, 0, 1, 2]));
    for protocol in [0u8, 4, 41, 47, 50, 51, 132, 255] {
        let mut bytes = udp((a, 1), (b, 2), b"x");
        let old = u16::from_be_bytes([bytes[8], bytes[9]]);
        bytes[9] = protocol;
        let new = u16::from_be_bytes([bytes[8], bytes[9]]);
        let checksum = u32::from(u16::from_be_bytes([bytes[10], bytes[11]]));
        let sum = u32::from(!(checksum as u16)) + u32::from(!old) + u32::from(new);
        let sum = (sum & 0xffff) + (sum >> 16);
        let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
        bytes[10..12].copy_from_slice(&checksum.to_be_bytes());
        let refused = Packet::parse(&mut bytes, Offload::default()).err();
        assert_eq!(refused, Some(ParseError::UnsupportedProtocol(protocol)));
    }
}
