//! How much memory there is for this service and all of its runs: what the machine has, or what the service's
//! control group is given where that is less, as in a container.

use std::fs;
use std::path::{Path, PathBuf};

pub fn bytes() -> Option<u64> {
    let read = |path: &str| fs::read_to_string(path).ok();
    let machine = of_machine(&read("/proc/meminfo")?)?;
    let group = read("/proc/self/mountinfo").zip(read("/proc/self/cgroup"));
    let given = group.and_then(|(mounts, own)| Place::find(&mounts, &own)).and_then(|place| place.limit());
    Some(given.map_or(machine, |given| given.min(machine)))
}

fn of_machine(meminfo: &str) -> Option<u64> {
    let kib = meminfo.strip_prefix("MemTotal:")?.split_whitespace().next()?;
    kib.parse::<u64>().ok()?.checked_mul(1024)
}

/// Where a control group says what it may use.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    /// Version 1: one file knows of all groups above as well.
    Stat(PathBuf),
    /// Version 2: every group from the second path down to the first has its own.
    Max(PathBuf, PathBuf),
}

impl Place {
    fn find(mountinfo: &str, own: &str) -> Option<Self> {
        let mounts: Vec<_> = mountinfo.lines().filter_map(parse_mount).collect();
        let of_kind = |kind: &str, option: &str| {
            let is_it =
                |mount: &&Mount<'_>| mount.kind == kind && mount.options.split(',').any(|one| one == option);
            mounts.iter().find(is_it)
        };
        if let (Some(mount), Some(path)) = (of_kind("cgroup", "memory"), own_group(own, "memory")) {
            return Some(Self::Stat(mount.folder(path).join("memory.stat")));
        }
        let mount = mounts.iter().find(|mount| mount.kind == "cgroup2")?;
        Some(Self::Max(mount.folder(own_group(own, "")?), PathBuf::from(mount.point)))
    }

    fn limit(&self) -> Option<u64> {
        match self {
            Self::Stat(path) => {
                let text = fs::read_to_string(path).ok()?;
                text.lines().find_map(|line| line.strip_prefix("hierarchical_memory_limit "))?.parse().ok()
            }
            Self::Max(group, top) => {
                let below_top = group.ancestors().take_while(|folder| folder.starts_with(top));
                // Without a limit it says `max`, and the first group of all has no such file.
                let limit = |folder: &Path| {
                    fs::read_to_string(folder.join("memory.max")).ok()?.trim().parse::<u64>().ok()
                };
                below_top.filter_map(limit).min()
            }
        }
    }
}

struct Mount<'a> {
    /// The group that the mount shows.
    root: &'a str,
    point: &'a str,
    kind: &'a str,
    options: &'a str,
}

impl Mount<'_> {
    fn folder(&self, group: &str) -> PathBuf {
        let below = if self.root == "/" { group } else { group.strip_prefix(self.root).unwrap_or("") };
        Path::new(self.point).join(below.trim_start_matches('/'))
    }
}

/// `36 35 0:30 /root /point options… - type source super,options`
fn parse_mount(line: &str) -> Option<Mount<'_>> {
    let (before, after) = line.split_once(" - ")?;
    let mut before = before.split(' ').skip(3);
    let (root, point) = (before.next()?, before.next()?);
    let mut after = after.split(' ');
    let (kind, _source) = (after.next()?, after.next()?);
    Some(Mount { root, point, kind, options: after.next().unwrap_or_default() })
}

/// The group of a process in the hierarchy of that controller; version 2 names none.
fn own_group<'a>(own: &'a str, controller: &str) -> Option<&'a str> {
    own.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        controllers.split(',').any(|one| one == controller).then_some(path)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_group_is_found_however_it_is_mounted() {
        let v1 = "31 23 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        let container = "31 23 0:27 /docker/1 /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n";
        let v2 = "31 23 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        let other = "31 23 0:27 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n";
        let stat = |path: &str| Some(Place::Stat(path.into()));
        let max = |path: &str| Some(Place::Max(path.into(), "/sys/fs/cgroup".into()));
        for (mounts, own, place) in [
            (v1, "4:memory:/a/b\n", stat("/sys/fs/cgroup/memory/a/b/memory.stat")),
            (v1, "4:cpu,memory:/\n", stat("/sys/fs/cgroup/memory/memory.stat")),
            (container, "4:memory:/docker/1\n0::/\n", stat("/sys/fs/cgroup/memory/memory.stat")),
            (
                v2,
                "0::/system.slice/sandglass.service\n",
                max("/sys/fs/cgroup/system.slice/sandglass.service"),
            ),
            (v2, "0::/\n", max("/sys/fs/cgroup/")),
            (&format!("{other}{v2}"), "8:pids:/x\n0::/y\n", max("/sys/fs/cgroup/y")),
            (other, "8:pids:/\n", None),
            ("", "0::/\n", None),
        ] {
            assert_eq!(Place::find(mounts, own), place, "{mounts}{own}");
        }
    }

    #[test]
    fn the_least_limit_of_all_groups_counts() {
        let top = tempfile::tempdir().unwrap();
        let group = top.path().join("a/b");
        fs::create_dir_all(&group).unwrap();
        let place = Place::Max(group, top.path().to_owned());
        assert_eq!(place.limit(), None);
        for (folder, text, limit) in
            [("", "max\n", None), ("a", "4096\n", Some(4096)), ("a/b", "8192\n", Some(4096))]
        {
            fs::write(top.path().join(folder).join("memory.max"), text).unwrap();
            assert_eq!(place.limit(), limit, "{folder}");
        }
        let stat = top.path().join("memory.stat");
        fs::write(&stat, "cache 1\nhierarchical_memory_limit 268435456\ntotal_cache 1\n").unwrap();
        assert_eq!(Place::Stat(stat).limit(), Some(256 << 20));
    }

    #[test]
    fn this_machine_has_some() {
        assert!(bytes().unwrap() > 64 << 20);
    }
}
