//! Category C: no capability, no other user, no namespace can be gained.

use std::time::{Duration, Instant};

use support::image::EntryType;
use support::{Daemon, Image, Layer, Registry, Value, json};

use crate::attack::{Attack, attack, repel};

pub(crate) const ATTACKS: &[Attack] = &[
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
        if "Uid:\t123\t0" in status:
            return True
        done, _ = os.waitpid(pid, os.WNOHANG)
        if done:
            return False
print(len(found) > 0, any(map(gains, found)))"#,
        &["True False"],
    )
    .with(r#"{"user": "123"}"#),
    attack(
        "C-05",
        "becoming another user",
        r#"
def attempt(uid):
    return tried(os.setresuid, uid, uid, uid)
print(same(attempt(uid) for uid in (1, 1000, 65534, 65535)), same(attempt(uid) for uid in (65536, 70000)),
      tried(os.setgroups, [1]), tried(os.setresgid, 1, 1, 1))"#,
        // Without root there are fewer ids.
        &["EPERM EINVAL EPERM EPERM", "EPERM EINVAL EINVAL EPERM EPERM"],
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

/// Who a run of that user is, or which way it was refused.
fn becomes(daemon: &Daemon, image: &str, user: &str) -> String {
    // Nothing that would look into the list of users itself.
    let request = json!({
        "image": image, "cmd": "grep", "args": ["-E", "^(Uid|Gid):", "/proc/self/status"], "user": user,
    });
    let response = daemon.post("/runs", &request);
    if response.status == 422 {
        response.problem(422, "invalid-request");
        return "refused".to_owned();
    }
    let run: Value = response.expect(200);
    match run["outcome"].as_str().expect("an outcome") {
        "exited" => {
            let lines = run["stdout"].as_str().expect("text").lines();
            lines.filter_map(|line| line.split_whitespace().nth(1)).collect::<Vec<_>>().join(" ")
        }
        other => other.to_owned(),
    }
}

/// C-06: a user is who the image says, or a number that exists; nothing wraps around to root.
#[test]
fn no_spelling_of_a_user_makes_it_another() {
    let registry = Registry::start();
    let layer = Layer::build(|tar| {
        tar.file(
            "etc/passwd",
            "root:x:0:0::/:/bin/sh\nbob:x:1000:1000::/:/bin/sh\nmapped:x:0:0::/:/bin/sh\n\
                  high:x:4294967296:0::/:/bin/sh\nminus:x:-1:-1::/:/bin/sh\nbroken:x\n:x:5:5::/:\n",
        );
        tar.file("etc/group", "root:x:0:\nstaff:x:50:\nhuge:x:99999999999:\n");
    });
    registry.push("users", "latest", &Image::busybox().layer(layer));
    let daemon = Daemon::with_registry(&registry);
    let image = registry.image("users");
    for (user, expected) in [
        ("", &["refused"][..]),
        ("0", &["0 0"]),
        ("root", &["0 0"]),
        ("mapped", &["0 0"]),
        ("bob", &["1000 1000"]),
        ("bob:staff", &["1000 50"]),
        ("65535", &["65535 0"]),
        ("65536", &["refused", "start_failed"]),
        ("2147483648", &["refused", "start_failed"]),
        ("4294967295", &["refused", "start_failed"]),
        ("4294967296", &["refused", "start_failed"]),
        ("18446744073709551616", &["refused", "start_failed"]),
        ("-1", &["refused", "start_failed"]),
        (" 0", &["refused", "start_failed"]),
        ("0 ", &["refused", "start_failed"]),
        ("+0", &["refused", "start_failed"]),
        ("0x0", &["refused", "start_failed"]),
        ("1000:99999999999", &["refused", "start_failed"]),
        ("bob:huge", &["refused", "start_failed"]),
        ("high", &["refused", "start_failed"]),
        ("minus", &["refused", "start_failed"]),
        ("broken", &["refused", "start_failed"]),
        ("nobody-has-it", &["refused", "start_failed"]),
        ("root:x:0", &["refused", "start_failed"]),
        ("root\nbob", &["refused", "start_failed"]),
        ("ro\0ot", &["refused", "start_failed"]),
    ] {
        let became = becomes(&daemon, &image, user);
        assert!(expected.contains(&became.as_str()), "C-06 {user:?} became {became:?}, not {expected:?}");
    }
}

/// C-07: what an image has in place of its list of users is read with suspicion and within bounds.
#[test]
fn an_image_s_list_of_users_can_t_hold_a_run_up() {
    let registry = Registry::start();
    let image = |name: &str, fill: &dyn Fn(&mut support::image::Tar)| {
        registry.push(name, "latest", &Image::busybox().layer(Layer::build(|tar| fill(tar))));
        registry.image(name)
    };
    let groups: String = (0..200_000).map(|number| format!("g{number}:x:{number}:\n")).collect();
    let images = [
        image("huge", &|tar| {
            tar.file("etc/passwd", vec![b'x'; 64 << 20]);
        }),
        image("fifo", &|tar| {
            tar.entry(EntryType::Fifo, "etc/passwd", 0o644, (0, 0), b"");
        }),
        image("link", &|tar| {
            tar.symlink("etc/passwd", "/proc/1/fd/3");
        }),
        image("self", &|tar| {
            tar.symlink("etc/passwd", "passwd");
        }),
        image("zero", &|tar| {
            tar.symlink("etc/passwd", "/dev/zero");
        }),
        image("folder", &|tar| {
            tar.dir("etc/passwd");
        }),
        image("groups", &|tar| {
            tar.file("etc/group", &groups);
        }),
    ];
    let daemon = Daemon::builder().registry(&registry).start();
    for image in images {
        daemon.post("/images", &json!({ "image": image })).expect(200);
        let started = Instant::now();
        for user in ["zoe", "1000:g199999"] {
            let became = becomes(&daemon, &image, user);
            assert_eq!(became, "start_failed", "C-07 {image} {user}");
        }
        // A number needs no list, so the image still runs.
        assert_eq!(becomes(&daemon, &image, "1000:1000"), "1000 1000", "C-07 {image}");
        assert!(started.elapsed() < Duration::from_secs(5), "C-07 {image}: {:?}", started.elapsed());
    }
}
