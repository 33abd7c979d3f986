//! What a run reads, as the descriptor that it gets. Never that of a stored file itself: its path would
//! be seen inside, and those who read the same file could lock and watch each other's.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;

use nix::fcntl::OFlag;
use run::Stdin;
use tokio::net::unix::pipe;

use crate::Leases;
use crate::files::FileLease;

/// Stored files up to this size are copied into memory, where they can be sought in like any file; larger
/// ones come through a pipe.
const COPIED_BYTES: u64 = 1024 * 1024;

/// Must be called inside the runtime.
pub(crate) fn descriptor(stdin: &Stdin, leases: &Leases) -> io::Result<OwnedFd> {
    match stdin {
        Stdin::Empty => File::open("/dev/null").map(OwnedFd::from),
        Stdin::Bytes(bytes) => sandbox::client::memfd("stdin", bytes),
        Stdin::Stored(stored) => of_file(leases.get(stored)?),
    }
}

fn of_file(lease: &FileLease) -> io::Result<OwnedFd> {
    let mut file = lease.open()?;
    if lease.len() > COPIED_BYTES {
        return feed(file);
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    sandbox::client::memfd("stdin", &bytes)
}

/// Ends with the file, or when nobody is left who could read on.
fn feed(file: File) -> io::Result<OwnedFd> {
    let (theirs, ours) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    let mut ours = pipe::Sender::from_owned_fd(ours)?;
    let mut file = tokio::fs::File::from_std(file);
    tokio::spawn(async move { tokio::io::copy(&mut file, &mut ours).await });
    Ok(theirs)
}
