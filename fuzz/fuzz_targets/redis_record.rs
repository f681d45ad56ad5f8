#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| switchboard::fuzz::redis_record(text));
