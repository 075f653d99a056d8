//! Feeds `dns_name` from libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ironclad_fuzz::dns_name(data));
