//! What a process may do and use, and the network that it is given.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd};

use nix::errno::Errno;
use nix::libc;

use super::{Result, owned};

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

/// How many heaps glibc may make, and from which size on a block is a mapping of its own. It refuses nothing of what
/// it documents.
pub(crate) fn set_heaps(most: libc::c_int, mapped_from_bytes: libc::c_int) {
    for (option, value) in [(libc::M_ARENA_MAX, most), (libc::M_MMAP_THRESHOLD, mapped_from_bytes)] {
        // SAFETY: the call takes numbers and changes how the next blocks are found, not those that there are.
        unsafe { libc::mallopt(option, value) };
    }
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
