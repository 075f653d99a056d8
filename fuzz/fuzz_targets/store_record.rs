//! Feeds `store_record` from libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ironclad_fuzz::store_record(data));
