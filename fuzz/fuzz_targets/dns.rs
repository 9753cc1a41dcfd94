#![no_main]

#[path = "../exercise_dns.rs"]
mod exercise;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    exercise::dns(bytes);
});
