//! The rewrites of packets of every shape: options and extension headers, partial checksums, ICMP errors with what they
//! quote, segments and fragments. There and back is identity, byte by byte; etherparse judges the checksums between.

#[path = "../fuzz/exercise.rs"]
mod exercise;
mod samples;

use proptest::collection::vec;
use proptest::prelude::*;
use samples::{
    ACK, CWR, FIN, Layer4, PSH, SYN, Sample, any_family, any_sample, any_sample_of, any_tuple_for, assert_sound,
    checksum_at, ip, is_sound, make_partial, mend_ipv4_header, parse,
};
use std::net::IpAddr;
use std::num::NonZeroU16;
use vp::addr::{Family, PeerId};
use vp::packet::{self, FiveTuple, IcmpError, Joiner, Kind, Offload, Packet, ParseError, TcpHead, virtio};
use vp::translate;

fn sample_and_tuple() -> impl Strategy<Value = (Sample, FiveTuple)> {
    any_sample().prop_flat_map(|sample| {
        let head = parse(&mut sample.bytes()).head;
        (Just(sample), any_tuple_for(&head))
    })
}

fn refusal(bytes: &[u8]) -> Option<ParseError> {
    Packet::parse(&mut bytes.to_vec(), Offload::default()).err()
}

fn split_all(packet: &Packet) -> Vec<Vec<u8>> {
    let mut emitted = Vec::new();
    packet::split(packet, &mut vec![0; 1 << 17], |bytes| emitted.push(bytes.to_vec()));
    emitted
}

fn join_all<'a>(packets: impl IntoIterator<Item = &'a Vec<u8>>) -> (Vec<u32>, Vec<Vec<u8>>) {
    let mut joiner = Joiner::new(1 << 20);
    for packet in packets {
        joiner.space()[..packet.len()].copy_from_slice(packet);
        joiner.push(PeerId(1), packet.len()).expect("a packet");
    }
    let mut counts = Vec::new();
    for index in 0..joiner.len() {
        counts.push(joiner.group(index).packets);
        joiner.deliver(index);
    }
    let mut apart = Vec::new();
    for delivery in joiner.deliveries() {
        let mut bytes = delivery.slices().collect::<Vec<_>>().concat();
        let packet = Packet::parse(&mut bytes, virtio::decode(&delivery.virtio).expect("a header")).expect("a packet");
        apart.extend(split_all(&packet));
    }
    (counts, apart)
}

proptest! {
    #[test]
    fn there_and_back_is_identity_and_right_on_the_way((sample, to) in sample_and_tuple()) {
        let before = sample.bytes();
        let mut bytes = before.clone();
        let mut packet = parse(&mut bytes);
        let from = packet.head.tuple;
        translate::apply(&mut packet, &to);
        prop_assert_eq!(packet.head.tuple, to);
        let again = parse(&mut packet.bytes().to_vec()).head;
        prop_assert_eq!(again, packet.head);
        assert_sound(packet.bytes());
        translate::apply(&mut packet, &from);
        prop_assert_eq!(bytes, before);
    }

    #[test]
    fn a_wrong_checksum_stays_wrong((sample, to) in sample_and_tuple(), wrong in 1..0xffffu32) {
        prop_assume!(!matches!(sample.l4, Layer4::Udp { has_checksum: false, .. }));
        let mut bytes = sample.bytes();
        let at = checksum_at(&parse(&mut bytes).head);
        let sum = u32::from(u16::from_be_bytes([bytes[at], bytes[at + 1]])) + wrong;
        let field = u16::try_from(sum % 0xffff).expect("fits");
        prop_assume!(field != 0);
        bytes[at..at + 2].copy_from_slice(&field.to_be_bytes());
        prop_assert_eq!(is_sound(&bytes), Some(false));
        let mut packet = parse(&mut bytes);
        prop_assert!(!packet.checksum_is_right());
        translate::apply(&mut packet, &to);
        prop_assert!(!packet.checksum_is_right());
        packet.decrement_hops().ok();
        packet.clamp_mss(600);
        prop_assert_eq!(split_all(&packet), vec![packet.bytes().to_vec()]);
        prop_assert_eq!(is_sound(&bytes), Some(false));
    }

    #[test]
    fn one_hop_less_keeps_all_else(sample in any_sample()) {
        let before = sample.bytes();
        let mut bytes = before.clone();
        let mut packet = parse(&mut bytes);
        match sample.hops {
            0 | 1 => {
                prop_assert!(packet.decrement_hops().is_err());
                prop_assert_eq!(bytes, before);
            }
            hops => {
                prop_assert!(packet.decrement_hops().is_ok());
                prop_assert_eq!(packet.head.hops, hops - 1);
                prop_assert_eq!(bytes, Sample { hops: hops - 1, ..sample }.bytes());
            }
        }
    }

    #[test]
    fn no_bytes_make_anything_panic(bytes in vec(any::<u8>(), 0..200), shape in 0u8..6) {
        exercise::packet(&shaped(bytes, shape));
    }

    /// Close to a packet is where the checks are.
    #[test]
    fn no_damage_makes_anything_panic(
        sample in any_sample(),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in any::<prop::sample::Index>(),
        is_mended in any::<bool>(),
    ) {
        let mut bytes = sample.bytes();
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        bytes.truncate(cut.index(bytes.len() * 2).max(1).min(bytes.len()));
        if is_mended && bytes[0] >> 4 == 4 && bytes.len() >= 60 {
            mend_ipv4_header(&mut bytes);
        }
        exercise::packet(&bytes);
    }

    #[test]
    fn a_partial_checksum_is_completed_as_if_it_had_been_complete((sample, to) in sample_and_tuple(), mss in 500u16..) {
        let is_plain = sample.extensions.iter().all(|(number, _)| *number != 44) || sample.is_v4();
        if !is_plain || !matches!(sample.l4, Layer4::Tcp { .. } | Layer4::Udp { has_checksum: true, .. }) {
            return Ok(());
        }
        let rewrite = |packet: &mut Packet| {
            translate::apply(packet, &to);
            packet.clamp_mss(mss);
            packet.decrement_hops().ok();
        };
        let mut whole = sample.bytes();
        rewrite(&mut parse(&mut whole));
        assert_sound(&whole);

        let mut bytes = sample.bytes();
        make_partial(&mut bytes);
        let offload = Offload { checksum_partial: true, segment_bytes: None };
        let mut packet = Packet::parse(&mut bytes, offload).expect("a packet");
        rewrite(&mut packet);
        prop_assert_eq!(split_all(&packet), vec![whole]);
    }

    /// The error is made by a host that saw the packet in the other view; it must come back quoting what was sent.
    #[test]
    fn an_error_quotes_what_its_receiver_sent(
        (sample, to) in sample_and_tuple(),
        quoted_bytes in 0usize..600,
        kind in 0usize..4,
        shape in any::<[u8; 3]>(),
    ) {
        let sent = sample.bytes();
        let mut seen = sent.clone();
        let mut packet = parse(&mut seen);
        let from = packet.head.tuple;
        let least = usize::from(packet.head.ip_bytes) + 8;
        translate::apply(&mut packet, &to);
        let cut = seen.len().min(least + quoted_bytes);
        // Half a checksum cannot be mended, and nobody can use it.
        let cut = if sample.tcp_sequence().is_some() && cut == least + 9 { cut - 1 } else { cut };

        let (family, error) = error_of(&sample, kind, shape);
        let make = |source: IpAddr, destination: IpAddr, quoted: &[u8]| {
            let mut made = Sample::echo("10.0.0.1", "10.0.0.1", quoted);
            (made.source, made.destination) = (source, destination);
            made.l4 = error.clone();
            made.bytes()
        };
        let router = |last: u8| match family {
            Family::V4 => IpAddr::from([10, 9, 0, last]),
            Family::V6 => IpAddr::from([0xfd00, 9, 0, 0, 0, 0, 0, u16::from(last)]),
        };
        let mut bytes = make(router(1), to.source, &seen[..cut]);
        let mut packet = parse(&mut bytes);
        let quote = packet::quote(&packet).expect("a quote");
        prop_assert_eq!(quote.tuple, to);
        prop_assert_eq!(quote.tcp_sequence, sample.tcp_sequence());
        let mtu = match quote.what {
            IcmpError::TooBig { mtu } => Some(mtu),
            _ => None,
        };
        translate::apply_error(&mut packet, &quote, &from, router(2), from.source, mtu);
        let expected = make(router(2), from.source, &sent[..cut]);
        prop_assert_eq!(packet.bytes(), &expected[..]);
        prop_assert_eq!(parse(&mut packet.bytes().to_vec()).head, packet.head);

        // And back.
        let quote = packet::quote(&packet).expect("a quote");
        translate::apply_error(&mut packet, &quote, &to, router(1), to.source, mtu);
        prop_assert_eq!(packet.bytes(), &make(router(1), to.source, &seen[..cut])[..]);
    }

    #[test]
    fn extensions_never_pass(
        family in any_family(),
        kind in 0usize..3,
        quoted_payload in 0usize..300,
        padding in 0usize..3,
        has_length in any::<bool>(),
    ) {
        let (sample, mut bytes, original_bytes) = with_extensions(family, kind, quoted_payload, padding, has_length);
        let mut packet = parse(&mut bytes);
        let quote = packet::quote(&packet).expect("a quote");
        let mtu = matches!(quote.what, IcmpError::TooBig { .. }).then_some(1300);
        let tuple = quote.tuple;
        let (source, destination) = (sample.source, sample.destination);
        translate::apply_error(&mut packet, &quote, &tuple, source, destination, mtu);
        let after = packet.bytes().to_vec();
        assert_sound(&after);
        prop_assert!(!after.windows(8).any(|window| window == SECRET), "{after:02x?}");
        let icmp = usize::from(packet.head.ip_bytes);
        let length_at = if family == Family::V4 { 5 } else { 4 };
        prop_assert_eq!(after[icmp + length_at], 0);
        prop_assert_eq!(after.len() - icmp - 8, original_bytes);
    }

    #[test]
    fn a_super_packet_splits_and_its_segments_join_into_the_same(
        family in any_family(),
        is_tcp in any::<bool>(),
        segment_bytes in 8u16..1400,
        segments in 2usize..40,
        short in 1usize..1400,
        (id, sequence, flags) in any::<(u16, u32, bool)>(),
        dont_fragment in any::<bool>(),
        is_interleaved in any::<bool>(),
    ) {
        let short = 1 + short % usize::from(segment_bytes);
        let payload: Vec<u8> = (0..usize::from(segment_bytes) * (segments - 1) + short).map(|n| (n % 251) as u8).collect();
        let mut sample = plain(family, is_tcp, &payload);
        (sample.id, sample.dont_fragment) = (id, dont_fragment);
        if let Layer4::Tcp { head, options, .. } = &mut sample.l4 {
            head.sequence = sequence;
            head.flags |= if flags { PSH } else { 0 };
            *options = vec![1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8];
        }
        let mut bytes = sample.bytes();
        make_partial(&mut bytes);
        let offload = Offload { checksum_partial: true, segment_bytes: NonZeroU16::new(segment_bytes) };
        let parts = split_all(&Packet::parse(&mut bytes, offload).expect("a packet"));
        prop_assert_eq!(parts.len(), segments);
        let header_bytes = parts[0].len() - usize::from(segment_bytes);
        for (index, part) in parts.iter().enumerate() {
            let mut one = sample.clone();
            one.id = id.wrapping_add(index as u16);
            one.payload = part[header_bytes..].to_vec();
            if let Layer4::Tcp { head, .. } = &mut one.l4 {
                head.sequence = sequence.wrapping_add(index as u32 * u32::from(segment_bytes));
                head.flags &= if index + 1 < segments { !PSH } else { 0xff };
            }
            prop_assert_eq!(part, &one.bytes());
        }

        let mut other = plain(family, !is_tcp, b"");
        other.source = sample.destination;
        let mut all = Vec::new();
        for (index, part) in parts.iter().enumerate() {
            all.push(part.clone());
            if is_interleaved {
                other.id = index as u16;
                other.payload = vec![index as u8; 100];
                all.push(other.bytes());
            }
        }
        let (counts, apart) = join_all(&all);
        prop_assert_eq!(counts[0] as usize, segments);
        let others: Vec<_> = all.iter().filter(|packet| !parts.contains(packet)).cloned().collect();
        let (mine, theirs): (Vec<_>, Vec<_>) = apart.into_iter().partition(|packet| parts.contains(packet));
        prop_assert_eq!(mine, parts);
        prop_assert_eq!(theirs, others);
    }

    /// Nothing that joins is lost or changed, whatever the packets are.
    #[test]
    fn what_was_joined_comes_apart_as_it_was(
        base in any_family().prop_flat_map(|family| any_sample_of(family, 60)),
        steps in vec((0u32..3, 0u16..3, 0u8..4, 1usize..80, any::<bool>()), 1..20),
    ) {
        let mut packets = Vec::new();
        let (mut id, mut sequence) = (base.id, 7u32);
        for (gap, id_step, flags, payload_bytes, is_wrong) in steps {
            let mut sample = base.clone();
            id = id.wrapping_add(id_step);
            sample.id = id;
            sample.payload = vec![0x3c; if flags == 3 { 40 } else { payload_bytes }];
            if let Layer4::Tcp { head, urgent, options, .. } = &mut sample.l4 {
                sequence = sequence.wrapping_add(gap / 2);
                head.sequence = sequence;
                head.flags = ACK | [0, 0, PSH, CWR][usize::from(flags)];
                *urgent = 0;
                options.clear();
                sequence = sequence.wrapping_add(sample.payload.len() as u32);
            }
            let mut bytes = sample.bytes();
            if is_wrong && gap == 2 {
                *bytes.last_mut().expect("not empty") ^= 1;
            }
            packets.push(bytes);
        }
        let (_, apart) = join_all(&packets);
        let comparable = |packets: Vec<Vec<u8>>| packets.into_iter().map(without_meaningless_id).collect::<Vec<_>>();
        prop_assert_eq!(comparable(apart), comparable(packets));
    }

    #[test]
    fn fragments_reassemble_also_when_fragmented_again(
        sample in any_sample_of(Family::V4, 4000),
        mtu in 68u16..1500,
        smaller in 68u16..1500,
        is_partial in any::<bool>(),
    ) {
        let mut sample = sample;
        sample.dont_fragment = false;
        let whole = sample.bytes();
        let is_partial = is_partial && matches!(sample.l4, Layer4::Tcp { .. } | Layer4::Udp { has_checksum: true, .. });
        let mut bytes = whole.clone();
        if is_partial {
            make_partial(&mut bytes);
        }
        let offload = Offload { checksum_partial: is_partial, segment_bytes: None };
        let packet = Packet::parse(&mut bytes, offload).expect("a packet");
        if whole.len() <= usize::from(mtu) {
            return Ok(());
        }
        let mut once = Vec::new();
        packet::fragment(&packet, mtu, &mut vec![0; 1 << 17], |part| once.push(part.to_vec()));
        prop_assert_eq!(reassemble(&once, mtu), whole.clone());
        let mut twice = Vec::new();
        for part in &once {
            if part.len() <= usize::from(smaller) {
                twice.push(part.clone());
                continue;
            }
            let mut part = part.clone();
            // A first fragment may be too small for its headers by now.
            let Ok(packet) = Packet::parse(&mut part, Offload::default()) else { return Ok(()) };
            packet::fragment(&packet, smaller, &mut vec![0; 1 << 17], |part| twice.push(part.to_vec()));
        }
        prop_assert_eq!(reassemble(&twice, mtu.max(smaller)), whole);
    }

    #[test]
    fn replies_are_sound_and_go_back(sample in any_sample(), mtu in 576u16..1500) {
        let mut bytes = sample.bytes();
        let packet = parse(&mut bytes);
        let gateway = match packet.head.family {
            Family::V4 => ip("10.0.1.1"),
            Family::V6 => ip("fd00::1"),
        };
        let errors = [
            packet::unreachable(&packet, packet::Unreachable::Host, gateway),
            packet::unreachable(&packet, packet::Unreachable::AdminProhibited, gateway),
            packet::time_exceeded(&packet, gateway),
            packet::too_big(&packet, mtu, gateway),
        ];
        for reply in errors.into_iter().flatten() {
            assert_sound(&reply);
            let mut reply = reply;
            let reply = parse(&mut reply);
            prop_assert_eq!((reply.head.tuple.source, reply.head.tuple.destination), (gateway, sample.source));
            let most = if packet.head.family == Family::V4 { 576 } else { 1280 };
            prop_assert!(reply.bytes().len() <= most);
            let quote = packet::quote(&reply).expect("a quote");
            prop_assert_eq!(quote.tuple, packet.head.tuple);
            if let IcmpError::TooBig { mtu: named } = quote.what {
                prop_assert_eq!(named, u32::from(mtu));
            }
        }
        if let Some(mut reset) = packet::reset(&packet) {
            assert_sound(&reset);
            let Layer4::Tcp { head: sent, .. } = &sample.l4 else { panic!("a reset of {sample:?}") };
            let reset = parse(&mut reset);
            prop_assert_eq!(reset.head.tuple, packet.head.tuple.reversed());
            let Kind::Tcp(tcp) = reset.head.kind else { panic!("{:?}", reset.head) };
            if sent.flags & ACK != 0 {
                prop_assert_eq!((tcp.sequence, tcp.flags), (sent.acknowledgment, 0x04));
            } else {
                let flags = u32::from(sent.flags & SYN != 0) + u32::from(sent.flags & FIN != 0);
                let next = sent.sequence.wrapping_add(flags + sample.payload.len() as u32);
                prop_assert_eq!((tcp.acknowledgment, tcp.flags), (next, 0x14));
            }
        }
    }
}

/// Random bytes get past the first checks only by luck: give them the begin of a header.
fn shaped(mut bytes: Vec<u8>, shape: u8) -> Vec<u8> {
    let length = bytes.len() as u16;
    match shape {
        1..=3 if bytes.len() >= 28 => {
            bytes[0] = 0x45;
            bytes[2..4].copy_from_slice(&length.to_be_bytes());
            bytes[6..8].fill(0);
            bytes[9] = [6, 17, 1][usize::from(shape) - 1];
            mend_ipv4_header(&mut bytes);
        }
        4 | 5 if bytes.len() >= 48 => {
            bytes[0] = 0x60;
            bytes[4..6].copy_from_slice(&(length - 40).to_be_bytes());
            bytes[6] = [58, 44][usize::from(shape) - 4];
        }
        _ => {}
    }
    bytes
}

/// The id of a packet that may not be fragmented means nothing (RFC 6864).
fn without_meaningless_id(mut packet: Vec<u8>) -> Vec<u8> {
    if packet[0] >> 4 == 4 && packet[6] & 0x40 != 0 {
        packet[4..6].fill(0);
        mend_ipv4_header(&mut packet);
    }
    packet
}

/// An ICMP error header of each meaning that does not say how long its quote is.
fn error_of(sample: &Sample, kind: usize, shape: [u8; 3]) -> (Family, Layer4) {
    let [code, high, low] = shape;
    if sample.is_v4() {
        let error = [
            Layer4::IcmpError { kind: 3, code: if code == 4 { 1 } else { code }, rest: [0; 4] },
            Layer4::IcmpError { kind: 3, code: 4, rest: [0, 0, high, low] },
            Layer4::IcmpError { kind: 11, code, rest: [0; 4] },
            Layer4::IcmpError { kind: 12, code, rest: [high, 0, 0, 0] },
        ];
        return (Family::V4, error[kind].clone());
    }
    let error = [
        Layer4::IcmpError { kind: 1, code, rest: [0; 4] },
        Layer4::IcmpError { kind: 2, code: 0, rest: [0, 0, high, low] },
        Layer4::IcmpError { kind: 3, code, rest: [0; 4] },
        Layer4::IcmpError { kind: 4, code, rest: [0, 0, 0, high] },
    ];
    (Family::V6, error[kind].clone())
}

/// Stands for an address of the other site in an extension.
const SECRET: [u8; 8] = [0xa5, 0x5a, 0xc3, 0x3c, 0x96, 0x69, 0xf0, 0x0f];

/// An error with an extension structure (RFC 4884) that names an interface (RFC 5837); how it is made, its bytes, and how much
/// of the quoted packet may be left.
fn with_extensions(
    family: Family,
    kind: usize,
    payload_bytes: usize,
    padding: usize,
    has_length: bool,
) -> (Sample, Vec<u8>, usize) {
    let mut sent = plain(family, false, &vec![0x11; payload_bytes]);
    sent.id = 9;
    let sent = sent.bytes();
    // Padded to 128 bytes at least, and to whole words.
    let word = if family == Family::V4 { 4 } else { 8 };
    let (quoted_bytes, length) = if has_length {
        let bytes = (sent.len().clamp(128, 400).next_multiple_of(word)) + padding * word;
        (bytes, u8::try_from(bytes / word).expect("fits"))
    } else {
        (128, 0)
    };
    let mut quoted = sent.clone();
    quoted.resize(quoted_bytes, 0);
    let mut extension = vec![0x20, 0, 0, 0, 0, 16, 2, 0, 0, 1, 0, 0];
    extension.extend(SECRET);
    let sum: u32 = extension.chunks(2).map(|word| u32::from(word[0]) << 8 | u32::from(word[1])).sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    extension[2..4].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    quoted.extend(extension);
    let (source, destination) = match family {
        Family::V4 => ("10.9.0.1", "10.0.0.2"),
        Family::V6 => ("fd00:9::1", "fd00::2"),
    };
    let (number, code, rest) = match (family, kind) {
        (Family::V4, 0) => (11, 0, [0, length, 0, 0]),
        (Family::V4, 1) => (3, 4, [0, length, 5, 0x14]),
        (Family::V4, _) => (3, 1, [0, length, 0, 0]),
        (Family::V6, 0) => (3, 0, [length, 0, 0, 0]),
        (Family::V6, _) => (1, 0, [length, 0, 0, 0]),
    };
    let sample = Sample::icmp_error(source, destination, number, code, rest, &quoted);
    let bytes = sample.bytes();
    (sample, bytes, sent.len().min(quoted_bytes))
}

fn plain(family: Family, is_tcp: bool, payload: &[u8]) -> Sample {
    let (source, destination) = match family {
        Family::V4 => ("10.0.0.2", "10.0.1.2"),
        Family::V6 => ("fd00::2", "fd00:1::2"),
    };
    if is_tcp { Sample::tcp(source, destination, payload) } else { Sample::udp(source, destination, payload) }
}

/// RFC 791 section 3.2, for fragments in order.
#[track_caller]
fn reassemble(fragments: &[Vec<u8>], mtu: u16) -> Vec<u8> {
    let mut whole = Vec::new();
    for (index, fragment) in fragments.iter().enumerate() {
        assert!(fragment.len() <= usize::from(mtu));
        assert_eq!(usize::from(u16::from_be_bytes([fragment[2], fragment[3]])), fragment.len());
        let header_bytes = usize::from(fragment[0] & 0x0f) * 4;
        let mut mended = fragment.clone();
        mend_ipv4_header(&mut mended);
        assert_eq!(&mended, fragment, "header checksum");
        let place = u16::from_be_bytes([fragment[6], fragment[7]]);
        let is_last = index + 1 == fragments.len();
        assert_eq!(place & 0x2000 == 0, is_last);
        if index == 0 {
            whole = fragment[..header_bytes].to_vec();
            whole[6..8].fill(0);
        }
        let first_header_bytes = usize::from(whole[0] & 0x0f) * 4;
        assert_eq!(usize::from(place & 0x1fff) * 8, whole.len() - first_header_bytes);
        whole.extend(&fragment[header_bytes..]);
    }
    let total = u16::try_from(whole.len()).expect("fits");
    whole[2..4].copy_from_slice(&total.to_be_bytes());
    mend_ipv4_header(&mut whole);
    whole
}

fn udp4_with_options(options: &[u8]) -> Vec<u8> {
    Sample { options: options.to_vec(), ..Sample::udp("10.0.0.2", "10.0.1.2", b"x") }.bytes()
}

#[test]
fn ipv4_options_pass_unless_they_route_or_carry_addresses() {
    let passes: [&[u8]; 4] = [
        &[1, 1, 1, 0],
        &[148, 4, 0, 0],                         // router alert
        &[68, 12, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0], // times alone
        &[0, 131, 131, 131],                     // nothing after the end counts
    ];
    for options in passes {
        assert_eq!(refusal(&udp4_with_options(options)), None, "{options:?}");
    }
    let routes: [&[u8]; 6] = [
        &[131, 7, 4, 10, 0, 0, 9, 0],
        &[1, 137, 7, 4, 10, 0, 0, 9],
        &[7, 7, 4, 0, 0, 0, 0, 0],
        &[68, 12, 5, 1, 0, 0, 0, 0, 0, 0, 0, 0],  // addresses and times
        &[68, 12, 5, 3, 10, 0, 0, 9, 0, 0, 0, 0], // times of named hosts
        &[82, 12, 0, 1, 0, 0, 0, 0, 10, 0, 0, 2], // traceroute names who asked
    ];
    for options in routes {
        assert_eq!(refusal(&udp4_with_options(options)), Some(ParseError::SourceRoute), "{options:?}");
    }
    let lies: [&[u8]; 4] = [&[148, 0, 0, 0], &[148, 1, 0, 0], &[148, 5, 0, 0], &[1, 1, 1, 148]];
    for options in lies {
        assert_eq!(refusal(&udp4_with_options(options)), Some(ParseError::Malformed), "{options:?}");
    }
}

fn udp6_with(extensions: &[(u8, &[u8])]) -> Vec<u8> {
    let extensions = extensions.iter().map(|(number, rest)| (*number, rest.to_vec())).collect();
    Sample { extensions, ..Sample::udp("fd00::2", "fd00:1::2", b"x") }.bytes()
}

#[test]
fn ipv6_extension_headers_are_walked_only_as_far_as_they_are_known() {
    let pad: &[u8] = &[0, 1, 4, 0, 0, 0, 0];
    let fragment: &[u8] = &[0, 0, 0, 0, 0, 0, 9];
    assert_eq!(refusal(&udp6_with(&[(0, pad), (60, pad), (44, fragment), (60, pad)])), None);
    assert_eq!(refusal(&udp6_with(&[(60, pad); 8])), None);
    let home_address = [1, 1, 2, 0, 0, 0xc9, 16, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9];
    let mut long = [0; 23];
    long.copy_from_slice(&home_address);
    long[0] = 2;
    type Chain<'a> = &'a [(u8, &'a [u8])];
    let refused: [(Chain, ParseError); 9] = [
        (&[(60, pad); 9], ParseError::Malformed),
        (&[(60, pad), (0, pad)], ParseError::Malformed),
        (&[(43, &[0, 0, 0, 0, 0, 0, 0])], ParseError::SourceRoute),
        (&[(43, &[0, 4, 0, 0, 0, 0, 0])], ParseError::SourceRoute),
        (&[(60, &long)], ParseError::SourceRoute),
        (&[(60, &[0, 1, 5, 0, 0, 0, 0])], ParseError::Malformed), // an option beyond its header
        (&[(60, &[200, 1, 4, 0, 0, 0, 0])], ParseError::Malformed), // a header beyond the packet
        (&[(51, &[0, 0, 0, 0, 0, 0, 0])], ParseError::UnsupportedProtocol(51)),
        (&[(59, &[0, 0, 0, 0, 0, 0, 0])], ParseError::UnsupportedProtocol(59)),
    ];
    for (extensions, error) in refused {
        assert_eq!(refusal(&udp6_with(extensions)), Some(error), "{extensions:?}");
    }
    assert_eq!(refusal(&udp6_with(&[(44, fragment), (44, fragment)])), Some(ParseError::Malformed));
}

#[test]
fn an_ipv6_fragment_header_is_read_as_its_bytes_say() {
    let mut sample = Sample::udp("fd00::2", "fd00:1::2", &[7; 64]);
    sample.id = 0x1234;
    let mut bytes = sample.fragment(0, true, &[7; 64]);
    assert_eq!(bytes[40..48], [17, 0, 0, 1, 0, 0, 0x12, 0x34]);
    bytes[52..54].copy_from_slice(&2000u16.to_be_bytes()); // the UDP length of the whole
    let head = parse(&mut bytes).head;
    let fragment = head.fragment.expect("a fragment");
    assert_eq!((fragment.id, fragment.offset, fragment.more), (0x1234, 0, true));
    assert_eq!((head.kind, head.ip_bytes), (Kind::Udp, 48));

    let mut bytes = sample.fragment(1448, false, &[7; 13]);
    assert_eq!(bytes[40..48], [17, 0, 0x05, 0xa8, 0, 0, 0x12, 0x34]);
    let head = parse(&mut bytes).head;
    let fragment = head.fragment.expect("a fragment");
    assert_eq!((fragment.id, fragment.offset, fragment.more), (0x1234, 1448, false));
    assert_eq!((head.kind, head.ip_bytes, head.l4_bytes), (Kind::FragmentTail, 48, 0));

    // Atomic (RFC 6946): whole, and translated with its header.
    let to = FiveTuple { source: ip("fd76:7000:0:2::7"), ..parse(&mut sample.bytes()).head.tuple };
    let mut atomic = udp6_with(&[(44, &[0, 0, 0, 0, 0, 0x12, 0x34])]);
    let mut packet = parse(&mut atomic);
    assert_eq!((packet.head.fragment, packet.head.kind), (None, Kind::Udp));
    assert!(packet.checksum_is_right());
    translate::apply(&mut packet, &to);
    assert_eq!(atomic[40..48], [17, 0, 0, 0, 0, 0, 0x12, 0x34]);
    assert_sound(&atomic);
}

#[test]
fn fragments_that_tear_headers_or_overrun_are_refused() {
    for (source, destination) in [("10.0.0.2", "10.0.1.2"), ("fd00::2", "fd00:1::2")] {
        let tcp = Sample { dont_fragment: false, ..Sample::tcp(source, destination, &[1; 100]) };
        let header = [0x9c, 0x40, 1, 0xbb, 0, 0, 0, 1, 0, 0, 0, 0, 0x80, 0x10, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1];
        let tiny = Some(ParseError::TinyFragment);
        assert_eq!(refusal(&tcp.fragment(0, true, &header[..8])), tiny);
        assert_eq!(refusal(&tcp.fragment(0, true, &header)), tiny, "options torn");
        assert_eq!(refusal(&tcp.fragment(8, true, &header)), tiny, "within a header");
        assert_eq!(refusal(&tcp.fragment(16, true, &header)), tiny, "within a header");
        assert_eq!(refusal(&tcp.fragment(24, true, &header)), None);
        assert!(refusal(&tcp.fragment(24, true, &header[..13])).is_some(), "not whole words");
        assert!(refusal(&tcp.fragment(24, false, &[])).is_some(), "empty");
        assert!(refusal(&tcp.fragment(65528, false, &header)).is_some(), "overrun");
        assert_eq!(refusal(&tcp.fragment(65512, false, &header[..3])), None);
    }
    // The whole with its IPv4 header would be 65536 bytes.
    let udp = Sample { dont_fragment: false, ..Sample::udp("10.0.0.2", "10.0.1.2", b"") };
    assert!(refusal(&udp.fragment(65512, false, &[0; 4])).is_some());
}

#[test]
fn lengths_that_lie_are_refused() {
    for (source, destination) in [("10.0.0.2", "10.0.1.2"), ("fd00::2", "fd00:1::2")] {
        let malformed = Some(ParseError::Malformed);
        let tcp = Sample::tcp(source, destination, b"hello").bytes();
        for bytes in 0..tcp.len() {
            assert_eq!(refusal(&tcp[..bytes]), malformed, "cut to {bytes}");
        }
        let ip_bytes = tcp.len() - 25;
        let mut offset = tcp.clone();
        offset[ip_bytes + 12] = 0x40;
        assert_eq!(refusal(&offset), malformed);
        offset[ip_bytes + 12] = 0x70;
        assert_eq!(refusal(&offset), malformed);
        let mut udp = Sample::udp(source, destination, b"hello").bytes();
        udp[ip_bytes + 5] = 7;
        assert_eq!(refusal(&udp), malformed);
        udp[ip_bytes + 5] = 14;
        assert_eq!(refusal(&udp), malformed);
        let mut padded = tcp.clone();
        padded.extend([0; 11]);
        assert_eq!(parse(&mut padded).bytes(), &tcp[..]);
    }
    let v4 = Sample::udp("10.0.0.2", "10.0.1.2", b"").bytes();
    for (at, value) in [(0, 0x44), (0, 0x55), (0, 0x4f), (3, 19), (3, 0)] {
        let mut bytes = v4.clone();
        bytes[at] = value;
        if bytes[0] >> 4 == 4 && usize::from(bytes[0] & 15) * 4 <= bytes.len() {
            mend_ipv4_header(&mut bytes);
        }
        assert_eq!(refusal(&bytes), Some(ParseError::Malformed), "byte {at} is {value:#x}");
    }
    let mut bytes = v4;
    bytes[10] ^= 1;
    assert_eq!(refusal(&bytes), Some(ParseError::Malformed), "header checksum");
}

#[test]
fn icmp_that_is_neither_echo_nor_error_is_refused() {
    let icmp = |kind: u8, source: &str, destination: &str| {
        refusal(&Sample::icmp_error(source, destination, kind, 0, [0; 4], &[0; 40]).bytes())
    };
    for kind in [1, 2, 4, 5, 6, 7, 9, 10, 13, 14, 15, 16, 17, 18, 30, 37, 40, 255] {
        assert_eq!(icmp(kind, "10.0.0.2", "10.0.1.2"), Some(ParseError::IcmpOther), "{kind}");
    }
    for kind in [0, 5, 100, 127, 130, 131, 132, 133, 134, 135, 136, 137, 143, 151, 255] {
        assert_eq!(icmp(kind, "fd00::2", "fd00:1::2"), Some(ParseError::IcmpOther), "{kind}");
    }
}

#[test]
fn errors_that_do_not_hold_are_refused() {
    let sent = Sample::udp("10.0.0.2", "10.0.1.2", b"hello").bytes();
    let quote = |quoted: &[u8]| {
        let mut bytes = Sample::icmp_error("10.0.0.1", "10.0.0.2", 3, 1, [0; 4], quoted).bytes();
        packet::quote(&parse(&mut bytes)).map(|quote| quote.tuple)
    };
    assert!(quote(&sent).is_ok());
    assert!(quote(&sent[..28]).is_ok());
    assert!(quote(&sent[..27]).is_err(), "less than 8 bytes of layer 4");
    let mut wrong = sent.clone();
    wrong[10] ^= 1;
    assert_eq!(quote(&wrong), Err(ParseError::IcmpOther), "checksum of the quoted header");
    let mut udp = sent.clone();
    udp[26] ^= 1;
    assert!(quote(&udp).is_ok(), "a wrong quoted layer-4 checksum does not matter");
    assert!(quote(&udp4_with_options(&[131, 7, 4, 10, 0, 0, 9, 0])).is_err());
    let six = Sample::udp("fd00::2", "fd00:1::2", b"hello").bytes();
    assert!(quote(&six).is_err(), "of the other family");
    let error = Sample::icmp_error("10.0.0.1", "10.0.0.2", 3, 1, [0; 4], &sent).bytes();
    assert!(quote(&error).is_err(), "about an error");
    let tail = Sample { dont_fragment: false, ..Sample::udp("10.0.0.2", "10.0.1.2", b"") };
    assert!(quote(&tail.fragment(80, false, &[0; 40])).is_err(), "about a tail");

    let mut bytes = error;
    bytes[22] ^= 1;
    assert_eq!(packet::quote(&parse(&mut bytes)).err(), Some(ParseError::Malformed), "its own checksum");
}

#[test]
fn nothing_is_said_about_errors_tails_resets_and_to_no_host() {
    let silent = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        let packet = parse(&mut bytes);
        let gateway = ip("10.0.1.1");
        packet::reset(&packet).is_none()
            && packet::unreachable(&packet, packet::Unreachable::AdminProhibited, gateway).is_none()
            && packet::time_exceeded(&packet, gateway).is_none()
            && packet::too_big(&packet, 1280, gateway).is_none()
    };
    let udp = Sample::udp("10.0.0.2", "10.0.1.2", b"x");
    assert!(!silent(&udp.bytes()));
    assert!(silent(&udp.fragment(80, false, b"x")));
    assert!(silent(&Sample::icmp_error("10.0.0.2", "10.0.1.2", 3, 1, [0; 4], &udp.bytes()).bytes()));
    for source in ["0.0.0.0", "0.1.2.3", "127.0.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"] {
        assert!(silent(&Sample::udp(source, "10.0.1.2", b"x").bytes()), "{source}");
        assert!(silent(&Sample::tcp(source, "10.0.1.2", b"x").bytes()), "{source}");
    }
    for destination in ["224.0.0.251", "255.255.255.255"] {
        assert!(silent(&Sample::udp("10.0.0.2", destination, b"x").bytes()), "{destination}");
        assert!(silent(&Sample::tcp("10.0.0.2", destination, b"x").bytes()), "{destination}");
    }
    let mut reset = Sample::tcp("10.0.0.2", "10.0.1.2", b"");
    if let Layer4::Tcp { head, .. } = &mut reset.l4 {
        head.flags = 0x04;
    }
    assert!(packet::reset(&parse(&mut reset.bytes())).is_none());
    // Gateway's own address of the other family.
    let mut six = Sample::udp("fd00::2", "fd00:1::2", b"x").bytes();
    assert!(packet::time_exceeded(&parse(&mut six), ip("10.0.1.1")).is_none());
}

#[test]
fn what_may_not_be_fragmented_is_not() {
    let emits = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        let mut count = 0;
        packet::fragment(&parse(&mut bytes), 600, &mut vec![0; 1 << 17], |_| count += 1);
        count
    };
    let open = Sample { dont_fragment: false, ..Sample::udp("10.0.0.2", "10.0.1.2", &[0; 1400]) };
    assert_eq!(emits(&open.bytes()), 3);
    assert_eq!(emits(&open.fragment(1400, true, &[0; 1400])), 3);
    let fixed = Sample { dont_fragment: true, ..open };
    assert_eq!(emits(&fixed.bytes()), 0);
    let six = Sample::udp("fd00::2", "fd00:1::2", &[0; 1400]);
    assert_eq!(emits(&six.bytes()), 0);
    assert_eq!(emits(&six.fragment(1400, true, &[0; 1400])), 0);
}

#[test]
fn the_mss_is_lowered_wherever_the_option_stands() {
    for options in [&[2, 4, 5, 180][..], &[1, 2, 4, 5, 180, 1, 1, 0], &[1, 1, 2, 4, 5, 180, 0, 0]] {
        for (limit, expected) in [(1300, 1300), (1460, 1460), (9000, 1460)] {
            let mut sample = Sample::tcp("10.0.0.2", "10.0.1.2", b"");
            sample.l4 = Layer4::Tcp {
                ports: (1, 2),
                head: TcpHead { flags: SYN, sequence: 1, acknowledgment: 0, window: 1 },
                urgent: 0,
                options: options.to_vec(),
            };
            let mut bytes = sample.bytes();
            parse(&mut bytes).clamp_mss(limit);
            let at = 40 + options.iter().position(|byte| *byte == 2).expect("there") + 2;
            assert_eq!(u16::from_be_bytes([bytes[at], bytes[at + 1]]), expected);
            assert_sound(&bytes);
            if let Layer4::Tcp { head, .. } = &mut sample.l4 {
                head.flags = ACK;
            }
            let mut data = sample.bytes();
            parse(&mut data).clamp_mss(limit);
            assert_eq!(data, sample.bytes());
        }
    }
}

#[test]
fn packets_with_different_reserved_bits_or_ids_do_not_join() {
    let segment = |index: u16, id: u16, dont_fragment: bool| {
        let mut sample = Sample::tcp("198.19.0.7", "198.18.0.12", &[5; 100]);
        (sample.id, sample.dont_fragment) = (id, dont_fragment);
        if let Layer4::Tcp { head, .. } = &mut sample.l4 {
            head.sequence += u32::from(index) * 100;
        }
        sample.bytes()
    };
    let counts = |packets: &[Vec<u8>]| join_all(packets).0;
    assert_eq!(counts(&[segment(0, 7, true), segment(1, 8, true), segment(2, 9, true)]), [3]);
    assert_eq!(counts(&[segment(0, 7, false), segment(1, 8, false)]), [2]);
    assert_eq!(counts(&[segment(0, 7, false), segment(1, 9, false)]), [1, 1]);
    // Hosts that never change the id of what may not be fragmented (RFC 6864).
    assert_eq!(counts(&[segment(0, 0, true), segment(1, 0, true)]), [2]);
    let mut accurate = segment(1, 8, true);
    accurate[32] |= 1; // AE of accurate ECN
    let sum = u16::from_be_bytes([accurate[36], accurate[37]]);
    accurate[36..38].copy_from_slice(&sum.wrapping_sub(0x0100).to_be_bytes());
    assert_sound(&accurate);
    assert_eq!(counts(&[segment(0, 7, true), accurate]), [1, 1]);
}

#[test]
fn a_udp_segment_that_sums_up_to_zero_gets_ones() {
    let zero = Sample::udp("10.0.0.2", "10.0.1.2", &[0; 2]).bytes();
    let payload = [zero[26], zero[27], 0, 0];
    let mut bytes = Sample::udp("10.0.0.2", "10.0.1.2", &payload).bytes();
    make_partial(&mut bytes);
    let offload = Offload { checksum_partial: true, segment_bytes: NonZeroU16::new(2) };
    let parts = split_all(&Packet::parse(&mut bytes, offload).expect("a packet"));
    assert_eq!(parts[0][26..28], [0xff, 0xff]);
    assert_sound(&parts[0]);
}

#[test]
fn offload_of_anything_but_whole_tcp_and_udp_is_refused() {
    let offload = Offload { checksum_partial: true, segment_bytes: NonZeroU16::new(100) };
    let refused = |bytes: &[u8]| Packet::parse(&mut bytes.to_vec(), offload).is_err();
    let udp = Sample { dont_fragment: false, ..Sample::udp("10.0.0.2", "10.0.1.2", &[0; 300]) };
    assert!(!refused(&udp.bytes()));
    assert!(refused(&Sample::echo("10.0.0.2", "10.0.1.2", &[0; 300]).bytes()));
    udp.fragments(80).iter().for_each(|fragment| assert!(refused(fragment)));
    // Nothing to divide: still one packet.
    let mut empty = Sample::udp("10.0.0.2", "10.0.1.2", b"").bytes();
    let whole = empty.clone();
    make_partial(&mut empty);
    assert_eq!(split_all(&Packet::parse(&mut empty, offload).expect("a packet")), [whole]);
}

#[test]
fn segments_keep_fin_and_push_for_the_last_and_cwr_for_the_first() {
    let mut sample = Sample::tcp("fd00::2", "fd00:1::2", &[3; 250]);
    if let Layer4::Tcp { head, .. } = &mut sample.l4 {
        head.flags = ACK | PSH | FIN | CWR;
        head.sequence = u32::MAX - 99;
    }
    let mut bytes = sample.bytes();
    make_partial(&mut bytes);
    let offload = Offload { checksum_partial: true, segment_bytes: NonZeroU16::new(100) };
    let parts = split_all(&Packet::parse(&mut bytes, offload).expect("a packet"));
    let heads: Vec<(u8, u32)> = parts
        .iter()
        .map(|part| match parse(&mut part.clone()).head.kind {
            Kind::Tcp(tcp) => (tcp.flags, tcp.sequence),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(heads, [(ACK | CWR, u32::MAX - 99), (ACK, 0), (ACK | PSH | FIN, 100)]);
}

#[test]
fn tunnels_in_tunnels_and_unknown_protocols_are_refused() {
    for protocol in [0u8, 4, 41, 47, 50, 51, 58, 132, 255] {
        let mut bytes = Sample::udp("10.0.0.2", "10.0.1.2", b"x").bytes();
        bytes[9] = protocol;
        mend_ipv4_header(&mut bytes);
        assert_eq!(refusal(&bytes), Some(ParseError::UnsupportedProtocol(protocol)));
    }
    for protocol in [1u8, 4, 41, 47, 50, 51, 132, 255] {
        let mut bytes = Sample::udp("fd00::2", "fd00:1::2", b"x").bytes();
        bytes[6] = protocol;
        assert_eq!(refusal(&bytes), Some(ParseError::UnsupportedProtocol(protocol)));
    }
}
