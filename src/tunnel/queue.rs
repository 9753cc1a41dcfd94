//! Packets of one peer that wait for a session.

use super::SealError;
use std::collections::VecDeque;

/// As many as Linux keeps for a peer (MAX_STAGED_PACKETS).
const PACKETS_MAX: usize = 128;
/// Four super-packets; a peer that is away costs no more.
const BYTES_MAX: usize = 1 << 18;

#[derive(Default)]
pub(super) struct Queue {
    packets: VecDeque<Box<[u8]>>,
    bytes: usize,
}

impl Queue {
    pub fn len(&self) -> usize {
        self.packets.len()
    }

    pub fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    /// When it is full the new packet is refused: what waits is older, and in order.
    pub fn push(&mut self, packet: &[u8]) -> Result<(), SealError> {
        if self.packets.len() == PACKETS_MAX || self.bytes + packet.len() > BYTES_MAX {
            return Err(SealError::Overload);
        }
        self.bytes += packet.len();
        self.packets.push_back(packet.into());
        Ok(())
    }

    pub fn first_bytes(&self) -> Option<usize> {
        self.packets.front().map(|packet| packet.len())
    }

    pub fn pop(&mut self) -> Option<Box<[u8]>> {
        let packet = self.packets.pop_front()?;
        self.bytes -= packet.len();
        Some(packet)
    }

    pub fn clear(&mut self) {
        *self = Self::default();
    }
}
