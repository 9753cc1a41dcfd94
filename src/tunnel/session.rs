//! What boringtun does not tell about the sessions of one peer: their ages on `now`, which of them the peer has proved
//! to hold, and how far its counters are. No keys are here.

use super::cipher::COUNTER_BIT;
use std::time::{Duration, Instant};

/// boringtun keeps so many sessions, each in the slot of its index modulo this.
const SLOTS: usize = 8;
/// REKEY_AFTER_TIME (WireGuard paper, section 6.1).
const REKEY_AFTER: Duration = Duration::from_secs(120);
/// REJECT_AFTER_TIME: a session of this age carries nothing any more.
const REJECT_AFTER: Duration = Duration::from_secs(180);
/// REJECT_AFTER_TIME - KEEPALIVE_TIMEOUT - REKEY_TIMEOUT (section 6.2).
const REKEY_AFTER_ON_RECEIPT: Duration = Duration::from_secs(165);

#[derive(Clone, Copy)]
struct Session {
    index: u32,
    born: Instant,
    /// Whoever asked for a session asks for the next one.
    initiator: bool,
    /// Of each cipher, which count apart.
    next_counter: [u64; 2],
}

#[derive(Default)]
pub(super) struct Sessions {
    slots: [Option<Session>; SLOTS],
    /// The session to seal with. Only one that the peer proved to hold becomes it.
    current: Option<u32>,
    /// Messages of all sessions up to the highest counters, and those that came.
    expected: u64,
    arrived: u64,
}

impl Sessions {
    /// boringtun made a session with this receiver index.
    pub fn made(&mut self, index: u32, initiator: bool, now: Instant) {
        self.slots[index as usize % SLOTS] = Some(Session { index, born: now, initiator, next_counter: [0; 2] });
        // After 256 sessions their indices begin again.
        self.current = self.current.filter(|current| *current != index);
    }

    pub fn has_current(&self, now: Instant) -> bool {
        self.current(now).is_some()
    }

    /// This end's index of the session to seal with.
    pub fn current_index(&self, now: Instant) -> Option<u32> {
        self.current(now).map(|session| session.index)
    }

    pub fn current_age(&self, now: Instant) -> Option<Duration> {
        self.current(now).map(|session| now - session.born)
    }

    /// Whether a datagram for this receiver index may be opened.
    pub fn carries(&self, index: u32, now: Instant) -> bool {
        self.young(index, now).is_some()
    }

    /// The peer proved to hold this session, by a response.
    pub fn confirm(&mut self, index: u32, now: Instant) {
        let Some(born) = self.young(index, now).map(|session| session.born) else { return };
        if self.current(now).is_none_or(|current| current.born <= born) {
            self.current = Some(index);
        }
    }

    /// The peer proved to hold this session, by data. True when nothing later of it was seen: neither a higher counter
    /// in the same cipher nor a newer session.
    pub fn received(&mut self, index: u32, counter: u64, now: Instant) -> bool {
        self.confirm(index, now);
        let Some(session) = self.slots[index as usize % SLOTS].as_mut().filter(|session| session.index == index) else {
            return false;
        };
        let (cipher, counter) = (usize::from(counter & COUNTER_BIT != 0), counter & !COUNTER_BIT);
        let known = &mut session.next_counter[cipher];
        let latest = counter >= *known;
        let next = counter.saturating_add(1).max(*known);
        // A peer may number as it likes.
        self.expected = self.expected.saturating_add(next - *known);
        self.arrived += 1;
        *known = next;
        latest && self.current == Some(index)
    }

    /// Whether the current session is to be replaced, as of when something was last sent and received.
    pub fn is_worn(&self, last_sent: Instant, last_received: Instant, now: Instant) -> bool {
        self.current(now).is_some_and(|session| {
            let sent_late = last_sent >= session.born + REKEY_AFTER;
            let received_late = last_received >= session.born + REKEY_AFTER_ON_RECEIPT;
            session.initiator && (sent_late || received_late)
        })
    }

    /// How many messages the peer must have sent: each has a number, without gaps.
    pub fn expected(&self) -> u64 {
        self.expected
    }

    /// How many of them came.
    pub fn arrived(&self) -> u64 {
        self.arrived
    }

    /// When the current session was made.
    pub fn current_born(&self, now: Instant) -> Option<Instant> {
        self.current(now).map(|session| session.born)
    }

    /// When the next of them will carry nothing any more.
    pub fn next_end(&self, now: Instant) -> Option<Instant> {
        self.slots.iter().flatten().map(|session| session.born + REJECT_AFTER).filter(|end| *end > now).min()
    }

    pub fn forget_current(&mut self) {
        self.current = None;
    }

    fn current(&self, now: Instant) -> Option<&Session> {
        self.young(self.current?, now)
    }

    fn young(&self, index: u32, now: Instant) -> Option<&Session> {
        let session = self.slots[index as usize % SLOTS].as_ref()?;
        (session.index == index && now.saturating_duration_since(session.born) < REJECT_AFTER).then_some(session)
    }
}
