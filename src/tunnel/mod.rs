//! Peers' tunnels: handshakes, sessions, paths, roaming. Wraps boringtun's `Tunn` so that none of its traps shows.
//!
//! It never looks into packets and never decides who may send what. Strangers get silence: a datagram is answered only
//! when it is authentic, or with a cookie under load. One exception to the core's rule: boringtun reads the clock itself
//! for its handshakes and the age of sessions; everything else here follows `now`.

mod peer;
mod transmit;

pub use transmit::{Batch, Transmits};

use crate::addr::PeerId;
use boringtun::noise::errors::WireGuardError;
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{Packet, Tunn, TunnResult};
use peer::Peer;
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use x25519_dalek::{PublicKey, StaticSecret};

/// Sessions age and handshakes are tried again by this clock; boringtun wants to be asked at least so often.
const TICK: Duration = Duration::from_millis(250);
/// Handshakes a second before initiators must prove their address with a cookie (WireGuard paper, section 5.3).
const HANDSHAKES_PER_SECOND: u64 = 100;
/// boringtun resets its count only when asked, and only after a second.
const LIMITER_RESET: Duration = Duration::from_secs(1);
/// The largest message besides data is the handshake initiation; boringtun panics on smaller buffers.
const MESSAGE_BYTES_MIN: usize = 148;
/// Data header, and tag.
const OVERHEAD_BYTES: usize = 32;
/// REJECT_AFTER_MESSAGES (WireGuard paper, section 6.1), which boringtun does not enforce.
const COUNTER_MAX: u64 = u64::MAX - (1 << 13);
/// REJECT_AFTER_TIME: a session of this age carries nothing any more.
const SESSION_AGE_MAX: Duration = Duration::from_secs(180);

/// How to reach a peer, and its keys.
#[derive(Clone, PartialEq, Eq)]
pub struct TunnelSettings {
    pub public_key: [u8; 32],
    pub preshared_key: Option<[u8; 32]>,
    pub endpoint: Option<SocketAddr>,
    pub keepalive_seconds: Option<u16>,
}

#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    #[error("its public key is this gateway's own")]
    OwnKey,
    #[error("its public key is of low order, no secret could be shared with it")]
    WeakKey,
    #[error("its public key is that of another peer")]
    KnownKey,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SealError {
    /// Neither a session nor an address to ask for one.
    NoPath,
    /// No room for the datagram.
    Overload,
}

/// Why a datagram was dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpenError {
    /// No message of WireGuard.
    Malformed,
    /// No key of ours made it, or for no session that is left.
    Unauthentic,
    /// Its counter or timestamp was seen before.
    Replayed,
    /// Answered with a cookie, or not at all.
    UnderLoad,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Opened {
    /// An inner packet, in the first bytes of the buffer.
    Packet {
        peer: PeerId,
        bytes: usize,
    },
    Nothing,
    Dropped(OpenError),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TunnelEvent {
    Up(PeerId),
    Down(PeerId),
    Moved { peer: PeerId, to: SocketAddr },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TunnelReport {
    pub endpoint: Option<SocketAddr>,
    pub handshake_age: Option<Duration>,
    pub rtt: Option<Duration>,
    pub rx_bytes: u64,
    pub tx_bytes: u64,
}

/// The tunnels of one gateway, all on its one key.
pub struct Tunnels {
    private: StaticSecret,
    public: PublicKey,
    limiter: RateLimiter,
    limiter_reset: Instant,
    peers: BTreeMap<PeerId, Peer>,
    by_key: BTreeMap<[u8; 32], PeerId>,
    /// The receiver index of a session without its lowest byte, which counts the sessions of a peer.
    by_index: BTreeMap<u32, PeerId>,
    events: VecDeque<TunnelEvent>,
    next_tick: Instant,
    random: u64,
    scratch: Box<[u8]>,
}

impl std::fmt::Debug for Tunnels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tunnels").field("peers", &self.peers.len()).finish_non_exhaustive()
    }
}

impl Tunnels {
    #[must_use]
    pub fn new(private: StaticSecret, seed: u64, now: Instant) -> Self {
        let public = PublicKey::from(&private);
        Self {
            limiter: RateLimiter::new(&public, HANDSHAKES_PER_SECOND),
            limiter_reset: now + LIMITER_RESET,
            private,
            public,
            peers: BTreeMap::new(),
            by_key: BTreeMap::new(),
            by_index: BTreeMap::new(),
            events: VecDeque::new(),
            next_tick: now,
            random: seed | 1,
            scratch: vec![0; 1 << 16].into(),
        }
    }

    /// A new peer, or new settings for one. A changed key ends its sessions, a changed endpoint or keepalive does not.
    pub fn add(&mut self, peer: PeerId, settings: TunnelSettings, now: Instant) -> Result<(), TunnelError> {
        let public = PublicKey::from(settings.public_key);
        if public == self.public {
            return Err(TunnelError::OwnKey);
        }
        if !self.private.diffie_hellman(&public).was_contributory() {
            return Err(TunnelError::WeakKey);
        }
        if self.by_key.get(&settings.public_key).is_some_and(|other| *other != peer) {
            return Err(TunnelError::KnownKey);
        }
        if let Some(known) = self.peers.get_mut(&peer).filter(|known| known.has_keys_of(&settings)) {
            known.configure(settings);
        } else {
            self.remove(peer);
            let index = self.free_index();
            self.by_key.insert(settings.public_key, peer);
            self.by_index.insert(index, peer);
            self.peers.insert(peer, Peer::new(&self.private, &self.public, settings, index, now));
        }
        self.next_tick = now;
        Ok(())
    }

    pub fn remove(&mut self, peer: PeerId) {
        if let Some(gone) = self.peers.remove(&peer) {
            self.by_key.remove(gone.public_key());
            self.by_index.remove(&gone.index);
        }
    }

    pub fn set_endpoint(&mut self, peer: PeerId, endpoint: SocketAddr) {
        if let Some(peer) = self.peers.get_mut(&peer) {
            peer.endpoint = Some(endpoint);
        }
    }

    /// Whether a session exists, or there is an address to ask for one.
    #[must_use]
    pub fn can_send(&self, peer: PeerId) -> bool {
        self.peers.get(&peer).is_some_and(|peer| peer.endpoint.is_some())
    }

    #[must_use]
    pub fn is_up(&self, peer: PeerId) -> bool {
        self.peers.get(&peer).is_some_and(|peer| peer.is_up)
    }

    /// Seals one inner packet, padded to 16 bytes but not beyond `inner_mtu`; queues it and asks for a session when
    /// there is none.
    pub fn seal(
        &mut self,
        peer: PeerId,
        inner: &[u8],
        inner_mtu: u16,
        transmits: &mut Transmits,
        _now: Instant,
    ) -> Result<(), SealError> {
        let Some(peer) = self.peers.get_mut(&peer) else { return Err(SealError::NoPath) };
        let Some(endpoint) = peer.endpoint else { return Err(SealError::NoPath) };
        let padded = inner.len().next_multiple_of(16).min(inner.len().max(inner_mtu.into()));
        if transmits.room() < (padded + OVERHEAD_BYTES).max(MESSAGE_BYTES_MIN) || padded > self.scratch.len() {
            return Err(SealError::Overload);
        }
        let source = if padded == inner.len() {
            inner
        } else {
            self.scratch[..inner.len()].copy_from_slice(inner);
            self.scratch[inner.len()..padded].fill(0);
            &self.scratch[..padded]
        };
        match peer.tunn.encapsulate(source, transmits.space()) {
            TunnResult::WriteToNetwork(datagram) => {
                let bytes = datagram.len();
                transmits.commit(endpoint, bytes);
                Ok(())
            }
            TunnResult::Done => Ok(()),
            TunnResult::Err(_) | TunnResult::WriteToTunnelV4(..) | TunnResult::WriteToTunnelV6(..) => {
                Err(SealError::NoPath)
            }
        }
    }

    /// One datagram from the network. What it calls for (a handshake's next message, a cookie, what was queued) goes to
    /// `transmits`. `into` must be as long as the datagram.
    pub fn open(
        &mut self,
        from: SocketAddr,
        datagram: &[u8],
        into: &mut [u8],
        transmits: &mut Transmits,
        _now: Instant,
    ) -> Opened {
        let Ok(message) = Tunn::parse_incoming_packet(datagram) else { return Opened::Dropped(OpenError::Malformed) };
        let peer = match message {
            Packet::HandshakeInit(_) | Packet::HandshakeResponse(_) => {
                match self.admit_handshake(from, datagram, transmits) {
                    Ok(peer) => peer,
                    Err(error) => return Opened::Dropped(error),
                }
            }
            Packet::PacketCookieReply(ref reply) => self.by_index.get(&(reply.receiver_idx >> 8)).copied(),
            Packet::PacketData(ref data) => {
                let counter = datagram.get(8..16).and_then(|c| c.try_into().ok()).map_or(u64::MAX, u64::from_le_bytes);
                let peer = self.by_index.get(&(data.receiver_idx >> 8)).copied();
                peer.filter(|_| counter < COUNTER_MAX)
            }
        };
        let Some(id) = peer else { return Opened::Dropped(OpenError::Unauthentic) };
        let moves = !matches!(message, Packet::HandshakeInit(_) | Packet::PacketCookieReply(_));
        self.open_from(id, from, datagram, into, transmits, moves)
    }

    fn open_from(
        &mut self,
        id: PeerId,
        from: SocketAddr,
        datagram: &[u8],
        into: &mut [u8],
        transmits: &mut Transmits,
        moves: bool,
    ) -> Opened {
        let Some(peer) = self.peers.get_mut(&id) else { return Opened::Dropped(OpenError::Unauthentic) };
        let enough = into.len() >= datagram.len().max(MESSAGE_BYTES_MIN);
        let buffer = if enough { &mut *into } else { &mut self.scratch[..] };
        if buffer.len() < datagram.len().max(MESSAGE_BYTES_MIN) {
            return Opened::Dropped(OpenError::Malformed);
        }
        let opened = match peer.tunn.decapsulate(Some(from.ip()), datagram, buffer) {
            TunnResult::Done => Opened::Nothing,
            TunnResult::WriteToNetwork(answer) => {
                let bytes = answer.len();
                if transmits.room() >= bytes {
                    transmits.space()[..bytes].copy_from_slice(answer);
                    transmits.commit(from, bytes);
                }
                Opened::Nothing
            }
            TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => {
                let bytes = packet.len();
                Opened::Packet { peer: id, bytes }
            }
            TunnResult::Err(error) => return Opened::Dropped(of_wireguard(&error)),
        };
        if let (Opened::Packet { bytes, .. }, false) = (opened, enough) {
            match into.get_mut(..bytes) {
                Some(into) => into.copy_from_slice(&self.scratch[..bytes]),
                None => return Opened::Dropped(OpenError::Malformed),
            }
        }
        if moves {
            if peer.endpoint != Some(from) {
                peer.endpoint = Some(from);
                self.events.push_back(TunnelEvent::Moved { peer: id, to: from });
            }
            if !peer.is_up {
                peer.is_up = true;
                self.events.push_back(TunnelEvent::Up(id));
            }
            peer.send_queued(transmits);
        }
        opened
    }

    /// The MAC first, which costs next to nothing; then, for an initiation, whose key it is.
    fn admit_handshake(
        &self,
        from: SocketAddr,
        datagram: &[u8],
        transmits: &mut Transmits,
    ) -> Result<Option<PeerId>, OpenError> {
        let mut cookie = [0; MESSAGE_BYTES_MIN];
        match self.limiter.verify_packet(Some(from.ip()), datagram, &mut cookie) {
            Ok(Packet::HandshakeInit(initiation)) => {
                let half = parse_handshake_anon(&self.private, &self.public, &initiation);
                let half = half.map_err(|_| OpenError::Unauthentic)?;
                Ok(self.by_key.get(&half.peer_static_public).copied())
            }
            Ok(Packet::HandshakeResponse(response)) => Ok(self.by_index.get(&(response.receiver_idx >> 8)).copied()),
            Ok(Packet::PacketCookieReply(_) | Packet::PacketData(_)) => Ok(None),
            Err(TunnResult::WriteToNetwork(cookie)) => {
                if transmits.room() >= cookie.len() {
                    transmits.space()[..cookie.len()].copy_from_slice(cookie);
                    transmits.commit(from, cookie.len());
                }
                Err(OpenError::UnderLoad)
            }
            Err(TunnResult::Err(error)) => Err(of_wireguard(&error)),
            Err(_) => Err(OpenError::Unauthentic),
        }
    }

    pub fn handle_timeout(&mut self, transmits: &mut Transmits, now: Instant) {
        if now >= self.limiter_reset {
            self.limiter.reset_count();
            self.limiter_reset = now + LIMITER_RESET;
        }
        if now < self.next_tick {
            return;
        }
        self.next_tick = now + TICK;
        for (id, peer) in &mut self.peers {
            let jitter = next_random(&mut self.random);
            peer.tick(transmits, jitter, now);
            let alive = peer.tunn.time_since_last_handshake().is_some_and(|age| age < SESSION_AGE_MAX);
            if peer.is_up && !alive {
                peer.is_up = false;
                self.events.push_back(TunnelEvent::Down(*id));
            }
        }
    }

    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let next = self.next_tick.min(self.limiter_reset);
        Some(if self.peers.is_empty() { self.limiter_reset } else { next })
    }

    pub fn poll_event(&mut self) -> Option<TunnelEvent> {
        self.events.pop_front()
    }

    #[must_use]
    pub fn report(&self, peer: PeerId, _now: Instant) -> Option<TunnelReport> {
        let peer = self.peers.get(&peer)?;
        let (handshake_age, tx_bytes, rx_bytes, _, rtt_ms) = peer.tunn.stats();
        Some(TunnelReport {
            endpoint: peer.endpoint,
            handshake_age,
            rtt: rtt_ms.map(|ms| Duration::from_millis(ms.into())),
            rx_bytes: rx_bytes as u64,
            tx_bytes: tx_bytes as u64,
        })
    }

    /// boringtun gives a peer's sessions the indices `index << 8 | 0..=255`.
    fn free_index(&mut self) -> u32 {
        loop {
            let index = (next_random(&mut self.random) >> 40) as u32;
            if !self.by_index.contains_key(&index) {
                return index;
            }
        }
    }
}

/// xorshift64*: indices and jitter need to differ, not to be secret.
fn next_random(state: &mut u64) -> u64 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    state.wrapping_mul(0x2545_f491_4f6c_dd1d)
}

fn of_wireguard(error: &WireGuardError) -> OpenError {
    match error {
        WireGuardError::DuplicateCounter
        | WireGuardError::InvalidCounter
        | WireGuardError::WrongTai64nTimestamp
        | WireGuardError::InvalidTai64nTimestamp => OpenError::Replayed,
        WireGuardError::UnderLoad => OpenError::UnderLoad,
        WireGuardError::InvalidPacket | WireGuardError::IncorrectPacketLength => OpenError::Malformed,
        _ => OpenError::Unauthentic,
    }
}
