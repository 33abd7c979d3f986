//! Category C: no capability, no other user, no namespace can be gained.

use crate::attack::{Attack, attack, repel};

const ATTACKS: &[Attack] = &[
    attack(
        "C-01",
        "having capabilities",
        r#"
status = dict(line.split(":\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\t" in line)
print(same(status[key].strip() for key in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")),
      status["NoNewPrivs"], status["Seccomp"], os.getuid(), os.getgroups())"#,
        &["0000000000000000 1 2 0 []"],
    ),
    attack(
        "C-02",
        "raising capabilities as root of the run",
        r#"
header = struct.pack("Ii", 0x20080522, 0)
full = struct.pack("6I", *[0xffffffff] * 6)
print(same((call(126, header, full), call(157, 47, 2, 21, 0, 0), call(157, 8, 1, 0, 0, 0), call(157, 28, 0, 0, 0, 0))))"#,
        &["EPERM"],
    ),
    attack(
        "C-03",
        "setuid programs of the image",
        r#"
found = [path for path in ("/usr/bin/su", "/usr/bin/passwd", "/usr/bin/mount", "/usr/bin/newgrp", "/usr/bin/chsh")
         if os.path.exists(path)]
def gains(path):
    pid = os.fork()
    if pid == 0:
        os.close(0); os.close(1); os.close(2)
        os.execv(path, [path, "--help"])
    while True:
        status = open(f"/proc/{pid}/status").read() if os.path.exists(f"/proc/{pid}/status") else ""
        if "Uid:\t1234\t0" in status:
            return True
        done, _ = os.waitpid(pid, os.WNOHANG)
        if done:
            return False
print(len(found) > 0, any(map(gains, found)))"#,
        &["True False"],
    )
    .with(r#"{"user": "1234"}"#),
    attack(
        "C-05",
        "becoming another user",
        r#"
def attempt(uid):
    return tried(os.setresuid, uid, uid, uid)
print(same(attempt(uid) for uid in (1, 1000, 65534, 65535)), same(attempt(uid) for uid in (65536, 70000)),
      tried(os.setgroups, [1]), tried(os.setresgid, 1, 1, 1))"#,
        &["EPERM EINVAL EPERM EPERM"],
    ),
    attack(
        "C-08",
        "making namespaces",
        r#"
flags = (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)
own = os.open("/proc/self/ns/user", os.O_RDONLY)
print(same([call(272, flag) for flag in flags + (0x80, 0x7e020000)] + [call(56, flag | 17, 0, 0, 0, 0) for flag in flags]
           + [call(56, flag | 17 | (1 << 40), 0, 0, 0, 0) for flag in flags] + [call(308, own, 0)]),
      call(435, bytes(88), 88))"#,
        &["EPERM ENOSYS"],
    ),
    attack(
        "C-09",
        "a sandbox within, by the usual tools",
        r#"
tools = (["unshare", "-Ur", "true"], ["unshare", "-n", "true"], ["unshare", "-m", "true"], ["chroot", "/", "true"],
         ["nsenter", "-t", "1", "-a", "true"])
print(any(subprocess.run(words, capture_output=True).returncode == 0 for words in tools))"#,
        &["False"],
    ),
    attack(
        "C-10",
        "raising limits and priorities",
        r#"
import resource
kinds = (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_CORE, resource.RLIMIT_NPROC, resource.RLIMIT_STACK)
def raised(kind):
    soft, hard = resource.getrlimit(kind)
    try:
        resource.setrlimit(kind, (hard + 1, hard + 1))
        return "raised"
    except (OSError, ValueError):
        return "refused"
param = struct.pack("i", 1)
print(same(map(raised, kinds)), same((call(144, 0, 1, param), call(144, 0, 2, param))), tried(os.setpriority, 0, 0, -20),
      tried(os.nice, -1), written("/proc/self/oom_score_adj", b"-1"))"#,
        &["refused EPERM EACCES EPERM EACCES", "refused EPERM EACCES EPERM EPERM", "refused EPERM EPERM EPERM EACCES",
          "refused EPERM EACCES EACCES EACCES"],
    ),
    attack(
        "C-11",
        "locking memory for good",
        r#"print(call(151, 3), call(149, ctypes.create_string_buffer(1 << 20), 1 << 20))"#,
        &["ENOMEM ENOMEM", "EPERM ENOMEM", "EPERM EPERM", "ENOMEM EPERM"],
    ),
];

#[test]
fn nothing_can_be_gained() {
    repel(ATTACKS);
}
