#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| switchboard::fuzz::client_event(text));
