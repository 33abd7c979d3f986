//! What the machine offers: the kernel, its features, and the parts of its own file system that the
//! image `host` is made of.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::fcntl::OFlag;
use nix::sys::stat::{Mode, SFlag};

use crate::dir;
use crate::rootfs::{self, Scratch};
use crate::step::{At, Failure};
use crate::sys::{self, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY};

/// The oldest kernel that has everything without which a wall would be missing.
pub const MIN_KERNEL: (u32, u32) = (6, 1);

pub(crate) fn kernel_release() -> String {
    nix::sys::utsname::uname()
        .map_or_else(|_| "unknown".into(), |name| name.release().to_string_lossy().into_owned())
}

pub(crate) fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// The machine's own programs as an image: read-only views of the directories that hold them, and a
/// skeleton with everything else. Ids are not mapped in it, so what only the host's root may read
/// stays unreadable.
#[derive(Debug)]
pub(crate) struct HostImage {
    pub(crate) skeleton: OwnedFd,
    /// An empty directory: an overlay without a writable layer wants two.
    pub(crate) empty: OwnedFd,
    pub(crate) dirs: Vec<(String, OwnedFd)>,
}

const TOP: [&str; 7] = ["usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32"];

/// Folders that the machine's own programs expect; of ours, with nothing of the machine's in them.
const SKELETON: [(&str, u32); 6] =
    [("etc", 0o755), ("root", 0o755), ("home", 0o755), ("tmp", 0o1777), ("var", 0o755), ("run", 0o755)];

/// Small files of `/etc` that programs and the dynamic linker look for.
const ETC_FILES: [&str; 4] = ["ld.so.cache", "ld.so.conf", "mime.types", "protocols"];

const ETC_OWN: [(&str, &str); 5] = [
    ("passwd", "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"),
    ("group", "root:x:0:\nnogroup:x:65534:\n"),
    ("hosts", "127.0.0.1 localhost\n::1 localhost\n"),
    ("nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\n"),
    ("hostname", "sandbox\n"),
];

impl HostImage {
    /// Must run while the host's root is still there.
    pub(crate) fn open() -> Result<Self, Failure> {
        let skeleton =
            rootfs::tmpfs(8 << 20, 8192, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV).at("mount host skeleton")?;
        let mut dirs = Vec::new();
        for name in TOP {
            let path = Path::new("/").join(name);
            let Ok(kind) = std::fs::symlink_metadata(&path) else { continue };
            if let Ok(target) = std::fs::read_link(&path) {
                nix::unistd::symlinkat(&target, &skeleton, name).at("copy host link")?;
            } else if kind.is_dir() {
                make_dir(&skeleton, name, 0o755).at("make host directory")?;
                dirs.push((name.to_owned(), read_only(&path).at("open host directory")?));
            }
        }
        for (name, mode) in SKELETON {
            make_dir(&skeleton, name, mode).at("make host directory")?;
        }
        fill_etc(&skeleton).at("fill host etc")?;
        let empty = rootfs::tmpfs(4096, 4, MOUNT_ATTR_RDONLY).at("mount empty tmpfs")?;
        Ok(Self { skeleton, empty, dirs })
    }

    /// The skeleton is ours, so its ids are mapped where the kernel can map a tmpfs (6.3). Elsewhere its
    /// folders belong to nobody inside, and the run gets its own over them.
    pub(crate) fn skeleton(
        &self,
        userns: Option<BorrowedFd<'_>>,
        scratch: &Scratch,
        owner: u32,
    ) -> Result<OwnedFd, Failure> {
        if userns.is_some()
            && let Ok(mapped) = rootfs::view(self.skeleton.as_fd(), userns)
        {
            return Ok(mapped);
        }
        for (name, mode) in SKELETON {
            scratch.own(name, mode, owner).at("make host directory")?;
        }
        rootfs::view(self.skeleton.as_fd(), None).at("open host skeleton")
    }

    /// Attaches every part below `dir` and goes on with what is attached: only that can be cloned on
    /// every kernel.
    pub(crate) fn attach(&mut self, dir: &OwnedFd) -> Result<(), Failure> {
        let named = [("skeleton", &mut self.skeleton), ("empty", &mut self.empty)];
        let dirs = self.dirs.iter_mut().map(|(name, tree)| (name.as_str(), tree));
        for (name, tree) in named.into_iter().chain(dirs) {
            make_dir(dir, name, 0o700).at("make host mount point")?;
            let point = dir::open_dir_beneath(dir, name, OFlag::empty()).at("open host mount point")?;
            sys::move_mount(tree.as_fd(), point.as_fd()).at("attach host directory")?;
        }
        Ok(())
    }
}

/// Where ids can't be mapped an image's files belong to nobody inside. The run then gets folders of its
/// own over those at the top in which programs expect to write, with what the image has in them.
pub(crate) fn own_folders(layers: &[OwnedFd], scratch: &Scratch, owner: u32) -> io::Result<()> {
    for (name, mode) in SKELETON {
        let topmost = layers.iter().find_map(|layer| {
            let stat = nix::sys::stat::fstatat(layer, name, nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW);
            stat.ok().map(|stat| SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT)
        });
        // A link of the image, or a name that it has taken away, stays what it is.
        if topmost == Some(SFlag::S_IFDIR) {
            scratch.own(name, mode, owner)?;
        }
    }
    Ok(())
}

fn read_only(path: &Path) -> io::Result<OwnedFd> {
    let dir = dir::open_dir(path)?;
    let view = sys::open_tree(dir.as_fd(), c"")?;
    sys::mount_set(view.as_fd(), MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, None)?;
    Ok(view)
}

fn make_dir(parent: &OwnedFd, name: &str, mode: u32) -> io::Result<()> {
    nix::sys::stat::mkdirat(parent, name, Mode::empty())?;
    let made = dir::open_dir_beneath(parent, name, OFlag::empty())?;
    Ok(nix::sys::stat::fchmod(&made, Mode::from_bits_truncate(mode))?)
}

fn fill_etc(skeleton: &OwnedFd) -> io::Result<()> {
    let etc = dir::open_dir_beneath(skeleton, "etc", OFlag::empty())?;
    for (name, text) in ETC_OWN {
        put(&etc, name, text.as_bytes())?;
    }
    for name in ETC_FILES {
        if let Ok(bytes) = std::fs::read(Path::new("/etc").join(name)) {
            put(&etc, name, &bytes)?;
        }
    }
    copy_alternatives(&etc)
}

/// Debian names `awk`, `cc`, `java`… through links in `/etc/alternatives`.
fn copy_alternatives(etc: &OwnedFd) -> io::Result<()> {
    let Ok(entries) = std::fs::read_dir("/etc/alternatives") else { return Ok(()) };
    make_dir(etc, "alternatives", 0o755)?;
    let alternatives = dir::open_dir_beneath(etc, "alternatives", OFlag::empty())?;
    for entry in entries.flatten() {
        if let Ok(target) = std::fs::read_link(entry.path()) {
            nix::unistd::symlinkat(&target, &alternatives, entry.file_name().as_os_str())?;
        }
    }
    Ok(())
}

fn put(dir: &OwnedFd, name: &str, bytes: &[u8]) -> io::Result<()> {
    use std::io::Write;
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
    let file = nix::fcntl::openat(dir, name, flags, Mode::from_bits_truncate(0o644))?;
    std::fs::File::from(file).write_all(bytes)
}

/// Whether ids can be mapped on mounts of the file system that `dir` lies on.
pub(crate) fn can_map_ids(dir: &OwnedFd, userns: &OwnedFd) -> bool {
    sys::open_tree(dir.as_fd(), c"")
        .and_then(|tree| sys::mount_set(tree.as_fd(), MOUNT_ATTR_RDONLY, Some(userns.as_fd())))
        .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_versions_are_read_as_distributions_write_them() {
        for (release, version) in [
            ("6.1.0-28-cloud-amd64", Some((6, 1))),
            ("6.18.44-fc-v669", Some((6, 18))),
            ("7.0", Some((7, 0))),
            ("linux", None),
        ] {
            assert_eq!(kernel_version(release), version, "{release}");
        }
    }
}
