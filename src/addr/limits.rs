//! How much of something one may take.

/// Seen from the site.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Direction {
    Outbound,
    Inbound,
}

/// Of a service, a mapping, a peer or a tenant: of all that use it together, and of each caller.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Limits {
    pub all: Bounds,
    pub per_caller: Bounds,
    pub mode: Mode,
}

/// What is over a limit.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Mode {
    /// Waits, or is refused.
    #[default]
    Enforce,
    /// Is counted.
    Observe,
}

/// Absent: no limit.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Bounds {
    pub inbound: Rates,
    pub outbound: Rates,
    pub flows: Option<u32>,
    pub new_flows_per_second: Option<u32>,
}

/// Of one direction.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Rates {
    /// Of IP packets with their headers.
    pub bits_per_second: Option<u64>,
    pub packets_per_second: Option<u32>,
}

impl Mode {
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Enforce => "enforce",
            Self::Observe => "observe",
        }
    }
}

impl Limits {
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.all.is_none() && self.per_caller.is_none()
    }
}

impl Bounds {
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    #[must_use]
    pub fn rates(&self, direction: Direction) -> Rates {
        match direction {
            Direction::Outbound => self.outbound,
            Direction::Inbound => self.inbound,
        }
    }
}

impl Rates {
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }
}
