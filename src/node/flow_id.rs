//! The flow id: what both gateways call one flow without having spoken of it, so that their logs can be laid side by side.
//! It is made of what both know, and nothing in it is an address of a site.

use crate::packet::{FiveTuple, Kind, Packet};
use ring::digest::{Context, SHA256};
use std::net::{IpAddr, Ipv6Addr};
use vp_proto::chain::hex;

/// Changes with what is hashed, so that ids of different makes never meet.
const DOMAIN: &[u8] = b"vp flow 1";
const ENDS_BYTES: usize = 8;
const CONNECTION_BYTES: usize = 4;
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// The keys are those of the caller's and of the service's gateway; `wire` is from the caller to the service. The first half
/// tells who calls whom, the second (TCP whose beginning was seen) one connection between them from the next.
///
/// `hex(SHA-256("vp flow 1" | caller's key | service's key | protocol | caller | port | service | port)[..8])`, and behind a
/// hyphen `hex(SHA-256(all 32 bytes of the former | initial sequence number)[..4])`; addresses of 16 bytes, IPv4 ones mapped
/// (RFC 4291 section 2.5.5.2), numbers in network order.
#[must_use]
pub fn flow_id(
    callers_key: &[u8; 32],
    services_key: &[u8; 32],
    wire: &FiveTuple,
    initial_sequence: Option<u32>,
) -> String {
    let mut ends = Context::new(&SHA256);
    for part in [DOMAIN, callers_key, services_key, &[wire.protocol]] {
        ends.update(part);
    }
    for (address, port) in [(wire.source, wire.source_port), (wire.destination, wire.destination_port)] {
        ends.update(&mapped(address).octets());
        ends.update(&port.to_be_bytes());
    }
    let ends = ends.finish();
    let mut id = hex(&ends.as_ref()[..ENDS_BYTES]);
    if let Some(sequence) = initial_sequence {
        let mut connection = Context::new(&SHA256);
        connection.update(ends.as_ref());
        connection.update(&sequence.to_be_bytes());
        id.push('-');
        id.push_str(&hex(&connection.finish().as_ref()[..CONNECTION_BYTES]));
    }
    id
}

/// Of a packet that opens a TCP connection: it passes both gateways as it is, sent again or not.
pub(super) fn initial_sequence(packet: &Packet) -> Option<u32> {
    match packet.head.kind {
        Kind::Tcp(tcp) if tcp.flags & (SYN | ACK) == SYN => Some(tcp.sequence),
        Kind::Tcp(_) | Kind::Udp | Kind::EchoRequest | Kind::EchoReply | Kind::IcmpError | Kind::FragmentTail => None,
    }
}

fn mapped(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(port: u16) -> FiveTuple {
        let [source, destination] = ["198.19.0.2", "198.18.0.2"].map(|text| text.parse().expect("address"));
        FiveTuple { source, destination, source_port: port, destination_port: 80, protocol: 6 }
    }

    #[test]
    fn an_id_tells_ends_and_connections_apart_and_is_made_as_it_is_documented() {
        let (factory, cloud) = ([1; 32], [2; 32]);
        let id = flow_id(&factory, &cloud, &wire(40_000), Some(7));
        // As Python's hashlib has it.
        assert_eq!(id, "141bce735406a96a-d89412ca");
        let (ends, _) = id.split_once('-').expect("two halves");
        assert_eq!(flow_id(&factory, &cloud, &wire(40_000), None), ends);
        let next = flow_id(&factory, &cloud, &wire(40_000), Some(8));
        assert!(next.starts_with(ends) && next != id);
        for other in
            [flow_id(&cloud, &factory, &wire(40_000), Some(7)), flow_id(&factory, &cloud, &wire(40_001), Some(7))]
        {
            assert!(!other.starts_with(ends));
        }
    }
}
