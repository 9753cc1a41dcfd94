//! ICMP errors: what they say, and the packet they quote.

use super::checksum::Sum;
use super::parse::{IpHead, be16, be32};
use super::{FiveTuple, Packet, ParseError, protocol};
use crate::addr::Family;

/// RFC 4884 section 5.1: a length field in the ICMP header means at least so much quoted packet.
const QUOTE_WITH_LENGTH_MIN: usize = 128;

/// Both families alike.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IcmpError {
    Unreachable { code: u8 },
    TooBig { mtu: u32 },
    TimeExceeded { code: u8 },
    ParameterProblem { code: u8 },
}

/// The quoted packet, as far as it is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Quote {
    pub what: IcmpError,
    /// As quoted: from whoever sent the packet that the error is about.
    pub tuple: FiveTuple,
    pub tcp_sequence: Option<u32>,
    /// Where the quoted packet begins in the whole packet, and how long its IP header is.
    pub(crate) start: usize,
    pub(crate) ip_bytes: usize,
    /// Where it ends: before padding and extensions (RFC 4884).
    pub(crate) end: usize,
}

/// Reads an ICMP error. Wrong checksums of the message or of the quoted IPv4 header refuse it (RFC 5508 REQ-3); only the
/// message itself can be malformed: what it quotes is then of no packet that could have passed.
pub fn quote(packet: &Packet) -> Result<Quote, ParseError> {
    if !packet.checksum_is_right() {
        return Err(ParseError::Malformed);
    }
    let start = usize::from(packet.head.ip_bytes) + 8;
    let message = packet.layer4();
    let what = meaning(packet.head.family, message)?;
    let quoted = before_extensions(packet.head.family, what, message)?;
    let ip = IpHead::parse(quoted).map_err(|_| ParseError::IcmpOther)?;
    if ip.family != packet.head.family || ip.fragment.is_some_and(|fragment| fragment.offset > 0) {
        return Err(ParseError::IcmpOther);
    }
    let quoted_bytes = quoted.len().min(ip.total_bytes);
    let layer4 = quoted.get(ip.ip_bytes..quoted_bytes).filter(|l4| l4.len() >= 8).ok_or(ParseError::IcmpOther)?;
    let ports = match (ip.family, ip.protocol, layer4[0]) {
        (_, protocol::TCP | protocol::UDP, _) => (be16(layer4, 0), be16(layer4, 2)),
        (Family::V4, protocol::ICMP, 0 | 8) | (Family::V6, protocol::ICMPV6, 128 | 129) => {
            (be16(layer4, 4), be16(layer4, 4))
        }
        (_, _, _) => return Err(ParseError::IcmpOther),
    };
    let tuple = FiveTuple {
        source: ip.source,
        destination: ip.destination,
        source_port: ports.0,
        destination_port: ports.1,
        protocol: ip.protocol,
    };
    let tcp_sequence = (ip.protocol == protocol::TCP).then(|| be32(layer4, 4));
    Ok(Quote { what, tuple, tcp_sequence, start, ip_bytes: ip.ip_bytes, end: start + quoted_bytes })
}

/// What is quoted, without the extensions that may follow it. Only where the other header fields leave room for it a
/// length says where they begin (RFC 4884 section 4).
fn before_extensions(family: Family, what: IcmpError, message: &[u8]) -> Result<&[u8], ParseError> {
    let quoted = &message[8..];
    let length = match (family, what) {
        (Family::V4, _) => 4 * usize::from(message[5]),
        (Family::V6, IcmpError::Unreachable { .. } | IcmpError::TimeExceeded { .. }) => 8 * usize::from(message[4]),
        (Family::V6, IcmpError::TooBig { .. } | IcmpError::ParameterProblem { .. }) => return Ok(quoted),
    };
    match length {
        0 if is_extension(quoted.get(QUOTE_WITH_LENGTH_MIN..).unwrap_or_default()) => {
            Ok(&quoted[..QUOTE_WITH_LENGTH_MIN])
        }
        0 => Ok(quoted),
        length if length >= QUOTE_WITH_LENGTH_MIN => quoted.get(..length).ok_or(ParseError::Malformed),
        _ => Err(ParseError::Malformed),
    }
}

/// Whether these bytes look like an extension structure. Hosts older than the length field put it after 128 bytes
/// without saying so (RFC 4884 section 5).
fn is_extension(bytes: &[u8]) -> bool {
    // Version 2, the rest of the first word reserved (RFC 4884 section 7), then at least one object.
    let has_objects = bytes.len() >= 8 && bytes[..2] == [0x20, 0];
    has_objects && (be16(bytes, 2) == 0 || Sum::of(bytes).checksum() == 0)
}

fn meaning(family: Family, message: &[u8]) -> Result<IcmpError, ParseError> {
    let code = message[1];
    Ok(match (family, message[0], code) {
        (Family::V4, 3, 4) => IcmpError::TooBig { mtu: be16(message, 6).into() },
        (Family::V6, 2, _) => IcmpError::TooBig { mtu: be32(message, 4) },
        (Family::V4, 3, _) | (Family::V6, 1, _) => IcmpError::Unreachable { code },
        (Family::V4, 11, _) | (Family::V6, 3, _) => IcmpError::TimeExceeded { code },
        (Family::V4, 12, _) | (Family::V6, 4, _) => IcmpError::ParameterProblem { code },
        (_, _, _) => return Err(ParseError::IcmpOther),
    })
}

/// The checksum of an ICMP message, anew.
pub(crate) fn set_checksum(tuple: &FiveTuple, message: &mut [u8]) {
    message[2..4].fill(0);
    let pseudo = match tuple.protocol {
        protocol::ICMP => Sum::default(),
        _ => Sum::pseudo(tuple.source, tuple.destination, tuple.protocol, message.len() as u32),
    };
    let checksum = pseudo.and(Sum::of(message)).checksum();
    message[2..4].copy_from_slice(&checksum.to_be_bytes());
}
