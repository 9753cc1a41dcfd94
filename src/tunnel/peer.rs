//! One peer's tunnel.

use super::{MESSAGE_BYTES_MIN, Transmits, TunnelSettings};
use boringtun::noise::errors::WireGuardError;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Tunn, TunnResult};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use x25519_dalek::{PublicKey, StaticSecret};

/// boringtun gives up after 90 s of unanswered handshakes and stays so. A peer that is to be kept alive is asked again
/// after this and up to as much more, so that many do not ask at once.
const RETRY: Duration = Duration::from_secs(5);

pub(super) struct Peer {
    pub tunn: Tunn,
    pub endpoint: Option<SocketAddr>,
    pub is_up: bool,
    pub index: u32,
    settings: TunnelSettings,
    /// When to ask for a session although nothing is to be sent.
    next_try: Option<Instant>,
}

impl Peer {
    pub fn new(private: &StaticSecret, public: &PublicKey, settings: TunnelSettings, index: u32, now: Instant) -> Self {
        // Every datagram was counted by the shared limiter; this one lets all pass.
        let unlimited = Arc::new(RateLimiter::new(public, u64::MAX));
        let tunn = Tunn::new(
            private.clone(),
            PublicKey::from(settings.public_key),
            settings.preshared_key,
            settings.keepalive_seconds,
            index,
            Some(unlimited),
        );
        let keeps_alive = settings.endpoint.is_some() && settings.keepalive_seconds.is_some();
        let next_try = keeps_alive.then_some(now);
        Self { tunn, endpoint: settings.endpoint, is_up: false, index, settings, next_try }
    }

    pub fn public_key(&self) -> &[u8; 32] {
        &self.settings.public_key
    }

    /// What boringtun fixes when it is made.
    pub fn has_keys_of(&self, settings: &TunnelSettings) -> bool {
        self.settings.public_key == settings.public_key
            && self.settings.preshared_key == settings.preshared_key
            && self.settings.keepalive_seconds == settings.keepalive_seconds
    }

    pub fn configure(&mut self, settings: TunnelSettings) {
        if settings.endpoint.is_some() && settings.endpoint != self.settings.endpoint {
            self.endpoint = settings.endpoint;
        }
        self.settings = settings;
    }

    /// Lets boringtun's timers act, and asks for a session when it gave up or never tried.
    pub fn tick(&mut self, transmits: &mut Transmits, jitter: u64, now: Instant) {
        if transmits.room() < MESSAGE_BYTES_MIN {
            return;
        }
        let expired = match self.tunn.update_timers(transmits.space()) {
            TunnResult::WriteToNetwork(message) => {
                let bytes = message.len();
                self.commit(transmits, bytes);
                false
            }
            TunnResult::Err(WireGuardError::ConnectionExpired) => true,
            TunnResult::Done
            | TunnResult::Err(_)
            | TunnResult::WriteToTunnelV4(..)
            | TunnResult::WriteToTunnelV6(..) => false,
        };
        let keeps_alive = self.endpoint.is_some() && self.settings.keepalive_seconds.is_some();
        if expired && keeps_alive && self.next_try.is_none() {
            let spread = Duration::from_millis(jitter % RETRY.as_millis() as u64);
            self.next_try = Some(now + RETRY + spread);
        }
        if self.next_try.is_some_and(|at| at <= now) && transmits.room() >= MESSAGE_BYTES_MIN {
            self.next_try = None;
            if let TunnResult::WriteToNetwork(message) = self.tunn.format_handshake_initiation(transmits.space(), false)
            {
                let bytes = message.len();
                self.commit(transmits, bytes);
            }
        }
    }

    /// What waited for a session.
    pub fn send_queued(&mut self, transmits: &mut Transmits) {
        while transmits.room() > u16::MAX.into() {
            let TunnResult::WriteToNetwork(message) = self.tunn.decapsulate(None, &[], transmits.space()) else {
                return;
            };
            let bytes = message.len();
            self.commit(transmits, bytes);
        }
    }

    /// Sends to nowhere are dropped.
    fn commit(&self, transmits: &mut Transmits, bytes: usize) {
        if let Some(endpoint) = self.endpoint {
            transmits.commit(endpoint, bytes);
        }
    }
}
