//! What the fuzz targets do with their input. The tests replay the corpus through the same functions.

use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU16;
use vp::addr::PeerId;
use vp::packet::{self, FiveTuple, Joiner, Kind, Offload, Packet, virtio};
use vp::translate;

/// Everything that is done to a packet, whichever door it came in by; and what must hold afterwards.
pub fn packet(bytes: &[u8]) {
    let plain = Offload::default();
    for segment_bytes in [0, 1, 700] {
        for checksum_partial in [false, true] {
            let offload = Offload { checksum_partial, segment_bytes: NonZeroU16::new(segment_bytes) };
            let mut bytes = bytes.to_vec();
            if let Ok(packet) = Packet::parse(&mut bytes, offload) {
                outbound(packet);
            }
        }
    }
    join(bytes);
    let mut header = [0; virtio::HEADER_BYTES];
    let length = bytes.len().min(header.len());
    header[..length].copy_from_slice(&bytes[..length]);
    if let (Ok(offload), Ok(packet)) = (virtio::decode(&header), Packet::parse(&mut bytes.to_vec(), plain)) {
        let _ = virtio::encode(&packet.head, offload);
    }
}

fn outbound(mut packet: Packet) {
    let mut scratch = vec![0; 1 << 17];
    let head = packet.head;
    assert_eq!(packet.bytes().len(), head.total_bytes as usize);
    let (gateway, other) = match head.tuple.source {
        IpAddr::V4(_) => (IpAddr::from([10, 0, 1, 1]), IpAddr::from([198, 18, 0, 12])),
        IpAddr::V6(_) => (IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 1]), IpAddr::from([0xfd76, 0, 0, 0, 0, 0, 0, 9])),
    };
    replies(&packet, gateway);
    let was_right = packet.checksum_is_right();
    if head.kind == Kind::IcmpError {
        error(&mut packet, gateway, other);
    } else {
        there_and_back(&mut packet, other);
    }
    packet.clamp_mss(1000);
    let hops = packet.decrement_hops();
    assert_eq!(hops.is_err(), head.hops <= 1);
    let is_plain = packet.offload == Offload::default();
    if is_plain && head.fragment.is_none() && head.kind != Kind::IcmpError {
        assert_eq!(packet.checksum_is_right(), was_right, "a checksum became right or wrong");
    }
    let largest = packet::largest_segment(&packet) as usize;
    let completes =
        packet.offload.checksum_partial || (packet.offload.segment_bytes.is_some() && !packet.payload().is_empty());
    let mut parts = 0;
    packet::split(&packet, &mut scratch, |part| {
        parts += 1;
        assert!(part.len() <= largest);
        let mut part = part.to_vec();
        let part = Packet::parse(&mut part, Offload::default()).expect("a part is a packet");
        assert!(!completes || part.checksum_is_right());
    });
    assert_eq!(parts, packet::segment_count(&packet));
    let mut carried = 0;
    packet::fragment(&packet, 600, &mut scratch, |part| {
        assert!(part.len() <= 600);
        carried += part.len() - usize::from(head.ip_bytes);
    });
    assert!(carried == 0 || carried == packet.bytes().len() - usize::from(head.ip_bytes));
}

fn replies(packet: &Packet, gateway: IpAddr) {
    let answers = [
        packet::reset(packet),
        packet::unreachable(packet, packet::Unreachable::Host, gateway),
        packet::time_exceeded(packet, gateway),
        packet::too_big(packet, 1280, gateway),
    ];
    for mut answer in answers.into_iter().flatten() {
        let answer = Packet::parse(&mut answer, Offload::default()).expect("an answer is a packet");
        assert!(answer.checksum_is_right());
        assert_eq!(answer.head.tuple.destination, packet.head.tuple.source);
    }
}

/// The way back gives every byte. Ones and zero are the same sum: where a field holds the one that no sender writes (ones in
/// all but UDP, zero where a kernel left the pseudo-header's sum) it comes back as the other.
fn there_and_back(packet: &mut Packet, other: IpAddr) {
    let before = packet.bytes().to_vec();
    let from = packet.head.tuple;
    let is_echo = matches!(packet.head.kind, Kind::EchoRequest | Kind::EchoReply);
    let destination_port = if is_echo { from.destination_port } else { from.destination_port ^ 1 };
    let to = FiveTuple { source: other, destination_port, ..from };
    translate::apply(packet, &to);
    let mut again = packet.bytes().to_vec();
    let again = Packet::parse(&mut again, packet.offload).expect("still a packet");
    assert_eq!(again.head, packet.head);
    translate::apply(packet, &from);
    let differ = before.iter().zip(packet.bytes()).filter(|(a, b)| a != b);
    let same_sum = differ.clone().all(|(a, b)| matches!((a, b), (0, 0xff) | (0xff, 0)));
    assert!(same_sum && differ.count() <= 4, "there and back: {before:02x?}");
}

fn error(packet: &mut Packet, gateway: IpAddr, other: IpAddr) {
    let Ok(quote) = packet::quote(packet) else { return };
    let to = FiveTuple { source: other, ..quote.tuple }.reversed();
    translate::apply_error(packet, &quote, &to, gateway, other, None);
    let mut again = packet.bytes().to_vec();
    let again = Packet::parse(&mut again, Offload::default()).expect("still a packet");
    assert_eq!(again.head, packet.head);
    let quote = packet::quote(&again).expect("still a quote");
    assert_eq!(quote.tuple, to);
}

fn join(bytes: &[u8]) {
    let mut joiner = Joiner::new(4 * bytes.len());
    let mut pushed = 0;
    for _ in 0..3 {
        joiner.space()[..bytes.len()].copy_from_slice(bytes);
        pushed += usize::from(joiner.push(PeerId(0), bytes.len()).is_ok());
    }
    let mut grouped = 0;
    for index in 0..joiner.len() {
        let mut group = joiner.group(index);
        grouped += group.packets as usize;
        let tuple = FiveTuple { source: IpAddr::V6(Ipv6Addr::LOCALHOST), ..group.packet.head.tuple };
        if group.packet.head.tuple.source.is_ipv6() && tuple.destination.is_ipv6() {
            translate::apply(&mut group.packet, &tuple);
        }
        joiner.deliver(index);
    }
    assert_eq!(grouped, pushed);
    for delivery in joiner.deliveries() {
        let mut bytes = delivery.slices().collect::<Vec<_>>().concat();
        let offload = virtio::decode(&delivery.virtio).expect("our own header");
        Packet::parse(&mut bytes, offload).expect("a delivery is a packet");
    }
}
