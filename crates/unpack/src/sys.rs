//! The calls that neither std nor nix has.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::libc;

/// Lets others have the processors first. Where that is refused, it only takes longer.
pub(crate) fn step_back(niceness: u8) {
    // SAFETY: the call takes numbers and touches no memory of ours.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, niceness.into()) };
}

/// Has the disk begin with a part of a file (no length: all of it from there on), without waiting for it. Where that is refused, it begins when it must.
pub(crate) fn begin_to_write(file: BorrowedFd<'_>, from: u64, len: u64) {
    let (Ok(from), Ok(len)) = (from.try_into(), len.try_into()) else { return };
    // SAFETY: the call takes a descriptor and numbers and touches no memory of ours.
    unsafe { libc::sync_file_range(file.as_raw_fd(), from, len, libc::SYNC_FILE_RANGE_WRITE) };
}

/// Sets an extended attribute of an open file or directory.
pub(crate) fn set_xattr(file: BorrowedFd<'_>, name: &CStr, value: &[u8]) -> io::Result<()> {
    // SAFETY: `name` ends with a NUL, and `value` is valid for its length; the kernel only reads them.
    let result =
        unsafe { libc::fsetxattr(file.as_raw_fd(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    Ok(Errno::result(result).map(drop)?)
}

/// The names of an open file's extended attributes. A file system without any has none.
pub(crate) fn list_xattrs(file: BorrowedFd<'_>) -> io::Result<Vec<CString>> {
    let list = |data: *mut libc::c_char, len: usize| {
        // SAFETY: `data` is valid for `len` bytes, which the kernel fills at most.
        unsafe { libc::flistxattr(file.as_raw_fd(), data, len) }
    };
    let bytes = match filled(|data, len| list(data.cast(), len)) {
        Err(Errno::EOPNOTSUPP) => Vec::new(),
        result => result?,
    };
    let names = bytes.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    Ok(names.filter_map(|name| CString::new(name).ok()).collect())
}

pub(crate) fn get_xattr(file: BorrowedFd<'_>, name: &CStr) -> io::Result<Vec<u8>> {
    let get = |data: *mut u8, len: usize| {
        // SAFETY: `name` ends with a NUL, and `data` is valid for `len` bytes, which the kernel fills at most.
        unsafe { libc::fgetxattr(file.as_raw_fd(), name.as_ptr(), data.cast(), len) }
    };
    Ok(filled(get)?)
}

/// Asks how much there is, then for that much.
fn filled(ask: impl Fn(*mut u8, usize) -> libc::ssize_t) -> nix::Result<Vec<u8>> {
    let len = Errno::result(ask(std::ptr::null_mut(), 0))?.unsigned_abs();
    let mut bytes = vec![0; len];
    if len > 0 {
        let len = Errno::result(ask(bytes.as_mut_ptr(), len))?.unsigned_abs();
        bytes.truncate(len);
    }
    Ok(bytes)
}
