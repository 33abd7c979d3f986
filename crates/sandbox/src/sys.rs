//! Every system call of the sandbox that no library wraps safely. All the `unsafe` of this crate stands in this
//! folder, one call wide; nothing here decides anything.
#![allow(unsafe_code)]

mod descriptors;
mod mounts;
mod privileges;
mod processes;

use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::libc;

pub(crate) use self::descriptors::*;
pub(crate) use self::mounts::*;
pub(crate) use self::privileges::*;
pub(crate) use self::processes::*;

pub(crate) type Result<T> = nix::Result<T>;

fn owned(fd: libc::c_long) -> Result<OwnedFd> {
    let fd = Errno::result(fd)?;
    // SAFETY: the kernel has just made this descriptor for us, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}
