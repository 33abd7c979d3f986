//! One process at one moment, as the host sees it: what it may do, and what it holds.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use crate::host;

/// What makes a process harmless, if it does. `None` from [`Glimpse::of`] means that it is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Glimpse {
    /// Real, effective, saved, and for files.
    pub users: Vec<u32>,
    /// All that it has or could take up: permitted, effective, inheritable and ambient together.
    pub capabilities: u64,
    pub no_new_privileges: bool,
    /// Whether a filter stands before its system calls.
    pub filtered: bool,
    /// The most bytes of address space, if there is a bound.
    pub address_space: Option<u64>,
    /// The most seconds of a processor, if there is a bound.
    pub cpu_seconds: Option<u64>,
    /// What it has open beyond the standard three, without the numbers.
    pub open: Vec<String>,
    /// What lies in its root.
    pub root: BTreeSet<String>,
}

impl Glimpse {
    pub fn of(pid: i32) -> Option<Self> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let field = |name: &str| {
            status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap_or("").trim()
        };
        let mask = |name: &str| u64::from_str_radix(field(name), 16).unwrap_or(u64::MAX);
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
        let limit = |name: &str| {
            let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse().ok()
        };
        let seen = Self {
            users: host::uids(pid),
            capabilities: ["CapPrm", "CapEff", "CapInh", "CapAmb"]
                .into_iter()
                .map(mask)
                .fold(0, |a, b| a | b),
            no_new_privileges: field("NoNewPrivs") == "1",
            filtered: field("Seccomp") == "2",
            address_space: limit("Max address space"),
            cpu_seconds: limit("Max cpu time"),
            open: open(pid),
            root: fs::read_dir(root_of(pid))
                .ok()?
                .flatten()
                .map(|e| e.file_name().display().to_string())
                .collect(),
        };
        // A process that has ended shows little, and must not be taken for one that has little.
        (!field("State").starts_with('Z')).then_some(seen)
    }
}

/// Where the host finds a process's root.
pub fn root_of(pid: i32) -> PathBuf {
    format!("/proc/{pid}/root/").into()
}

/// The number of a process's namespace of that kind.
pub fn namespace(pid: i32, kind: &str) -> Option<u64> {
    fs::metadata(format!("/proc/{pid}/ns/{kind}")).ok().map(|found| found.ino())
}

fn open(pid: i32) -> Vec<String> {
    let described = host::descriptors(pid);
    let split = described.iter().filter_map(|line| line.split_once(' '));
    split
        .filter(|(number, _)| number.parse().is_ok_and(|number: u32| number > 2))
        .map(|(_, target)| target.to_owned())
        .collect()
}
