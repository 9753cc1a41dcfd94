//! One peer's tunnel: boringtun's `Tunn` for the cryptography, and every timer of WireGuard (paper, section 6) on `now`.
//!
//! boringtun has the same timers on the clock that it reads itself. Ours act first, so that it never acts on its own:
//! it would retry without jitter, stop after 90 s for good, and take a first packet after 15 s of silence for a peer that
//! does not answer. It must still be asked, because only then does it end its sessions and look at its clock: before
//! anything is sealed or opened, and whenever the peer is looked at.

use super::cipher::{COUNTER_BIT, Cipher, Ciphers, GRANT_BYTES, Grant, is_fast};
use super::paths::Paths;
use super::probe::{Kind, PROBE_BYTES, Probe};
use super::queue::Queue;
use super::session::Sessions;
use super::transmit::Unsent;
use super::{
    COUNTER_END, INNER_BYTES_MAX, MESSAGE_BYTES_MIN, OVERHEAD_BYTES, OpenError, Opened, Random, SealError, TICK,
    Transmits,
};
use super::{TunnelReport, TunnelSettings, of_wireguard};
use crate::addr::{Path, PeerId};
use boringtun::noise::errors::WireGuardError;
use boringtun::noise::rate_limiter::RateLimiter;
use boringtun::noise::{PacketData, Tunn, TunnResult};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroize;

/// REKEY_TIMEOUT: nobody is asked for a session more often.
const RETRY: Duration = Duration::from_secs(5);
/// Spreads the retries of many peers (section 6.1).
const RETRY_JITTER_MILLIS: u64 = 333;
/// REKEY_ATTEMPT_TIME: then whatever waits for a session is given up.
const ATTEMPT: Duration = Duration::from_secs(90);
/// After giving up, a peer is left alone for so long, and up to as much more.
const REST: Duration = Duration::from_secs(5);
/// A peer that is held but does not answer is left alone for so long, twice as long each time, up to the second; longer
/// rests save the handshakes of the many who were here once, and whoever has a packet for it asks at once.
const HELD_REST_MIN: Duration = Duration::from_secs(10);
const HELD_REST_MAX: Duration = Duration::from_secs(3600);
/// KEEPALIVE_TIMEOUT: data is acknowledged at least so soon, by an empty message when there is nothing else.
const ACKNOWLEDGE: Duration = Duration::from_secs(10);
/// KEEPALIVE_TIMEOUT + REKEY_TIMEOUT: data that was not acknowledged in this time calls for a new session.
const SILENCE: Duration = Duration::from_secs(15);

/// A message as its head tells, before anything of it is believed.
#[derive(Clone, Copy)]
pub(super) enum Message {
    Initiation,
    Response { index: u32 },
    Cookie,
    Data { index: u32, counter: u64 },
}

impl Message {
    pub fn data(data: &PacketData, datagram: &[u8]) -> Self {
        let counter = datagram.get(8..16).and_then(|c| c.try_into().ok()).map_or(u64::MAX, u64::from_le_bytes);
        Self::Data { index: data.receiver_idx, counter }
    }

    fn is_of_second_cipher(self) -> bool {
        matches!(self, Self::Data { counter, .. } if counter & COUNTER_BIT != 0)
    }
}

/// Whether a session is being asked for.
enum Asking {
    No,
    Since { first: Instant, last: Instant, again: Instant, index: u32 },
    Rests { until: Instant },
}

pub(super) struct Peer {
    pub id: PeerId,
    pub path: Option<Path>,
    pub index: u32,
    /// What was last told about this peer.
    pub told_up: bool,
    pub told_path: Option<Path>,
    /// It was looked at since it last did something: the wheel may have it late.
    pub rests: bool,
    /// Removed, or its keys were changed: whoever still holds it seals and opens nothing any more.
    pub is_gone: bool,
    random: Random,
    settings: TunnelSettings,
    /// As configured, or as its name resolved.
    endpoint: Option<SocketAddr>,
    tunn: Tunn,
    sessions: Sessions,
    /// Of a peer that has an agent, once there was data.
    ciphers: Option<Box<Ciphers>>,
    asking: Asking,
    /// When a peer that is held is to be asked again, and how long it was left alone for that.
    held_from: Option<Instant>,
    held_rest: Duration,
    queue: Queue,
    /// Where packets of the queue lie sealed. Until they are sent, later ones wait so that none overtakes them.
    unsent: Option<Unsent>,
    last_sent: Instant,
    last_received: Instant,
    /// The first data that was sent since something was received.
    unanswered: Option<Instant>,
    /// The first data that was received since something was sent.
    unacknowledged: Option<Instant>,
    /// When boringtun last looked at its clock, and when it thinks that something was last received.
    aged: Instant,
    received_as_aged: Instant,
    rtt: Option<Duration>,
    /// Of a peer that can be reached along several paths.
    paths: Option<Box<Paths>>,
    rx_bytes: u64,
    tx_bytes: u64,
    rx_packets: u64,
    tx_packets: u64,
}

impl Peer {
    pub fn new(
        id: PeerId,
        private: &StaticSecret,
        settings: TunnelSettings,
        (index, random): (u32, Random),
        unlimited: Arc<RateLimiter>,
        now: Instant,
    ) -> Self {
        let public = PublicKey::from(settings.public_key);
        // Persistent keepalive is ours, so that it can change without an end to the sessions.
        let tunn = Tunn::new(private.clone(), public, settings.preshared_key, None, index, Some(unlimited));
        Self {
            id,
            path: settings.endpoint.map(Path::from),
            index,
            told_up: false,
            told_path: settings.endpoint.map(Path::from),
            rests: false,
            is_gone: false,
            random,
            endpoint: settings.endpoint,
            settings,
            tunn,
            sessions: Sessions::default(),
            ciphers: None,
            asking: Asking::No,
            held_from: None,
            held_rest: Duration::ZERO,
            queue: Queue::default(),
            unsent: None,
            last_sent: now,
            last_received: now,
            unanswered: None,
            unacknowledged: None,
            aged: now,
            received_as_aged: now,
            rtt: None,
            paths: None,
            rx_bytes: 0,
            tx_bytes: 0,
            rx_packets: 0,
            tx_packets: 0,
        }
    }

    pub fn public_key(&self) -> &[u8; 32] {
        &self.settings.public_key
    }

    /// What boringtun fixes when it is made.
    pub fn has_keys_of(&self, settings: &TunnelSettings) -> bool {
        self.settings.public_key == settings.public_key && self.settings.preshared_key == settings.preshared_key
    }

    /// An endpoint that did not change does not undo roaming.
    pub fn configure(&mut self, settings: TunnelSettings) {
        if let Some(endpoint) = settings.endpoint.filter(|_| settings.endpoint != self.settings.endpoint) {
            self.set_endpoint(endpoint);
        }
        self.settings = settings;
    }

    pub fn set_endpoint(&mut self, endpoint: SocketAddr) {
        self.endpoint = Some(endpoint);
        (self.path, self.told_path) = (Some(endpoint.into()), Some(endpoint.into()));
        (self.held_from, self.held_rest) = (None, Duration::ZERO);
        if let Asking::Rests { .. } = self.asking {
            self.asking = Asking::No;
        }
    }

    /// The paths to the peer from now on, beside its own if there is more than one; none: that of its endpoint, and where it
    /// calls from.
    pub fn set_paths(&mut self, paths: &[Path], now: Instant) {
        let endpoint = self.endpoint.filter(|_| self.settings.carrier.is_some());
        let own = endpoint.into_iter().chain(self.settings.carrier).map(Path::from);
        let own: Vec<Path> = own.filter(|own| !paths.contains(own)).collect();
        let paths = [&own, paths].concat();
        match &mut self.paths {
            _ if paths.is_empty() => self.paths = None,
            Some(known) => known.tell(&paths, now),
            None => self.paths = Some(Box::new(Paths::new(&paths, now))),
        }
        if let (Asking::Since { again, .. }, Some(candidates)) = (&mut self.asking, &self.paths)
            && candidates.is_untried()
        {
            *again = now;
        }
        if let (None, Some(first)) = (self.path, paths.first()) {
            self.path = Some(*first);
            (self.held_from, self.held_rest) = (None, Duration::ZERO);
        }
    }

    pub fn is_doubtful(&self, now: Instant) -> bool {
        self.paths.as_ref().is_some_and(|paths| paths.is_doubtful(self.path, now))
    }

    /// Others cannot be reached as they were: it may be the same with this peer. True if it is to be asked now.
    pub fn doubt(&mut self, now: Instant) -> bool {
        self.paths.as_mut().is_some_and(|paths| paths.doubt(now))
    }

    pub fn is_up(&self, now: Instant) -> bool {
        self.sessions.has_current(now)
    }

    pub fn report(&self, now: Instant) -> TunnelReport {
        TunnelReport {
            path: self.path,
            paths: self.paths.as_ref().map(|paths| paths.report(now)).unwrap_or_default(),
            handshake_age: self.sessions.current_age(now),
            cipher: self.cipher(now),
            rtt: self.paths.as_ref().and_then(|paths| paths.round_trip(self.path)).or(self.rtt),
            rx_bytes: self.rx_bytes,
            tx_bytes: self.tx_bytes,
            rx_packets: self.rx_packets,
            tx_packets: self.tx_packets,
            expected_packets: self.sessions.expected(),
            arrived_packets: self.sessions.arrived(),
            waiting_packets: self.queue.len(),
        }
    }

    fn cipher(&self, now: Instant) -> Cipher {
        let session = self.sessions.current_index(now);
        let ciphers = self.ciphers.as_ref().filter(|_| self.settings.second_cipher);
        match ciphers.is_some_and(|ciphers| ciphers.has_sealer(session)) {
            true => Cipher::Aes256Gcm,
            false => Cipher::ChaCha20Poly1305,
        }
    }

    /// Whether the wheel, or whoever waits for events, is to hear of this peer.
    pub fn has_news(&self, now: Instant) -> bool {
        let is_told = self.is_up(now) == self.told_up && self.path == self.told_path;
        self.rests || !is_told || self.is_held_up(now)
    }

    /// Whether packets wait although there is a session.
    pub fn is_held_up(&self, now: Instant) -> bool {
        !self.queue.is_empty() && self.is_up(now)
    }

    /// Seals one inner packet, padded to 16 bytes but not beyond `inner_mtu`; queues it and asks for a session when
    /// there is none.
    pub fn seal(
        &mut self,
        inner: &[u8],
        inner_mtu: u16,
        scratch: &mut [u8],
        transmits: &mut Transmits,
        now: Instant,
    ) -> Result<(), SealError> {
        if self.path.is_none() || self.is_gone {
            return Err(SealError::NoPath);
        }
        let padded = inner.len().next_multiple_of(16).min(inner.len().max(inner_mtu.into()));
        if padded > INNER_BYTES_MAX {
            return Err(SealError::Overload);
        }
        if padded == inner.len() {
            return self.seal_padded(inner, transmits, now);
        }
        let packet = &mut scratch[..padded];
        packet[..inner.len()].copy_from_slice(inner);
        packet[inner.len()..].fill(0);
        self.seal_padded(packet, transmits, now)
    }

    fn seal_padded(&mut self, packet: &[u8], transmits: &mut Transmits, now: Instant) -> Result<(), SealError> {
        self.freshen(transmits, now);
        if !self.sessions.has_current(now) {
            self.queue.push(packet)?;
            if let Asking::No = self.asking {
                self.ask_first(transmits, now);
            }
            return Ok(());
        }
        self.send_queued(transmits, now);
        match self.queue.is_empty() && !self.must_wait(transmits) {
            true => self.send(packet, transmits, now),
            false => self.queue.push(packet),
        }
    }

    /// One datagram that was admitted. `scratch` is used when `into` is shorter than the datagram, or than 148 bytes; that
    /// costs a copy.
    pub fn open(
        &mut self,
        message: Message,
        from: Path,
        datagram: &[u8],
        (into, scratch): (&mut [u8], &mut [u8]),
        transmits: &mut Transmits,
        now: Instant,
    ) -> Opened {
        if self.is_gone {
            return Opened::Dropped(OpenError::Unauthentic);
        }
        if datagram.len() > scratch.len() {
            return Opened::Dropped(OpenError::Malformed);
        }
        self.freshen(transmits, now);
        let is_enough = into.len() >= datagram.len().max(MESSAGE_BYTES_MIN);
        let buffer = if is_enough { &mut *into } else { &mut *scratch };
        match self.decapsulate(message, from, datagram, buffer, transmits, now) {
            Ok(None) => Opened::Nothing,
            Ok(Some(bytes)) if is_enough => Opened::Packet { peer: self.id, bytes },
            Ok(Some(bytes)) => match into.get_mut(..bytes) {
                Some(into) => {
                    into.copy_from_slice(&scratch[..bytes]);
                    Opened::Packet { peer: self.id, bytes }
                }
                None => Opened::Dropped(OpenError::Overload),
            },
            Err(error) => Opened::Dropped(error),
        }
    }

    /// Ok is the bytes of the inner packet in `buffer`, none for other messages. `buffer` is as long as the datagram and at
    /// least MESSAGE_BYTES_MIN.
    fn decapsulate(
        &mut self,
        message: Message,
        from: Path,
        datagram: &[u8],
        buffer: &mut [u8],
        transmits: &mut Transmits,
        now: Instant,
    ) -> Result<Option<usize>, OpenError> {
        match message {
            Message::Data { index, counter } if counter >= COUNTER_END || !self.sessions.carries(index, now) => {
                return Err(OpenError::Unauthentic);
            }
            // An answer that cannot be sent would leave a session here that the peer does not have.
            Message::Initiation | Message::Response { .. } if transmits.room() < MESSAGE_BYTES_MIN => {
                return Err(OpenError::UnderLoad);
            }
            Message::Initiation | Message::Response { .. } | Message::Cookie | Message::Data { .. } => {}
        }
        let second = match message {
            Message::Data { index, counter } if message.is_of_second_cipher() => Some((index, counter & !COUNTER_BIT)),
            _ => None,
        };
        let opened = match second {
            Some((index, counter)) => self.open_second(index, counter, datagram, buffer, transmits, now),
            None => self.open_first(message, from, datagram, buffer, transmits, now),
        };
        // What no key of ours made says nothing of the peer.
        if let Err(error) = opened
            && error != OpenError::Malformed
        {
            return Err(error);
        }
        let said = opened.ok().flatten().and_then(|bytes| Said::read(&buffer[..bytes]));
        let is_data = opened != Ok(None) && said.is_none();
        self.take(message, from, datagram.len(), is_data, now);
        self.send_queued(transmits, now);
        match (said, message) {
            (None, Message::Data { index, .. }) if is_data && second.is_none() => {
                self.grant(index, transmits, now);
                opened
            }
            (None, _) => opened,
            (Some(Said::Probe(probe)), _) => {
                self.take_probe(probe, from, transmits, now);
                Ok(None)
            }
            (Some(Said::Grant(grant)), message) => {
                buffer[..GRANT_BYTES].zeroize();
                self.take_grant(message, &grant, now);
                Ok(None)
            }
        }
    }

    /// WireGuard's own: handshakes, and data in its cipher.
    fn open_first(
        &mut self,
        message: Message,
        from: Path,
        datagram: &[u8],
        buffer: &mut [u8],
        transmits: &mut Transmits,
        now: Instant,
    ) -> Result<Option<usize>, OpenError> {
        match self.tunn.decapsulate(None, datagram, buffer) {
            TunnResult::Done => Ok(None),
            TunnResult::WriteToNetwork(answer) => {
                let bytes = answer.len();
                if let Message::Initiation = message {
                    self.made(word(answer, 4), false, now);
                }
                transmits.space()[..bytes].copy_from_slice(answer);
                self.commit(from, bytes, transmits, now);
                Ok(None)
            }
            // boringtun believes total lengths of 0 to 19; whoever parses the packet checks all of it.
            TunnResult::WriteToTunnelV4([], _) => Err(OpenError::Malformed),
            TunnResult::WriteToTunnelV4(packet, _) | TunnResult::WriteToTunnelV6(packet, _) => Ok(Some(packet.len())),
            // The key was right and what was inside is no packet.
            TunnResult::Err(WireGuardError::InvalidPacket) if matches!(message, Message::Data { .. }) => {
                Err(OpenError::Malformed)
            }
            TunnResult::Err(error) => Err(of_wireguard(&error)),
        }
    }

    fn open_second(
        &mut self,
        index: u32,
        counter: u64,
        datagram: &[u8],
        buffer: &mut [u8],
        transmits: &mut Transmits,
        now: Instant,
    ) -> Result<Option<usize>, OpenError> {
        let ciphers = self.ciphers.as_mut().ok_or(OpenError::Unauthentic)?;
        let unsealed = ciphers.open(index, counter, datagram, buffer)?;
        if unsealed.is_first && transmits.room() >= room_for(0) {
            // The last that boringtun sees of this session: to it, either side's data has been acknowledged.
            let path = self.path;
            let sealed = self.seal_first(&[], transmits.space());
            path.zip(sealed).into_iter().for_each(|(path, bytes)| self.commit(path, bytes, transmits, now));
        }
        match unsealed.bytes {
            0 => Ok(None),
            bytes => inner_bytes(&buffer[..bytes]).map(Some).ok_or(OpenError::Malformed),
        }
    }

    /// boringtun made a session. Its index may have been another's.
    fn made(&mut self, index: u32, initiator: bool, now: Instant) {
        self.sessions.made(index, initiator, now);
        self.ciphers.iter_mut().for_each(|ciphers| ciphers.keep(|known| known != index));
    }

    /// Data came in WireGuard's own cipher: the peer may use the other.
    fn grant(&mut self, index: u32, transmits: &mut Transmits, now: Instant) {
        if !self.settings.second_cipher || self.sessions.current_index(now) != Some(index) || !is_fast() {
            return;
        }
        let grant = self.ciphers.get_or_insert_default().grant(index, now);
        if let (Some(grant), Some(path)) = (grant, self.path) {
            // Without room it is told again.
            let _ = self.send_along(path, grant.write().as_ref(), transmits, now);
        }
    }

    fn take_grant(&mut self, message: Message, grant: &Grant, now: Instant) {
        let Message::Data { index, .. } = message else { return };
        if self.settings.second_cipher && self.sessions.current_index(now) == Some(index) && is_fast() {
            self.ciphers.get_or_insert_default().take(index, grant);
        }
    }

    /// boringtun accepted the message: what that says about the peer.
    fn take(&mut self, message: Message, from: Path, bytes: usize, is_data: bool, now: Instant) {
        let moves = match message {
            // Made with the static key, but whoever replays it cannot be told from the peer before its data comes.
            Message::Initiation => false,
            // Anyone who saw the initiation could make one.
            Message::Cookie => return,
            Message::Response { index } => {
                self.made(index, true, now);
                self.sessions.confirm(index, now);
                if let Asking::Since { last, index: asked, .. } = self.asking {
                    self.rtt = (asked == index).then(|| now.saturating_duration_since(last)).or(self.rtt);
                }
                true
            }
            Message::Data { index, counter } => {
                if is_data {
                    self.unacknowledged.get_or_insert(now);
                }
                self.sessions.received(index, counter, now)
            }
        };
        self.rx_bytes += bytes as u64;
        self.rx_packets += 1;
        self.last_received = now;
        if !message.is_of_second_cipher() {
            self.received_as_aged = self.aged;
        }
        self.unanswered = None;
        (self.held_from, self.held_rest) = (None, Duration::ZERO);
        if moves {
            self.path = self.follow(message, from, is_data, now);
        }
        let born = self.sessions.current_born(now);
        let is_answered = match self.asking {
            Asking::No => false,
            Asking::Since { first, .. } => born.is_some_and(|born| born >= first),
            Asking::Rests { .. } => born.is_some(),
        };
        if is_answered {
            self.asking = Asking::No;
        }
    }

    /// The path to the peer after it was heard from.
    fn follow(&mut self, message: Message, from: Path, is_data: bool, now: Instant) -> Option<Path> {
        let (current, Some(paths)) = (self.path, &mut self.paths) else { return Some(from) };
        if is_data {
            paths.use_now(current, now);
        }
        match message {
            Message::Data { .. } if current == Some(from) => current,
            Message::Data { .. } => paths.heard(from, is_data, current, now),
            Message::Initiation | Message::Response { .. } | Message::Cookie => paths.came_up(from, current, now),
        }
    }

    fn take_probe(&mut self, probe: Probe, from: Path, transmits: &mut Transmits, now: Instant) {
        match (probe.kind, &mut self.paths) {
            // Without room, or a session of this end, the peer asks again.
            (Kind::Question, _) => drop(self.send_along(from, &probe.answer().write(), transmits, now)),
            (Kind::Answer, Some(paths)) => self.path = paths.answered(probe.id, self.path, now),
            (Kind::Answer, None) => {}
        }
    }

    /// Asks along the paths where it is time to, and leaves one that has failed.
    fn tend_paths(&mut self, transmits: &mut Transmits, now: Instant) {
        let Some(paths) = &mut self.paths else { return };
        let questions = paths.ask(self.path, || self.random.next(), now);
        self.path = paths.choose(self.path, now);
        for (path, probe) in questions {
            // Without room it counts as a question without an answer.
            let _ = self.send_along(path, &probe.write(), transmits, now);
        }
    }

    /// What the time calls for. True when it asked for a session.
    pub fn tick(&mut self, transmits: &mut Transmits, now: Instant) -> bool {
        match self.asking {
            Asking::Since { first, .. } if now >= first + ATTEMPT => self.give_up(now),
            Asking::Since { again, .. } if now >= again => self.ask(transmits, now),
            Asking::Since { .. } => {}
            Asking::Rests { until } if now < until => {}
            Asking::No | Asking::Rests { .. } => {
                if self.wants_session(now) {
                    self.ask_first(transmits, now);
                }
            }
        }
        if self.sessions.has_current(now) {
            self.send_queued(transmits, now);
            let unacknowledged = self.unacknowledged.is_some_and(|since| now >= since + ACKNOWLEDGE);
            if unacknowledged || self.keepalive().is_some_and(|keepalive| now >= self.last_sent + keepalive) {
                // Without room it is due again at the next tick.
                let _ = self.send(&[], transmits, now);
            }
            self.tend_paths(transmits, now);
        }
        self.age(transmits, now);
        matches!(self.asking, Asking::Since { last, .. } if last == now)
    }

    /// When [`Self::tick`] will have something to do if nothing comes before. What is past is for the next tick.
    pub fn due(&self, now: Instant) -> Option<Instant> {
        let asks = match self.asking {
            Asking::Since { first, again, .. } => Some(again.min(first + ATTEMPT)),
            Asking::Rests { until } => self.session_wanted(now).map(|wanted| wanted.max(until)),
            Asking::No => self.session_wanted(now),
        };
        let up = self.sessions.has_current(now);
        let sends = [
            self.keepalive().map(|keepalive| self.last_sent + keepalive),
            self.unacknowledged.map(|since| since + ACKNOWLEDGE),
            (!self.queue.is_empty()).then_some(now),
            self.paths.as_ref().and_then(|paths| paths.due(self.path, now)),
        ];
        let sends = sends.into_iter().flatten().filter(|_| up).min();
        [asks, sends, self.sessions.next_end(now)].into_iter().flatten().min()
    }

    /// From when on [`Self::wants_session`], as far as that can be answered.
    fn session_wanted(&self, now: Instant) -> Option<Instant> {
        self.path?;
        if self.wants_session(now) {
            return Some(now);
        }
        match self.sessions.has_current(now) {
            true => self.unanswered.map(|since| since + SILENCE),
            false => self.held_from.filter(|_| self.settings.held),
        }
    }

    fn keepalive(&self) -> Option<Duration> {
        self.settings
            .keepalive_seconds
            .filter(|seconds| *seconds > 0)
            .map(|seconds| Duration::from_secs(seconds.into()))
    }

    fn wants_session(&self, now: Instant) -> bool {
        if !self.sessions.has_current(now) {
            let is_held = self.settings.held && self.held_from.is_none_or(|from| now >= from);
            return !self.queue.is_empty() || self.keepalive().is_some() || is_held;
        }
        let is_silent = self.unanswered.is_some_and(|since| now >= since + SILENCE);
        is_silent || self.sessions.is_worn(self.last_sent, self.last_received, now)
    }

    /// boringtun dates the attempt by the time it knows, and may begin it itself when it learns the time.
    fn ask_first(&mut self, transmits: &mut Transmits, now: Instant) {
        self.freshen(transmits, now);
        match self.asking {
            Asking::Since { .. } => {}
            Asking::No | Asking::Rests { .. } => self.ask(transmits, now),
        }
    }

    /// Sends an initiation. Without room it is tried again at the next tick, without an address when there is one.
    fn ask(&mut self, transmits: &mut Transmits, now: Instant) {
        let Some(path) = self.path else { return };
        if transmits.room() < MESSAGE_BYTES_MIN {
            return;
        }
        let TunnResult::WriteToNetwork(initiation) = self.tunn.format_handshake_initiation(transmits.space(), true)
        else {
            return;
        };
        let (bytes, index) = (initiation.len(), word(initiation, 4));
        let initiation = initiation[..].first_chunk::<MESSAGE_BYTES_MIN>().copied();
        self.commit(path, bytes, transmits, now);
        self.asked(index, now);
        self.paths.iter_mut().for_each(|paths| paths.tried());
        let others: Vec<Path> =
            self.paths.iter().flat_map(|paths| paths.told()).filter(|other| *other != path).collect();
        for other in others {
            let (Some(initiation), Some(space)) = (initiation, transmits.space().first_chunk_mut()) else { return };
            *space = initiation;
            self.commit(other, initiation.len(), transmits, now);
        }
    }

    fn asked(&mut self, index: u32, now: Instant) {
        let first = match self.asking {
            Asking::Since { first, .. } => first,
            Asking::No | Asking::Rests { .. } => now,
        };
        let again = now + RETRY + Duration::from_millis(self.random.below(RETRY_JITTER_MILLIS));
        self.asking = Asking::Since { first, last: now, again, index };
    }

    /// The peer is away: what waits is dropped, and it is asked again after a rest if there is a reason.
    fn give_up(&mut self, now: Instant) {
        self.queue.clear();
        self.unanswered = None;
        self.sessions.forget_current();
        self.held_rest = (self.held_rest * 2).clamp(HELD_REST_MIN, HELD_REST_MAX);
        self.held_from = Some(now + self.held_rest);
        let until = now + REST + Duration::from_millis(self.random.below(REST.as_millis() as u64));
        self.asking = Asking::Rests { until };
    }

    /// Lets boringtun look at its clock if it has not for a while: it dates what happens by that.
    fn freshen(&mut self, transmits: &mut Transmits, now: Instant) {
        if now.saturating_duration_since(self.aged) >= TICK {
            self.age(transmits, now);
        }
    }

    /// Lets boringtun end its sessions, except in the moments when it would do more.
    fn age(&mut self, transmits: &mut Transmits, now: Instant) {
        let retries = matches!(self.asking, Asking::Since { last, .. } if now + TICK >= last + RETRY);
        let silent = self.unanswered.is_some_and(|since| now < since + SILENCE);
        if retries || silent && now + TICK >= self.received_as_aged + SILENCE || transmits.room() < MESSAGE_BYTES_MIN {
            return;
        }
        self.aged = now;
        if let TunnResult::WriteToNetwork(message) = self.tunn.update_timers(transmits.space()) {
            let (bytes, index) = (message.len(), word(message, 4));
            if let Some(path) = self.path {
                self.commit(path, bytes, transmits, now);
            }
            if bytes == MESSAGE_BYTES_MIN {
                self.asked(index, now);
            }
        }
        if self.tunn.time_since_last_handshake().is_none() {
            self.sessions.forget_current();
            self.ciphers = None;
        }
        let sessions = &self.sessions;
        self.ciphers.iter_mut().for_each(|ciphers| ciphers.keep(|index| sessions.carries(index, now)));
    }

    fn send_queued(&mut self, transmits: &mut Transmits, now: Instant) {
        if self.queue.is_empty() || !self.sessions.has_current(now) || self.must_wait(transmits) {
            return;
        }
        self.unsent = Some(transmits.unsent());
        while self.queue.first_bytes().is_some_and(|bytes| transmits.room() >= room_for(bytes)) {
            let Some(packet) = self.queue.pop() else { return };
            if self.send(&packet, transmits, now).is_err() {
                return;
            }
        }
    }

    /// Packets of the queue lie sealed with another thread that has not sent them yet.
    fn must_wait(&self, transmits: &Transmits) -> bool {
        self.unsent.as_ref().is_some_and(|unsent| unsent.is_elsewhere(transmits))
    }

    /// With a current session only: without one boringtun would queue the packet itself.
    fn send(&mut self, packet: &[u8], transmits: &mut Transmits, now: Instant) -> Result<(), SealError> {
        let path = self.path.ok_or(SealError::NoPath)?;
        self.send_along(path, packet, transmits, now)?;
        if !packet.is_empty() {
            self.unanswered.get_or_insert(now);
            if let Some(paths) = &mut self.paths {
                paths.use_now(self.path, now);
            }
        }
        Ok(())
    }

    fn send_along(
        &mut self,
        path: Path,
        packet: &[u8],
        transmits: &mut Transmits,
        now: Instant,
    ) -> Result<(), SealError> {
        if transmits.room() < room_for(packet.len()) {
            return Err(SealError::Overload);
        }
        let session = self.sessions.current_index(now);
        let ciphers = self.ciphers.as_mut().filter(|_| self.settings.second_cipher);
        let second = ciphers.and_then(|ciphers| ciphers.sealer(session));
        let sealed = match second {
            Some(sealer) => sealer.seal(packet, transmits.space()),
            None => self.seal_first(packet, transmits.space()),
        };
        self.commit(path, sealed.ok_or(SealError::NoPath)?, transmits, now);
        self.unacknowledged = None;
        Ok(())
    }

    /// In WireGuard's own cipher: the datagram's bytes.
    fn seal_first(&mut self, packet: &[u8], into: &mut [u8]) -> Option<usize> {
        match self.tunn.encapsulate(packet, into) {
            TunnResult::WriteToNetwork(datagram) => Some(datagram.len()),
            _ => None,
        }
    }

    fn commit(&mut self, to: Path, bytes: usize, transmits: &mut Transmits, now: Instant) {
        transmits.commit(to, bytes);
        self.tx_bytes += bytes as u64;
        self.tx_packets += 1;
        self.last_sent = now;
    }
}

/// What the peer's tunnel says to this one inside the session.
enum Said {
    Probe(Probe),
    Grant(Grant),
}

impl Said {
    /// None for packets of others.
    fn read(packet: &[u8]) -> Option<Self> {
        match packet.len() {
            PROBE_BYTES => Probe::read(packet).map(Self::Probe),
            GRANT_BYTES => Grant::read(packet).map(Self::Grant),
            _ => None,
        }
    }
}

/// The length of an inner packet by its own head, without what it was padded with. Whoever parses it checks all of it.
fn inner_bytes(padded: &[u8]) -> Option<usize> {
    let at = |byte: usize| Some(usize::from(u16::from_be_bytes([*padded.get(byte)?, *padded.get(byte + 1)?])));
    let bytes = match padded.first()? >> 4 {
        4 => at(2)?,
        6 => at(4)? + 40,
        _ => return None,
    };
    (1..=padded.len()).contains(&bytes).then_some(bytes)
}

/// What boringtun must be given to seal so much: it panics on less.
fn room_for(inner_bytes: usize) -> usize {
    (inner_bytes + OVERHEAD_BYTES).max(MESSAGE_BYTES_MIN)
}

/// A little-endian word of a message that boringtun made.
fn word(message: &[u8], at: usize) -> u32 {
    message.get(at..at + 4).and_then(|word| word.try_into().ok()).map_or(0, u32::from_le_bytes)
}
