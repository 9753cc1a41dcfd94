#![no_main]

#[path = "../exercise_node.rs"]
mod exercise;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    exercise::datagram(bytes);
});
