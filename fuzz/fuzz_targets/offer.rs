#![no_main]

#[path = "../exercise_agent.rs"]
mod exercise;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| exercise::offer(bytes));
