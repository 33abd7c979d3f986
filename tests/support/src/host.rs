//! An eye on the host: what a daemon and its runs have left there. Tests run side by side, so only
//! what belongs to one daemon is counted: its descendants, its cgroups, its launcher's mounts.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::{Daemon, scaled, within};

/// Mounts and cgroups may follow the answer; not for longer than this.
const SETTLES_WITHIN: Duration = Duration::from_secs(3);

/// Others may mount and unmount things on the machine meanwhile.
const QUIET_WITHIN: Duration = Duration::from_secs(30);

/// As long as this nothing changes when nothing goes on.
const QUIET_FOR: Duration = Duration::from_millis(60);

/// What was seen of one daemon at one moment.
#[derive(Debug)]
pub struct Host {
    server: i32,
    launcher: i32,
    data_dir: PathBuf,
    before: Sight,
}

/// Each kind of thing by a name that a person can look up.
#[derive(Debug, PartialEq, Eq)]
struct Sight(BTreeMap<&'static str, BTreeSet<String>>);

impl Host {
    pub fn observe(daemon: &Daemon) -> Self {
        Self::of(daemon.pid(), daemon.launcher_pid(), daemon.data_dir())
    }

    /// The same of a service that was started in some other way.
    pub fn of(server: i32, launcher: i32, data_dir: PathBuf) -> Self {
        // What an earlier run has still to clean up is none of what is there for good.
        let before = within(QUIET_WITHIN, "a quiet moment", || {
            let sight = Sight::now(server, launcher, &data_dir);
            std::thread::sleep(QUIET_FOR);
            (sight == Sight::now(server, launcher, &data_dir)).then_some(sight)
        });
        Self { server, launcher, data_dir, before }
    }

    /// Nothing of any run is left: waits a little, then panics with the difference.
    #[track_caller]
    pub fn assert_unchanged(&self) {
        if let Err(difference) = self.settled() {
            panic!("the host has changed:\n{difference}");
        }
    }

    /// Waits a little until the host is as it was; what is different after that, a line each.
    pub fn settled(&self) -> Result<(), String> {
        let started = Instant::now();
        loop {
            let now = Sight::now(self.server, self.launcher, &self.data_dir);
            if now == self.before {
                return Ok(());
            }
            if started.elapsed() >= scaled(SETTLES_WITHIN) {
                return Err(now.difference(&self.before));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Sight {
    fn now(server: i32, launcher: i32, data_dir: &Path) -> Self {
        let processes = processes_of(server, launcher);
        let named = processes.iter().map(|pid| format!("{pid} {}", command_line(*pid))).collect();
        let namespaces = processes.iter().flat_map(|pid| namespaces(*pid)).collect();
        let cgroups = cgroups_of(launcher).iter().map(|path| path.display().to_string()).collect();
        Self(BTreeMap::from([
            ("mounts of the host", lines("/proc/self/mountinfo")),
            ("mounts of the launcher", lines(&format!("/proc/{launcher}/mountinfo"))),
            ("descriptors of the launcher", descriptors(launcher)),
            ("processes", named),
            ("namespaces", namespaces),
            ("cgroups", cgroups),
            ("unfinished layers", unfinished_layers(data_dir)),
        ]))
    }

    fn difference(&self, before: &Self) -> String {
        let mut text = String::new();
        for (kind, now) in &self.0 {
            let was = &before.0[kind];
            for (sign, item) in
                now.difference(was).map(|i| ('+', i)).chain(was.difference(now).map(|i| ('-', i)))
            {
                text += &format!("{sign} {kind}: {item}\n");
            }
        }
        text
    }
}

/// The processes whose parent is `pid`, but for sandboxes that wait for a run: those come and go.
pub fn children(pid: i32) -> Vec<i32> {
    let below = parents().into_iter().filter(|(_, parent)| *parent == pid);
    below.map(|(child, _)| child).filter(|child| !is_prepared(*child)).collect()
}

/// The parent of a process, while it lives.
pub fn parent(pid: i32) -> Option<i32> {
    parents().remove(&pid)
}

/// Whether this is the keeper of a sandbox that has no run yet.
fn is_prepared(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "prepared\n")
}

/// Everything that belongs to sandboxes which a launcher has prepared and nobody uses.
pub fn prepared(launcher: i32) -> BTreeSet<i32> {
    let keepers = parents().into_iter().filter(|(pid, parent)| *parent == launcher && is_prepared(*pid));
    keepers.flat_map(|(pid, _)| descendants(pid).into_iter().chain([pid]).collect::<Vec<_>>()).collect()
}

/// Every process below `pid`, not itself among them.
pub fn descendants(pid: i32) -> BTreeSet<i32> {
    let parents = parents();
    let mut found = BTreeSet::new();
    let mut ask = vec![pid];
    while let Some(parent) = ask.pop() {
        for (child, _) in parents.iter().filter(|(_, above)| **above == parent) {
            if found.insert(*child) {
                ask.push(*child);
            }
        }
    }
    found
}

/// What a launcher calls its cgroups: in a PID namespace other than the machine's first with that
/// namespace's number.
fn group_of(launcher: i32) -> String {
    let namespace = fs::metadata("/proc/self/ns/pid").expect("look at the PID namespace").ino();
    let first = 0xEFFF_FFFC;
    if namespace == first {
        format!("sandglass-{launcher}")
    } else {
        format!("sandglass-{launcher}-{namespace}")
    }
}

/// Every process inside the cgroups of that launcher's runs, whoever its parent is by now, but for those
/// that wait for a run.
pub fn in_cgroups_of(launcher: i32) -> BTreeSet<i32> {
    let name = group_of(launcher);
    let inside = |pid: &i32| {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        text.lines().any(|line| line.split('/').any(|part| part == name))
    };
    let mut found: BTreeSet<i32> = pids().into_iter().filter(inside).collect();
    // Asked afterwards: one that has come meanwhile must not be taken for a run.
    let prepared = prepared(launcher);
    found.retain(|pid| !prepared.contains(pid));
    found
}

/// Everything that lives because of a daemon's runs and for good: below it, below its launcher, or in a
/// cgroup of its runs; but for sandboxes that wait for a run, which come and go.
pub fn processes_of(server: i32, launcher: i32) -> BTreeSet<i32> {
    let mut all = descendants(server);
    all.extend(descendants(launcher));
    all.extend(in_cgroups_of(launcher));
    let prepared = prepared(launcher);
    all.retain(|pid| !prepared.contains(pid));
    all
}

/// The cgroup directories that a launcher has made, in every hierarchy, but for those of sandboxes that
/// wait for a run.
pub fn cgroups_of(launcher: i32) -> BTreeSet<PathBuf> {
    let name = group_of(launcher);
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut found = BTreeSet::new();
    for line in mounts.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        if let (true, Some(point)) = (right.starts_with("cgroup"), left.split(' ').nth(4)) {
            let mut all = Vec::new();
            folders_below(Path::new(point), &mut all);
            found.extend(all.into_iter().filter(|path| path.iter().any(|part| *part == *name)));
        }
    }
    found.retain(|path| !is_prepared_group(path, launcher));
    found
}

/// Whether nobody is in there but a sandbox that waits for a run.
fn is_prepared_group(path: &Path, launcher: i32) -> bool {
    let members = fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default();
    let members: Vec<i32> = members.lines().filter_map(|line| line.parse().ok()).collect();
    let prepared = prepared(launcher);
    !members.is_empty() && members.iter().all(|pid| prepared.contains(pid))
}

/// The command line of a process, for people.
pub fn command_line(pid: i32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace('\0', " ").trim_end().to_owned()
}

/// What the ended children of a process, and theirs, have used of processors.
pub fn cpu_of_ended_children(pid: i32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let behind_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks = |field: usize| behind_name.split_whitespace().nth(field - 3)?.parse::<u64>().ok();
    // A tick is what `getconf CLK_TCK` says, which is 100 on every Linux of ours.
    Duration::from_millis(10 * (ticks(16).unwrap_or(0) + ticks(17).unwrap_or(0)))
}

/// How much memory a process holds.
pub fn memory_bytes(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the status of a process");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
    let kib = line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).expect("a number");
    kib * 1024
}

/// The user ids of a process: real, effective, saved, file system.
pub fn uids(pid: i32) -> Vec<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
    line.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

/// What each open descriptor of a process refers to, numbered.
pub fn descriptors(pid: i32) -> BTreeSet<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let target = |entry: fs::DirEntry| {
        let target = fs::read_link(entry.path()).unwrap_or_default();
        format!("{} {}", entry.file_name().display(), target.display())
    };
    entries.map(target).collect()
}

/// What the kernel has complained of since it started, as far as its log still has it: not that a program
/// was ended, but that something is wrong with the kernel itself.
pub fn kernel_complaints() -> BTreeSet<String> {
    let log = fs::OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open("/dev/kmsg");
    let Ok(mut log) = log else { return BTreeSet::new() };
    let (mut found, mut record) = (BTreeSet::new(), [0; 8192]);
    loop {
        match log.read(&mut record) {
            Ok(length) => {
                let text = String::from_utf8_lossy(&record[..length]).into_owned();
                if COMPLAINTS.iter().any(|word| text.contains(word)) {
                    found.insert(text.trim_end().to_owned());
                }
            }
            // Older records were overwritten while it was read: it goes on with the oldest that is left.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
            Err(_) => return found,
        }
    }
}

/// How such complaints begin.
const COMPLAINTS: &[&str] = &[
    "BUG:",
    "WARNING:",
    "Oops",
    "general protection fault, probably",
    "blocked for more than",
    "self-detected stall",
    "detected stalls",
    "soft lockup",
    "refcount_t",
    "KASAN",
    "unregister_netdevice: waiting",
];

fn pids() -> Vec<i32> {
    let entries = fs::read_dir("/proc").expect("list /proc").flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

fn parents() -> BTreeMap<i32, i32> {
    let parent = |pid: i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name may hold anything, brackets and spaces too.
        let fields = stat.rsplit_once(')')?.1;
        fields.split_whitespace().nth(1)?.parse().ok()
    };
    pids().into_iter().filter_map(|pid| Some((pid, parent(pid)?))).collect()
}

fn namespaces(pid: i32) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/ns")).into_iter().flatten().flatten();
    entries.filter_map(|entry| Some(fs::read_link(entry.path()).ok()?.display().to_string())).collect()
}

fn lines(path: &str) -> BTreeSet<String> {
    fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}

fn folders_below(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.push(entry.path());
            folders_below(&entry.path(), found);
        }
    }
}

/// What stands in the layer store and is neither a layer nor the store's own furniture.
fn unfinished_layers(data_dir: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for folder in ["layers/tmp", "layers/trash"] {
        for entry in fs::read_dir(data_dir.join(folder)).into_iter().flatten().flatten() {
            found.insert(entry.path().display().to_string());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_seen_while_it_lives() {
        let this = std::process::id() as i32;
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id() as i32;
        assert!(children(this).contains(&pid) && descendants(this).contains(&pid));
        assert_eq!(uids(pid).len(), 4);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!children(this).contains(&pid));
    }
}
