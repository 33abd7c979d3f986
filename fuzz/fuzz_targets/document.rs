//! What registries say about images: manifests, indexes, configs, tokens.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| image::fuzzing::document(bytes));
