//! Category P: what `/proc` and `/sys` tell, and what can be written there.

use support::Daemon;

use crate::attack::{Attack, attack, repel, repel_on};

const ATTACKS: &[Attack] = &[
    attack(
        "P-01",
        "writing the kernel's settings",
        r#"print(same(written(path, b"1") for path in ("/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger",
            "/proc/sys/vm/drop_caches", "/proc/sys/kernel/modprobe", "/proc/sys/net/ipv4/ip_forward")))"#,
        &["ENOENT"],
    ),
    attack(
        "P-02",
        "reading the kernel's files",
        r#"print(same(content("/proc/" + path) for path in ("kcore", "kmsg", "kallsyms", "keys", "key-users",
            "timer_list", "slabinfo", "iomem", "config.gz", "cmdline", "partitions", "diskstats", "modules",
            "interrupts", "meminfo", "uptime", "loadavg", "version", "sys/kernel/hostname")))"#,
        &["ENOENT"],
    ),
    attack(
        "P-03",
        "looking into PID 1",
        r#"print(same(content("/proc/1/" + path) for path in ("environ", "maps", "mem", "auxv", "cmdline", "stack")),
      same(tried(os.readlink, "/proc/1/" + path) for path in ("root", "cwd", "exe", "ns/user", "fd/0")))"#,
        &["ENOENT ENOENT"],
    ),
    attack(
        "P-04",
        "listing processes",
        r#"print([pid for pid in os.listdir("/proc") if pid.isdigit()] == [str(os.getpid())], os.getpid() < 10)"#,
        &["True True"],
    ),
    attack(
        "P-06",
        "reading which control group it is in",
        r#"
print(same(line.split(":")[2] for line in open("/proc/self/cgroup").read().splitlines()))"#,
        &["/"],
    ),
    attack(
        "P-07",
        "changing who it is to the kernel",
        r#"print(same(written("/proc/self/" + path, text) for path, text in (("oom_score_adj", b"-1000"),
            ("uid_map", b"0 0 1"), ("gid_map", b"0 0 1"), ("setgroups", b"allow"))))"#,
        &["EACCES EPERM", "EPERM", "EACCES", "EPERM EACCES"],
    ),
    attack(
        "P-09",
        "finding its place among the host's ids",
        r#"
inside, outside, count = map(int, open("/proc/self/uid_map").read().split())
print(inside, outside >= 1024, count >= 1)"#,
        &["0 True True"],
    ),
    attack(
        "P-10",
        "reading and writing /sys",
        r#"print(tried(os.listdir, "/sys"), content("/sys/kernel/notes"), tried(os.mkdir, "/sys/fs/cgroup/x"))"#,
        &["ENOENT ENOENT ENOENT", "[] ENOENT ENOENT"],
    ),
    attack(
        "P-13",
        "having a core file written",
        r#"
import resource, signal
print(resource.getrlimit(resource.RLIMIT_CORE), tried(resource.prlimit, 0, resource.RLIMIT_CORE, (1, 1)))
os.kill(os.getpid(), signal.SIGSEGV)"#,
        &["(1, 1) (1, 1)"],
    )
    .ends("signaled"),
    attack(
        "P-14",
        "other runs' numbers by sysinfo's back doors",
        r#"print(same(content(path) for path in ("/proc/stat", "/proc/vmstat", "/proc/net/dev", "/proc/pressure/cpu")))"#,
        &["ENOENT", "ENOENT b''"],
    ),
    attack(
        "P-15",
        "another proc, by way of its own",
        r#"print(tried(os.listdir, "/proc/self/task/1"), content("/proc/self/root/proc/1/status"),
      content("/proc/thread-self/root/etc/shadow"))"#,
        &["ENOENT ENOENT ENOENT"],
    ),
];

/// The profile `compat` has a fuller `/proc`; what matters stays covered.
const COMPAT: &[Attack] = &[
    attack(
        "P-21",
        "writing the kernel's settings from a full /proc",
        r#"print(same(written("/proc/sys/" + path, b"1") for path in ("kernel/core_pattern", "vm/drop_caches",
            "kernel/modprobe", "net/ipv4/ip_forward", "kernel/shmmax", "fs/mqueue/msg_max")))"#,
        &["EROFS", "EACCES EROFS", "EROFS ENOENT", "EACCES ENOENT EROFS"],
    )
    .with(r#"{"profile": "compat"}"#),
    attack(
        "P-22",
        "reading the kernel's files from a full /proc",
        r#"
hidden = ("kcore", "kmsg", "kallsyms", "keys", "key-users", "timer_list", "slabinfo", "iomem", "config.gz",
          "cmdline", "partitions", "diskstats", "interrupts", "sysvipc", "irq", "bus")
def seen(name):
    path = "/proc/" + name
    if os.path.isdir(path):
        return os.listdir(path)
    return content(path) if os.path.exists(path) else b""
print([name for name in hidden if seen(name)])"#,
        &["[]"],
    )
    .with(r#"{"profile": "compat"}"#),
    attack(
        "P-23",
        "seeing anybody else in a full /proc",
        r#"
trigger = tried(os.stat, "/proc/sysrq-trigger")
covered = trigger == "ENOENT" or stat.S_ISCHR(trigger.st_mode)
print([pid for pid in os.listdir("/proc") if pid.isdigit()] == [str(os.getpid())], content("/proc/1/environ"), covered)"#,
        &["True ENOENT True"],
    )
    .with(r#"{"profile": "compat"}"#),
    attack(
        "P-24",
        "taking the covers off",
        r#"print(same((call(166, b"/proc/keys", 0), call(166, b"/proc/sys", 2), call(272, 0x00020000),
            call(56, 0x10000000, 0, 0, 0, 0))))"#,
        &["EPERM"],
    )
    .with(r#"{"profile": "compat"}"#),
    attack(
        "P-25",
        "using more than the seven capabilities",
        r#"
caps = [line.split()[1] for line in open("/proc/self/status") if line.startswith("Cap")]
print(caps == ["0" * 16] + ["00000000000000fb"] * 3 + ["0" * 16], tried(os.chown, "/tmp", 1000, 1000),
      tried(os.chown, "/tmp", 70000, 0), same((call(165, b"n", b"/tmp", b"tmpfs", 0, 0), tried(socket.sethostname, "x"))))"#,
        &["True ok EINVAL EPERM"],
    )
    .with(r#"{"profile": "compat"}"#),
];

#[test]
fn proc_and_sys_tell_nothing_and_take_nothing() {
    repel(ATTACKS);
}

#[test]
fn a_fuller_proc_is_still_covered_where_it_matters() {
    repel_on(Daemon::builder().host_image().arg("--allow-compat"), COMPAT);
}
