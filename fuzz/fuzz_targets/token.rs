#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| switchboard::fuzz::token(text));
