//! Where this host's cgroups are and how the launcher gets a place of its own in them.
//!
//! Version 2, version 1 and the mixture of both are one structure: each controller is found where it
//! is. A version 2 hierarchy without any controller is used as well, because killing, counting
//! processor time and cloning straight into a cgroup work there whatever the controllers.

mod group;
mod hierarchy;
mod meter;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

pub(crate) use group::{RunGroup, join, online_cpus};
pub(crate) use meter::Account;

use crate::dir;
use hierarchy::{Hierarchies, Mount};

/// A controller's home: the directory below which each run gets a directory of its own.
#[derive(Debug)]
pub(crate) struct Home {
    pub(crate) dir: OwnedFd,
    pub(crate) v2: bool,
}

/// The launcher's own directories in every hierarchy that it needs.
#[derive(Debug, Default)]
pub(crate) struct Cgroups {
    pub(crate) unified: Option<OwnedFd>,
    pub(crate) memory: Option<Home>,
    pub(crate) pids: Option<Home>,
    pub(crate) cpu: Option<Home>,
    /// Only where there is no version 2 hierarchy to count processor time.
    pub(crate) cpuacct: Option<Home>,
    /// What was created, to be removed at the end or by the next start.
    made: Vec<Made>,
    /// How many runs' directories of dead servers were found and removed.
    pub(crate) orphans: u32,
    troubles: Vec<Trouble>,
}

/// Why a controller is missing, and which one; or none, where it is all of them.
#[derive(Debug)]
struct Trouble {
    controller: Option<&'static str>,
    reason: String,
}

/// A directory that we made, with the descriptor by which it can be removed when its path is out of reach.
#[derive(Debug)]
struct Made {
    parent: OwnedFd,
    path: PathBuf,
    /// Locked for as long as one of our processes lives, which tells a directory in use from one that
    /// was left behind.
    _lock: File,
}

const CONTROLLERS: [&str; 3] = ["memory", "pids", "cpu"];

impl Cgroups {
    /// Makes `name` in every hierarchy. What can't be had is left out and explained in `troubles`.
    pub(crate) fn set_up(name: &str, parent: Option<&Path>, supervised: &[i32]) -> Cgroups {
        let mut cgroups = Cgroups::default();
        let hierarchies = match Hierarchies::find() {
            Ok(hierarchies) => hierarchies,
            Err(error) => {
                let reason = format!("can't read where cgroups are mounted: {error}");
                cgroups.troubles.push(Trouble { controller: None, reason });
                return cgroups;
            }
        };
        if let Some(mount) = &hierarchies.unified {
            cgroups.set_up_unified(mount, name, parent, supervised);
        }
        cgroups.set_up_v1(&hierarchies, name);
        cgroups
    }

    fn set_up_unified(&mut self, mount: &Mount, name: &str, parent: Option<&Path>, supervised: &[i32]) {
        let base = match hierarchy::unified_base(mount, parent) {
            Ok(base) => base,
            Err(error) => return self.trouble(None, &mount.point, &error),
        };
        let available = hierarchy::available_controllers(&base);
        if let Err(error) = hierarchy::delegate(&base, &available, supervised) {
            self.trouble(None, &base, &error);
        }
        let home = base.join(name);
        let dir = match self.make(&home) {
            Ok(dir) => dir,
            Err(error) => return self.trouble(None, &home, &error),
        };
        for controller in &available {
            // A controller that can't be passed on is missed below, where its control file is looked for.
            let _ = dir::write(&dir, "cgroup.subtree_control", &format!("+{controller}"));
        }
        let passed_on = dir::read(&dir, "cgroup.subtree_control").unwrap_or_default();
        for controller in passed_on.split_whitespace() {
            if let Ok(dir) = dir.try_clone() {
                self.set(controller, Home { dir, v2: true });
            }
        }
        self.unified = Some(dir);
    }

    fn set_up_v1(&mut self, hierarchies: &Hierarchies, name: &str) {
        let without_unified = self.unified.is_none().then_some("cpuacct");
        for controller in CONTROLLERS.into_iter().chain(without_unified) {
            if self.has(controller) {
                continue;
            }
            let Some(mount) = hierarchies.v1(controller) else {
                if controller != "cpuacct" {
                    let reason = "no cgroup hierarchy has it".to_owned();
                    self.troubles.push(Trouble { controller: Some(controller), reason });
                }
                continue;
            };
            let home = mount.own_directory().join(name);
            match self.make(&home) {
                Ok(dir) => self.set(controller, Home { dir, v2: false }),
                Err(error) => self.trouble(Some(controller), &home, &error),
            }
        }
    }

    fn has(&self, controller: &str) -> bool {
        match controller {
            "memory" => self.memory.is_some(),
            "pids" => self.pids.is_some(),
            "cpu" => self.cpu.is_some(),
            _ => self.cpuacct.is_some(),
        }
    }

    fn set(&mut self, controller: &str, home: Home) {
        match controller {
            "memory" => self.memory = Some(home),
            "pids" => self.pids = Some(home),
            "cpu" => self.cpu = Some(home),
            "cpuacct" => self.cpuacct = Some(home),
            _ => {}
        }
    }

    /// Two controllers may share one mount (`cpu,cpuacct`), so the directory may be there already.
    fn make(&mut self, path: &Path) -> io::Result<OwnedFd> {
        if !self.made.iter().any(|made| made.path == path) {
            let above = path.parent().unwrap_or(Path::new("/"));
            let swept = sweep_dead(above);
            let (lock, left) = create_or_take_over(path)?;
            // One run has a directory in each hierarchy.
            self.orphans = self.orphans.max(swept + left);
            self.made.push(Made { parent: dir::open_dir(above)?, path: path.to_owned(), _lock: lock });
        }
        dir::open_dir(path)
    }

    fn trouble(&mut self, controller: Option<&'static str>, path: &Path, error: &io::Error) {
        self.troubles.push(Trouble { controller, reason: format!("{}: {error}", path.display()) });
    }

    /// Why this controller, or without a name version 2 as a whole, can't be used.
    pub(crate) fn why(&self, controller: &str) -> String {
        let concerns = |trouble: &&Trouble| trouble.controller.is_none_or(|name| name == controller);
        let reasons: Vec<&str> =
            self.troubles.iter().filter(concerns).map(|trouble| trouble.reason.as_str()).collect();
        if reasons.is_empty() { "no cgroup hierarchy is mounted".to_owned() } else { reasons.join("; ") }
    }

    /// `v2`, `v1`, `hybrid` or `none`.
    pub(crate) fn version(&self) -> &'static str {
        let homes = [&self.memory, &self.pids, &self.cpu];
        match (homes.iter().any(|home| matches!(home, Some(Home { v2: false, .. }))), self.unified.is_some())
        {
            (true, true) => "hybrid",
            (true, false) => "v1",
            (false, true) => "v2",
            (false, false) => "none",
        }
    }

    /// Paths of what was made, for the next start to clean up if this one can't.
    pub(crate) fn made(&self) -> impl Iterator<Item = &Path> {
        self.made.iter().map(|made| made.path.as_path())
    }

    /// Removes the directories once every run has removed its own.
    pub(crate) fn remove_made(&self) {
        for Made { parent, path, .. } in &self.made {
            let Some(name) = path.file_name() else { continue };
            for _ in 0..200 {
                match nix::unistd::unlinkat(parent, name, nix::unistd::UnlinkatFlags::RemoveDir) {
                    Err(nix::errno::Errno::EBUSY) => std::thread::sleep(std::time::Duration::from_millis(10)),
                    _ => break,
                }
            }
        }
    }
}

/// What a launcher with this process number calls its directories. Containers may share a hierarchy
/// and have the same process numbers; their PID namespaces tell them apart.
pub fn name_of(launcher: u32) -> String {
    /// The PID namespace that a machine starts with (`PROC_PID_INIT_INO`).
    const FIRST: u64 = 0xEFFF_FFFC;
    match std::fs::metadata("/proc/self/ns/pid") {
        Ok(namespace) if namespace.ino() != FIRST => format!("{PREFIX}{launcher}-{}", namespace.ino()),
        _ => format!("{PREFIX}{launcher}"),
    }
}

const PREFIX: &str = "sandglass-";

/// Makes a directory and locks it. Process numbers come again, in a restarted container the very same
/// one: what a dead predecessor of our name has left is emptied, what a living one uses is not touched.
/// Returns also how many runs had been left in it.
fn create_or_take_over(path: &Path) -> io::Result<(File, u32)> {
    for _ in 0..100 {
        match std::fs::create_dir(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        // Another server that starts may take an unlocked directory for a dead one's and remove it.
        let lock = dir::open_dir(path).ok().map(File::from).filter(|dir| dir.try_lock().is_ok());
        if let Some(lock) = lock
            && is_at(&lock, path)
        {
            return Ok((lock, empty_all_below(path)));
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    Err(io::Error::new(io::ErrorKind::AlreadyExists, "another server that is running uses it"))
}

fn is_at(file: &File, path: &Path) -> bool {
    let same = |a: std::fs::Metadata, b: std::fs::Metadata| (a.dev(), a.ino()) == (b.dev(), b.ino());
    file.metadata().is_ok_and(|ours| std::fs::metadata(path).is_ok_and(|there| same(ours, there)))
}

/// Removes what dead servers have left in a directory, whoever's they were; returns how many runs that was.
fn sweep_dead(above: &Path) -> u32 {
    below(above).filter(|path| is_a_launcher_s(path)).map(|path| sweep(&path)).sum()
}

/// Whether a directory is called as [`name_of`] calls one; an operator may have others of the same prefix.
fn is_a_launcher_s(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.strip_prefix(PREFIX).is_some_and(|rest| {
        let numbers: Vec<&str> = rest.split('-').collect();
        numbers.len() <= 2 && numbers.iter().all(|number| number.parse::<u32>().is_ok())
    })
}

fn below(path: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path())
}

/// Ends and removes everything in a cgroup that a dead server has left; a living one has it locked.
/// Returns how many runs had been left in it.
pub(crate) fn sweep(path: &Path) -> u32 {
    let Some(dir) = dir::open_dir(path).ok().map(File::from) else { return 0 };
    if dir.try_lock().is_err() {
        return 0;
    }
    let orphans = empty_all_below(path);
    empty(path);
    orphans
}

fn empty_all_below(path: &Path) -> u32 {
    below(path).map(|left| empty(&left)).count() as u32
}

fn empty(path: &Path) {
    for _ in 0..1000 {
        if std::fs::remove_dir(path).is_ok() || !path.exists() {
            return;
        }
        if std::fs::write(path.join("cgroup.kill"), "1").is_err() {
            kill_members(path);
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

/// Version 1 has no `cgroup.kill`. A pid read here can't be used again before its process is reaped,
/// and everything in a run's cgroup is reaped by an init that is in there too.
fn kill_members(path: &Path) {
    let members = std::fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    for pid in members.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 1) {
        let pid = nix::unistd::Pid::from_raw(pid);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Any directory stands in for one of the cgroup file system: both can be locked and removed.
    #[test]
    fn a_dead_predecessor_s_directory_is_taken_over_and_a_living_one_s_is_not() {
        let above = std::env::temp_dir().join(format!("take-over-{}", std::process::id()));
        let path = above.join("sandglass-1");
        std::fs::create_dir_all(path.join("run-1")).unwrap();
        let (mut first, mut second) = (Cgroups::default(), Cgroups::default());
        first.make(&path).unwrap();
        assert!(!path.join("run-1").exists());
        assert_eq!(first.orphans, 1);
        first.make(&path).unwrap();
        assert_eq!(first.made().count(), 1);
        assert!(second.make(&path).unwrap_err().to_string().contains("another server"));
        drop(first);
        second.make(&path).unwrap();
        second.remove_made();
        std::fs::remove_dir(above).expect("nothing is left");
    }

    #[test]
    fn the_dead_are_swept_and_the_living_and_the_foreign_are_not() {
        let above = std::env::temp_dir().join(format!("sweep-{}", std::process::id()));
        let foreign =
            ["other/run-1", "sandglass-/1", "sandglass-1.slice", "sandglass-1-2-3", "sandglass-a-1"];
        for name in
            ["sandglass-1/run-1", "sandglass-1-4026532567", "sandglass-2/run-1"].iter().chain(&foreign)
        {
            std::fs::create_dir_all(above.join(name)).unwrap();
        }
        let living = File::open(above.join("sandglass-2")).unwrap();
        living.try_lock().unwrap();
        let mut ours = Cgroups::default();
        ours.make(&above.join("sandglass-3")).unwrap();
        assert_eq!(ours.orphans, 1, "the run of the dead, not that of the living");
        let gone = ["sandglass-1", "sandglass-1-4026532567"];
        assert_eq!(gone.map(|name| above.join(name).exists()), [false; 2]);
        let stay = ["sandglass-2/run-1", "sandglass-3"];
        for name in stay.iter().chain(&foreign) {
            assert!(above.join(name).exists(), "{name}");
        }
        std::fs::remove_dir_all(&above).unwrap();
    }
}
