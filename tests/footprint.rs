//! What the service takes while it has much to keep: many finished runs, many that only sleep. A small number of each
//! here; `cargo xtask soak footprint` keeps ten thousand and lets a thousand sleep, with what a release is promised.

use std::fs;
use std::time::{Duration, Instant};

use support::{Daemon, host, json};

const MIB: f64 = 1024.0 * 1024.0;

fn size(name: &str, otherwise: usize) -> usize {
    std::env::var(name).map_or(otherwise, |value| value.parse().expect("a number"))
}

/// A release is promised more than a build for tests, whose code alone is several times as large.
fn is_release() -> bool {
    !cfg!(debug_assertions)
}

/// A line of a file in /proc, in KiB.
fn kibibytes(path: &str, name: &str) -> f64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    line.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or_default()
}

#[test]
fn finished_runs_are_kept_without_memory() {
    const CLIENTS: usize = 4;
    let kept = size("SANDGLASS_FOOTPRINT_RUNS", 400);
    let daemon = Daemon::builder().host_image().flag("--kept-runs", kept).flag("--log", "warn").start();
    let go = |runs: usize| {
        std::thread::scope(|scope| {
            for _ in 0..CLIENTS {
                scope.spawn(|| {
                    for _ in 0..runs / CLIENTS {
                        let run = daemon.run(&json!({ "image": "host", "cmd": "seq", "args": ["100"] }));
                        assert_eq!(run["outcome"], "exited", "{run}");
                    }
                });
            }
        });
    };
    let status = format!("/proc/{}/status", daemon.pid());
    let look = || (kibibytes(&status, "RssAnon:") / 1024.0, kibibytes(&status, "VmRSS:") / 1024.0);
    go(kept / 4);
    let (before, _) = look();
    go(kept - kept / 4);
    let (after, resident) = look();
    println!(
        "{kept} finished runs kept: {resident:.1} MiB resident, {after:.1} of its own, {before:.1} at a quarter"
    );
    let first = daemon.get("/runs?limit=1").expect(200);
    assert_eq!(first["runs"].as_array().map(Vec::len), Some(1), "{first}");
    assert!(after < before + 6.0, "what is the server's own has grown from {before:.1} to {after:.1} MiB");
    if is_release() {
        assert!(resident < 40.0, "the server takes {resident:.1} MiB");
    }
}

#[test]
fn sleeping_runs_hold_and_take_little() {
    let sleepers = size("SANDGLASS_FOOTPRINT_SLEEPERS", 40);
    let daemon = Daemon::builder()
        .host_image()
        .flag("--slots", sleepers)
        .flag("--budget-memory-bytes", sleepers << 24)
        .flag("--budget-cpus", sleepers)
        .flag("--prepared-max", 0)
        .flag("--log", "warn")
        .start();
    // What the first run makes is made by then.
    daemon.run(&json!({ "image": "host", "cmd": "true" }));
    let host = daemon.host();
    let available = || kibibytes("/proc/meminfo", "MemAvailable:") * 1024.0;
    let before = available();
    let request = json!({
        "image": "host", "cmd": "sleep", "args": ["600"],
        "limits": { "wall_time_ms": 300_000, "memory_bytes": 1 << 24 },
    });
    let ids: Vec<String> = (0..sleepers).map(|_| daemon.run_async(&request)).collect();
    let begun = Instant::now();
    while daemon.get("/info").expect(200)["slots"]["busy"] != sleepers {
        assert!(begun.elapsed() < Duration::from_secs(60), "not all of {sleepers} runs hold a slot");
        std::thread::sleep(Duration::from_millis(50));
    }
    for id in &ids {
        assert_eq!(daemon.wait_for_state(id, "running")["state"], "running");
    }
    let processes = host::descendants(daemon.launcher_pid());
    assert!(processes.len() >= 3 * sleepers, "{} processes for {sleepers} runs", processes.len());
    let shares: f64 =
        processes.iter().map(|pid| kibibytes(&format!("/proc/{pid}/smaps_rollup"), "Pss:")).sum();
    let each = shares / 1024.0 / sleepers as f64;
    let with_kernel = (before - available()) / MIB / sleepers as f64;
    println!(
        "{sleepers} runs sleep: {each:.2} MiB of processes each, {with_kernel:.2} MiB less on the machine each"
    );
    for id in &ids {
        daemon.delete(&format!("/runs/{id}")).expect(200);
    }
    assert!(each < 1.0, "{each:.2} MiB of processes for each run that sleeps");
    if is_release() && sleepers >= 1000 {
        assert!(with_kernel < 1.0, "each run that sleeps takes {with_kernel:.2} MiB of the machine");
    }
    host.assert_unchanged();
}
