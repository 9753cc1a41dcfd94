//! What leaves the node, and the work that is done beside it: sealing what it translated, opening what it is to see.
//! Each thread that carries packets has an output of its own.

use super::inbound::is_control;
use super::{Drops, Event, Node, PACKET_BYTES_MAX, Reason, reject};
use crate::addr::{Path, PeerId};
use crate::packet::{self, Joiner, Packet};
use crate::tunnel::{Opened, Transmits, Tunnel};
use std::time::Instant;

/// The largest packet, padded.
const SCRATCH_BYTES: usize = PACKET_BYTES_MAX.next_multiple_of(16);
/// Tunnels with news in one batch, before anything is allocated.
const NEWS: usize = 64;

/// What leaves in one batch. The shell sends and writes all of it, then clears it.
#[derive(Debug)]
pub struct Output {
    /// To the network.
    pub transmits: Transmits,
    /// To the TUN: what came in, joined.
    pub joiner: Joiner,
    /// To the TUN: single packets with complete checksums.
    pub packets: Vec<Vec<u8>>,
    unsettled: Unsettled,
    segment: Box<[u8]>,
    padded: Box<[u8]>,
}

/// What happened beside the node and it is still to hear of.
#[derive(Debug)]
struct Unsettled {
    tunnels: Vec<Tunnel>,
    controls: Vec<(PeerId, Vec<u8>)>,
    drops: Drops,
}

/// A packet, or a super-packet, as its tunnel carries it: to be split and sealed.
#[derive(Debug)]
pub struct Outbound<'a> {
    pub(super) packet: Packet<'a>,
    pub(super) tunnel: Tunnel,
    pub(super) mtu: u16,
}

impl Output {
    #[must_use]
    pub fn new(transmit_bytes: usize, inbound_bytes: usize) -> Self {
        let unsettled = Unsettled { tunnels: Vec::with_capacity(NEWS), controls: Vec::new(), drops: Drops::default() };
        Self {
            transmits: Transmits::new(transmit_bytes),
            joiner: Joiner::new(inbound_bytes),
            packets: Vec::new(),
            unsettled,
            segment: vec![0; SCRATCH_BYTES].into(),
            padded: vec![0; SCRATCH_BYTES].into(),
        }
    }

    pub fn clear(&mut self) {
        self.transmits.clear();
        self.joiner.clear();
        self.packets.clear();
    }

    /// Seals what [`Node::outbound`] gave.
    pub fn seal(&mut self, outbound: &Outbound, now: Instant) {
        self.seal_packet(&outbound.packet, &outbound.tunnel, outbound.mtu, now);
    }

    /// Splits what must be split and seals each part. What is too large and may not be fragmented is dropped.
    pub(super) fn seal_packet(&mut self, packet: &Packet, tunnel: &Tunnel, mtu: u16, now: Instant) {
        let Self { transmits, unsettled, segment, padded, .. } = self;
        let mut locked = tunnel.lock();
        let seal = |inner: &[u8]| {
            if let Err(error) = locked.seal(inner, mtu, padded, transmits, now) {
                unsettled.drops.count(reject::of_seal(error));
            }
        };
        if packet::largest_segment(packet) <= u32::from(mtu) {
            packet::split(packet, segment, seal);
        } else if packet::may_fragment(packet) {
            packet::fragment(packet, mtu, segment, seal);
        } else {
            unsettled.drops.count(Reason::TooBig);
        }
        if locked.has_news(now) {
            unsettled.tunnels.push(tunnel.clone());
        }
    }

    /// Opens the datagrams at the beginning of a message that are of this tunnel's sessions; how many bytes they are. The others
    /// are for [`Node::handle_datagrams`].
    pub fn open(
        &mut self,
        tunnel: &Tunnel,
        from: impl Into<Path>,
        message: &[u8],
        stride: usize,
        now: Instant,
    ) -> usize {
        let (from, mut locked) = (from.into(), tunnel.lock());
        let mut bytes = 0;
        for datagram in message.chunks(stride.max(1)) {
            if self.joiner.room() < datagram.len() {
                self.unsettled.drops.count(Reason::Overload);
            } else {
                let (into, scratch) = (self.joiner.space(), &mut self.padded);
                match locked.open(from, datagram, into, scratch, &mut self.transmits, now) {
                    Some(opened) => self.take_opened(opened),
                    None => break,
                }
            }
            bytes += datagram.len();
        }
        if locked.has_news(now) {
            self.unsettled.tunnels.push(tunnel.clone());
        }
        bytes
    }

    pub(super) fn take_opened(&mut self, opened: Opened) {
        match opened {
            Opened::Packet { peer, bytes } => {
                let inner = &self.joiner.space()[..bytes];
                if is_control(inner) {
                    self.unsettled.controls.push((peer, inner.to_vec()));
                } else if let Err(error) = self.joiner.push(peer, bytes) {
                    self.unsettled.drops.count(reject::of_parse(error));
                }
            }
            Opened::Nothing => {}
            Opened::Dropped(error) => self.unsettled.drops.count(reject::of_open(error)),
        }
    }

    /// Whether there is nothing for [`Node::settle`].
    #[must_use]
    pub fn is_settled(&self) -> bool {
        let Unsettled { tunnels, controls, drops } = &self.unsettled;
        tunnels.is_empty() && controls.is_empty() && *drops == Drops::NONE
    }
}

impl Node {
    /// Hears of what was sealed and opened beside it.
    pub fn settle(&mut self, output: &mut Output, now: Instant) {
        if output.is_settled() {
            return;
        }
        let Unsettled { tunnels, controls, drops } = &mut output.unsettled;
        tunnels.drain(..).for_each(|tunnel| self.tunnels.hear(&tunnel, now));
        self.take_tunnel_events(now);
        controls.drain(..).for_each(|(peer, packet)| self.tell(Event::Control { peer, packet }));
        self.drops.append(drops);
    }
}
