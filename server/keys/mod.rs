//! Keys: who may ask, and for how much. The command line writes them into one small file, the server reads
//! it. What a key is worth is never written anywhere; the file has hashes. Beside it are the logins that principals
//! have at registries.

pub mod file;
pub mod secret;

pub mod ring;

pub mod logins;

pub mod ledger;

pub use file::{KeyFile, KeyRecord};
pub use ledger::Ledger;
pub use logins::LoginBook;
pub use ring::KeyRing;
pub use secret::Secret;
