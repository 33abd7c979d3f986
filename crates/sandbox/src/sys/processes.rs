//! Processes: made, waited for, killed, and what they measure.

use std::mem::size_of;
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::sched::CloneFlags;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, mprotect};
use nix::time::ClockId;
use nix::unistd::Pid;

use super::{Result, owned};

/// Which side of a fork this is.
pub(crate) enum Fork {
    Parent(Pid),
    Child,
}

/// The clock of [`std::time::Instant`], as a number that another process can be told.
pub(crate) fn monotonic() -> Duration {
    clock(ClockId::CLOCK_MONOTONIC)
}

/// The processor time that this process has used.
pub(crate) fn cpu_time() -> Duration {
    clock(ClockId::CLOCK_PROCESS_CPUTIME_ID)
}

fn clock(id: ClockId) -> Duration {
    // Neither of the two can be missing.
    nix::time::clock_gettime(id).map_or(Duration::ZERO, Duration::from)
}

/// Forks. The launcher and its children have one thread, so the child may do everything that its
/// parent could, allocation included.
pub(crate) fn fork() -> Result<Fork> {
    // SAFETY: no other thread exists in any process that this crate's launcher side runs in.
    Ok(match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Parent { child } => Fork::Parent(child),
        nix::unistd::ForkResult::Child => Fork::Child,
    })
}

/// How much the stack of a [`lodger`] may grow; what it doesn't touch takes no memory.
const LODGER_STACK_BYTES: usize = 512 * 1024;

/// Starts a child that lives in its parent's memory until it executes something or ends by
/// [`exit_at_once`]: nothing has to be copied for it, and nothing taken apart when it executes.
///
/// `meanwhile` is the parent, and must do nothing but close descriptors and [`wait`] until the child has
/// ended: both have one heap, and what belongs to a thread they have in common too. `shared` is what they share
/// beside that, which is nothing where walls stand.
pub(crate) fn lodger<F: FnMut(), T>(
    shared: CloneFlags,
    mut child: F,
    meanwhile: impl FnOnce(Pid) -> T,
) -> Result<T> {
    extern "C" fn begin<F: FnMut()>(child: *mut libc::c_void) -> libc::c_int {
        // SAFETY: it points to the closure below, which the parent doesn't touch before this process has ended.
        let child = unsafe { &mut *child.cast::<F>() };
        child();
        exit_at_once(127)
    }
    let stack = lodger_stack()?;
    let flags = libc::CLONE_VM | libc::SIGCHLD | shared.bits();
    let child = (&raw mut child).cast::<libc::c_void>();
    // SAFETY: the stack is nobody else's, and `child` lives until `meanwhile` has returned.
    let pid = Errno::result(unsafe { libc::clone(begin::<F>, stack, flags, child) })?;
    Ok(meanwhile(Pid::from_raw(pid)))
}

/// The upper end of a stack, below which lies a page that nobody may touch. It stays for as long as this
/// process does.
fn lodger_stack() -> Result<*mut libc::c_void> {
    let len = |bytes| NonZeroUsize::new(bytes).ok_or(Errno::EINVAL);
    let (all, guard) = (len(LODGER_STACK_BYTES)?, len(4096)?);
    let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_STACK;
    // SAFETY: a new mapping, which overlaps nothing.
    let start = unsafe { mmap_anonymous(None, all, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, flags) }?;
    // SAFETY: nobody else knows of it yet.
    unsafe { mprotect(start, guard.get(), ProtFlags::PROT_NONE) }?;
    Ok(start.as_ptr().wrapping_byte_add(LODGER_STACK_BYTES))
}

/// Ends this process and nothing of what it shares with others: no destructor and no handler runs.
pub(crate) fn exit_at_once(code: i32) -> ! {
    // SAFETY: it doesn't return.
    unsafe { libc::_exit(code) }
}

#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// A fork into new namespaces: `None` in the child, its pid and pidfd in the parent.
pub(crate) fn clone3(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> Result<Option<(Pid, OwnedFd)>> {
    const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    let mut pidfd: RawFd = -1;
    let mut args = CloneArgs {
        flags: flags | libc::CLONE_PIDFD as u64 | CLONE_CLEAR_SIGHAND,
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM this is a fork of a single-threaded process: the child has a copy of
    // all memory and returns on a copy of this stack. `args` outlives the call.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<CloneArgs>()) };
    match Errno::result(pid)? {
        0 => Ok(None),
        pid => Ok(Some((Pid::from_raw(pid as i32), owned(libc::c_long::from(pidfd))?))),
    }
}

pub(crate) fn pidfd_kill(pidfd: BorrowedFd<'_>) -> Result<()> {
    let (fd, null) = (pidfd.as_raw_fd(), std::ptr::null::<libc::siginfo_t>());
    // SAFETY: a null siginfo asks the kernel to fill in what `kill` would.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, libc::SIGKILL, null, 0) };
    Errno::result(result).map(drop)
}

/// Waits for `pid`, or for any child where it is `None`.
pub(crate) fn wait(pid: Option<Pid>, block: bool) -> Result<Option<(Pid, i32)>> {
    let mut status = 0;
    let flags = libc::__WALL | if block { 0 } else { libc::WNOHANG };
    let which = pid.map_or(-1, Pid::as_raw);
    // SAFETY: `status` outlives the call.
    let pid = Errno::result(unsafe { libc::waitpid(which, &raw mut status, flags) })?;
    Ok((pid != 0).then_some((Pid::from_raw(pid), status)))
}

/// Replaces every handler and every ignored signal by the default, and unblocks all.
/// `execve` keeps ignored signals ignored: the Rust runtime ignores SIGPIPE, and glibc's `posix_spawn`,
/// by which we were started, the two signals of the C library. Those two only the kernel itself resets.
pub(crate) fn default_signals() {
    // The kernel's own `sigaction`, which is SIG_DFL without flags when it is all zero.
    let default = [0u64; 4];
    for signal in 1..=64 as libc::c_long {
        // SAFETY: the kernel reads at most these 32 bytes, and the default runs no code of ours. The two
        // signals that can't be changed refuse, which is what they should do.
        unsafe {
            libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), std::ptr::null::<u64>(), 8usize)
        };
    }
    let _ = nix::sys::signal::SigSet::empty().thread_set_mask();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structure_has_the_size_that_the_kernel_knows() {
        assert_eq!(size_of::<CloneArgs>(), 88);
    }
}
