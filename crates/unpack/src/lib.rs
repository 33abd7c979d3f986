//! One layer, safely: the compressed stream of a stranger becomes a tree of files below one
//! directory. It reads a pipe and writes files; it knows no network, no registry and no other layer,
//! and it expects to run in a jail as a single thread.

mod job;
mod error;

pub use error::UnpackError;
pub use job::{Compression, DirMeta, Job, Limits, Report, read_result};
