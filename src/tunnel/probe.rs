//! The question whether a path to the peer works, and its answer: an inner packet between the two agents, UDP from and to
//! port 7077, that no more than the tunnels see.

use crate::addr::{Family, wire};
use crate::packet::Sum;
use std::net::IpAddr;

/// IPv4 and UDP header, kind, three zeros, number.
pub(super) const PROBE_BYTES: usize = 40;
const PORT: u16 = 7077;
const UDP: u8 = 17;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    Question,
    Answer,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Probe {
    pub kind: Kind,
    pub id: u64,
}

impl Probe {
    pub fn answer(self) -> Self {
        Self { kind: Kind::Answer, ..self }
    }

    /// As an inner packet. A question goes from the agent as a caller to the agent as a service, an answer back.
    pub fn write(self) -> [u8; PROBE_BYTES] {
        let mut packet = [0; PROBE_BYTES];
        let (source, destination) = self.kind.ends();
        // Version and header length; total length; hop limit (RFC 791).
        (packet[0], packet[3], packet[8], packet[9]) = (0x45, PROBE_BYTES as u8, 64, UDP);
        packet[12..16].copy_from_slice(&source);
        packet[16..20].copy_from_slice(&destination);
        let sum = Sum::of(&packet[..20]).checksum();
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        packet[20..22].copy_from_slice(&PORT.to_be_bytes());
        packet[22..24].copy_from_slice(&PORT.to_be_bytes());
        // No checksum (RFC 768): the tunnel has its own.
        packet[25] = (PROBE_BYTES - 20) as u8;
        packet[28] = self.kind.number();
        packet[32..].copy_from_slice(&self.id.to_be_bytes());
        packet
    }

    /// None for any other packet.
    pub fn read(packet: &[u8]) -> Option<Self> {
        let packet: &[u8; PROBE_BYTES] = packet.try_into().ok()?;
        let id = u64::from_be_bytes(packet[32..].try_into().ok()?);
        let probe = [Kind::Question, Kind::Answer].into_iter().find(|kind| kind.number() == packet[28]);
        let probe = Self { kind: probe?, id };
        (probe.write() == *packet).then_some(probe)
    }
}

impl Kind {
    fn number(self) -> u8 {
        match self {
            Self::Question => 1,
            Self::Answer => 2,
        }
    }

    fn ends(self) -> ([u8; 4], [u8; 4]) {
        let octets = |address| match address {
            IpAddr::V4(address) => address.octets(),
            IpAddr::V6(_) => [0; 4],
        };
        let caller = octets(wire::caller(Family::V4, wire::AGENT));
        let service = octets(wire::service(Family::V4, wire::AGENT));
        match self {
            Self::Question => (caller, service),
            Self::Answer => (service, caller),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_is_read_as_it_was_written_and_nothing_else_is_a_probe() {
        for kind in [Kind::Question, Kind::Answer] {
            let packet = Probe { kind, id: 0x0123_4567_89ab_cdef }.write();
            let parsed = etherparse::SlicedPacket::from_ip(&packet).expect("a packet");
            let Some(etherparse::NetSlice::Ipv4(ip)) = parsed.net else { panic!("IPv4") };
            assert_eq!(ip.header().to_header().calc_header_checksum(), ip.header().header_checksum());
            assert_eq!(Probe::read(&packet), Some(Probe { kind, id: 0x0123_4567_89ab_cdef }));
            for byte in 0..32 {
                let mut other = packet;
                other[byte] ^= 4;
                assert_eq!(Probe::read(&other), None, "byte {byte}");
            }
            assert_eq!(Probe::read(&packet[..39]), None);
        }
    }
}
