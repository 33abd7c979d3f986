//! A disk without room for the file in which runs are promised: nothing is promised meanwhile, everything else
//! goes on, and when there is room again the server is as before.

use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use support::{Daemon, Value, json, within};

use crate::echo;

/// Takes all the room that a daemon's own disk has.
struct Filler(PathBuf);

impl Filler {
    fn fill(daemon: &Daemon) -> Self {
        let path = daemon.data_dir().join("filler");
        // Only the daemon sees its disk.
        let path = PathBuf::from(format!("/proc/{}/root{}", daemon.pid(), path.display()));
        let mut file = File::create(&path).expect("make a file on the daemon's disk");
        for size in [1 << 20, 4096, 512] {
            while file.write_all(&vec![1; size]).is_ok() {}
        }
        Self(path)
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// More than what a server holds of its file of runs in memory.
const LARGE_BYTES: usize = 8 << 20;

fn promise(daemon: &Daemon, script: &str) -> support::Response {
    let body = json!({
        "image": "host", "cmd": "sh", "args": ["-c", script], "limits": { "stdout_bytes": LARGE_BYTES },
    });
    daemon.request("POST", "/runs").header("Prefer", "respond-async").json(&body).send()
}

fn id(run: &Value) -> String {
    run["id"].as_str().expect("an id").to_owned()
}

#[test]
fn a_full_disk_keeps_promises_from_being_made_and_room_brings_them_back() {
    let daemon = Daemon::builder().host_image().flag("--slots", 2).on_disk_of(200 << 20).start();
    let before = id(&promise(&daemon, "echo before").expect(202));
    daemon.wait_for_state(&before, "finished");
    let large = id(&promise(&daemon, &format!("head -c {LARGE_BYTES} /dev/zero | tr '\\0' y")).expect(202));
    daemon.wait_for_state(&large, "finished");
    // It ends while there is no room to write how.
    let going = id(&promise(&daemon, "sleep 2; head -c 300000 /dev/zero | tr '\\0' x").expect(202));
    daemon.wait_for_state(&going, "running");
    let filler = Filler::fill(&daemon);
    let bound = Duration::from_secs(60);
    within(bound, "a refusal", || {
        let reply = promise(&daemon, "head -c 500000 /dev/zero");
        (reply.status != 202).then(|| reply.problem(503, "run-store-failed"))
    });
    within(bound, "it not to be ready", || (daemon.get("/readyz").status == 503).then_some(()));
    echo(&daemon);
    daemon.wait_for_state(&going, "finished");
    // What was written before can be read all the time, however often it is tried to write.
    for _ in 0..40 {
        assert_eq!(daemon.show(&before)["stdout"], "before\n");
        assert_eq!(daemon.show(&large)["stdout"].as_str().map(str::len), Some(LARGE_BYTES));
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(daemon.get("/readyz").status, 503);

    drop(filler);
    within(bound, "it to be ready again", || (daemon.get("/readyz").status == 200).then_some(()));
    let after = id(&promise(&daemon, "echo after").expect(202));
    assert_eq!(daemon.wait_for_state(&after, "finished")["stdout"], "after\n");
    daemon.wait_for_log("runs are remembered again");
    // What ended meanwhile was written when there was room.
    assert_eq!(daemon.show(&before)["stdout"], "before\n");
    let ended = daemon.show(&going);
    assert_eq!((&ended["outcome"], &ended["stdout_bytes"]), (&json!("exited"), &json!(300_000)), "{ended:#}");
}
