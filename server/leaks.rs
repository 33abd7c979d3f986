//! Looks for control groups that runs have left behind, so that an alarm can compare them with the
//! sandboxes that there should be.

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
