//! What was promised is kept: an id that a client was told leads to exactly one result, whatever happens to
//! the server, and nothing runs twice.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use support::marked::{Marked, Random, Watch};
use support::{Daemon, Request, Value, host, json, until, within};

fn sh(script: &str) -> Value {
    json!({ "image": "host", "cmd": "sh", "args": ["-c", script] })
}

fn keyed(daemon: &Daemon, key: &str, body: &Value) -> Request {
    daemon.request("POST", "/runs").header("Idempotency-Key", key).json(body)
}

fn without_teardown(mut run: Value) -> Value {
    run["timings"]["teardown_ms"] = Value::Null;
    run
}

/// The server is killed again and again, at moments that nobody has chosen, while clients submit.
#[test]
fn every_id_that_was_told_has_one_result_and_nothing_runs_twice_whenever_the_server_is_killed() {
    const ROUNDS: usize = 12;
    let mut random = Random::new();
    let (mut told, mut results) = (Vec::<String>::new(), BTreeMap::new());
    let mut daemon = Daemon::builder().host_image().flag("--slots", 3).flag("--queue-capacity", 2000).start();
    let watch = Watch::begin();
    let mut number = 0;
    for _ in 0..ROUNDS {
        let life = Duration::from_millis(100 + random.below(900));
        let began = Instant::now();
        while began.elapsed() < life {
            number += 1;
            let marked = Marked::new(0.15, number);
            let request =
                daemon.request("POST", "/runs").header("Prefer", "respond-async").json(&marked.body());
            let run = request.send().expect(202);
            told.push(run["id"].as_str().expect("an id").to_owned());
            // What somebody has seen must not become something else.
            let asked = &told[random.below(told.len() as u64) as usize];
            let run = daemon.show(asked);
            if run["state"] == "finished" {
                let first = results.entry(asked.clone()).or_insert_with(|| run["outcome"].clone());
                assert_eq!(*first, run["outcome"], "{run:#}");
            }
            std::thread::sleep(Duration::from_millis(random.below(40)));
        }
        daemon.kill9();
        daemon = daemon.restart();
    }
    let runs: Vec<Value> = told.iter().map(|id| daemon.wait_for_state(id, "finished")).collect();
    let seen = watch.end();
    let mut counts = BTreeMap::<String, usize>::new();
    for run in &runs {
        let outcome = run["outcome"].as_str().expect("an outcome");
        *counts.entry(outcome.to_owned()).or_default() += 1;
        if outcome == "sandbox_error" {
            assert_eq!(run["problem"]["type"], "/problems/interrupted", "{run:#}");
        } else {
            assert_eq!((outcome, &run["exit_code"]), ("exited", &json!(0)), "{run:#}");
        }
        if let Some(first) = results.get(run["id"].as_str().expect("an id")) {
            assert_eq!(*first, run["outcome"], "{run:#}");
        }
    }
    eprintln!("{} runs over {ROUNDS} lives: {counts:?}", told.len());
    assert!(counts.contains_key("exited") && counts.contains_key("sandbox_error"), "{counts:?}");
    assert!(seen > told.len() / 2, "{seen} of {} runs were seen", told.len());
}

#[test]
fn finished_runs_outlive_the_server_with_what_they_wrote() {
    let daemon = Daemon::start();
    let mut labelled = sh("printf 'a\\0\\377'; seq 30000 >&2; exit 3");
    labelled["labels"] = json!({ "contest": "42" });
    let waited = daemon.run(&labelled);
    let id = waited["id"].as_str().expect("an id").to_owned();
    let other = daemon.run_async(&sh("true"));
    daemon.wait_for_state(&other, "finished");
    let daemon = daemon.restart();
    assert_eq!(without_teardown(daemon.show(&id)), without_teardown(waited.clone()));
    assert!(daemon.show(&id)["timings"]["teardown_ms"].is_number());
    assert_eq!(daemon.get(&format!("/runs/{id}/stdout")).body, b"a\0\xff");
    let part = daemon.request("GET", &format!("/runs/{id}/stderr")).header("Range", "bytes=-6").send();
    assert_eq!(part.body, b"30000\n");
    let listed = daemon.get("/runs?label=contest:42").expect(200);
    assert_eq!(listed["runs"][0]["id"], json!(id));
    assert_eq!(listed["runs"].as_array().map(Vec::len), Some(1));
    let all = daemon.get("/runs").expect(200);
    assert_eq!(all["runs"][0]["id"], json!(other), "the newest first");
    let told: Vec<_> = support::Events::open(daemon.request("GET", &format!("/runs/{id}/events"))).collect();
    let errors: String = told
        .iter()
        .filter(|event| event.name == "stderr")
        .filter_map(|event| event.data["text"].as_str())
        .collect();
    assert_eq!(Some(errors.as_str()), waited["stderr"].as_str());
    assert_eq!(without_teardown(told.last().expect("a result").data.clone()), without_teardown(waited));
    // A run nobody was promised is written soon, also if the server is killed.
    let soon = daemon.run(&sh("echo soon"));
    std::thread::sleep(Duration::from_secs(1));
    let mut daemon = daemon;
    daemon.kill9();
    let daemon = daemon.restart();
    assert_eq!(daemon.show(soon["id"].as_str().expect("an id"))["stdout"], "soon\n");
}

#[test]
fn a_run_that_is_purged_is_gone_for_good() {
    let daemon = Daemon::start();
    let id = daemon.run_async(&sh("echo secret; sleep 60"));
    daemon.wait_for_state(&id, "running");
    let gone = daemon.delete(&format!("/runs/{id}?purge=true")).expect(200);
    assert_eq!((gone["outcome"].as_str(), gone["state"].as_str()), (Some("cancelled"), Some("finished")));
    let plain = daemon.run(&sh("echo secret"));
    let plain = plain["id"].as_str().expect("an id").to_owned();
    daemon.delete(&format!("/runs/{plain}?purge=true")).expect(200);
    for path in ["", "/stdout", "/events"] {
        daemon.get(&format!("/runs/{id}{path}")).problem(404, "run-not-found");
        daemon.get(&format!("/runs/{plain}{path}")).problem(404, "run-not-found");
    }
    daemon.delete(&format!("/runs/{id}?purge=perhaps")).problem(422, "invalid-request");
    let daemon = daemon.restart();
    assert_eq!(daemon.get("/runs").expect(200)["runs"], json!([]));
}

#[test]
fn outputs_that_must_not_be_kept_are_told_and_then_gone() {
    let daemon = Daemon::start();
    let mut body = sh("echo secret; echo secret >&2");
    body["keep_output"] = json!(false);
    let run = daemon.run(&body);
    assert_eq!((run["stdout"].as_str(), run["stderr"].as_str()), (Some("secret\n"), Some("secret\n")));
    let id = run["id"].as_str().expect("an id");
    let later = daemon.show(id);
    assert_eq!((&later["stdout"], &later["stdout_bytes"]), (&json!(""), &json!(0)), "{later:#}");
    assert_eq!((&later["stdout_total_bytes"], &later["stdout_truncated"]), (&json!(7), &json!(true)));
    assert_eq!(later["outcome"], "exited");
    assert_eq!(daemon.get(&format!("/runs/{id}/stderr")).body, b"");
    let events = support::Events::open(daemon.request("POST", "/runs").json(&body));
    let said: Vec<_> =
        events.filter(|event| event.name == "stdout").map(|event| event.data["text"].clone()).collect();
    assert_eq!(said, ["secret\n"]);
    let mut daemon = daemon;
    let path = daemon.data_dir().join("runs/runs.redb");
    daemon.stop();
    let file = std::fs::read(path).expect("the file of runs");
    assert!(!file.windows(7).any(|bytes| bytes == b"secret\n"), "it is in the file");
}

#[test]
fn the_same_key_and_body_is_the_same_run_and_another_body_is_refused() {
    let daemon = Daemon::builder().host_image().flag("--slots", 4).start();
    let body = sh("date +%s.%N; sleep 0.5");
    // At once, one after the other, and after the end.
    let answers: Vec<Value> = std::thread::scope(|scope| {
        let asking: Vec<_> =
            (0..8).map(|_| scope.spawn(|| keyed(&daemon, "k", &body).send().expect(200))).collect();
        asking.into_iter().map(|asking| asking.join().expect("an answer")).collect()
    });
    assert!(answers[0]["stdout"].as_str().is_some_and(|time| time.len() > 10), "{}", answers[0]);
    for answer in &answers {
        assert_eq!((&answer["id"], &answer["stdout"]), (&answers[0]["id"], &answers[0]["stdout"]));
    }
    let again = keyed(&daemon, "k", &body).send().expect(200);
    assert_eq!(again["id"], answers[0]["id"]);
    assert_eq!(daemon.metric("sandglass_runs_total{outcome=\"exited\"}"), 1.0);
    let asynchronous = keyed(&daemon, "k", &body).header("Prefer", "respond-async").send();
    assert_eq!(asynchronous.expect(202)["id"], answers[0]["id"]);

    let other = keyed(&daemon, "k", &sh("echo other")).send();
    other.problem(422, "idempotency-key-reused");
    let elsewhere = keyed(&daemon, "l", &body).send().expect(200);
    assert_ne!(elsewhere["id"], answers[0]["id"]);
    keyed(&daemon, "", &body).send().problem(422, "invalid-request");

    let mut daemon = daemon;
    daemon.kill9();
    let daemon = daemon.restart();
    let again = keyed(&daemon, "k", &body).send().expect(200);
    assert_eq!((&again["id"], &again["stdout"]), (&answers[0]["id"], &answers[0]["stdout"]));
    keyed(&daemon, "k", &sh("echo other")).send().problem(422, "idempotency-key-reused");
    let id = again["id"].as_str().expect("an id");
    daemon.delete(&format!("/runs/{id}?purge=true")).expect(200);
    let problem = keyed(&daemon, "k", &body).send().problem(404, "run-not-found");
    assert_eq!(problem["run_id"], json!(id));
}

/// What was uploaded is kept for a while only, and a key for longer.
#[test]
fn a_key_stands_for_its_run_or_batch_also_when_what_that_named_is_gone() {
    let daemon = Daemon::start();
    let uploaded = daemon.request("POST", "/files").body("gone").send().expect(201);
    let file = &uploaded["file"];
    let run = json!({ "image": "host", "cmd": "cat", "stdin": { "file": file } });
    let batch = json!({ "image": "host", "run": { "cmd": "cat" }, "tests": [{ "stdin": { "file": file } }] });
    let ask = |path: &str, key: &str, body: &Value| {
        daemon.request("POST", path).header("Idempotency-Key", key).json(body).send()
    };
    let (first, first_batch) =
        (ask("/runs", "r", &run).expect(200), ask("/batches", "b", &batch).expect(200));
    assert_eq!(
        (&first["stdout"], &first_batch["tests"][0]["run"]["stdout"]),
        (&json!("gone"), &json!("gone"))
    );
    assert_eq!(daemon.delete(&format!("/files/{}", file.as_str().expect("an id"))).status, 204);
    for (path, key, body, first) in [("/runs", "r", &run, &first), ("/batches", "b", &batch, &first_batch)] {
        assert_eq!(ask(path, key, body).expect(200)["id"], first["id"], "{path}");
        ask(path, "new", body).problem(422, "invalid-request");
    }
    ask("/runs", "r", &json!({ "image": "host", "cmd": "true" })).problem(422, "idempotency-key-reused");
}

#[test]
fn a_key_joins_a_run_however_full_the_queue_is_and_keeps_it_going_when_its_client_goes() {
    let daemon = Daemon::builder().host_image().flag("--slots", 1).flag("--queue-capacity", 1).start();
    let body = sh("sleep 1; echo done");
    let first = keyed(&daemon, "k", &body).begin().expect("send a request");
    until("it runs", || daemon.get("/runs?state=running").json()["runs"][0].is_object());
    let queued = daemon.run_async(&sh("true"));
    assert_eq!(daemon.post("/runs", &sh("true")).status, 429);
    drop(first);
    let joined = keyed(&daemon, "k", &body).send().expect(200);
    assert_eq!((joined["outcome"].as_str(), joined["stdout"].as_str()), (Some("exited"), Some("done\n")));
    daemon.wait_for_state(&queued, "finished");
}

/// The next server starts what waited; what ran got its time, and was cancelled.
#[test]
fn what_waits_when_the_server_is_stopped_is_started_by_the_next_one() {
    let mut daemon =
        Daemon::builder().host_image().flag("--slots", 1).flag("--drain-deadline-ms", 500).start();
    let running = daemon.run_async(&sh("sleep 60"));
    daemon.wait_for_state(&running, "running");
    let waiting: Vec<String> =
        (0..5).map(|number| daemon.run_async(&sh(&format!("echo {number}")))).collect();
    let unwanted = daemon.run_async(&sh("echo no"));
    daemon.delete(&format!("/runs/{unwanted}")).expect(200);
    // One who waits for a while, one who waits under a key, and one who watches.
    let body = sh("echo waited for");
    let patient =
        daemon.request("POST", "/runs").header("Prefer", "wait=60").json(&body).begin().expect("send");
    let with_key = keyed(&daemon, "k", &body).begin().expect("send");
    until("all are queued", || {
        daemon.get("/runs?state=queued").json()["runs"].as_array().map(Vec::len) == Some(7)
    });
    let mut watcher = support::Events::open(daemon.request("GET", &format!("/runs/{}/events", waiting[0])));
    let seen = watcher.until("state").id;
    assert!(daemon.stop().success());
    let patient = patient.finish().expect("an answer").expect(202);
    assert_eq!(patient["state"], "queued");
    let problem = with_key.finish().expect("an answer").problem(503, "draining");
    assert!(watcher.next().is_none());

    let daemon = daemon.restart();
    assert_eq!(daemon.show(&running)["outcome"], "cancelled");
    assert_eq!(daemon.show(&unwanted)["outcome"], "cancelled");
    for (number, id) in waiting.iter().enumerate() {
        let run = daemon.wait_for_state(id, "finished");
        assert_eq!(run["stdout"], format!("{number}\n"), "{run:#}");
    }
    let order: Vec<_> =
        waiting.iter().map(|id| daemon.show(id)["started_at"].as_str().expect("a time").to_owned()).collect();
    assert!(order.is_sorted(), "{order:?}");
    let id = patient["id"].as_str().expect("an id");
    assert_eq!(daemon.wait_for_state(id, "finished")["stdout"], "waited for\n");
    let again = keyed(&daemon, "k", &body).send().expect(200);
    assert_eq!((&again["id"], again["stdout"].as_str()), (&problem["run_id"], Some("waited for\n")));
    let request = daemon.request("GET", &format!("/runs/{}/events", waiting[0]));
    let rest: Vec<_> = support::Events::open(request.header("Last-Event-ID", seen)).collect();
    let names: Vec<_> = rest.iter().map(|event| event.name.as_str()).collect();
    assert_eq!(names, ["stdout", "result"]);
}

#[test]
fn finished_runs_are_bounded_by_number_size_and_age_across_restarts() {
    let builder = Daemon::builder().host_image().flag("--kept-runs", 5).flag("--kept-bytes", 10_000);
    let daemon = builder.start();
    let ids: Vec<String> =
        (0..8).map(|_| daemon.run(&sh("echo x"))["id"].as_str().expect("an id").to_owned()).collect();
    let listed = || {
        let runs = daemon.get("/runs").expect(200);
        runs["runs"]
            .as_array()
            .expect("runs")
            .iter()
            .map(|run| run["id"].as_str().expect("an id").to_owned())
            .collect::<Vec<String>>()
    };
    let newest: Vec<String> = ids.iter().rev().take(5).cloned().collect();
    within(Duration::from_secs(10), "five runs", || (listed() == newest).then_some(()));
    daemon.get(&format!("/runs/{}", ids[0])).problem(404, "run-not-found");
    let daemon = daemon.restart();
    let large = daemon.run(&sh("head -c 9999 /dev/zero | tr '\\0' x"));
    let large = large["id"].as_str().expect("an id").to_owned();
    within(Duration::from_secs(10), "only the large one", || {
        let runs = daemon.get("/runs").expect(200);
        let ids: Vec<_> = runs["runs"].as_array()?.iter().map(|run| run["id"].clone()).collect();
        (ids == [json!(large)]).then_some(())
    });

    let daemon = Daemon::builder().host_image().flag("--kept-for-s", 1).start();
    let id = daemon.run(&sh("true"))["id"].as_str().expect("an id").to_owned();
    within(Duration::from_secs(10), "it is forgotten", || {
        (daemon.get(&format!("/runs/{id}")).status == 404).then_some(())
    });
}

#[test]
fn pages_of_runs_follow_one_another_without_a_gap() {
    let daemon = Daemon::builder().host_image().flag("--slots", 2).start();
    let mut ids = BTreeSet::new();
    for number in 0..12 {
        let mut body = sh("exit $((RANDOM_NUMBER % 2))");
        body["env"] = json!({ "RANDOM_NUMBER": number.to_string() });
        body["labels"] = json!({ "parity": if number % 2 == 0 { "even" } else { "odd" } });
        ids.insert(daemon.run(&body)["id"].as_str().expect("an id").to_owned());
    }
    for _ in 0..4 {
        ids.insert(daemon.run_async(&sh("sleep 3")));
    }
    let (mut seen, mut path) = (Vec::new(), "/runs?limit=5".to_owned());
    loop {
        let page = daemon.get(&path).expect(200);
        let runs = page["runs"].as_array().expect("runs");
        assert!(runs.len() <= 5);
        seen.extend(runs.iter().map(|run| run["id"].as_str().expect("an id").to_owned()));
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        path = format!("/runs?limit=5&cursor={cursor}");
    }
    assert_eq!(seen.len(), 16);
    assert!(seen.is_sorted_by(|a, b| a > b));
    assert_eq!(seen.into_iter().collect::<BTreeSet<_>>(), ids);
    let odd = daemon.get("/runs?label=parity:odd&outcome=exited&state=finished&image=host").expect(200);
    assert_eq!(odd["runs"].as_array().map(Vec::len), Some(6));
    assert!(odd["next_cursor"].is_null());
}

/// A client that waits need not wait for the disk, and thousands of runs cost the server no memory.
#[test]
fn many_finished_runs_are_kept_in_little_memory() {
    const RUNS: usize = 1500;
    let daemon = Daemon::builder().host_image().flag("--slots", 4).start();
    let body = sh("head -c 20000 /dev/zero | tr '\\0' x");
    for _ in 0..20 {
        daemon.run(&body);
    }
    let before = host::memory_bytes(daemon.pid());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..RUNS / 4).for_each(|_| drop(daemon.run(&body))));
        }
    });
    let grown = host::memory_bytes(daemon.pid()).saturating_sub(before);
    eprintln!("{} KiB before, grown by {} KiB", before >> 10, grown >> 10);
    // Their outputs alone are thirty mebibytes.
    assert!(grown < 16 << 20, "grown by {} KiB", grown >> 10);
    assert_eq!(daemon.get("/runs?limit=500").expect(200)["runs"].as_array().map(Vec::len), Some(419));
}

/// One word of two clients is two keys, and what is kept of a run is its owner's, also after a restart.
#[test]
fn keys_and_kept_runs_are_their_owners() {
    let builder = Daemon::builder().host_image();
    let (alice, bob) = (builder.key(&["alice"]), builder.key(&["bob"]));
    let daemon = builder.start();
    let ask = |daemon: &Daemon, who: &str, body: &Value| keyed(daemon, "k", body).key(who).send();
    let hers = ask(&daemon, &alice, &sh("echo hers")).expect(200);
    let his = ask(&daemon, &bob, &sh("echo his")).expect(200);
    assert_eq!((hers["stdout"].as_str(), his["stdout"].as_str()), (Some("hers\n"), Some("his\n")));
    let daemon = daemon.restart();
    let again = ask(&daemon, &bob, &sh("echo his")).expect(200);
    assert_eq!(again["id"], his["id"]);
    let id = hers["id"].as_str().expect("an id");
    for path in ["", "/events", "/stdout", "/stderr"] {
        let path = format!("/runs/{id}{path}");
        assert_eq!(daemon.request("GET", &path).key(&alice).send().status, 200, "{path}");
        daemon.request("GET", &path).key(&bob).send().problem(404, "run-not-found");
    }
    daemon
        .request("DELETE", &format!("/runs/{id}?purge=true"))
        .key(&bob)
        .send()
        .problem(404, "run-not-found");
    let listed = daemon.request("GET", "/runs").key(&bob).send().expect(200);
    assert_eq!(listed["runs"].as_array().map(Vec::len), Some(1));
    assert_eq!(listed["runs"][0]["id"], his["id"]);
}
