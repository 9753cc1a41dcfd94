//! Why a packet or a flow was refused: one closed list, one counter each. The same word stands in the metric's label,
//! the audit record and `vp-ctl explain`.

use std::fmt;

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $variant:ident = $word:literal),+ $(,)?) => {
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum Reason { $($(#[doc = $doc])+ $variant),+ }

        impl Reason {
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            #[must_use]
            pub fn word(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }

            /// What the word means, for people.
            #[must_use]
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$variant => concat!($($doc),+)),+ }
            }
        }
    };
}

reasons! {
    /// The destination is no service that this site exposes.
    NotExposed = "not-exposed",
    /// The destination is a pool address that stands for nothing here.
    NotMapped = "not-mapped",
    /// The peer's site withdrew the service or does not offer it to this site.
    NotOffered = "not-offered",
    /// No `allow` entry (or, at the caller's site, no `callers` entry) covers this caller.
    NotAllowed = "not-allowed",
    /// Only named clients are allowed and the peer's site did not name this caller.
    UnknownCaller = "unknown-caller",
    /// The source address is not one that this door may use.
    SpoofedSource = "spoofed-source",
    /// The service is exposed, this protocol or port of it is not.
    PortNotExposed = "port-not-exposed",
    /// Lengths, versions or checksums of headers do not hold.
    Malformed = "malformed",
    /// A fragment that overlaps, overruns, is too small, or whose first part never came.
    Fragment = "fragment",
    /// IPv4 source route or record route, or an IPv6 routing header.
    SourceRoute = "source-route",
    /// Neither TCP, UDP nor ICMP echo.
    UnsupportedProtocol = "unsupported-protocol",
    /// An answer to no open flow.
    Unsolicited = "unsolicited",
    /// An ICMP message that belongs to no open flow.
    UnrelatedIcmp = "unrelated-icmp",
    /// Multicast, broadcast or link-local, which is not for services.
    NotUnicast = "not-unicast",
    /// The hop limit ran out at this gateway.
    TtlExpired = "ttl-expired",
    /// The packet is larger than the path carries and may not be fragmented.
    TooBig = "too-big",
    /// No address is left in the pool for a new caller.
    PoolFull = "pool-full",
    /// The flow table's, the peer's or the service's share of flows is used up.
    FlowLimit = "flow-limit",
    /// The service's rate is used up.
    RateLimit = "rate-limit",
    /// The service takes no new flows at present: it does not answer its site's checks, or it is drained.
    ServiceDown = "service-down",
    /// The permission that the flow had was taken away.
    Revoked = "revoked",
    /// There is no way to the peer at present.
    NoPath = "no-path",
    /// A datagram to be relayed by a binding that its site does not have.
    NotBound = "not-bound",
    /// The site's or its tenant's share of this hub's relay is used up.
    RelayLimit = "relay-limit",
    /// The audit log is required here and cannot be written.
    AuditFailed = "audit-failed",
    /// A queue or buffer was full.
    Overload = "overload",
    /// A datagram from the network that no key of ours opens.
    Unauthentic = "unauthentic",
    /// A datagram that was accepted before.
    Replayed = "replayed",
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// One counter a reason.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Drops([u64; Reason::ALL.len()]);

impl Default for Drops {
    fn default() -> Self {
        Self([0; Reason::ALL.len()])
    }
}

impl Drops {
    pub const NONE: Self = Self([0; Reason::ALL.len()]);

    pub fn count(&mut self, reason: Reason) {
        self.add(reason, 1);
    }

    pub fn add(&mut self, reason: Reason, packets: u64) {
        self.0[reason as usize] += packets;
    }

    /// Takes over what the other counted.
    pub fn append(&mut self, other: &mut Self) {
        self.0.iter_mut().zip(&mut other.0).for_each(|(count, more)| *count += std::mem::take(more));
    }

    #[must_use]
    pub fn of(&self, reason: Reason) -> u64 {
        self.0[reason as usize]
    }
}
