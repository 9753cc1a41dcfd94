//! The check at the door. After it, every offset in [`Head`] lies inside the packet.

use super::checksum::Sum;
use super::{FiveTuple, Fragment, Head, Kind, Offload, TcpHead, protocol};
use crate::addr::Family;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// More extension headers than any honest packet has (RFC 8504 section 5.3 lets a host set such a limit).
const EXTENSION_HEADERS_MAX: usize = 8;
const SYN: u8 = 0x02;
const MSS_OPTION: u8 = 2;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ParseError {
    Malformed,
    /// A first fragment without its whole layer-4 header (RFC 3128), or a fragment that cannot be.
    TinyFragment,
    SourceRoute,
    UnsupportedProtocol(u8),
    /// ICMP that is neither echo nor an error about a packet.
    IcmpOther,
}

/// The hop limit would become zero.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Expired;

/// A checked packet over its bytes. When segments were joined, the bytes are those of the first one.
#[derive(Debug)]
pub struct Packet<'a> {
    pub head: Head,
    pub offload: Offload,
    bytes: &'a mut [u8],
}

impl<'a> Packet<'a> {
    /// Checks everything once. Bytes beyond what the IP header says (padding) are cut off.
    pub fn parse(bytes: &'a mut [u8], offload: Offload) -> Result<Self, ParseError> {
        let head = Head::parse(bytes)?;
        let bytes = &mut bytes[..head.total_bytes as usize];
        let whole = matches!(head.kind, Kind::Tcp(_) | Kind::Udp) && head.fragment.is_none();
        if offload != Offload::default() && !whole {
            return Err(ParseError::Malformed);
        }
        Ok(Self { head, offload, bytes })
    }

    /// Over bytes whose head was parsed before, and joined with others since.
    pub(super) fn joined(head: Head, offload: Offload, bytes: &'a mut [u8]) -> Self {
        Self { head, offload, bytes }
    }

    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.bytes
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        self.bytes
    }

    /// Cuts the packet off after `length` bytes; the headers are the caller's to mend.
    pub(crate) fn truncate(&mut self, length: usize) {
        let bytes = std::mem::take(&mut self.bytes);
        let length = length.min(bytes.len());
        self.bytes = &mut bytes[..length];
        self.head.total_bytes = length as u32;
    }

    /// From layer 4 on.
    #[must_use]
    pub fn layer4(&self) -> &[u8] {
        &self.bytes[usize::from(self.head.ip_bytes)..]
    }

    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.bytes[usize::from(self.head.ip_bytes + self.head.l4_bytes)..]
    }

    /// Whether the layer-4 checksum of a whole packet holds. A UDP checksum of zero in IPv4 says that there is none.
    #[must_use]
    pub fn checksum_is_right(&self) -> bool {
        let (tuple, layer4) = (&self.head.tuple, self.layer4());
        if self.head.family == Family::V4 && self.head.kind == Kind::Udp && layer4[6..8] == [0, 0] {
            return true;
        }
        let pseudo = match tuple.protocol {
            protocol::ICMP => Sum::default(),
            _ => Sum::pseudo(tuple.source, tuple.destination, tuple.protocol, layer4.len() as u32),
        };
        pseudo.and(Sum::of(layer4)).checksum() == 0
    }

    /// One hop more. Refused, and left alone, where none is left.
    pub fn decrement_hops(&mut self) -> Result<(), Expired> {
        if self.head.hops <= 1 {
            return Err(Expired);
        }
        self.head.hops -= 1;
        match self.head.family {
            Family::V4 => {
                let old = Sum::of(&self.bytes[8..10]);
                self.bytes[8] = self.head.hops;
                let new = Sum::of(&self.bytes[8..10]);
                let checksum = Sum::updated(be16(self.bytes, 10), old, new);
                self.bytes[10..12].copy_from_slice(&checksum.to_be_bytes());
            }
            Family::V6 => self.bytes[7] = self.head.hops,
        }
        Ok(())
    }

    /// Lowers the MSS option of a SYN to `mss_max`; never raises it, never adds one.
    pub fn clamp_mss(&mut self, mss_max: u16) {
        let Kind::Tcp(tcp) = self.head.kind else { return };
        if tcp.flags & SYN == 0 {
            return;
        }
        let ip_bytes = usize::from(self.head.ip_bytes);
        let Some(at) = mss_option(&self.layer4()[20..usize::from(self.head.l4_bytes)]).map(|at| 20 + at) else {
            return;
        };
        let partial = self.offload.checksum_partial;
        let layer4 = &mut self.bytes[ip_bytes..];
        if be16(layer4, at) <= mss_max {
            return;
        }
        // The option may lie across two words of the checksum.
        let words = (at & !1)..((at + 3) & !1).min(layer4.len());
        let old = Sum::of(&layer4[words.clone()]);
        layer4[at..at + 2].copy_from_slice(&mss_max.to_be_bytes());
        if !partial {
            let checksum = Sum::updated(be16(layer4, 16), old, Sum::of(&layer4[words]));
            layer4[16..18].copy_from_slice(&checksum.to_be_bytes());
        }
    }
}

/// Where the value of the MSS option stands among the options.
fn mss_option(options: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        match (*options.get(at)?, options.get(at + 1)) {
            (0, _) => return None,
            (1, _) => at += 1,
            (MSS_OPTION, Some(4)) if at + 4 <= options.len() => return Some(at + 2),
            (_, Some(length)) if *length >= 2 => at += usize::from(*length),
            (_, _) => return None,
        }
    }
}

pub(super) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

pub(super) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// The IP header alone: what comes before layer 4.
pub(super) struct IpHead {
    pub family: Family,
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: u8,
    pub ip_bytes: usize,
    /// As the header says; may be more than there is in a quoted packet.
    pub total_bytes: usize,
    pub hops: u8,
    pub dont_fragment: bool,
    pub fragment: Option<Fragment>,
}

impl IpHead {
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        match bytes.first().map(|first| first >> 4) {
            Some(4) => Self::parse_v4(bytes),
            Some(6) => Self::parse_v6(bytes),
            Some(_) | None => Err(ParseError::Malformed),
        }
    }

    fn parse_v4(bytes: &[u8]) -> Result<Self, ParseError> {
        let header: &[u8; 20] = bytes.first_chunk().ok_or(ParseError::Malformed)?;
        let ip_bytes = usize::from(header[0] & 0x0f) * 4;
        let total_bytes = usize::from(be16(header, 2));
        if ip_bytes < 20 || ip_bytes > bytes.len() || total_bytes < ip_bytes {
            return Err(ParseError::Malformed);
        }
        if Sum::of(&bytes[..ip_bytes]).checksum() != 0 {
            return Err(ParseError::Malformed);
        }
        check_options(&bytes[20..ip_bytes])?;
        let flags = be16(header, 6);
        let (offset, more) = ((flags & 0x1fff) * 8, flags & 0x2000 != 0);
        let id = u32::from(be16(header, 4));
        Ok(Self {
            family: Family::V4,
            source: Ipv4Addr::new(header[12], header[13], header[14], header[15]).into(),
            destination: Ipv4Addr::new(header[16], header[17], header[18], header[19]).into(),
            protocol: header[9],
            ip_bytes,
            total_bytes,
            hops: header[8],
            dont_fragment: flags & 0x4000 != 0,
            fragment: (offset > 0 || more).then_some(Fragment { id, offset, more }),
        })
    }

    fn parse_v6(bytes: &[u8]) -> Result<Self, ParseError> {
        let header: &[u8; 40] = bytes.first_chunk().ok_or(ParseError::Malformed)?;
        let address = |at: usize| {
            let octets: [u8; 16] = std::array::from_fn(|i| header[at + i]);
            IpAddr::from(Ipv6Addr::from(octets))
        };
        let mut head = Self {
            family: Family::V6,
            source: address(8),
            destination: address(24),
            protocol: header[6],
            ip_bytes: 40,
            total_bytes: 40 + usize::from(be16(header, 4)),
            hops: header[7],
            dont_fragment: true,
            fragment: None,
        };
        head.walk_extensions(bytes)?;
        Ok(head)
    }

    /// As far as RFC 8200 section 4 lets a node look: hop-by-hop first, then destination options and one fragment header.
    fn walk_extensions(&mut self, bytes: &[u8]) -> Result<(), ParseError> {
        let mut is_fragment = false;
        for number in 0..=EXTENSION_HEADERS_MAX {
            let is_options = match self.protocol {
                0 if number == 0 => true,
                0 => return Err(ParseError::Malformed),
                60 => true,
                44 => false,
                43 => return Err(ParseError::SourceRoute),
                _ => return Ok(()),
            };
            let header = bytes.get(self.ip_bytes..self.ip_bytes + 8).ok_or(ParseError::Malformed)?;
            let length = if is_options { 8 * (1 + usize::from(header[1])) } else { 8 };
            if self.ip_bytes + length > bytes.len().min(self.total_bytes) {
                return Err(ParseError::Malformed);
            }
            if is_options {
                check_tlvs(&bytes[self.ip_bytes + 2..self.ip_bytes + length])?;
            } else {
                if is_fragment {
                    return Err(ParseError::Malformed);
                }
                is_fragment = true;
                let word = be16(header, 2);
                let fragment = Fragment { id: be32(header, 4), offset: word & 0xfff8, more: word & 1 != 0 };
                // An atomic fragment is whole (RFC 6946): it needs no other.
                self.fragment = Some(fragment).filter(|f| f.offset > 0 || f.more);
            }
            self.protocol = header[0];
            self.ip_bytes += length;
            if self.fragment.is_some_and(|fragment| fragment.offset > 0) {
                return Ok(());
            }
        }
        Err(ParseError::Malformed)
    }
}

/// Options that route or carry addresses are refused (RFC 7126 sections 4.3 to 4.7), as are lengths that lie.
fn check_options(options: &[u8]) -> Result<(), ParseError> {
    const RECORD_ROUTE: u8 = 7;
    const TIMESTAMP: u8 = 68;
    const TRACEROUTE: u8 = 82;
    const LOOSE_SOURCE_ROUTE: u8 = 131;
    const STRICT_SOURCE_ROUTE: u8 = 137;
    let mut at = 0;
    while at < options.len() {
        match options[at] {
            0 => return Ok(()),
            1 => at += 1,
            RECORD_ROUTE | TRACEROUTE | LOOSE_SOURCE_ROUTE | STRICT_SOURCE_ROUTE => {
                return Err(ParseError::SourceRoute);
            }
            // Unless its flags are 0, it holds addresses beside the times (RFC 791).
            TIMESTAMP if options.get(at + 3).is_none_or(|flags| flags & 0x0f != 0) => {
                return Err(ParseError::SourceRoute);
            }
            _ => match options.get(at + 1) {
                Some(length) if *length >= 2 && at + usize::from(*length) <= options.len() => {
                    at += usize::from(*length)
                }
                Some(_) | None => return Err(ParseError::Malformed),
            },
        }
    }
    Ok(())
}

/// The options of a hop-by-hop or destination options header: they fill it, and none carries an address.
fn check_tlvs(mut options: &[u8]) -> Result<(), ParseError> {
    const PAD1: u8 = 0;
    /// It takes the source's place, in the checksum too (RFC 6275 section 6.3).
    const HOME_ADDRESS: u8 = 0xc9;

    while let Some(kind) = options.first() {
        let length = match (*kind, options.get(1)) {
            (PAD1, _) => 1,
            (HOME_ADDRESS, _) => return Err(ParseError::SourceRoute),
            (_, Some(length)) => 2 + usize::from(*length),
            (_, None) => return Err(ParseError::Malformed),
        };
        options = options.get(length..).ok_or(ParseError::Malformed)?;
    }
    Ok(())
}

impl Head {
    fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let ip = IpHead::parse(bytes)?;
        if ip.total_bytes > bytes.len() || ip.ip_bytes > ip.total_bytes {
            return Err(ParseError::Malformed);
        }
        let layer4 = &bytes[ip.ip_bytes..ip.total_bytes];
        if let Some(fragment) = ip.fragment {
            let inner = layer4.len();
            let ends_odd = fragment.more && !inner.is_multiple_of(8);
            // The whole must not overrun its length field, which in IPv4 counts the header too.
            let header = if ip.family == Family::V4 { ip.ip_bytes } else { 0 };
            // A tail that begins within a TCP header could rewrite its flags (RFC 3128).
            let rewrites = ip.protocol == protocol::TCP && (1..20).contains(&fragment.offset);
            if ends_odd || inner == 0 || rewrites || header + usize::from(fragment.offset) + inner > 65_535 {
                return Err(ParseError::TinyFragment);
            }
        }
        let (kind, l4_bytes, ports) = layer4_head(&ip, layer4)?;
        let tuple = FiveTuple {
            source: ip.source,
            destination: ip.destination,
            source_port: ports.0,
            destination_port: ports.1,
            protocol: ip.protocol,
        };
        Ok(Self {
            family: ip.family,
            tuple,
            kind,
            ip_bytes: ip.ip_bytes as u16,
            l4_bytes,
            total_bytes: ip.total_bytes as u32,
            hops: ip.hops,
            dont_fragment: ip.dont_fragment,
            fragment: ip.fragment,
        })
    }
}

fn layer4_head(ip: &IpHead, layer4: &[u8]) -> Result<(Kind, u16, (u16, u16)), ParseError> {
    let short = if ip.fragment.is_some() { ParseError::TinyFragment } else { ParseError::Malformed };
    let is_tail = ip.fragment.is_some_and(|fragment| fragment.offset > 0);
    match (ip.family, ip.protocol) {
        (_, protocol::TCP | protocol::UDP) | (Family::V4, protocol::ICMP) | (Family::V6, protocol::ICMPV6) => {}
        (_, other) => return Err(ParseError::UnsupportedProtocol(other)),
    }
    if is_tail {
        return Ok((Kind::FragmentTail, 0, (0, 0)));
    }
    match ip.protocol {
        protocol::TCP => {
            let header: &[u8; 20] = layer4.first_chunk().ok_or(short)?;
            let l4_bytes = usize::from(header[12] >> 4) * 4;
            if l4_bytes < 20 || l4_bytes > layer4.len() {
                return Err(if l4_bytes < 20 { ParseError::Malformed } else { short });
            }
            let tcp = TcpHead {
                flags: header[13],
                sequence: be32(header, 4),
                acknowledgment: be32(header, 8),
                window: be16(header, 14),
            };
            Ok((Kind::Tcp(tcp), l4_bytes as u16, (be16(header, 0), be16(header, 2))))
        }
        protocol::UDP => {
            let header: &[u8; 8] = layer4.first_chunk().ok_or(short)?;
            let length = usize::from(be16(header, 4));
            let holds = if ip.fragment.is_some() { length >= layer4.len() } else { length == layer4.len() };
            if !holds {
                return Err(ParseError::Malformed);
            }
            Ok((Kind::Udp, 8, (be16(header, 0), be16(header, 2))))
        }
        _ => {
            let header: &[u8; 8] = layer4.first_chunk().ok_or(short)?;
            let id = be16(header, 4);
            let kind = match (ip.family, header[0]) {
                (Family::V4, 8) | (Family::V6, 128) => Kind::EchoRequest,
                (Family::V4, 0) | (Family::V6, 129) => Kind::EchoReply,
                (Family::V4, 3 | 11 | 12) | (Family::V6, 1..=4) if ip.fragment.is_none() => Kind::IcmpError,
                (Family::V4 | Family::V6, _) => return Err(ParseError::IcmpOther),
            };
            let ports = if kind == Kind::IcmpError { (0, 0) } else { (id, id) };
            Ok((kind, 8, ports))
        }
    }
}
