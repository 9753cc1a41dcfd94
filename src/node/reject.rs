//! What a refused packet is answered with: within the site an error that applications understand at once; towards
//! another site silence. And which reason each room's error is.

use super::{Node, Output, Reason};
use crate::addr::Holder;
use crate::packet::{self, Kind, Packet, ParseError, Unreachable};
use crate::tunnel::{OpenError, SealError};
use std::net::IpAddr;
use std::time::Instant;

const SYN: u8 = 0x02;

impl Node {
    /// Answers a packet of this site that goes nowhere.
    pub(super) fn reject(&mut self, of: &Packet, reason: Reason, output: &mut Output, now: Instant) {
        if !self.rejects.take(1, now) {
            return;
        }
        let family = of.head.family;
        let gateway = self.leases.block(&Holder::Gateway { family }).map(|block| block.addr());
        let source = gateway.unwrap_or(of.head.tuple.destination);
        let opens = match of.head.kind {
            Kind::Tcp(tcp) => tcp.flags & SYN != 0,
            Kind::Udp | Kind::EchoRequest => true,
            Kind::EchoReply | Kind::IcmpError | Kind::FragmentTail => false,
        };
        let answer = match reason {
            Reason::TtlExpired => packet::time_exceeded(of, source),
            Reason::TooBig => packet::too_big(of, self.inner_mtu(), source),
            // A connection that is open must outlive a peer that is away for a while.
            Reason::NoPath | Reason::NotOffered if !opens => None,
            Reason::NoPath => packet::unreachable(of, Unreachable::Host, source),
            // What comes from a false source has nobody to tell.
            Reason::SpoofedSource | Reason::NotUnicast => None,
            _ => match of.head.kind {
                Kind::Tcp(_) => packet::reset(of),
                Kind::Udp | Kind::EchoRequest => packet::unreachable(of, Unreachable::AdminProhibited, source),
                Kind::EchoReply | Kind::IcmpError | Kind::FragmentTail => None,
            },
        };
        output.packets.extend(answer);
    }
}

/// Whether an address can be one host's, reached through a router.
pub(super) fn is_unicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(a) => !(a.is_multicast() || a.is_broadcast() || a.is_link_local() || a.is_unspecified()),
        IpAddr::V6(a) => !(a.is_multicast() || a.is_unicast_link_local() || a.is_unspecified()),
    }
}

pub(super) fn of_parse(error: ParseError) -> Reason {
    match error {
        ParseError::Malformed => Reason::Malformed,
        ParseError::TinyFragment => Reason::Fragment,
        ParseError::SourceRoute => Reason::SourceRoute,
        ParseError::UnsupportedProtocol(_) => Reason::UnsupportedProtocol,
        ParseError::IcmpOther => Reason::UnrelatedIcmp,
    }
}

pub(super) fn of_seal(error: SealError) -> Reason {
    match error {
        SealError::NoPath => Reason::NoPath,
        SealError::Overload => Reason::Overload,
    }
}

pub(super) fn of_open(error: OpenError) -> Reason {
    match error {
        OpenError::Malformed => Reason::Malformed,
        OpenError::Replayed => Reason::Replayed,
        OpenError::Unauthentic => Reason::Unauthentic,
        OpenError::UnderLoad | OpenError::Overload => Reason::Overload,
    }
}
