//! PID 1 of a run. It builds the inside of the sandbox step by step, starts the command, reaps
//! whatever is orphaned, tells the keeper how the command ended, and ends: the kernel then ends
//! everything else in the PID namespace.
//!
//! It never opens a path of the image while the host's root can be reached, holds no secret, and
//! installs no signal handler, so that nothing inside can signal it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::fcntl::OFlag;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{
    Gid, Pid, Uid, chdir, chroot, pivot_root, setgroups, sethostname, setresgid, setresuid, setsid,
};
use run::{Exit, Profile, SetupFailure};
use serde::{Deserialize, Serialize};

use crate::command;
use crate::protocol::Outline;
use crate::step::{At, Failure};
use crate::sys::{self, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID};
use crate::{cgroup, inside, packet, proc};

/// The empty directory of the launcher's root on which a run's root is put before it is pivoted into.
pub(crate) const NEW_ROOT: &str = "/newroot";

/// Where init's own descriptors begin.
const FIRST: i32 = 3;

/// Keeper → init: what to build. Descriptors: root, dev, shm, then one for each of `extra`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Build {
    pub(crate) extra: Vec<String>,
}

/// Init → keeper, before anything else.
#[derive(Debug, Serialize, Deserialize)]
enum First {
    /// With two descriptors.
    Namespaces,
    /// As [`Report::Failed`] is written, whichever of the two is expected.
    Failed(SetupFailure),
}

/// Init → keeper.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    Ended(End),
    Failed(SetupFailure),
}

/// How the command has ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct End {
    pub(crate) exit: Exit,
    /// On the clock of [`sys::monotonic`], in nanoseconds.
    pub(crate) at_ns: u64,
    /// Nothing else lives in the PID namespace, and so nothing ever will: all that is left is init's own
    /// end, which nobody has to wait for.
    pub(crate) alone: bool,
}

/// Init's ends of the two sockets, for what is said about the sandbox and for what the command is told,
/// and the cgroups that it has to join itself.
#[derive(Debug)]
pub(crate) struct Ends {
    pub(crate) sync: OwnedFd,
    pub(crate) launch: OwnedFd,
    pub(crate) tasks: Vec<OwnedFd>,
}

impl Ends {
    /// Closes all else that was inherited: the layer store, the control groups and the keeper's sockets are
    /// nothing for a process that lives beside a stranger's.
    fn alone(self) -> nix::Result<Self> {
        let all: Vec<BorrowedFd<'_>> =
            [&self.sync, &self.launch].into_iter().chain(&self.tasks).map(AsFd::as_fd).collect();
        let mut kept = sys::keep_descriptors(FIRST, &all, walls::stands("init_descriptors"))?.into_iter();
        // Their numbers are others' now, or nobody's.
        std::mem::forget(self);
        match (kept.next(), kept.next()) {
            (Some(sync), Some(launch)) => Ok(Self { sync, launch, tasks: kept.collect() }),
            _ => Err(nix::errno::Errno::EBADF),
        }
    }
}

struct Parts {
    root: OwnedFd,
    dev: OwnedFd,
    shm: OwnedFd,
    extra: Vec<(String, OwnedFd)>,
}

/// What is mounted while the host's `/proc` can still be seen: afterwards the kernel refuses.
struct Early {
    proc: OwnedFd,
    queues: Option<OwnedFd>,
}

/// Never returns: init's exit is the end of its PID namespace.
pub(crate) fn main(outline: &Outline, id_width: u32, ends: Ends) -> ! {
    // Without a word: what would tell it is what failed.
    let Ok(Ends { sync, launch, tasks }) = ends.alone() else { std::process::exit(1) };
    let joined = cgroup::join(tasks).at("join cgroups");
    if let Err(failure) = joined.and_then(|()| live(outline, id_width, sync.as_fd(), launch)) {
        let _ = packet::send(sync.as_fd(), &Report::Failed(failure.into()), &[]);
    }
    std::process::exit(0);
}

/// A closed socket means that the keeper gave up, or that nobody needs the sandbox: nothing is built then.
fn live(outline: &Outline, id_width: u32, sync: BorrowedFd<'_>, launch: OwnedFd) -> Result<(), Failure> {
    hand_out_namespaces(sync).at("hand out namespaces")?;
    if packet::receive::<()>(sync).at("wait for ids")?.is_none() {
        return Ok(());
    }
    let early = enter_namespaces(outline, id_width)?;
    let Some(parts) = receive(sync).at("receive mounts")? else { return Ok(()) };
    enter(outline, early, &parts)?;
    drop(parts);
    let mut next = Some(launch);
    while let Some(launch) = next {
        next = run(outline, id_width, sync, launch)?;
    }
    Ok(())
}

/// The life of the command, and what is left to be done afterwards: nothing but to end.
fn run(
    outline: &Outline,
    id_width: u32,
    sync: BorrowedFd<'_>,
    launch: OwnedFd,
) -> Result<Option<OwnedFd>, Failure> {
    let apart = walls::stands("init_apart");
    let ended = sys::lodger(
        if apart { CloneFlags::empty() } else { CloneFlags::CLONE_FS },
        || command::main(outline, id_width, &launch),
        |command| {
            // The keeper is to see when the command's own end closes. By number: the other still reads it here.
            sys::close_for_good(launch.as_fd());
            wait_for(command)
        },
    );
    std::mem::forget(launch);
    let end = ended.at("clone command")?;
    let alone = end.alone;
    packet::send(sync, &Report::Ended(end), &[]).at("report to keeper")?;
    Ok(if alone { wait_for_death(sync) } else { None })
}

/// With nothing else left to end, its own exit only keeps the processor from the keeper, which has the answer
/// to give. It is killed when that is out; a keeper that dies takes it along, and closes the socket.
fn wait_for_death(sync: BorrowedFd<'_>) -> Option<OwnedFd> {
    let word = packet::receive::<()>(sync);
    // Only where that wall is down there is another run, with a socket for its command.
    if cfg!(feature = "removable-walls") { word.ok()??.1.pop() } else { None }
}

/// A process that can't be inspected shows its namespaces to nobody without CAP_SYS_PTRACE, which
/// containers don't have; but it can hand them out itself.
fn hand_out_namespaces(sync: BorrowedFd<'_>) -> io::Result<()> {
    let (users, mounts) = (own_namespace("user")?, own_namespace("mnt")?);
    packet::send(sync, &First::Namespaces, &[users.as_fd(), mounts.as_fd()])
}

/// Those of users and of mounts; or why init could not even join its cgroups.
pub(crate) fn receive_namespaces(sync: BorrowedFd<'_>) -> Result<[OwnedFd; 2], Failure> {
    let step = "get namespaces";
    let (word, fds) = packet::receive::<First>(sync)
        .at(step)?
        .ok_or_else(|| Failure::new(step, "init ended before it handed them out"))?;
    match (word, fds.try_into()) {
        (First::Namespaces, Ok(both)) => Ok(both),
        (First::Failed(failure), _) => Err(Failure::new("inside the sandbox", failure.to_string())),
        (First::Namespaces, Err(_)) => Err(Failure::new(step, "a descriptor is missing")),
    }
}

pub(crate) fn own_namespace(kind: &str) -> nix::Result<OwnedFd> {
    let path = format!("/proc/self/ns/{kind}");
    nix::fcntl::open(path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
}

fn receive(sync: BorrowedFd<'_>) -> io::Result<Option<Parts>> {
    let Some((Build { extra }, fds)) = packet::receive(sync)? else { return Ok(None) };
    let mut fds = fds.into_iter();
    let mut next = || fds.next().ok_or_else(|| io::Error::other("a descriptor is missing"));
    let (root, dev, shm) = (next()?, next()?, next()?);
    let extra = extra.into_iter().map(|name| Ok((name, next()?))).collect::<io::Result<_>>()?;
    Ok(Some(Parts { root, dev, shm, extra }))
}

/// From a fresh clone to a process that is alone with itself. The order is the argument: no mount is
/// made before mounts are private, and no name of the image is looked at before the host's root is gone.
fn enter_namespaces(outline: &Outline, id_width: u32) -> Result<Early, Failure> {
    setsid().at("new session")?;
    become_root(id_width).at("become root of the user namespace")?;
    sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64, 0).at("die with the keeper")?;
    let stands = |wall| outline.stands(wall);
    if stands("dumpable") {
        sys::prctl(libc::PR_SET_DUMPABLE, 0, 0).at("forbid inspection")?;
    }
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).at("make mounts private")?;
    if stands("cgroup_namespace") {
        unshare(CloneFlags::CLONE_NEWCGROUP).at("new cgroup namespace")?;
    }
    let subset = outline.profile == Profile::Strict && stands("proc_subset");
    let proc = proc::mount(subset, stands("hidepid")).at("mount proc")?;
    let queues = message_queues().at("mount message queues")?;
    if stands("uts_namespace") {
        sethostname("sandbox").at("set host name")?;
    }
    if stands("network_namespace") {
        sys::loopback_up().at("bring loopback up")?;
    }
    Ok(Early { proc, queues })
}

/// Into the run's own root. After the first step no path leads to the host.
fn enter(outline: &Outline, early: Early, parts: &Parts) -> Result<(), Failure> {
    let Early { proc, queues } = early;
    enter_root(parts.root.as_fd(), outline.stands("pivot_root"))?;
    umask(Mode::empty());
    for (name, tree) in &parts.extra {
        attach(tree.as_fd(), name).at("attach host directory")?;
    }
    attach(proc.as_fd(), "proc").at("attach proc")?;
    attach(parts.dev.as_fd(), "dev").at("attach dev")?;
    if outline.profile == Profile::Compat {
        proc::mask(&proc, parts.dev.as_fd()).at("mask proc")?;
    }
    attach(parts.shm.as_fd(), "dev/shm").at("attach shm")?;
    if let Some(queues) = queues {
        attach(queues.as_fd(), "dev/mqueue").at("attach message queues")?;
    }
    inside::make_tmp().at("make /tmp")?;
    inside::name_localhost();
    Ok(())
}

/// The saved user is another: who wants to set limits of a process, or trace it, must be all of its three, and a
/// program that is root in here would be.
fn become_root(id_width: u32) -> nix::Result<()> {
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    let other = Uid::from_raw(if id_width > 1 && walls::stands("init_user") { 1 } else { 0 });
    setresgid(gid, gid, gid)?;
    setgroups(&[])?;
    setresuid(uid, uid, other)
}

fn enter_root(root: BorrowedFd<'_>, pivot: bool) -> Result<(), Failure> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let point = nix::fcntl::open(NEW_ROOT, flags, Mode::empty()).at("open root's mount point")?;
    sys::move_mount(root, point.as_fd()).at("attach root")?;
    chdir(NEW_ROOT).at("enter root")?;
    if pivot { replace_root().map(drop) } else { chroot(".").at("change root") }
}

/// What became of the root that was there before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OldRoot {
    Detached,
    /// It is still mounted, below the new one.
    Covered,
}

/// Makes the current directory, which must be a mount, the root of this mount namespace.
/// Docker's default seccomp profile refuses pivot_root; there the mount is moved over the old root.
pub(crate) fn replace_root() -> Result<OldRoot, Failure> {
    let old = match pivot_root(".", ".") {
        Ok(()) => {
            umount2(".", MntFlags::MNT_DETACH).at("detach old root")?;
            OldRoot::Detached
        }
        Err(nix::errno::Errno::EPERM) => {
            mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>).at("move root")?;
            chroot(".").at("enter moved root")?;
            OldRoot::Covered
        }
        Err(errno) => return Err(errno).at("pivot root"),
    };
    chdir("/").at("enter new root")?;
    Ok(old)
}

/// The POSIX message queues of this IPC namespace; kernels can be built without them.
fn message_queues() -> nix::Result<Option<OwnedFd>> {
    match sys::fsopen(c"mqueue") {
        Ok(fs) => {
            sys::fs_mount(fs.as_fd(), MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC).map(Some)
        }
        Err(nix::errno::Errno::ENODEV) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Mounts go onto descriptors, so that no link of the image can redirect them.
fn attach(tree: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    let point = match name {
        // These lie in the device template, which is ours.
        "dev/shm" | "dev/mqueue" => nix::fcntl::open(
            &Path::new("/").join(name),
            OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC,
            Mode::empty(),
        )?,
        name => inside::mount_point(name)?,
    };
    Ok(sys::move_mount(tree, point.as_fd())?)
}

/// Reaps every child until the command itself has ended.
fn wait_for(command: Pid) -> End {
    let exit = loop {
        match sys::wait(None, true) {
            Ok(Some((pid, status))) if pid == command => break exit_of(status),
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(_) => break Exit::Unknown,
        }
    };
    End { exit, at_ns: sys::monotonic().as_nanos() as u64, alone: is_alone() }
}

/// Whether there is no other process: everything here descends from init, and what has lost its parent
/// is init's child.
fn is_alone() -> bool {
    loop {
        match sys::wait(None, false) {
            // Somebody who was dead already.
            Ok(Some(_)) | Err(nix::errno::Errno::EINTR) => {}
            Ok(None) => return false,
            Err(errno) => return errno == nix::errno::Errno::ECHILD,
        }
    }
}

fn exit_of(status: i32) -> Exit {
    if libc::WIFSIGNALED(status) {
        Exit::Signal(libc::WTERMSIG(status))
    } else {
        Exit::Code(libc::WEXITSTATUS(status) as u8)
    }
}
