//! How a tunnel's datagrams travel.

use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU32;

/// What a relay knows the other end by, for one of its two ends; never zero. It travels in the three bytes of each datagram that
/// WireGuard leaves zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Binding(NonZeroU32);

impl Binding {
    /// The number has 24 bits.
    pub const MAX: u32 = (1 << 24) - 1;

    /// None for zero, and for what has more than 24 bits.
    #[must_use]
    pub fn new(number: u32) -> Option<Self> {
        NonZeroU32::new(number).filter(|number| number.get() <= Self::MAX).map(Self)
    }

    #[must_use]
    pub fn number(self) -> u32 {
        self.0.get()
    }
}

/// Straight to an address, or to that of a relay which passes it on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Path {
    pub address: SocketAddr,
    pub binding: Option<Binding>,
}

impl Path {
    #[must_use]
    pub fn is_relayed(&self) -> bool {
        self.binding.is_some()
    }

    /// Whether the other end of a connection on this host stands for the peer: what is sent there goes on over TLS.
    #[must_use]
    pub fn is_carried(&self) -> bool {
        self.address.ip().is_loopback()
    }

    /// Where its datagrams go, if no relay passes them on: to the peer, or to what stands for it here.
    #[must_use]
    pub fn straight(&self) -> Option<SocketAddr> {
        Some(self.address).filter(|_| !self.is_relayed())
    }

    /// The peer's own address, where it is known.
    #[must_use]
    pub fn endpoint(&self) -> Option<SocketAddr> {
        self.straight().filter(|_| !self.is_carried())
    }
}

impl From<SocketAddr> for Path {
    fn from(address: SocketAddr) -> Self {
        Self { address, binding: None }
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.binding {
            None => write!(f, "{}", self.address),
            Some(_) => write!(f, "relay {}", self.address),
        }
    }
}
