//! From an ordered list of layers to one mounted file system: the layers read-only under an overlay,
//! with a scratch tmpfs on top that holds every file the run may write.
//!
//! Everything is done on descriptors of detached mounts, so no path of the machine is ever seen inside (the names of
//! a run's own layers are, in `/proc/self/mountinfo`, which say what its image is made of) and nothing is attached
//! anywhere that could be left behind. Kernels before 6.15 take no detached
//! mounts as layers: there the mounts are attached in a mount namespace of the keeper's own.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, fchmod, makedev, mkdirat, mknodat};
use nix::unistd::{Gid, Uid, fchown, symlinkat};
use run::Limits;

use crate::dir;
use crate::step::{At, Failure};
use crate::sys::{self, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY};

/// How layers are handed to the overlay on this kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LayerMode {
    /// As descriptors of detached mounts.
    Detached,
    /// Attached below [`ATTACH_POINT`] in the keeper's own mount namespace.
    Attached,
}

/// A directory of the launcher's root on which a keeper may mount what it needs.
pub(crate) const ATTACH_POINT: &str = "/attach";

/// The inodes that overlay and we ourselves need on the scratch tmpfs beside the run's.
const OWN_INODES: u64 = 24;

/// The scratch tmpfs with its three directories.
pub(crate) struct Scratch {
    pub(crate) mount: OwnedFd,
    upper: OwnedFd,
    work: OwnedFd,
    shm: OwnedFd,
}

impl Scratch {
    /// `owner` is root inside the run.
    pub(crate) fn create(limits: &Limits, owner: u32) -> Result<Self, Failure> {
        let mount = tmpfs(limits.disk_bytes, inodes(limits), MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV)
            .at("mount scratch tmpfs")?;
        let upper = subdirectory(&mount, "upper", 0o755, Some(owner)).at("make upper directory")?;
        let work = subdirectory(&mount, "work", 0o700, None).at("make work directory")?;
        let shm = subdirectory(&mount, "shm", 0o1777, Some(owner)).at("make shm directory")?;
        Ok(Self { mount, upper, work, shm })
    }

    /// Gives it other caps than it was made with.
    pub(crate) fn resize(&self, was: &Limits, limits: &Limits) -> nix::Result<()> {
        if (was.disk_bytes, was.inodes) == (limits.disk_bytes, limits.inodes) {
            return Ok(());
        }
        let fs = sys::fspick(self.mount.as_fd())?;
        sys::fs_set(fs.as_fd(), c"size", &limits.disk_bytes.to_string())?;
        sys::fs_set(fs.as_fd(), c"nr_inodes", &inodes(limits).to_string())?;
        sys::fs_reconfigure(fs.as_fd())
    }

    /// A folder of the root that belongs to the run from the start, whoever owns it below.
    pub(crate) fn own(&self, name: &str, mode: u32, owner: u32) -> io::Result<()> {
        subdirectory(&self.upper, name, mode, Some(owner)).map(drop)
    }

    /// `/dev/shm` lies on the same tmpfs, so that one cap holds for all files of a run. Older kernels
    /// clone only what is attached, so this comes after the overlay.
    pub(crate) fn shm(&self) -> Result<OwnedFd, Failure> {
        let shm = sys::open_tree(self.shm.as_fd(), c"").at("clone shm")?;
        sys::mount_set(shm.as_fd(), MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC, None)
            .at("restrict shm")?;
        Ok(shm)
    }
}

fn inodes(limits: &Limits) -> u64 {
    limits.inodes.saturating_add(OWN_INODES)
}

/// A tmpfs that is attached nowhere.
pub(crate) fn tmpfs(bytes: u64, inodes: u64, attributes: u64) -> nix::Result<OwnedFd> {
    let fs = sys::fsopen(c"tmpfs")?;
    sys::fs_set(fs.as_fd(), c"size", &bytes.to_string())?;
    sys::fs_set(fs.as_fd(), c"nr_inodes", &inodes.to_string())?;
    sys::fs_set(fs.as_fd(), c"mode", "0755")?;
    sys::fs_mount(fs.as_fd(), attributes)
}

fn subdirectory(parent: &OwnedFd, name: &str, mode: u32, owner: Option<u32>) -> io::Result<OwnedFd> {
    mkdirat(parent, name, Mode::empty())?;
    let made = dir::open_dir_beneath(parent, name, OFlag::empty())?;
    if let Some(owner) = owner {
        fchown(&made, Some(Uid::from_raw(owner)), Some(Gid::from_raw(owner)))?;
    }
    fchmod(&made, Mode::from_bits_truncate(mode))?;
    Ok(made)
}

/// A read-only view of one layer in which ids are mapped to the run's own.
pub(crate) fn view(layer: BorrowedFd<'_>, userns: Option<BorrowedFd<'_>>) -> nix::Result<OwnedFd> {
    let view = sys::open_tree(layer, c"")?;
    sys::mount_set(view.as_fd(), MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, userns)?;
    Ok(view)
}

/// The overlay of `layers`, topmost first, under the scratch directories.
pub(crate) fn overlay(
    mode: LayerMode,
    layers: &[OwnedFd],
    scratch: Option<&Scratch>,
) -> Result<OwnedFd, Failure> {
    match mode {
        LayerMode::Detached => overlay_detached(layers, scratch).at("mount overlay"),
        LayerMode::Attached => overlay_attached(layers, scratch),
    }
}

fn overlay_detached(layers: &[OwnedFd], scratch: Option<&Scratch>) -> nix::Result<OwnedFd> {
    let fs = sys::fsopen(c"overlay")?;
    let fs = fs.as_fd();
    for layer in layers {
        sys::fs_set_fd(fs, c"lowerdir+", layer.as_fd())?;
    }
    if let Some(scratch) = scratch {
        sys::fs_set_fd(fs, c"upperdir", scratch.upper.as_fd())?;
        sys::fs_set_fd(fs, c"workdir", scratch.work.as_fd())?;
        sys::fs_set_flag(fs, c"volatile")?;
    }
    for key in [c"index", c"metacopy", c"xino"] {
        sys::fs_set(fs, key, "off")?;
    }
    if own_user_namespace() {
        // The marks of opaque directories are then those that a user may set.
        sys::fs_set_flag(fs, c"userxattr")?;
    }
    // A layer that claims to be a redirection is not believed.
    sys::fs_set(fs, c"redirect_dir", "nofollow")?;
    sys::fs_mount(fs, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV)
}

/// The same for older kernels: names instead of descriptors, each of them a constant of ours.
fn overlay_attached(layers: &[OwnedFd], scratch: Option<&Scratch>) -> Result<OwnedFd, Failure> {
    let ground = attach_ground().at("mount attach point")?;
    let mut lower = Vec::new();
    for (number, layer) in layers.iter().enumerate() {
        let name = format!("{number}");
        let point = subdirectory(&ground, &name, 0o700, None).at("make attach point")?;
        sys::move_mount(layer.as_fd(), point.as_fd()).at("attach layer")?;
        lower.push(format!("{ATTACH_POINT}/{name}"));
    }
    let mut options =
        format!("lowerdir={},index=off,metacopy=off,redirect_dir=nofollow,xino=off", lower.join(":"));
    if own_user_namespace() {
        options += ",userxattr";
    }
    if let Some(scratch) = scratch {
        let point = subdirectory(&ground, "s", 0o700, None).at("make attach point")?;
        sys::move_mount(scratch.mount.as_fd(), point.as_fd()).at("attach scratch")?;
        options += &format!(",upperdir={ATTACH_POINT}/s/upper,workdir={ATTACH_POINT}/s/work,volatile");
    }
    let point = subdirectory(&ground, "r", 0o700, None).at("make attach point")?;
    let target = format!("/proc/self/fd/{}", point.as_raw_fd());
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("overlay"), target.as_str(), Some("overlay"), flags, Some(options.as_str()))
        .at("mount overlay")?;
    let mounted = dir::open_dir_beneath(&ground, "r", OFlag::O_PATH).at("open overlay")?;
    sys::open_tree(mounted.as_fd(), c"").at("clone overlay")
}

/// A fresh tmpfs on the attach point, hiding what an earlier overlay of the same run has put there.
fn attach_ground() -> io::Result<OwnedFd> {
    let ground = tmpfs(1 << 20, 1024, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV)?;
    let point = dir::open_dir(ATTACH_POINT.as_ref())?;
    sys::move_mount(ground.as_fd(), point.as_fd())?;
    dir::open_dir(ATTACH_POINT.as_ref())
}

/// Every device of a run and its minor number.
pub(crate) const NODES: [(&str, u64); 5] =
    [("null", 3), ("zero", 5), ("full", 7), ("random", 8), ("urandom", 9)];

/// The devices that every program expects and nothing else; made once, cloned for each run.
pub(crate) fn device_template() -> Result<OwnedFd, Failure> {
    const LINKS: [(&str, &str); 4] = [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ];
    let dev = tmpfs(64 * 1024, 32, MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC).at("mount device tmpfs")?;
    let mode = Mode::from_bits_truncate(0o666);
    for (name, minor) in NODES {
        let kind = if own_user_namespace() { SFlag::S_IFREG } else { SFlag::S_IFCHR };
        mknodat(&dev, name, kind, mode, makedev(1, minor)).at("make device")?;
        nix::sys::stat::fchmodat(&dev, name, mode, nix::sys::stat::FchmodatFlags::FollowSymlink)
            .at("make device")?;
    }
    for (name, target) in LINKS {
        symlinkat(target, &dev, name).at("make device link")?;
    }
    for name in ["shm", "mqueue"] {
        mkdirat(&dev, name, Mode::from_bits_truncate(0o755)).at("make device directory")?;
    }
    Ok(dev)
}

/// Only root of the machine can make devices; anybody else gets the machine's own, one by one.
pub(crate) fn host_devices() -> Result<Vec<(&'static str, OwnedFd)>, Failure> {
    if !own_user_namespace() {
        return Ok(Vec::new());
    }
    let open = |name: &'static str| -> io::Result<_> {
        let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let node = nix::fcntl::open(format!("/dev/{name}").as_str(), flags, Mode::empty())?;
        let tree = sys::open_tree(node.as_fd(), c"")?;
        sys::mount_set(tree.as_fd(), MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC, None)?;
        Ok((name, tree))
    };
    NODES.iter().map(|(name, _)| open(name)).collect::<io::Result<_>>().at("open the machine's devices")
}

/// Whether this user namespace is not the machine's first, whose root alone may do some things.
pub(crate) fn own_user_namespace() -> bool {
    static OWN: OnceLock<bool> = OnceLock::new();
    *OWN.get_or_init(|| {
        let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
        map.split_whitespace().ne(["0", "0", "4294967295"])
    })
}

pub(crate) fn devices(template: BorrowedFd<'_>) -> Result<OwnedFd, Failure> {
    let dev = sys::open_whole_tree(template).at("clone devices")?;
    sys::mount_set(dev.as_fd(), MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC, None)
        .at("restrict devices")?;
    Ok(dev)
}

/// Finds out by doing it whether this kernel takes detached mounts as layers.
pub(crate) fn probe_layer_mode() -> Result<LayerMode, Failure> {
    let one = tmpfs(4096, 8, 0).at("mount probe tmpfs")?;
    let two = tmpfs(4096, 8, 0).at("mount probe tmpfs")?;
    Ok(match overlay_detached(&[one, two], None) {
        Ok(_) => LayerMode::Detached,
        Err(_) => LayerMode::Attached,
    })
}
