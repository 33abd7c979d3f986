//! Which system calls a program may make, as data: every group has its reason. A call that is not
//! named here does not exist for the program (ENOSYS), so that what kernels add later stays shut until
//! somebody has thought about it.

use std::collections::BTreeMap;

use nix::errno::Errno;
use nix::libc::{self, c_int, c_long};
use run::Profile;

/// What the kernel answers to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Allow,
    Refuse(Errno),
    /// Does nothing and says that it is done.
    Pretend,
}

/// A test of one argument. Only the low half counts, because the kernel looks at no more of those
/// that are tested here; a test of both halves could be passed by a garbled upper one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Test {
    pub(super) argument: u8,
    pub(super) mask: u32,
    pub(super) value: u32,
}

/// If every test holds, this is the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Case {
    pub(super) tests: Vec<Test>,
    pub(super) answer: Answer,
}

/// The first case that holds decides, else `otherwise`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Decision {
    pub(super) name: &'static str,
    pub(super) cases: Vec<Case>,
    pub(super) otherwise: Answer,
}

impl Decision {
    pub(super) fn plain(name: &'static str, answer: Answer) -> Self {
        Self { name, cases: Vec::new(), otherwise: answer }
    }
}

/// One decision for every call that is named.
pub(super) type Policy = BTreeMap<u32, Decision>;

/// A call by its name and its number on this machine.
type Call = (&'static str, c_long);
type Groups = &'static [(&'static str, &'static [Call])];

/// The numbers of system calls, with those that the C library's bindings don't know yet, or not on every processor.
#[allow(non_upper_case_globals)]
mod number {
    pub(super) use nix::libc::*;

    pub(super) const SYS_fchmodat2: c_long = 452;
    pub(super) const SYS_map_shadow_stack: c_long = 453;
    pub(super) const SYS_futex_wake: c_long = 454;
    pub(super) const SYS_futex_wait: c_long = 455;
    pub(super) const SYS_futex_requeue: c_long = 456;
    pub(super) const SYS_setxattrat: c_long = 463;
    pub(super) const SYS_getxattrat: c_long = 464;
    pub(super) const SYS_listxattrat: c_long = 465;
    pub(super) const SYS_removexattrat: c_long = 466;
}

macro_rules! calls {
    ($($name:ident)*) => { &[$((stringify!($name), number::$name)),*] };
}

/// Calls that any program may make, whatever their arguments.
const ALLOWED: Groups = &[
    (
        "memory of its own; the cgroup bounds it",
        calls![
            SYS_brk SYS_munmap SYS_mremap SYS_mprotect SYS_madvise SYS_msync SYS_mlock SYS_mlock2 SYS_munlock
            SYS_mlockall SYS_munlockall SYS_membarrier SYS_pkey_alloc SYS_pkey_free SYS_pkey_mprotect SYS_mseal
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
            SYS_fsetxattr SYS_setxattrat SYS_getxattrat SYS_listxattrat SYS_removexattrat SYS_listxattr SYS_llistxattr SYS_flistxattr SYS_removexattr SYS_lremovexattr SYS_fremovexattr
            SYS_inotify_init1 SYS_inotify_add_watch SYS_inotify_rm_watch
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
            SYS_futex_wait SYS_futex_requeue SYS_getpgid SYS_setpgid SYS_getsid SYS_setsid SYS_prlimit64
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
            SYS_sendmsg SYS_recvmsg SYS_sendmmsg SYS_recvmmsg SYS_shutdown SYS_getsockopt
        ],
    ),
    (
        "System V and POSIX IPC of its own namespace",
        calls![
            SYS_shmat SYS_shmdt SYS_shmctl SYS_semget SYS_semop SYS_semtimedop SYS_semctl SYS_msgget
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
];

/// The older names of calls above, which only x86-64 still has.
#[cfg(target_arch = "x86_64")]
const ALLOWED_HERE: &[Call] = calls![
    SYS_open SYS_creat SYS_stat SYS_lstat SYS_access SYS_mkdir SYS_rmdir SYS_unlink SYS_rename SYS_link SYS_symlink
    SYS_readlink SYS_chmod SYS_chown SYS_lchown SYS_utime SYS_utimes SYS_futimesat SYS_getdents SYS_dup2 SYS_pipe
    SYS_poll SYS_select SYS_epoll_create SYS_epoll_wait SYS_eventfd SYS_signalfd SYS_inotify_init SYS_fork SYS_vfork
    SYS_getpgrp SYS_pause SYS_alarm SYS_time SYS_arch_prctl SYS_map_shadow_stack
];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_HERE: &[Call] = &[];

/// Known calls that need a privilege nobody has here. Programs test for EPERM.
const FORBIDDEN: Groups = &[
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
const FORBIDDEN_HERE: &[Call] = calls![SYS_iopl SYS_ioperm SYS_modify_ldt SYS_uselib SYS_ustat SYS_sysfs];
#[cfg(not(target_arch = "x86_64"))]
const FORBIDDEN_HERE: &[Call] = &[];

/// Calls that feed pages of files into the kernel's pipes and sockets: the road of every page cache
/// bug, and the layers' pages are shared between runs. With EINVAL programs copy by hand instead; with
/// EPERM some give up.
const ZERO_COPY: &[Call] = calls![SYS_splice SYS_vmsplice SYS_tee SYS_sendfile];

/// Would make the whole machine write to its disks, and the run has none.
const HOST_WIDE_WRITES: &[Call] = calls![SYS_sync SYS_syncfs];

/// `ioctl` requests that push input into a terminal, freeze a file system or seal a file for good; and
/// those of any socket for which the kernel loads a module into itself before it asks who wants it.
const FORBIDDEN_IOCTLS: &[(&str, u32)] = &[
    ("TIOCSTI", 0x5412),
    ("TIOCLINUX", 0x541C),
    ("TIOCSETD", 0x5423),
    ("FIFREEZE", 0xC004_5877),
    ("FITHAW", 0xC004_5878),
    ("FS_IOC_ENABLE_VERITY", 0x4080_6685),
    ("SIOCGIFBR", 0x8940),
    ("SIOCSIFBR", 0x8941),
    ("SIOCBRADDBR", 0x89A0),
    ("SIOCBRDELBR", 0x89A1),
    ("SIOCGIFVLAN", 0x8982),
    ("SIOCSIFVLAN", 0x8983),
];

/// Socket options that reach rarely used kernel code: (name, level, option). UDP's options are those of
/// UDP-Lite's level (136) too, on every UDP socket.
const FORBIDDEN_SOCKET_OPTIONS: &[(&str, u32, u32)] = &[
    ("SO_ATTACH_FILTER", 1, 26),
    ("SO_ATTACH_BPF", 1, 50),
    ("SO_ATTACH_REUSEPORT_CBPF", 1, 51),
    ("SO_ATTACH_REUSEPORT_EBPF", 1, 52),
    ("SO_ZEROCOPY", 1, 60),
    ("IP_IPSEC_POLICY", 0, 16),
    ("IP_XFRM_POLICY", 0, 17),
    ("TCP_REPAIR", 6, 19),
    ("TCP_ULP", 6, 31),
    ("TCP_AO_ADD_KEY", 6, 38),
    ("UDP_ENCAP", 17, 100),
    ("UDP_ENCAP", 136, 100),
    ("IPV6_FLOWLABEL_MGR", 41, 32),
    ("IPV6_IPSEC_POLICY", 41, 34),
    ("IPV6_XFRM_POLICY", 41, 35),
];

/// The kinds of socket that exist: (family, type, protocol). No raw, packet, netlink, crypto or
/// vsock ones, no protocol whose kernel module would be loaded for it.
const SOCKETS: &[(c_int, c_int, u32)] = &[
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

/// Asking for the own network's interfaces and routes, as `getifaddrs` does.
const ROUTE_SOCKETS: &[(c_int, c_int, u32)] =
    &[(libc::AF_NETLINK, libc::SOCK_RAW, 0), (libc::AF_NETLINK, libc::SOCK_DGRAM, 0)];

/// Every namespace flag of `clone`; `clone3` hides them behind a pointer and so does not exist.
const NAMESPACE_FLAGS: [c_int; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

/// Plain Linux, 32-bit addresses, no ASLR for a debugger, both, and "which one is it?".
const PERSONALITIES: [u32; 5] = [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// A listener could answer for its children's calls.
const SECCOMP_FILTER_FLAG_NEW_LISTENER: u32 = 8;

/// Pages of the machine's pool of huge ones: no cgroup for memory is charged for them, and what one run has taken no
/// other program of the machine gets. It is as if the pool were empty.
const HUGE_PAGES: [(c_long, &str, u8, u32); 3] = [
    (libc::SYS_mmap, "SYS_mmap", 3, libc::MAP_HUGETLB as u32),
    (libc::SYS_memfd_create, "SYS_memfd_create", 1, libc::MFD_HUGETLB),
    (libc::SYS_shmget, "SYS_shmget", 2, libc::SHM_HUGETLB as u32),
];

/// Filters of a program's own, by both calls that install them. What the kernel translates them to is charged to no
/// cgroup and bounded for the whole machine (`net.core.bpf_jit_limit`), and a kernel that has nothing but the
/// translator then refuses the filters of all other runs. Programs are told what kernels without filters say.
const SECCOMP_SET_MODE_FILTER: u32 = 1;
const SECCOMP_MODE_FILTER: u32 = 2;

/// The policy for commands.
pub(super) fn command(profile: Profile) -> Policy {
    let mut policy = Policy::new();
    let mut all = |calls: &[Call], answer| {
        for (name, number) in calls {
            let old = policy.insert(*number as u32, Decision::plain(name, answer));
            debug_assert!(old.is_none(), "{name} is decided twice");
        }
    };
    all(ALLOWED_HERE, Answer::Allow);
    all(FORBIDDEN_HERE, Answer::Refuse(Errno::EPERM));
    ALLOWED.iter().for_each(|(_reason, calls)| all(calls, Answer::Allow));
    FORBIDDEN.iter().for_each(|(_reason, calls)| all(calls, Answer::Refuse(Errno::EPERM)));
    all(HOST_WIDE_WRITES, Answer::Pretend);
    let zero_copy = match profile {
        Profile::Strict => Answer::Refuse(Errno::EINVAL),
        Profile::Compat => Answer::Allow,
    };
    all(ZERO_COPY, zero_copy);
    for (number, decision) in by_argument(profile) {
        let old = policy.insert(number as u32, decision);
        debug_assert!(old.is_none(), "call {number} is decided twice");
    }
    policy
}

/// For a command whose cores are its own: nothing but what moves it to others.
pub(super) fn pinned(profile: Profile) -> Policy {
    let mut policy = command(profile);
    let refused = Decision::plain("SYS_sched_setaffinity", Answer::Refuse(Errno::EPERM));
    policy.insert(number::SYS_sched_setaffinity as u32, refused);
    policy
}

fn is(argument: u8, value: u32) -> Test {
    Test { argument, mask: u32::MAX, value }
}

fn has(argument: u8, bits: u32) -> Test {
    Test { argument, mask: bits, value: bits }
}

fn refuse(errno: Errno, tests: Vec<Test>) -> Case {
    Case { tests, answer: Answer::Refuse(errno) }
}

fn allow(tests: Vec<Test>) -> Case {
    Case { tests, answer: Answer::Allow }
}

/// The calls whose arguments decide.
fn by_argument(profile: Profile) -> Vec<(c_long, Decision)> {
    let eperm = |tests| refuse(Errno::EPERM, tests);
    let clone = NAMESPACE_FLAGS.iter().map(|flag| eperm(vec![has(0, *flag as u32)])).collect();
    let ioctl = FORBIDDEN_IOCTLS.iter().map(|(_, request)| eperm(vec![is(1, *request)])).collect();
    let options = FORBIDDEN_SOCKET_OPTIONS;
    let setsockopt =
        options.iter().map(|(_, level, name)| eperm(vec![is(1, *level), is(2, *name)])).collect();
    let personality = PERSONALITIES.iter().map(|value| allow(vec![is(0, *value)])).collect();
    let devices = |mode: u8| {
        let kind = |kind| Test { argument: mode, mask: libc::S_IFMT, value: kind };
        [libc::S_IFCHR, libc::S_IFBLK].into_iter().map(|device| eperm(vec![kind(device)])).collect()
    };
    let allowed = |name, cases| Decision { name, cases, otherwise: Answer::Allow };
    let huge = HUGE_PAGES.map(|(number, name, flags, huge)| {
        (number, allowed(name, vec![refuse(Errno::ENOMEM, vec![has(flags, huge)])]))
    });
    let refused = |name, cases, errno| Decision { name, cases, otherwise: Answer::Refuse(errno) };
    let others = [
        (libc::SYS_clone, allowed("SYS_clone", clone)),
        (libc::SYS_ioctl, allowed("SYS_ioctl", ioctl)),
        (libc::SYS_setsockopt, allowed("SYS_setsockopt", setsockopt)),
        (
            libc::SYS_seccomp,
            allowed(
                "SYS_seccomp",
                vec![
                    eperm(vec![has(1, SECCOMP_FILTER_FLAG_NEW_LISTENER)]),
                    refuse(Errno::EINVAL, vec![is(0, SECCOMP_SET_MODE_FILTER)]),
                ],
            ),
        ),
        (
            libc::SYS_prctl,
            allowed(
                "SYS_prctl",
                vec![refuse(
                    Errno::EINVAL,
                    vec![is(0, libc::PR_SET_SECCOMP as u32), is(1, SECCOMP_MODE_FILTER)],
                )],
            ),
        ),
        (libc::SYS_personality, refused("SYS_personality", personality, Errno::EPERM)),
        (libc::SYS_mknodat, allowed("SYS_mknodat", devices(2))),
        (libc::SYS_socket, refused("SYS_socket", sockets(profile), Errno::EAFNOSUPPORT)),
        (
            libc::SYS_socketpair,
            refused("SYS_socketpair", vec![allow(vec![is(0, libc::AF_UNIX as u32)])], Errno::EAFNOSUPPORT),
        ),
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_mknod, allowed("SYS_mknod", devices(1))),
    ];
    huge.into_iter().chain(others).collect()
}

/// A family that isn't there says so; of the others, so do kinds and protocols that aren't.
fn sockets(profile: Profile) -> Vec<Case> {
    const KIND: u32 = 0xf;
    let kinds = match profile {
        Profile::Strict => SOCKETS.to_vec(),
        Profile::Compat => [SOCKETS, ROUTE_SOCKETS].concat(),
    };
    let mut cases: Vec<Case> = kinds
        .iter()
        .map(|(family, kind, protocol)| {
            let kind = Test { argument: 1, mask: KIND, value: *kind as u32 };
            allow(vec![is(0, *family as u32), kind, is(2, *protocol)])
        })
        .collect();
    for family in [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6] {
        cases.push(refuse(Errno::EPROTONOSUPPORT, vec![is(0, family as u32)]));
    }
    cases
}

/// What a C library passes to `clone` for a thread, and for nothing else.
const THREAD: c_int = libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM
    | libc::CLONE_SETTLS
    | libc::CLONE_PARENT_SETTID
    | libc::CLONE_CHILD_CLEARTID;

/// The jail in which layers are unpacked and packed needs files, a second thread for them, and little else.
pub(super) fn jail() -> Policy {
    let calls: &[Call] = calls![
        SYS_read SYS_write SYS_readv SYS_writev SYS_pread64 SYS_pwrite64 SYS_lseek SYS_close SYS_fcntl SYS_ftruncate
        SYS_openat SYS_openat2 SYS_newfstatat SYS_fstat SYS_statx SYS_fstatfs SYS_faccessat SYS_faccessat2
        SYS_getdents64 SYS_mkdirat SYS_unlinkat SYS_renameat SYS_renameat2 SYS_linkat SYS_symlinkat SYS_readlinkat
        SYS_mknodat SYS_fchmod SYS_fchmodat SYS_fchmodat2 SYS_fchown SYS_fchownat SYS_utimensat SYS_fsetxattr
        SYS_setxattr SYS_lsetxattr SYS_fgetxattr SYS_flistxattr SYS_fallocate SYS_umask SYS_dup SYS_dup3 SYS_sendmsg SYS_recvmsg
        SYS_sendto SYS_recvfrom SYS_ppoll SYS_brk SYS_mmap SYS_munmap SYS_mremap SYS_mprotect SYS_madvise
        SYS_futex SYS_getrandom SYS_clock_gettime SYS_gettimeofday SYS_sched_yield SYS_sigaltstack SYS_rt_sigaction
        SYS_rt_sigprocmask SYS_rt_sigreturn SYS_getpid SYS_gettid SYS_tgkill SYS_exit SYS_exit_group
        SYS_restart_syscall SYS_rseq SYS_copy_file_range SYS_ioctl SYS_sched_getaffinity SYS_setpriority SYS_sync_file_range SYS_set_robust_list
    ];
    #[cfg(target_arch = "x86_64")]
    let here: &[Call] = calls![SYS_poll];
    #[cfg(not(target_arch = "x86_64"))]
    let here: &[Call] = &[];
    let all = calls.iter().chain(here);
    let mut policy: Policy =
        all.map(|(name, number)| (*number as u32, Decision::plain(name, Answer::Allow))).collect();
    let (threads, nothing_else) = (vec![allow(vec![is(0, THREAD as u32)])], Answer::Refuse(Errno::EPERM));
    let clone = Decision { name: "SYS_clone", cases: threads, otherwise: nothing_else };
    policy.insert(libc::SYS_clone as u32, clone);
    // Its flags can't be seen; a C library that is told that there is no such call takes the other.
    policy.insert(libc::SYS_clone3 as u32, Decision::plain("SYS_clone3", Answer::Refuse(Errno::ENOSYS)));
    policy
}
