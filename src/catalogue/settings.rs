//! What the operator exposes and maps.

use crate::addr::{Limits, Name, NameError, PortMap, PortRange, Selector, ServiceName};
use ipnet::IpNet;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// A name for hosts of this site.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Client {
    pub name: Name,
    pub addresses: Vec<IpAddr>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Exposure {
    pub name: Name,
    pub target: Target,
    /// Never empty.
    pub ports: Vec<PortRange>,
    pub allow: Vec<Selector>,
    pub source: Source,
    pub limits: Limits,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target {
    /// One or several backends; new flows spread over those of their family.
    Backends(Vec<IpAddr>),
    /// One to one, host part kept.
    Prefix(IpNet),
}

impl Target {
    /// Where it is, unless it is as many places as a prefix has addresses.
    #[must_use]
    pub fn addresses(&self) -> Vec<IpAddr> {
        match self {
            Self::Backends(backends) => backends.clone(),
            Self::Prefix(prefix) if prefix.prefix_len() == prefix.max_prefix_len() => vec![prefix.addr()],
            Self::Prefix(_) => Vec::new(),
        }
    }
}

/// What the server sees as the caller.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// The gateway: the kernel masquerades.
    Masquerade,
    /// The caller presence.
    Presence,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mapping {
    pub service: ServicePattern,
    /// Absent: leased from the pool. The first address of a prefix service's block.
    pub address: Option<IpAddr>,
    /// Empty: every port the service offers, unchanged.
    pub ports: Vec<PortMap>,
    /// Empty: every host of this site.
    pub callers: Vec<CallerSelector>,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum ServicePattern {
    One(ServiceName),
    /// `*.cloud`: whatever the site offers.
    AllOf(Name),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CallerSelector {
    Client(Name),
    Prefix(IpNet),
}

impl fmt::Display for CallerSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Client(name) => name.fmt(f),
            Self::Prefix(prefix) => prefix.fmt(f),
        }
    }
}

impl FromStr for ServicePattern {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix("*.") {
            Some(site) => Ok(Self::AllOf(Name::new(site)?)),
            None => Ok(Self::One(text.parse()?)),
        }
    }
}

impl fmt::Display for ServicePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(service) => service.fmt(f),
            Self::AllOf(site) => f.pad(&format!("*.{site}")),
        }
    }
}

impl ServicePattern {
    #[must_use]
    pub fn site(&self) -> &Name {
        match self {
            Self::One(service) => &service.site,
            Self::AllOf(site) => site,
        }
    }

    #[must_use]
    pub fn matches(&self, service: &ServiceName) -> bool {
        match self {
            Self::One(one) => one == service,
            Self::AllOf(site) => *site == service.site,
        }
    }
}
