//! Looks for control groups and mounts that runs have left behind, so that an alarm can compare them
//! with the sandboxes that there should be; and at the room that is left for images.

use std::fs;
use std::path::{Path, PathBuf};

/// Where Linux systems mount their control groups.
const CGROUPS: &str = "/sys/fs/cgroup";

/// How deep below it a launcher's group may be: a service inside a container inside a pod.
const DEPTH_MAX: usize = 8;

/// The control groups of one launcher, one in each hierarchy.
#[derive(Clone, Debug, Default)]
pub struct Groups {
    roots: Vec<PathBuf>,
}

impl Groups {
    /// Finds them by the name that every launcher gives its own.
    pub fn of_launcher(pid: u32) -> Self {
        let mut roots = Vec::new();
        find(Path::new(CGROUPS), &sandbox::cgroup_name(pid), 0, &mut roots);
        Self { roots }
    }

    /// How many runs have a control group at this moment, in the hierarchy that has most.
    pub fn live(&self) -> usize {
        self.roots.iter().map(|root| folders(root).count()).max().unwrap_or_default()
    }
}

fn find(at: &Path, name: &str, depth: usize, found: &mut Vec<PathBuf>) {
    for folder in folders(at) {
        if folder.file_name().is_some_and(|file| file == name) {
            found.push(folder);
        } else if depth < DEPTH_MAX {
            find(&folder, name, depth + 1, found);
        }
    }
}

fn folders(at: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(at).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path())
}

/// The mounts of one launcher, which has a mount namespace of its own: what runs mount is attached
/// elsewhere or nowhere, so that their number never changes.
#[derive(Clone, Debug)]
pub struct Mounts {
    list: PathBuf,
    at_start: usize,
}

impl Mounts {
    /// To be called before the first run.
    pub fn of_launcher(pid: u32) -> Self {
        let list = PathBuf::from(format!("/proc/{pid}/mountinfo"));
        let at_start = count_lines(&list);
        Self { list, at_start }
    }

    /// How many there are beyond those at the start.
    pub fn live(&self) -> usize {
        count_lines(&self.list).saturating_sub(self.at_start)
    }
}

fn count_lines(path: &Path) -> usize {
    fs::read(path).map_or(0, |text| text.iter().filter(|byte| **byte == b'\n').count())
}

/// A file system's size and what is left of it, in bytes and in files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disk {
    pub bytes: u64,
    pub free_bytes: u64,
    pub inodes: u64,
    pub free_inodes: u64,
}

impl Disk {
    /// Of the file system on which `path` is; `None` where it can't be asked for.
    pub fn below(path: &Path) -> Option<Self> {
        let stat = nix::sys::statvfs::statvfs(path).ok()?;
        let block = stat.fragment_size();
        Some(Self {
            bytes: stat.blocks().saturating_mul(block),
            free_bytes: stat.blocks_available().saturating_mul(block),
            inodes: stat.files(),
            free_inodes: stat.files_available(),
        })
    }
}
