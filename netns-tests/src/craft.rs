//! Packets byte by byte, right ones and wrong ones.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// Flags of a TCP header.
pub const SYN: u8 = 0x02;
pub const ACK: u8 = 0x10;

/// An IP packet with right lengths and checksums of its header; `layer4` is taken as it is.
#[must_use]
pub fn ip(source: IpAddr, destination: IpAddr, protocol: u8, layer4: &[u8]) -> Vec<u8> {
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => ipv4(source, destination, protocol, &[], 0, layer4),
        (IpAddr::V6(source), IpAddr::V6(destination)) => ipv6(source, destination, protocol, layer4),
        // Nobody may send such a thing, but then nobody can.
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => Vec::new(),
    }
}

/// `options` fill whole words; `fragment` is flags and offset as they stand in the header.
#[must_use]
pub fn ipv4(
    source: Ipv4Addr,
    destination: Ipv4Addr,
    protocol: u8,
    options: &[u8],
    fragment: u16,
    layer4: &[u8],
) -> Vec<u8> {
    let header_bytes = 20 + options.len();
    let mut packet = vec![0x40 | u8::try_from(header_bytes / 4).unwrap_or(15), 0];
    packet.extend(u16::try_from(header_bytes + layer4.len()).unwrap_or(u16::MAX).to_be_bytes());
    packet.extend(0x1234_u16.to_be_bytes());
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, protocol, 0, 0]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(options);
    set_header_checksum(&mut packet);
    packet.extend(layer4);
    packet
}

/// Of an IPv4 header as it stands at the start of `packet`.
pub fn set_header_checksum(packet: &mut [u8]) {
    let header_bytes = usize::from(packet[0] & 0x0f) * 4;
    let header_bytes = header_bytes.clamp(20, packet.len());
    packet[10..12].fill(0);
    let checksum = !sum(0, &packet[..header_bytes]);
    packet[10..12].copy_from_slice(&checksum.to_be_bytes());
}

#[must_use]
pub fn ipv6(source: Ipv6Addr, destination: Ipv6Addr, next_header: u8, rest: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(u16::try_from(rest.len()).unwrap_or(u16::MAX).to_be_bytes());
    packet.extend([next_header, 64]);
    packet.extend(source.octets());
    packet.extend(destination.octets());
    packet.extend(rest);
    packet
}

#[must_use]
pub fn tcp(source: (IpAddr, u16), destination: (IpAddr, u16), flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut segment = ports(source.1, destination.1);
    segment.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend(payload);
    set_checksum(source.0, destination.0, TCP, &mut segment, 16);
    ip(source.0, destination.0, TCP, &segment)
}

#[must_use]
pub fn udp(source: (IpAddr, u16), destination: (IpAddr, u16), payload: &[u8]) -> Vec<u8> {
    ip(source.0, destination.0, UDP, &udp_datagram(source, destination, payload))
}

/// Without the IP header.
#[must_use]
pub fn udp_datagram(source: (IpAddr, u16), destination: (IpAddr, u16), payload: &[u8]) -> Vec<u8> {
    let mut datagram = ports(source.1, destination.1);
    datagram.extend(u16::try_from(8 + payload.len()).unwrap_or(u16::MAX).to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(payload);
    set_checksum(source.0, destination.0, UDP, &mut datagram, 6);
    datagram
}

/// An ICMP message of the addresses' family: type and code, the second word, and what follows.
#[must_use]
pub fn icmp(source: IpAddr, destination: IpAddr, kind: (u8, u8), word: u32, rest: &[u8]) -> Vec<u8> {
    let mut message = vec![kind.0, kind.1, 0, 0];
    message.extend(word.to_be_bytes());
    message.extend(rest);
    if source.is_ipv4() {
        let checksum = !sum(0, &message);
        message[2..4].copy_from_slice(&checksum.to_be_bytes());
        return ip(source, destination, ICMP, &message);
    }
    set_checksum(source, destination, ICMPV6, &mut message, 2);
    ip(source, destination, ICMPV6, &message)
}

fn ports(source: u16, destination: u16) -> Vec<u8> {
    [source.to_be_bytes(), destination.to_be_bytes()].concat()
}

fn set_checksum(source: IpAddr, destination: IpAddr, protocol: u8, layer4: &mut [u8], at: usize) {
    let mut pseudo = Vec::new();
    for address in [source, destination] {
        match address {
            IpAddr::V4(address) => pseudo.extend(address.octets()),
            IpAddr::V6(address) => pseudo.extend(address.octets()),
        }
    }
    pseudo.extend([0, protocol]);
    pseudo.extend(u16::try_from(layer4.len()).unwrap_or(u16::MAX).to_be_bytes());
    let checksum = match !sum(u32::from(sum(0, &pseudo)), layer4) {
        0 => 0xffff,
        checksum => checksum,
    };
    layer4[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
}

/// Ones' complement sum (RFC 1071).
fn sum(start: u32, bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0)));
    let mut total: u32 = words.fold(start, |total, word| total + word);
    while total > 0xffff {
        total = (total & 0xffff) + (total >> 16);
    }
    u16::try_from(total).unwrap_or(u16::MAX)
}
