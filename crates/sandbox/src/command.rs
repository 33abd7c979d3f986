//! The last steps before the user's program: what it inherits is decided here, and nothing else is
//! left. Forked from init ahead of need, it puts up every wall that doesn't depend on the program, waits
//! to be told what to become, lays the run's files, gives up its last privileges, and executes.

mod line;
mod reason;

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{
    AccessFlags, Gid, Pid, Uid, access, chdir, execve, fchown, getcwd, setresgid, setresuid, setsid,
};
use run::{Profile, SetupFailure};
use serde::{Deserialize, Serialize};

use self::line::CommandLine;
use self::reason::{explain, tellable};
use crate::keeper::{is_pipe, read_spec};
use crate::protocol::{LaunchSpec, Outline};
use crate::step::{At, Failure};
use crate::{dir, fence, inside, packet, rehearsal, seccomp, sys};

/// Everything that the program will be, ready for calls that take no decision any more.
pub(crate) struct Program<'a> {
    pub(crate) line: CommandLine,
    pub(crate) workdir: CString,
    pub(crate) uid: Uid,
    pub(crate) gid: Gid,
    pub(crate) spec: &'a LaunchSpec,
    pub(crate) stdio: [BorrowedFd<'a>; 3],
    /// A directory outside that a test leaves open.
    #[cfg(feature = "removable-walls")]
    pub(crate) leaked: Option<BorrowedFd<'a>>,
}

/// What the command's process says to the keeper. When it has become the program its end of the socket
/// closes without another word.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Said {
    /// It stands behind its walls and waits to be told what to become.
    Ready,
    Starting(Start),
    NotStarted(String),
    Failed(SetupFailure),
}

/// The moment in which it becomes the program, which nobody has to be awake for.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Start {
    /// On the clock of [`sys::monotonic`], in nanoseconds.
    pub(crate) at_ns: u64,
    /// The processor time that this process has taken since it was told, in microseconds.
    pub(crate) cpu_us: u64,
}

/// What it is told: the spec, the three standard streams, and the files' contents.
struct Told {
    spec: LaunchSpec,
    stdio: [OwnedFd; 3],
    files: Vec<OwnedFd>,
    /// What this process had used of the processor by then.
    cpu: Duration,
}

/// Waits, and becomes the program or says why not. A closed socket means that nothing will run.
pub(crate) fn main(outline: &Outline, id_width: u32, launch: &OwnedFd) -> ! {
    let ready = put_up_walls(outline).inspect(|()| rehearse(outline, id_width));
    let said = match ready.and_then(|()| wait(launch.as_fd())) {
        Err(failure) => Said::Failed(failure.into()),
        Ok(None) => sys::exit_at_once(0),
        Ok(Some(told)) => match prepare(&told, id_width) {
            Ok(program) => exec(&program, launch, told.cpu),
            Err(reason) => Said::NotStarted(tellable(reason)),
        },
    };
    let _ = packet::send(launch.as_fd(), &said, &[]);
    sys::exit_at_once(127);
}

/// Every wall that doesn't depend on what the program will be, put up while nobody waits: installing the
/// filter alone takes longer than all that is left. What is done behind these walls afterwards, laying
/// files in and giving up the last privileges, is nothing that they forbid.
fn put_up_walls(outline: &Outline) -> Result<(), Failure> {
    let stands = |wall| outline.stands(wall);
    setsid().at("new session for the command")?;
    sys::default_signals();
    set_common_limits(outline).at("set resource limits")?;
    if stands("no_new_privs") {
        nix::sys::prctl::set_no_new_privs().at("set no_new_privs")?;
    }
    if stands("capabilities") {
        bound_capabilities(outline)?;
    }
    if stands("landlock") && stands("no_new_privs") {
        let root = dir::open_dir("/".as_ref()).at("open the root")?;
        // The kernel opens message queues in a mount of its own, which is below no root.
        let queues = dir::open_dir("/dev/mqueue".as_ref()).at("open message queues")?;
        fence::put_up(&[root.as_fd(), queues.as_fd()], fence::for_programs())?;
    }
    // Where it must stay on its processors the filter comes once those are known.
    if stands("seccomp") && stands("no_new_privs") && !outline.pinned {
        filter_calls(outline)?;
    }
    Ok(())
}

/// Goes the way of a command that does nothing, for the reason that [`crate::rehearsal`] gives.
fn rehearse(outline: &Outline, id_width: u32) {
    let Ok(spec) = rehearsal::read_spec(outline) else { return };
    if let Ok(who) = inside::identity(&spec.user, id_width) {
        let _ = inside::make_workdir(&spec.workdir, &who);
        let _ = CommandLine::of(&spec, &who.home);
    }
    let _ = (getcwd(), serde_json::to_vec(&Said::Starting(Start { at_ns: 0, cpu_us: 0 })));
}

/// The filter of a command that has processors of its own, which it must not leave.
fn hold(program: &Program<'_>) -> Result<(), Failure> {
    let stands = |wall| program.spec.stands(wall);
    if program.spec.cores.is_empty() || !stands("seccomp") || !stands("no_new_privs") {
        return Ok(());
    }
    sys::seccomp(seccomp::pinned_filter(program.spec.profile)).at("install system call filter")
}

fn wait(launch: BorrowedFd<'_>) -> Result<Option<Told>, Failure> {
    packet::send(launch, &Said::Ready, &[]).at("report to keeper")?;
    receive(launch).at("receive spec")
}

fn receive(launch: BorrowedFd<'_>) -> io::Result<Option<Told>> {
    let Some(((), fds)) = packet::receive(launch)? else { return Ok(None) };
    let cpu = sys::cpu_time();
    let mut fds = fds.into_iter();
    let mut next = || fds.next().ok_or_else(|| io::Error::other("a descriptor is missing"));
    let spec = read_spec(&next()?)?;
    Ok(Some(Told { spec, stdio: [next()?, next()?, next()?], files: fds.collect(), cpu }))
}

/// What can be wrong with the request rather than with us: the answer is a reason, not a failure.
fn prepare(told: &Told, id_width: u32) -> Result<Program<'_>, String> {
    let spec = &told.spec;
    let who = inside::identity(&spec.user, id_width)?;
    let (uid, gid) = (Uid::from_raw(who.uid), Gid::from_raw(who.gid));
    for output in told.stdio[1..].iter().filter(|output| is_pipe(output)) {
        // Programs open /dev/stdout by name, which asks for the pipe's permissions.
        fchown(output, Some(uid), Some(gid))
            .map_err(|errno| format!("can't hand the outputs over: {errno}"))?;
    }
    let workdir = if spec.workdir.is_empty() { "/" } else { &spec.workdir };
    inside::make_workdir(workdir, &who)?;
    inside::lay_files(spec, &told.files, &who)?;
    Ok(Program {
        line: CommandLine::of(spec, &who.home)?,
        workdir: CString::new(workdir).map_err(|_| "the working directory contains a NUL byte".to_owned())?,
        uid,
        gid,
        spec,
        stdio: [told.stdio[0].as_fd(), told.stdio[1].as_fd(), told.stdio[2].as_fd()],
        #[cfg(feature = "removable-walls")]
        leaked: if spec.stands("no_leak") { None } else { told.files.last().map(AsFd::as_fd) },
    })
}

/// Becomes the program, or says why not and exits.
fn exec(program: &Program<'_>, tells: &OwnedFd, cpu_before: Duration) -> ! {
    // The descriptor that tells is 3 from here on, and the only one beside the program's own three.
    let starts = inherit(program, tells.as_fd())
        .and_then(|()| give_up(program))
        .and_then(|()| hold(program))
        .and_then(|()| tell_of_start(cpu_before));
    let said = match starts {
        Err(failure) => Said::Failed(failure.into()),
        Ok(()) => Said::NotStarted(tellable(become_program(program))),
    };
    let _ = tell(&said);
    // Nothing is dropped: the descriptors' numbers are not what they were.
    sys::exit_at_once(127);
}

const TELLS: i32 = 3;

fn tell(said: &Said) -> io::Result<()> {
    let bytes = serde_json::to_vec(said)?;
    Ok(sys::write_to(TELLS, &bytes).map(drop)?)
}

/// A program of whose start nobody hears is not started: its end would be taken for that of a process that never
/// became it.
fn tell_of_start(cpu_before: Duration) -> Result<(), Failure> {
    let cpu_us = sys::cpu_time().saturating_sub(cpu_before).as_micros() as u64;
    let start = Start { at_ns: sys::monotonic().as_nanos() as u64, cpu_us };
    tell(&Said::Starting(start)).at("tell of the start")
}

/// Where a descriptor is left open that leads out, when a test asks whether the walls behind it hold.
#[cfg(feature = "removable-walls")]
const LEAKED: i32 = 9;

/// Descriptors and umask.
fn inherit(program: &Program<'_>, tells: BorrowedFd<'_>) -> Result<(), Failure> {
    for (number, fd) in program.stdio.iter().enumerate() {
        sys::place(*fd, number as i32).at("place standard descriptors")?;
    }
    sys::place(tells, TELLS).at("place status pipe")?;
    #[cfg(feature = "removable-walls")]
    if let Some(leaked) = program.leaked {
        sys::place(leaked, LEAKED).at("leak a descriptor")?;
    }
    if program.spec.stands("close_descriptors") {
        sys::close_from(TELLS + 1).at("close descriptors")?;
    }
    sys::close_on_exec(TELLS).at("mark status pipe")?;
    pin(&program.spec.cores).at("pin to processors")?;
    umask(Mode::from_bits_truncate(0o022));
    Ok(())
}

/// Its children inherit this, and the filter sees to it that none can change it.
fn pin(cores: &[usize]) -> nix::Result<()> {
    if cores.is_empty() {
        return Ok(());
    }
    let mut set = CpuSet::new();
    cores.iter().try_for_each(|core| set.set(*core))?;
    sched_setaffinity(Pid::from_raw(0), &set)
}

fn set_limits(spec: &LaunchSpec) -> nix::Result<()> {
    let limits = &spec.limits;
    let cpu_seconds = limits.cpu_time_ms.div_ceil(1000) + 1;
    for (resource, value) in [
        (Resource::RLIMIT_NOFILE, limits.open_files),
        (Resource::RLIMIT_FSIZE, limits.file_size_bytes),
        (Resource::RLIMIT_STACK, limits.stack_bytes),
    ] {
        setrlimit(resource, value, value)?;
    }
    lower(&[
        // The cgroup counts processes; this is a second wall behind it and must not be hit first.
        (Resource::RLIMIT_NPROC, limits.processes.saturating_add(8)),
        (Resource::RLIMIT_CPU, cpu_seconds),
    ])
}

/// The limits that every run has.
fn set_common_limits(outline: &Outline) -> nix::Result<()> {
    lower(&[
        // 0 would still start a host's crash handler behind a piped core_pattern; 1 never does.
        (Resource::RLIMIT_CORE, if outline.stands("core_limit") { 1 } else { 1 << 20 }),
        (Resource::RLIMIT_MEMLOCK, 64 * 1024),
        // What one default queue takes is more than 64 KiB; this is what the kernel gives every user.
        (Resource::RLIMIT_MSGQUEUE, 819_200),
        (Resource::RLIMIT_SIGPENDING, 256),
        (Resource::RLIMIT_NICE, 0),
        (Resource::RLIMIT_RTPRIO, 0),
    ])
}

/// Walls of ours that nobody asked for by number: where the host's are lower, those hold.
fn lower(limits: &[(Resource, u64)]) -> nix::Result<()> {
    for (resource, value) in limits {
        let (_, hard) = getrlimit(*resource)?;
        let value = (*value).min(hard);
        setrlimit(*resource, value, value)?;
    }
    Ok(())
}

/// What root inside a run may do, and only to what the run's own ids own: nothing, or with the
/// `compat` profile CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID and SETUID, which package
/// managers and programs that change their user want.
fn capabilities(profile: Profile) -> u64 {
    match profile {
        Profile::Strict => 0,
        Profile::Compat => [0, 1, 3, 4, 5, 6, 7].iter().map(|capability| 1 << capability).sum(),
    }
}

/// NO_CAP_AMBIENT_RAISE, locked. Where nobody has a capability also NOROOT and NO_SETUID_FIXUP, and
/// KEEP_CAPS off for good; where root has some it may keep them as another user, who can do no more
/// with them than it could.
fn secure_bits(profile: Profile) -> u64 {
    const STRICT: u64 = 0b1110_1111;
    const COMPAT: u64 = 0b1100_0000;
    match profile {
        Profile::Strict => STRICT,
        Profile::Compat => COMPAT,
    }
}

/// The last privileges go, and then the limits come, which what comes before must not run into.
fn give_up(program: &Program<'_>) -> Result<(), Failure> {
    become_user(program)?;
    if program.spec.stands("capabilities") {
        let kept = if program.uid.is_root() { capabilities(program.spec.profile) } else { 0 };
        sys::set_capabilities(kept).at("drop capabilities")?;
    }
    set_limits(program.spec).at("set resource limits")
}

fn become_user(program: &Program<'_>) -> Result<(), Failure> {
    setresgid(program.gid, program.gid, program.gid).at("become the group")?;
    setresuid(program.uid, program.uid, program.uid).at("become the user")
}

/// What nobody in this process can ever get again, whoever it becomes.
fn bound_capabilities(outline: &Outline) -> Result<(), Failure> {
    let kept = capabilities(outline.profile);
    let dropped = if outline.stands("bounding_set") { 64 } else { 0 };
    for capability in (0..dropped).filter(|capability| kept >> capability & 1 == 0) {
        match sys::prctl(libc::PR_CAPBSET_DROP, capability, 0) {
            Ok(_) => {}
            Err(Errno::EINVAL) => break,
            Err(errno) => return Err(errno).at("drop bounding set"),
        }
    }
    sys::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL as u64, 0)
        .at("clear ambient capabilities")?;
    sys::prctl(libc::PR_SET_SECUREBITS, secure_bits(outline.profile), 0).at("lock secure bits").map(drop)
}

#[cfg(not(feature = "removable-walls"))]
fn filter_calls(outline: &Outline) -> Result<(), Failure> {
    sys::seccomp(seccomp::command_filter(outline.profile)).at("install system call filter")
}

/// A filter with holes is compiled for the one run that wants it.
#[cfg(feature = "removable-walls")]
fn filter_calls(outline: &Outline) -> Result<(), Failure> {
    let (arch, sockets) = (outline.stands("seccomp_arch"), outline.stands("socket_filter"));
    sys::seccomp(&seccomp::filter_with_holes(outline.profile, arch, sockets)).at("install system call filter")
}

/// Returns only when the program could not be executed, with the reason.
fn become_program(program: &Program<'_>) -> String {
    let workdir = program.workdir.to_string_lossy().into_owned();
    if let Err(errno) = chdir(program.workdir.as_c_str()) {
        return format!("can't enter the working directory {workdir:?}: {}", errno.desc());
    }
    // A directory outside the root would show itself here.
    match getcwd() {
        Ok(cwd) if cwd.is_absolute() && !cwd.starts_with("(unreachable)") => {}
        _ => return format!("the working directory {workdir:?} is not inside the sandbox"),
    }
    let mut worst = Errno::ENOENT;
    let mut at = program.line.candidates.first();
    for candidate in &program.line.candidates {
        let Err(errno) = execve(candidate.as_c_str(), &program.line.argv, &program.line.env);
        match errno {
            Errno::ENOENT | Errno::ENOTDIR if access(candidate.as_c_str(), AccessFlags::F_OK).is_err() => {}
            errno => {
                (worst, at) = (errno, Some(candidate));
                // A program that is there but can't be started is the answer, as in a shell; only
                // one that we may not execute lets the search go on.
                if errno != Errno::EACCES {
                    break;
                }
            }
        }
    }
    let name = program.line.argv.first().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    explain(&name, at.map(CString::as_c_str), worst)
}
