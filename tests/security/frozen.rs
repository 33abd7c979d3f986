//! What a prepared run may leave for the tests of its batch, and what of it must not come along.

use std::time::Duration;

use support::{Daemon, Folder, Value, json};

/// Prepares by a Python script, runs a shell script over what it has left, and returns the batch.
fn batch(daemon: &Daemon, prepare: &str, look: &str) -> Value {
    let body = json!({
        "image": "host", "workdir": "/w",
        "prepare": { "cmd": "python3", "args": ["-c", prepare] },
        "run": { "cmd": "sh", "args": ["-c", look] }, "tests": [{}],
        "limits": { "wall_time_ms": 60_000, "cpu_time_ms": 60_000 },
    });
    daemon.request("POST", "/batches").json(&body).patience(Duration::from_secs(120)).send().expect(200)
}

/// Nobody becomes somebody else by a program that another run has left, and no link leads further than it did.
#[test]
fn what_is_frozen_has_no_dangerous_bits_and_its_links_stay_links() {
    let folder = Folder::new();
    let canary = folder.join("the-canary");
    std::fs::write(&canary, "for nobody").expect("write the canary");
    let daemon = Daemon::builder().host_image().flag("--prepared-max", 0).start();
    daemon.run(&json!({ "image": "host", "cmd": "true" }));
    let host = daemon.host();
    let prepare = "
import os, socket
for name, mode in [('user', 0o4755), ('group', 0o2711), ('both', 0o6777)]: open(name, 'w'); os.chmod(name, mode)
os.mkdir('sticky'); os.chmod('sticky', 0o3777)
os.symlink('CANARY', 'out'); os.symlink('/proc/1/root' + 'CANARY', 'root'); os.mkfifo('fifo')
socket.socket(socket.AF_UNIX).bind('socket')
f = open('hole', 'wb'); f.truncate(50 << 20); f.close(); os.link('hole', 'linked')";
    let look = "stat -c '%n %a' user group both sticky; cat out root 2>/dev/null; readlink out >/dev/null && echo link; \
                stat -c '%F' fifo; ls socket 2>/dev/null; stat -c '%n %s %b %h' hole";
    let done = batch(&daemon, &prepare.replace("CANARY", &canary.display().to_string()), look);
    assert_eq!(
        done["tests"][0]["run"]["stdout"],
        "user 755\ngroup 711\nboth 777\nsticky 1777\nlink\nfifo\nhole 52428800 0 2\n",
        "{done:#}"
    );
    assert!(!done.to_string().contains("for nobody"), "{done:#}");
    host.assert_unchanged();
}

/// Each level of a tree costs the one who copies it a descriptor.
#[test]
fn what_is_frozen_is_not_deeper_than_can_be_copied() {
    let daemon = Daemon::builder().host_image().flag("--prepared-max", 0).start();
    daemon.run(&json!({ "image": "host", "cmd": "true" }));
    let host = daemon.host();
    let deep = |levels: usize| {
        let prepare = format!("import os; os.makedirs('/'.join('d' * {levels}))");
        batch(&daemon, &prepare, "find . | wc -l")
    };
    assert_eq!(deep(190)["tests"][0]["run"]["stdout"], "191\n");
    let refused = deep(300);
    let why = refused["not_prepared"].as_str().expect("a reason");
    assert!(why.contains("deep"), "{why}");
    host.assert_unchanged();
}
