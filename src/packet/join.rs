//! Packets of one flow that came in one batch, joined: one lookup, one translation and one write for all of them.
//! They stay where they were opened; only the first one's header changes.

use super::checksum::Sum;
use super::parse::be16;
use super::split::{checksum_offset, set_ipv4_checksum};
use super::{FiveTuple, Head, Kind, Offload, Packet, ParseError, virtio};
use crate::addr::{Family, PeerId};
use std::num::NonZeroU16;
use std::ops::Range;

/// As the kernel's own receive offload: what one super-packet may hold, with room for the longest headers.
const JOINED_BYTES_MAX: u32 = 65_000;
/// `UDP_MAX_SEGMENTS` before Linux 6.9; TCP keeps to it too.
const SEGMENTS_MAX: u32 = 64;
/// Groups that may still grow; a batch rarely mixes more flows.
const OPEN_GROUPS_MAX: usize = 8;
const ACK: u8 = 0x10;
const PSH: u8 = 0x08;
const NONE: u32 = u32::MAX;

#[derive(Debug)]
pub struct Joiner {
    arena: Box<[u8]>,
    used: usize,
    groups: Vec<State>,
    slices: Vec<Slice>,
    /// Indices of groups that may still grow, the latest last.
    open: Vec<usize>,
}

#[derive(Debug)]
struct State {
    peer: PeerId,
    head: Head,
    first: Range<usize>,
    packets: u32,
    /// Sum of the packets' lengths, headers included.
    bytes: u64,
    segment_bytes: u32,
    next_sequence: u32,
    last_id: u16,
    first_slice: u32,
    last_slice: u32,
    deliver: bool,
}

/// Payload of a joined packet.
#[derive(Debug)]
struct Slice {
    range: Range<usize>,
    next: u32,
}

/// One flow's packets as one: the headers are those of the whole, the payload at hand is the first packet's.
#[derive(Debug)]
pub struct Group<'a> {
    pub peer: PeerId,
    pub packets: u32,
    pub bytes: u64,
    pub packet: Packet<'a>,
}

/// To be written to the TUN in one go.
#[derive(Debug)]
pub struct Delivery<'a> {
    pub virtio: [u8; virtio::HEADER_BYTES],
    joiner: &'a Joiner,
    first: Range<usize>,
    next: u32,
}

impl<'a> Delivery<'a> {
    /// Header and first payload, then the other payloads.
    pub fn slices(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let joiner = self.joiner;
        let mut next = self.next;
        let rest = std::iter::from_fn(move || {
            let slice = joiner.slices.get(next as usize)?;
            next = slice.next;
            Some(&joiner.arena[slice.range.clone()])
        });
        std::iter::once(&joiner.arena[self.first.clone()]).chain(rest)
    }
}

impl Joiner {
    #[must_use]
    pub fn new(arena_bytes: usize) -> Self {
        Self {
            arena: vec![0; arena_bytes].into(),
            used: 0,
            groups: Vec::with_capacity(256),
            slices: Vec::with_capacity(1024),
            open: Vec::with_capacity(OPEN_GROUPS_MAX),
        }
    }

    #[must_use]
    pub fn room(&self) -> usize {
        self.arena.len() - self.used
    }

    /// All that is left of the arena: the next packet is written to its begin.
    pub fn space(&mut self) -> &mut [u8] {
        &mut self.arena[self.used..]
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.groups.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    pub fn clear(&mut self) {
        self.used = 0;
        self.groups.clear();
        self.slices.clear();
        self.open.clear();
    }

    /// The first `bytes` of [`Self::space`] are a packet from `peer`: joins it to its flow's packets of this batch if
    /// it continues them.
    pub fn push(&mut self, peer: PeerId, bytes: usize) -> Result<(), ParseError> {
        let start = self.used;
        let packet = Packet::parse(&mut self.arena[start..start + bytes], Offload::default())?;
        let head = packet.head;
        let joinable = is_joinable(&packet);
        let payload = payload_bytes(&head);
        self.used += head.total_bytes as usize;
        let of_flow = |index: &usize| self.groups[*index].peer == peer && self.groups[*index].head.tuple == head.tuple;
        if let Some(place) = self.open.iter().position(of_flow) {
            let index = self.open[place];
            if joinable && self.continues(index, &head, start) {
                self.append(index, &head, start);
                let group = &self.groups[index];
                let full = payload < group.segment_bytes || group.packets == SEGMENTS_MAX || pushes(&head);
                if full {
                    self.open.remove(place);
                }
                return Ok(());
            }
            self.open.remove(place);
        }
        if joinable && !pushes(&head) {
            if self.open.len() == OPEN_GROUPS_MAX {
                self.open.remove(0);
            }
            self.open.push(self.groups.len());
        }
        self.groups.push(State {
            peer,
            head,
            first: start..self.used,
            packets: 1,
            bytes: head.total_bytes.into(),
            segment_bytes: payload,
            next_sequence: sequence(&head).wrapping_add(payload),
            last_id: identification(&self.arena[start..]),
            first_slice: NONE,
            last_slice: NONE,
            deliver: false,
        });
        Ok(())
    }

    /// Whether a packet goes on where the group ends: headers that differ only where segments of one packet do.
    fn continues(&self, index: usize, head: &Head, start: usize) -> bool {
        let group = &self.groups[index];
        let payload = payload_bytes(head);
        let fits = payload <= group.segment_bytes
            && group.head.total_bytes + payload <= JOINED_BYTES_MAX
            && (head.ip_bytes, head.l4_bytes) == (group.head.ip_bytes, group.head.l4_bytes);
        let next = sequence(head) == group.next_sequence || head.kind == Kind::Udp;
        fits && next && {
            let one = &self.arena[group.first.clone()];
            let other = &self.arena[start..];
            let id = identification(other);
            // Where it may not be fragmented the id means nothing, and some hosts never change it (RFC 6864).
            let next_id = id == group.last_id.wrapping_add(1) || (id == group.last_id && head.dont_fragment);
            let next_id = next_id || head.family == Family::V6;
            next_id && same_ip_header(head, one, other) && same_tcp_header(head, one, other)
        }
    }

    fn append(&mut self, index: usize, head: &Head, start: usize) {
        let headers = usize::from(head.ip_bytes + head.l4_bytes);
        let range = start + headers..start + head.total_bytes as usize;
        let slice = self.slices.len() as u32;
        self.slices.push(Slice { range, next: NONE });
        let group = &mut self.groups[index];
        match self.slices.get_mut(group.last_slice as usize) {
            Some(last) => last.next = slice,
            None => group.first_slice = slice,
        }
        group.last_slice = slice;
        group.packets += 1;
        group.last_id = identification(&self.arena[start..]);
        group.bytes += u64::from(head.total_bytes);
        group.head.total_bytes += payload_bytes(head);
        group.next_sequence = group.next_sequence.wrapping_add(payload_bytes(head));
        if let (Kind::Tcp(tcp), Kind::Tcp(more)) = (&mut group.head.kind, head.kind) {
            tcp.flags |= more.flags & PSH;
            self.arena[group.first.start + usize::from(head.ip_bytes) + 13] |= more.flags & PSH;
        }
    }

    /// A group, with the lengths and the partial checksum of the whole if it is more than one packet.
    pub fn group(&mut self, index: usize) -> Group<'_> {
        let group = &self.groups[index];
        let bytes = &mut self.arena[group.first.clone()];
        let offload = offload(group);
        if group.packets > 1 {
            set_joined_header(&group.head, bytes);
        }
        let packet = Packet::joined(group.head, offload, bytes);
        Group { peer: group.peer, packets: group.packets, bytes: group.bytes, packet }
    }

    /// A group's bytes in one piece, as its header is now, and how many packets they are.
    pub fn gather(&self, index: usize, into: &mut Vec<u8>) -> (u32, Offload) {
        let group = &self.groups[index];
        into.clear();
        let delivery = Delivery {
            virtio: [0; virtio::HEADER_BYTES],
            joiner: self,
            first: group.first.clone(),
            next: group.first_slice,
        };
        delivery.slices().for_each(|part| into.extend_from_slice(part));
        (group.packets, offload(group))
    }

    /// Marks a group for delivery, as its header is now.
    pub fn deliver(&mut self, index: usize) {
        let group = &mut self.groups[index];
        group.deliver = true;
        if group.packets == 1 {
            // Translation may have made it shorter.
            let bytes = &self.arena[group.first.clone()];
            let length = match group.head.family {
                Family::V4 => usize::from(be16(bytes, 2)),
                Family::V6 => 40 + usize::from(be16(bytes, 4)),
            };
            group.first.end = group.first.end.min(group.first.start + length);
        }
    }

    /// What was marked, in the order of each group's first packet.
    pub fn deliveries(&self) -> impl Iterator<Item = Delivery<'_>> {
        self.groups.iter().filter(|group| group.deliver).map(|group| Delivery {
            virtio: virtio::encode(&group.head, offload(group)),
            joiner: self,
            first: group.first.clone(),
            next: group.first_slice,
        })
    }
}

fn offload(group: &State) -> Offload {
    let joined = group.packets > 1;
    let segment_bytes = NonZeroU16::new(group.segment_bytes as u16).filter(|_| joined);
    Offload { checksum_partial: joined, segment_bytes }
}

/// A whole segment of data and nothing else, right as it is: joining must not mend what was wrong.
fn is_joinable(packet: &Packet) -> bool {
    let head = &packet.head;
    let plain_ip = match head.family {
        Family::V4 => head.ip_bytes == 20,
        Family::V6 => head.ip_bytes == 40,
    };
    let plain_kind = match head.kind {
        // Beside the length are reserved bits and a flag of accurate ECN.
        Kind::Tcp(tcp) => tcp.flags & !PSH == ACK && packet.layer4()[12] & 0x0f == 0,
        Kind::Udp => be16(packet.layer4(), 6) != 0,
        Kind::EchoRequest | Kind::EchoReply | Kind::IcmpError | Kind::FragmentTail => false,
    };
    plain_ip && plain_kind && head.fragment.is_none() && payload_bytes(head) > 0 && packet.checksum_is_right()
}

fn payload_bytes(head: &Head) -> u32 {
    head.total_bytes - u32::from(head.ip_bytes) - u32::from(head.l4_bytes)
}

fn sequence(head: &Head) -> u32 {
    match head.kind {
        Kind::Tcp(tcp) => tcp.sequence,
        _ => 0,
    }
}

fn pushes(head: &Head) -> bool {
    matches!(head.kind, Kind::Tcp(tcp) if tcp.flags & PSH != 0)
}

/// Of IPv4; IPv6 has none.
fn identification(packet: &[u8]) -> u16 {
    be16(packet, 4)
}

/// All but length, identification, checksum and addresses (which the tuple compared).
fn same_ip_header(head: &Head, one: &[u8], other: &[u8]) -> bool {
    match head.family {
        Family::V4 => one[1] == other[1] && one[6..9] == other[6..9],
        Family::V6 => one[..4] == other[..4] && one[7] == other[7],
    }
}

/// Acknowledgment, window, urgent pointer and options; sequence numbers, PSH and checksum were looked at or may differ.
fn same_tcp_header(head: &Head, one: &[u8], other: &[u8]) -> bool {
    let Kind::Tcp(_) = head.kind else { return true };
    let at = usize::from(head.ip_bytes);
    let options = at + 20..at + usize::from(head.l4_bytes);
    one[at + 8..at + 12] == other[at + 8..at + 12]
        && one[at + 14..at + 16] == other[at + 14..at + 16]
        && one[at + 18..at + 20] == other[at + 18..at + 20]
        && one[options.clone()] == other[options]
}

fn set_joined_header(head: &Head, bytes: &mut [u8]) {
    let ip_bytes = usize::from(head.ip_bytes);
    let l4_length = head.total_bytes - u32::from(head.ip_bytes);
    match head.family {
        Family::V4 => {
            bytes[2..4].copy_from_slice(&(head.total_bytes as u16).to_be_bytes());
            set_ipv4_checksum(&mut bytes[..ip_bytes]);
        }
        Family::V6 => bytes[4..6].copy_from_slice(&((head.total_bytes - 40) as u16).to_be_bytes()),
    }
    if head.kind == Kind::Udp {
        bytes[ip_bytes + 4..ip_bytes + 6].copy_from_slice(&(l4_length as u16).to_be_bytes());
    }
    let FiveTuple { source, destination, protocol, .. } = head.tuple;
    if let Some(at) = checksum_offset(protocol) {
        let sum = Sum::pseudo(source, destination, protocol, l4_length).folded();
        bytes[ip_bytes + at..ip_bytes + at + 2].copy_from_slice(&sum.to_be_bytes());
    }
}
