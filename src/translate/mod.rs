//! The rewrite of a packet from one view (site or wire) to the other: addresses, and ports where the operator asked;
//! checksums mended incrementally, so that what was wrong stays wrong; quoted headers too.

use crate::addr::{Family, protocol};
use crate::packet::{FiveTuple, Kind, Packet, Quote, Sum, set_icmp_checksum};
use std::net::IpAddr;

/// Makes the packet one of the five-tuple `to`.
pub fn apply(packet: &mut Packet, to: &FiveTuple) {
    let from = packet.head.tuple;
    let (ip_bytes, kind, partial) =
        (usize::from(packet.head.ip_bytes), packet.head.kind, packet.offload.checksum_partial);
    let bytes = packet.bytes_mut();
    set_addresses(bytes, &from, to);
    let layer4 = &mut bytes[ip_bytes..];
    match kind {
        Kind::Tcp(_) | Kind::Udp => {
            let at = if kind == Kind::Udp { 6 } else { 16 };
            set_ports(layer4, &from, to);
            let field = u16::from_be_bytes([layer4[at], layer4[at + 1]]);
            let none = kind == Kind::Udp && field == 0 && !partial;
            if !none {
                let mended = match partial {
                    true => Sum::updated_partial(field, addresses(&from), addresses(to)),
                    false => Sum::updated(field, addresses(&from).and(ports(&from)), addresses(to).and(ports(to))),
                };
                let mended = if kind == Kind::Udp && mended == 0 { 0xffff } else { mended };
                layer4[at..at + 2].copy_from_slice(&mended.to_be_bytes());
            }
        }
        Kind::EchoRequest | Kind::EchoReply if from.protocol == protocol::ICMPV6 => {
            let field = u16::from_be_bytes([layer4[2], layer4[3]]);
            let mended = Sum::updated(field, addresses(&from), addresses(to));
            layer4[2..4].copy_from_slice(&mended.to_be_bytes());
        }
        Kind::EchoRequest | Kind::EchoReply | Kind::IcmpError | Kind::FragmentTail => {}
    }
    let ports = (packet.head.tuple.source_port, packet.head.tuple.destination_port);
    packet.head.tuple = *to;
    if matches!(kind, Kind::IcmpError | Kind::FragmentTail) {
        (packet.head.tuple.source_port, packet.head.tuple.destination_port) = ports;
    }
}

/// Makes an ICMP error one of the other view: from `source` to `destination`, about a packet of the five-tuple
/// `quoted_to`, naming `mtu` if it names one. Extensions (RFC 4884) are cut off: they carry addresses (RFC 5837).
pub fn apply_error(
    packet: &mut Packet,
    quote: &Quote,
    quoted_to: &FiveTuple,
    source: IpAddr,
    destination: IpAddr,
    mtu: Option<u32>,
) {
    let outer = FiveTuple { source, destination, ..packet.head.tuple };
    let (from, family) = (packet.head.tuple, packet.head.family);
    let icmp = usize::from(packet.head.ip_bytes);
    packet.truncate(quote.end);
    let bytes = packet.bytes_mut();
    rewrite_quoted(&mut bytes[quote.start..], quote, quoted_to);
    set_length(bytes, family, icmp);
    set_addresses(bytes, &from, &outer);
    let message = &mut bytes[icmp..];
    match (family, mtu) {
        (Family::V4, None) => message[5] = 0,
        (Family::V6, None) => message[4] = 0,
        (Family::V4, Some(mtu)) => message[4..8].copy_from_slice(&mtu.min(0xffff).to_be_bytes()),
        (Family::V6, Some(mtu)) => message[4..8].copy_from_slice(&mtu.to_be_bytes()),
    }
    set_icmp_checksum(&outer, message);
    packet.head.tuple = outer;
}

fn rewrite_quoted(quoted: &mut [u8], quote: &Quote, to: &FiveTuple) {
    let from = quote.tuple;
    set_addresses(quoted, &from, to);
    let layer4 = &mut quoted[quote.ip_bytes..];
    let (at, old, new) = match from.protocol {
        protocol::TCP => (16, addresses(&from).and(ports(&from)), addresses(to).and(ports(to))),
        protocol::UDP => (6, addresses(&from).and(ports(&from)), addresses(to).and(ports(to))),
        protocol::ICMPV6 => (2, addresses(&from), addresses(to)),
        _ => return,
    };
    if from.protocol != protocol::ICMPV6 {
        set_ports(layer4, &from, to);
    }
    // TCP's checksum may lie beyond what was quoted.
    let Some(field) = layer4.get_mut(at..at + 2) else { return };
    let value = u16::from_be_bytes([field[0], field[1]]);
    if from.protocol == protocol::UDP && value == 0 {
        return;
    }
    let mended = match Sum::updated(value, old, new) {
        0 if from.protocol == protocol::UDP => 0xffff,
        mended => mended,
    };
    field.copy_from_slice(&mended.to_be_bytes());
}

/// Addresses in the IP header at the begin of `bytes`, and the checksum of an IPv4 header.
fn set_addresses(bytes: &mut [u8], from: &FiveTuple, to: &FiveTuple) {
    match (to.source, to.destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            bytes[12..16].copy_from_slice(&source.octets());
            bytes[16..20].copy_from_slice(&destination.octets());
            let field = u16::from_be_bytes([bytes[10], bytes[11]]);
            let mended = Sum::updated(field, addresses(from), addresses(to));
            bytes[10..12].copy_from_slice(&mended.to_be_bytes());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            bytes[8..24].copy_from_slice(&source.octets());
            bytes[24..40].copy_from_slice(&destination.octets());
        }
        // Flows are of one family; a tuple of two is never made.
        (IpAddr::V4(_) | IpAddr::V6(_), _) => {}
    }
}

fn set_ports(layer4: &mut [u8], from: &FiveTuple, to: &FiveTuple) {
    if (from.source_port, from.destination_port) != (to.source_port, to.destination_port) {
        layer4[..2].copy_from_slice(&to.source_port.to_be_bytes());
        layer4[2..4].copy_from_slice(&to.destination_port.to_be_bytes());
    }
}

/// The packet's length, now that it may be shorter, and for IPv4 the header checksum with it.
fn set_length(bytes: &mut [u8], family: Family, ip_bytes: usize) {
    let length = bytes.len();
    match family {
        Family::V4 => {
            let old = Sum::of(&bytes[2..4]);
            bytes[2..4].copy_from_slice(&(length as u16).to_be_bytes());
            let field = u16::from_be_bytes([bytes[10], bytes[11]]);
            let mended = Sum::updated(field, old, Sum::of(&bytes[2..4]));
            bytes[10..12].copy_from_slice(&mended.to_be_bytes());
        }
        Family::V6 => {
            debug_assert!(ip_bytes >= 40);
            bytes[4..6].copy_from_slice(&((length - 40) as u16).to_be_bytes());
        }
    }
}

fn addresses(tuple: &FiveTuple) -> Sum {
    Sum::default().address(tuple.source).address(tuple.destination)
}

fn ports(tuple: &FiveTuple) -> Sum {
    Sum::default().word(tuple.source_port).word(tuple.destination_port)
}
