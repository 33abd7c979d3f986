//! Whatever dies, nothing is left behind, and nobody is told a lie.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::{Daemon, Liar, Lie, Registry, Value, guest, host, json, scaled, until, within};

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
        with_guests(shell("/tmp/daemonise; /tmp/daemonise; sleep 600"), "daemonise"),
        with_guests(shell("/tmp/fork_bomb once; sleep 600"), "fork_bomb"),
        with_guests(shell("/tmp/fork_bomb"), "fork_bomb"),
    ];
    kinds.iter().cycle().take(count).cloned().collect()
}

/// The same with a guest program at hand, and held back so that many of it leave the machine usable.
fn with_guests(mut body: Value, name: &str) -> Value {
    body["files"] = json!([guest::file(name)]);
    body["limits"]["processes"] = json!(8);
    body["limits"]["cpus"] = json!(0.05);
    body
}

fn start_all(daemon: &Daemon, count: usize) -> Vec<String> {
    let ids: Vec<String> = stubborn_runs(count).iter().map(|run| daemon.run_async(run)).collect();
    for id in &ids {
        let run = within(Duration::from_secs(120), &format!("the start of run {id}"), || {
            let run = daemon.show(id);
            (run["state"] == "running" || run["state"] == "finished").then_some(run)
        });
        assert_eq!(run["state"], "running", "{run:#}");
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

#[track_caller]
fn assert_dead_within(bound: Duration, pids: &BTreeSet<i32>) {
    let (begun, bound) = (Instant::now(), scaled(bound));
    while !alive(pids).is_empty() && begun.elapsed() < bound {
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(alive(pids), Vec::<String>::new(), "still there after {bound:?}");
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
    assert_dead_within(Duration::from_secs(1), &ours);
    assert_eq!(host::in_cgroups_of(launcher), BTreeSet::new());

    let mut daemon = daemon.restart();
    assert_eq!(host::cgroups_of(launcher), BTreeSet::new(), "the dead launcher's cgroups");
    let layers = daemon.data_dir().join("layers");
    for folder in ["tmp", "trash"] {
        until("leftovers to be gone", || entries(&layers.join(folder)).is_empty());
    }
    let run = daemon.run(&json!({ "image": "host", "cmd": "echo", "args": ["again"] }));
    assert_eq!(run["stdout"], "again\n");
    assert!(daemon.stop().success());
    until("no mount is left on the host", || mounts() == before);
}

#[test]
fn a_launcher_that_is_killed_ends_the_server_which_says_whose_fault_it_was() {
    let mut daemon = Daemon::builder().host_image().flag("--slots", 9).start();
    let pending = daemon
        .request("POST", "/runs")
        .json(&json!({ "image": "host", "cmd": "sleep", "args": ["600"], "limits": { "wall_time_ms": 300_000 } }))
        .patience(Duration::from_secs(30))
        .begin()
        .expect("send a request");
    start_all(&daemon, 8);
    let queued = daemon
        .request("POST", "/runs")
        .json(&json!({ "image": "host", "cmd": "true" }))
        .patience(Duration::from_secs(30))
        .begin()
        .expect("send a request");
    until("a run is queued", || daemon.get("/runs?state=queued").json()["runs"][0].is_object());
    let launcher = daemon.launcher_pid();
    let ours = host::processes_of(daemon.pid(), launcher);
    kill(Pid::from_raw(launcher), Signal::SIGKILL).expect("kill the launcher that this test started");
    // Nobody has cancelled anything: who waits hears that it was our fault, and about which run.
    for waiting in [pending, queued] {
        let problem = waiting.finish().expect("an answer").problem(500, "interrupted");
        assert!(problem["run_id"].is_string(), "{problem:#}");
    }
    let status = within(Duration::from_secs(20), "the server to end", || daemon.process().try_wait());
    assert_eq!(status.code(), Some(70), "an end that a service manager can tell from others: {status:?}");
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
    let long =
        json!({ "image": "host", "cmd": "sleep", "args": ["600"], "limits": { "wall_time_ms": 60_000 } });
    let first = daemon.run_async(&long);
    daemon.wait_for_state(&first, "running");
    // It may have been prepared before, or be one of those that were.
    let has_it = |keeper: &i32| {
        host::descendants(*keeper).iter().any(|pid| host::command_line(*pid).starts_with("sleep"))
    };
    let keeper = within(Duration::from_secs(20), "a keeper", || {
        host::children(daemon.launcher_pid()).into_iter().find(has_it)
    });
    let second = daemon.run_async(&long);
    daemon.wait_for_state(&second, "running");
    let below = host::descendants(keeper);
    assert!(below.len() >= 2);
    kill(Pid::from_raw(keeper), Signal::SIGKILL).expect("kill a keeper that this test started");
    let run = daemon.wait_for_state(&first, "finished");
    assert_eq!(run["outcome"], "sandbox_error", "{run:#}");
    until("its processes are dead", || alive(&below).is_empty());
    assert_eq!(daemon.show(&second)["state"], "running");
    assert_eq!(daemon.delete(&format!("/runs/{second}")).expect(200)["outcome"], "cancelled");
    let run = daemon.run(&json!({ "image": "host", "cmd": "echo", "args": ["on"] }));
    assert_eq!(run["stdout"], "on\n");
}

/// The first process of a container hears no signal for which nobody listens.
#[test]
fn who_tells_a_server_to_stop_while_it_tests_itself_is_heard() {
    let mut process = Daemon::builder().host_image().spawn();
    let launcher =
        within(Duration::from_secs(20), "a launcher", || host::children(process.pid()).first().copied());
    within(Duration::from_secs(20), "the self-test", || {
        (!host::in_cgroups_of(launcher).is_empty()).then_some(())
    });
    process.signal(Signal::SIGTERM);
    let status = process.wait();
    assert_eq!(status.code(), Some(0), "an orderly end: {status:?}");
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
    daemon.process().signal(Signal::SIGTERM);
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
    daemon.process().signal(Signal::SIGTERM);
    let run = pending.finish().expect("an answer").expect(200);
    assert_eq!(run["outcome"], "cancelled");
    let status = within(Duration::from_secs(10), "the server to end", || daemon.process().try_wait());
    assert!(status.success() && asked.elapsed() < Duration::from_secs(8), "{status:?}");
    assert_eq!(host::cgroups_of(launcher), BTreeSet::new());
}

/// The programs run in an image of the store, and a layer is being unpacked, at the moment of death.
#[test]
fn a_store_whose_server_is_killed_is_whole_and_clean_after_the_next_start() {
    let registry = Registry::start();
    let stalls = Arc::new(AtomicBool::new(true));
    let (blob, stalling) = (registry.layers_of("python", "3")[0].clone(), Arc::clone(&stalls));
    let liar = Liar::before(&registry, move |_, path| {
        if path.ends_with(&blob) && stalling.load(Ordering::SeqCst) {
            Lie::Stall(20 << 20)
        } else {
            Lie::Truth
        }
    });
    let daemon = Daemon::builder().flag("--insecure-registry", liar.host()).flag("--slots", 6);
    let mut daemon = daemon.start();
    let long = json!({ "wall_time_ms": 280_000 });
    let body = |image: &str, cmd: &str| json!({ "image": liar.image(image), "cmd": cmd, "args": ["600"], "limits": long });
    let runs: Vec<String> = (0..4).map(|_| daemon.run_async(&body("busybox", "sleep"))).collect();
    for id in &runs {
        daemon.wait_for_state(id, "running");
    }
    // Until their image is durable, which runs do not wait for.
    daemon.post("/images", &json!({ "image": liar.image("busybox") })).expect(200);
    // One that a client waits for: what was promised would be pulled again by the next server.
    let pulling = daemon.request("POST", "/runs").json(&body("python:3", "python3")).begin();
    let _pulling = pulling.expect("send a request");
    let layers = daemon.data_dir().join("layers");
    until("a layer is being unpacked", || !entries(&layers.join("tmp")).is_empty());
    let launcher = daemon.launcher_pid();
    let ours = host::processes_of(daemon.pid(), launcher);
    daemon.kill9();
    within(Duration::from_secs(1), "the end of everything", || alive(&ours).is_empty().then_some(()));

    stalls.store(false, Ordering::SeqCst);
    let asked = liar.asked().len();
    let daemon = daemon.restart();
    for folder in ["tmp", "trash"] {
        until("leftovers to be gone", || entries(&layers.join(folder)).is_empty());
    }
    assert_eq!(host::cgroups_of(launcher), BTreeSet::new(), "the dead launcher's cgroups");
    let host = daemon.host();
    let run = daemon.run(&json!({ "image": liar.image("busybox"), "cmd": "echo", "args": ["still here"] }));
    assert_eq!(run["stdout"], "still here\n", "{run:#}");
    assert_eq!(liar.asked().len(), asked, "an image that is there is not asked for again");
    let args = ["-c", "import json, ssl, sqlite3; print('whole')"];
    let run = daemon.run(&json!({ "image": liar.image("python:3"), "cmd": "python3", "args": args }));
    assert_eq!(run["stdout"], "whole\n", "{run:#}");
    host.assert_unchanged();
}

/// Whoever is killed from outside, the answer says who: the program was, or the sandbox was.
#[test]
fn a_program_killed_from_outside_is_signaled_and_a_killed_init_is_our_fault() {
    let daemon = Daemon::builder().host_image().flag("--slots", 2).start();
    daemon.run(&json!({ "image": "host", "cmd": "true" }));
    let host = daemon.host();
    let long =
        json!({ "image": "host", "cmd": "sleep", "args": ["250"], "limits": { "wall_time_ms": 280_000 } });
    for (program, outcome) in [("sleep", "signaled"), ("init", "sandbox_error")] {
        let id = daemon.run_async(&long);
        daemon.wait_for_state(&id, "running");
        let inside = host::in_cgroups_of(daemon.launcher_pid());
        let victim =
            inside.iter().find(|pid| host::command_line(**pid).starts_with("sleep") == (program == "sleep"));
        kill(Pid::from_raw(*victim.expect("a process inside")), Signal::SIGKILL).expect("kill it");
        let run = daemon.wait_for_state(&id, "finished");
        assert_eq!(run["outcome"], outcome, "{program}: {run:#}");
        let signal = if outcome == "signaled" { json!("SIGKILL") } else { Value::Null };
        assert_eq!(run["signal"], signal, "{program}: {run:#}");
    }
    host.assert_unchanged();
}

/// A server that hangs for a while can't hold its runs' clocks: those are the keepers'.
#[test]
fn limits_hold_while_the_server_is_stopped() {
    let daemon = Daemon::start();
    daemon.run(&json!({ "image": "host", "cmd": "true" }));
    let host = daemon.host();
    let limits = json!({ "wall_time_ms": 1500 });
    let id = daemon.run_async(&json!({ "image": "host", "cmd": "sleep", "args": ["250"], "limits": limits }));
    daemon.wait_for_state(&id, "running");
    kill(Pid::from_raw(daemon.pid()), Signal::SIGSTOP).expect("stop the server that this test started");
    let dead = Instant::now();
    while !host::in_cgroups_of(daemon.launcher_pid()).is_empty() && dead.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(20));
    }
    kill(Pid::from_raw(daemon.pid()), Signal::SIGCONT).expect("let the server go on");
    assert!(dead.elapsed() < Duration::from_secs(10), "it was dead only after {:?}", dead.elapsed());
    let run = daemon.wait_for_state(&id, "finished");
    assert_eq!(run["outcome"], "wall_time_limit", "{run:#}");
    let wall = run["usage"]["wall_time_ms"].as_f64().expect("a number");
    assert!((1500.0..9000.0).contains(&wall), "{wall}");
    host.assert_unchanged();
}

/// What was promised before the signal is kept, what waits in the queue too; idle connections hold nothing up.
#[test]
fn a_drain_finishes_the_queue_and_then_nobody_listens() {
    let mut daemon = Daemon::builder().host_image().flag("--slots", 1).start();
    let launcher = daemon.launcher_pid();
    let line = |line: &str| json!({ "image": "host", "cmd": "sh", "args": ["-c", line] });
    let send = |body: Value| daemon.request("POST", "/runs").json(&body).begin().expect("send a request");
    let first = send(line("sleep 1; echo first"));
    until("the first runs", || daemon.get("/runs?state=running").json()["runs"][0].is_object());
    let second = send(line("echo second"));
    until("the second is queued", || daemon.get("/runs?state=queued").json()["runs"][0].is_object());
    let mut idle = TcpStream::connect(daemon.address()).expect("connect");
    idle.set_read_timeout(Some(Duration::from_secs(30))).expect("set a timeout");
    let request = format!("GET /healthz HTTP/1.1\r\nHost: {}\r\n\r\n", daemon.address());
    idle.write_all(request.as_bytes()).expect("send a request");
    let mut answer = [0; 4096];
    assert!(idle.read(&mut answer).expect("an answer") > 0);
    daemon.process().signal(Signal::SIGTERM);
    for (pending, said) in [(first, "first\n"), (second, "second\n")] {
        let run = pending.finish().expect("an answer").expect(200);
        assert_eq!(
            (run["outcome"].as_str(), run["stdout"].as_str()),
            (Some("exited"), Some(said)),
            "{run:#}"
        );
    }
    let status = within(Duration::from_secs(20), "the server to end", || daemon.process().try_wait());
    assert_eq!(status.code(), Some(0), "{status:?}");
    assert_eq!(idle.read(&mut answer).expect("the end of an idle connection"), 0);
    assert!(TcpStream::connect(daemon.address()).is_err(), "somebody still listens");
    assert_eq!(host::cgroups_of(launcher), BTreeSet::new());
}

#[test]
fn a_second_signal_waits_no_longer_and_sigint_is_as_good_as_sigterm() {
    let mut daemon = Daemon::builder().host_image().flag("--drain-deadline-ms", 250_000).start();
    let launcher = daemon.launcher_pid();
    let long =
        json!({ "image": "host", "cmd": "sleep", "args": ["250"], "limits": { "wall_time_ms": 280_000 } });
    let pending = daemon.request("POST", "/runs").json(&long).begin().expect("send a request");
    until("it runs", || daemon.get("/runs?state=running").json()["runs"][0].is_object());
    let ours = host::processes_of(daemon.pid(), launcher);
    daemon.process().signal(Signal::SIGINT);
    until("it is draining", || daemon.get("/readyz").status == 503);
    assert_eq!(daemon.get("/runs?state=running").json()["runs"][0]["state"], "running");
    daemon.process().signal(Signal::SIGINT);
    let run = pending.finish().expect("an answer").expect(200);
    assert_eq!(run["outcome"], "cancelled", "{run:#}");
    let status = within(Duration::from_secs(20), "the server to end", || daemon.process().try_wait());
    assert_eq!(status.code(), Some(0), "{status:?}");
    until("every process is dead", || alive(&ours).is_empty());
    assert_eq!(host::cgroups_of(launcher), BTreeSet::new());
}

/// A pull that stalls may not hold the end up, and leaves nothing half done.
#[test]
fn a_pull_under_way_ends_with_the_drain() {
    let registry = Registry::start();
    let blob = registry.layers_of("busybox", "latest")[0].clone();
    let liar = Liar::before(
        &registry,
        move |_, path| if path.ends_with(&blob) { Lie::Stall(1000) } else { Lie::Truth },
    );
    let daemon = Daemon::builder().flag("--insecure-registry", liar.host()).flag("--drain-deadline-ms", 300);
    let mut daemon = daemon.start();
    let layers = daemon.data_dir().join("layers");
    let body = json!({ "image": liar.image("busybox"), "cmd": "true" });
    let pending = daemon.request("POST", "/runs").json(&body).begin().expect("send a request");
    until("a layer is being unpacked", || !entries(&layers.join("tmp")).is_empty());
    daemon.process().signal(Signal::SIGTERM);
    let run = pending.finish().expect("an answer").expect(200);
    assert_eq!(run["outcome"], "cancelled", "{run:#}");
    let status = within(Duration::from_secs(20), "the server to end", || daemon.process().try_wait());
    assert_eq!(status.code(), Some(0), "{status:?}");
    for folder in ["tmp", "trash"] {
        until("leftovers to be gone", || entries(&layers.join(folder)).is_empty());
    }
}
