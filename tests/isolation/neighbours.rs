//! Two runs at the same time: neither finds anything of the other.

use std::collections::BTreeSet;

use support::{Daemon, Registry, host, json};

use crate::{output, sh};

/// Offers all that a program can offer to others, and stays.
const OFFERS: &str = r#"
import ctypes, mmap, os, socket, time
for path in ("/mark", "/tmp/mark", "/dev/shm/mark", "/var/mark", "/root/mark"):
    open(path, "w").write("here I am")
port = socket.socket()
port.bind(("127.0.0.1", 4000))
port.listen()
names = []
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
    names.append(socket.socket(socket.AF_UNIX, kind))
    names[-1].bind(f"\0mark-{int(kind)}")
    if kind != socket.SOCK_DGRAM:
        names[-1].listen()
library = ctypes.CDLL(None, use_errno=True)
library.shmget(0x4242, 4096, 0o1666)
library.semget(0x4242, 1, 0o1666)
library.msgget(0x4242, 0o1666)
print("offered", flush=True)
time.sleep(100)
"#;

/// Looks for what the other offers, for as long as it is offered.
const LOOKS: &str = r#"
import ctypes, errno, os, socket, time
def tried(function, *arguments):
    try:
        function(*arguments)
        return "found"
    except OSError as error:
        return errno.errorcode[error.errno]
def found(result):
    return "found" if result >= 0 else errno.errorcode[ctypes.get_errno()]
library = ctypes.CDLL(None, use_errno=True)
answers = set()
for _ in range(15):
    for path in ("/mark", "/tmp/mark", "/dev/shm/mark", "/var/mark", "/root/mark"):
        answers.add(tried(os.stat, path))
    answers.add(tried(socket.create_connection, ("127.0.0.1", 4000), 5))
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
        answers.add(tried(socket.socket(socket.AF_UNIX, kind).connect, f"\0mark-{int(kind)}"))
    for get in (lambda: library.shmget(0x4242, 0, 0), lambda: library.semget(0x4242, 0, 0), lambda: library.msgget(0x4242, 0)):
        answers.add(found(get()))
    for pid in range(3, 300):
        answers.add(tried(os.kill, pid, 0))
    time.sleep(0.02)
print(sorted(answers), tried(socket.socket().bind, ("127.0.0.1", 4000)), [pid for pid in os.listdir("/proc") if pid.isdigit()] == [str(os.getpid())])
"#;

/// What it says when there is nothing, the address that the other has is free, and it sees itself alone.
const NOTHING: &str = "['ECONNREFUSED', 'ENOENT', 'ESRCH'] found True";

#[test]
fn nothing_that_a_run_offers_is_found_by_its_neighbour() {
    let registry = Registry::start();
    let daemon = Daemon::builder().host_image().registry(&registry).flag("--slots", 2).start();
    let python = registry.image("python:3");
    daemon.run(&sh(&python, "true"));
    let host = daemon.host();
    for image in [&*python, "host"] {
        let limits = json!({ "wall_time_ms": 90_000 });
        let body = |script: &str| json!({ "image": image, "cmd": "python3", "args": ["-u", "-c", script], "limits": limits });
        // It would be found where it could be: by the same program.
        let both = OFFERS.replace("time.sleep(100)", "") + LOOKS;
        let shown = output(&daemon.run(&body(&both))).to_owned();
        assert_eq!(shown, "offered\n['ESRCH', 'found'] EADDRINUSE True", "{image}");
        let offers = daemon.run_async(&body(OFFERS));
        daemon.wait_for_state(&offers, "running");
        // Its pipe is ours alone to read: that everything is offered is seen by how it has come to rest.
        support::until("everything is offered", || asleep(&daemon));
        let run = daemon.run(&body(LOOKS));
        assert_eq!(output(&run), NOTHING, "{image}");
        let ended = daemon.delete(&format!("/runs/{offers}")).expect(200);
        assert_eq!(ended["stdout"], "offered\n", "{ended:#}");
        // Nor afterwards: what was offered went with its run.
        let run = daemon.run(&body(LOOKS));
        assert_eq!(output(&run), NOTHING, "{image}");
    }
    host.assert_unchanged();
}

/// Whether every process of the only run waits in a sleep.
fn asleep(daemon: &Daemon) -> bool {
    let inside = host::in_cgroups_of(daemon.launcher_pid());
    let sleeps = |pid: &i32| {
        let call = std::fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap_or_default();
        call.contains("nanosleep") || call.contains("do_wait")
    };
    inside.len() == 2 && inside.iter().all(sleeps)
}

/// Seen from the host: nobody inside is anybody outside, and no two runs are the same nobody.
#[test]
fn every_run_at_once_has_ids_of_its_own_and_none_of_the_host_s() {
    let daemon = Daemon::builder().host_image().flag("--slots", 6).start();
    daemon.run(&sh("host", "true"));
    let host = daemon.host();
    let width = daemon.get("/info").expect(200)["id_width"].as_u64().expect("a width");
    let long = json!({ "wall_time_ms": 90_000 });
    let runs: Vec<String> = ["0", "1", "65534", "0", "0", "7:8"]
        .iter()
        .map(|user| {
            let body =
                json!({ "image": "host", "user": user, "cmd": "sleep", "args": ["80"], "limits": long });
            daemon.run_async(&body)
        })
        .collect();
    for id in &runs {
        daemon.wait_for_state(id, "running");
    }
    let mut ranges = BTreeSet::new();
    for pid in host::in_cgroups_of(daemon.launcher_pid()) {
        for uid in host::uids(pid) {
            assert!(u64::from(uid) >= 1024, "{} has the uid {uid} of the host", host::command_line(pid));
            ranges.insert(u64::from(uid) / width);
        }
    }
    assert_eq!(ranges.len(), runs.len(), "one range of ids a run: {ranges:?}");
    for id in &runs {
        daemon.delete(&format!("/runs/{id}")).expect(200);
    }
    host.assert_unchanged();
}
