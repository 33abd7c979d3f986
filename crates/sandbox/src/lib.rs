//! One command in one sandbox: the launcher process, its protocol, the namespaces and the limits.
//!
//! Two sides live here. [`client`] is the server's: it starts the launcher and sends requests.
//! Everything else runs in the launcher and its children, each of which has one thread:
//!
//! ```text
//! server ──[`protocol`]──► launcher: a loop that forks
//!                            ├─► keeper: cgroup, clone, overlay; waits for a run; watches; kills; reports
//!                            │     └─► init: PID 1 inside; builds the rest, reaps
//!                            │           └─► command: waits; gives up everything, executes the program
//!                            └─► jail: unpacks one layer
//! ```
//!
//! There is no async runtime here, and all the `unsafe` stands in `sys`.

pub mod protocol;

pub mod client;
pub mod launcher;

mod bare_loop;
mod bare_mount;
mod by_hand;
mod canary;
mod setup;
mod walls;
mod worker;

mod keeper;
mod prepare;
mod rehearsal;
mod watch;

mod after;

mod command;
mod fence;
mod init;
mod inside;
mod passwd;
mod proc;
mod seccomp;

mod jail;
mod store;
mod trash;

mod cgroup;
mod dir;
mod host;
mod packet;
mod rootfs;
mod step;
mod sys;

/// For the fuzzer only.
#[cfg(feature = "fuzzing")]
pub mod fuzzing;

pub use cgroup::name_of as cgroup_name;
pub use host::MIN_KERNEL;

/// Drops every capability that this thread has, for good.
pub fn drop_capabilities() -> std::io::Result<()> {
    Ok(sys::set_capabilities(0)?)
}

/// Has all threads of this process take their memory from one heap, and each large block from the kernel and back to
/// it. For one that lives long; before it has a second thread.
pub fn share_one_heap() {
    sys::set_heaps(1, LARGE_BLOCK_BYTES);
}

/// Usual outputs are smaller: to have the kernel clear and map them anew for each run costs a fifth of the rate.
const LARGE_BLOCK_BYTES: i32 = 4 << 20;
