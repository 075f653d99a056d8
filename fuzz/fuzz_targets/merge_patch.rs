//! Feeds `merge_patch` from libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ironclad_fuzz::merge_patch(data));
