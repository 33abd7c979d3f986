//! One command in one sandbox: the launcher process, its protocol, the namespaces and the limits.
//! No async runtime; all the `unsafe` of the sandbox stands in `sys.rs`.

pub mod protocol;
