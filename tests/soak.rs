//! Many thousand runs, good and hostile ones mixed, by several clients at once: every verdict must be the
//! right one, and afterwards the host and the server must be as they were. `cargo xtask soak` runs it; a
//! check of every change can't take so long.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use support::{Daemon, Image, Layer, Registry, Value, guest, host, json};

const CLIENTS: usize = 8;

/// One kind of run: what is asked for beyond the image, and how it must end. `weight` of all runs of a
/// round of 100 are of this kind.
struct Kind {
    name: &'static str,
    weight: usize,
    request: Value,
    ends: &'static str,
    exit_code: Option<u64>,
}

fn kinds() -> Vec<Kind> {
    let kind = |name, weight, request, ends, exit_code| Kind { name, weight, request, ends, exit_code };
    let exited = "exited";
    vec![
        kind("true", 40, json!({ "cmd": "true" }), exited, Some(0)),
        kind("output", 10, json!({ "cmd": "seq", "args": ["1", "2000"] }), exited, Some(0)),
        kind(
            "input",
            6,
            json!({ "cmd": "wc", "args": ["-c"], "stdin": "x".repeat(100_000) }),
            exited,
            Some(0),
        ),
        kind("exit code", 6, json!({ "cmd": "sh", "args": ["-c", "exit 137"] }), exited, Some(137)),
        kind(
            "files",
            6,
            json!({ "cmd": "cat", "args": ["a/b"], "files": [{ "path": "a/b", "text": "text" }] }),
            exited,
            Some(0),
        ),
        kind("crash", 5, json!({ "cmd": "/g/crash", "args": ["segv"] }), "signaled", None),
        kind("daemon", 5, json!({ "cmd": "/g/daemonise" }), exited, Some(0)),
        kind("no program", 4, json!({ "cmd": "/g/nothing" }), "start_failed", None),
        kind(
            "asleep",
            4,
            json!({ "cmd": "sleep", "args": ["60"], "limits": { "wall_time_ms": 50 } }),
            "wall_time_limit",
            None,
        ),
        kind(
            "stubborn",
            3,
            json!({ "cmd": "/g/stubborn", "limits": { "wall_time_ms": 50 } }),
            "wall_time_limit",
            None,
        ),
        kind(
            "spinning",
            3,
            json!({ "cmd": "/g/burn", "args": ["4"], "limits": { "cpu_time_ms": 30 } }),
            "cpu_time_limit",
            None,
        ),
        kind(
            "memory",
            3,
            json!({ "cmd": "/g/eat_memory", "limits": { "memory_bytes": 16 << 20 } }),
            "memory_limit",
            None,
        ),
        kind(
            "flood",
            3,
            json!({ "cmd": "/g/spam", "limits": { "stdout_bytes": 10_000 } }),
            "output_limit",
            None,
        ),
        kind(
            "fork bomb",
            2,
            json!({ "cmd": "/g/fork_bomb", "limits": { "wall_time_ms": 60, "processes": 24 } }),
            "wall_time_limit",
            None,
        ),
    ]
}

/// What may not grow, by name.
fn state(daemon: &Daemon) -> BTreeMap<&'static str, u64> {
    let field = |pid: i32, name: &str| -> u64 {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("read a status");
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or_default()
    };
    let machine = |path: &str, name: &str, column: usize| -> u64 {
        let text = fs::read_to_string(path).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_whitespace().nth(column).and_then(|word| word.parse().ok()).unwrap_or_default()
    };
    let (server, launcher) = (daemon.pid(), daemon.launcher_pid());
    BTreeMap::from([
        ("server: descriptors", host::descriptors(server).len() as u64),
        ("server: threads", field(server, "Threads:")),
        ("server: resident KiB", field(server, "VmRSS:")),
        ("launcher: descriptors", host::descriptors(launcher).len() as u64),
        ("launcher: resident KiB", field(launcher, "VmRSS:")),
        // With those that are gone and still charged for something.
        ("machine: memory cgroups", machine("/proc/cgroups", "memory", 2)),
        ("machine: kernel's unreclaimable KiB", machine("/proc/meminfo", "SUnreclaim:", 1)),
    ])
}

/// How many runs are made before anything is counted: whatever is made once is made by then.
fn first(runs: usize) -> usize {
    if runs > 2 * LONG { LONG } else { 300 }
}

/// From so many runs on a server's memory is promised to stay as it is.
const LONG: usize = 10_000;

/// How much each of them may have grown, if it was that much.
fn slack(name: &str, was: u64, first: usize) -> u64 {
    match name {
        "server: resident KiB" if first >= LONG => was / 20,
        "server: resident KiB" => 64 << 10,
        "launcher: resident KiB" => 2 << 10,
        "machine: memory cgroups" => 100,
        "machine: kernel's unreclaimable KiB" => 128 << 10,
        "server: threads" => 4,
        // A sandbox that waits for its run has a few, and there may be more of these than before.
        "server: descriptors" | "launcher: descriptors" => 16,
        _ => 2,
    }
}

#[test]
fn thousands_of_runs_end_as_they_should_and_leave_nothing() {
    let runs: usize =
        std::env::var("SANDGLASS_SOAK_RUNS").map_or(2000, |runs| runs.parse().expect("a number"));
    let registry = Registry::start();
    let guests = ["crash", "daemonise", "stubborn", "burn", "eat_memory", "spam", "fork_bomb"];
    let layer = Layer::build(|tar| {
        tar.dir("g");
        for name in guests {
            tar.program(&format!("g/{name}"), guest::bytes(name));
        }
    });
    registry.push("soak", "1", &Image::busybox().layer(layer));
    let image = registry.image("soak:1");
    let daemon = Daemon::builder()
        .registry(&registry)
        .flag("--slots", 4)
        .flag("--kept-runs", 100)
        .flag("--log", "warn")
        .start();
    let kinds = kinds();
    let schedule: Vec<&Kind> = kinds.iter().flat_map(|kind| std::iter::repeat_n(kind, kind.weight)).collect();
    assert_eq!(schedule.len(), 100);

    let counts = Mutex::new(BTreeMap::<&str, (usize, f64)>::new());
    let wrong = Mutex::new(Vec::new());
    let go = |runs: usize| {
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..CLIENTS {
                scope.spawn(|| {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= runs {
                            return;
                        }
                        // Neighbours in time are of different kinds.
                        let kind = schedule[number * 37 % schedule.len()];
                        let started = Instant::now();
                        let mut request = kind.request.clone();
                        request["image"] = json!(image);
                        let response = daemon
                            .request("POST", "/runs")
                            .json(&request)
                            .patience(Duration::from_secs(120))
                            .send();
                        let took = started.elapsed().as_secs_f64() * 1000.0;
                        let run = if response.status == 200 {
                            response.json()
                        } else {
                            json!({ "said": response.text() })
                        };
                        let code = run["exit_code"].as_u64();
                        let right = run["outcome"] == kind.ends
                            && kind.exit_code.is_none_or(|wanted| Some(wanted) == code);
                        if !right {
                            wrong.lock().expect("no one panics").push(format!("{}: {run}", kind.name));
                        }
                        let mut counts = counts.lock().expect("no one panics");
                        let entry = counts.entry(kind.name).or_default();
                        *entry = (entry.0 + 1, entry.1 + took);
                    }
                });
            }
        });
    };
    go(first(runs));
    let (host, before, complaints) = (daemon.host(), state(&daemon), host::kernel_complaints());
    let started = Instant::now();
    go(runs - first(runs));
    let took = started.elapsed().as_secs_f64();
    host.assert_unchanged();
    // The kernel takes its time with what is gone.
    std::thread::sleep(Duration::from_secs(3));
    let after = state(&daemon);

    let rate = (runs - first(runs)) as f64 / took;
    println!(
        "{runs} runs, all but the first {} in {took:.0} s: {rate:.0} a second, {CLIENTS} clients, 4 slots",
        first(runs)
    );
    println!("{:12} {:>8} {:>10}", "kind", "runs", "mean ms");
    for (name, (count, sum)) in counts.lock().expect("no one panics").iter() {
        println!("{name:12} {count:8} {:10.1}", sum / *count as f64);
    }
    println!("{:36} {:>10} {:>10}", "", "before", "after");
    let mut grown = Vec::new();
    for (name, was) in &before {
        println!("{name:36} {was:10} {:10}", after[name]);
        if after[name] > was + slack(name, *was, first(runs)) {
            grown.push(*name);
        }
    }
    let wrong = wrong.into_inner().expect("no one panics");
    println!("{} verdicts were wrong", wrong.len());
    assert!(wrong.is_empty(), "{}", wrong[..wrong.len().min(10)].join("\n"));
    assert!(grown.is_empty(), "these have grown: {grown:?}");
    let new: Vec<_> = host::kernel_complaints().difference(&complaints).cloned().collect();
    assert!(new.is_empty(), "the kernel complained: {new:?}");
    assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
}
