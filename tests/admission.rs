//! Whose turn it is: fairness between principals, quotas, and runs that ask for much.

use std::time::{Duration, Instant};

use support::{Daemon, Response, Value, json, scaled, until, within};

fn sh(script: &str) -> Value {
    json!({ "image": "host", "cmd": "sh", "args": ["-c", script] })
}

fn begin(daemon: &Daemon, key: &str, body: &Value) -> Value {
    let request = daemon.request("POST", "/runs").header("Prefer", "respond-async");
    let request = if key.is_empty() { request } else { request.key(key) };
    request.json(body).send().expect(202)
}

fn show(daemon: &Daemon, key: &str, run: &Value) -> Value {
    let request = daemon.request("GET", &format!("/runs/{}", run["id"].as_str().expect("an id")));
    if key.is_empty() { request.send().expect(200) } else { request.key(key).send().expect(200) }
}

/// What a refusal asks for is a time that makes sense.
fn retry_after(refused: &Response) -> u64 {
    let seconds = refused.header("retry-after").and_then(|text| text.parse().ok()).expect("Retry-After");
    assert!((1..=60).contains(&seconds), "{seconds}");
    seconds
}

/// Connections are for everybody.
#[test]
fn who_follows_its_run_on_every_connection_keeps_nobody_else_out() {
    let builder =
        Daemon::builder().host_image().flag("--connections-max", 16).flag("--drain-deadline-ms", 100);
    let (alice, bob) = (builder.key(&["alice"]), builder.key(&["bob"]));
    let daemon = builder.start();
    let sleep =
        json!({ "image": "host", "cmd": "sleep", "args": ["60"], "limits": { "wall_time_ms": 60_000 } });
    let run = begin(&daemon, &alice, &sleep);
    let path = format!("/runs/{}/events", run["id"].as_str().expect("an id"));
    let watch = || daemon.request("GET", &path).key(&alice);
    let follow = || {
        let mut stream = watch().begin().expect("ask").into_stream();
        let mut status = [0; 12];
        std::io::Read::read_exact(&mut stream, &mut status).expect("a status");
        assert_eq!(&status, b"HTTP/1.1 200");
        stream
    };
    let held: Vec<_> = (0..12).map(|_| follow()).collect();
    daemon.request("GET", "/runs").key(&alice).send().problem(429, "quota-exceeded");
    daemon.request("GET", "/runs").key(&bob).send().expect(200);
    drop(held);
    within(Duration::from_secs(10), "room again", || {
        (daemon.request("GET", "/runs").key(&alice).send().status == 200).then_some(())
    });
}

/// What large requests hold until their runs have ended is not all that there is for others.
#[test]
fn large_runs_of_one_principal_that_wait_leave_room_for_a_large_run_of_another() {
    const BODY: usize = 1 << 20;
    let builder = Daemon::builder().host_image().flag("--slots", 2);
    let builder = builder.flag("--body-bytes-max", BODY).flag("--bodies-bytes-max", 4 * BODY);
    let builder = builder.flag("--body-timeout-ms", 3000).flag("--drain-deadline-ms", 100);
    let (alice, bob) = (builder.key(&["alice", "--concurrency", "1"]), builder.key(&["bob"]));
    let daemon = builder.start();
    let large = |cmd: &str, bytes: usize| json!({ "image": "host", "cmd": cmd, "args": ["-c"], "stdin": "x".repeat(bytes) });
    let post = |key: &str, body: &Value| {
        daemon.request("POST", "/runs").key(key).header("Prefer", "respond-async").json(body).send()
    };
    let mut sleep = large("sleep", BODY - 300);
    sleep["args"] = json!(["60"]);
    sleep["limits"] = json!({ "wall_time_ms": 60_000 });
    for _ in 0..3 {
        post(&alice, &sleep).expect(202);
    }
    let refused = post(&alice, &sleep).problem(429, "quota-exceeded");
    assert!(refused["detail"].as_str().is_some_and(|text| text.contains("memory")), "{refused:#}");
    let request = daemon.request("POST", "/runs").key(&bob).json(&large("wc", 200_000));
    assert_eq!(request.send().expect(200)["stdout"], "200000\n");
}

#[test]
fn a_crowd_of_one_principal_delays_anothers_first_run_by_one_turn() {
    let builder = Daemon::builder().host_image().flag("--slots", 1);
    let (alice, bob) = (builder.key(&["alice"]), builder.key(&["bob"]));
    let watcher = builder.key(&["watcher", "--scope", "metrics,admin"]);
    let daemon = builder.start();
    let mut crowd = Vec::new();
    for _ in 0..200 {
        let mut body = sh("sleep 0.2");
        body["priority"] = json!(1000);
        crowd.push(begin(&daemon, &alice, &body));
    }
    assert_eq!(crowd[0]["queue_position"], Value::Null);
    assert!(crowd[199]["queue_position"].as_u64() > Some(150), "{}", crowd[199]);
    let bobs = begin(&daemon, &bob, &sh("true"));
    assert!(bobs["queue_position"].as_u64() <= Some(2), "{bobs}");
    let page = daemon.request("GET", "/metrics").key(&watcher).send().text();
    let line = page.lines().find_map(|line| line.strip_prefix("sandglass_runs_queued{principal=\"alice\"} "));
    assert!(line.is_some_and(|number| number.parse::<u32>().is_ok_and(|number| number > 150)), "{line:?}");
    let finished = || {
        let path = "/runs?state=finished&limit=500";
        let listed = daemon.request("GET", path).key(&alice).send().expect(200);
        listed["runs"].as_array().map_or(0, Vec::len)
    };
    let before = finished();
    within(Duration::from_secs(20), "bob's turn", || {
        (show(&daemon, &bob, &bobs)["state"] == "finished").then_some(())
    });
    // The one that held the slot, and perhaps one more while we were looking.
    assert!(finished() - before <= 3, "{} of alice's runs went before bob's first", finished() - before);
    let told = daemon.request("GET", "/principals").key(&watcher).send().expect(200);
    assert!(told["principals"][0]["queued"].as_u64() > Some(100), "{told}");
    let position = show(&daemon, &alice, &crowd[199])["queue_position"].as_u64();
    assert!(position < crowd[199]["queue_position"].as_u64(), "{position:?} has come nearer");
}

#[test]
fn what_is_counted_is_counted_for_all_keys_of_a_principal() {
    let builder = Daemon::builder().host_image().flag("--slots", 4);
    let (first, second) = (builder.key(&["alice", "--concurrency", "1"]), builder.key(&["alice"]));
    let daemon = builder.start();
    let one = begin(&daemon, &first, &sh("sleep 300"));
    let other = begin(&daemon, &second, &sh("sleep 300"));
    until("the first runs", || show(&daemon, &first, &one)["state"] == "running");
    assert_eq!(
        show(&daemon, &first, &other)["state"],
        "queued",
        "three slots are free, and one is all she may have"
    );
    // A newer key brings another number, for the older ones too.
    let third = daemon.builder_of().key(&["alice", "--concurrency", "2"]);
    until("the new key is known", || daemon.request("GET", "/runs").key(&third).send().status == 200);
    let last = begin(&daemon, &first, &sh("true"));
    until("the second runs, too", || show(&daemon, &first, &other)["state"] == "running");
    assert_eq!(show(&daemon, &first, &last)["state"], "queued");
}

#[test]
fn a_run_takes_as_much_of_the_host_as_it_asks_for() {
    let daemon = Daemon::builder()
        .host_image()
        .flag("--slots", 8)
        .flag("--budget-cpus", 4)
        .flag("--maxima-cpus", 64)
        .flag("--budget-memory-bytes", 1_u64 << 30)
        .start();
    let info = daemon.get("/info").expect(200);
    assert_eq!(info["budget"], json!({ "cpus": 4.0, "memory_bytes": 1 << 30 }));
    let asks = |cpus: f64, memory_bytes: u64| {
        let mut body = sh("sleep 1");
        body["limits"] = json!({ "cpus": cpus, "memory_bytes": memory_bytes });
        body
    };
    for (first, second, together) in [
        (asks(3.0, 1 << 24), asks(2.0, 1 << 24), false),
        (asks(2.0, 1 << 24), asks(2.0, 1 << 24), true),
        (asks(0.1, 800 << 20), asks(0.1, 300 << 20), false),
    ] {
        let first = begin(&daemon, "", &first);
        let second = begin(&daemon, "", &second);
        assert_eq!(second["queue_position"].is_null(), together, "{second}");
        let id = |run: &Value| run["id"].as_str().expect("an id").to_owned();
        let (first, second) =
            (daemon.wait_for_state(&id(&first), "finished"), daemon.wait_for_state(&id(&second), "finished"));
        let waited = second["timings"]["queue_ms"].as_f64().expect("a time") > 800.0;
        assert_eq!(
            (waited, &first["outcome"], &second["outcome"]),
            (!together, &json!("exited"), &json!("exited"))
        );
        until("the host is free", || daemon.metric("sandglass_slots{state=\"busy\"}") == 0.0);
    }
    for (limit, asked) in [("cpus", json!(4.5)), ("memory_bytes", json!((1_u64 << 30) + 4096))] {
        let mut body = sh("true");
        body["limits"] = json!({ limit: asked });
        let problem = daemon.post("/runs", &body).problem(422, "invalid-request");
        assert_eq!(problem["errors"][0]["pointer"], format!("/limits/{limit}"), "{problem}");
    }
    assert_eq!(daemon.metric("sandglass_rejected_total{reason=\"too_large\"}"), 2.0);
}

#[test]
fn a_key_has_a_rate_a_queue_and_runs_at_once_of_its_own() {
    let builder = Daemon::builder().host_image().flag("--slots", 2);
    let slow = builder.key(&["slow", "--runs-per-minute", "12"]);
    let single = builder.key(&["single", "--concurrency", "1", "--queued", "1"]);
    let free = builder.key(&["free", "--scope", "run,metrics"]);
    let daemon = builder.start();
    let post = |key: &str| daemon.request("POST", "/runs").key(key).json(&sh("true")).send();
    for _ in 0..2 {
        post(&slow).expect(200);
    }
    let refused = post(&slow);
    assert!(retry_after(&refused) <= 5);
    let problem = refused.problem(429, "rate-limited");
    let pause = problem["retry_after_ms"].as_u64().expect("a pause");
    post(&free).expect(200);
    std::thread::sleep(Duration::from_millis(pause + 10));
    post(&slow).expect(200);

    let busy = scaled(Duration::from_secs(1));
    let first = begin(&daemon, &single, &sh(&format!("sleep {}", busy.as_secs())));
    let second = begin(&daemon, &single, &sh("true"));
    assert_eq!(second["queue_position"], 1);
    let refused = post(&single);
    retry_after(&refused);
    refused.problem(429, "quota-exceeded");
    // There is a second slot, and it is somebody else's.
    let asked = Instant::now();
    post(&free).expect(200);
    assert!(asked.elapsed() < busy * 9 / 10, "{:?}", asked.elapsed());
    for run in [&first, &second] {
        within(Duration::from_secs(10), "its end", || {
            (show(&daemon, &single, run)["state"] == "finished").then_some(())
        });
    }
    let page = daemon.request("GET", "/metrics").key(&free).send().text();
    for reason in ["rate_limit", "quota"] {
        let line = format!("sandglass_rejected_total{{reason=\"{reason}\"}} 1");
        assert!(page.lines().any(|given| given == line), "{line}");
    }
}

#[test]
fn who_can_not_use_a_late_answer_is_told_at_once() {
    let daemon = Daemon::builder().host_image().flag("--slots", 1).start();
    daemon.run(&sh("sleep 1"));
    let strict = |wait: u32, strict: &str| {
        let prefer = format!("wait={wait}{strict}");
        daemon.request("POST", "/runs").header("Prefer", prefer).json(&sh("true")).send()
    };
    // An idle server takes it.
    let run = strict(5, ", handling=strict");
    assert_eq!(run.header("preference-applied"), Some("wait=5, handling=strict"));
    run.expect(200);
    for _ in 0..8 {
        begin(&daemon, "", &sh("sleep 1"));
    }
    let refused = strict(1, ", handling=strict");
    assert!(retry_after(&refused) >= 2);
    refused.problem(429, "wait-too-long");
    assert_eq!(daemon.metric("sandglass_rejected_total{reason=\"deadline\"}"), 1.0);
    strict(1, "").expect(202);
    strict(60, ", handling=strict").expect(200);
}

#[test]
fn what_a_key_may_run_at_once_is_waited_for_though_slots_are_free() {
    let builder = Daemon::builder().host_image().flag("--slots", 4);
    let (one, other) = (builder.key(&["one", "--concurrency", "1"]), builder.key(&["bob"]));
    let daemon = builder.start();
    daemon.request("POST", "/runs").key(&one).json(&sh("sleep 2")).send().expect(200);
    let mut long = sh("sleep 200");
    long["limits"] = json!({ "wall_time_ms": 300_000 });
    let long = begin(&daemon, &one, &long);
    // Then the slot of the first has come back, and how long it was held is known.
    until("the second to run", || show(&daemon, &one, &long)["state"] == "running");
    let strict = |key: &str, wait: u32| {
        let prefer = format!("wait={wait}, handling=strict");
        daemon.request("POST", "/runs").header("Prefer", prefer).key(key).json(&sh("true")).send()
    };
    let refused = strict(&one, 1);
    assert!(retry_after(&refused) >= 2);
    refused.problem(429, "wait-too-long");
    strict(&other, 60).expect(200);
    let path = format!("/runs/{}", long["id"].as_str().expect("an id"));
    daemon.request("DELETE", &path).key(&one).send().expect(200);
}

#[test]
fn batches_that_wait_take_places_in_the_queue_and_one_more_is_refused() {
    let builder = Daemon::builder().host_image().flag("--slots", 1).flag("--queue-capacity", 2);
    let (modest, bob) = (builder.key(&["modest", "--queued", "1"]), builder.key(&["bob"]));
    let watcher = builder.key(&["watcher", "--scope", "metrics"]);
    let daemon = builder.start();
    let mut long = sh("sleep 300");
    long["limits"] = json!({ "wall_time_ms": 300_000 });
    let long = begin(&daemon, &bob, &long);
    until("it has the slot", || show(&daemon, &bob, &long)["state"] == "running");
    let batch = json!({ "image": "host", "run": { "cmd": "true" }, "tests": vec![json!({}); 3] });
    let post = |key: &str| {
        daemon.request("POST", "/batches").key(key).header("Prefer", "respond-async").json(&batch).send()
    };
    let begun: Vec<_> = (0..2).map(|_| post(&bob).expect(202)["id"].clone()).collect();
    let refused = post(&bob);
    retry_after(&refused);
    refused.problem(429, "queue-full");
    // Runs and batches wait in the same queue.
    daemon.request("POST", "/runs").key(&bob).json(&sh("true")).send().problem(429, "queue-full");
    let hers = post(&modest).expect(202)["id"].clone();
    post(&modest).problem(429, "quota-exceeded");
    let page = || daemon.request("GET", "/metrics").key(&watcher).send().text();
    assert!(page().lines().any(|line| line == "sandglass_rejected_total{reason=\"queue_full\"} 2"));
    let waiting = || page().lines().any(|line| line == "sandglass_runs_queued{principal=\"bob\"} 2");
    until("each has one place", waiting);
    let path = format!("/runs/{}", long["id"].as_str().expect("an id"));
    daemon.request("DELETE", &path).key(&bob).send().expect(200);
    for (key, id) in [(&bob, &begun[0]), (&bob, &begun[1]), (&modest, &hers)] {
        let path = format!("/batches/{}", id.as_str().expect("an id"));
        let show = || daemon.request("GET", &path).key(key).send().expect(200);
        within(Duration::from_secs(60), "its end", || (show()["state"] == "finished").then_some(()));
        assert!(show()["tests"].as_array().expect("tests").iter().all(|test| test["run"]["exit_code"] == 0));
    }
    // What waited has left the queue, and was refused by nobody.
    assert!(page().lines().any(|line| line == "sandglass_queue_depth 0"));
    assert!(page().lines().any(|line| line == "sandglass_rejected_total{reason=\"queue_full\"} 2"));
    post(&bob).expect(202);
}

#[test]
fn a_batch_that_its_rate_holds_up_waits_for_it_and_is_refused_nothing() {
    let builder = Daemon::builder().host_image().flag("--slots", 2);
    let key = builder.key(&["slow", "--runs-per-minute", "60", "--scope", "run,metrics"]);
    let daemon = builder.start();
    // Ten may come at once, and then one a second.
    let batch = json!({ "image": "host", "run": { "cmd": "true" }, "tests": vec![json!({}); 13] });
    let began = Instant::now();
    let done = daemon.request("POST", "/batches").key(&key).json(&batch).send().expect(200);
    assert!(began.elapsed() > Duration::from_millis(2900), "{:?}", began.elapsed());
    assert!(done["tests"].as_array().expect("tests").iter().all(|test| test["run"]["exit_code"] == 0));
    let page = daemon.request("GET", "/metrics").key(&key).send().text();
    let refused: Vec<_> = page.lines().filter(|line| line.starts_with("sandglass_rejected_total")).collect();
    assert!(!refused.is_empty() && refused.iter().all(|line| line.ends_with(" 0")), "{refused:?}");
    assert!(!daemon.log().contains("turned away"), "{}", daemon.log());
    // One that waits can be cancelled.
    let long = json!({ "image": "host", "run": { "cmd": "true" }, "tests": vec![json!({}); 300] });
    let request = daemon.request("POST", "/batches").key(&key).header("Prefer", "respond-async");
    let path = format!("/batches/{}", request.json(&long).send().expect(202)["id"].as_str().expect("an id"));
    let ended = daemon.request("DELETE", &path).key(&key).send().expect(200);
    assert_eq!(ended["verdict"], "cancelled");
}

#[test]
fn slots_that_a_batch_can_not_use_because_of_its_rate_are_free_for_others() {
    let builder = Daemon::builder().host_image().flag("--slots", 2);
    let slow = builder.key(&["slow", "--runs-per-minute", "1"]);
    let (bob, modest) = (builder.key(&["bob"]), builder.key(&["modest", "--queued", "0"]));
    let daemon = builder.start();
    // How long slots are held is known, and nobody would be served within a second if they were taken.
    daemon.request("POST", "/runs").key(&bob).json(&sh("sleep 3")).send().expect(200);
    let batch = json!({ "image": "host", "run": { "cmd": "true" }, "tests": [{}] });
    let post = |key: &str, prefer: &str| {
        daemon.request("POST", "/batches").key(key).header("Prefer", prefer).json(&batch).send()
    };
    let paths: Vec<String> = (0..3)
        .map(|_| post(&slow, "respond-async").expect(202)["id"].as_str().expect("an id").to_owned())
        .map(|id| format!("/batches/{id}"))
        .collect();
    let now = "wait=0, handling=strict";
    until("his to be taken", || post(&bob, now).status == 202);
    until("theirs to be taken", || post(&modest, "respond-async").status == 202);
    for path in &paths {
        daemon.request("DELETE", path).key(&slow).send().expect(200);
    }
    // One that can't be met is told so, as for a run.
    let mut long = sh("sleep 300");
    long["limits"] = json!({ "wall_time_ms": 300_000 });
    let long: Vec<_> = (0..2).map(|_| begin(&daemon, &bob, &long)).collect();
    until("both run", || long.iter().all(|run| show(&daemon, &bob, run)["state"] == "running"));
    let refused = post(&bob, now);
    retry_after(&refused);
    refused.problem(429, "wait-too-long");
    for run in &long {
        let path = format!("/runs/{}", run["id"].as_str().expect("an id"));
        daemon.request("DELETE", &path).key(&bob).send().expect(200);
    }
}

#[test]
fn batches_that_wait_for_room_keep_nobody_elses_waiting() {
    let builder = Daemon::builder().host_image().flag("--slots", 2);
    let builder = builder.flag("--files-bytes-max", 40 << 20).flag("--file-bytes-max", 30 << 20);
    let (alice, bob) = (builder.key(&["alice"]), builder.key(&["bob"]));
    let daemon = builder.start();
    let held = daemon.request("POST", "/files").key(&alice).body(vec![1; 30 << 20]).send().expect(201);
    let mut reader = sh("sleep 300");
    reader["files"] = json!([{ "path": "x", "file": held["file"] }]);
    reader["limits"] = json!({ "wall_time_ms": 300_000 });
    let reader = begin(&daemon, &alice, &reader);
    let batch = |disk_bytes: u32| {
        let prepare = json!({ "cmd": "true", "limits": { "disk_bytes": disk_bytes, "inodes": 1000 } });
        json!({ "image": "host", "prepare": prepare, "run": { "cmd": "true" }, "tests": [{}] })
    };
    let path = |run: &Value, kind: &str| format!("/{kind}/{}", run["id"].as_str().expect("an id"));
    let begun: Vec<_> = (0..4)
        .map(|_| {
            let request = daemon.request("POST", "/batches").key(&alice).header("Prefer", "respond-async");
            path(&request.json(&batch(12 << 20)).send().expect(202), "batches")
        })
        .collect();
    let show = |path: &String| daemon.request("GET", path).key(&alice).send().expect(200);
    // What it would never have room for beside its own file is not waited for.
    let mut never = batch(12 << 20);
    never["tests"] = json!([{ "stdin": { "file": held["file"] } }]);
    let refused =
        daemon.request("POST", "/batches").key(&alice).json(&never).send().problem(503, "files-full");
    assert!(
        refused["detail"].as_str().is_some_and(|text| text.contains("the batch's own files")),
        "{refused}"
    );
    // There is room for his, and none for hers.
    let bobs = daemon.request("POST", "/batches").key(&bob).json(&batch(1 << 20)).send().expect(200);
    assert_eq!(bobs["prepare"]["outcome"], "exited", "{bobs:#}");
    assert!(begun.iter().all(|path| show(path)["state"] == "preparing"));
    daemon.request("DELETE", &path(&reader, "runs")).key(&alice).send().expect(200);
    for path in &begun {
        within(Duration::from_secs(60), "the end of hers", || {
            (show(path)["state"] == "finished").then_some(())
        });
        assert_eq!(show(path)["prepare"]["outcome"], "exited", "{:#}", show(path));
    }
}

/// What a program sees of its processors, and whether it can change that.
const LOOK: &str = r#"
import os, time
cores = sorted(os.sched_getaffinity(0))
try:
    os.sched_setaffinity(0, range(os.cpu_count()))
    moved = "moved"
except PermissionError:
    moved = "stays"
child = os.popen("grep Cpus_allowed_list /proc/self/status").read().split()[-1]
print(",".join(map(str, cores)), moved, child)
time.sleep(1)
"#;

#[test]
fn pinned_runs_have_cores_of_their_own_and_can_not_leave_them() {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let daemon = Daemon::builder().host_image().arg("--pin-cpus").start();
    assert_eq!(
        daemon.get("/info").expect(200)["slots"],
        json!({ "total": cores, "busy": 0, "pinned": true })
    );
    let look = json!({ "image": "host", "cmd": "python3", "args": ["-c", LOOK],
        "limits": { "wall_time_ms": 60_000, "cpu_time_ms": 60_000 } });
    let begun: Vec<_> = (0..=cores).map(|_| begin(&daemon, "", &look)).collect();
    let mut seen = std::collections::BTreeSet::new();
    for (number, run) in begun.iter().enumerate() {
        let run = daemon.wait_for_state(run["id"].as_str().expect("an id"), "finished");
        let told = run["stdout"].as_str().expect("text").split_whitespace().collect::<Vec<_>>();
        let [core, moved, child] = told[..] else { panic!("{run:#}") };
        assert!(core.parse::<usize>().is_ok_and(|core| core < 4096), "{core} is one core");
        assert_eq!((moved, child), ("stays", core));
        // Those that ran at once; the last had to wait for a core.
        assert!(number == cores || seen.insert(core.to_owned()), "{core} was somebody else's");
        assert_eq!(number == cores, run["timings"]["queue_ms"].as_f64() > Some(500.0), "{run:#}");
    }
    let mut all = look;
    all["limits"]["cpus"] = json!(cores);
    let run = daemon.run(&all);
    assert_eq!(run["stdout"].as_str().map(|text| text.split(',').count()), Some(cores), "{run:#}");
    let mut refused = Daemon::builder().arg("--pin-cpus").flag("--slots", cores + 1).spawn();
    assert!(!refused.wait().success());
    assert!(refused.log().contains("each needs a core of its own"), "{}", refused.log());
}
