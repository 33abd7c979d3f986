//! What a run's cgroup counts. The files are opened ahead of need and stay open: reading one is then one
//! call, in the moments in which somebody waits for the answer.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::sys::uio::pread;

use super::Home;
use crate::dir;

/// What a cgroup knows of a run when it has ended.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Account {
    pub(crate) cpu_us: u64,
    pub(crate) user_us: u64,
    pub(crate) system_us: u64,
    pub(crate) memory_peak: Option<u64>,
    pub(crate) pids_peak: Option<u64>,
    pub(crate) pids_hit: bool,
    pub(crate) oom_kills: u64,
}

impl Account {
    /// The same with the processor time that was used before left out.
    pub(crate) fn since(self, before: &Account) -> Account {
        Account {
            cpu_us: self.cpu_us.saturating_sub(before.cpu_us),
            user_us: self.user_us.saturating_sub(before.user_us),
            system_us: self.system_us.saturating_sub(before.system_us),
            ..self
        }
    }
}

/// Longer than any of the files is.
const LONGEST: usize = 4096;

#[derive(Debug, Default)]
enum Cpu {
    /// `cpu.stat` of version 2, which needs no controller.
    Stat(OwnedFd),
    /// All, the programs' own, and the kernel's for them, in nanoseconds.
    Acct([OwnedFd; 3]),
    #[default]
    Unknown,
}

#[derive(Debug, Default)]
pub(super) struct Meter {
    cpu: Cpu,
    oom: Option<OwnedFd>,
    memory_peak: Option<OwnedFd>,
    pids_peak: Option<OwnedFd>,
    pids_events: Option<OwnedFd>,
}

impl Meter {
    /// What a kernel doesn't count is left out.
    pub(super) fn open(
        unified: Option<&OwnedFd>,
        memory: &Option<Home>,
        pids: &Option<Home>,
        cpuacct: &Option<Home>,
    ) -> Self {
        let open = |home: &Option<Home>, v2: &str, v1: &str| {
            home.as_ref().and_then(|home| open(&home.dir, if home.v2 { v2 } else { v1 }))
        };
        let cpu = match (unified.and_then(|unified| self::open(unified, "cpu.stat")), cpuacct) {
            (Some(stat), _) => Cpu::Stat(stat),
            (None, Some(home)) => {
                let files = ["cpuacct.usage", "cpuacct.usage_user", "cpuacct.usage_sys"];
                let files: Option<Vec<_>> = files.iter().map(|name| self::open(&home.dir, name)).collect();
                files.and_then(|files| files.try_into().ok()).map_or(Cpu::Unknown, Cpu::Acct)
            }
            (None, None) => Cpu::Unknown,
        };
        Self {
            cpu,
            oom: open(memory, "memory.events", "memory.oom_control"),
            memory_peak: open(memory, "memory.peak", "memory.max_usage_in_bytes"),
            pids_peak: open(pids, "pids.peak", "pids.peak"),
            pids_events: open(pids, "pids.events", "pids.events"),
        }
    }

    pub(super) fn oom_kills(&self) -> u64 {
        key(self.oom.as_ref(), "oom_kill").unwrap_or(0)
    }

    /// Processor time, and nothing else.
    pub(super) fn cpu(&self) -> Account {
        let [cpu_us, user_us, system_us] = match &self.cpu {
            Cpu::Stat(stat) => {
                let text = read(stat).unwrap_or_default();
                ["usage_usec", "user_usec", "system_usec"].map(|key| dir::find_key(&text, key).unwrap_or(0))
            }
            Cpu::Acct(files) => files.each_ref().map(|file| number(Some(file)).unwrap_or(0) / 1000),
            Cpu::Unknown => [0; 3],
        };
        Account { cpu_us, user_us, system_us, ..Account::default() }
    }

    pub(super) fn account(&self) -> Account {
        Account {
            oom_kills: self.oom_kills(),
            memory_peak: number(self.memory_peak.as_ref()),
            pids_peak: number(self.pids_peak.as_ref()).map(|peak| peak.saturating_sub(1)),
            pids_hit: key(self.pids_events.as_ref(), "max").unwrap_or(0) > 0,
            ..self.cpu()
        }
    }
}

fn open(dir: &OwnedFd, name: &str) -> Option<OwnedFd> {
    openat(dir, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).ok()
}

/// From the beginning, which the kernel writes anew for each reader that begins there.
fn read(file: impl AsFd) -> io::Result<String> {
    let mut bytes = [0; LONGEST];
    let read = pread(file, &mut bytes, 0)?;
    Ok(String::from_utf8_lossy(&bytes[..read]).into_owned())
}

fn number(file: Option<&OwnedFd>) -> Option<u64> {
    read(file?).ok()?.trim().parse().ok()
}

fn key(file: Option<&OwnedFd>, key: &str) -> Option<u64> {
    dir::find_key(&read(file?).ok()?, key)
}
