//! A control group that an administrator has given to a user, in every hierarchy that has limits to give.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

/// What runs are limited by.
const CONTROLLERS: [&str; 4] = ["memory", "pids", "cpu", "cpuacct"];

/// It goes when it is dropped, after those who were in it.
#[derive(Debug)]
pub struct Delegated(Vec<PathBuf>);

impl Delegated {
    pub fn to(user: u32) -> Self {
        let name = format!("delegated-{}-{user}", std::process::id());
        let groups = hierarchies().into_iter().map(|point| point.join(&name));
        let groups: Vec<PathBuf> = groups.collect();
        for group in &groups {
            fs::create_dir(group).expect("make a control group");
            chown(group, Some(user), Some(user)).expect("give a control group away");
            // Version 1 has the second, version 2 the others.
            for file in ["cgroup.procs", "tasks", "cgroup.threads", "cgroup.subtree_control"] {
                let file = group.join(file);
                if file.exists() {
                    chown(&file, Some(user), Some(user)).expect("give a control group away");
                }
            }
        }
        Self(groups)
    }

    /// Where whoever is to live in it has to be written.
    pub fn doors(&self) -> impl Iterator<Item = PathBuf> {
        self.0.iter().map(|group| group.join("cgroup.procs"))
    }

    /// What is in it, below the groups themselves.
    pub fn inside(&self) -> Vec<PathBuf> {
        self.0.iter().flat_map(|group| folders(group)).collect()
    }
}

impl Drop for Delegated {
    fn drop(&mut self) {
        for group in &self.0 {
            for inside in folders(group) {
                let _ = fs::remove_dir(inside);
            }
            let _ = fs::remove_dir(group);
        }
    }
}

fn folders(group: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(group).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

/// The mount points of those that can be of use.
fn hierarchies() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").expect("read the mounts");
    let found = mounts.lines().filter_map(|line| {
        let (mount, source) = line.split_once(" - ")?;
        let point = PathBuf::from(mount.split(' ').nth(4)?);
        let (kind, options) = (source.split(' ').next()?, source.rsplit(' ').next()?);
        match kind {
            "cgroup2" => pass_on_controllers(&point),
            "cgroup" if options.split(',').any(|option| CONTROLLERS.contains(&option)) => {}
            _ => return None,
        }
        Some(point)
    });
    found.collect()
}

/// The top passes on what it has, as an init system would have it do.
fn pass_on_controllers(top: &Path) {
    let has = fs::read_to_string(top.join("cgroup.controllers")).unwrap_or_default();
    for controller in has.split_whitespace().filter(|name| CONTROLLERS.contains(name)) {
        let _ = fs::write(top.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}
