//! One run's cgroup: made with its limits before any process joins, read and removed after the last
//! one has left.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::stat::{Mode, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};
use run::Limits;

use super::meter::{Account, Meter};
use super::{Cgroups, Home};
use crate::dir;
use crate::step::{At, Failure};

/// The directories of one run. A controller of version 2 shares the unified one.
#[derive(Debug)]
pub(crate) struct RunGroup<'a> {
    parents: &'a Cgroups,
    name: String,
    unified: Option<OwnedFd>,
    memory: Option<Home>,
    pids: Option<Home>,
    cpu: Option<Home>,
    cpuacct: Option<Home>,
    meter: Meter,
    removed: bool,
}

impl<'a> RunGroup<'a> {
    pub(crate) fn create(parents: &'a Cgroups, name: &str, limits: &Limits) -> Result<Self, Failure> {
        let mut group = RunGroup {
            parents,
            name: name.into(),
            unified: None,
            memory: None,
            pids: None,
            cpu: None,
            cpuacct: None,
            meter: Meter::default(),
            removed: false,
        };
        // An error from here on drops `group`, which removes what was made.
        group.unified =
            parents.unified.as_ref().map(|parent| make(parent, name)).transpose().at("make cgroup")?;
        group.memory = group.home(&parents.memory).at("make memory cgroup")?;
        group.pids = group.home(&parents.pids).at("make pids cgroup")?;
        group.cpu = group.home(&parents.cpu).at("make cpu cgroup")?;
        group.cpuacct = group.home(&parents.cpuacct).at("make cpuacct cgroup")?;
        group.limit(limits).at("set cgroup limits")?;
        group.meter = Meter::open(group.unified.as_ref(), &group.memory, &group.pids, &group.cpuacct);
        Ok(group)
    }

    fn home(&self, parent: &Option<Home>) -> io::Result<Option<Home>> {
        let Some(parent) = parent else { return Ok(None) };
        let dir = match (&self.unified, parent.v2) {
            (Some(unified), true) => unified.try_clone()?,
            _ => make(&parent.dir, &self.name)?,
        };
        Ok(Some(Home { dir, v2: parent.v2 }))
    }

    fn limit(&self, limits: &Limits) -> io::Result<()> {
        match &self.memory {
            Some(Home { dir, v2: true }) => limit_memory_v2(dir, limits.memory_bytes)?,
            Some(Home { dir, v2: false }) => limit_memory_v1(dir, limits.memory_bytes)?,
            None => {}
        }
        self.limit_processes(limits)?;
        if let Some(cpu) = &self.cpu
            && limits.cpus < online_cpus() as f64
        {
            limit_cpu(cpu, limits.cpus)?;
        }
        Ok(())
    }

    /// Sets what is different from the limits that were set when it was made.
    pub(crate) fn change(&self, was: &Limits, limits: &Limits) -> io::Result<()> {
        if let Some(memory) = &self.memory
            && was.memory_bytes != limits.memory_bytes
        {
            let raised = limits.memory_bytes > was.memory_bytes;
            match memory {
                Home { dir, v2: true } => dir::write(dir, "memory.max", &limits.memory_bytes.to_string())?,
                Home { dir, v2: false } => change_memory_v1(dir, limits.memory_bytes, raised)?,
            }
        }
        if was.processes != limits.processes {
            self.limit_processes(limits)?;
        }
        if let Some(cpu) = &self.cpu
            && was.cpus != limits.cpus
        {
            limit_cpu(cpu, limits.cpus)?;
        }
        Ok(())
    }

    fn limit_processes(&self, limits: &Limits) -> io::Result<()> {
        let Some(pids) = &self.pids else { return Ok(()) };
        // Our init is in there too.
        dir::write(&pids.dir, "pids.max", &limits.processes.saturating_add(1).to_string())
    }

    /// The directory that a child can be cloned into; only version 2 can.
    pub(crate) fn clone_target(&self) -> Option<BorrowedFd<'_>> {
        self.unified.as_ref().map(AsFd::as_fd)
    }

    /// The doors of the hierarchies that a process can't be cloned into, for [`join`].
    pub(crate) fn tasks(&self) -> io::Result<Vec<OwnedFd>> {
        let homes = [&self.memory, &self.pids, &self.cpu, &self.cpuacct];
        let doors = homes.into_iter().flatten().filter(|home| !home.v2);
        let flags = nix::fcntl::OFlag::O_WRONLY | nix::fcntl::OFlag::O_CLOEXEC;
        doors.map(|home| Ok(nix::fcntl::openat(&home.dir, "tasks", flags, Mode::empty())?)).collect()
    }

    /// Kills every process in the cgroup at once, where the kernel can.
    pub(crate) fn kill(&self) {
        if let Some(unified) = &self.unified {
            let _ = dir::write(unified, "cgroup.kill", "1");
        }
    }

    /// Readable when version 1's OOM killer struck: it ends one process and leaves its siblings.
    /// Version 2 ends all of them itself.
    pub(crate) fn oom_event(&self) -> Option<EventFd> {
        let Some(Home { dir, v2: false }) = &self.memory else { return None };
        let event = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).ok()?;
        let control =
            nix::fcntl::openat(dir, "memory.oom_control", nix::fcntl::OFlag::O_CLOEXEC, Mode::empty())
                .ok()?;
        let line = format!("{} {}", event.as_fd().as_raw_fd(), control.as_raw_fd());
        dir::write(dir, "cgroup.event_control", &line).ok()?;
        Some(event)
    }

    pub(crate) fn oom_kills(&self) -> u64 {
        self.meter.oom_kills()
    }

    /// Processor time used so far, in microseconds.
    pub(crate) fn cpu_us(&self) -> u64 {
        self.meter.cpu().cpu_us
    }

    /// Processor time used so far, and nothing else.
    pub(crate) fn cpu(&self) -> Account {
        self.meter.cpu()
    }

    pub(crate) fn account(&self) -> Account {
        self.meter.account()
    }

    /// Removes the directories; `false` when the kernel still held one after `patience`.
    pub(crate) fn remove(mut self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        self.removed = true;
        self.remove_until(deadline)
    }

    fn remove_until(&mut self, deadline: Instant) -> bool {
        // The kernel forgets a directory's files with it, but not those that are open: these would stay in its
        // caches, some kilobytes for each run, until memory is short.
        self.meter = Meter::default();
        let parents = self.parents;
        let v1 = [&parents.memory, &parents.pids, &parents.cpu, &parents.cpuacct];
        let dirs =
            v1.into_iter().flatten().filter(|home| !home.v2).map(|home| &home.dir).chain(&parents.unified);
        let mut clean = true;
        for dir in dirs {
            clean &= remove(dir, &self.name, deadline);
        }
        clean
    }
}

impl Drop for RunGroup<'_> {
    fn drop(&mut self) {
        if !self.removed {
            self.remove_until(Instant::now());
        }
    }
}

/// Puts this process, which has one thread, into each of them. A thread that moves itself is moved at
/// once; whoever moves another one, or a whole process, makes every fork and exit on the machine wait
/// for an RCU grace period, which is milliseconds long, and waits for it himself.
pub(crate) fn join(tasks: Vec<OwnedFd>) -> io::Result<()> {
    for door in tasks {
        nix::unistd::write(&door, b"0")?;
    }
    Ok(())
}

fn make(parent: &OwnedFd, name: &str) -> io::Result<OwnedFd> {
    mkdirat(parent, name, Mode::from_bits_truncate(0o755))?;
    dir::open_dir_beneath(parent, name, nix::fcntl::OFlag::empty())
}

fn remove(parent: &OwnedFd, name: &str, deadline: Instant) -> bool {
    let mut pause = Duration::from_micros(100);
    loop {
        match unlinkat(parent, name, UnlinkatFlags::RemoveDir) {
            Ok(()) | Err(nix::errno::Errno::ENOENT) => return true,
            Err(nix::errno::Errno::EBUSY) if Instant::now() < deadline => std::thread::sleep(pause),
            Err(_) => return false,
        }
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

fn limit_memory_v2(dir: &OwnedFd, bytes: u64) -> io::Result<()> {
    dir::write(dir, "memory.max", &bytes.to_string())?;
    optional(dir::write(dir, "memory.swap.max", "0"))?;
    optional(dir::write(dir, "memory.zswap.max", "0"))?;
    // All processes of a run end together when one of them is killed for memory.
    dir::write(dir, "memory.oom.group", "1")
}

fn limit_memory_v1(dir: &OwnedFd, bytes: u64) -> io::Result<()> {
    let bytes = bytes.to_string();
    dir::write(dir, "memory.limit_in_bytes", &bytes)?;
    // Memory and swap together may not be more than memory alone: no swap.
    optional(dir::write(dir, "memory.memsw.limit_in_bytes", &bytes))?;
    optional(dir::write(dir, "memory.swappiness", "0"))
}

/// Memory may never be more than memory and swap together: which goes first depends on the direction.
fn change_memory_v1(dir: &OwnedFd, bytes: u64, raised: bool) -> io::Result<()> {
    let bytes = bytes.to_string();
    let both = || optional(dir::write(dir, "memory.memsw.limit_in_bytes", &bytes));
    if raised {
        both()?;
    }
    dir::write(dir, "memory.limit_in_bytes", &bytes)?;
    if raised { Ok(()) } else { both() }
}

/// A host without swap accounting has no such file, and then no swap to limit either.
fn optional(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

fn limit_cpu(cpu: &Home, cpus: f64) -> io::Result<()> {
    const PERIOD_US: f64 = 100_000.0;
    if cpus >= online_cpus() as f64 {
        let (file, endless) = if cpu.v2 { ("cpu.max", "max") } else { ("cpu.cfs_quota_us", "-1") };
        return dir::write(&cpu.dir, file, endless);
    }
    // The kernel takes no quota below a millisecond; a longer period keeps the share exact.
    let period = if cpus * PERIOD_US < 1000.0 { 1_000_000.0 } else { PERIOD_US };
    let quota = (cpus * period).max(1000.0) as u64;
    if cpu.v2 {
        return dir::write(&cpu.dir, "cpu.max", &format!("{quota} {period}"));
    }
    dir::write(&cpu.dir, "cpu.cfs_period_us", &period.to_string())?;
    dir::write(&cpu.dir, "cpu.cfs_quota_us", &quota.to_string())
}

/// Looked up once, by the launcher: every keeper inherits the answer.
pub(crate) fn online_cpus() -> usize {
    static CPUS: OnceLock<usize> = OnceLock::new();
    *CPUS.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from))
}
