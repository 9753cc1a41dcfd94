//! The prefixes a site gives presences from.

use super::{Family, from_bits, overlap, to_bits, wire};
use ipnet::IpNet;
use std::net::IpAddr;

/// Prefixes that do not overlap, in the operator's order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pool(Vec<IpNet>);

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PoolError {
    #[error("pool {0} overlaps pool {1}")]
    Overlap(IpNet, IpNet),
    #[error("pool {0} has host bits set, expected {1}")]
    HostBits(IpNet, IpNet),
    #[error("pool {0} is not unicast address space")]
    NotUnicast(IpNet),
    #[error("pool {0} overlaps {1}, which is used inside tunnels")]
    Wire(IpNet, IpNet),
    #[error("pool {0} has no room for a presence beside the gateway's own; expected /30 or larger (IPv6: /126)")]
    TooSmall(IpNet),
}

impl Pool {
    pub fn new(prefixes: Vec<IpNet>) -> Result<Self, PoolError> {
        for (i, prefix) in prefixes.iter().enumerate() {
            if prefix.trunc() != *prefix {
                return Err(PoolError::HostBits(*prefix, prefix.trunc()));
            }
            if prefix.max_prefix_len() - prefix.prefix_len() < 2 {
                return Err(PoolError::TooSmall(*prefix));
            }
            if !is_unicast(prefix) {
                return Err(PoolError::NotUnicast(*prefix));
            }
            // It could not be told apart from the wire's.
            if let Some(wire) = wire::overlapped(prefix) {
                return Err(PoolError::Wire(*prefix, wire));
            }
            if let Some(other) = prefixes[..i].iter().find(|other| overlap(prefix, other)) {
                return Err(PoolError::Overlap(*prefix, *other));
            }
        }
        Ok(Self(prefixes))
    }

    #[must_use]
    pub fn prefixes(&self) -> &[IpNet] {
        &self.0
    }

    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.iter().any(|prefix| prefix.contains(&address))
    }

    /// Whether presences may be given out at this block: inside one prefix and not its network or broadcast address.
    #[must_use]
    pub fn allows(&self, block: &IpNet) -> bool {
        self.0.iter().any(|prefix| {
            prefix.contains(block) && {
                let (first, last) = usable(prefix);
                let whole = block.prefix_len() < block.max_prefix_len();
                whole || (first..=last).contains(&to_bits(block.addr()))
            }
        })
    }

    /// How many presences of one address it has room for.
    #[must_use]
    pub fn size(&self, family: Family) -> usize {
        let of_family = self.0.iter().filter(|prefix| Family::of(prefix.addr()) == family);
        let sizes = of_family.map(usable).map(|(first, last)| usize::try_from(last - first + 1).unwrap_or(usize::MAX));
        sizes.fold(0, usize::saturating_add)
    }

    /// Blocks of `host_bits` free host bits with addresses above `after`, lowest of each prefix first, aligned to their
    /// size.
    pub fn blocks(&self, family: Family, host_bits: u8, after: u128) -> impl Iterator<Item = IpNet> + '_ {
        let of_family = move |prefix: &&IpNet| Family::of(prefix.addr()) == family;
        self.0.iter().filter(of_family).flat_map(move |prefix| {
            let (first, last) = usable(prefix);
            let size = 1u128 << host_bits;
            let aligned = first.max(after.saturating_add(1)).div_ceil(size) * size;
            let count = (last + 1).saturating_sub(aligned) / size;
            (0..count).map(move |n| block(from_bits(family, aligned + n * size), host_bits))
        })
    }
}

/// Both families: the address with `host_bits` free host bits as a prefix.
fn block(address: IpAddr, host_bits: u8) -> IpNet {
    let bits = Family::of(address).bits();
    IpNet::new(address, bits - host_bits.min(bits)).unwrap_or_else(|_| address.into())
}

/// First and last address for presences: not the network (or subnet-router anycast) address, not the broadcast.
fn usable(prefix: &IpNet) -> (u128, u128) {
    let last = to_bits(prefix.broadcast());
    let last = if matches!(prefix, IpNet::V4(_)) { last - 1 } else { last };
    (to_bits(prefix.network()) + 1, last)
}

fn is_unicast(prefix: &IpNet) -> bool {
    let special = ["0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3", "::/8", "fe80::/10", "ff00::/8"];
    !special.iter().filter_map(|s| s.parse().ok()).any(|s: IpNet| overlap(prefix, &s))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().expect("prefix")
    }

    #[test]
    fn a_pool_refuses_what_could_not_be_given_out() {
        assert!(Pool::new(vec![net("10.0.1.0/24"), net("fd00::/64")]).is_ok());
        assert!(matches!(Pool::new(vec![net("10.0.1.1/24")]), Err(PoolError::HostBits(..))));
        assert!(matches!(Pool::new(vec![net("10.0.1.0/31")]), Err(PoolError::TooSmall(..))));
        assert!(matches!(Pool::new(vec![net("10.0.0.0/8"), net("10.1.0.0/16")]), Err(PoolError::Overlap(..))));
        for bad in ["127.0.0.0/8", "0.0.0.0/0", "224.0.0.0/4", "fe80::/64", "ff02::/16"] {
            assert!(matches!(Pool::new(vec![net(bad)]), Err(PoolError::NotUnicast(_))), "{bad}");
        }
        assert!(matches!(Pool::new(vec![net("198.19.0.0/24")]), Err(PoolError::Wire(..))));
    }

    #[test]
    fn network_and_broadcast_addresses_are_not_given_out() {
        let pool = Pool::new(vec![net("10.0.1.0/30")]).expect("pool");
        let all: Vec<String> = pool.blocks(Family::V4, 0, 0).map(|b| b.to_string()).collect();
        assert_eq!(all, ["10.0.1.1/32", "10.0.1.2/32"]);
        assert!(
            !pool.allows(&net("10.0.1.0/32")) && !pool.allows(&net("10.0.1.3/32")) && pool.allows(&net("10.0.1.2/32"))
        );
    }

    #[test]
    fn blocks_are_aligned_to_their_size() {
        let pool = Pool::new(vec![net("10.0.1.0/26"), net("fd00::/120")]).expect("pool");
        let all: Vec<String> = pool.blocks(Family::V4, 4, 0).map(|b| b.to_string()).collect();
        assert_eq!(all, ["10.0.1.16/28", "10.0.1.32/28"]);
        let after = to_bits("10.0.1.16".parse().expect("address"));
        assert_eq!(pool.blocks(Family::V4, 4, after).next().map(|b| b.to_string()), Some("10.0.1.32/28".into()));
        assert_eq!(pool.blocks(Family::V6, 0, 0).next().map(|b| b.to_string()), Some("fd00::1/128".into()));
    }
}
