//! What a run sees under `/proc`: its own processes, and of the kernel's files none, or few.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{Mode, SFlag, fstatat};

use crate::sys::{self, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY};
use crate::{dir, rootfs};

/// What the `compat` profile leaves of the kernel's own files, because language runtimes and the
/// usual tools read it. A file that a later kernel adds is not seen until it is named here.
const VISIBLE: [&str; 15] = [
    "cgroups",
    "cpuinfo",
    "filesystems",
    "loadavg",
    "meminfo",
    "mounts",
    "net",
    "self",
    "stat",
    "swaps",
    "sys",
    "thread-self",
    "uptime",
    "version",
    "vmstat",
];

/// It has to be made while the host's `/proc` can still be seen: afterwards the kernel refuses.
pub(crate) fn mount(only_processes: bool, only_own: bool) -> nix::Result<OwnedFd> {
    let fs = sys::fsopen(c"proc")?;
    if only_processes {
        sys::fs_set(fs.as_fd(), c"subset", "pid")?;
    }
    if only_own {
        sys::fs_set(fs.as_fd(), c"hidepid", "invisible")?;
    }
    sys::fs_mount(fs.as_fd(), MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC)
}

/// Covers everything that is not to be seen, and makes `/proc/sys` read-only: parts of it belong to
/// the run's own namespaces, whose root could write them.
pub(crate) fn mask(proc: &OwnedFd, dev: BorrowedFd<'_>) -> io::Result<()> {
    let null = open_point(dev, "null")?;
    let empty = rootfs::tmpfs(4096, 2, MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV)?;
    let entries = nix::dir::Dir::openat(
        proc,
        ".",
        OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?;
    let mut attached = false;
    for entry in entries {
        let entry = entry?;
        let Ok(name) = entry.file_name().to_str() else { continue };
        if name.starts_with(|first: char| first.is_ascii_digit() || first == '.') || VISIBLE.contains(&name) {
            continue;
        }
        let kind = SFlag::from_bits_truncate(fstatat(proc, name, AtFlags::AT_SYMLINK_NOFOLLOW)?.st_mode);
        let point = open_point(proc.as_fd(), name)?;
        let folder = kind & SFlag::S_IFMT == SFlag::S_IFDIR;
        if folder && !attached {
            // Older kernels clone only what is attached, so the first folder gets the mount itself.
            sys::move_mount(empty.as_fd(), point.as_fd())?;
            attached = true;
            continue;
        }
        let cover = sys::open_tree(if folder { empty.as_fd() } else { null.as_fd() }, c"")?;
        sys::move_mount(cover.as_fd(), point.as_fd())?;
    }
    let settings = dir::open_dir_beneath(proc, "sys", OFlag::O_PATH)?;
    let read_only = sys::open_tree(settings.as_fd(), c"")?;
    let restricted = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC;
    sys::mount_set(read_only.as_fd(), restricted, None)?;
    Ok(sys::move_mount(read_only.as_fd(), settings.as_fd())?)
}

fn open_point(dir: BorrowedFd<'_>, name: &str) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    nix::fcntl::openat(dir, name, flags, Mode::empty())
}
