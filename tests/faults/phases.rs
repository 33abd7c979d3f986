//! The server is killed at whatever moment of a run: nothing of the run outlives it, and the next server
//! finds a clean house.

use std::time::{Duration, Instant};

use support::{Daemon, Registry, Value, host, json, until};

use crate::echo;

/// From before the sandbox is begun until after it is gone, in steps of about a phase.
const MOMENTS_MS: [u64; 12] = [0, 1, 2, 3, 4, 6, 8, 11, 15, 20, 30, 60];

fn kill_at(mut daemon: Daemon, body: &Value, after: Duration) -> Daemon {
    let launcher = daemon.launcher_pid();
    let asked = Instant::now();
    let pending: Vec<_> =
        (0..3).map(|_| daemon.request("POST", "/runs").json(body).begin().expect("send a request")).collect();
    while asked.elapsed() < after {
        std::hint::spin_loop();
    }
    let ours = host::processes_of(daemon.pid(), launcher);
    daemon.kill9();
    drop(pending);
    until("every process of its runs is dead", || {
        let alive = |pid: &i32| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            !stat.is_empty() && !stat.contains(") Z ")
        };
        !ours.iter().any(alive) && host::in_cgroups_of(launcher).is_empty()
    });
    let daemon = daemon.restart();
    assert!(host::cgroups_of(launcher).is_empty(), "cgroups of the dead launcher after {after:?}");
    let left = |folder: &str| {
        std::fs::read_dir(daemon.data_dir().join("layers").join(folder)).expect("list a folder").count()
    };
    assert_eq!(left("tmp"), 0, "after {after:?}");
    // It is emptied beside whatever else there is to do.
    until("nothing is in the trash", || left("trash") == 0);
    daemon
}

#[test]
fn a_server_killed_at_any_moment_of_a_run_leaves_nothing() {
    let mut daemon = Daemon::builder().host_image().flag("--slots", 2).start();
    let body = json!({ "image": "host", "cmd": "sh", "args": ["-c", "sleep 0.01; echo x > /tmp/x"] });
    for moment in MOMENTS_MS {
        daemon = kill_at(daemon, &body, Duration::from_millis(moment));
        echo(&daemon);
    }
}

#[test]
fn a_server_killed_at_any_moment_of_a_pull_leaves_nothing_and_pulls_again() {
    let registry = Registry::start();
    let mut daemon = Daemon::builder().host_image().registry(&registry).start();
    let image = registry.image("busybox");
    let body = json!({ "image": image, "cmd": "echo", "args": ["hi"] });
    for moment in [5, 20, 40, 80, 160] {
        daemon = kill_at(daemon, &body, Duration::from_millis(moment));
        let run = daemon.run(&body);
        assert_eq!(run["stdout"], "hi\n", "after {moment} ms: {run}");
        daemon.delete(&format!("/images/{image}:latest"));
    }
}
