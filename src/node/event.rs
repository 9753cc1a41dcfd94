//! What happened, for the shell: to keep, to tell, to audit.

use super::Reason;
use crate::addr::{Grant, Mode, Name, Path, PeerId, ServiceName};
use crate::packet::FiveTuple;
use std::time::Duration;

#[derive(Clone, Debug)]
pub enum Event {
    /// A lease was granted: keep it before anything else leaves this gateway.
    Granted(Grant),
    /// A lease was given up.
    Released(Grant),
    /// A packet of the control channel's TCP for [`super::Node::send_control`]'s counterpart in the shell.
    Control {
        peer: PeerId,
        packet: Vec<u8>,
    },
    /// A session with the peer exists: its control channel may be opened.
    PeerUp(PeerId),
    /// No session with the peer is left.
    PeerDown(PeerId),
    /// Authenticated datagrams of the peer come another way.
    PeerMoved {
        peer: PeerId,
        to: Path,
    },
    /// What this hub tells the peer of others is not what it was.
    IntroductionsChanged(PeerId),
    /// What this site offers to the peer is not what it was.
    OfferChanged(PeerId),
    /// Presences came or went.
    PresencesChanged,
    FlowOpened(Box<FlowRecord>),
    FlowClosed {
        flow: Box<FlowRecord>,
        end: FlowEnd,
    },
    Denied(Box<Denial>),
    /// A flow that was opened, and that a limit would have refused if it were enforced.
    Observed(Box<Denial>),
    Limited(Limited),
}

/// A limit delays or drops packets, or would: told when it begins, and then once a minute as long as it goes on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Limited {
    pub limit: String,
    pub mode: Mode,
    /// Since it was told last.
    pub packets: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Opener {
    /// A host of this site.
    Site,
    /// A host of the peer's site.
    Peer,
}

/// Both views of a flow, from whoever opened it to whom it called.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FlowRecord {
    pub opener: Opener,
    pub peer: PeerId,
    pub service: Option<ServiceName>,
    pub client: Option<Name>,
    pub site: FiveTuple,
    pub wire: FiveTuple,
    /// For [`super::flow_id`]: of the TCP connection, if its beginning was seen.
    pub initial_sequence: Option<u32>,
    /// The `allow` entry (or `callers` entry) that let it pass.
    pub rule: String,
    pub outbound_packets: u64,
    pub outbound_bytes: u64,
    pub inbound_packets: u64,
    pub inbound_bytes: u64,
    pub age: Duration,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FlowEnd {
    /// TCP closed by both sides.
    Closed,
    /// TCP reset.
    Reset,
    /// Silent for longer than its kind may be.
    Idle,
    /// Its permission was taken away.
    Revoked,
    /// Made room for another.
    Evicted,
    /// Its peer, or an address that it had, was taken out of the configuration.
    Ended,
    /// The gateway stopped; it may go on when that is back.
    Stopped,
}

impl FlowEnd {
    pub const ALL: [Self; 7] =
        [Self::Closed, Self::Reset, Self::Idle, Self::Revoked, Self::Evicted, Self::Ended, Self::Stopped];

    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Reset => "reset",
            Self::Idle => "idle",
            Self::Revoked => "revoked",
            Self::Evicted => "evicted",
            Self::Ended => "ended",
            Self::Stopped => "stopped",
        }
    }
}

/// A packet that would have opened a flow and was refused.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Denial {
    pub opener: Opener,
    /// Of a packet from the network, or to a service whose peer is known.
    pub peer: Option<PeerId>,
    pub service: Option<ServiceName>,
    pub client: Option<Name>,
    /// As it came in at its door.
    pub tuple: FiveTuple,
    pub initial_sequence: Option<u32>,
    pub reason: Reason,
    /// By name, if it was one of those that are configured.
    pub limit: Option<String>,
}
