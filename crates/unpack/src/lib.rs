//! One layer, safely: the compressed stream of a stranger becomes a tree of files below one
//! directory, or such a tree an archive again. It reads a pipe and writes files; it knows no network, no registry and no other layer,
//! and it expects to run in a jail that has nothing else. A second thread makes files as well where there are many.

mod ahead;
mod archive;
mod contents;
mod early;
mod error;
mod header;
mod job;
mod layer;
mod looks;
mod member;
mod names;
mod pack;
mod path;
mod pax;
mod second;
mod sparse;
mod stream;
mod sys;
mod tree;
mod walk;

use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

pub use contents::{Content, Member, members, plain};
pub use error::UnpackError;
pub use job::{Compression, DirMeta, Job, Limits, Report, read_result};
pub use layer::{layer, layer_ahead};
pub use pack::{PackJob, Packed, pack, pack_jailed};

/// A layer of less is done sooner than a thread that decodes it has begun.
const WORTH_BYTES: u64 = 2 << 20;

/// Reads the job, unpacks the layer and says as JSON how it went; [`read_result`] reads that.
pub fn jailed(
    input: File,
    root: OwnedFd,
    job: &str,
    mark_opaque: &mut dyn FnMut(BorrowedFd<'_>) -> io::Result<()>,
) -> String {
    let result = match serde_json::from_str::<Job>(job) {
        Ok(job) => {
            sys::step_back(job.niceness);
            layer_ahead(input, root, &job, WORTH_BYTES, mark_opaque)
        }
        Err(error) => Err(UnpackError::BadJob { reason: error.to_string() }),
    };
    serde_json::to_string(&result).expect("a report is plain data")
}
