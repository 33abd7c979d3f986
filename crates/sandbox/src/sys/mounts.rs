//! File systems and mounts, by the calls that take descriptors rather than paths.

use std::ffi::{CStr, CString};
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::libc;

use super::{Result, owned};

pub(crate) const MOUNT_ATTR_RDONLY: u64 = 0x1;
pub(crate) const MOUNT_ATTR_NOSUID: u64 = 0x2;
pub(crate) const MOUNT_ATTR_NODEV: u64 = 0x4;
pub(crate) const MOUNT_ATTR_NOEXEC: u64 = 0x8;
pub(crate) const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;

const FSCONFIG_SET_FLAG: u32 = 0;
const FSCONFIG_SET_STRING: u32 = 1;
const FSCONFIG_SET_FD: u32 = 5;
const FSCONFIG_CMD_CREATE: u32 = 6;
const FSCONFIG_CMD_RECONFIGURE: u32 = 7;

pub(crate) fn fsopen(kind: &CStr) -> Result<OwnedFd> {
    // SAFETY: `kind` outlives the call; 1 is FSOPEN_CLOEXEC.
    owned(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), 1) })
}

fn fsconfig(
    fs: BorrowedFd<'_>,
    command: u32,
    key: Option<&CStr>,
    value: *const libc::c_char,
    aux: RawFd,
) -> Result<()> {
    let key = key.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: key and value are null or strings that the callers keep alive over the call.
    let result = unsafe { libc::syscall(libc::SYS_fsconfig, fs.as_raw_fd(), command, key, value, aux) };
    Errno::result(result).map(drop)
}

pub(crate) fn fs_set(fs: BorrowedFd<'_>, key: &CStr, value: &str) -> Result<()> {
    let value = CString::new(value).map_err(|_| Errno::EINVAL)?;
    fsconfig(fs, FSCONFIG_SET_STRING, Some(key), value.as_ptr(), 0)
}

pub(crate) fn fs_set_flag(fs: BorrowedFd<'_>, key: &CStr) -> Result<()> {
    fsconfig(fs, FSCONFIG_SET_FLAG, Some(key), std::ptr::null(), 0)
}

pub(crate) fn fs_set_fd(fs: BorrowedFd<'_>, key: &CStr, fd: BorrowedFd<'_>) -> Result<()> {
    fsconfig(fs, FSCONFIG_SET_FD, Some(key), std::ptr::null(), fd.as_raw_fd())
}

/// Creates the file system and mounts it nowhere: it lives as long as the returned descriptor.
pub(crate) fn fs_mount(fs: BorrowedFd<'_>, attributes: u64) -> Result<OwnedFd> {
    fsconfig(fs, FSCONFIG_CMD_CREATE, None, std::ptr::null(), 0)?;
    // SAFETY: takes numbers only; 1 is FSMOUNT_CLOEXEC.
    owned(unsafe { libc::syscall(libc::SYS_fsmount, fs.as_raw_fd(), 1, attributes) })
}

/// The file system behind a mount, to give it other options.
pub(crate) fn fspick(mount: BorrowedFd<'_>) -> Result<OwnedFd> {
    // FSPICK_CLOEXEC | FSPICK_EMPTY_PATH: the mount is the descriptor itself.
    const FLAGS: u32 = 0x1 | 0x8;
    // SAFETY: the path is a static empty string.
    owned(unsafe { libc::syscall(libc::SYS_fspick, mount.as_raw_fd(), c"".as_ptr(), FLAGS) })
}

pub(crate) fn fs_reconfigure(fs: BorrowedFd<'_>) -> Result<()> {
    fsconfig(fs, FSCONFIG_CMD_RECONFIGURE, None, std::ptr::null(), 0)
}

/// A detached copy of the mount at `path` below `dir`; an empty path means `dir` itself.
pub(crate) fn open_tree(dir: BorrowedFd<'_>, path: &CStr) -> Result<OwnedFd> {
    open_tree_with(dir, path, 0)
}

/// The same with everything that is mounted below.
pub(crate) fn open_whole_tree(dir: BorrowedFd<'_>) -> Result<OwnedFd> {
    open_tree_with(dir, c"", libc::AT_RECURSIVE)
}

fn open_tree_with(dir: BorrowedFd<'_>, path: &CStr, more: libc::c_int) -> Result<OwnedFd> {
    const OPEN_TREE_CLONE: libc::c_int = 1;
    let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC | libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW | more;
    // SAFETY: `path` outlives the call.
    owned(unsafe { libc::syscall(libc::SYS_open_tree, dir.as_raw_fd(), path.as_ptr(), flags) })
}

/// Attaches the detached mount `from` on the directory that `to` is.
pub(crate) fn move_mount(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    // MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH: both ends are descriptors, no path is resolved.
    const FLAGS: u32 = 0x4 | 0x40;
    let (from, to, empty) = (from.as_raw_fd(), to.as_raw_fd(), c"".as_ptr());
    // SAFETY: the paths are one static empty string.
    let result = unsafe { libc::syscall(libc::SYS_move_mount, from, empty, to, empty, FLAGS) };
    Errno::result(result).map(drop)
}

#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Sets attributes on a mount; with a user namespace its ids are mapped through that namespace.
pub(crate) fn mount_set(
    mount: BorrowedFd<'_>,
    attributes: u64,
    userns: Option<BorrowedFd<'_>>,
) -> Result<()> {
    mount_change(
        mount,
        &MountAttr {
            attr_set: attributes | if userns.is_some() { MOUNT_ATTR_IDMAP } else { 0 },
            attr_clr: 0,
            propagation: 0,
            userns_fd: userns.map_or(0, |fd| fd.as_raw_fd() as u64),
        },
    )
}

/// Takes attributes away from a mount: what no wall ever does, and a test that removes one.
#[cfg(feature = "removable-walls")]
pub(crate) fn mount_clear(mount: BorrowedFd<'_>, attributes: u64) -> Result<()> {
    mount_change(mount, &MountAttr { attr_set: 0, attr_clr: attributes, propagation: 0, userns_fd: 0 })
}

fn mount_change(mount: BorrowedFd<'_>, attr: &MountAttr) -> Result<()> {
    let (fd, empty, flags) = (mount.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH);
    // SAFETY: `attr` outlives the call and its size is the one given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd,
            empty,
            flags,
            std::ptr::from_ref(attr),
            size_of::<MountAttr>(),
        )
    };
    Errno::result(result).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structure_has_the_size_that_the_kernel_knows() {
        assert_eq!(size_of::<MountAttr>(), 32);
    }
}
