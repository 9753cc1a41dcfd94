#![no_main]

#[path = "../exercise_identity.rs"]
mod exercise;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    exercise::certificate(bytes);
});
