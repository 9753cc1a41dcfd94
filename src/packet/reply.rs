//! Replies of the gateway itself. None is ever about an ICMP error or a fragment's tail, nor about what was sent to or
//! claims to be from several hosts or none (RFC 1122 section 3.2.2), so no two gateways can keep each other busy.

use super::split::set_ipv4_checksum;
use super::{FiveTuple, Kind, Packet, icmp, protocol};
use crate::addr::Family;
use crate::packet::checksum::Sum;
use std::net::IpAddr;

const HOPS: u8 = 64;
const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;
/// RFC 1812 section 4.3.2.3: as much as fits 576 bytes. RFC 4443 section 2.4: as much as fits 1280.
const ERROR_BYTES_MAX_V4: usize = 576;
const ERROR_BYTES_MAX_V6: usize = 1280;

/// Codes of Destination Unreachable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unreachable {
    Host,
    AdminProhibited,
}

/// The TCP RST that the called one would send if it did not listen (RFC 9293 section 3.5.2).
#[must_use]
pub fn reset(of: &Packet) -> Option<Vec<u8>> {
    let Kind::Tcp(tcp) = of.head.kind else { return None };
    if tcp.flags & RST != 0 || !is_between_hosts(&of.head.tuple) {
        return None;
    }
    let counted = u32::from(tcp.flags & SYN != 0) + u32::from(tcp.flags & FIN != 0) + of.payload().len() as u32;
    let (flags, sequence, acknowledgment) = match tcp.flags & ACK {
        0 => (RST | ACK, 0, tcp.sequence.wrapping_add(counted)),
        _ => (RST, tcp.acknowledgment, 0),
    };
    let mut segment = [0; 20];
    segment[..2].copy_from_slice(&of.head.tuple.destination_port.to_be_bytes());
    segment[2..4].copy_from_slice(&of.head.tuple.source_port.to_be_bytes());
    segment[4..8].copy_from_slice(&sequence.to_be_bytes());
    segment[8..12].copy_from_slice(&acknowledgment.to_be_bytes());
    segment[12] = 5 << 4;
    segment[13] = flags;
    let tuple = of.head.tuple.reversed();
    let pseudo = Sum::pseudo(tuple.source, tuple.destination, protocol::TCP, segment.len() as u32);
    let checksum = pseudo.and(Sum::of(&segment)).checksum();
    segment[16..18].copy_from_slice(&checksum.to_be_bytes());
    Some(in_ip(&tuple, &segment))
}

#[must_use]
pub fn unreachable(of: &Packet, code: Unreachable, source: IpAddr) -> Option<Vec<u8>> {
    let (kind, code) = match (of.head.family, code) {
        (Family::V4, Unreachable::Host) => (3, 1),
        (Family::V4, Unreachable::AdminProhibited) => (3, 13),
        (Family::V6, Unreachable::Host) => (1, 3),
        (Family::V6, Unreachable::AdminProhibited) => (1, 1),
    };
    error(of, source, [kind, code, 0, 0, 0, 0, 0, 0])
}

#[must_use]
pub fn time_exceeded(of: &Packet, source: IpAddr) -> Option<Vec<u8>> {
    let kind = match of.head.family {
        Family::V4 => 11,
        Family::V6 => 3,
    };
    error(of, source, [kind, 0, 0, 0, 0, 0, 0, 0])
}

/// Fragmentation Needed (RFC 1191) or Packet Too Big (RFC 4443), naming the next hop's MTU.
#[must_use]
pub fn too_big(of: &Packet, mtu: u16, source: IpAddr) -> Option<Vec<u8>> {
    let [high, low] = mtu.to_be_bytes();
    let header = match of.head.family {
        Family::V4 => [3, 4, 0, 0, 0, 0, high, low],
        Family::V6 => [2, 0, 0, 0, 0, 0, high, low],
    };
    error(of, source, header)
}

fn error(of: &Packet, source: IpAddr, header: [u8; 8]) -> Option<Vec<u8>> {
    let silent = matches!(of.head.kind, Kind::IcmpError | Kind::FragmentTail);
    if silent || !is_between_hosts(&of.head.tuple) || Family::of(source) != of.head.family {
        return None;
    }
    let (ip_bytes, bytes_max, number) = match of.head.family {
        Family::V4 => (20, ERROR_BYTES_MAX_V4, protocol::ICMP),
        Family::V6 => (40, ERROR_BYTES_MAX_V6, protocol::ICMPV6),
    };
    let quoted = &of.bytes()[..of.bytes().len().min(bytes_max - ip_bytes - header.len())];
    let mut message = [&header[..], quoted].concat();
    let destination = of.head.tuple.source;
    let tuple = FiveTuple { source, destination, source_port: 0, destination_port: 0, protocol: number };
    icmp::set_checksum(&tuple, &mut message);
    Some(in_ip(&tuple, &message))
}

fn is_between_hosts(tuple: &FiveTuple) -> bool {
    let source_is_host = match tuple.source {
        IpAddr::V4(a) => !a.is_loopback() && !matches!(a.octets()[0], 0 | 224..),
        IpAddr::V6(a) => !a.is_loopback() && !a.is_unspecified() && !a.is_multicast(),
    };
    let destination_is_host = match tuple.destination {
        IpAddr::V4(a) => a.octets()[0] < 224,
        IpAddr::V6(a) => !a.is_multicast(),
    };
    source_is_host && destination_is_host
}

fn in_ip(tuple: &FiveTuple, layer4: &[u8]) -> Vec<u8> {
    match (tuple.source, tuple.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let mut header = [0; 20];
            header[0] = 0x45;
            header[2..4].copy_from_slice(&((20 + layer4.len()) as u16).to_be_bytes());
            header[6] = 0x40; // DF: atomic, so the identification may be zero (RFC 6864)
            (header[8], header[9]) = (HOPS, tuple.protocol);
            header[12..16].copy_from_slice(&source.octets());
            header[16..20].copy_from_slice(&destination.octets());
            set_ipv4_checksum(&mut header);
            [&header[..], layer4].concat()
        }
        (source, destination) => {
            let octets = |address: IpAddr| match address {
                IpAddr::V6(address) => address.octets(),
                IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
            };
            let mut header = [0; 40];
            header[0] = 0x60;
            header[4..6].copy_from_slice(&(layer4.len() as u16).to_be_bytes());
            (header[6], header[7]) = (tuple.protocol, HOPS);
            header[8..24].copy_from_slice(&octets(source));
            header[24..40].copy_from_slice(&octets(destination));
            [&header[..], layer4].concat()
        }
    }
}
