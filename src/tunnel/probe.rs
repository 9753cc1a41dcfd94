//! The question whether a path to the peer works, and its answer.

use super::inner::{Ends, HEAD_BYTES, head};

/// The head, and a number.
pub(super) const PROBE_BYTES: usize = HEAD_BYTES + 8;

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

    /// As an inner packet.
    pub fn write(self) -> [u8; PROBE_BYTES] {
        let mut packet = [0; PROBE_BYTES];
        packet[..HEAD_BYTES].copy_from_slice(&head(self.kind.ends(), self.kind.number(), PROBE_BYTES));
        packet[HEAD_BYTES..].copy_from_slice(&self.id.to_be_bytes());
        packet
    }

    /// None for any other packet.
    pub fn read(packet: &[u8]) -> Option<Self> {
        let packet: &[u8; PROBE_BYTES] = packet.try_into().ok()?;
        let id = u64::from_be_bytes(packet[HEAD_BYTES..].try_into().ok()?);
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

    /// An answer comes from where the question went.
    fn ends(self) -> Ends {
        match self {
            Self::Question => Ends::ToAgent,
            Self::Answer => Ends::FromAgent,
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
            for byte in 0..HEAD_BYTES {
                let mut other = packet;
                other[byte] ^= 4;
                assert_eq!(Probe::read(&other), None, "byte {byte}");
            }
            assert_eq!(Probe::read(&packet[..39]), None);
        }
    }
}
