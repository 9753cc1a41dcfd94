//! One packet, checked once. Parsing proves every length; accessors cannot fail after it.
//! Also: setters that mend checksums, ICMP errors, replies, segments apart (`split`) and together (`join`).
//! Decides nothing and remembers nothing.

mod checksum;
mod fragment;
mod icmp;
mod join;
mod parse;
mod reply;
mod split;
pub mod virtio;

pub(crate) use checksum::Sum;
pub use fragment::fragment;
pub(crate) use icmp::set_checksum as set_icmp_checksum;
pub use icmp::{IcmpError, Quote, quote};
pub use join::{Delivery, Group, Joiner};
pub use parse::{Expired, Packet, ParseError};
pub use reply::{Unreachable, reset, time_exceeded, too_big, unreachable};
pub use split::{largest_segment, may_fragment, segment_count, split};

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
