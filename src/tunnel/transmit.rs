//! Sealed datagrams on their way out, laid back to back so that one send with UDP segmentation takes many.

use crate::addr::{Binding, Path};
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The kernel takes at most this many segments a send (`UDP_MAX_SEGMENTS` was 64 before Linux 6.9).
const SEGMENTS_MAX: usize = 64;
/// The largest UDP payload over IPv4.
const BATCH_BYTES_MAX: usize = 65507;

/// Datagrams of equal length (the last may be shorter) to one address.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Batch {
    pub to: SocketAddr,
    pub range: Range<usize>,
    pub segment_bytes: usize,
}

/// One arena, allocated once.
#[derive(Debug)]
pub struct Transmits {
    arena: Box<[u8]>,
    used: usize,
    batches: Vec<Batch>,
    /// How often it was cleared.
    cleared: Arc<AtomicU64>,
}

/// What lies in an arena and is not sent yet.
#[derive(Debug)]
pub(super) struct Unsent {
    cleared: Arc<AtomicU64>,
    count: u64,
}

impl Unsent {
    /// Whether it still lies in an arena, and not in this one.
    pub(super) fn is_elsewhere(&self, transmits: &Transmits) -> bool {
        !Arc::ptr_eq(&self.cleared, &transmits.cleared) && self.cleared.load(Ordering::Acquire) == self.count
    }
}

impl Transmits {
    #[must_use]
    pub fn new(arena_bytes: usize) -> Self {
        Self { arena: vec![0; arena_bytes].into(), used: 0, batches: Vec::with_capacity(256), cleared: Arc::default() }
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    /// Bytes left for datagrams.
    #[must_use]
    pub fn room(&self) -> usize {
        self.arena.len() - self.used
    }

    /// Where the next datagram may be written; all that is left of the arena.
    pub fn space(&mut self) -> &mut [u8] {
        &mut self.arena[self.used..]
    }

    /// Takes the first `bytes` of [`Self::space`] as a datagram to `to`.
    pub fn commit(&mut self, to: impl Into<Path>, bytes: usize) {
        let Path { address: to, binding } = to.into();
        let start = self.used;
        if let Some(binding) = binding {
            set_binding(&mut self.arena[start..start + bytes], Some(binding));
        }
        self.used += bytes;
        if let Some(last) = self.batches.last_mut() {
            let whole = last.range.len() % last.segment_bytes == 0;
            let segments = last.range.len() / last.segment_bytes;
            let fits = bytes <= last.segment_bytes && last.range.len() + bytes <= BATCH_BYTES_MAX;
            if last.to == to && whole && fits && segments < SEGMENTS_MAX {
                last.range.end = self.used;
                return;
            }
        }
        self.batches.push(Batch { to, range: start..self.used, segment_bytes: bytes.max(1) });
    }

    pub fn batches(&self) -> impl Iterator<Item = (&Batch, &[u8])> {
        self.batches.iter().map(|batch| (batch, &self.arena[batch.range.clone()]))
    }

    /// After everything was sent, or given up.
    pub fn clear(&mut self) {
        self.used = 0;
        self.batches.clear();
        self.cleared.fetch_add(1, Ordering::Release);
    }

    pub(super) fn unsent(&self) -> Unsent {
        Unsent { cleared: Arc::clone(&self.cleared), count: self.cleared.load(Ordering::Relaxed) }
    }
}

/// Where WireGuard's messages have three bytes that are always zero (paper, section 5.4).
const BINDING: Range<usize> = 1..4;

/// What the relay wrote into a datagram, or is to read there.
fn binding(datagram: &[u8]) -> Option<Binding> {
    let [_, low, middle, high] = *datagram.first_chunk()?;
    Binding::new(u32::from_le_bytes([low, middle, high, 0]))
}

/// The datagram with this binding, or as it came from its tunnel.
pub fn set_binding(datagram: &mut [u8], binding: Option<Binding>) {
    let number = binding.map_or(0, Binding::number).to_le_bytes();
    if let Some(bytes) = datagram.get_mut(BINDING) {
        bytes.copy_from_slice(&number[..3]);
    }
}

/// How many bytes at the beginning of a message are datagrams of one binding, and which.
#[must_use]
pub fn same_binding(message: &[u8], stride: usize) -> (Option<Binding>, usize) {
    let of_first = binding(message);
    let alike = message.chunks(stride.max(1)).take_while(|datagram| binding(datagram) == of_first);
    (of_first, alike.map(<[u8]>::len).sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit(transmits: &mut Transmits, to: &str, bytes: usize) {
        transmits.commit(to.parse::<SocketAddr>().expect("address"), bytes);
    }

    #[test]
    fn equal_datagrams_to_one_address_share_a_batch_until_a_shorter_one_ends_it() {
        let mut transmits = Transmits::new(1 << 20);
        for bytes in [100, 100, 40, 100] {
            commit(&mut transmits, "192.0.2.1:1", bytes);
        }
        commit(&mut transmits, "192.0.2.2:1", 100);
        commit(&mut transmits, "192.0.2.2:1", 200);
        let seen: Vec<_> = transmits.batches().map(|(b, bytes)| (b.segment_bytes, bytes.len())).collect();
        assert_eq!(seen, [(100, 240), (100, 100), (100, 100), (200, 200)]);
    }

    #[test]
    fn a_batch_holds_what_one_send_can_take() {
        let mut transmits = Transmits::new(1 << 20);
        (0..65).for_each(|_| commit(&mut transmits, "192.0.2.1:1", 10));
        (0..46).for_each(|_| commit(&mut transmits, "192.0.2.2:1", 1452));
        let seen: Vec<_> = transmits.batches().map(|(_, bytes)| bytes.len()).collect();
        assert_eq!(seen, [640, 10, 45 * 1452, 1452]);
    }
}
