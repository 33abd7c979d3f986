//! Keys: who may ask, and for how much. The command line writes them into one small file, the server reads
//! it. What a key is worth is never written anywhere; the file has hashes.

pub mod file;
pub mod secret;

pub mod ring;

pub mod ledger;

pub use file::{KeyFile, KeyRecord};
pub use ledger::Ledger;
pub use ring::KeyRing;
pub use secret::Secret;
