//! What was read from the TUN and waits for its turn. A stream that is faster than this gateway fills the TUN's queue, which
//! the kernel keeps in the order of arrival. Here a packet of a flow that has none waiting goes before those of flows that
//! have (sparse flows, RFC 8290 section 4.2); so a request does not wait behind a download. Within a flow the order is kept.

use crate::sys::{Tun, is_later};
use std::collections::VecDeque;
use std::io;
use vp::packet::{Offload, virtio};

/// Packets that wait here. The others of a stream stay in the TUN's queue, and a request behind them; but super-packets
/// that wait here leave the processor's cache. With 2 a request beside a stream took 0.9 ms, with 10 0.55, with 32 0.5, and
/// the stream lost a tenth of its rate.
const SLOTS: usize = 10;
/// Where a packet begins in its slot: aligned, behind its virtio header.
const PACKET_AT: usize = 16;
const SLOT_BYTES: usize = PACKET_AT + (1 << 16);
/// Packets that may go before one that waits, so that many small flows do not stop a stream.
const AHEAD_MAX: usize = 32;

pub(super) struct Backlog {
    buffers: Box<[u8]>,
    /// The last one freed is used first: it is in the processor's cache.
    free: Vec<Slot>,
    order: Order,
    /// The TUN had no more when it was last read.
    is_drained: bool,
}

/// Where a packet lies.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct Slot {
    number: usize,
    bytes: usize,
    offload: Offload,
}

impl Default for Backlog {
    fn default() -> Self {
        Self {
            buffers: vec![0; SLOTS * SLOT_BYTES].into(),
            free: (0..SLOTS).map(|number| Slot { number, ..Slot::default() }).collect(),
            order: Order::with_room(SLOTS),
            is_drained: true,
        }
    }
}

impl Backlog {
    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Whether nothing waits here, but may in the TUN.
    pub(super) fn is_due(&self) -> bool {
        self.is_empty() && !self.is_drained
    }

    /// Reads what there is room for. An error means that the device is gone.
    pub(super) fn fill(&mut self, tun: &Tun) -> io::Result<()> {
        let header_bytes = if tun.has_header() { virtio::HEADER_BYTES } else { 0 };
        self.is_drained = false;
        while let Some(slot) = self.free.last().copied() {
            let buffer = &mut self.buffers[slot.number * SLOT_BYTES..][..SLOT_BYTES];
            let read = match tun.read(&mut buffer[PACKET_AT - header_bytes..]) {
                Ok(read) => read,
                Err(error) if is_later(&error) => {
                    self.is_drained = true;
                    return Ok(());
                }
                Err(error) => return Err(error),
            };
            let (header, packet) = buffer.split_at(PACKET_AT);
            let offload = match header[PACKET_AT - header_bytes..].first_chunk().map(virtio::decode) {
                Some(Ok(offload)) => offload,
                Some(Err(_)) => continue,
                None => Offload::default(),
            };
            let Some(packet) = read.checked_sub(header_bytes).and_then(|bytes| packet.get(..bytes)) else { continue };
            self.free.pop();
            self.order.push(Lane::of(packet), Slot { bytes: packet.len(), offload, ..slot });
        }
        Ok(())
    }

    /// The next packet. Its place is used again by [`Self::fill`].
    pub(super) fn take(&mut self) -> Option<(&mut [u8], Offload)> {
        let slot = self.order.pop()?;
        self.free.push(slot);
        Some((&mut self.buffers[slot.number * SLOT_BYTES + PACKET_AT..][..slot.bytes], slot.offload))
    }
}

/// Which packets must keep their order, by a look at what nobody checked yet: two of one flow are always of one lane.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Lane {
    hosts: u64,
    /// None for what has no ports, or hides them: it may be of any flow between the hosts.
    ports: Option<[u8; 4]>,
}

impl Lane {
    fn of(packet: &[u8]) -> Self {
        let at = |range: std::ops::Range<usize>| packet.get(range).unwrap_or_default();
        let (hosts, protocol, ports_at) = match packet.first().map(|first| first >> 4) {
            Some(4) => {
                let is_fragment = at(6..8).first_chunk().is_some_and(|b| u16::from_be_bytes(*b) & 0x3fff != 0);
                let header_bytes = usize::from(packet[0] & 15) * 4;
                (at(12..20), at(9..10), Some(header_bytes).filter(|_| !is_fragment))
            }
            Some(6) => (at(8..40), at(6..7), Some(40)),
            Some(_) | None => (&[][..], &[][..], None),
        };
        let hosts = hosts.chunks_exact(8).filter_map(|part| part.first_chunk()).map(|part| u64::from_ne_bytes(*part));
        let has_ports = matches!(protocol, [6 | 17]);
        let ports = ports_at.filter(|_| has_ports).and_then(|start| at(start..start + 4).first_chunk().copied());
        Self { hosts: hosts.fold(0, |all, part| all.rotate_left(5) ^ part), ports }
    }

    fn is_with(self, other: Self) -> bool {
        let same_ports = self.ports.zip(other.ports).is_none_or(|(one, other)| one == other);
        self.hosts == other.hosts && same_ports
    }
}

/// Who is next.
struct Order {
    /// Of flows that had nothing waiting, one of each.
    first: VecDeque<(Lane, Slot)>,
    later: VecDeque<(Lane, Slot)>,
    /// How many went before the one that is first in `later`.
    ahead: usize,
}

impl Order {
    fn with_room(slots: usize) -> Self {
        Self { first: VecDeque::with_capacity(slots), later: VecDeque::with_capacity(slots), ahead: 0 }
    }

    fn is_empty(&self) -> bool {
        self.first.is_empty() && self.later.is_empty()
    }

    fn push(&mut self, lane: Lane, slot: Slot) {
        let waits = waits_in(&self.first, lane) || waits_in(&self.later, lane);
        if waits && self.later.is_empty() {
            self.ahead = 0;
        }
        let queue = if waits { &mut self.later } else { &mut self.first };
        queue.push_back((lane, slot));
    }

    fn pop(&mut self) -> Option<Slot> {
        let is_passed_over = |(lane, _): &(Lane, Slot)| self.ahead < AHEAD_MAX || waits_in(&self.first, *lane);
        if self.later.front().is_none_or(is_passed_over)
            && let Some((_, slot)) = self.first.pop_front()
        {
            self.ahead += 1;
            return Some(slot);
        }
        self.ahead = 0;
        self.later.pop_front().map(|(_, slot)| slot)
    }
}

fn waits_in(queue: &VecDeque<(Lane, Slot)>, lane: Lane) -> bool {
    queue.iter().any(|(of, _)| of.is_with(lane))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(protocol: u8, hosts: u8, ports: u8, fragment: u8) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 28, 0, 0, fragment, 0, 64, protocol, 0, 0];
        packet.extend([10, 0, 0, hosts, 10, 0, 1, 2, 0, ports, 0, 80, 0, 0, 0, 0]);
        packet
    }

    fn popped(order: &mut Order) -> Vec<usize> {
        std::iter::from_fn(|| order.pop()).map(|slot| slot.number).collect()
    }

    fn push(order: &mut Order, packets: &[Vec<u8>]) {
        for (number, packet) in packets.iter().enumerate() {
            order.push(Lane::of(packet), Slot { number, ..Slot::default() });
        }
    }

    #[test]
    fn a_packet_of_a_flow_that_has_none_waiting_goes_before_a_stream() {
        let (stream, request) = (packet(6, 7, 1, 0), packet(6, 7, 2, 0));
        let mut order = Order::with_room(SLOTS);
        for _ in 0..2 * AHEAD_MAX {
            // Alone, it goes before nobody.
            push(&mut order, std::slice::from_ref(&request));
            assert_eq!(popped(&mut order), [0]);
        }
        push(&mut order, &[stream.clone(), stream.clone(), stream.clone(), request.clone(), stream, request]);
        assert_eq!(popped(&mut order), [0, 3, 1, 2, 4, 5]);
    }

    #[test]
    fn what_may_be_of_one_flow_keeps_its_order() {
        let (datagram, fragment) = (packet(17, 7, 1, 0), packet(17, 7, 1, 0x20));
        let mut order = Order::with_room(SLOTS);
        push(&mut order, &[datagram.clone(), fragment.clone(), datagram.clone(), fragment, datagram]);
        assert_eq!(popped(&mut order), [0, 1, 2, 3, 4]);
        let (echo, other) = (packet(1, 7, 1, 0), packet(1, 8, 1, 0));
        push(&mut order, &[echo.clone(), echo, other]);
        assert_eq!(popped(&mut order), [0, 2, 1]);
    }

    #[test]
    fn a_stream_goes_on_beside_any_number_of_small_flows() {
        let mut order = Order::with_room(SLOTS);
        let stream = packet(6, 7, 1, 0);
        push(&mut order, &[stream.clone(), stream]);
        let mut taken = Vec::new();
        for number in 0..200 {
            let one = packet(17, number as u8, 3, 0);
            order.push(Lane::of(&one), Slot { number: number + 2, ..Slot::default() });
            taken.extend(order.pop().map(|slot| slot.number));
        }
        assert_eq!(taken.iter().position(|number| *number == 1), Some(AHEAD_MAX));
    }

    #[test]
    fn both_families_have_lanes_and_any_bytes_have_one() {
        let mut v6 = vec![0; 48];
        (v6[0], v6[6], v6[23], v6[41]) = (0x60, 6, 1, 9);
        let of_v6 = Lane::of(&v6);
        assert_eq!(of_v6.ports, Some([0, 9, 0, 0]));
        v6[23] = 2;
        assert!(!Lane::of(&v6).is_with(of_v6));
        for bytes in [&v6[..41], &[0x45; 12], &[0x4f; 30], &[0x60], &[0; 64], &[]] {
            assert_eq!(Lane::of(bytes).ports, None, "{bytes:?}");
        }
    }
}
