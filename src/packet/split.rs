//! A super-packet into the packets that it stands for, each with its own checksums.

use super::checksum::Sum;
use super::{Kind, Packet, protocol};
use crate::addr::Family;

const FIN_PSH: u8 = 0x09;
const CWR: u8 = 0x80;

/// How many packets [`split`] makes of it.
#[must_use]
pub fn segment_count(packet: &Packet) -> u32 {
    let segment = packet.offload.segment_bytes.map_or(u32::MAX, |bytes| u32::from(bytes.get()));
    (packet.payload().len() as u32).div_ceil(segment).max(1)
}

/// The length of the largest of them.
#[must_use]
pub fn largest_segment(packet: &Packet) -> u32 {
    let headers = u32::from(packet.head.ip_bytes) + u32::from(packet.head.l4_bytes);
    let segment = packet.offload.segment_bytes.map_or(u32::MAX, |bytes| u32::from(bytes.get()));
    packet.head.total_bytes.min(headers.saturating_add(segment))
}

/// Whether a packet too large for a link may be fragmented on its way (RFC 791; never IPv6, RFC 8200).
#[must_use]
pub fn may_fragment(packet: &Packet) -> bool {
    packet.head.family == Family::V4 && !packet.head.dont_fragment && packet.offload.segment_bytes.is_none()
}

/// Emits the packets that it stands for, with complete checksums, built in `scratch`.
pub fn split(packet: &Packet, scratch: &mut [u8], mut emit: impl FnMut(&[u8])) {
    // Without payload there is nothing to divide.
    let Some(segment_bytes) = packet.offload.segment_bytes.filter(|_| !packet.payload().is_empty()) else {
        if !packet.offload.checksum_partial {
            return emit(packet.bytes());
        }
        let bytes = &mut scratch[..packet.bytes().len()];
        bytes.copy_from_slice(packet.bytes());
        set_checksum(packet, bytes);
        return emit(bytes);
    };
    let (ip_bytes, headers) = (usize::from(packet.head.ip_bytes), packet.bytes().len() - packet.payload().len());
    let segment_bytes = usize::from(segment_bytes.get());
    let count = packet.payload().len().div_ceil(segment_bytes);
    for (number, payload) in packet.payload().chunks(segment_bytes).enumerate() {
        let length = headers + payload.len();
        let bytes = &mut scratch[..length];
        bytes[..headers].copy_from_slice(&packet.bytes()[..headers]);
        bytes[headers..].copy_from_slice(payload);
        set_ip_length(packet, bytes, number as u16);
        match packet.head.kind {
            Kind::Tcp(tcp) => {
                let sequence = tcp.sequence.wrapping_add((number * segment_bytes) as u32);
                bytes[ip_bytes + 4..ip_bytes + 8].copy_from_slice(&sequence.to_be_bytes());
                let not_last = if number + 1 < count { FIN_PSH } else { 0 };
                let not_first = if number > 0 { CWR } else { 0 };
                bytes[ip_bytes + 13] &= !(not_last | not_first);
            }
            _ => bytes[ip_bytes + 4..ip_bytes + 6].copy_from_slice(&((length - ip_bytes) as u16).to_be_bytes()),
        }
        set_checksum(packet, bytes);
        emit(bytes);
    }
}

/// Total length, and for IPv4 the identification of the `number`th segment and the header checksum.
pub(super) fn set_ip_length(packet: &Packet, bytes: &mut [u8], number: u16) {
    match packet.head.family {
        Family::V4 => {
            let ip_bytes = usize::from(packet.head.ip_bytes);
            let length = (bytes.len() as u16).to_be_bytes();
            bytes[2..4].copy_from_slice(&length);
            let id = u16::from_be_bytes([bytes[4], bytes[5]]).wrapping_add(number);
            bytes[4..6].copy_from_slice(&id.to_be_bytes());
            set_ipv4_checksum(&mut bytes[..ip_bytes]);
        }
        Family::V6 => {
            let length = (bytes.len() - 40) as u16;
            bytes[4..6].copy_from_slice(&length.to_be_bytes());
        }
    }
}

pub(super) fn set_ipv4_checksum(header: &mut [u8]) {
    header[10..12].fill(0);
    let checksum = Sum::of(header).checksum();
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
}

/// The layer-4 checksum of a whole packet of the kind of `packet`, anew.
pub(super) fn set_checksum(packet: &Packet, bytes: &mut [u8]) {
    let tuple = &packet.head.tuple;
    let layer4 = &mut bytes[usize::from(packet.head.ip_bytes)..];
    let Some(at) = checksum_offset(tuple.protocol) else { return };
    layer4[at..at + 2].fill(0);
    let pseudo = Sum::pseudo(tuple.source, tuple.destination, tuple.protocol, layer4.len() as u32);
    let checksum = match pseudo.and(Sum::of(layer4)).checksum() {
        0 if tuple.protocol == protocol::UDP => 0xffff,
        checksum => checksum,
    };
    layer4[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
}

/// Where the checksum stands in the header, for protocols with a pseudo-header and offload.
pub(super) fn checksum_offset(protocol: u8) -> Option<usize> {
    match protocol {
        protocol::TCP => Some(16),
        protocol::UDP => Some(6),
        _ => None,
    }
}
