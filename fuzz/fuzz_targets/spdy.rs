//! Feeds `spdy` from libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ironclad_fuzz::spdy(data));
