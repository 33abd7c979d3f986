//! Sandboxes that are prepared ahead of need: that runs get them, and that it is only their speed by which
//! anybody could tell.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::{Daemon, Image, Layer, Registry, Value, host, json, within};

const PATIENCE: Duration = Duration::from_secs(10);

fn prepared(daemon: &Daemon) -> f64 {
    daemon.metric("sandglass_sandboxes{state=\"prepared\"}")
}

fn hits(daemon: &Daemon) -> f64 {
    daemon.metric("sandglass_sandbox_pool_hits_total")
}

fn misses(daemon: &Daemon) -> f64 {
    daemon.metric("sandglass_sandbox_pool_misses_total")
}

fn wait_for_prepared(daemon: &Daemon) {
    within(PATIENCE, "a prepared sandbox", || (prepared(daemon) > 0.0).then_some(()));
}

/// Reads a file of the image and leaves one behind, which it says if it was there already.
fn leave_a_trace(image: &str) -> Value {
    let script = "cat /etc/told; [ ! -e /tmp/trace ] && touch /tmp/trace /dev/shm/trace && hostname";
    json!({ "image": image, "cmd": "sh", "args": ["-c", script] })
}

fn told(text: &str) -> Image {
    let layer = Layer::build(|tar| {
        tar.dir("etc");
        tar.file("etc/told", text.as_bytes());
    });
    Image::busybox().layer(layer)
}

#[test]
fn runs_find_sandboxes_prepared_and_none_finds_another_run_s() {
    let registry = Registry::start();
    registry.push("told", "1", &told("one\n"));
    let image = registry.image("told:1");
    let daemon = Daemon::builder().registry(&registry).flag("--prepared-max", 3).start();
    let before = hits(&daemon) + misses(&daemon);
    for _ in 0..12 {
        assert_eq!(daemon.run(&leave_a_trace(&image))["stdout"], "one\nsandbox\n");
        wait_for_prepared(&daemon);
        assert!(prepared(&daemon) <= 3.0);
    }
    assert_eq!(hits(&daemon) + misses(&daemon), before + 12.0, "every run is one or the other");
    assert!(hits(&daemon) >= 8.0, "{} of 12 found one", hits(&daemon));
}

#[test]
fn without_room_for_any_every_run_still_gets_its_own() {
    let daemon = Daemon::builder().host_image().flag("--prepared-max", 0).start();
    for _ in 0..3 {
        assert_eq!(daemon.run(&json!({ "image": "host", "cmd": "true" }))["exit_code"], 0);
    }
    assert_eq!((prepared(&daemon), hits(&daemon)), (0.0, 0.0));
}

/// Limits are set ahead to the defaults; a run that asks for others must have those, more or less.
#[test]
fn a_prepared_sandbox_gets_the_limits_that_its_run_asks_for() {
    let daemon = Daemon::start();
    let fill = |disk: u64| {
        let script = "head -c 200000000 /dev/zero > /tmp/x; wc -c < /tmp/x";
        let limits = json!({ "disk_bytes": disk, "memory_bytes": 512 << 20, "file_size_bytes": 1 << 30 });
        let run =
            daemon.run(&json!({ "image": "host", "cmd": "sh", "args": ["-c", script], "limits": limits }));
        run["stdout"].as_str().expect("text").trim().parse::<u64>().expect("a number")
    };
    for disk in [16 << 20, 100 << 20, 4 << 20] {
        wait_for_prepared(&daemon);
        let written = fill(disk);
        assert!(written <= disk && written > disk * 9 / 10, "{written} of {disk}");
    }
    for (processes, forks) in [(8, "fork"), (200, "fine")] {
        wait_for_prepared(&daemon);
        let script = "for i in $(seq 50); do sleep 5 & done; echo fine";
        let run = daemon.run(&json!({
            "image": "host", "cmd": "bash", "args": ["-c", script], "limits": { "processes": processes },
        }));
        let said = format!("{}{}", run["stdout"], run["stderr"]);
        assert!(said.contains(forks), "{processes}: {said}");
    }
}

#[test]
fn a_prepared_sandbox_that_dies_is_nobody_s_loss() {
    let daemon = Daemon::start();
    for _ in 0..3 {
        wait_for_prepared(&daemon);
        let doomed = host::prepared(daemon.launcher_pid());
        for pid in &doomed {
            // It may have ended with another of them just now.
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        let gone = || host::prepared(daemon.launcher_pid()).is_disjoint(&doomed).then_some(());
        within(PATIENCE, "the end of what was killed", gone);
        assert_eq!(daemon.run(&json!({ "image": "host", "cmd": "true" }))["exit_code"], 0);
    }
}

/// Two images by turns: what waits is mostly for the other one.
#[test]
fn a_run_never_gets_a_sandbox_that_was_prepared_for_another_image() {
    let registry = Registry::start();
    for name in ["one", "two"] {
        registry.push("told", name, &told(&format!("{name}\n")));
    }
    let daemon = Daemon::builder().registry(&registry).flag("--prepared-max", 2).start();
    for _ in 0..4 {
        for name in ["one", "two"] {
            let image = registry.image(&format!("told:{name}"));
            for _ in 0..3 {
                assert_eq!(daemon.run(&leave_a_trace(&image))["stdout"], format!("{name}\nsandbox\n"));
            }
            wait_for_prepared(&daemon);
        }
    }
}

/// A layer that is fetched again has the name of the one that was removed and is another tree.
#[test]
fn a_removed_image_s_sandboxes_are_not_used_for_its_successor() {
    let registry = Registry::start();
    registry.push("told", "1", &told("one\n"));
    let image = registry.image("told:1");
    let daemon = Daemon::builder().registry(&registry).start();
    for _ in 0..3 {
        for _ in 0..3 {
            assert_eq!(daemon.run(&leave_a_trace(&image))["stdout"], "one\nsandbox\n");
            wait_for_prepared(&daemon);
        }
        let gone = daemon.delete(&format!("/images/{image}"));
        assert!(gone.status < 300, "{}", gone.text());
    }
}
