//! Every system call of the sandbox that no library wraps safely. All the `unsafe` of this crate
//! stands here, one call wide; nothing here decides anything.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::io::{IoSlice, IoSliceMut};
use std::mem::size_of;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::sched::CloneFlags;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, mprotect};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use nix::time::ClockId;
use nix::unistd::Pid;

pub(crate) type Result<T> = nix::Result<T>;

fn owned(fd: libc::c_long) -> Result<OwnedFd> {
    let fd = Errno::result(fd)?;
    // SAFETY: the kernel has just made this descriptor for us, so nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

// ---------------------------------------------------------------- processes

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

// ---------------------------------------------------------------- descriptors

/// Closes every descriptor at or above `first`.
pub(crate) fn close_from(first: RawFd) -> Result<()> {
    let first = libc::c_uint::try_from(first).map_err(|_| Errno::EBADF)?;
    // SAFETY: close_range touches no memory. An `OwnedFd` still alive above `first` would later close
    // a number that it no longer owns; callers are about to exec or exit without running destructors.
    let result = unsafe { libc::close_range(first, libc::c_uint::MAX, 0) };
    Errno::result(result).map(drop)
}

/// In a forked child that ends by `exit`: puts these at `first` and the numbers after it and closes all
/// others above, unless `close` says that they stay, which only tests of tests want.
pub(crate) fn keep_descriptors(
    first: RawFd,
    descriptors: &[BorrowedFd<'_>],
    close: bool,
) -> Result<Vec<OwnedFd>> {
    let above = first + descriptors.len() as RawFd;
    // Out of each other's way first. What is not dropped here is closed below.
    let mut aside = Vec::with_capacity(descriptors.len());
    for fd in descriptors {
        aside.push(nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(above))?);
    }
    if !close {
        // SAFETY: these were just made, and nobody else in this process owns them.
        return Ok(aside.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).collect());
    }
    for (number, from) in (first..).zip(aside) {
        // SAFETY: dup3 touches no memory. Owners that this process still has above `first` are never
        // dropped in it, as said above.
        Errno::result(unsafe { libc::dup3(from, number, libc::O_CLOEXEC) })?;
    }
    close_from(above)?;
    // SAFETY: these numbers were just filled with descriptors that nobody else in this process owns.
    Ok((first..above).map(|number| unsafe { OwnedFd::from_raw_fd(number) }).collect())
}

/// Makes `fd` the descriptor `number`, which a following exec then keeps.
pub(crate) fn place(fd: BorrowedFd<'_>, number: RawFd) -> Result<()> {
    if fd.as_raw_fd() == number {
        // dup2 would do nothing then, and leave it to be closed by exec.
        let kept = nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty());
        return nix::fcntl::fcntl(fd, kept).map(drop);
    }
    // SAFETY: dup2 touches no memory; the callers replace numbers that they know to be unowned.
    Errno::result(unsafe { libc::dup2(fd.as_raw_fd(), number) }).map(drop)
}

/// Writes to a descriptor that is known by number only. Short messages to a pipe are written whole.
pub(crate) fn write_to(number: RawFd, bytes: &[u8]) -> Result<usize> {
    // SAFETY: the callers know the number to be open until the process ends.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    nix::unistd::write(fd, bytes)
}

/// Closes a descriptor whose owner is never dropped in this process: in a child that ends by `exit` what stays
/// the parent's, or the other way round.
pub(crate) fn close_for_good(fd: BorrowedFd<'_>) {
    // SAFETY: close takes a number. The owner is never dropped in this process, as said above.
    unsafe { libc::close(fd.as_raw_fd()) };
}

pub(crate) fn close_on_exec(number: RawFd) -> Result<()> {
    // SAFETY: fcntl with F_SETFD takes numbers only.
    Errno::result(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) }).map(drop)
}

/// Sends one packet with descriptors.
pub(crate) fn send_packet(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &rights[..0] } else { &rights[..] };
    let flags = MsgFlags::MSG_NOSIGNAL;
    let sent = sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(bytes)], control, flags, None)?;
    if sent == bytes.len() { Ok(()) } else { Err(Errno::EMSGSIZE) }
}

/// Receives one packet with at most [`crate::protocol::MAX_FILES`] and a few descriptors.
/// No bytes mean that the other side has closed.
pub(crate) fn receive_packet(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<(usize, Vec<OwnedFd>)> {
    let mut space = nix::cmsg_space!([RawFd; 253]);
    let mut parts = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    let mut fds = Vec::new();
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = part {
            // SAFETY: the kernel has just installed these descriptors for us alone.
            fds.extend(received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    if message.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) {
        return Err(Errno::EMSGSIZE);
    }
    Ok((message.bytes, fds))
}

/// Copies from the file `from` to `to` inside the kernel; returns how much.
pub(crate) fn send_file(
    to: BorrowedFd<'_>,
    from: BorrowedFd<'_>,
    offset: u64,
    count: usize,
) -> Result<usize> {
    let mut offset = libc::off_t::try_from(offset).map_err(|_| Errno::EINVAL)?;
    // SAFETY: `offset` outlives the call; nothing else in memory is touched.
    let sent = unsafe { libc::sendfile(to.as_raw_fd(), from.as_raw_fd(), &raw mut offset, count) };
    Errno::result(sent).map(|sent| sent as usize)
}

pub(crate) fn memfd(name: &str, flags: u32) -> Result<OwnedFd> {
    let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
    // SAFETY: `name` outlives the call.
    owned(libc::c_long::from(unsafe { libc::memfd_create(name.as_ptr(), flags) }))
}

pub(crate) fn set_xattr(fd: BorrowedFd<'_>, name: &CStr, value: &[u8]) -> Result<()> {
    let (data, len) = (value.as_ptr().cast(), value.len());
    // SAFETY: name and value outlive the call, and the length is the value's.
    let result = unsafe { libc::fsetxattr(fd.as_raw_fd(), name.as_ptr(), data, len, 0) };
    Errno::result(result).map(drop)
}

/// A short attribute of an open file; `None` where it has no such one.
pub(crate) fn get_xattr(fd: BorrowedFd<'_>, name: &CStr) -> Option<Vec<u8>> {
    let mut value = [0u8; 64];
    let data = value.as_mut_ptr().cast();
    // SAFETY: the name and the buffer outlive the call, and the length is the buffer's.
    let read = unsafe { libc::fgetxattr(fd.as_raw_fd(), name.as_ptr(), data, value.len()) };
    let read = Errno::result(read).ok()? as usize;
    Some(value[..read].to_vec())
}

pub(crate) fn read_xattr(path: &CStr, name: &CStr) -> Result<Vec<u8>> {
    let mut value = [0u8; 64];
    let data = value.as_mut_ptr().cast();
    // SAFETY: both strings and the buffer outlive the call, and the length is the buffer's.
    let read = unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), data, value.len()) };
    let read = Errno::result(read)? as usize;
    Ok(value[..read].to_vec())
}

// ---------------------------------------------------------------- mounts

pub(crate) const MOUNT_ATTR_RDONLY: u64 = 0x1;
pub(crate) const MOUNT_ATTR_NOSUID: u64 = 0x2;
pub(crate) const MOUNT_ATTR_NODEV: u64 = 0x4;
pub(crate) const MOUNT_ATTR_NOEXEC: u64 = 0x8;
pub(crate) const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;

const FSCONFIG_SET_FLAG: u32 = 0;
const FSCONFIG_SET_STRING: u32 = 1;
const FSCONFIG_SET_FD: u32 = 5;
const FSCONFIG_CMD_CREATE: u32 = 6;
const FSCONFIG_CMD_RECONFIGURE: u32 = 7;

pub(crate) fn fsopen(kind: &CStr) -> Result<OwnedFd> {
    // SAFETY: `kind` outlives the call; 1 is FSOPEN_CLOEXEC.
    owned(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), 1) })
}

fn fsconfig(
    fs: BorrowedFd<'_>,
    command: u32,
    key: Option<&CStr>,
    value: *const libc::c_char,
    aux: RawFd,
) -> Result<()> {
    let key = key.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: key and value are null or strings that the callers keep alive over the call.
    let result = unsafe { libc::syscall(libc::SYS_fsconfig, fs.as_raw_fd(), command, key, value, aux) };
    Errno::result(result).map(drop)
}

pub(crate) fn fs_set(fs: BorrowedFd<'_>, key: &CStr, value: &str) -> Result<()> {
    let value = CString::new(value).map_err(|_| Errno::EINVAL)?;
    fsconfig(fs, FSCONFIG_SET_STRING, Some(key), value.as_ptr(), 0)
}

pub(crate) fn fs_set_flag(fs: BorrowedFd<'_>, key: &CStr) -> Result<()> {
    fsconfig(fs, FSCONFIG_SET_FLAG, Some(key), std::ptr::null(), 0)
}

pub(crate) fn fs_set_fd(fs: BorrowedFd<'_>, key: &CStr, fd: BorrowedFd<'_>) -> Result<()> {
    fsconfig(fs, FSCONFIG_SET_FD, Some(key), std::ptr::null(), fd.as_raw_fd())
}

/// Creates the file system and mounts it nowhere: it lives as long as the returned descriptor.
pub(crate) fn fs_mount(fs: BorrowedFd<'_>, attributes: u64) -> Result<OwnedFd> {
    fsconfig(fs, FSCONFIG_CMD_CREATE, None, std::ptr::null(), 0)?;
    // SAFETY: takes numbers only; 1 is FSMOUNT_CLOEXEC.
    owned(unsafe { libc::syscall(libc::SYS_fsmount, fs.as_raw_fd(), 1, attributes) })
}

/// The file system behind a mount, to give it other options.
pub(crate) fn fspick(mount: BorrowedFd<'_>) -> Result<OwnedFd> {
    // FSPICK_CLOEXEC | FSPICK_EMPTY_PATH: the mount is the descriptor itself.
    const FLAGS: u32 = 0x1 | 0x8;
    // SAFETY: the path is a static empty string.
    owned(unsafe { libc::syscall(libc::SYS_fspick, mount.as_raw_fd(), c"".as_ptr(), FLAGS) })
}

pub(crate) fn fs_reconfigure(fs: BorrowedFd<'_>) -> Result<()> {
    fsconfig(fs, FSCONFIG_CMD_RECONFIGURE, None, std::ptr::null(), 0)
}

/// A detached copy of the mount at `path` below `dir`; an empty path means `dir` itself.
pub(crate) fn open_tree(dir: BorrowedFd<'_>, path: &CStr) -> Result<OwnedFd> {
    open_tree_with(dir, path, 0)
}

/// The same with everything that is mounted below.
pub(crate) fn open_whole_tree(dir: BorrowedFd<'_>) -> Result<OwnedFd> {
    open_tree_with(dir, c"", libc::AT_RECURSIVE)
}

fn open_tree_with(dir: BorrowedFd<'_>, path: &CStr, more: libc::c_int) -> Result<OwnedFd> {
    const OPEN_TREE_CLONE: libc::c_int = 1;
    let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC | libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW | more;
    // SAFETY: `path` outlives the call.
    owned(unsafe { libc::syscall(libc::SYS_open_tree, dir.as_raw_fd(), path.as_ptr(), flags) })
}

/// Attaches the detached mount `from` on the directory that `to` is.
pub(crate) fn move_mount(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    // MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH: both ends are descriptors, no path is resolved.
    const FLAGS: u32 = 0x4 | 0x40;
    let (from, to, empty) = (from.as_raw_fd(), to.as_raw_fd(), c"".as_ptr());
    // SAFETY: the paths are one static empty string.
    let result = unsafe { libc::syscall(libc::SYS_move_mount, from, empty, to, empty, FLAGS) };
    Errno::result(result).map(drop)
}

#[repr(C)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Sets attributes on a mount; with a user namespace its ids are mapped through that namespace.
pub(crate) fn mount_set(
    mount: BorrowedFd<'_>,
    attributes: u64,
    userns: Option<BorrowedFd<'_>>,
) -> Result<()> {
    mount_change(
        mount,
        &MountAttr {
            attr_set: attributes | if userns.is_some() { MOUNT_ATTR_IDMAP } else { 0 },
            attr_clr: 0,
            propagation: 0,
            userns_fd: userns.map_or(0, |fd| fd.as_raw_fd() as u64),
        },
    )
}

/// Takes attributes away from a mount: what no wall ever does, and a test that removes one.
#[cfg(feature = "removable-walls")]
pub(crate) fn mount_clear(mount: BorrowedFd<'_>, attributes: u64) -> Result<()> {
    mount_change(mount, &MountAttr { attr_set: 0, attr_clr: attributes, propagation: 0, userns_fd: 0 })
}

fn mount_change(mount: BorrowedFd<'_>, attr: &MountAttr) -> Result<()> {
    let (fd, empty, flags) = (mount.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH);
    // SAFETY: `attr` outlives the call and its size is the one given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd,
            empty,
            flags,
            std::ptr::from_ref(attr),
            size_of::<MountAttr>(),
        )
    };
    Errno::result(result).map(drop)
}

// ---------------------------------------------------------------- privileges

pub(crate) fn prctl(option: libc::c_int, a: u64, b: u64) -> Result<libc::c_int> {
    // SAFETY: callers use only options whose arguments are numbers.
    Errno::result(unsafe { libc::prctl(option, a, b, 0, 0) })
}

/// Lets others have the processors first. Where that is refused, it only takes longer.
pub(crate) fn step_back(niceness: u8) {
    // SAFETY: the call takes numbers and touches no memory of ours.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, niceness.into()) };
}

/// What this process is called in the machine's list. It is for people only, so failing is no matter.
pub(crate) fn set_name(name: &CStr) {
    // SAFETY: the kernel reads at most 16 bytes and stops at the end of the string, which outlives the call.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr()) };
}

/// Sets permitted and effective capabilities to `mask` and the inheritable ones to none.
pub(crate) fn set_capabilities(mask: u64) -> Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    let half = |bits: u64| Data { effective: bits as u32, permitted: bits as u32, inheritable: 0 };
    let header = Header { version: 0x2008_0522, pid: 0 };
    let data = [half(mask), half(mask >> 32)];
    // SAFETY: version 3 reads two data records, which outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) };
    Errno::result(result).map(drop)
}

/// Installs one compiled filter; no_new_privs must be set.
pub(crate) fn seccomp(filter: &[libc::sock_filter]) -> Result<()> {
    const SECCOMP_SET_MODE_FILTER: libc::c_uint = 1;
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).map_err(|_| Errno::E2BIG)?,
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: the kernel only reads the program, which outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &raw const program) };
    Errno::result(result).map(drop)
}

/// The Landlock version that the kernel offers; 0 where it has none.
pub(crate) fn landlock_abi() -> i64 {
    let null = std::ptr::null::<u8>();
    // SAFETY: with the flag LANDLOCK_CREATE_RULESET_VERSION the kernel reads no memory.
    let abi = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, null, 0, 1) };
    abi.max(0)
}

// ---------------------------------------------------------------- network

/// Brings the loopback interface of this network namespace up.
pub(crate) fn loopback_up() -> Result<()> {
    // SAFETY: socket takes numbers only.
    let socket = owned(unsafe {
        libc::syscall(libc::SYS_socket, libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0)
    })?;
    // SAFETY: an all-zero ifreq is a valid one.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = libc::IFF_UP as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which outlives the call.
    let result = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    Errno::result(result).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_structures_have_the_sizes_that_the_kernel_knows() {
        assert_eq!(size_of::<CloneArgs>(), 88);
        assert_eq!(size_of::<MountAttr>(), 32);
    }
}
