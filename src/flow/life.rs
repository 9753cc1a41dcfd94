//! The life-cycle of a flow: what a packet does to its state, and how long each state may be silent.

use crate::addr::protocol;
use crate::packet::TcpHead;
use std::time::Duration;

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;

/// RFC 4787 REQ-5: at least 2 minutes, 5 recommended.
const UDP_IDLE: Duration = Duration::from_secs(300);
/// RFC 5382 REQ-5: at least 2 hours 4 minutes.
const TCP_ESTABLISHED_IDLE: Duration = Duration::from_secs(7440);
/// RFC 5382 REQ-5: at least 4 minutes for transitory connections; TIME-WAIT is 4 minutes (RFC 9293).
const TCP_TRANSITORY_IDLE: Duration = Duration::from_secs(240);
/// RFC 5508 REQ-1: at least 60 seconds.
const ICMP_IDLE: Duration = Duration::from_secs(60);

/// How far ahead of what the other side acknowledged a RST or FIN may be. Window scaling is negotiated in options
/// that a flow taken up mid-stream never showed, so this is a large window of today's kernels, not the exact one.
const WINDOW_MAX: u32 = 1 << 24;

/// The longest any flow may be silent; what deadlines must be able to express.
pub(super) const IDLE_MAX: Duration = TCP_ESTABLISHED_IDLE;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// Only its opener has spoken.
    HalfOpen,
    Open,
    /// A RST in the window was seen. Anything else that follows shows that it did not count (RFC 7857 section 2).
    Reset,
    /// Both sides said FIN.
    Closed,
}

impl State {
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::HalfOpen => "half-open",
            Self::Open => "open",
            Self::Reset => "reset",
            Self::Closed => "closed",
        }
    }

    /// Whether it has not ended.
    #[must_use]
    pub fn is_open(self) -> bool {
        match self {
            Self::HalfOpen | Self::Open => true,
            Self::Reset | Self::Closed => false,
        }
    }

    pub(super) fn idle_max(self, protocol: u8) -> Duration {
        match (protocol, self) {
            (protocol::TCP, Self::Open) => TCP_ESTABLISHED_IDLE,
            (protocol::TCP, Self::HalfOpen | Self::Reset | Self::Closed) => TCP_TRANSITORY_IDLE,
            (protocol::UDP, _) => UDP_IDLE,
            (_, _) => ICMP_IDLE,
        }
    }
}

/// What passed at once: one packet, or the segments that were joined.
#[derive(Clone, Copy, Debug)]
pub struct Traffic {
    pub packets: u32,
    pub bytes: u64,
    pub tcp: Option<TcpHead>,
    /// Layer-4 payload in bytes.
    pub payload_bytes: u32,
}

/// What a packet changed about its flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stirred {
    Nothing,
    Opened,
    /// Closed or reset by its ends.
    Ended,
    /// Not over after all: a SYN in a flow that had ended, or anything after a reset.
    Reopened,
}

/// One side of a TCP connection, as seen in passing.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Side {
    /// Sequence number after the last byte it sent.
    end: u32,
    acknowledged: u32,
    has_acknowledged: bool,
    finished: bool,
}

/// The next state, and both sides brought up to date.
pub(super) fn stir(
    state: State,
    from: &mut Side,
    to: &mut Side,
    by_opener: bool,
    traffic: &Traffic,
) -> (State, Stirred) {
    let Some(tcp) = traffic.tcp else {
        let answered = state == State::HalfOpen && !by_opener;
        return if answered { (State::Open, Stirred::Opened) } else { (state, Stirred::Nothing) };
    };
    if tcp.flags & RST != 0 {
        return match state {
            State::HalfOpen | State::Open if in_window(tcp.sequence, to) => (State::Reset, Stirred::Ended),
            State::HalfOpen | State::Open | State::Reset | State::Closed => (state, Stirred::Nothing),
        };
    }
    if begins_anew(state, traffic) {
        (*from, *to) = (Side::default(), Side::default());
        follow(from, &tcp, traffic.payload_bytes);
        return (State::HalfOpen, Stirred::Reopened);
    }
    if tcp.flags & FIN != 0 && in_window(tcp.sequence, to) {
        from.finished = true;
    }
    follow(from, &tcp, traffic.payload_bytes);
    match state {
        State::HalfOpen if !by_opener => (State::Open, Stirred::Opened),
        State::Reset => (State::Open, Stirred::Reopened),
        State::Open if from.finished && to.finished => (State::Closed, Stirred::Ended),
        State::HalfOpen | State::Open | State::Closed => (state, Stirred::Nothing),
    }
}

/// Whether it is the first packet of a connection, in a flow whose last one has ended.
pub(super) fn begins_anew(state: State, traffic: &Traffic) -> bool {
    let ended = matches!(state, State::Reset | State::Closed);
    ended && traffic.tcp.is_some_and(|tcp| tcp.flags & (SYN | ACK | RST) == SYN)
}

fn follow(side: &mut Side, tcp: &TcpHead, payload_bytes: u32) {
    let flags = u32::from(tcp.flags & SYN != 0) + u32::from(tcp.flags & FIN != 0);
    side.end = tcp.sequence.wrapping_add(payload_bytes).wrapping_add(flags);
    if tcp.flags & ACK != 0 {
        side.acknowledged = tcp.acknowledgment;
        side.has_acknowledged = true;
    }
}

/// Whether the receiver would take a segment of this sequence number, as far as its acknowledgments show.
fn in_window(sequence: u32, receiver: &Side) -> bool {
    !receiver.has_acknowledged || sequence.wrapping_sub(receiver.acknowledged) < WINDOW_MAX
}

/// Whether a quoted sequence number can be of a packet in flight (RFC 5927 section 4.1): not acknowledged yet, or
/// within a window of it, and not beyond what was sent.
pub(super) fn is_in_flight(sequence: u32, sender: &Side, receiver: &Side) -> bool {
    let sent = sender.end.wrapping_sub(sequence) <= WINDOW_MAX;
    let recent = !receiver.has_acknowledged || receiver.acknowledged.wrapping_sub(sequence) as i32 <= WINDOW_MAX as i32;
    sent && recent
}
