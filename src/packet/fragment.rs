//! Fragmenting an IPv4 packet that is too large for the tunnel and may be fragmented (RFC 791 section 3.2).

use super::Packet;
use super::split::{may_fragment, set_checksum, set_ipv4_checksum};

/// Flag: more fragments.
const MORE: u16 = 0x2000;
/// Options with this bit go into every fragment (RFC 791 section 3.1); the others only into the first.
const COPIED: u8 = 0x80;
const NO_OPERATION: u8 = 1;

/// Emits fragments of at most `mtu` bytes; nothing where that may not be. The packet may be a fragment itself.
/// `scratch` holds the packet twice.
pub fn fragment(packet: &Packet, mtu: u16, scratch: &mut [u8], mut emit: impl FnMut(&[u8])) {
    if !may_fragment(packet) {
        return;
    }
    let ip_bytes = usize::from(packet.head.ip_bytes);
    let (whole, piece) = scratch.split_at_mut(scratch.len() / 2);
    let Some(whole) = whole.get_mut(..packet.bytes().len()) else { return };
    whole.copy_from_slice(packet.bytes());
    if packet.offload.checksum_partial {
        set_checksum(packet, whole);
    }
    let payload_max = usize::from(mtu).saturating_sub(ip_bytes) & !7;
    if payload_max == 0 {
        return;
    }
    let (offset, more) = packet.head.fragment.map_or((0, false), |fragment| (fragment.offset, fragment.more));
    let (header, payload) = whole.split_at_mut(ip_bytes);
    let last = payload.len().div_ceil(payload_max) - 1;
    for (number, part) in payload.chunks(payload_max).enumerate() {
        if number == 1 {
            drop_first_only_options(&mut header[20..]);
        }
        let bytes = &mut piece[..ip_bytes + part.len()];
        bytes[..ip_bytes].copy_from_slice(header);
        bytes[ip_bytes..].copy_from_slice(part);
        let units = (usize::from(offset) + number * payload_max) / 8;
        let flags = if number < last || more { MORE } else { 0 };
        let length = bytes.len() as u16;
        bytes[2..4].copy_from_slice(&length.to_be_bytes());
        bytes[6..8].copy_from_slice(&(units as u16 | flags).to_be_bytes());
        set_ipv4_checksum(&mut bytes[..ip_bytes]);
        emit(bytes);
    }
}

fn drop_first_only_options(options: &mut [u8]) {
    let mut at = 0;
    while let Some(kind) = options.get(at).copied().filter(|kind| *kind != 0) {
        let length = match kind {
            NO_OPERATION => 1,
            _ => options.get(at + 1).map_or(1, |length| usize::from(*length).max(1)),
        };
        let end = (at + length).min(options.len());
        if kind & COPIED == 0 {
            options[at..end].fill(NO_OPERATION);
        }
        at = end;
    }
}
