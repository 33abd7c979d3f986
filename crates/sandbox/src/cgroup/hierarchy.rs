//! Reading where the cgroup hierarchies are mounted and where this process lives in each.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use crate::{rootfs, sys};

/// One mounted hierarchy.
#[derive(Debug, Clone)]
pub(super) struct Mount {
    pub(super) point: PathBuf,
    /// The cgroup that the mount point shows.
    root: String,
    /// The cgroup that this process is in.
    own: String,
    controllers: Vec<String>,
}

impl Mount {
    /// This process's own cgroup as a directory. Inside a cgroup namespace the mount's root is ours.
    pub(super) fn own_directory(&self) -> PathBuf {
        let below = if self.root == "/" {
            Some(self.own.as_str())
        } else {
            self.own.strip_prefix(self.root.as_str())
        };
        let below = below.unwrap_or("").trim_start_matches('/');
        if below.split('/').any(|part| part == "..") { self.point.clone() } else { self.point.join(below) }
    }
}

#[derive(Debug, Default)]
pub(super) struct Hierarchies {
    pub(super) unified: Option<Mount>,
    v1: Vec<Mount>,
    /// Keeps mounts of our own alive that stand in for read-only ones.
    _own_views: Vec<OwnedFd>,
}

impl Hierarchies {
    pub(super) fn find() -> io::Result<Self> {
        let own = std::fs::read_to_string("/proc/self/cgroup")?;
        let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
        let mut found = Self::parse(&mounts, &own);
        found.replace_read_only_mounts();
        if found.unified.is_none() {
            found.mount_unified(&own);
        }
        Ok(found)
    }

    fn parse(mountinfo: &str, own: &str) -> Self {
        let mut found = Self::default();
        for line in mountinfo.lines() {
            let Some((mount, kind)) = parse_mount(line) else { continue };
            match kind {
                "cgroup2" if found.unified.is_none() => {
                    found.unified = own_path(own, "").map(|own| Mount { own, ..mount });
                }
                "cgroup" => {
                    let path = mount.controllers.iter().find_map(|controller| own_path(own, controller));
                    found.v1.extend(path.map(|own| Mount { own, ..mount }));
                }
                _ => {}
            }
        }
        found
    }

    pub(super) fn v1(&self, controller: &str) -> Option<&Mount> {
        self.v1.iter().find(|mount| mount.controllers.iter().any(|has| has == controller))
    }

    /// Containers see their cgroups read-only. With the right to mount, a view of our own is writable;
    /// it hangs on a descriptor and is attached nowhere.
    fn replace_read_only_mounts(&mut self) {
        let mut views = Vec::new();
        for (mount, v2) in
            self.v1.iter_mut().map(|m| (m, false)).chain(self.unified.iter_mut().map(|m| (m, true)))
        {
            if is_writable(&mount.point) {
                continue;
            }
            if let Ok(view) = own_view(&mount.controllers, v2) {
                mount.point = format!("/proc/self/fd/{}", view.as_raw_fd()).into();
                mount.root = "/".into();
                views.push(view);
            }
        }
        self._own_views = views;
    }

    /// Every kernel has the version 2 hierarchy, but hosts and containers of version 1 often don't
    /// mount it. Even without controllers it kills all of a run at once.
    fn mount_unified(&mut self, own: &str) {
        let (Some(own), Ok(view)) = (own_path(own, ""), own_view(&[], true)) else { return };
        let point = format!("/proc/self/fd/{}", view.as_raw_fd()).into();
        self.unified = Some(Mount { point, root: "/".into(), own, controllers: Vec::new() });
        self._own_views.push(view);
    }
}

fn is_writable(path: &Path) -> bool {
    nix::unistd::access(path, nix::unistd::AccessFlags::W_OK).is_ok()
}

fn own_view(controllers: &[String], v2: bool) -> nix::Result<OwnedFd> {
    let fs = sys::fsopen(if v2 { c"cgroup2" } else { c"cgroup" })?;
    for controller in controllers {
        let key = std::ffi::CString::new(controller.as_str()).map_err(|_| nix::errno::Errno::EINVAL)?;
        sys::fs_set_flag(std::os::fd::AsFd::as_fd(&fs), &key)?;
    }
    sys::fs_mount(
        std::os::fd::AsFd::as_fd(&fs),
        sys::MOUNT_ATTR_NOSUID | sys::MOUNT_ATTR_NODEV | sys::MOUNT_ATTR_NOEXEC,
    )
}

/// `36 35 0:30 /root /point options… - type source super,options`
fn parse_mount(line: &str) -> Option<(Mount, &str)> {
    let (before, after) = line.split_once(" - ")?;
    let before: Vec<&str> = before.split(' ').collect();
    let mut after = after.split(' ');
    let (kind, _source, options) = (after.next()?, after.next()?, after.next().unwrap_or(""));
    if !kind.starts_with("cgroup") {
        return None;
    }
    let known = ["memory", "pids", "cpu", "cpuacct"];
    let controllers = options.split(',').filter(|option| known.contains(option)).map(String::from).collect();
    let mount = Mount {
        root: (*before.get(3)?).into(),
        point: PathBuf::from(before.get(4)?),
        own: String::new(),
        controllers,
    };
    Some((mount, kind))
}

/// The path of this process's cgroup in the hierarchy that has `controller` (empty: version 2).
fn own_path(own: &str, controller: &str) -> Option<String> {
    own.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (number, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let is_it = if controller.is_empty() {
            number == "0" && controllers.is_empty()
        } else {
            controllers.split(',').any(|has| has == controller)
        };
        is_it.then(|| path.to_owned())
    })
}

/// Where our directory goes in version 2: where the operator says; in our own cgroup if it was
/// delegated to us or is all that we see; else at the top, as container engines do.
pub(super) fn unified_base(mount: &Mount, parent: Option<&Path>) -> io::Result<PathBuf> {
    if let Some(parent) = parent {
        let base = mount.point.join(parent.strip_prefix("/").unwrap_or(parent));
        return if base.is_dir() { Ok(base) } else { Err(io::ErrorKind::NotFound.into()) };
    }
    let own = mount.own_directory();
    Ok(if is_delegated(&own) { own } else { mount.point.clone() })
}

/// systemd marks what it has delegated; and what somebody who is not root of the machine may write to was
/// given to them, by whatever means.
fn is_delegated(path: &Path) -> bool {
    if rootfs::own_user_namespace() && is_writable(path) {
        return true;
    }
    let Ok(path) = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()) else { return false };
    [c"trusted.delegate", c"user.delegate"]
        .into_iter()
        .any(|name| sys::read_xattr(&path, name).is_ok_and(|value| value == b"1"))
}

pub(super) fn available_controllers(base: &Path) -> Vec<String> {
    let all = std::fs::read_to_string(base.join("cgroup.controllers")).unwrap_or_default();
    all.split_whitespace().filter(|name| super::CONTROLLERS.contains(name)).map(String::from).collect()
}

/// Passes the controllers on to children of `base`. A cgroup that does so must not hold processes itself, so
/// ours move into a leaf before: with `cpu` passed on, which may count threads, one that has processes is a
/// cgroup of threads, and then it is too late. Only the top of all may have both.
pub(super) fn delegate(base: &Path, controllers: &[String], supervised: &[i32]) -> io::Result<()> {
    let control = base.join("cgroup.subtree_control");
    let enabled = std::fs::read_to_string(&control)?;
    let is_missing = |controller: &&String| !enabled.split_whitespace().any(|name| name == *controller);
    let missing: Vec<&String> = controllers.iter().filter(is_missing).collect();
    if !missing.is_empty() && base.join("cgroup.type").exists() {
        let inside = std::fs::read_to_string(base.join("cgroup.procs"))?;
        let lives_here = |pid: &&i32| inside.lines().any(|line| line.parse() == Ok(**pid));
        move_to_leaf(base, supervised.iter().filter(lives_here))?;
    }
    missing.into_iter().try_for_each(|controller| std::fs::write(&control, format!("+{controller}")))
}

fn move_to_leaf<'a>(base: &Path, pids: impl Iterator<Item = &'a i32>) -> io::Result<()> {
    let mut pids = pids.peekable();
    if pids.peek().is_none() {
        return Ok(());
    }
    let leaf = base.join("supervisor");
    match std::fs::create_dir(&leaf) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    for pid in pids {
        std::fs::write(leaf.join("cgroup.procs"), pid.to_string())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
34 28 0:30 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct
35 28 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
36 28 0:32 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
37 28 0:33 / /tmp rw - tmpfs tmpfs rw";

    #[test]
    fn each_controller_is_found_where_it_is() {
        let found = Hierarchies::parse(HYBRID, "5:cpu,cpuacct:/a\n4:memory:/b/c\n0::/d\n");
        assert_eq!(found.v1("cpu").unwrap().own_directory(), Path::new("/sys/fs/cgroup/cpu,cpuacct/a"));
        assert_eq!(found.v1("cpuacct").unwrap().own_directory(), Path::new("/sys/fs/cgroup/cpu,cpuacct/a"));
        assert_eq!(found.v1("memory").unwrap().own_directory(), Path::new("/sys/fs/cgroup/memory/b/c"));
        assert!(found.v1("pids").is_none());
        assert_eq!(found.unified.unwrap().own_directory(), Path::new("/sys/fs/cgroup/unified/d"));
    }

    #[test]
    fn a_container_sees_its_own_cgroup_as_the_root_of_the_mount() {
        let mounts = "9 8 0:9 /docker/x /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory";
        let found = Hierarchies::parse(mounts, "4:memory:/docker/x/y\n");
        assert_eq!(found.v1("memory").unwrap().own_directory(), Path::new("/sys/fs/cgroup/memory/y"));
        let outside = Hierarchies::parse(mounts, "4:memory:/../z\n");
        assert_eq!(outside.v1("memory").unwrap().own_directory(), Path::new("/sys/fs/cgroup/memory"));
    }
}
