//! Category F: getting at files that are not the run's, or at more of its own than it may have.

use support::{Daemon, Folder, Image, Layer, Registry, json};

use crate::attack::{Attack, attack, repel};

pub(crate) const ATTACKS: &[Attack] = &[
    attack(
        "F-01",
        "reading the host's files by their paths",
        r#"
ways = ("", "/proc/1/root", "/proc/self/root", "/host", "/newroot", "/oldroot", "/.." * 40, "/proc/self/cwd/" + "../" * 40)
print(same(content(way + CANARY) for way in ways))"#,
        &["ENOENT"],
    ),
    attack(
        "F-04",
        "looking for a file of the host under every name, by its own name and by its number",
        r#"
found = []
for folder, folders, files in os.walk("/"):
    if folder == "/proc":
        folders[:] = []
    for file in files + folders:
        path = os.path.join(folder, file)
        entry = tried(os.lstat, path)
        if file == os.path.basename(CANARY) or (not isinstance(entry, str) and entry.st_ino == CANARY_INODE
                                                 and b"canary" in (content(path) if stat.S_ISREG(entry.st_mode) else b"")):
            found.append(path)
print(found, os.path.exists(os.path.dirname(CANARY)))"#,
        &["[] False"],
    ),
    attack(
        "F-02",
        "climbing above the root",
        r#"
root, up = os.stat("/"), os.stat("/" + "../" * 40)
print((root.st_dev, root.st_ino) == (up.st_dev, up.st_ino))"#,
        &["True"],
    ),
    attack(
        "F-03",
        "a second chroot, and out of it",
        r#"
os.mkdir("/tmp/x")
root = os.open("/", os.O_RDONLY)
out = tried(os.chroot, "/tmp/x")
if out == "ok":
    os.fchdir(root)
    for _ in range(100):
        os.chdir("..")
    os.chroot(".")
    out = sorted(os.listdir("/"))
print(out)"#,
        &["EPERM"],
    ),
    attack(
        "F-05",
        "opening inodes by guessed handles (shocker)",
        r#"
handle = ctypes.create_string_buffer(struct.pack("Ii", 8, 1) + struct.pack("Q", 2))
root = os.open("/", os.O_RDONLY)
print(same((call(304, root, handle, 0), call(303, -100, b"/", handle, handle, 0))))"#,
        &["EPERM"],
    ),
    attack(
        "F-06",
        "making device nodes",
        r#"
kinds = ((stat.S_IFBLK, 8, 0), (stat.S_IFCHR, 1, 1), (stat.S_IFCHR, 10, 229), (stat.S_IFCHR, 0, 0))
print(same(tried(os.mknod, "/tmp/d", kind | 0o666, os.makedev(major, minor)) for kind, major, minor in kinds))"#,
        &["EPERM"],
    ),
    attack(
        "F-07",
        "mounting, by the old calls and the new ones",
        r#"
os.mkdir("/tmp/m")
print(same((
    call(165, b"none", b"/tmp/m", b"tmpfs", 0, 0), call(165, b"none", b"/tmp/m", b"proc", 0, 0),
    call(165, b"none", b"/tmp/m", b"overlay", 0, 0), call(165, b"/usr", b"/tmp/m", 0, 4096, 0),
    call(165, 0, b"/", 0, 32, 0), call(166, b"/proc", 2), call(166, b"/dev", 0), call(155, b"/tmp/m", b"/tmp/m"),
    call(428, -100, b"/", 1), call(429, -100, b"/usr", -100, b"/tmp/m", 0), call(430, b"tmpfs", 0),
    call(431, 0, 6, 0, 0, 0), call(432, 0, 0, 0), call(433, -100, b"/", 0), call(442, -100, b"/", 0, 0, 0))))"#,
        &["EPERM"],
    ),
    attack(
        "F-08",
        "writing to the image's programs",
        r#"print(tried(os.open, "/usr/bin/true", os.O_WRONLY), tried(os.unlink, "/usr/bin/true"))"#,
        // The run's own copy may be written; that it stays its own is looked at where two runs meet.
        &["EROFS EROFS", "EACCES EROFS", "EACCES EACCES", "3 ok"],
    ),
    attack(
        "F-09",
        "reading where its files come from",
        r#"
mounts = open("/proc/self/mountinfo").read()
leaks = [word for word in ("/var/", "/home", "/layers", "/data", "/dev/vd", "/dev/sd", "/target", "sandglass")
         if word in mounts]
print(leaks, sum(" - " in line for line in mounts.splitlines()) < 16)"#,
        &["[] True"],
    ),
    attack(
        "F-15",
        "a second name for what is only open for reading",
        r#"
fd = os.open("/proc/self/exe", os.O_RDONLY)
print(same((tried(os.open, f"/proc/self/fd/{fd}", os.O_RDWR), tried(os.open, "/proc/self/exe", os.O_WRONLY))),
      call(265, fd, b"", -100, b"/tmp/e", 0x1000))"#,
        // In an overlay of its own the run may give its own copy a second name.
        &[
            "EROFS EXDEV",
            "EACCES EXDEV",
            "EACCES ENOENT",
            "EROFS ENOENT",
            "EACCES EPERM",
            "EROFS EPERM",
            "ETXTBSY 0",
            "ETXTBSY ENOENT",
        ],
    ),
    attack(
        "F-16",
        "a setuid copy of a program, run by another user",
        r#"
import shutil
shutil.copy("/usr/bin/id", "/tmp/id")
os.chmod("/tmp/id", 0o6755)
print(subprocess.run(["/tmp/id", "-u"], capture_output=True, text=True).stdout.strip())"#,
        &["123"],
    )
    .with(r#"{"user": "123:123"}"#),
    attack(
        "F-17",
        "file capabilities and overlay's own attributes",
        r#"
open("/tmp/f", "w").close()
cap = struct.pack("<IIIII", 0x02000001, 0xffffffff, 0, 0xffffffff, 0)
print(tried(os.setxattr, "/tmp/f", "security.capability", cap),
      tried(os.setxattr, "/tmp/f", "trusted.overlay.opaque", b"y"))"#,
        &["EPERM EPERM", "EPERM EOPNOTSUPP"],
    ),
    attack(
        "F-18",
        "changing the devices",
        r#"
print(same((tried(os.mknod, "/dev/x"), tried(os.unlink, "/dev/null"), tried(os.chmod, "/dev/null", 0),
            tried(os.mkdir, "/dev/d"), tried(os.rename, "/dev/zero", "/dev/null"))))"#,
        &["EROFS"],
    ),
    attack(
        "F-19",
        "files of a petabyte",
        r#"
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
fd = os.open("/tmp/big", os.O_RDWR | os.O_CREAT)
print(same((tried(os.ftruncate, fd, 1 << 50), tried(os.posix_fallocate, fd, 0, 1 << 50))))"#,
        &["EFBIG"],
    ),
    attack(
        "F-20",
        "a tree as deep as the inodes reach",
        r#"
os.chdir("/tmp")
made = 0
try:
    while True:
        os.mkdir("d" * 200)
        os.chdir("d" * 200)
        made += 1
except OSError as error:
    print(name(error.errno), 1000 < made <= 10_024)"#,
        &["ENOSPC True"],
    )
    // Landlock looks at every folder above the one that is made.
    .with(r#"{"limits": {"cpu_time_ms": 300000, "wall_time_ms": 300000}}"#),
    attack(
        "F-21",
        "names that are no text, and links in circles",
        r#"
os.chdir("/tmp")
for odd in (b"a\nb", b"\xff\xfe", b"x" * 255, b"\x1b[31m"):
    os.close(os.open(odd, os.O_CREAT | os.O_WRONLY))
os.symlink("b", "a"); os.symlink("a", "b")
print(content("/tmp/a"), len(os.listdir(b"/tmp")) >= 6)"#,
        &["ELOOP True"],
    ),
    attack(
        "F-22",
        "making the whole machine write to its disks",
        r#"
start = time.monotonic()
for _ in range(200):
    os.sync()
fd = os.open("/", os.O_RDONLY)
print(call(306, fd), time.monotonic() - start < 2)"#,
        &["0 True"],
    ),
    attack(
        "F-23",
        "files that can't be removed",
        r#"
import fcntl
open("/tmp/f", "w").close()
fd = os.open("/tmp/f", os.O_RDONLY)
print(tried(fcntl.ioctl, fd, 0x40086602, struct.pack("l", 0x10)))"#,
        &["EPERM", "ENOTTY", "EOPNOTSUPP"],
    ),
    attack(
        "F-26",
        "descriptors that were left open",
        r#"print(sorted(int(fd) for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")),
      [os.readlink(f"/proc/self/fd/{fd}").split(":")[0] for fd in (1, 2)])"#,
        &["[0, 1, 2] ['pipe', 'pipe']"],
    ),
    attack("F-27a", "starting in a directory of init", r#"print(os.getcwd())"#, &[""])
        .ends(&["start_failed"])
        .with(r#"{"workdir": "/proc/1/cwd"}"#),
    attack("F-27b", "starting behind a descriptor of ours", r#"print(os.getcwd())"#, &[""])
        .ends(&["start_failed"])
        .with(r#"{"workdir": "/proc/self/fd/7"}"#),
    attack("F-12a", "a file onto a device", r#"print(os.path.exists("/dev/null"))"#, &[""])
        .ends(&["start_failed"])
        .with(r#"{"files": [{"path": "/dev/null", "text": "x"}]}"#),
    attack("F-12b", "a file above the root", r#"print(content("/x"))"#, &["b'x'"])
        .with(r#"{"files": [{"path": "/tmp/../../x", "text": "x"}]}"#),
    attack("F-12c", "a file into another process's memory", r#"print(1)"#, &[""])
        .ends(&["start_failed"])
        .with(r#"{"files": [{"path": "/proc/self/mem", "text": "x"}]}"#),
    attack(
        "F-29",
        "out by a directory that was left open",
        r#"print(tried(os.open, ".", os.O_RDONLY, dir_fd=9), tried(os.open, "..", os.O_RDONLY, dir_fd=9))"#,
        // Not there, or in vain: Landlock stands behind it.
        &["EBADF EBADF", "EACCES EACCES"],
    ),
    attack(
        "F-28",
        "sealing a file for good, and freezing its file system",
        r#"
import fcntl
open("/tmp/f", "w").close()
fd = os.open("/tmp/f", os.O_RDONLY)
print(same(tried(fcntl.ioctl, fd, request, bytes(128)) for request in (0x40806685, 0xC0045877, 0xC0045878)))"#,
        &["EPERM"],
    ),
];

#[test]
fn no_file_of_the_host_is_reached() {
    repel(ATTACKS);
}

/// F-12: whatever a file that is sent along is called, it lands inside or nowhere.
#[test]
fn no_name_of_a_file_that_is_sent_along_leads_out() {
    let daemon = Daemon::start();
    let outside = Folder::new();
    let victim = outside.join("x");
    let above = format!("{}{}", "../".repeat(40), victim.display());
    let victim = victim.display().to_string();
    let long = "d/".repeat(2500);
    let names = [
        "../x",
        "../../../../../../x",
        "a/../../x",
        "a\0b",
        "",
        ".",
        "/",
        "..",
        "/..",
        "a/",
        long.as_str(),
        "dev/null",
        "/dev/null",
        "/dev/shm/../null",
        "/proc/self/mem",
        "/proc/self/fd/3",
        "/proc/1/root/x",
        "/proc/self/root/../x",
        "/usr/bin/true",
        "/sys/x",
        &above,
        &victim,
        "/tmp/a\nb",
        "/tmp/\u{202e}",
        "a//../..//x",
    ];
    for name in names {
        let files = json!([{ "path": name, "text": "evil" }]);
        let request = json!({ "image": "host", "cmd": "true", "files": files });
        let response = daemon.post("/runs", &request);
        match response.status {
            422 => drop(response.problem(422, "invalid-request")),
            _ => {
                let run = response.expect(200);
                let ended = run["outcome"].as_str().expect("an outcome");
                assert!(["exited", "start_failed"].contains(&ended), "F-12 {name:?}: {run:#}");
            }
        }
        assert!(!outside.join("x").exists(), "F-12 {name:?} was written outside");
    }
    let run = daemon.run(&json!({ "image": "host", "cmd": "cat", "args": ["/etc/passwd"] }));
    assert!(!run["stdout"].as_str().expect("text").contains("evil"));
}

/// F-13: an image that has links where files are to go sends them to places of its own.
#[test]
fn an_image_s_links_lead_no_file_out() {
    let registry = Registry::start();
    let outside = Folder::new();
    let victim = outside.path().display().to_string();
    let layer = Layer::build(|tar| {
        tar.symlink("work", "/").symlink("up", &"../".repeat(30)).symlink("out", &victim);
        tar.symlink("loop", "loop").symlink("proc-self", "/proc/self").symlink("devices", "/dev");
        tar.symlink("root", "/proc/1/root").symlink("file", &format!("{victim}/file"));
    });
    registry.push("links", "latest", &Image::busybox().layer(layer));
    let daemon = Daemon::with_registry(&registry);
    let image = registry.image("links");
    for (path, may_end) in [
        ("/work/etc/x", &["exited", "start_failed"][..]),
        ("/up/etc/x", &["exited", "start_failed"]),
        ("/out/x", &["exited", "start_failed"]),
        ("/file", &["exited", "start_failed"]),
        ("/loop/x", &["start_failed"]),
        ("/proc-self/mem", &["start_failed"]),
        ("/proc-self/fd/3", &["start_failed"]),
        ("/devices/null", &["start_failed"]),
        ("/devices/x", &["start_failed"]),
        ("/root/etc/x", &["start_failed"]),
    ] {
        let files = json!([{ "path": path, "text": "evil" }]);
        let run = daemon.run(&json!({ "image": image, "cmd": "true", "files": files }));
        let ended = run["outcome"].as_str().expect("an outcome");
        assert!(may_end.contains(&ended), "F-13 {path}: {run:#}");
        let mut left = outside.path().read_dir().expect("list the folder outside");
        assert!(left.next().is_none(), "F-13 {path} was written outside");
        // A directory to start in that is not there is made, by the same rules.
        let run = daemon.run(&json!({ "image": image, "cmd": "true", "workdir": path }));
        let ended = run["outcome"].as_str().expect("an outcome");
        assert!(may_end.contains(&ended), "F-27 {path}: {run:#}");
        let mut left = outside.path().read_dir().expect("list the folder outside");
        assert!(left.next().is_none(), "F-27 {path} was made outside");
    }
    assert!(!std::path::Path::new("/etc/x").exists());
}
