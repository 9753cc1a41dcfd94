//! The head of what two agents' tunnels say to each other inside a session: an inner packet, IPv4 and UDP from and to port
//! 7077, between the agents' own wire addresses. No more than the tunnels see it.

use crate::addr::{Family, wire};
use crate::packet::Sum;
use std::net::IpAddr;

/// IPv4 and UDP header, kind, three zeros.
pub(super) const HEAD_BYTES: usize = 32;
const IP_BYTES: usize = 20;
const PORT: u16 = 7077;
const UDP: u8 = 17;

/// From the agent as a caller to the agent as a service, or back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ends {
    ToAgent,
    FromAgent,
}

/// Of a packet of this kind, so many bytes long.
pub(super) fn head(ends: Ends, kind: u8, bytes: usize) -> [u8; HEAD_BYTES] {
    let mut head = [0; HEAD_BYTES];
    let caller = octets(wire::caller(Family::V4, wire::AGENT));
    let service = octets(wire::service(Family::V4, wire::AGENT));
    let (source, destination) = match ends {
        Ends::ToAgent => (caller, service),
        Ends::FromAgent => (service, caller),
    };
    let udp_bytes = bytes.saturating_sub(IP_BYTES);
    // Version and header length; total length; hop limit (RFC 791).
    (head[0], head[8], head[9]) = (0x45, 64, UDP);
    head[2..4].copy_from_slice(&(bytes as u16).to_be_bytes());
    head[12..16].copy_from_slice(&source);
    head[16..20].copy_from_slice(&destination);
    let sum = Sum::of(&head[..IP_BYTES]).checksum();
    head[10..12].copy_from_slice(&sum.to_be_bytes());
    head[20..22].copy_from_slice(&PORT.to_be_bytes());
    head[22..24].copy_from_slice(&PORT.to_be_bytes());
    // No checksum (RFC 768): the tunnel has its own.
    head[24..26].copy_from_slice(&(udp_bytes as u16).to_be_bytes());
    head[28] = kind;
    head
}

fn octets(address: IpAddr) -> [u8; 4] {
    match address {
        IpAddr::V4(address) => address.octets(),
        IpAddr::V6(_) => [0; 4],
    }
}
