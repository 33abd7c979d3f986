//! What a server that died has left of its runs is removed by whichever server starts next. So this is alone
//! in its program: a test beside it would start one.

use support::{Daemon, json};

#[test]
fn what_a_dead_server_left_is_counted_once() {
    // It removes what other tests' servers may have left.
    drop(Daemon::start());
    let mut daemon = Daemon::builder().host_image().flag("--slots", 3).flag("--prepared-max", 0).start();
    assert_eq!(daemon.metric("sandglass_orphans_reaped_total"), 0.0);
    for _ in 0..3 {
        let limits = json!({ "wall_time_ms": 60_000 });
        let id =
            daemon.run_async(&json!({ "image": "host", "cmd": "sleep", "args": ["60"], "limits": limits }));
        daemon.wait_for_state(&id, "running");
    }
    // Both at once, as in a power cut: nobody cleans up.
    let launcher = daemon.launcher_pid();
    let mut all: Vec<i32> = support::host::processes_of(daemon.pid(), launcher).into_iter().collect();
    all.retain(|pid| *pid != daemon.pid());
    daemon.process().signal(nix::sys::signal::Signal::SIGSTOP);
    for pid in all {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    }
    daemon.kill9();
    let daemon = daemon.restart();
    assert_eq!(daemon.metric("sandglass_orphans_reaped_total"), 3.0);
    daemon.wait_for_log("removed what a server that died had left");
    let daemon = daemon.restart();
    assert_eq!(daemon.metric("sandglass_orphans_reaped_total"), 0.0);
}
