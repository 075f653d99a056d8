//! Feeds `request` from libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ironclad_fuzz::request(data));
