//! From a freshly started launcher to one that can serve: cgroups, an almost empty file tree of its
//! own, what this kernel can do. What is missing is said, never passed over.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{fchdir, getuid};
use serde::{Deserialize, Serialize};

use crate::cgroup::{self, Cgroups};
use crate::host::{self, HostImage};
use crate::init::{self, NEW_ROOT, replace_root};
use crate::keeper::Ground;
use crate::protocol::Hello;
use crate::rootfs::{self, ATTACH_POINT};
use crate::step::{At, Failure};
use crate::store::{self, STORE};
use crate::{dir, packet, sys, walls};

/// What the server tells its launcher when it starts it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// The launcher's program file.
    pub program: PathBuf,
    /// The folder of the layer store; it is the launcher's from then on.
    pub layers: PathBuf,
    /// Where the launcher notes what a successor has to clean up.
    pub state: PathBuf,
    /// Below which cgroup (version 2) runs get theirs; chosen by itself where absent.
    pub cgroup_parent: Option<PathBuf>,
    /// Whether the image `host` is offered.
    pub host_image: bool,
    /// Whose pid moves along when cgroup version 2 asks for an empty cgroup.
    pub server_pid: i32,
}

/// The first id of the first run, where the host has all ids.
const ID_BASE: u32 = 0x7000_0000;
const ID_WIDTH: u32 = 65_536;

/// What a start has noted for its successor, and the lock that says that it is alive.
#[derive(Debug)]
pub(crate) struct State {
    note: PathBuf,
    dir: OwnedFd,
    /// How many runs of the predecessor had to be cleaned up.
    orphans: u32,
    _lock: Flock<File>,
}

impl State {
    /// Waits for a predecessor whose last runs are just being cleaned up, then cleans up the rest.
    fn open(path: &Path) -> Result<Self, Failure> {
        std::fs::create_dir_all(path).at("make state folder")?;
        let mut file = File::create(path.join("launcher.lock")).at("open lock")?;
        let mut patience = 500;
        let lock = loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => break lock,
                Err((back, nix::errno::Errno::EWOULDBLOCK)) if patience > 0 => file = back,
                Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
                    let message = format!("{} is used by another sandglass", path.display());
                    return Err(Failure::new("lock state folder", message));
                }
                Err((_, errno)) => return Err(errno).at("lock state folder"),
            }
            patience -= 1;
            std::thread::sleep(Duration::from_millis(20));
        };
        let note = path.join("cgroups");
        let left = std::fs::read_to_string(&note).unwrap_or_default();
        let orphans = left.lines().map(|path| cgroup::sweep(path.as_ref())).max().unwrap_or_default();
        let dir = dir::open_dir(path).at("open state folder")?;
        Ok(State { note: "cgroups".into(), dir, orphans, _lock: lock })
    }

    fn note(&self, cgroups: &Cgroups) -> io::Result<()> {
        let paths: Vec<String> = cgroups.made().map(|path| path.display().to_string()).collect();
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC | OFlag::O_CLOEXEC;
        let file = nix::fcntl::openat(&self.dir, &self.note, flags, Mode::from_bits_truncate(0o600))?;
        io::Write::write_all(&mut File::from(file), paths.join("\n").as_bytes())
    }

    /// Everything that was noted has been removed.
    pub(crate) fn forget(&self) {
        let _ = nix::unistd::unlinkat(&self.dir, &self.note, nix::unistd::UnlinkatFlags::NoRemoveDir);
    }
}

pub(crate) fn set_up(options: &Options) -> Result<(Ground, Hello, State), Failure> {
    check_kernel()?;
    let state = State::open(&options.state)?;
    let _ = nix::unistd::setsid();
    sys::prctl(libc::PR_SET_DUMPABLE, 0, 0).at("forbid inspection")?;
    raise_descriptor_limit().at("raise descriptor limit")?;
    // Everything that takes time is done once here, so that a fork inherits it done.
    crate::seccomp::prepare();
    cgroup::online_cpus();
    let name = cgroup::name_of(std::process::id());
    let supervised = [options.server_pid, std::process::id() as i32];
    let cgroups = Cgroups::set_up(&name, options.cgroup_parent.as_deref(), &supervised);
    state.note(&cgroups).at("note cgroups")?;
    match leave_host(options, cgroups) {
        Ok(ground) => {
            let orphans = state.orphans + ground.cgroups.orphans;
            let hello = Hello { orphans, ..walls::hello(&ground) };
            Ok((ground, hello, state))
        }
        Err((failure, cgroups)) => {
            cgroups.remove_made();
            state.forget();
            Err(failure)
        }
    }
}

fn check_kernel() -> Result<(), Failure> {
    let release = host::kernel_release();
    let (major, minor) = host::MIN_KERNEL;
    if host::kernel_version(&release).is_some_and(|version| version < host::MIN_KERNEL) {
        let message = format!("Linux {release} is too old; Sandglass needs {major}.{minor} or newer");
        return Err(Failure::new("check kernel", message));
    }
    if !getuid().is_root() {
        let message = "the launcher must be started as root (it gives runs ids and roots of their own)";
        return Err(Failure::new("check privilege", message));
    }
    if !has_sys_admin() {
        let message = "the launcher needs the capability CAP_SYS_ADMIN to make namespaces and mounts; in a \
                       container, start it with --cap-add SYS_ADMIN (no more than that: not --privileged)";
        return Err(Failure::new("check privilege", message));
    }
    Ok(())
}

/// The effective capabilities; `None` where they can't be read.
fn capabilities() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(effective.trim(), 16).ok()
}

fn has_sys_admin() -> bool {
    const CAP_SYS_ADMIN: u32 = 21;
    // What can't be read is no reason to refuse: the first step that fails will say so.
    capabilities().is_none_or(|held| held & (1 << CAP_SYS_ADMIN) != 0)
}

fn raise_descriptor_limit() -> nix::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    // Beyond the hard limit only with CAP_SYS_RESOURCE; what there is will do.
    let more = hard.max(1 << 20);
    setrlimit(Resource::RLIMIT_NOFILE, more, more).or_else(|_| setrlimit(Resource::RLIMIT_NOFILE, hard, hard))
}

/// Exchanges the host's file tree for one that holds the layer store, a proc, and mount points.
fn leave_host(options: &Options, cgroups: Cgroups) -> Result<Ground, (Failure, Cgroups)> {
    let (id_base, id_width, _) = id_ranges();
    let made = || -> Result<_, Failure> {
        unshare(CloneFlags::CLONE_NEWNS).at("new mount namespace")?;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).at("make mounts private")?;
        drop(store::open(&options.layers)?);
        let layers = {
            let store = dir::open_dir(&options.layers).at("open layer store")?;
            let tree = sys::open_tree(store.as_fd(), c"").at("clone layer store")?;
            sys::mount_set(tree.as_fd(), sys::MOUNT_ATTR_NOSUID | sys::MOUNT_ATTR_NODEV, None)
                .at("restrict layer store")?;
            tree
        };
        let mut host = if options.host_image { Some(HostImage::open()?) } else { None };
        let devices = rootfs::device_template()?;
        let host_devices = rootfs::host_devices()?;
        let proc = own_proc().at("mount own proc")?;
        let root = rootfs::tmpfs(1 << 20, 128, sys::MOUNT_ATTR_NOSUID).at("mount own root")?;
        let below = dir::open_dir("/proc".as_ref()).at("open mount point")?;
        sys::move_mount(root.as_fd(), below.as_fd()).at("attach own root")?;
        fchdir(&root).at("enter own root")?;
        for (path, tree) in [(STORE, &layers), ("/devices", &devices), ("/proc", &proc)] {
            let point = make(&root, path).at("make mount point")?;
            sys::move_mount(tree.as_fd(), point.as_fd()).at("attach to own root")?;
        }
        for (name, node) in host_devices {
            let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let point = nix::fcntl::open(format!("./devices/{name}").as_str(), flags, Mode::empty());
            let point = point.at("open device")?;
            sys::move_mount(node.as_fd(), point.as_fd()).at("attach device")?;
        }
        if let Some(host) = &mut host {
            let dir = make(&root, "/host").at("make mount point")?;
            host.attach(&dir)?;
        }
        for path in [NEW_ROOT, ATTACH_POINT] {
            make(&root, path).at("make mount point")?;
        }
        let old_root = replace_root()?;
        let layers = dir::open_dir(STORE.as_ref()).at("open layer store")?;
        let devices = dir::open_dir("/devices".as_ref()).at("open devices")?;
        let layer_mode = rootfs::probe_layer_mode()?;
        let map_ids = probe_id_maps(&layers, id_base, id_width)?;
        Ok((layers, devices, host, layer_mode, map_ids, old_root))
    }();
    match made {
        Ok((layers, devices, host, layer_mode, map_ids, old_root)) => {
            let capabilities = capabilities().unwrap_or_default();
            Ok(Ground {
                cgroups,
                layers,
                devices,
                host,
                layer_mode,
                map_ids,
                old_root,
                id_base,
                id_width,
                capabilities,
            })
        }
        Err(failure) => Err((failure, cgroups)),
    }
}

/// Without being root of the PID namespace's owner one can't mount its proc, but show the host's again.
fn own_proc() -> nix::Result<OwnedFd> {
    match sys::fsopen(c"proc").and_then(|fs| sys::fs_mount(fs.as_fd(), 0)) {
        Err(nix::errno::Errno::EPERM) => {
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            let host = nix::fcntl::open("/proc", flags, Mode::empty())?;
            sys::open_whole_tree(host.as_fd())
        }
        result => result,
    }
}

fn make(root: &OwnedFd, path: &str) -> io::Result<OwnedFd> {
    let name = path.trim_start_matches('/');
    mkdirat(root, name, Mode::from_bits_truncate(0o755))?;
    dir::open_dir_beneath(root, name, OFlag::empty())
}

/// Where runs' ids begin, how many each has, and for how many runs that is enough. In a container
/// there are fewer, and they are divided.
pub(crate) fn id_ranges() -> (u32, u32, u32) {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    divide_ids(&map)
}

fn divide_ids(map: &str) -> (u32, u32, u32) {
    const RUNS: u32 = 256;
    const KEPT: u32 = 1024;
    let end = map
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_whitespace().map(|field| field.parse::<u64>().ok());
            Some(fields.next()?? + fields.nth(1)??)
        })
        .max()
        .unwrap_or(0);
    if end > u64::from(ID_BASE) + u64::from(ID_WIDTH) {
        let runs = (end.min(u64::from(u32::MAX)) - u64::from(ID_BASE)) / u64::from(ID_WIDTH);
        return (ID_BASE, ID_WIDTH, runs as u32);
    }
    let left = (end as u32).saturating_sub(KEPT);
    (KEPT, (left / RUNS).clamp(1, ID_WIDTH), RUNS.min(left.max(1)))
}

/// Tries an id map on the store's own file system.
fn probe_id_maps(layers: &OwnedFd, id_base: u32, id_width: u32) -> Result<bool, Failure> {
    let (ours, theirs) = packet::pair().at("make probe socket")?;
    let Some((pid, pidfd)) = sys::clone3(libc::CLONE_NEWUSER as u64, None).at("clone user namespace")? else {
        drop(ours);
        let _ = init::own_namespace("user").map(|own| packet::send(theirs.as_fd(), &(), &[own.as_fd()]));
        // Lives until the probe is over and its socket is closed.
        let _ = packet::receive::<()>(theirs.as_fd());
        std::process::exit(0);
    };
    let process = dir::open_dir(format!("/proc/{pid}").as_ref()).at("open probe's proc")?;
    let map = format!("0 {id_base} {id_width}");
    dir::write(&process, "uid_map", &map).at("map ids of the probe")?;
    dir::write(&process, "gid_map", &map).at("map ids of the probe")?;
    drop(theirs);
    let sent = packet::receive::<()>(ours.as_fd()).at("get user namespace")?;
    let userns = sent.and_then(|(_, fds)| fds.into_iter().next());
    let userns =
        userns.ok_or_else(|| Failure::new("get user namespace", "the probe ended before it said"))?;
    let can = host::can_map_ids(layers, &userns);
    drop(ours);
    let _ = sys::pidfd_kill(pidfd.as_fd());
    while let Err(nix::errno::Errno::EINTR) = sys::wait(Some(pid), true) {}
    Ok(can)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_with_all_ids_gives_every_run_65536() {
        let (base, width, runs) = divide_ids("         0          0 4294967295\n");
        assert_eq!((base, width), (ID_BASE, ID_WIDTH));
        assert!(runs > 30_000);
        assert!(u64::from(base) + u64::from(runs) * u64::from(width) <= u64::from(u32::MAX));
    }

    #[test]
    fn fewer_ids_are_divided_and_never_overlap_the_host_s() {
        for map in ["0 100000 65536\n", "0 1000 1\n1 100000 65535\n", "0 0 2000\n"] {
            let (base, width, runs) = divide_ids(map);
            assert!(width >= 1 && base >= 1024 && runs >= 1, "{map}");
            assert!(u64::from(base) + u64::from(width) * u64::from(runs) <= 65536, "{map}");
        }
    }
}
