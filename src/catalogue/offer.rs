//! What one site lets another use: state that is replaced whole, never events.

use crate::addr::{Family, Name, PortRange};
use std::collections::BTreeMap;

/// Far more than a site has (a prefix is one service), and what a `*.site` mapping can take into the pool in one go
/// without holding packets up for longer than a glitch: 0.1 s, measured.
pub const OFFER_SERVICES_MAX: usize = 4096;

#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Offer {
    pub services: Vec<OfferedService>,
    pub callers: Vec<NamedCaller>,
    /// Of its services.
    pub hosts: Vec<NamedHost>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OfferedService {
    pub name: Name,
    /// First wire index.
    pub index: u16,
    /// The service is a prefix of this many free host bits; 0 for one address.
    pub host_bits: u8,
    pub ipv4: bool,
    pub ipv6: bool,
    pub ports: Vec<PortRange>,
    pub labels: BTreeMap<String, String>,
    pub healthy: bool,
}

/// A caller that its site gives a name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NamedCaller {
    pub index: u16,
    pub name: Name,
}

/// A host behind a service that its site gives a name: who calls this wire index in one of these families calls it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NamedHost {
    pub index: u16,
    pub name: Name,
    pub ipv4: bool,
    pub ipv6: bool,
}

impl NamedHost {
    #[must_use]
    pub fn has(&self, family: Family) -> bool {
        match family {
            Family::V4 => self.ipv4,
            Family::V6 => self.ipv6,
        }
    }
}

impl OfferedService {
    #[must_use]
    pub fn has_index(&self, index: u16) -> bool {
        index >= self.index && u32::from(index - self.index) < 1 << self.host_bits
    }

    #[must_use]
    pub fn has(&self, family: Family) -> bool {
        match family {
            Family::V4 => self.ipv4,
            Family::V6 => self.ipv6,
        }
    }
}
