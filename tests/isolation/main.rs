//! What a program sees when it looks around is the sandbox, and only the sandbox.

mod neighbours;
mod traces;

use support::{Daemon, Image, Layer, Registry, Value, guest, image::EntryType, json};

fn sh(image: &str, script: &str) -> Value {
    json!({ "image": image, "cmd": "sh", "args": ["-c", script] })
}

#[track_caller]
fn output(run: &Value) -> &str {
    assert_eq!((run["outcome"].as_str(), run["exit_code"].as_u64()), (Some("exited"), Some(0)), "{run:#}");
    run["stdout"].as_str().expect("text").trim_end()
}

#[test]
fn the_usual_commands_show_the_sandbox() {
    let daemon = Daemon::start();
    let show = |script: &str| output(&daemon.run(&sh("host", script))).to_owned();
    assert_eq!(show("id -u; id -g; id -G"), "0\n0\n0");
    assert_eq!(show("hostname; cat /etc/hostname"), "sandbox\nsandbox");
    assert_eq!(
        show("ls -A /dev"),
        "fd\nfull\nmqueue\nnull\nrandom\nshm\nstderr\nstdin\nstdout\nurandom\nzero"
    );
    assert_eq!(show("ls -A /tmp /dev/shm /root /home"), "/dev/shm:\n\n/home:\n\n/root:\n\n/tmp:");
    assert_eq!(show("ls -A /sys 2>&1 | grep -v 'No such'; true"), "");
    let mounts = show("cat /proc/self/mounts");
    for line in mounts.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let (point, kind, options) = (words[1], words[2], words[3]);
        assert!(["overlay", "proc", "tmpfs", "mqueue"].contains(&kind), "{line}");
        assert!(options.contains("nosuid"), "{line}");
        assert!(options.contains("nodev") || point == "/dev", "{line}");
    }
    let addresses =
        show("cat /proc/self/net/dev | cut -d: -f1 | tail -n +3; ip -brief address 2>/dev/null || true");
    assert!(!addresses.contains("eth") && !addresses.contains("ens"), "{addresses}");
    let interfaces = show(
        "python3 -c 'import socket; s=socket.socket(); s.bind((\"127.0.0.1\",0)); s.listen(); socket.create_connection(s.getsockname()); print(\"up\")'",
    );
    assert_eq!(interfaces, "up");
    assert_eq!(show("umask; ulimit -c; ulimit -n"), "0022\n0\n256");
}

#[test]
fn an_image_s_run_sees_its_image_and_its_own_processes() {
    let registry = Registry::start();
    let daemon = Daemon::with_registry(&registry);
    let image = registry.image("busybox");
    let show = |script: &str| output(&daemon.run(&sh(&image, script))).to_owned();
    let processes = show("ps -o pid,comm | grep -v ps");
    assert!(processes.lines().count() <= 3, "{processes}");
    assert_eq!(show("hostname; id -u; cat /proc/self/cgroup | cut -d: -f3 | sort -u"), "sandbox\n0\n/");
    assert_eq!(show("ls -d /host /newroot /layers /attach 2>/dev/null | wc -l"), "0");
    let status = show("grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status | tr -d '\\t'");
    assert_eq!(status, "CapEff:0000000000000000\nCapBnd:0000000000000000\nNoNewPrivs:1\nSeccomp:2");
    assert_eq!(show("env | cut -d= -f1 | sort | tr '\\n' ' '"), "FROM_IMAGE HOME PATH PWD SHLVL");
}

const LOOK_AROUND: &str = include_str!("look_around.py");

/// What a program finds out about where it is, run in that image as that user.
fn look_around(daemon: &Daemon, image: &str, user: &str) -> Value {
    let body = json!({ "image": image, "user": user, "cmd": "python3", "args": ["-c", LOOK_AROUND] });
    serde_json::from_str(output(&daemon.run(&body))).expect("JSON")
}

/// The walls are the same around an image from a registry, around the machine's own programs, and
/// whoever the program is inside.
#[test]
fn the_same_walls_stand_around_every_image_and_user() {
    let registry = Registry::start();
    let daemon = Daemon::builder().host_image().registry(&registry).start();
    let python = registry.image("python:3");
    daemon.run(&sh(&python, "true"));
    let host = daemon.host();
    for (image, users) in [(&*python, ["0", "65534:65534"]), ("host", ["0", "1234:567"])] {
        for user in users {
            let seen = look_around(&daemon, image, user);
            assert_walls(&seen, &format!("{image} as {user}"));
            let (uid, gid) = user.split_once(':').unwrap_or((user, user));
            let all = |id: &str| json!(vec![id.parse::<u32>().expect("a number"); 3]);
            assert_eq!(seen["ids"], json!([all(uid), all(gid), []]), "{image} as {user}");
            // It is told nothing that isn't the image's or the request's.
            let home = if user == "0" {
                "/root"
            } else if user == "1234:567" {
                "/"
            } else {
                "/nonexistent"
            };
            let mut told = json!({ "HOME": home, "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" });
            if image != "host" {
                told["LANG"] = json!("C.UTF-8");
            }
            assert_eq!(seen["environment"], told, "{image} as {user}");
            let secrets = seen.to_string();
            for secret in
                [daemon.data_dir().to_str().expect("a path is text"), "sandglass", &*registry.host()]
            {
                assert!(!secrets.contains(secret), "{image} as {user} can read {secret:?}: {seen:#}");
            }
        }
    }
    host.assert_unchanged();
}

#[track_caller]
fn assert_walls(seen: &Value, what: &str) {
    let status = |name: &str| seen["status"][name].as_str().unwrap_or_else(|| panic!("{what}: no {name}"));
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status(set), "0000000000000000", "{what}: {set}");
    }
    assert_eq!((status("NoNewPrivs"), status("Seccomp"), status("TracerPid")), ("1", "2", "0"), "{what}");
    assert_eq!(seen["descriptors"], json!([0, 1, 2]), "{what}");
    assert_eq!(seen["pid"], json!([2, 1, 2]), "{what}");
    // Not even PID 1, which belongs to somebody else; and none of the kernel's own files.
    assert_eq!(
        (&seen["processes"], &seen["proc"]),
        (&json!(["2"]), &json!(["self", "thread-self"])),
        "{what}"
    );
    assert_eq!(seen["host"], json!(["Linux", "sandbox"]), "{what}");
    let devices =
        ["fd", "full", "mqueue", "null", "random", "shm", "stderr", "stdin", "stdout", "urandom", "zero"];
    assert_eq!(seen["devices"], json!(devices), "{what}");
    assert_eq!(seen["empty"], json!([[], []]), "{what}");
    assert_eq!(seen["groups"], json!(["/"]), "{what}");
    // 0x49 is up, loopback and running.
    assert_eq!(
        (&seen["interfaces"], &seen["devices_of_the_network"]),
        (&json!({ "lo": 0x49 }), &json!(["lo"])),
        "{what}"
    );
    assert_eq!(seen["loopback"], json!(["hello", "hello"]), "{what}");
    let mut points = std::collections::BTreeSet::new();
    for line in seen["mounts"].as_array().expect("a list") {
        let words: Vec<&str> = line.as_str().expect("text").split(' ').collect();
        let (root, point, options) = (words[3], words[4], words[5]);
        let kind = words[words.iter().position(|word| *word == "-").expect("a mount's kind") + 1];
        // What else is mounted is named by a file system, never by a path of the host.
        assert!(["/", "/shm"].contains(&root), "{what}: {line}");
        assert!(["overlay", "proc", "tmpfs", "mqueue"].contains(&kind), "{what}: {line}");
        assert!(options.contains("nosuid"), "{what}: {line}");
        points.insert(point.to_owned());
    }
    for point in ["/", "/dev", "/dev/mqueue", "/dev/shm", "/proc"] {
        assert!(points.remove(point), "{what}: {point} is no mount of its own");
    }
    // The parts of the host image; an image from a registry is one mount.
    let parts = ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"];
    assert!(
        points.iter().all(|point| what.starts_with("host") && parts.contains(&&**point)),
        "{what}: {points:?}"
    );
    // The root has what the image has, and no folder by which we came in.
    let strange = ["host", "newroot", "attach", "layers", "devices", "oldroot", "upper", "work"];
    let root = seen["root"].as_array().expect("a list");
    assert!(root.iter().all(|name| !strange.contains(&name.as_str().expect("text"))), "{what}: {root:?}");
}

/// The kernel keeps ignored signals ignored over every `execve`. What started the server may have ignored
/// some; glibc's `posix_spawn` itself leaves two that only the C library knows.
#[test]
fn a_program_starts_with_no_signal_ignored_or_blocked() {
    let daemon = Daemon::start();
    let run = daemon.run(&json!({ "image": "host", "cmd": "grep", "args": ["-E", "^(Sig|Shd)(Pnd|Blk|Ign)", "/proc/self/status"] }));
    for line in output(&run).lines() {
        assert!(line.ends_with("\t0000000000000000"), "{line}");
    }
    assert_eq!(output(&run).lines().count(), 4);
}

/// A program of the image that becomes root when anybody runs it, and one that takes a group along.
#[test]
fn a_setuid_program_of_an_image_gains_nothing() {
    let registry = Registry::empty();
    let who = guest::bytes("who");
    let layer = Layer::build(|tar| {
        let root = (0, 0);
        tar.entry(EntryType::Regular, "bin/plain", 0o755, root, &who)
            .entry(EntryType::Regular, "bin/setuid", 0o4755, root, &who)
            .entry(EntryType::Regular, "bin/setgid", 0o2755, root, &who)
            .entry(EntryType::Regular, "bin/both", 0o6755, (77, 88), &who)
            .entry(EntryType::Regular, "secret", 0o600, root, b"for root only");
    });
    registry.push("setuid", "1", &Image::busybox().layer(layer));
    let daemon = Daemon::with_registry(&registry);
    let image = registry.image("setuid:1");
    for program in ["plain", "setuid", "setgid", "both"] {
        let run =
            daemon.run(&json!({ "image": image, "cmd": program, "args": ["/secret"], "user": "1000:1000" }));
        assert_eq!(output(&run), "1000 1000 1000 1000 1000 1000 Permission denied", "{program}");
    }
    // Neither does one that it makes itself, whoever it belongs to.
    let copy = "cp /bin/plain /tmp/mine && chmod 6755 /tmp/mine && exec /tmp/mine /secret";
    let mut body = sh(&image, copy);
    body["user"] = json!("1000:1000");
    assert_eq!(output(&daemon.run(&body)), "1000 1000 1000 1000 1000 1000 Permission denied");
    // Root of the run may read what is root's in the image.
    let run = daemon.run(&json!({ "image": image, "cmd": "plain", "args": ["/secret"] }));
    assert_eq!(output(&run), "0 0 0 0 0 0 read it");
}

#[test]
fn two_runs_at_once_share_no_id_no_file_and_no_process() {
    let daemon = Daemon::builder().host_image().flag("--slots", 2).start();
    let look = "import os,time\nopen('/tmp/mine','w').write('x')\ntime.sleep(1.5)\nprint(open('/proc/self/uid_map').read().split()[1], sorted(os.listdir('/tmp')), len([p for p in os.listdir('/proc') if p.isdigit()]))";
    let body = json!({ "image": "host", "cmd": "python3", "args": ["-c", look] });
    let (first, second) = (daemon.run_async(&body), daemon.run_async(&body));
    daemon.wait_for_state(&first, "running");
    daemon.wait_for_state(&second, "running");
    let shown: Vec<String> =
        [first, second].iter().map(|id| output(&daemon.wait_for_state(id, "finished")).to_owned()).collect();
    let ids: Vec<u64> = shown
        .iter()
        .map(|line| line.split(' ').next().and_then(|id| id.parse().ok()).expect("an id"))
        .collect();
    assert!(ids[0].abs_diff(ids[1]) >= 65_536, "{ids:?}");
    for line in &shown {
        assert!(line.ends_with("['mine'] 1"), "{line}");
    }
    // And a later one finds nothing of theirs.
    assert_eq!(output(&daemon.run(&sh("host", "ls -A /tmp /dev/shm"))), "/dev/shm:\n\n/tmp:");
}
