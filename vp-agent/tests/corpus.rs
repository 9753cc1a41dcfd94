//! What fuzzing of the agent starts from, and what it once found, goes through the same functions in every test run.

#[path = "../../fuzz/exercise_agent.rs"]
mod exercise;
#[path = "../../fuzz/exercise_dns.rs"]
mod exercise_dns;
#[path = "../../fuzz/files.rs"]
mod files;

use std::path::{Path, PathBuf};
use vp_agent::config::{Config, HostNetworks};
use vp_agent::control::offer;

fn folder(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn files(path: &str) -> Vec<(String, Vec<u8>)> {
    files::files(&folder(path))
}

#[test]
fn offers_of_the_corpus_do_no_harm() {
    for (name, bytes) in files("fuzz/corpus/offer") {
        println!("{name}");
        exercise::offer(&bytes);
        let is_good = offer::read(&bytes).is_ok();
        assert!(verdict(&name).is_none_or(|good| good == is_good));
    }
}

#[test]
fn configurations_of_the_corpus_do_no_harm() {
    for (name, bytes) in files("fuzz/corpus/config") {
        println!("{name}");
        exercise::config(&bytes);
        let parse = |text| Config::parse(Path::new("agent.yaml"), text, &HostNetworks::default());
        let is_good = std::str::from_utf8(&bytes).is_ok_and(|text| parse(text).is_ok());
        assert!(verdict(&name).is_none_or(|good| good == is_good));
    }
}

#[test]
fn messages_of_the_corpus_do_no_harm() {
    for (name, bytes) in files("fuzz/corpus/dns") {
        println!("{name}");
        let answer = exercise_dns::dns(&bytes);
        // NOERROR, in the low half of the fourth byte.
        let is_good = answer.is_some_and(|answer| answer[3] & 15 == 0);
        assert!(verdict(&name).is_none_or(|good| good == is_good));
    }
}

#[test]
fn examples_are_read_as_the_corpus_is() {
    files("examples").into_iter().for_each(|(_, bytes)| exercise::config(&bytes));
}

/// What the name says of a file that was made by hand; what was found has other names.
fn verdict(name: &str) -> Option<bool> {
    match name.split('-').next() {
        Some("good") => Some(true),
        Some("bad") => Some(false),
        _ => None,
    }
}
