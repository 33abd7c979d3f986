//! Category P: what `/proc` and `/sys` tell, and what can be written there.

use support::{Daemon, Registry, json};

use crate::attack::{Attack, attack, repel, repel_on};

pub(crate) const ATTACKS: &[Attack] = &[
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
        "P-05",
        "reading what PID 1 calls itself",
        r#"print(same(content("/proc/1/" + path) for path in ("cmdline", "comm", "stat", "status", "task/1/comm")))"#,
        &["ENOENT"],
    ),
    attack(
        "P-08",
        "looking at processes in the moment when they end",
        r#"
end = time.monotonic() + 1
read, write = os.pipe()
for _ in range(20):
    if os.fork() == 0:
        seen = set()
        while time.monotonic() < end:
            if tried(os.fork) == 0:
                os._exit(0)
            for pid in os.listdir("/proc"):
                if pid.isdigit():
                    names = content(f"/proc/{pid}/comm"), tried(os.readlink, f"/proc/{pid}/root")
                    seen.update(str(word) for word in names if word not in ("ENOENT", "ESRCH"))
                    content(f"/proc/{pid}/environ"); tried(os.listdir, f"/proc/{pid}/fd"); content(f"/proc/{pid}/mem")
            while tried(os.waitpid, -1, os.WNOHANG) not in ((0, 0), "ECHILD"):
                pass
        os.write(write, ("\n".join(seen) + "\n").encode())
        os._exit(0)
os.close(write)
print(sorted(set(os.fdopen(read).read().split("\n")) - {""}))"#,
        &[r#"['/', "b'python3\\n'"]"#],
    ),
    attack(
        "P-11",
        "executing itself by way of /proc, and writing to what is executed",
        r#"
with open("/tmp/self", "w") as file:
    file.write('#!/proc/self/exe\nprint("itself", __name__)\n')
os.chmod("/tmp/self", 0o755)
ran = subprocess.run(["/tmp/self"], capture_output=True, text=True).stdout.strip()
print(ran, tried(os.open, "/proc/self/exe", os.O_WRONLY | os.O_TRUNC))"#,
        &["itself __main__ ETXTBSY", "itself __main__ EROFS", "itself __main__ EACCES"],
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
    .ends(&["signaled"]),
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
      content("/proc/thread-self/root" + CANARY))"#,
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
    repel_on(Daemon::builder().arg("--allow-compat"), COMPAT);
}

/// P-12: behind a descriptor that one of ours forgot to close there might be the host.
#[test]
fn no_descriptor_of_ours_is_a_place_to_start_in() {
    let daemon = Daemon::start();
    for number in 0..40 {
        for path in [format!("/proc/self/fd/{number}"), format!("/proc/self/fd/{number}/../../..")] {
            let request =
                json!({ "image": "host", "cmd": "ls", "args": ["-a", "../../.."], "workdir": path });
            let run = daemon.run(&request);
            assert_eq!(run["outcome"], "start_failed", "P-12 {path}: {run:#}");
            assert_eq!(run["stdout"], "", "P-12 {path}: {run:#}");
        }
    }
}

/// P-11: the program in front of the command is ours. Whoever has it executed again in its place gets
/// it as a program like any other, inside all walls, and can't change a byte of it.
#[test]
fn our_own_program_is_no_way_out() {
    let registry = Registry::start();
    let daemon = Daemon::builder().host_image().registry(&registry).start();
    let launcher = || std::fs::read(support::sandglass_launcher()).expect("read the launcher");
    let before = launcher();
    for image in ["host", &registry.image("busybox")] {
        let host = {
            daemon.run(&json!({ "image": image, "cmd": "true" }));
            daemon.host()
        };
        for (interpreter, cmd) in
            [("#!/proc/self/exe\n", "/tmp/e"), ("#!/tmp/link\n", "/tmp/e"), ("", "/proc/self/exe")]
        {
            let files = json!([{ "path": "/tmp/e", "text": interpreter, "mode": "0755" }]);
            let request = json!({ "image": image, "cmd": cmd, "args": ["run", "/tmp/e"], "files": files });
            let run = daemon.run(&request);
            let ended = run["outcome"].as_str().expect("an outcome");
            assert!(["start_failed", "exited"].contains(&ended), "P-11 {cmd}: {run:#}");
            assert_ne!((ended, &run["exit_code"]), ("exited", &json!(0)), "P-11 {cmd}: {run:#}");
            for number in 3..20 {
                let run = daemon.run(&json!({ "image": image, "cmd": format!("/proc/self/fd/{number}") }));
                assert_eq!(run["outcome"], "start_failed", "P-11 descriptor {number}: {run:#}");
            }
        }
        host.assert_unchanged();
    }
    assert!(launcher() == before, "the launcher's program has changed");
}
