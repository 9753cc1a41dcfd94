//! Which handshake messages are worth a Diffie-Hellman: those with the right MAC and, under load, those whose sender
//! proved its address with a cookie and does not ask too often. It never looks at who the sender is.
//!
//! boringtun's `RateLimiter` counts by its own clock and resets only when asked. So load is judged here, on `now`, and
//! two of its limiters do the arithmetic: one that is never under load, and one that always is.

use super::{OpenError, Transmits};
use crate::addr::Path;
use boringtun::noise::TunnResult;
use boringtun::noise::errors::WireGuardError;
use boringtun::noise::rate_limiter::RateLimiter;
use foldhash::quality::FixedState;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use x25519_dalek::PublicKey;

/// Handshake messages a second before their senders must prove their addresses (WireGuard paper, section 5.3). One
/// costs some 100 us of Diffie-Hellman.
const MESSAGES_PER_SECOND: u32 = 100;
/// Under load, messages a second from one proved address, as in Linux (PACKETS_PER_SECOND of its ratelimiter).
const MESSAGES_PER_SOURCE: u8 = 20;
/// Addresses share these counters by a seeded hash: bounded, and nobody can aim at another's.
const SOURCES: usize = 4096;
const COOKIE_BYTES: usize = 64;
const WINDOW: Duration = Duration::from_secs(1);

pub(super) struct Admission {
    never_loaded: Arc<RateLimiter>,
    always_loaded: RateLimiter,
    window_ends: Instant,
    messages: u32,
    sources: Box<[u8]>,
    hash: FixedState,
}

impl Admission {
    pub fn new(public: &PublicKey, seed: u64, now: Instant) -> Self {
        Self {
            never_loaded: Arc::new(RateLimiter::new(public, u64::MAX)),
            always_loaded: RateLimiter::new(public, 0),
            window_ends: now + WINDOW,
            messages: 0,
            sources: vec![0; SOURCES].into(),
            hash: FixedState::with_seed(seed),
        }
    }

    /// For each `Tunn`, so that nothing counts twice.
    pub fn unlimited(&self) -> Arc<RateLimiter> {
        Arc::clone(&self.never_loaded)
    }

    /// A handshake message of the right length.
    pub fn admit(
        &mut self,
        from: Path,
        datagram: &[u8],
        transmits: &mut Transmits,
        now: Instant,
    ) -> Result<(), OpenError> {
        let mut cookie = [0; COOKIE_BYTES];
        self.never_loaded.verify_packet(None, datagram, &mut cookie).map_err(|_| OpenError::Unauthentic)?;
        if now >= self.window_ends {
            self.window_ends = now + WINDOW;
            self.messages = 0;
            self.sources.fill(0);
        }
        self.messages = self.messages.saturating_add(1);
        if self.messages <= MESSAGES_PER_SECOND {
            return Ok(());
        }
        match self.always_loaded.verify_packet(Some(from.address.ip()), datagram, &mut cookie) {
            Ok(_) => self.admit_source(from.address.ip()),
            Err(TunnResult::WriteToNetwork(cookie)) => {
                if let Some(space) = transmits.space().get_mut(..cookie.len()) {
                    space.copy_from_slice(cookie);
                    transmits.commit(from, cookie.len());
                }
                Err(OpenError::UnderLoad)
            }
            Err(TunnResult::Err(WireGuardError::InvalidMac)) => Err(OpenError::Unauthentic),
            Err(_) => Err(OpenError::UnderLoad),
        }
    }

    fn admit_source(&mut self, source: IpAddr) -> Result<(), OpenError> {
        let key = match source {
            IpAddr::V4(address) => u64::from(address.to_bits()),
            // Whoever has one address of a /64 has all of them.
            IpAddr::V6(address) => (address.to_bits() >> 64) as u64,
        };
        let slot = self.hash.hash_one(key) as usize % SOURCES;
        if self.sources[slot] == MESSAGES_PER_SOURCE {
            return Err(OpenError::UnderLoad);
        }
        self.sources[slot] += 1;
        Ok(())
    }
}
