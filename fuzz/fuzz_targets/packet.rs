//! Packets between server, launcher, keeper and init, and the files of an image that are read inside.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| sandbox::fuzzing::packet(bytes));
