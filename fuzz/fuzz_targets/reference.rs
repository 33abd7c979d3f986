//! The name of an image, as clients write it.
#![no_main]

libfuzzer_sys::fuzz_target!(|text: &str| image::fuzzing::reference(text));
