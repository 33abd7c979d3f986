//! The keeper of one run: a child of the launcher that builds the outer half of the sandbox, clones
//! its init into it, watches until everything is dead, reports, and removes what it made.
//!
//! It is the only one that decides why a run was killed. Whatever happens to the server, the control
//! socket closes, and that ends the run.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::eventfd::EventFd;
use nix::sys::stat::{SFlag, fstat};
use nix::unistd::{Gid, Pid, Uid, fchown, setresuid};
use run::{Exit, KilledFor, LimitHit, SetupFailure, Usage};

use crate::cgroup::{Cgroups, RunGroup};
use crate::host::{self, HostImage};
use crate::init::{self, Finish, OldRoot, Report};
use crate::protocol::{Event, Finished, LaunchSpec, Rootfs};
use crate::rootfs::{self, LayerMode, Mounts, Scratch};
use crate::step::{At, Failure};
use crate::watch::{self, Ending, Sources};
use crate::{after, dir, packet, store, sys};

/// What every keeper inherits from the launcher.
#[derive(Debug)]
pub(crate) struct Ground {
    pub(crate) cgroups: Cgroups,
    pub(crate) layers: OwnedFd,
    pub(crate) devices: OwnedFd,
    pub(crate) host: Option<HostImage>,
    pub(crate) layer_mode: LayerMode,
    pub(crate) map_ids: bool,
    pub(crate) old_root: OldRoot,
    pub(crate) id_base: u32,
    pub(crate) id_width: u32,
    pub(crate) capabilities: u64,
}

/// One request to run, as it arrived.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) arrived: Instant,
    pub(crate) slot: u32,
    pub(crate) control: OwnedFd,
    pub(crate) spec: OwnedFd,
    pub(crate) stdio: [OwnedFd; 3],
    pub(crate) files: Vec<OwnedFd>,
}

/// A cloned init that waits to be told what to build.
struct Init {
    pid: Pid,
    pidfd: OwnedFd,
    sync: OwnedFd,
}

/// What the keeper keeps of the run's file systems until it cleans up.
struct Left {
    scratch: OwnedFd,
    /// Only where somebody wants files from it.
    root: Option<OwnedFd>,
}

/// How long what was made may take to go away before it is reported as left behind.
const TEARDOWN_PATIENCE: Duration = Duration::from_secs(5);

/// Runs one job to its end; the returned code tells the launcher whether the slot is clean.
pub(crate) fn main(ground: &Ground, job: Job) -> i32 {
    let (control, end) = Keeper::keep(ground, job);
    let event = match end.result {
        Ok(teardown_us) => Event::TornDown { teardown_us, clean: end.clean },
        Err(failure) => Event::Failed(failure.into()),
    };
    let _ = packet::send(control.as_fd(), &event, &[]);
    i32::from(!end.clean)
}

/// How a keeper's work ended.
struct End {
    /// How long cleaning up took, in microseconds, if the run came to an end of its own.
    result: Result<u64, Failure>,
    /// Whether nothing was left behind.
    clean: bool,
}

/// What the keeper holds while the run lives.
struct Keeper<'a> {
    ground: &'a Ground,
    spec: LaunchSpec,
    /// Root inside the run, seen from outside.
    owner: u32,
    group: RunGroup<'a>,
}

impl<'a> Keeper<'a> {
    /// The whole life of a run; the control socket comes back for the last word.
    fn keep(ground: &'a Ground, job: Job) -> (OwnedFd, End) {
        let Job { arrived, slot, control, spec: spec_fd, stdio, mut files } = job;
        let keeper = read_spec(&spec_fd).at("read spec").and_then(|spec| {
            let group = RunGroup::create(&ground.cgroups, &format!("r{slot}"), &spec.limits)?;
            Ok(Keeper { ground, spec, owner: ground.id_base + slot * ground.id_width, group })
        });
        let keeper = match keeper {
            Ok(keeper) => keeper,
            Err(failure) => return (control, End { result: Err(failure), clean: true }),
        };
        let outputs = keeper.spec.outputs.as_ref().and_then(|_| files.pop());
        let oom = if keeper.spec.stands("oom_kill_all") { keeper.group.oom_event() } else { None };
        let started =
            keeper.clone_init().and_then(|init| match keeper.build(&init, &spec_fd, &stdio, &files) {
                Ok(left) => Ok((init, left)),
                Err(failure) => {
                    keeper.end(&init);
                    Err(failure)
                }
            });
        // From here on only the run itself holds its outputs, so their end is the run's end.
        drop((spec_fd, stdio, files));
        let (init, left) = match started {
            Ok(started) => started,
            Err(failure) => {
                // A limit so small that even building broke it is still the run's limit.
                let oom_kills = keeper.group.oom_kills();
                let clean = keeper.group.remove(TEARDOWN_PATIENCE);
                if oom_kills == 0 {
                    return (control, End { result: Err(failure), clean });
                }
                let finished = Finished { oom_kills, ..Finished::never_started() };
                let _ = packet::send(control.as_fd(), &Event::Finished(Box::new(finished)), &[]);
                return (control, End { result: Ok(0), clean });
            }
        };
        let result = keeper.watch(&init, &control, oom.as_ref(), arrived, &left.scratch);
        if let Ok(finished) = &result {
            let _ = packet::send(control.as_fd(), &Event::Finished(Box::new(finished.clone())), &[]);
            keeper.attend(finished, &left, outputs, &control);
        }
        let torn = Instant::now();
        drop(left);
        let clean = keeper.group.remove(TEARDOWN_PATIENCE);
        let teardown_us = torn.elapsed().as_micros() as u64;
        (control, End { result: result.map(|_| teardown_us), clean })
    }

    /// What is wanted of the files of a run in which nothing lives any more.
    fn attend(&self, finished: &Finished, left: &Left, outputs: Option<OwnedFd>, control: &OwnedFd) {
        let ids = after::Ids { owner: self.owner, width: self.ground.id_width };
        if let (Some(wanted), Some(pipe), Some(root)) = (&self.spec.outputs, outputs, &left.root) {
            // What is missing at the other end of the pipe says as much as an error would.
            let _ = after::collect(&self.spec, wanted, ids, root, pipe, control);
        }
        if let Some(freeze) = &self.spec.freeze {
            let event = after::freeze(self.ground, finished, freeze, ids, &left.scratch, control);
            let _ = packet::send(control.as_fd(), &event, &[]);
        }
    }

    /// Until the run has ended or has to; when this returns, nothing of it is alive.
    fn watch(
        &self,
        init: &Init,
        control: &OwnedFd,
        oom: Option<&EventFd>,
        arrived: Instant,
        scratch: &OwnedFd,
    ) -> Result<Finished, Failure> {
        let sources = Sources { init: &init.pidfd, sync: &init.sync, control, oom };
        let watched = watch::watch(&sources, &self.group, &self.spec.limits, || {
            let setup_us = arrived.elapsed().as_micros() as u64;
            packet::send(control.as_fd(), &Event::Started { setup_us }, &[])
        });
        self.end(init);
        finish(watched.at("watch the run")?, &self.group, scratch).map_err(|failure| {
            Failure::new("inside the sandbox", format!("{}: {}", failure.step, failure.error))
        })
    }

    fn clone_init(&self) -> Result<Init, Failure> {
        let (ours, theirs) = packet::pair().at("make sync socket")?;
        let wanted = NAMESPACES.iter().filter(|(name, _)| self.spec.stands(name));
        let namespaces = wanted.fold(0, |flags, (_, flag)| flags | flag);
        let apart = namespaces & libc::CLONE_NEWUSER != 0 && self.spec.stands("quotas");
        if apart {
            self.act_as_owner().at("act as the run's owner")?;
        }
        let cloned = match sys::clone3(namespaces as u64, self.group.clone_target()) {
            Ok(None) => {
                drop(ours);
                init::main(&theirs)
            }
            Ok(Some(init)) => Ok(init),
            Err(errno) => Err(errno),
        };
        if apart {
            set_effective_user(0).at("act as root again")?;
        }
        let (pid, pidfd) = cloned.at("clone init")?;
        Ok(Init { pid, pidfd, sync: ours })
    }

    /// What the kernel counts for each user (inotify instances, bytes of message queues, pending signals,
    /// locked memory) it counts for the one who made the user namespace as well. Made by root, the
    /// namespaces of all runs would share what root has, and one run could take it all from every other
    /// and from the host. So the maker is the run's own root, with the rights that root has here.
    fn act_as_owner(&self) -> nix::Result<()> {
        set_effective_user(self.owner)?;
        sys::set_capabilities(self.ground.capabilities)
    }

    /// Everything between clone and the moment in which init goes on by itself.
    fn build(
        &self,
        init: &Init,
        spec: &OwnedFd,
        stdio: &[OwnedFd; 3],
        files: &[OwnedFd],
    ) -> Result<Left, Failure> {
        let (owner, width) = (self.owner, self.ground.id_width);
        self.group.attach(init.pid).at("attach init to cgroups")?;
        let process = dir::open_dir(format!("/proc/{}", init.pid).as_ref()).at("open init's proc")?;
        // When memory runs out the run's processes go before anybody else's.
        dir::write(&process, "oom_score_adj", "1000").at("set oom score")?;
        if self.spec.stands("user_namespace") {
            let map = format!("0 {owner} {width}");
            dir::write(&process, "uid_map", &map).at("map users")?;
            dir::write(&process, "gid_map", &map).at("map groups")?;
        }
        let userns = init::receive_user_namespace(init.sync.as_fd()).at("get user namespace")?;
        for output in stdio[1..].iter().filter(|output| is_pipe(output)) {
            fchown(output, Some(Uid::from_raw(owner)), Some(Gid::from_raw(owner))).at("hand outputs over")?;
        }
        let mounts = self.mount(userns.as_fd())?;
        let mut fds = vec![spec.as_fd(), mounts.root.as_fd(), mounts.dev.as_fd(), mounts.shm.as_fd()];
        fds.extend(stdio.iter().map(AsFd::as_fd));
        fds.extend(mounts.extra.iter().map(|(_, tree)| tree.as_fd()));
        fds.extend(files.iter().map(AsFd::as_fd));
        #[cfg(feature = "removable-walls")]
        let outside = dir::open_dir("/".as_ref()).at("open a directory to leak")?;
        #[cfg(feature = "removable-walls")]
        if !self.spec.stands("no_leak") {
            fds.push(outside.as_fd());
        }
        let extra = mounts.extra.iter().map(|(name, _)| name.clone()).collect();
        packet::send(init.sync.as_fd(), &Finish { extra, id_width: width }, &fds)
            .at("tell init what to build")?;
        Ok(Left { root: self.spec.outputs.is_some().then_some(mounts.root), scratch: mounts.scratch })
    }

    /// What is cloned from the launcher's mounts comes first: a keeper that has to attach mounts leaves
    /// the launcher's mount namespace for one of its own, from which those can't be cloned any more.
    fn mount(&self, userns: BorrowedFd<'_>) -> Result<Mounts, Failure> {
        let ground = self.ground;
        let scratch = Scratch::create(&self.spec.limits, self.owner)?;
        let mapped = (ground.map_ids && self.spec.stands("user_namespace")).then_some(userns);
        let dev = rootfs::devices(ground.devices.as_fd())?;
        let mut lowers = Vec::new();
        let mut layers = match (&self.spec.rootfs, &ground.host) {
            // An overlay wants something below, also for an image that has nothing.
            (Rootfs::Layers(names), _) if names.is_empty() => {
                vec![rootfs::tmpfs(4096, 2, sys::MOUNT_ATTR_RDONLY).at("mount empty layer")?]
            }
            (Rootfs::Layers(names), _) => {
                let views = store::views(&ground.layers, names, mapped)?;
                if mapped.is_none() {
                    host::own_folders(&views, &scratch, self.owner).at("make directories of its own")?;
                }
                views
            }
            (Rootfs::Host, None) => {
                return Err(Failure::new("open host image", "the image \"host\" is not offered here"));
            }
            (Rootfs::Host, Some(host)) => {
                for (name, dir) in &host.dirs {
                    let dir = rootfs::view(dir.as_fd(), None).at("clone host directory")?;
                    let empty = rootfs::view(host.empty.as_fd(), None).at("clone empty directory")?;
                    lowers.push((name.clone(), [dir, empty]));
                }
                vec![host.skeleton(mapped, &scratch, self.owner)?]
            }
        };
        if let Some(frozen) = &self.spec.over {
            layers.splice(0..0, store::views(&ground.layers, std::slice::from_ref(frozen), mapped)?);
        }
        if ground.layer_mode == LayerMode::Attached {
            enter_own_mounts()?;
        }
        let mut extra = Vec::new();
        for (name, lowers) in lowers {
            extra.push((name, rootfs::overlay(ground.layer_mode, &lowers, None)?));
        }
        let root = rootfs::overlay(ground.layer_mode, &layers, Some(&scratch))?;
        #[cfg(feature = "removable-walls")]
        if !self.spec.stands("nosuid") {
            sys::mount_clear(root.as_fd(), sys::MOUNT_ATTR_NOSUID).at("allow setuid")?;
        }
        let shm = scratch.shm()?;
        Ok(Mounts { root, dev, shm, extra, scratch: scratch.mount })
    }

    /// Kills everything and waits until it is dead. PID 1's death ends its namespace, and it is reaped
    /// only after everything in it is gone.
    fn end(&self, init: &Init) {
        if self.spec.stands("cgroup_kill") {
            self.group.kill();
        }
        let _ = sys::pidfd_kill(init.pidfd.as_fd());
        while let Err(nix::errno::Errno::EINTR) = sys::wait(Some(init.pid), true) {}
    }
}

/// Only the server's pipes change hands, never a file that somebody redirects a run to by hand.
pub(crate) fn is_pipe(fd: &OwnedFd) -> bool {
    fstat(fd).is_ok_and(|stat| SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFIFO)
}

/// The spec from its sealed file, in one read: the offset belongs to nobody.
pub(crate) fn read_spec(fd: &OwnedFd) -> io::Result<LaunchSpec> {
    let len = fstat(fd)?.st_size as usize;
    let mut bytes = vec![0; len];
    let read = nix::sys::uio::pread(fd, &mut bytes, 0)?;
    #[cfg_attr(not(feature = "removable-walls"), expect(unused_mut, reason = "only a test build changes it"))]
    let mut spec: LaunchSpec = serde_json::from_slice(&bytes[..read])?;
    #[cfg(feature = "removable-walls")]
    spec.take_limits_down();
    if spec.argv.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "argv is empty"));
    }
    Ok(spec)
}

/// What a run has to itself. The cgroup namespace comes later, from inside the cgroup.
const NAMESPACES: [(&str, i32); 6] = [
    ("user_namespace", libc::CLONE_NEWUSER),
    ("mount_namespace", libc::CLONE_NEWNS),
    ("pid_namespace", libc::CLONE_NEWPID),
    ("network_namespace", libc::CLONE_NEWNET),
    ("ipc_namespace", libc::CLONE_NEWIPC),
    ("uts_namespace", libc::CLONE_NEWUTS),
];

/// Leaves the real and the saved user as they are: the way back, on which effective capabilities come
/// back by themselves.
fn set_effective_user(uid: u32) -> nix::Result<()> {
    let same = Uid::from_raw(u32::MAX);
    setresuid(same, Uid::from_raw(uid), same)
}

/// Only where layers have to be attached: nothing of it may be seen by the launcher or other keepers.
fn enter_own_mounts() -> Result<(), Failure> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).at("new mount namespace for the keeper")?;
    let private = nix::mount::MsFlags::MS_REC | nix::mount::MsFlags::MS_PRIVATE;
    nix::mount::mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
        .at("make the keeper's mounts private")
}

fn finish(ending: Ending, group: &RunGroup<'_>, scratch: &OwnedFd) -> Result<Finished, SetupFailure> {
    let account = group.account().since(&ending.before);
    let exit = match ending.report {
        Some(Report::Failed(failure)) if ending.killed_for.is_none() && account.oom_kills == 0 => {
            return Err(failure);
        }
        Some(Report::Ended(exit)) => exit,
        Some(Report::Failed(_) | Report::Started) | None => Exit::Unknown,
    };
    let now = Instant::now();
    let wall = ending.started.map_or(Duration::ZERO, |started| now - started);
    let ms = |us: u64| us as f64 / 1000.0;
    let mut limit_hits = full(scratch);
    if account.pids_hit {
        limit_hits.insert(0, LimitHit::Processes);
    }
    if exit == Exit::Signal(libc::SIGXFSZ) {
        limit_hits.push(LimitHit::FileSize);
    }
    let over = |limit_at: Instant| now.saturating_duration_since(limit_at).as_micros() as u64;
    let overshoot_us = match ending.killed_for {
        Some(KilledFor::WallTime) => ending.wall_deadline.map(over),
        Some(KilledFor::CpuTime) => Some(account.cpu_us.saturating_sub(ending.cpu_limit_us)),
        _ => None,
    };
    Ok(Finished {
        exit,
        killed_for: ending.killed_for,
        oom_kills: account.oom_kills,
        usage: Usage {
            wall_time_ms: ms(wall.as_micros() as u64),
            cpu_time_ms: ms(account.cpu_us),
            user_time_ms: ms(account.user_us),
            system_time_ms: ms(account.system_us),
            memory_peak_bytes: account.memory_peak,
            processes_peak: account.pids_peak,
        },
        limit_hits,
        overshoot_us,
    })
}

/// Whether the run's files ended at one of their caps.
fn full(scratch: &OwnedFd) -> Vec<LimitHit> {
    let Ok(stat) = nix::sys::statfs::fstatfs(scratch) else { return Vec::new() };
    let mut hits = Vec::new();
    if stat.blocks_free() == 0 {
        hits.push(LimitHit::Disk);
    }
    if stat.files_free() == 0 {
        hits.push(LimitHit::Inodes);
    }
    hits
}
