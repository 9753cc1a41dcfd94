//! Peers' tunnels: handshakes, sessions, paths, roaming. Wraps boringtun's `Tunn` so that none of its traps shows.
//!
//! It never looks into packets and never decides who may send what. Strangers get silence: a datagram is answered only
//! when it is authentic, or with a cookie under load. An address of a peer is believed only when the peer's latest data,
//! or its response to us, came from there.
//!
//! One exception to the core's rule: boringtun reads the clock itself, for the age of its sessions and of cookies and for
//! the timestamps in its initiations. Everything here follows `now` and acts before boringtun would; see `peer`. The
//! timestamps are the wall clock's when the peer was added, and steady from there: setting the clock does not turn them
//! back, but a restart after it was set back does, and then peers that remember the later ones stay silent to us (not we to
//! them) until the clock has passed those. Likewise what a peer's last timestamp was is forgotten at a restart and with a
//! change of its preshared key: a replay of its initiations is then answered once, but never makes a session to send by,
//! since that takes data only the peer can make.

mod admission;
mod cipher;
mod inner;
mod paths;
mod peer;
mod probe;
mod queue;
mod session;
mod shared;
mod transmit;
mod wheel;

pub use cipher::Cipher;
pub use paths::PathReport;
pub use shared::{Locked, Tunnel};
pub use transmit::{Batch, Transmits, same_binding, set_binding};

use crate::addr::{Path, PeerId};
use admission::Admission;
use boringtun::noise::errors::WireGuardError;
use boringtun::noise::handshake::parse_handshake_anon;
use boringtun::noise::{Packet, Tunn};
use foldhash::fast::FixedState;
use peer::{Message, Peer};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use wheel::Wheel;
use x25519_dalek::{PublicKey, StaticSecret};

/// What the peers' timers are rounded up to, so that one call serves many.
const TICK: Duration = Duration::from_millis(250);
/// Each peer is looked at after so long at least, and up to as much more, that not all are at once: boringtun forgets keys
/// only when asked.
const LOOK: Duration = Duration::from_secs(15);
const LOOK_SPREAD: u32 = 60;
/// Peers looked at in one call, and those asked for a session in it (some 100 us each), so that packets do not wait for
/// the peers of a large site.
const LOOKS_MAX: usize = 1024;
const ASKED_MAX: usize = 16;
/// The largest message besides data is the handshake initiation; boringtun panics on smaller buffers.
const MESSAGE_BYTES_MIN: usize = 148;
/// Data header, and tag.
const OVERHEAD_BYTES: usize = 32;
/// The largest UDP payload, and what it can carry.
const DATAGRAM_BYTES_MAX: usize = 1 << 16;
const INNER_BYTES_MAX: usize = 65507 - OVERHEAD_BYTES;
/// REJECT_AFTER_MESSAGES (WireGuard paper, section 6.1), which boringtun does not enforce.
const COUNTER_END: u64 = u64::MAX - (1 << 13);

/// Where in a datagram of a session a byte stands that is the same in all of one peer's, and differs between peers. Several
/// sockets share peers out by it.
pub const PEER_BYTE: u32 = 5;

/// How to reach a peer, and its keys.
#[derive(Clone, PartialEq, Eq)]
pub struct TunnelSettings {
    pub public_key: [u8; 32],
    pub preshared_key: Option<[u8; 32]>,
    pub endpoint: Option<SocketAddr>,
    /// What stands on this host for a peer that is reached over TLS too.
    pub carrier: Option<SocketAddr>,
    pub keepalive_seconds: Option<u16>,
    /// A session is wanted even when nothing waits to be sent.
    pub held: bool,
    /// Whether AES-256-GCM may take WireGuard's own cipher's place, where it is faster: the peer has an agent, and nobody objects.
    pub second_cipher: bool,
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
    /// Authentic, but the caller had no room for it.
    Overload,
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
    Moved { peer: PeerId, to: Path },
}

impl TunnelEvent {
    fn peer(&self) -> PeerId {
        match *self {
            Self::Up(peer) | Self::Down(peer) | Self::Moved { peer, .. } => peer,
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TunnelReport {
    pub path: Option<Path>,
    /// Of a peer that can be reached along several paths, each of them.
    pub paths: Vec<PathReport>,
    pub handshake_age: Option<Duration>,
    /// With which data leaves now.
    pub cipher: Cipher,
    /// Of the last handshake that this gateway asked for.
    pub rtt: Option<Duration>,
    /// Of authentic datagrams with all their headers but UDP's and IP's, as `wg show` counts.
    pub rx_bytes: u64,
    pub tx_bytes: u64,
    pub rx_packets: u64,
    pub tx_packets: u64,
    /// Messages that the peer numbered for this gateway, as far as is known, and how many of them arrived.
    pub expected_packets: u64,
    pub arrived_packets: u64,
    /// For a session.
    pub waiting_packets: usize,
}

/// The tunnels of one gateway, all on its one key.
pub struct Tunnels {
    private: StaticSecret,
    public: PublicKey,
    admission: Admission,
    /// By number.
    peers: Vec<Option<Slot>>,
    by_key: BTreeMap<[u8; 32], PeerId>,
    /// The receiver index of a session without its lowest byte, which counts the sessions of a peer.
    by_index: HashMap<u32, PeerId, FixedState>,
    /// Those that are reached over TLS too.
    carried: BTreeSet<PeerId>,
    wheel: Wheel,
    events: VecDeque<TunnelEvent>,
    /// Peers that were looked at, ever.
    #[cfg(test)]
    looks: usize,
    random: Random,
    scratch: Box<[u8]>,
}

/// One peer, and what is known of it without its lock: somebody may be sealing with it.
struct Slot {
    tunnel: Tunnel,
    has_path: bool,
    is_up: bool,
}

impl std::fmt::Debug for Tunnels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tunnels").field("peers", &self.by_key.len()).finish_non_exhaustive()
    }
}

impl Tunnels {
    #[must_use]
    pub fn new(private: StaticSecret, seed: u64, now: Instant) -> Self {
        let public = PublicKey::from(&private);
        Self {
            admission: Admission::new(&public, seed, now),
            private,
            public,
            peers: Vec::new(),
            by_key: BTreeMap::new(),
            by_index: HashMap::with_hasher(FixedState::with_seed(seed)),
            carried: BTreeSet::new(),
            wheel: Wheel::new(now),
            events: VecDeque::new(),
            #[cfg(test)]
            looks: 0,
            random: Random(seed | 1),
            scratch: vec![0; DATAGRAM_BYTES_MAX].into(),
        }
    }

    /// A new peer, or new settings for one. A changed key, also the preshared one, ends its sessions at once: whoever
    /// changes a key may have reason not to trust the old one. A changed endpoint or keepalive does not.
    pub fn add(&mut self, peer: PeerId, settings: TunnelSettings, now: Instant) -> Result<(), TunnelError> {
        self.check(&settings.public_key)?;
        if self.by_key.get(&settings.public_key).is_some_and(|other| *other != peer) {
            return Err(TunnelError::KnownKey);
        }
        match settings.carrier {
            Some(_) => self.carried.insert(peer),
            None => self.carried.remove(&peer),
        };
        if !self.configure(peer, &settings) {
            if self.forget(peer).is_some_and(|old| old.is_up) {
                self.events.push_back(TunnelEvent::Down(peer));
            }
            let index = self.free_index(peer);
            self.by_key.insert(settings.public_key, peer);
            self.by_index.insert(index, peer);
            let unlimited = self.admission.unlimited();
            let number = peer.0 as usize;
            if self.peers.len() <= number {
                self.peers.resize_with(number + 1, || None);
            }
            let has_path = settings.endpoint.is_some();
            let random = Random(self.random.next() | 1);
            let tunnel = Tunnel::new(Peer::new(peer, &self.private, settings, (index, random), unlimited, now));
            self.peers[number] = Some(Slot { tunnel, has_path, is_up: false });
        }
        self.wheel.set_now(peer.0, now);
        Ok(())
    }

    /// Whether this can be a peer's key.
    pub fn check(&self, public_key: &[u8; 32]) -> Result<(), TunnelError> {
        let public = PublicKey::from(*public_key);
        if public == self.public {
            return Err(TunnelError::OwnKey);
        }
        if !self.private.diffie_hellman(&public).was_contributory() {
            return Err(TunnelError::WeakKey);
        }
        Ok(())
    }

    /// New settings for a peer that keeps its keys. False if it does not, or is new.
    fn configure(&mut self, peer: PeerId, settings: &TunnelSettings) -> bool {
        let Some(slot) = get_mut(&mut self.peers, peer) else { return false };
        let mut known = slot.tunnel.peer();
        let keeps = known.has_keys_of(settings);
        if keeps {
            known.configure(settings.clone());
            slot.has_path = known.path.is_some();
        }
        keeps
    }

    /// Its sessions, what it waited to send and what is still to be told of it end here.
    pub fn remove(&mut self, peer: PeerId) {
        self.forget(peer);
        self.events.retain(|event| event.peer() != peer);
        self.carried.remove(&peer);
    }

    fn forget(&mut self, peer: PeerId) -> Option<Slot> {
        let gone = self.peers.get_mut(peer.0 as usize)?.take()?;
        let mut known = gone.tunnel.peer();
        known.is_gone = true;
        self.wheel.remove(peer.0);
        self.by_key.remove(known.public_key());
        self.by_index.remove(&known.index);
        drop(known);
        Some(gone)
    }

    pub fn set_endpoint(&mut self, peer: PeerId, endpoint: SocketAddr) {
        if let Some(slot) = get_mut(&mut self.peers, peer) {
            slot.tunnel.peer().set_endpoint(endpoint);
            slot.has_path = true;
            self.wheel.hasten_now(peer.0);
        }
    }

    /// The paths to a peer that is asked along each of them; none: it has an endpoint, or calls.
    pub fn set_paths(&mut self, peer: PeerId, paths: &[Path], now: Instant) {
        if let Some(slot) = get_mut(&mut self.peers, peer) {
            slot.tunnel.peer().set_paths(paths, now);
            tell(slot, &mut self.wheel, &mut self.events, now);
        }
    }

    /// The tunnel to a peer. None without a session and an address to ask for one.
    #[must_use]
    pub fn tunnel(&self, peer: PeerId) -> Option<&Tunnel> {
        self.peer(peer).filter(|slot| slot.has_path).map(|slot| &slot.tunnel)
    }

    /// Whether the path to the peer may have failed.
    #[must_use]
    pub fn is_doubtful(&self, peer: PeerId, now: Instant) -> bool {
        self.peer(peer).is_some_and(|slot| slot.tunnel.peer().is_doubtful(now))
    }

    /// How the peer is reached, where that is known.
    #[must_use]
    pub fn path(&self, peer: PeerId) -> Option<Path> {
        self.peer(peer)?.tunnel.peer().path
    }

    /// Whose session a datagram is of, as far as its head tells.
    #[must_use]
    pub fn tunnel_of(&self, datagram: &[u8]) -> Option<&Tunnel> {
        let Ok(Packet::PacketData(data)) = Tunn::parse_incoming_packet(datagram) else { return None };
        self.peer(*self.by_index.get(&(data.receiver_idx >> 8))?).map(|slot| &slot.tunnel)
    }

    /// Whether a session exists that the peer proved to hold. As last told by an event.
    #[must_use]
    pub fn is_up(&self, peer: PeerId) -> bool {
        self.peer(peer).is_some_and(|slot| slot.is_up)
    }

    /// As [`Locked::seal`], and heard at once.
    pub fn seal(
        &mut self,
        peer: PeerId,
        inner: &[u8],
        inner_mtu: u16,
        transmits: &mut Transmits,
        now: Instant,
    ) -> Result<(), SealError> {
        let slot = get_mut(&mut self.peers, peer).ok_or(SealError::NoPath)?;
        let sealed = slot.tunnel.lock().seal(inner, inner_mtu, &mut self.scratch, transmits, now);
        tell(slot, &mut self.wheel, &mut self.events, now);
        sealed
    }

    /// One datagram from the network. What it calls for (a handshake's next message, a cookie, what was queued) goes to
    /// `transmits`. `into` should be as long as the datagram, and 148 bytes at least; less costs a copy.
    pub fn open(
        &mut self,
        from: impl Into<Path>,
        datagram: &[u8],
        into: &mut [u8],
        transmits: &mut Transmits,
        now: Instant,
    ) -> Opened {
        let from = from.into();
        let (id, message) = match self.whose(from, datagram, transmits, now) {
            Ok(whose) => whose,
            Err(error) => return Opened::Dropped(error),
        };
        let Some(slot) = get_mut(&mut self.peers, id) else { return Opened::Dropped(OpenError::Unauthentic) };
        let buffers = (into, &mut self.scratch[..]);
        let opened = slot.tunnel.peer().open(message, from, datagram, buffers, transmits, now);
        tell(slot, &mut self.wheel, &mut self.events, now);
        opened
    }

    /// After something was sealed or opened with the tunnel itself: timers and events follow.
    pub fn hear(&mut self, tunnel: &Tunnel, now: Instant) {
        if let Some(slot) = get_mut(&mut self.peers, tunnel.id).filter(|slot| slot.tunnel == *tunnel) {
            tell(slot, &mut self.wheel, &mut self.events, now);
        }
    }

    /// What a datagram is and which peer it is for. What costs a Diffie-Hellman was admitted first.
    fn whose(
        &mut self,
        from: Path,
        datagram: &[u8],
        transmits: &mut Transmits,
        now: Instant,
    ) -> Result<(PeerId, Message), OpenError> {
        let of_index = |index: u32| self.by_index.get(&(index >> 8)).copied().ok_or(OpenError::Unauthentic);
        match Tunn::parse_incoming_packet(datagram).map_err(|_| OpenError::Malformed)? {
            Packet::PacketData(data) => Ok((of_index(data.receiver_idx)?, Message::data(&data, datagram))),
            Packet::PacketCookieReply(reply) => Ok((of_index(reply.receiver_idx)?, Message::Cookie)),
            Packet::HandshakeResponse(response) => {
                let peer = of_index(response.receiver_idx)?;
                self.admission.admit(from, datagram, transmits, now)?;
                Ok((peer, Message::Response { index: response.receiver_idx }))
            }
            Packet::HandshakeInit(initiation) => {
                self.admission.admit(from, datagram, transmits, now)?;
                let half = parse_handshake_anon(&self.private, &self.public, &initiation);
                let half = half.map_err(|_| OpenError::Unauthentic)?;
                let peer = self.by_key.get(&half.peer_static_public).copied().ok_or(OpenError::Unauthentic)?;
                Ok((peer, Message::Initiation))
            }
        }
    }

    /// Looks at the peers whose time has come. What is too much for one call is left, and wants another at once.
    pub fn handle_timeout(&mut self, transmits: &mut Transmits, now: Instant) {
        let (mut looks, mut asked, mut doubts) = (0, 0, false);
        while looks < LOOKS_MAX && asked < ASKED_MAX {
            let Some(number) = self.wheel.due(now) else { break };
            let id = PeerId(number);
            let Some(slot) = get_mut(&mut self.peers, id) else { continue };
            asked += usize::from(slot.tunnel.peer().tick(transmits, now));
            tell(slot, &mut self.wheel, &mut self.events, now);
            let mut peer = slot.tunnel.peer();
            doubts |= peer.is_doubtful(now);
            peer.rests = true;
            let look = now + LOOK + TICK * (number % LOOK_SPREAD);
            self.wheel.set(number, peer.due(now).map_or(look, |due| due.min(look)), now);
            looks += 1;
        }
        if doubts {
            // If UDP no longer passes, it is better known before a hub is asked anyway.
            for peer in &self.carried {
                let slot = get_mut(&mut self.peers, *peer);
                if slot.is_some_and(|slot| slot.tunnel.peer().doubt(now)) {
                    self.wheel.hasten(peer.0, now);
                }
            }
        }
        #[cfg(test)]
        {
            self.looks += looks;
        }
    }

    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.wheel.poll_timeout()
    }

    pub fn poll_event(&mut self) -> Option<TunnelEvent> {
        self.events.pop_front()
    }

    #[must_use]
    pub fn report(&self, peer: PeerId, now: Instant) -> Option<TunnelReport> {
        self.peer(peer).map(|slot| slot.tunnel.peer().report(now))
    }

    fn peer(&self, peer: PeerId) -> Option<&Slot> {
        self.peers.get(peer.0 as usize)?.as_ref()
    }

    /// boringtun gives a peer's sessions the indices `index << 8 | 0..=255`. Its lowest byte, at [`PEER_BYTE`] of a datagram,
    /// is the peer's number, so that peers are shared out evenly.
    fn free_index(&mut self, peer: PeerId) -> u32 {
        loop {
            let index = (self.random.next() >> 40) as u32 & !0xff | peer.0 & 0xff;
            if !self.by_index.contains_key(&index) {
                return index;
            }
        }
    }
}

fn get_mut(peers: &mut [Option<Slot>], peer: PeerId) -> Option<&mut Slot> {
    peers.get_mut(peer.0 as usize)?.as_mut()
}

/// After something happened to a peer: the wheel has it soon, and what became of it is an event.
fn tell(slot: &mut Slot, wheel: &mut Wheel, events: &mut VecDeque<TunnelEvent>, now: Instant) {
    let mut peer = slot.tunnel.peer();
    let id = peer.id;
    peer.rests = false;
    match peer.is_held_up(now) {
        true => wheel.set_now(id.0, now),
        false => wheel.hasten(id.0, now),
    }
    if let Some(to) = peer.path.filter(|_| peer.path != peer.told_path) {
        (peer.told_path, slot.has_path) = (peer.path, true);
        events.push_back(TunnelEvent::Moved { peer: id, to });
    }
    let is_up = peer.is_up(now);
    if is_up != peer.told_up {
        (peer.told_up, slot.is_up) = (is_up, is_up);
        events.push_back(if is_up { TunnelEvent::Up(id) } else { TunnelEvent::Down(id) });
    }
}

/// xorshift64*: indices and jitter need to differ, not to be secret.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 32) % end.max(1)
    }
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

#[cfg(test)]
mod cipher_tests;
#[cfg(test)]
mod shared_tests;
#[cfg(test)]
mod tests;
