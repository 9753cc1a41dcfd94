//! The second cipher of a session between two agents: AES-256-GCM, three to four times as fast as WireGuard's
//! ChaCha20-Poly1305 where the processor has instructions for it, and nothing elsewhere.
//!
//! Whoever receives decides. It makes a key for one of its own sessions and tells the peer inside that session (a [`Grant`]);
//! from then on the peer may seal with it, and both ciphers are opened. A grant that is lost is told again while data comes
//! in the first cipher. A peer that knows nothing of grants, as any stock one, has an odd packet to ignore and goes on as it was.
//!
//! A datagram has the same form in both: message type 4, receiver index, counter, sealed packet, tag. In the second cipher the
//! counter's highest bit is set, which in the first it never comes to. Keys live as long as their session.

use super::OpenError;
use super::inner::{Ends, HEAD_BYTES, head};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use std::time::{Duration, Instant};
use zeroize::Zeroizing;

pub(super) const COUNTER_BIT: u64 = 1 << 63;
const HEADER_BYTES: usize = 16;
const TAG_BYTES: usize = 16;
const KEY_BYTES: usize = 32;
/// Bytes under one key: less than RFC 8446 section 5.5 allows (2^24.5 records of 16 KB) for an attacker's chance of 2^-57. What
/// comes after is sealed with the first cipher, until the next session.
const SEALED_BYTES_MAX: u64 = 1 << 38;
/// A grant is told so often, at least so long after the one before.
const GRANTS_MAX: u8 = 4;
const GRANT_AGAIN: Duration = Duration::from_secs(1);
/// The session in use, and the one before it.
const OPENERS: usize = 2;

/// Whether AES-256-GCM is the faster of both here.
pub(super) fn is_fast() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes") && std::arch::is_aarch64_feature_detected!("pmull");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    false
}

/// With which data leaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cipher {
    ChaCha20Poly1305,
    Aes256Gcm,
}

impl Cipher {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ChaCha20Poly1305 => "chacha20-poly1305",
            Self::Aes256Gcm => "aes-256-gcm",
        }
    }
}

/// One peer's.
#[derive(Default)]
pub(super) struct Ciphers {
    /// The latest first.
    openers: [Option<Opener>; OPENERS],
    sealer: Option<Sealer>,
}

struct Opener {
    index: u32,
    /// Until it was used.
    secret: Option<Zeroizing<[u8; KEY_BYTES]>>,
    key: LessSafeKey,
    window: Window,
    told: u8,
    told_at: Instant,
}

pub(super) struct Sealer {
    /// By this end's index.
    session: u32,
    index: u32,
    key: LessSafeKey,
    counter: u64,
    bytes: u64,
}

/// What was opened.
pub(super) struct Unsealed {
    pub bytes: usize,
    /// The first in this session: the peer has taken the grant.
    pub is_first: bool,
}

impl Ciphers {
    /// What to tell the peer now that data of this session came in the first cipher.
    pub fn grant(&mut self, index: u32, now: Instant) -> Option<Grant> {
        if !matches!(&self.openers[0], Some(latest) if latest.index == index) {
            let opener = Opener::new(index, now)?;
            self.openers.rotate_right(1);
            self.openers[0] = Some(opener);
        }
        let opener = self.openers[0].as_mut()?;
        let is_due = opener.told == 0 || opener.told < GRANTS_MAX && now >= opener.told_at + GRANT_AGAIN;
        let secret = opener.secret.clone().filter(|_| is_due)?;
        (opener.told, opener.told_at) = (opener.told + 1, now);
        Some(Grant { index, secret })
    }

    /// The peer's grant, which came in this session. The first one counts: a counter never starts again under a key.
    pub fn take(&mut self, session: u32, grant: &Grant) {
        if self.sealer.as_ref().is_none_or(|known| known.session != session) {
            self.sealer =
                key(&grant.secret).map(|key| Sealer { session, index: grant.index, key, counter: 0, bytes: 0 });
        }
    }

    pub fn sealer(&mut self, session: Option<u32>) -> Option<&mut Sealer> {
        self.sealer.as_mut().filter(|sealer| sealer.is_for(session))
    }

    pub fn has_sealer(&self, session: Option<u32>) -> bool {
        self.sealer.as_ref().is_some_and(|sealer| sealer.is_for(session))
    }

    /// Forgets the keys of sessions that are no more. Their indices come again, and a key must not.
    pub fn keep(&mut self, lives: impl Fn(u32) -> bool) {
        for opener in &mut self.openers {
            opener.take_if(|opener| !lives(opener.index));
        }
        self.sealer.take_if(|sealer| !lives(sealer.session));
    }

    /// A datagram of the second cipher into `buffer`, which is as long. `counter` is without its highest bit.
    pub fn open(
        &mut self,
        index: u32,
        counter: u64,
        datagram: &[u8],
        buffer: &mut [u8],
    ) -> Result<Unsealed, OpenError> {
        let mut openers = self.openers.iter_mut().flatten();
        let opener = openers.find(|opener| opener.index == index).ok_or(OpenError::Unauthentic)?;
        if !opener.window.is_new(counter) {
            return Err(OpenError::Replayed);
        }
        let sealed = datagram.get(HEADER_BYTES..).ok_or(OpenError::Unauthentic)?;
        let buffer = buffer.get_mut(..sealed.len()).ok_or(OpenError::Unauthentic)?;
        buffer.copy_from_slice(sealed);
        let opened = opener.key.open_in_place(nonce(counter), Aad::empty(), buffer);
        let bytes = opened.map_err(|_| OpenError::Unauthentic)?.len();
        opener.window.note(counter);
        let is_first = opener.secret.take().is_some();
        Ok(Unsealed { bytes, is_first })
    }
}

impl Opener {
    /// None if there is no randomness to be had; then the first cipher goes on.
    fn new(index: u32, now: Instant) -> Option<Self> {
        let mut secret = Zeroizing::new([0; KEY_BYTES]);
        SystemRandom::new().fill(secret.as_mut()).ok()?;
        let key = key(&secret)?;
        Some(Self { index, secret: Some(secret), key, window: Window::default(), told: 0, told_at: now })
    }
}

impl Sealer {
    fn is_for(&self, session: Option<u32>) -> bool {
        Some(self.session) == session && self.bytes < SEALED_BYTES_MAX
    }

    /// The datagram's bytes in `into`, which has room for them.
    pub fn seal(&mut self, packet: &[u8], into: &mut [u8]) -> Option<usize> {
        let bytes = HEADER_BYTES + packet.len() + TAG_BYTES;
        let (header, sealed) = into.get_mut(..bytes)?.split_at_mut(HEADER_BYTES);
        let (inner, tag) = sealed.split_at_mut(packet.len());
        header[..4].copy_from_slice(&4_u32.to_le_bytes());
        header[4..8].copy_from_slice(&self.index.to_le_bytes());
        header[8..].copy_from_slice(&(self.counter | COUNTER_BIT).to_le_bytes());
        inner.copy_from_slice(packet);
        let nonce = nonce(self.counter);
        self.counter += 1;
        self.bytes += bytes as u64;
        tag.copy_from_slice(self.key.seal_in_place_separate_tag(nonce, Aad::empty(), inner).ok()?.as_ref());
        Some(bytes)
    }
}

fn key(secret: &[u8; KEY_BYTES]) -> Option<LessSafeKey> {
    UnboundKey::new(&AES_256_GCM, secret).ok().map(LessSafeKey::new)
}

/// As WireGuard's: four zeros, and the counter.
fn nonce(counter: u64) -> Nonce {
    let mut nonce = [0; NONCE_LEN];
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}

/// What a peer is told: with this key it may seal for this session of the teller's. An inner packet between the two agents.
pub(super) struct Grant {
    pub index: u32,
    pub secret: Zeroizing<[u8; KEY_BYTES]>,
}

/// The head, the receiver index, the key.
pub(super) const GRANT_BYTES: usize = HEAD_BYTES + 4 + KEY_BYTES;
const KIND: u8 = 3;

impl Grant {
    pub fn write(&self) -> Zeroizing<[u8; GRANT_BYTES]> {
        let mut packet = Zeroizing::new([0; GRANT_BYTES]);
        packet[..HEAD_BYTES].copy_from_slice(&head(Ends::ToAgent, KIND, GRANT_BYTES));
        packet[HEAD_BYTES..HEAD_BYTES + 4].copy_from_slice(&self.index.to_be_bytes());
        packet[HEAD_BYTES + 4..].copy_from_slice(self.secret.as_ref());
        packet
    }

    /// None for any other packet.
    pub fn read(packet: &[u8]) -> Option<Self> {
        let packet: &[u8; GRANT_BYTES] = packet.try_into().ok()?;
        let (index, secret) = packet[HEAD_BYTES..].split_at(4);
        let grant =
            Self { index: u32::from_be_bytes(index.try_into().ok()?), secret: Zeroizing::new(secret.try_into().ok()?) };
        (packet[..HEAD_BYTES] == head(Ends::ToAgent, KIND, GRANT_BYTES)).then_some(grant)
    }
}

/// Which counters were seen (RFC 6479): a ring of bits, whole words of which are cleared ahead.
struct Window {
    next: u64,
    words: [u64; WORDS],
}

const WORDS: usize = 32;
/// What may come late: one word is always partly ahead.
const LATE_MAX: u64 = (WORDS as u64 - 1) * 64;

impl Default for Window {
    fn default() -> Self {
        Self { next: 0, words: [0; WORDS] }
    }
}

impl Window {
    fn is_new(&self, counter: u64) -> bool {
        counter >= self.next || self.next - counter <= LATE_MAX && self.words[word(counter)] & bit(counter) == 0
    }

    fn note(&mut self, counter: u64) {
        if counter >= self.next {
            let (last, reached) = (self.next.saturating_sub(1) / 64, counter / 64);
            for ahead in (last + 1..=reached).take(WORDS) {
                self.words[ahead as usize % WORDS] = 0;
            }
            self.next = counter + 1;
        }
        self.words[word(counter)] |= bit(counter);
    }
}

fn word(counter: u64) -> usize {
    (counter / 64) as usize % WORDS
}

fn bit(counter: u64) -> u64 {
    1 << (counter % 64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn pair(now: Instant) -> (Ciphers, Ciphers) {
        let (mut receiver, mut sender) = (Ciphers::default(), Ciphers::default());
        let grant = receiver.grant(7, now).expect("a grant");
        sender.take(9, &Grant::read(grant.write().as_ref()).expect("a grant"));
        (receiver, sender)
    }

    fn seal(sender: &mut Ciphers, packet: &[u8]) -> Vec<u8> {
        let mut into = [0; 2048];
        let bytes = sender.sealer(Some(9)).expect("a key").seal(packet, &mut into).expect("room");
        into[..bytes].to_vec()
    }

    fn open(receiver: &mut Ciphers, datagram: &[u8]) -> Result<Vec<u8>, OpenError> {
        let counter = u64::from_le_bytes(datagram[8..16].try_into().expect("eight"));
        assert!(counter >= COUNTER_BIT);
        let mut buffer = vec![0; datagram.len()];
        let bytes = receiver.open(7, counter & !COUNTER_BIT, datagram, &mut buffer)?.bytes;
        Ok(buffer[..bytes].to_vec())
    }

    #[test]
    fn what_is_sealed_is_opened_once_and_only_if_nothing_of_it_was_changed() {
        let (mut receiver, mut sender) = pair(Instant::now());
        for packet in [&[][..], &[1], &[2; 1420]] {
            let datagram = seal(&mut sender, packet);
            for at in 8..datagram.len() {
                let mut altered = datagram.clone();
                altered[at] ^= 1;
                assert!(open(&mut receiver, &altered).is_err(), "byte {at}");
            }
            assert_eq!(open(&mut receiver, &datagram).expect("opened"), packet);
            assert_eq!(open(&mut receiver, &datagram), Err(OpenError::Replayed));
        }
    }

    #[test]
    fn a_grant_is_told_again_until_it_is_used_but_not_for_ever() {
        let mut now = Instant::now();
        let (mut receiver, _) = pair(now);
        assert!(receiver.grant(7, now).is_none(), "just told");
        let mut told = 1;
        for _ in 0..100 {
            now += GRANT_AGAIN;
            told += u8::from(receiver.grant(7, now).is_some());
        }
        assert_eq!(told, GRANTS_MAX);
        assert!(receiver.grant(8, now).is_some(), "of another session");

        let (mut receiver, mut sender) = pair(now);
        open(&mut receiver, &seal(&mut sender, &[1])).expect("opened");
        assert!(receiver.grant(7, now + GRANT_AGAIN).is_none(), "used");
    }

    #[test]
    fn a_second_grant_of_a_session_does_not_begin_the_counters_again() {
        let now = Instant::now();
        let (mut receiver, mut sender) = pair(now);
        seal(&mut sender, &[1]);
        let again = receiver.grant(7, now + GRANT_AGAIN).expect("not used yet");
        sender.take(9, &again);
        assert_eq!(seal(&mut sender, &[1])[8..16], (1 | COUNTER_BIT).to_le_bytes());
    }

    #[test]
    fn a_key_ends_with_its_session_and_after_its_share_of_bytes() {
        let (mut receiver, mut sender) = pair(Instant::now());
        assert!(sender.sealer(None).is_none() && sender.sealer(Some(10)).is_none());
        sender.sealer(Some(9)).expect("a key").bytes = SEALED_BYTES_MAX - 1;
        let last = seal(&mut sender, &[1]);
        assert!(!sender.has_sealer(Some(9)) && sender.sealer(Some(9)).is_none());
        open(&mut receiver, &last).expect("opened");
        for index in [8, 9] {
            receiver.grant(index, Instant::now());
        }
        assert_eq!(open(&mut receiver, &last), Err(OpenError::Unauthentic), "two sessions later");
    }

    #[test]
    fn an_index_that_comes_again_has_another_key() {
        let now = Instant::now();
        let (mut receiver, mut sender) = pair(now);
        let old = seal(&mut sender, &[1]);
        receiver.keep(|_| false);
        sender.keep(|_| false);
        assert!(sender.sealer(Some(9)).is_none() && open(&mut receiver, &old).is_err());
        sender.take(9, &receiver.grant(7, now).expect("a new key"));
        assert_eq!(open(&mut receiver, &old), Err(OpenError::Unauthentic));
        let new = seal(&mut sender, &[1]);
        assert!(new != old, "under the same counter");
        open(&mut receiver, &new).expect("opened");
    }

    #[test]
    fn nothing_but_a_grant_is_read_as_one() {
        let grant = Grant { index: 0x0102_0304, secret: Zeroizing::new([5; KEY_BYTES]) };
        let packet = grant.write();
        assert!(etherparse::SlicedPacket::from_ip(packet.as_ref()).is_ok());
        for byte in 0..HEAD_BYTES {
            let mut other = packet.clone();
            other[byte] ^= 4;
            assert!(Grant::read(other.as_ref()).is_none(), "byte {byte}");
        }
        assert!(Grant::read(&packet[..GRANT_BYTES - 1]).is_none());
    }

    proptest! {
        #[test]
        fn a_counter_is_new_once_and_not_when_it_is_too_late(counters in proptest::collection::vec(0_u64..6000, 1..800)) {
            let (mut window, mut seen, mut next) = (Window::default(), BTreeSet::new(), 0);
            for counter in counters {
                let in_time = counter >= next || next - counter <= LATE_MAX;
                prop_assert_eq!(window.is_new(counter), in_time && !seen.contains(&counter));
                if window.is_new(counter) {
                    window.note(counter);
                    seen.insert(counter);
                    next = next.max(counter + 1);
                }
            }
        }
    }
}
