//! The virtio network header (VIRTIO 1.2 section 5.1.6, `struct virtio_net_hdr` of 10 bytes, little endian here as the
//! TUN device gives it on this host's byte order).

use super::{Head, Kind, Offload, ParseError};
use crate::addr::Family;
use std::num::NonZeroU16;

pub const HEADER_BYTES: usize = 10;

const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// A flag beside the type: the segments carry ECN.
const GSO_ECN: u8 = 0x80;

/// What it says of the packet. Where the checksum is and how long the headers are is derived, never believed.
pub fn decode(header: &[u8; HEADER_BYTES]) -> Result<Offload, ParseError> {
    let segment_bytes = match header[1] & !GSO_ECN {
        GSO_NONE => None,
        GSO_TCPV4 | GSO_TCPV6 | GSO_UDP_L4 => {
            let bytes = u16::from_ne_bytes([header[4], header[5]]);
            Some(NonZeroU16::new(bytes).ok_or(ParseError::Malformed)?)
        }
        _ => return Err(ParseError::Malformed),
    };
    Ok(Offload { checksum_partial: header[0] & NEEDS_CSUM != 0, segment_bytes })
}

/// Whether it is of joined UDP datagrams, which kernels before Linux 6.2 do not take.
#[must_use]
pub fn is_udp_segments(header: &[u8; HEADER_BYTES]) -> bool {
    header[1] & !GSO_ECN == GSO_UDP_L4
}

#[must_use]
pub fn encode(head: &Head, offload: Offload) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    if let Some(segment_bytes) = offload.segment_bytes {
        header[1] = match (head.kind, head.family) {
            (Kind::Udp, _) => GSO_UDP_L4,
            (_, Family::V4) => GSO_TCPV4,
            (_, Family::V6) => GSO_TCPV6,
        };
        header[2..4].copy_from_slice(&(head.ip_bytes + head.l4_bytes).to_ne_bytes());
        header[4..6].copy_from_slice(&segment_bytes.get().to_ne_bytes());
    }
    if offload.checksum_partial {
        let offset = super::split::checksum_offset(head.tuple.protocol).unwrap_or(0) as u16;
        header[0] = NEEDS_CSUM;
        header[6..8].copy_from_slice(&head.ip_bytes.to_ne_bytes());
        header[8..10].copy_from_slice(&offset.to_ne_bytes());
    }
    header
}
