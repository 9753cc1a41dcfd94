//! Values that everything else is made of: names, ports, selectors, addresses inside a
//! tunnel, pools, leases. Knows no other room.

mod lease;
mod limits;
mod name;
mod path;
mod pool;
mod port;
mod selector;
pub mod wire;

pub use lease::{Grant, Holder, LeaseError, Leases, QUARANTINE};
pub use limits::{Bounds, Direction, Limits, Mode, Rates};
pub use name::{Name, NameError, ServiceName};
pub use path::{Binding, Path};
pub use pool::{Pool, PoolError};
pub use port::{PortMap, PortRange, PortSpecError, Protocol, protocol};
pub use selector::{Identity, Selector, SelectorError};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::IpAddr;

/// A peer's slot in this node; the same for a peer as long as its public key is configured, and never another's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PeerId(pub u32);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];

    #[must_use]
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// Length of an address in bits.
    #[must_use]
    pub fn bits(self) -> u8 {
        match self {
            Self::V4 => 32,
            Self::V6 => 128,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// Whether two prefixes have addresses in common.
#[must_use]
pub fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

/// The address as a number, so that both families count alike.
#[must_use]
pub fn to_bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => u128::from(a.to_bits()),
        IpAddr::V6(a) => a.to_bits(),
    }
}

/// The inverse of [`to_bits`]; bits beyond the family's length are cut off.
#[must_use]
#[allow(clippy::cast_possible_truncation)] // the cut is the contract
pub fn from_bits(family: Family, bits: u128) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4((bits as u32).into()),
        Family::V6 => IpAddr::V6(bits.into()),
    }
}
