//! PID 1 of a run. It builds the inside of the sandbox step by step, starts the command, reaps
//! whatever is orphaned, tells the keeper how the command ended, and exits: the kernel then ends
//! everything else in the PID namespace.
//!
//! It never opens a path of the image while the host's root can be reached, holds no secret, and
//! installs no signal handler, so that nothing inside can signal it.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::fcntl::OFlag;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{
    Gid, Pid, Uid, chdir, chroot, fchown, pivot_root, setgroups, sethostname, setresgid, setresuid, setsid,
};
use run::{Exit, Profile, SetupFailure};
use serde::{Deserialize, Serialize};

use crate::command::{self, Program, Said};
use crate::keeper::{is_pipe, read_spec};
use crate::protocol::LaunchSpec;
use crate::step::{At, Failure};
use crate::sys::{self, Fork, MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID};
use crate::{inside, packet, proc};

/// The empty directory of the launcher's root on which a run's root is put before it is pivoted into.
pub(crate) const NEW_ROOT: &str = "/newroot";

/// Keeper → init: what to build. Descriptors: spec, root, dev, shm, stdin, stdout, stderr, then one
/// for each of `extra`, then the files' contents.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Finish {
    pub(crate) extra: Vec<String>,
    pub(crate) id_width: u32,
}

/// Init → keeper.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    Started,
    Ended(Exit),
    Failed(SetupFailure),
}

struct Parts {
    spec: LaunchSpec,
    finish: Finish,
    root: OwnedFd,
    dev: OwnedFd,
    shm: OwnedFd,
    stdio: [OwnedFd; 3],
    extra: Vec<OwnedFd>,
    files: Vec<OwnedFd>,
}

/// Never returns: init's exit is the end of its PID namespace.
pub(crate) fn main(sync: &OwnedFd) -> ! {
    if let Err(failure) = live(sync.as_fd()) {
        let _ = packet::send(sync.as_fd(), &Report::Failed(failure.into()), &[]);
    }
    std::process::exit(0);
}

fn live(sync: BorrowedFd<'_>) -> Result<(), Failure> {
    send_user_namespace(sync).at("hand out user namespace")?;
    // A closed socket here means that the keeper gave up: there is nothing to build.
    let Some(parts) = receive(sync).at("receive spec")? else { return Ok(()) };
    enter(&parts)?;
    let report = match prepare(&parts) {
        Ok(program) => return start(sync, &program),
        Err(reason) => Report::Ended(Exit::NotStarted { reason }),
    };
    packet::send(sync, &report, &[]).at("report to keeper")
}

/// A process that can't be inspected shows its namespaces to nobody without CAP_SYS_PTRACE, which
/// containers don't have; but it can hand them out itself.
pub(crate) fn send_user_namespace(sync: BorrowedFd<'_>) -> io::Result<()> {
    let own = nix::fcntl::open("/proc/self/ns/user", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    packet::send(sync, &(), &[own.as_fd()])
}

pub(crate) fn receive_user_namespace(sync: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let sent = packet::receive::<()>(sync)?.and_then(|(_, fds)| fds.into_iter().next());
    sent.ok_or_else(|| io::Error::other("the process ended before it handed it out"))
}

fn receive(sync: BorrowedFd<'_>) -> io::Result<Option<Parts>> {
    let Some((finish, fds)) = packet::receive::<Finish>(sync)? else { return Ok(None) };
    let mut fds = fds.into_iter();
    let mut next = || fds.next().ok_or_else(|| io::Error::other("a descriptor is missing"));
    let spec = read_spec(&next()?)?;
    let (root, dev, shm) = (next()?, next()?, next()?);
    let stdio = [next()?, next()?, next()?];
    let extra = finish.extra.iter().map(|_| next()).collect::<io::Result<_>>()?;
    Ok(Some(Parts { spec, finish, root, dev, shm, stdio, extra, files: fds.collect() }))
}

/// From a fresh clone to the inside of the sandbox. The order is the argument: no mount is made
/// before mounts are private, and no name of the image is looked at before the host's root is gone.
fn enter(parts: &Parts) -> Result<(), Failure> {
    setsid().at("new session")?;
    become_root().at("become root of the user namespace")?;
    sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64, 0).at("die with the keeper")?;
    let stands = |wall| parts.spec.stands(wall);
    if stands("dumpable") {
        sys::prctl(libc::PR_SET_DUMPABLE, 0, 0).at("forbid inspection")?;
    }
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).at("make mounts private")?;
    if stands("cgroup_namespace") {
        unshare(CloneFlags::CLONE_NEWCGROUP).at("new cgroup namespace")?;
    }
    let subset = parts.spec.profile == Profile::Strict && stands("proc_subset");
    let proc = proc::mount(subset, stands("hidepid")).at("mount proc")?;
    enter_root(parts.root.as_fd(), stands("pivot_root"))?;
    // From here on no path leads to the host.
    umask(Mode::empty());
    for (name, tree) in parts.finish.extra.iter().zip(&parts.extra) {
        attach(tree.as_fd(), name).at("attach host directory")?;
    }
    attach(proc.as_fd(), "proc").at("attach proc")?;
    attach(parts.dev.as_fd(), "dev").at("attach dev")?;
    if parts.spec.profile == Profile::Compat {
        proc::mask(&proc, parts.dev.as_fd()).at("mask proc")?;
    }
    attach(parts.shm.as_fd(), "dev/shm").at("attach shm")?;
    if let Some(queues) = message_queues().at("mount message queues")? {
        attach(queues.as_fd(), "dev/mqueue").at("attach message queues")?;
    }
    inside::make_tmp().at("make /tmp")?;
    inside::name_localhost();
    if stands("uts_namespace") {
        sethostname("sandbox").at("set host name")?;
    }
    if stands("network_namespace") {
        sys::loopback_up().at("bring loopback up")?;
    }
    Ok(())
}

fn become_root() -> nix::Result<()> {
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    setresgid(gid, gid, gid)?;
    setgroups(&[])?;
    setresuid(uid, uid, uid)
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

/// What can be wrong with the request rather than with us: the answer is a reason, not a failure.
fn prepare(parts: &Parts) -> Result<Program<'_>, String> {
    let spec = &parts.spec;
    let who = inside::identity(&spec.user, parts.finish.id_width)?;
    let (uid, gid) = (Uid::from_raw(who.uid), Gid::from_raw(who.gid));
    for output in parts.stdio[1..].iter().filter(|output| is_pipe(output)) {
        // Programs open /dev/stdout by name, which asks for the pipe's permissions.
        fchown(output, Some(uid), Some(gid))
            .map_err(|errno| format!("can't hand the outputs over: {errno}"))?;
    }
    let workdir = if spec.workdir.is_empty() { "/" } else { &spec.workdir };
    inside::make_workdir(workdir, &who)?;
    inside::lay_files(spec, &parts.files, &who)?;
    let words = |words: &[String]| -> Result<Vec<CString>, String> {
        let made = words.iter().map(|word| CString::new(word.as_str())).collect::<Result<_, _>>();
        made.map_err(|_| "a word of the command contains a NUL byte".to_owned())
    };
    let env = command::environment(&spec.env, &who.home);
    Ok(Program {
        candidates: command::candidates(&spec.argv[0], &env)?,
        argv: words(&spec.argv)?,
        env: words(&env)?,
        workdir: CString::new(workdir).map_err(|_| "the working directory contains a NUL byte".to_owned())?,
        uid,
        gid,
        spec,
        stdio: [parts.stdio[0].as_fd(), parts.stdio[1].as_fd(), parts.stdio[2].as_fd()],
        #[cfg(feature = "removable-walls")]
        leaked: if spec.stands("no_leak") { None } else { parts.files.last().map(AsFd::as_fd) },
    })
}

fn start(sync: BorrowedFd<'_>, program: &Program<'_>) -> Result<(), Failure> {
    let (says, tells) = nix::unistd::pipe2(OFlag::O_CLOEXEC).at("make status pipe")?;
    match sys::fork().at("fork command")? {
        Fork::Child => command::exec(program, &tells),
        Fork::Parent(pid) => {
            drop(tells);
            let said = command::wait_for_exec(says);
            if said.is_none() {
                packet::send(sync, &Report::Started, &[]).at("report to keeper")?;
            }
            let exit = wait_for(pid);
            let report = match said {
                None => Report::Ended(exit),
                Some(Said::NotStarted(reason)) => Report::Ended(Exit::NotStarted { reason }),
                Some(Said::Failed(failure)) => Report::Failed(failure),
            };
            packet::send(sync, &report, &[]).at("report to keeper")
        }
    }
}

/// Reaps every child until the command itself has ended.
fn wait_for(command: Pid) -> Exit {
    loop {
        match sys::wait(None, true) {
            Ok(Some((pid, status))) if pid == command => return exit_of(status),
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(_) => return Exit::Unknown,
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
