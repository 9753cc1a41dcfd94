//! One packet, checked once. Parsing proves every length; accessors cannot fail after it.
//! Also: setters that mend checksums, ICMP errors, replies, segments apart (`split`) and together (`join`).
//! Decides nothing and remembers nothing.

use crate::addr::Family;
use std::net::IpAddr;
use std::num::NonZeroU16;

pub use crate::addr::protocol;

/// For ICMP echo both ports are the identifier, so that request and reply are each other's reverse.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FiveTuple {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub source_port: u16,
    pub destination_port: u16,
    pub protocol: u8,
}

impl FiveTuple {
    #[must_use]
    pub fn reversed(self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            protocol: self.protocol,
        }
    }
}

/// What the virtio header says of a packet besides its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Offload {
    /// The L4 checksum field holds the pseudo-header's sum only (`VIRTIO_NET_HDR_F_NEEDS_CSUM`).
    pub checksum_partial: bool,
    /// Payload bytes of each segment, when the packet is a super-packet.
    pub segment_bytes: Option<NonZeroU16>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TcpHead {
    /// FIN, SYN, RST, PSH, ACK, URG, ECE, CWR from bit 0 (RFC 9293).
    pub flags: u8,
    pub sequence: u32,
    pub acknowledgment: u32,
    pub window: u16,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Tcp(TcpHead),
    Udp,
    EchoRequest,
    EchoReply,
    /// An ICMP error; the tuple's addresses are the outer ones, its ports 0.
    IcmpError,
    /// A fragment but the first: addresses, protocol and id, no ports.
    FragmentTail,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fragment {
    pub id: u32,
    /// In bytes.
    pub offset: u16,
    pub more: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Head {
    pub family: Family,
    pub tuple: FiveTuple,
    pub kind: Kind,
    /// IP header with its options or extension headers: where layer 4 begins.
    pub ip_bytes: u16,
    /// Layer-4 header; 0 in a fragment's tail.
    pub l4_bytes: u16,
    /// The whole packet. More than the slice at hand when segments were joined.
    pub total_bytes: u32,
    /// TTL or hop limit.
    pub hops: u8,
    pub dont_fragment: bool,
    pub fragment: Option<Fragment>,
}
pub struct Packet<'a> {
    pub head: Head,
    pub offload: Offload,
    bytes: &'a mut [u8],
}
pub struct Expired;
#[derive(Debug)]
pub enum ParseError {
    Malformed,
    TinyFragment,
    SourceRoute,
    UnsupportedProtocol(u8),
    IcmpOther,
}
pub enum Unreachable {
    Host,
    AdminProhibited,
}
pub enum IcmpError {
    Unreachable { code: u8 },
    TooBig { mtu: u32 },
    TimeExceeded { code: u8 },
}
pub struct Quote {
    pub tuple: FiveTuple,
    pub tcp_sequence: Option<u32>,
    pub what: IcmpError,
}
impl<'a> Packet<'a> {
    pub fn parse(_: &'a mut [u8], _: Offload) -> Result<Self, ParseError> {
        panic!()
    }
    pub fn decrement_hops(&mut self) -> Result<(), Expired> {
        panic!()
    }
    pub fn clamp_mss(&mut self, _: u16) {}
}
pub fn quote(_: &Packet) -> Result<Quote, ParseError> {
    panic!()
}
pub fn split(_: &Packet, _: &mut [u8], _: impl FnMut(&[u8])) {}
pub fn fragment(_: &Packet, _: u16, _: &mut [u8], _: impl FnMut(&[u8])) -> bool {
    false
}
pub fn reset(_: &Packet) -> Option<Vec<u8>> {
    None
}
pub fn unreachable(_: &Packet, _: Unreachable, _: IpAddr) -> Option<Vec<u8>> {
    None
}
pub fn time_exceeded(_: &Packet, _: IpAddr) -> Option<Vec<u8>> {
    None
}
pub fn too_big(_: &Packet, _: u16, _: IpAddr) -> Option<Vec<u8>> {
    None
}
pub fn largest_segment(_: &Packet) -> u32 {
    0
}
pub fn may_fragment(_: &Packet) -> bool {
    false
}
pub fn segment_count(_: &Packet) -> u32 {
    0
}
#[derive(Debug)]
pub struct Joiner;
pub struct Group<'a> {
    pub peer: crate::addr::PeerId,
    pub packets: u32,
    pub bytes: u64,
    pub packet: Packet<'a>,
}
impl Joiner {
    pub fn new(_: usize) -> Self {
        Self
    }
    pub fn room(&self) -> usize {
        0
    }
    pub fn space(&mut self) -> &mut [u8] {
        &mut []
    }
    pub fn push(&mut self, _: crate::addr::PeerId, _: usize) -> Result<(), ParseError> {
        Ok(())
    }
    pub fn len(&self) -> usize {
        0
    }
    pub fn group(&mut self, _: usize) -> Group<'_> {
        panic!()
    }
    pub fn deliver(&mut self, _: usize) {}
    pub fn clear(&mut self) {}
}
