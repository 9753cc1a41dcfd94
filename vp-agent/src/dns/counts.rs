//! What was asked, and what came of it, counted.

use hickory_proto::rr::RecordType;
use std::sync::atomic::{AtomicU64, Ordering};

/// What was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    A,
    Aaaa,
    Ptr,
    Srv,
    Other,
}

/// What came of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// With records.
    Answered,
    /// The name is there, with nothing of that kind.
    NoData,
    /// There is no such name for this client.
    NoName,
    /// A transfer, another class, or a name outside the zone that nobody is asked for.
    Refused,
    /// Answered by a name server that `forward` names.
    Forwarded,
    /// No name server of `forward` answered, or the agent stops.
    Failed,
    Malformed,
    /// Another operation than a query, or another version of EDNS.
    Unsupported,
    /// From an address that is not of this site: no answer.
    Stranger,
    /// More than one source may ask.
    Limited,
    /// More at a time than this server takes.
    Overload,
}

impl Kind {
    pub const ALL: [Self; 5] = [Self::A, Self::Aaaa, Self::Ptr, Self::Srv, Self::Other];

    #[must_use]
    pub fn of(kind: RecordType) -> Self {
        match kind {
            RecordType::A => Self::A,
            RecordType::AAAA => Self::Aaaa,
            RecordType::PTR => Self::Ptr,
            RecordType::SRV => Self::Srv,
            _ => Self::Other,
        }
    }

    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::Aaaa => "aaaa",
            Self::Ptr => "ptr",
            Self::Srv => "srv",
            Self::Other => "other",
        }
    }
}

impl Outcome {
    pub const ALL: [Self; 11] = [
        Self::Answered,
        Self::NoData,
        Self::NoName,
        Self::Refused,
        Self::Forwarded,
        Self::Failed,
        Self::Malformed,
        Self::Unsupported,
        Self::Stranger,
        Self::Limited,
        Self::Overload,
    ];

    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::NoData => "nodata",
            Self::NoName => "nxdomain",
            Self::Refused => "refused",
            Self::Forwarded => "forwarded",
            Self::Failed => "failed",
            Self::Malformed => "malformed",
            Self::Unsupported => "unsupported",
            Self::Stranger => "stranger",
            Self::Limited => "limited",
            Self::Overload => "overload",
        }
    }
}

#[derive(Default, Debug)]
pub struct Counts([[AtomicU64; Outcome::ALL.len()]; Kind::ALL.len()]);

impl Counts {
    pub fn add(&self, kind: Kind, outcome: Outcome) {
        self.0[kind as usize][outcome as usize].fetch_add(1, Ordering::Relaxed);
    }

    #[must_use]
    pub fn of(&self, kind: Kind, outcome: Outcome) -> u64 {
        self.0[kind as usize][outcome as usize].load(Ordering::Relaxed)
    }
}
