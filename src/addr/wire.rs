//! Addresses inside a tunnel. A tunnel is an address space of its own, so nothing needs planning or can clash.
//!
//! |         | IPv4          | IPv6                  | index assigned by         |
//! |---------|---------------|-----------------------|---------------------------|
//! | service | 198.18.0.0/16 | fd76:7000:0:1::/64    | the site that exposes it  |
//! | caller  | 198.19.0.0/16 | fd76:7000:0:2::/64    | the site that calls       |
//!
//! 198.18.0.0/15 is set aside for such closed networks (RFC 2544, RFC 6890). Index 1 is the agent itself.

use super::{Family, overlap};
use ipnet::IpNet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The agent itself: as a service its control channel, as a caller the one that opens it.
pub const AGENT: u16 = 1;
/// The first index for services and callers proper.
pub const FIRST: u16 = 2;
/// The last one: the all-ones host part of a /16 stays unused.
pub const LAST: u16 = 0xfffe;

const SERVICE_V6: u128 = 0xfd76_7000_0000_0001 << 64;
const CALLER_V6: u128 = 0xfd76_7000_0000_0002 << 64;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Role {
    Service,
    Caller,
}

#[must_use]
pub fn service(family: Family, index: u16) -> IpAddr {
    address(family, Role::Service, index)
}

#[must_use]
pub fn caller(family: Family, index: u16) -> IpAddr {
    address(family, Role::Caller, index)
}

#[must_use]
pub fn address(family: Family, role: Role, index: u16) -> IpAddr {
    let [high, low] = index.to_be_bytes();
    match (family, role) {
        (Family::V4, Role::Service) => Ipv4Addr::new(198, 18, high, low).into(),
        (Family::V4, Role::Caller) => Ipv4Addr::new(198, 19, high, low).into(),
        (Family::V6, Role::Service) => Ipv6Addr::from(SERVICE_V6 | u128::from(index)).into(),
        (Family::V6, Role::Caller) => Ipv6Addr::from(CALLER_V6 | u128::from(index)).into(),
    }
}

/// The block of wire addresses that has a part of this prefix, which can therefore be nobody's outside a tunnel.
#[must_use]
pub fn overlapped(prefix: &IpNet) -> Option<IpNet> {
    let blocks = ["198.18.0.0/15", "fd76:7000::/46"];
    blocks.iter().filter_map(|block| block.parse().ok()).find(|block| overlap(prefix, block))
}

/// The index a wire address stands for; none for addresses that mean nothing inside a tunnel.
#[must_use]
pub fn parse(address: IpAddr) -> Option<(Role, u16)> {
    let (role, index) = match address {
        IpAddr::V4(a) => {
            let [a, b, high, low] = a.octets();
            let role = match (a, b) {
                (198, 18) => Role::Service,
                (198, 19) => Role::Caller,
                _ => return None,
            };
            (role, u16::from_be_bytes([high, low]))
        }
        IpAddr::V6(a) => {
            let index = u16::try_from(a.to_bits() & u128::from(u64::MAX)).ok()?;
            let role = match a.to_bits() - u128::from(index) {
                SERVICE_V6 => Role::Service,
                CALLER_V6 => Role::Caller,
                _ => return None,
            };
            (role, index)
        }
    };
    (AGENT..=LAST).contains(&index).then_some((role, index))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_index_has_one_address_a_family_and_back() {
        for family in Family::BOTH {
            for role in [Role::Service, Role::Caller] {
                for index in AGENT..=LAST {
                    assert_eq!(parse(address(family, role, index)), Some((role, index)));
                }
                assert_eq!(parse(address(family, role, 0)), None);
                assert_eq!(parse(address(family, role, 0xffff)), None);
            }
        }
        assert_eq!(service(Family::V4, 12).to_string(), "198.18.0.12");
        assert_eq!(caller(Family::V6, 7).to_string(), "fd76:7000:0:2::7");
    }

    #[test]
    fn other_addresses_mean_nothing() {
        for text in ["10.0.0.1", "198.20.0.1", "198.17.255.255", "fd76:7000:0:3::1", "fd76:7000:0:1::1:1", "::1"] {
            assert_eq!(parse(text.parse().expect("address")), None, "{text}");
        }
    }
}
