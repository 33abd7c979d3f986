//! Which system calls the command may make. The policy is data, each group with its reason; it is
//! compiled once, when the launcher starts, and only installed afterwards.
//!
//! Five filters are stacked, because each gives one answer. The kernel takes the strictest answer, and
//! among equally strict ones that of the filter installed last: so the list of allowed calls comes
//! first and answers ENOSYS to everything unknown, and those after it give better-known errors for
//! calls that programs test for. Another architecture's calls (i386, where arguments hide behind
//! pointers) end the process; x32 calls are unknown numbers.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::libc::{self, c_long};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

#[cfg(target_arch = "x86_64")]
const ARCH: TargetArch = TargetArch::x86_64;
#[cfg(target_arch = "aarch64")]
const ARCH: TargetArch = TargetArch::aarch64;

/// The numbers of system calls, with those that the C library's bindings don't know yet.
#[allow(non_upper_case_globals)]
mod number {
    pub(super) use nix::libc::*;

    pub(super) const SYS_map_shadow_stack: c_long = 453;
    pub(super) const SYS_futex_wake: c_long = 454;
    pub(super) const SYS_futex_wait: c_long = 455;
    pub(super) const SYS_futex_requeue: c_long = 456;
}

macro_rules! calls {
    ($($name:ident)*) => { &[$(number::$name),*] };
}

/// Calls that any program may make, whatever their arguments.
const ALLOWED: &[(&str, &[c_long])] = &[
    (
        "memory of its own; the cgroup bounds it",
        calls![
            SYS_brk SYS_mmap SYS_munmap SYS_mremap SYS_mprotect SYS_madvise SYS_msync SYS_mlock SYS_mlock2 SYS_munlock
            SYS_mlockall SYS_munlockall SYS_membarrier SYS_pkey_alloc SYS_pkey_free SYS_pkey_mprotect SYS_memfd_create
            SYS_mseal
        ],
    ),
    (
        "reading and writing what it has open",
        calls![
            SYS_read SYS_write SYS_readv SYS_writev SYS_pread64 SYS_pwrite64 SYS_preadv SYS_pwritev SYS_preadv2
            SYS_pwritev2 SYS_lseek SYS_close SYS_close_range SYS_dup SYS_dup3 SYS_fcntl SYS_flock SYS_fsync
            SYS_fdatasync SYS_sync_file_range SYS_ftruncate SYS_fallocate SYS_fadvise64 SYS_readahead SYS_copy_file_range
            SYS_pipe2
        ],
    ),
    (
        "files of its own root",
        calls![
            SYS_openat SYS_openat2 SYS_truncate SYS_newfstatat SYS_fstat SYS_statx SYS_statfs SYS_fstatfs SYS_faccessat
            SYS_faccessat2 SYS_getdents64 SYS_getcwd SYS_chdir SYS_fchdir SYS_mkdirat SYS_unlinkat SYS_renameat
            SYS_renameat2 SYS_linkat SYS_symlinkat SYS_readlinkat SYS_fchmod SYS_fchmodat SYS_fchmodat2 SYS_fchown
            SYS_fchownat SYS_umask SYS_utimensat SYS_getxattr SYS_lgetxattr SYS_fgetxattr SYS_setxattr SYS_lsetxattr
            SYS_fsetxattr SYS_listxattr SYS_llistxattr SYS_flistxattr SYS_removexattr SYS_lremovexattr SYS_fremovexattr
            SYS_inotify_init1 SYS_inotify_add_watch SYS_inotify_rm_watch SYS_mknodat
        ],
    ),
    (
        "waiting for many things",
        calls![
            SYS_ppoll SYS_pselect6 SYS_epoll_create1 SYS_epoll_ctl SYS_epoll_pwait SYS_epoll_pwait2 SYS_eventfd2
            SYS_signalfd4 SYS_timerfd_create SYS_timerfd_settime SYS_timerfd_gettime
        ],
    ),
    (
        "processes and threads of its own PID namespace",
        calls![
            SYS_execve SYS_execveat SYS_exit SYS_exit_group SYS_wait4 SYS_waitid SYS_getpid SYS_getppid SYS_gettid
            SYS_set_tid_address SYS_set_robust_list SYS_get_robust_list SYS_rseq SYS_futex SYS_futex_waitv SYS_futex_wake
            SYS_futex_wait SYS_futex_requeue SYS_getpgid SYS_setpgid SYS_getsid SYS_setsid SYS_prctl SYS_prlimit64
            SYS_getrlimit SYS_setrlimit SYS_getrusage SYS_times SYS_sched_yield SYS_sched_getaffinity
            SYS_sched_setaffinity SYS_sched_getparam SYS_sched_setparam SYS_sched_getscheduler SYS_sched_setscheduler
            SYS_sched_get_priority_max SYS_sched_get_priority_min SYS_sched_rr_get_interval SYS_sched_getattr
            SYS_sched_setattr SYS_getpriority SYS_setpriority SYS_ioprio_get SYS_ioprio_set SYS_pidfd_open
            SYS_pidfd_send_signal SYS_getcpu SYS_restart_syscall
        ],
    ),
    (
        "signals, which reach only its own PID namespace",
        calls![
            SYS_kill SYS_tkill SYS_tgkill SYS_rt_sigaction SYS_rt_sigprocmask SYS_rt_sigpending SYS_rt_sigreturn
            SYS_rt_sigsuspend SYS_rt_sigtimedwait SYS_rt_sigqueueinfo SYS_rt_tgsigqueueinfo SYS_sigaltstack
        ],
    ),
    (
        "clocks and timers",
        calls![
            SYS_clock_gettime SYS_clock_getres SYS_clock_nanosleep SYS_gettimeofday SYS_nanosleep SYS_getitimer
            SYS_setitimer SYS_timer_create SYS_timer_delete SYS_timer_getoverrun SYS_timer_gettime SYS_timer_settime
        ],
    ),
    (
        "who it is; without capabilities nothing can be gained",
        calls![
            SYS_getuid SYS_geteuid SYS_getgid SYS_getegid SYS_getresuid SYS_getresgid SYS_getgroups SYS_setuid
            SYS_setgid SYS_setreuid SYS_setregid SYS_setresuid SYS_setresgid SYS_setgroups SYS_setfsuid SYS_setfsgid
            SYS_capget SYS_capset
        ],
    ),
    (
        "sockets; which ones can be made is decided below",
        calls![
            SYS_bind SYS_listen SYS_accept SYS_accept4 SYS_connect SYS_getsockname SYS_getpeername SYS_sendto SYS_recvfrom
            SYS_sendmsg SYS_recvmsg SYS_sendmmsg SYS_recvmmsg SYS_shutdown SYS_setsockopt SYS_getsockopt
        ],
    ),
    (
        "System V and POSIX IPC of its own namespace",
        calls![
            SYS_shmget SYS_shmat SYS_shmdt SYS_shmctl SYS_semget SYS_semop SYS_semtimedop SYS_semctl SYS_msgget
            SYS_msgsnd SYS_msgrcv SYS_msgctl SYS_mq_open SYS_mq_unlink SYS_mq_timedsend SYS_mq_timedreceive SYS_mq_notify
            SYS_mq_getsetattr
        ],
    ),
    ("asking the system about itself", calls![SYS_uname SYS_sysinfo SYS_getrandom]),
    (
        "further restrictions that a program puts on itself",
        calls![
            SYS_landlock_create_ruleset SYS_landlock_add_rule SYS_landlock_restrict_self
        ],
    ),
    (
        "decided by other filters, which answer more precisely than this one could",
        calls![
            SYS_ioctl SYS_seccomp SYS_sync SYS_syncfs SYS_personality
        ],
    ),
];

/// The older names of calls above, which only x86-64 still has.
#[cfg(target_arch = "x86_64")]
const ALLOWED_HERE: &[c_long] = calls![
    SYS_open SYS_creat SYS_stat SYS_lstat SYS_access SYS_mkdir SYS_rmdir SYS_unlink SYS_rename SYS_link SYS_symlink
    SYS_readlink SYS_chmod SYS_chown SYS_lchown SYS_utime SYS_utimes SYS_futimesat SYS_getdents SYS_dup2 SYS_pipe
    SYS_poll SYS_select SYS_epoll_create SYS_epoll_wait SYS_eventfd SYS_signalfd SYS_inotify_init SYS_fork SYS_vfork
    SYS_getpgrp SYS_pause SYS_alarm SYS_time SYS_arch_prctl SYS_mknod SYS_map_shadow_stack
];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_HERE: &[c_long] = &[];

/// Known calls that need a privilege nobody has here. Programs test for EPERM.
const FORBIDDEN: &[(&str, &[c_long])] = &[
    (
        "mounts and namespaces: what the sandbox itself is made of",
        calls![
            SYS_unshare SYS_setns SYS_mount SYS_umount2 SYS_pivot_root SYS_chroot SYS_open_tree SYS_move_mount SYS_fsopen
            SYS_fsconfig SYS_fsmount SYS_fspick SYS_mount_setattr SYS_quotactl SYS_quotactl_fd
        ],
    ),
    ("file handles lead past every root directory", calls![SYS_name_to_handle_at SYS_open_by_handle_at]),
    (
        "looking into other processes, and the kernel's own machinery",
        calls![
            SYS_ptrace SYS_process_vm_readv SYS_process_vm_writev SYS_process_madvise SYS_kcmp SYS_pidfd_getfd
            SYS_perf_event_open SYS_bpf SYS_userfaultfd
        ],
    ),
    (
        "the machine itself",
        calls![
            SYS_init_module SYS_finit_module SYS_delete_module SYS_kexec_load SYS_reboot SYS_swapon SYS_swapoff SYS_acct
            SYS_syslog SYS_settimeofday SYS_clock_settime SYS_adjtimex SYS_clock_adjtime SYS_sethostname
            SYS_setdomainname SYS_vhangup SYS_fanotify_init SYS_fanotify_mark
        ],
    ),
    (
        "memory placement, which reveals and disturbs neighbours",
        calls![
            SYS_mbind SYS_set_mempolicy SYS_get_mempolicy SYS_move_pages SYS_migrate_pages
        ],
    ),
];

#[cfg(target_arch = "x86_64")]
const FORBIDDEN_HERE: &[c_long] = calls![SYS_iopl SYS_ioperm SYS_modify_ldt SYS_uselib SYS_ustat SYS_sysfs];
#[cfg(not(target_arch = "x86_64"))]
const FORBIDDEN_HERE: &[c_long] = &[];

/// Calls that feed pages of files into the kernel's pipes and sockets: the road of every page cache
/// bug, and the layers' pages are shared between runs. With EINVAL programs copy by hand instead.
const ZERO_COPY: &[c_long] = calls![SYS_splice SYS_vmsplice SYS_tee SYS_sendfile];

/// `ioctl` requests that push input into a terminal or freeze a file system; only the low half of
/// the argument counts, because the kernel looks at no more.
const FORBIDDEN_IOCTLS: &[u64] = &[
    0x5412,      // TIOCSTI
    0x541C,      // TIOCLINUX
    0x5423,      // TIOCSETD
    0xC004_5877, // FIFREEZE
    0xC004_5878, // FITHAW
];

/// Socket options that reach rarely used kernel code: (level, option).
const FORBIDDEN_SOCKET_OPTIONS: &[(u64, u64)] = &[
    (1, 26),   // SO_ATTACH_FILTER
    (1, 50),   // SO_ATTACH_BPF
    (1, 51),   // SO_ATTACH_REUSEPORT_CBPF
    (1, 52),   // SO_ATTACH_REUSEPORT_EBPF
    (1, 60),   // SO_ZEROCOPY
    (6, 19),   // TCP_REPAIR
    (6, 31),   // TCP_ULP
    (17, 100), // UDP_ENCAP
    (0, 17),   // IP_XFRM_POLICY
    (41, 35),  // IPV6_XFRM_POLICY
    (41, 32),  // IPV6_FLOWLABEL_MGR
];

/// The kinds of socket that exist: (family, type, protocol). No raw, packet, netlink, crypto or
/// vsock ones, no protocol whose kernel module would be loaded for it.
const SOCKETS: &[(i32, i32, u64)] = &[
    (libc::AF_UNIX, libc::SOCK_STREAM, 0),
    (libc::AF_UNIX, libc::SOCK_DGRAM, 0),
    (libc::AF_UNIX, libc::SOCK_SEQPACKET, 0),
    (libc::AF_INET, libc::SOCK_STREAM, 0),
    (libc::AF_INET, libc::SOCK_STREAM, 6),
    (libc::AF_INET, libc::SOCK_DGRAM, 0),
    (libc::AF_INET, libc::SOCK_DGRAM, 17),
    (libc::AF_INET, libc::SOCK_DGRAM, 1),
    (libc::AF_INET6, libc::SOCK_STREAM, 0),
    (libc::AF_INET6, libc::SOCK_STREAM, 6),
    (libc::AF_INET6, libc::SOCK_DGRAM, 0),
    (libc::AF_INET6, libc::SOCK_DGRAM, 17),
    (libc::AF_INET6, libc::SOCK_DGRAM, 58),
];

/// Every namespace flag of `clone`.
const NAMESPACE_FLAGS: [i32; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// The filters in the order in which they are installed.
pub(crate) fn command_filters() -> &'static [BpfProgram] {
    static FILTERS: OnceLock<Vec<BpfProgram>> = OnceLock::new();
    FILTERS.get_or_init(|| compile_all().expect("the policy is constant and its test compiles it"))
}

fn compile_all() -> Result<Vec<BpfProgram>, seccompiler::BackendError> {
    Ok(vec![
        compile(allowed()?, SeccompAction::Errno(Errno::ENOSYS as u32), SeccompAction::Allow)?,
        compile(refused_sockets()?, SeccompAction::Allow, SeccompAction::Errno(Errno::EAFNOSUPPORT as u32))?,
        compile(always(ZERO_COPY), SeccompAction::Allow, SeccompAction::Errno(Errno::EINVAL as u32))?,
        compile(always(calls![SYS_sync SYS_syncfs]), SeccompAction::Allow, SeccompAction::Errno(0))?,
        compile(forbidden()?, SeccompAction::Allow, SeccompAction::Errno(Errno::EPERM as u32))?,
    ])
}

fn compile(
    rules: Rules,
    other: SeccompAction,
    matched: SeccompAction,
) -> Result<BpfProgram, seccompiler::BackendError> {
    SeccompFilter::new(rules, other, matched, ARCH)?.try_into()
}

fn always(calls: &[c_long]) -> Rules {
    calls.iter().map(|call| (*call, Vec::new())).collect()
}

fn when(argument: u8, operation: Op, value: u64) -> Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(argument, Len::Dword, operation, value)
}

fn allowed() -> Result<Rules, seccompiler::BackendError> {
    let mut rules = always(ALLOWED_HERE);
    for (_reason, calls) in ALLOWED {
        rules.append(&mut always(calls));
    }
    rules.insert(libc::SYS_clone, Vec::new());
    let mut kinds = Vec::new();
    for (family, kind, protocol) in SOCKETS {
        kinds.push(SeccompRule::new(vec![
            when(0, Op::Eq, *family as u64)?,
            when(1, Op::MaskedEq(0xf), *kind as u64)?,
            when(2, Op::Eq, *protocol)?,
        ])?);
    }
    rules.insert(libc::SYS_socket, kinds);
    let unix = SeccompRule::new(vec![when(0, Op::Eq, libc::AF_UNIX as u64)?])?;
    rules.insert(libc::SYS_socketpair, vec![unix]);
    Ok(rules)
}

/// Sockets of a family that isn't there say so; of the others, kinds that aren't are ENOSYS.
fn refused_sockets() -> Result<Rules, seccompiler::BackendError> {
    let families = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6];
    let other =
        families.into_iter().map(|family| when(0, Op::Ne, family as u64)).collect::<Result<_, _>>()?;
    let not_unix = vec![when(0, Op::Ne, libc::AF_UNIX as u64)?];
    Ok(Rules::from([
        (libc::SYS_socket, vec![SeccompRule::new(other)?]),
        (libc::SYS_socketpair, vec![SeccompRule::new(not_unix)?]),
    ]))
}

fn forbidden() -> Result<Rules, seccompiler::BackendError> {
    let mut rules = always(FORBIDDEN_HERE);
    for (_reason, calls) in FORBIDDEN {
        rules.append(&mut always(calls));
    }
    let one = |condition| SeccompRule::new(vec![condition]);
    let mut namespaces = Vec::new();
    for flag in NAMESPACE_FLAGS {
        namespaces.push(one(when(0, Op::MaskedEq(flag as u32 as u64), flag as u32 as u64)?)?);
    }
    rules.insert(libc::SYS_clone, namespaces);
    let mut ioctls = Vec::new();
    for request in FORBIDDEN_IOCTLS {
        ioctls.push(one(when(1, Op::Eq, *request)?)?);
    }
    rules.insert(libc::SYS_ioctl, ioctls);
    let mut options = Vec::new();
    for (level, option) in FORBIDDEN_SOCKET_OPTIONS {
        options.push(SeccompRule::new(vec![when(1, Op::Eq, *level)?, when(2, Op::Eq, *option)?])?);
    }
    rules.insert(libc::SYS_setsockopt, options);
    // A listener could answer for its children's calls.
    rules.insert(libc::SYS_seccomp, vec![one(when(1, Op::MaskedEq(8), 8)?)?]);
    let personalities = [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff];
    let other = personalities.into_iter().map(|value| when(0, Op::Ne, value)).collect::<Result<_, _>>()?;
    rules.insert(libc::SYS_personality, vec![SeccompRule::new(other)?]);
    let mut devices = Vec::new();
    for kind in [libc::S_IFCHR, libc::S_IFBLK] {
        devices.push(one(when(2, Op::MaskedEq(u64::from(libc::S_IFMT)), u64::from(kind))?)?);
    }
    rules.insert(libc::SYS_mknodat, devices);
    Ok(rules)
}

/// The jail in which layers are unpacked needs files and little else; all else ends it.
pub(crate) fn jail_filter() -> Result<BpfProgram, seccompiler::BackendError> {
    let calls: &[c_long] = calls![
        SYS_read SYS_write SYS_readv SYS_writev SYS_pread64 SYS_pwrite64 SYS_lseek SYS_close SYS_fcntl SYS_ftruncate
        SYS_openat SYS_openat2 SYS_newfstatat SYS_fstat SYS_statx SYS_fstatfs SYS_faccessat SYS_faccessat2
        SYS_getdents64 SYS_mkdirat SYS_unlinkat SYS_renameat SYS_renameat2 SYS_linkat SYS_symlinkat SYS_readlinkat
        SYS_mknodat SYS_fchmod SYS_fchmodat SYS_fchmodat2 SYS_fchown SYS_fchownat SYS_utimensat SYS_fsetxattr
        SYS_setxattr SYS_lsetxattr SYS_fgetxattr SYS_fallocate SYS_umask SYS_dup SYS_dup3 SYS_sendmsg SYS_recvmsg
        SYS_sendto SYS_recvfrom SYS_poll SYS_ppoll SYS_brk SYS_mmap SYS_munmap SYS_mremap SYS_mprotect SYS_madvise
        SYS_futex SYS_getrandom SYS_clock_gettime SYS_gettimeofday SYS_sched_yield SYS_sigaltstack SYS_rt_sigaction
        SYS_rt_sigprocmask SYS_rt_sigreturn SYS_getpid SYS_gettid SYS_tgkill SYS_exit SYS_exit_group
        SYS_restart_syscall SYS_rseq SYS_copy_file_range SYS_ioctl SYS_sched_getaffinity
    ];
    compile(always(calls), SeccompAction::Errno(Errno::EPERM as u32), SeccompAction::Allow)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_compiles_and_no_call_is_both_allowed_and_forbidden() {
        assert_eq!(compile_all().unwrap().len(), 5);
        jail_filter().unwrap();
        let allowed: Vec<c_long> = ALLOWED.iter().flat_map(|(_, calls)| calls.iter().copied()).collect();
        for (reason, calls) in FORBIDDEN {
            for call in *calls {
                assert!(!allowed.contains(call), "{call} is allowed although: {reason}");
            }
        }
    }
}
