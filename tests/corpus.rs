//! What fuzzing starts from, and what it once found, goes through the same functions in every test run.

#[path = "../fuzz/exercise.rs"]
mod exercise;
#[path = "../fuzz/exercise_identity.rs"]
mod exercise_identity;
#[path = "../fuzz/exercise_node.rs"]
mod exercise_node;
#[path = "../fuzz/files.rs"]
mod files;

use std::path::Path;
use vp::packet::{Kind, Offload, Packet, ParseError};

fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    files::files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target))
}

#[test]
fn packets_of_the_corpus_do_no_harm() {
    for (name, bytes) in corpus("packet") {
        println!("{name}");
        exercise::packet(&bytes);
    }
}

#[test]
fn datagrams_of_the_corpus_do_no_harm() {
    for (name, bytes) in corpus("datagram") {
        let given = exercise_node::datagram(&bytes);
        println!("{name}: {given}");
    }
}

/// What the name says of it: none but the good ones hold.
#[test]
fn certificates_of_the_corpus_are_believed_as_far_as_they_hold() {
    for (name, bytes) in corpus("certificate") {
        println!("{name}");
        let is_believed = exercise_identity::certificate(&bytes);
        assert!(is_believed == name.starts_with("good-") || name.starts_with("found-"), "{name}");
    }
}

/// Captured from a kernel: what is read in them is what was sent.
#[test]
fn real_packets_are_right() {
    for (name, mut bytes) in corpus("packet") {
        let Some(name) = name.strip_prefix("real-") else { continue };
        let refused = match name {
            "mld-hop-by-hop" | "router-solicitation" | "neighbour-solicitation" => Some(ParseError::IcmpOther),
            "icmp4-echo-record-route" | "icmp4-echo-timestamps" => Some(ParseError::SourceRoute),
            _ => None,
        };
        match Packet::parse(&mut bytes, Offload::default()) {
            Ok(packet) => {
                assert_eq!(refused, None, "{name}");
                assert_eq!(packet.head.kind == Kind::FragmentTail, name.ends_with("middle") || name.ends_with("last"));
                let is_whole = packet.head.fragment.is_none();
                assert!(!is_whole || packet.checksum_is_right(), "{name}");
                assert_eq!(is_whole, !name.contains("-fragment-"), "{name}");
                assert_eq!(packet.head.kind == Kind::IcmpError, is_error(name), "{name}");
                if is_error(name) {
                    vp::packet::quote(&packet).unwrap_or_else(|error| panic!("{name}: {error:?}"));
                }
            }
            Err(error) => assert_eq!(Some(error), refused, "{name}"),
        }
    }
}

fn is_error(name: &str) -> bool {
    ["unreachable", "too-big", "needed", "exceeded"].iter().any(|word| name.contains(word))
}
