//! A child of the keeper that can do one thing. It is given its descriptors by number, and is then left
//! with those, with the root and the privileges that its work needs, and with a short list of calls.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Pid, Uid, chdir, chroot, fchdir, setgroups, setresgid, setresuid};

use crate::step::{At, Failure};
use crate::{seccomp, sys};

/// No child needs more: it copies by pieces.
const ADDRESS_SPACE_BYTES: u64 = 1 << 30;

pub(super) const SETGID: u64 = 1 << 6;
pub(super) const SETUID: u64 = 1 << 7;

/// Where a child's own descriptors begin.
const FIRST: i32 = 3;

/// A child at work.
pub(super) struct Child {
    pid: Pid,
    pidfd: OwnedFd,
}

impl Child {
    /// Forks; in the child `work` is called with the descriptors, and its end is the child's.
    pub(super) fn start<const N: usize>(
        descriptors: [BorrowedFd<'_>; N],
        work: impl FnOnce([OwnedFd; N]) -> Result<(), Failure>,
    ) -> Result<Self, Failure> {
        if let Some((pid, pidfd)) = sys::clone3(0, None).at("fork a helper")? {
            return Ok(Self { pid, pidfd });
        }
        let done = keep_only(descriptors).and_then(work);
        // Nothing is dropped: most descriptors are closed already.
        std::process::exit(i32::from(done.is_err()));
    }

    pub(super) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Until it has ended or has to: at its deadline, or when nobody wants its work any more.
    pub(super) fn wait(self, control: BorrowedFd<'_>, patience: Duration) -> Result<(), Failure> {
        let deadline = Instant::now() + patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let mut fds = [
                PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN),
                // Orders come too late now; only its end counts.
                PollFd::new(control, PollFlags::empty()),
            ];
            match poll(&mut fds, timeout) {
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno).at("wait for a helper"),
                Ok(_) if fds[0].any() == Some(true) => return self.end(),
                Ok(_) if fds[1].any() == Some(true) => {
                    return Err(Failure::new("wait for a helper", "nobody wants its work any more"));
                }
                Ok(_) if Instant::now() >= deadline => {
                    return Err(Failure::new("wait for a helper", "it took too long"));
                }
                Ok(_) => {}
            }
        }
    }

    fn end(self) -> Result<(), Failure> {
        match sys::wait(Some(self.pid), true) {
            Ok(Some((_, 0))) => Ok(()),
            _ => Err(Failure::new("wait for a helper", "it failed")),
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = sys::pidfd_kill(self.pidfd.as_fd());
        while let Err(Errno::EINTR) = sys::wait(Some(self.pid), true) {}
    }
}

/// From here on these are all that the child has, under numbers that it knows.
fn keep_only<const N: usize>(descriptors: [BorrowedFd<'_>; N]) -> Result<[OwnedFd; N], Failure> {
    sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64, 0).at("die with the keeper")?;
    sys::prctl(libc::PR_SET_DUMPABLE, 0, 0).at("forbid inspection")?;
    let kept = sys::keep_descriptors(FIRST, &descriptors, walls::stands("helper_descriptors"));
    let missing = |_| Failure::new("keep descriptors", "one is missing");
    kept.at("keep descriptors")?.try_into().map_err(missing)
}

/// Makes the directory the root: no path leads anywhere else.
pub(super) fn enter(root: BorrowedFd<'_>) -> Result<(), Failure> {
    fchdir(root).at("enter root")?;
    if walls::stands("helper_root") {
        chroot(".").at("change root")?;
        chdir("/").at("enter root")?;
    }
    umask(Mode::empty());
    Ok(())
}

/// Becomes another user without its privileges, but for those named.
pub(super) fn become_user(uid: u32, gid: u32, capabilities: u64) -> Result<(), Failure> {
    if !walls::stands("helper_user") {
        return Ok(());
    }
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    sys::prctl(libc::PR_SET_KEEPCAPS, 1, 0).at("keep capabilities")?;
    setresgid(gid, gid, gid).at("become the group")?;
    setgroups(&[]).at("give up groups")?;
    setresuid(uid, uid, uid).at("become the user")?;
    let too_many = if walls::stands("helper_capabilities") { 0 } else { SETUID | SETGID };
    sys::set_capabilities(capabilities | too_many).at("drop capabilities")
}

/// The last step: only what works on open files can be called any more, and not for longer than that.
pub(super) fn fence(cpu_seconds: u64) -> Result<(), Failure> {
    for (resource, value) in [
        (Resource::RLIMIT_CORE, 1),
        (Resource::RLIMIT_AS, ADDRESS_SPACE_BYTES),
        (Resource::RLIMIT_CPU, cpu_seconds),
    ] {
        if walls::stands("helper_limits") {
            setrlimit(resource, value, value).at("set resource limits")?;
        }
    }
    nix::sys::prctl::set_no_new_privs().at("set no_new_privs")?;
    if walls::stands("helper_filter") {
        sys::seccomp(&seccomp::jail_filter()).at("install filter")?;
    }
    Ok(())
}
