//! Whatever dies, nothing is left behind, and nobody is told a lie.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use support::{Daemon, Value, guest, host, json, until, within};

/// Programs of the kinds that are hard to get rid of.
fn stubborn_runs(count: usize) -> Vec<Value> {
    let long = json!({ "wall_time_ms": 300_000, "cpu_time_ms": 300_000 });
    let guest_run = |name: &str| json!({ "image": "host", "cmd": format!("/tmp/{name}"), "files": [guest::file(name)], "limits": long });
    let shell =
        |script: &str| json!({ "image": "host", "cmd": "sh", "args": ["-c", script], "limits": long });
    let kinds = [
        shell("sleep 600"),
        shell("trap '' HUP INT TERM; sleep 600 & setsid sleep 600 & sleep 600"),
        guest_run("stubborn"),
        guest_run("stop_self"),
        shell("setsid sh -c 'sleep 600 & sleep 600' & while :; do sleep 0.1; done"),
    ];
    kinds.iter().cycle().take(count).cloned().collect()
}

fn start_all(daemon: &Daemon, count: usize) -> Vec<String> {
    let ids: Vec<String> = stubborn_runs(count).iter().map(|run| daemon.run_async(run)).collect();
    for id in &ids {
        daemon.wait_for_state(id, "running");
    }
    ids
}

fn alive(pids: &BTreeSet<i32>) -> Vec<String> {
    pids.iter()
        .filter(|pid| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            !stat.is_empty() && !stat.contains(") Z ")
        })
        .map(|pid| format!("{pid} {}", host::command_line(*pid)))
        .collect()
}

fn entries(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn a_server_that_is_killed_takes_its_fifty_runs_with_it() {
    let mounts = || std::fs::read_to_string("/proc/self/mountinfo").expect("read the host's mounts");
    let before = mounts();
    let mut daemon = Daemon::builder().host_image().flag("--slots", 50).start();
    start_all(&daemon, 50);
    let (server, launcher) = (daemon.pid(), daemon.launcher_pid());
    let ours = host::processes_of(server, launcher);
    assert!(ours.len() >= 150, "a keeper, an init and a program for each run: {}", ours.len());
    daemon.kill9();
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(alive(&ours), Vec::<String>::new());
    assert_eq!(host::in_cgroups_of(launcher), BTreeSet::new());

    let mut daemon = daemon.restart();
    assert_eq!(host::cgroups_of(launcher), BTreeSet::new(), "the dead launcher's cgroups");
    let layers = daemon.data_dir().join("layers");
    for folder in ["tmp", "trash"] {
        assert_eq!(entries(&layers.join(folder)), Vec::<String>::new(), "{folder}");
    }
    let run = daemon.run(&json!({ "image": "host", "cmd": "echo", "args": ["again"] }));
    assert_eq!(run["stdout"], "again\n");
    assert!(daemon.stop().success());
    until("no mount is left on the host", || mounts() == before);
}

#[test]
fn a_launcher_that_is_killed_ends_the_server_which_says_whose_fault_it_was() {
    let mut daemon = Daemon::builder().host_image().flag("--slots", 6).start();
    let pending = daemon
        .request("POST", "/runs")
        .json(&json!({ "image": "host", "cmd": "sleep", "args": ["600"], "limits": { "wall_time_ms": 300_000 } }))
        .patience(Duration::from_secs(30))
        .begin()
        .expect("send a request");
    start_all(&daemon, 4);
    let launcher = daemon.launcher_pid();
    let ours = host::processes_of(daemon.pid(), launcher);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(launcher), nix::sys::signal::Signal::SIGKILL)
        .expect("kill the launcher that this test started");
    let response = pending.finish().expect("an answer");
    assert_eq!(response.status, 500, "{}", response.text());
    let problem = response.json();
    assert!(problem["run_id"].is_string(), "{problem:#}");
    let status = within(Duration::from_secs(20), "the server to end", || daemon.process().try_wait());
    assert!(!status.success(), "a lost launcher is no success: {status:?}");
    until("every process is dead", || alive(&ours).is_empty());

    let daemon = daemon.restart();
    assert_eq!(host::cgroups_of(launcher), BTreeSet::new(), "the dead launcher's cgroups");
    let run = daemon.run(&json!({ "image": "host", "cmd": "echo", "args": ["again"] }));
    assert_eq!(run["stdout"], "again\n");
}

#[test]
fn a_keeper_that_is_killed_takes_only_its_run_with_it() {
    let daemon = Daemon::builder().host_image().flag("--slots", 3).start();
    daemon.run(&json!({ "image": "host", "cmd": "true" }));
    let before = host::children(daemon.launcher_pid());
    let long =
        json!({ "image": "host", "cmd": "sleep", "args": ["600"], "limits": { "wall_time_ms": 60_000 } });
    let first = daemon.run_async(&long);
    daemon.wait_for_state(&first, "running");
    let keeper = host::children(daemon.launcher_pid())
        .into_iter()
        .find(|pid| !before.contains(pid))
        .expect("a keeper");
    let second = daemon.run_async(&long);
    daemon.wait_for_state(&second, "running");
    let below = host::descendants(keeper);
    assert!(below.len() >= 2);
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(keeper), nix::sys::signal::Signal::SIGKILL)
        .expect("kill a keeper that this test started");
    let run = daemon.wait_for_state(&first, "finished");
    assert_eq!(run["outcome"], "sandbox_error", "{run:#}");
    until("its processes are dead", || alive(&below).is_empty());
    assert_eq!(daemon.show(&second)["state"], "running");
    assert_eq!(daemon.delete(&format!("/runs/{second}")).expect(200)["outcome"], "cancelled");
    let run = daemon.run(&json!({ "image": "host", "cmd": "echo", "args": ["on"] }));
    assert_eq!(run["stdout"], "on\n");
}

#[test]
fn sigterm_lets_runs_end_and_takes_no_more() {
    let mut daemon = Daemon::builder().host_image().flag("--slots", 2).start();
    daemon.run(&json!({ "image": "host", "cmd": "true" }));
    let pending = daemon
        .request("POST", "/runs")
        .json(&json!({ "image": "host", "cmd": "sh", "args": ["-c", "sleep 2; echo done"] }))
        .begin()
        .expect("send a request");
    until("the run runs", || daemon.get("/runs").json()["runs"][0]["state"] == "running");
    let mut late = daemon.request("GET", "/readyz").begin().expect("a connection");
    daemon.process().signal(nix::sys::signal::Signal::SIGTERM);
    let asked = Instant::now();
    loop {
        let response = late.finish().expect("an answer");
        if response.status == 503 {
            break;
        }
        assert!(asked.elapsed() < Duration::from_secs(2), "still ready");
        late = daemon.request("GET", "/readyz").begin().expect("a connection");
    }
    let refused = daemon.post("/runs", &json!({ "image": "host", "cmd": "true" }));
    refused.problem(503, "draining");
    let run = pending.finish().expect("an answer").expect(200);
    assert_eq!((run["outcome"].as_str(), run["stdout"].as_str()), (Some("exited"), Some("done\n")));
    let status = within(Duration::from_secs(10), "the server to end", || daemon.process().try_wait());
    assert!(status.success(), "{status:?}");
}

#[test]
fn a_run_that_outlasts_the_drain_is_cancelled() {
    let mut daemon = Daemon::builder().host_image().flag("--drain-deadline-ms", 500).start();
    let launcher = daemon.launcher_pid();
    let pending = daemon
        .request("POST", "/runs")
        .json(&json!({ "image": "host", "cmd": "sleep", "args": ["600"], "limits": { "wall_time_ms": 60_000 } }))
        .begin()
        .expect("send a request");
    until("the run runs", || daemon.get("/runs").json()["runs"][0]["state"] == "running");
    let asked = Instant::now();
    daemon.process().signal(nix::sys::signal::Signal::SIGTERM);
    let run = pending.finish().expect("an answer").expect(200);
    assert_eq!(run["outcome"], "cancelled");
    let status = within(Duration::from_secs(10), "the server to end", || daemon.process().try_wait());
    assert!(status.success() && asked.elapsed() < Duration::from_secs(8), "{status:?}");
    assert_eq!(host::cgroups_of(launcher), BTreeSet::new());
}
