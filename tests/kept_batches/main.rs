//! Batches that were promised, and those that have ended: what a server leaves to the next one.

mod prepared;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use support::marked::{Marked, Random, Watch};
use support::{Daemon, Events, Request, Response, Value, json, until};

/// A batch whose tests all expect `ok`; each is a script of its own.
fn scripts(scripts: &[&str]) -> Value {
    let test = |script: &&str| json!({ "args": ["-c", script], "expect": { "stdout": "ok" } });
    json!({
        "image": "host", "run": { "cmd": "sh" },
        "tests": scripts.iter().map(test).collect::<Vec<_>>(),
    })
}

fn keyed(daemon: &Daemon, key: &str, body: &Value) -> Request {
    daemon.request("POST", "/batches").header("Idempotency-Key", key).json(body)
}

/// Begins a batch that is promised, and says where it is.
#[track_caller]
fn promised(daemon: &Daemon, body: &Value) -> String {
    let begun = daemon.request("POST", "/batches").header("Prefer", "respond-async").json(body).send();
    assert_eq!(begun.status, 202, "{}", begun.text());
    begun.header("location").expect("a location").to_owned()
}

#[track_caller]
fn end_of(daemon: &Daemon, path: &str) -> Value {
    let waiting = daemon.request("GET", path).header("Prefer", "wait=60");
    let batch = waiting.send().expect(200);
    assert_eq!(batch["state"], "finished", "{batch:#}");
    batch
}

fn verdicts(batch: &Value) -> Vec<&str> {
    let tests = batch["tests"].as_array().expect("tests").iter();
    tests.map(|test| test["verdict"].as_str().unwrap_or("none")).collect()
}

fn runs(daemon: &Daemon) -> usize {
    daemon.get("/runs?limit=500").expect(200)["runs"].as_array().expect("runs").len()
}

fn ids(reply: &Response) -> Vec<String> {
    let reply = reply.expect(200);
    let batches = reply["batches"].as_array().expect("batches").iter();
    batches.map(|batch| batch["id"].as_str().expect("an id").to_owned()).collect()
}

#[test]
fn a_batch_that_had_not_begun_when_the_server_was_killed_is_begun_by_the_next_one() {
    let mut daemon = Daemon::builder().host_image().flag("--slots", 1).start();
    let busy = daemon.run_async(&json!({ "image": "host", "cmd": "sleep", "args": ["600"] }));
    daemon.wait_for_state(&busy, "running");
    let mut body = scripts(&["cat made", "echo no"]);
    body["prepare"] = json!({ "cmd": "sh", "args": ["-c", "echo ok > made"] });
    body["labels"] = json!({ "of": "a test" });
    let path = promised(&daemon, &body);
    daemon.kill9();
    let daemon = daemon.restart();
    let done = end_of(&daemon, &path);
    assert_eq!(verdicts(&done), ["accepted", "wrong_answer"], "{done:#}");
    assert_eq!((&done["labels"], &done["problem"]), (&body["labels"], &Value::Null));
    assert_eq!(runs(&daemon), 4, "the run that was there, and each of the batch's once");
}

#[test]
fn a_batch_that_had_not_begun_and_whose_file_is_gone_with_the_restart_says_which() {
    let mut daemon = Daemon::builder().host_image().flag("--slots", 1).start();
    let busy = daemon.run_async(&json!({ "image": "host", "cmd": "sleep", "args": ["600"] }));
    daemon.wait_for_state(&busy, "running");
    let file = daemon.request("POST", "/files").body("ok").send().expect(201)["file"].clone();
    let mut body = scripts(&["cat"]);
    body["tests"][0]["stdin"] = json!({ "file": file });
    let path = promised(&daemon, &body);
    daemon.kill9();
    std::fs::remove_dir_all(daemon.builder_of().data_dir().join("files")).expect("remove all files");
    let daemon = daemon.restart();
    let done = end_of(&daemon, &path);
    assert_eq!(verdicts(&done), ["internal_error"], "{done:#}");
    assert_eq!(done["problem"]["type"], "/problems/file-not-found", "{done:#}");
    let detail = done["problem"]["detail"].as_str().expect("a detail");
    assert!(detail.contains(file.as_str().expect("an id")) && detail.contains("upload it"), "{detail}");
}

#[test]
fn of_a_batch_that_had_begun_what_has_a_result_keeps_it_and_the_rest_is_not_run_again() {
    let mut daemon = Daemon::builder().host_image().flag("--slots", 1).start();
    let mut body = scripts(&["echo ok", "echo no", "sleep 600; echo ok", "echo ok"]);
    body["tests"][1]["name"] = json!("second");
    let path = promised(&daemon, &body);
    let events = format!("{path}/events");
    let mut watcher = Events::open(daemon.request("GET", &events));
    let told: Vec<_> = std::iter::from_fn(|| watcher.next()).take(3).collect();
    until("the third test runs", || {
        daemon.get("/runs?state=running").json()["runs"].as_array().map(Vec::len) == Some(1)
    });
    daemon.kill9();
    let daemon = daemon.restart();
    let done = daemon.get(&path).expect(200);
    assert_eq!(verdicts(&done), ["accepted", "wrong_answer", "internal_error", "internal_error"], "{done:#}");
    assert_eq!((&done["state"], &done["verdict"]), (&json!("finished"), &json!("wrong_answer")));
    assert_eq!(done["problem"]["type"], "/problems/interrupted", "{done:#}");
    assert_eq!(
        (&done["tests"][1]["run"]["stdout"], &done["tests"][2]["run"]),
        (&json!("no\n"), &Value::Null)
    );
    assert_eq!(done["tests"][1]["name"], "second");
    // A run that comes after it finds that nothing of it was started again.
    daemon.run(&json!({ "image": "host", "cmd": "true" }));
    assert_eq!(runs(&daemon), 3);
    // What was told under a number is told under it again, and the rest behind it.
    let again: Vec<_> = Events::open(daemon.request("GET", &events)).collect();
    for (before, now) in told.iter().zip(&again) {
        assert_eq!((&before.id, &before.name, &before.data), (&now.id, &now.name, &now.data));
    }
    let seen = told.last().expect("an event").id.clone();
    let rest: Vec<_> = Events::open(daemon.request("GET", &events).header("Last-Event-ID", seen)).collect();
    let rest: Vec<_> =
        rest.iter().map(|event| (event.name.as_str(), event.data["number"].as_u64())).collect();
    assert_eq!(rest, [("test", Some(2)), ("test", Some(3)), ("state", None), ("result", None)]);
}

#[test]
fn a_batch_that_was_killed_while_it_was_prepared_is_not_prepared_again() {
    let mut daemon = Daemon::start();
    let mut body = scripts(&["echo ok", "echo ok"]);
    body["prepare"] = json!({ "cmd": "sleep", "args": ["600"] });
    let path = promised(&daemon, &body);
    until("it is being prepared", || {
        daemon.get("/runs?state=running").json()["runs"].as_array().map(Vec::len) == Some(1)
    });
    daemon.kill9();
    let daemon = daemon.restart();
    let done = daemon.get(&path).expect(200);
    assert_eq!(verdicts(&done), ["internal_error", "internal_error"], "{done:#}");
    assert_eq!((&done["prepare"], runs(&daemon)), (&Value::Null, 0));
}

#[test]
fn the_same_key_and_body_is_the_same_batch_and_another_body_is_refused() {
    let daemon = Daemon::builder().host_image().flag("--slots", 2).start();
    let mut body = scripts(&["cat made; echo ok > /dev/null"]);
    body["prepare"] = json!({ "cmd": "sh", "args": ["-c", "sleep 0.3; echo ok > made"] });
    // At once, one after the other, and after the end.
    let answers: Vec<Value> = std::thread::scope(|scope| {
        let asking: Vec<_> =
            (0..6).map(|_| scope.spawn(|| keyed(&daemon, "k", &body).send().expect(200))).collect();
        asking.into_iter().map(|asking| asking.join().expect("an answer")).collect()
    });
    for answer in &answers {
        assert_eq!((&answer["id"], verdicts(answer)), (&answers[0]["id"], vec!["accepted"]), "{answer:#}");
    }
    let asynchronous = keyed(&daemon, "k", &body).header("Prefer", "respond-async").send();
    assert_eq!(asynchronous.expect(202)["id"], answers[0]["id"]);
    assert_eq!(runs(&daemon), 2, "it was prepared once");
    keyed(&daemon, "k", &scripts(&["echo ok"])).send().problem(422, "idempotency-key-reused");
    // One word is one key, whatever it was used for.
    let run = json!({ "image": "host", "cmd": "true" });
    let run = daemon.request("POST", "/runs").header("Idempotency-Key", "k").json(&run).send();
    run.problem(422, "idempotency-key-reused");

    let mut daemon = daemon;
    daemon.kill9();
    let daemon = daemon.restart();
    let again = keyed(&daemon, "k", &body).send().expect(200);
    assert_eq!((&again["id"], verdicts(&again)), (&answers[0]["id"], vec!["accepted"]));
    keyed(&daemon, "k", &scripts(&["echo ok"])).send().problem(422, "idempotency-key-reused");
    let path = format!("/batches/{}", again["id"].as_str().expect("an id"));
    daemon.delete(&format!("{path}?purge=true")).expect(200);
    keyed(&daemon, "k", &body).send().problem(404, "batch-not-found");
    assert_eq!(runs(&daemon), 0, "its runs are forgotten with it");
}

#[test]
fn a_key_keeps_a_batch_going_when_its_client_goes() {
    let daemon = Daemon::start();
    let body = scripts(&["sleep 1; echo ok"]);
    let first = keyed(&daemon, "k", &body).begin().expect("send a request");
    until("it runs", || daemon.get("/runs?state=running").json()["runs"][0].is_object());
    drop(first);
    let joined = keyed(&daemon, "k", &body).send().expect(200);
    assert_eq!(verdicts(&joined), ["accepted"], "{joined:#}");
    assert_eq!(runs(&daemon), 1);
}

#[test]
fn finished_batches_outlive_the_server_and_are_found_in_lists() {
    let daemon = Daemon::start();
    let mut batches = Vec::new();
    for (number, script) in ["echo ok", "echo no", "echo ok", "exit 3"].into_iter().enumerate() {
        let mut body = scripts(&[script, "seq 30000 >&2; echo ok"]);
        body["labels"] = json!({ "parity": if number % 2 == 0 { "even" } else { "odd" } });
        // Waited for plainly, and promised.
        batches.push(match number {
            0 | 1 => daemon.post("/batches", &body).expect(200),
            _ => end_of(&daemon, &promised(&daemon, &body)),
        });
    }
    let id = |number: usize| batches[number]["id"].as_str().expect("an id").to_owned();
    let daemon = daemon.restart();
    for batch in &batches {
        let mut later = daemon.get(&format!("/batches/{}", batch["id"].as_str().expect("an id"))).expect(200);
        let mut before = batch.clone();
        for batch in [&mut later, &mut before] {
            for test in batch["tests"].as_array_mut().expect("tests") {
                test["run"]["timings"]["teardown_ms"] = Value::Null;
            }
        }
        assert_eq!(later, before);
    }
    assert_eq!(ids(&daemon.get("/batches")), [id(3), id(2), id(1), id(0)]);
    assert_eq!(ids(&daemon.get("/batches?label=parity:even")), [id(2), id(0)]);
    assert_eq!(ids(&daemon.get("/batches?verdict=wrong_answer&state=finished&image=host")), [id(1)]);
    let first = daemon.get("/batches?limit=3").expect(200);
    let cursor = first["next_cursor"].as_str().expect("a next page");
    assert_eq!((&first["batches"][0]["tests"], &first["batches"][0]["tested"]), (&json!(2), &json!(2)));
    let second = daemon.get(&format!("/batches?limit=3&cursor={cursor}"));
    assert_eq!((ids(&second), &second.json()["next_cursor"]), (vec![id(0)], &Value::Null));
    daemon.get("/batches?verdict=good").problem(422, "invalid-request");

    let going = promised(&daemon, &scripts(&["sleep 600"]));
    assert_eq!(ids(&daemon.get("/batches?state=running")).len(), 1);
    let gone = daemon.delete(&format!("{going}?purge=true")).expect(200);
    assert_eq!((verdicts(&gone), &gone["state"]), (vec!["cancelled"], &json!("finished")));
    daemon.get(&going).problem(404, "batch-not-found");
    daemon.delete(&format!("/batches/{}?purge=perhaps", id(0))).problem(422, "invalid-request");
    assert_eq!(ids(&daemon.get("/batches")).len(), 4);
    let daemon = daemon.restart();
    daemon.get(&going).problem(404, "batch-not-found");
    assert_eq!(runs(&daemon), 8);
}

#[test]
fn finished_batches_are_bounded_by_their_number_across_restarts() {
    let daemon = Daemon::builder().host_image().flag("--kept-batches", 2).start();
    let all: Vec<String> = (0..4)
        .map(|_| {
            let done = daemon.post("/batches", &scripts(&["echo ok"])).expect(200);
            done["id"].as_str().expect("an id").to_owned()
        })
        .collect();
    until("two are left", || ids(&daemon.get("/batches")) == [all[3].clone(), all[2].clone()]);
    let daemon = daemon.restart();
    let fifth = daemon.post("/batches", &scripts(&["echo ok"])).expect(200);
    let fifth = fifth["id"].as_str().expect("an id").to_owned();
    until("two are left", || ids(&daemon.get("/batches")) == [fifth.clone(), all[3].clone()]);
    daemon.get(&format!("/batches/{}", all[2])).problem(404, "batch-not-found");
}

/// What has begun gets the time that running runs get; what waits is begun by the next server.
#[test]
fn a_server_that_stops_lets_batches_end_and_leaves_to_the_next_what_has_not_begun() {
    let mut daemon = Daemon::builder().host_image().flag("--slots", 1).start();
    let going = promised(&daemon, &scripts(&["sleep 0.5; echo ok"; 4]));
    until("its first test runs", || daemon.get("/runs?state=running").json()["runs"][0].is_object());
    let hold = daemon.run_async(&json!({ "image": "host", "cmd": "true" }));
    let waiting = promised(&daemon, &scripts(&["echo ok", "echo ok"]));
    let body = scripts(&["echo ok"]);
    let with_key = keyed(&daemon, "k", &body).begin().expect("send");
    until("all are there", || ids(&daemon.get("/batches")).len() == 3);
    // The queue is fair, but not to those of one principal: close the door before their turn comes.
    let stopped = std::thread::scope(|scope| {
        let answer = scope.spawn(|| with_key.finish().expect("an answer"));
        assert!(daemon.stop().success());
        answer.join().expect("an answer")
    });
    let daemon = daemon.restart();
    assert_eq!(verdicts(&daemon.get(&going).expect(200)), ["accepted"; 4]);
    daemon.wait_for_state(&hold, "finished");
    assert_eq!(verdicts(&end_of(&daemon, &waiting)), ["accepted", "accepted"]);
    let again = keyed(&daemon, "k", &body).send().expect(200);
    assert_eq!(verdicts(&again), ["accepted"]);
    match stopped.status {
        // It was begun before the server was told to stop.
        200 => assert_eq!(stopped.json()["id"], again["id"]),
        _ => drop(stopped.problem(503, "draining")),
    }
    // One for each test, and the run that was in between.
    assert_eq!(runs(&daemon), 4 + 2 + 1 + 1);
}

#[test]
fn what_has_no_time_left_when_the_server_stops_is_cancelled() {
    let mut daemon =
        Daemon::builder().host_image().flag("--slots", 1).flag("--drain-deadline-ms", 500).start();
    let going = promised(&daemon, &scripts(&["sleep 600", "echo ok"]));
    until("its first test runs", || daemon.get("/runs?state=running").json()["runs"][0].is_object());
    assert!(daemon.stop().success());
    let daemon = daemon.restart();
    let done = daemon.get(&going).expect(200);
    assert_eq!(verdicts(&done), ["cancelled", "cancelled"], "{done:#}");
}

#[test]
fn batches_and_their_keys_are_their_owners_also_after_a_restart() {
    let builder = Daemon::builder().host_image();
    let (alice, bob) = (builder.key(&["alice"]), builder.key(&["bob"]));
    let daemon = builder.start();
    let ask = |daemon: &Daemon, who: &str, script: &str| {
        keyed(daemon, "k", &scripts(&[script])).key(who).send().expect(200)
    };
    let (hers, his) = (ask(&daemon, &alice, "echo ok"), ask(&daemon, &bob, "echo no"));
    let daemon = daemon.restart();
    assert_eq!(ask(&daemon, &bob, "echo no")["id"], his["id"]);
    let path = format!("/batches/{}", hers["id"].as_str().expect("an id"));
    for (method, path) in
        [("GET", path.clone()), ("GET", format!("{path}/events")), ("DELETE", format!("{path}?purge=true"))]
    {
        daemon.request(method, &path).key(&bob).send().problem(404, "batch-not-found");
    }
    assert_eq!(daemon.request("GET", &path).key(&alice).send().status, 200);
    let listed = daemon.request("GET", "/batches").key(&bob).send();
    assert_eq!(ids(&listed), [his["id"].as_str().expect("an id")]);
}

/// The server is killed again and again while batches are submitted: every id leads to one end, and no program
/// was started twice.
#[test]
fn every_batch_that_was_told_of_has_one_end_and_nothing_runs_twice_whenever_the_server_is_killed() {
    const ROUNDS: usize = 6;
    const TESTS: usize = 3;
    let mut random = Random::new();
    let mut daemon = Daemon::builder().host_image().flag("--slots", 3).start();
    let watch = Watch::begin();
    let mut told: Vec<(String, Vec<Value>)> = Vec::new();
    let test = |number: usize| json!({ "args": Marked::new(0.1, number).args(), "expect": { "stdout": "" } });
    for _ in 0..ROUNDS {
        let life = Duration::from_millis(200 + random.below(800));
        let began = Instant::now();
        while began.elapsed() < life {
            let number = told.len() * (TESTS + 1);
            let prepare = Marked::new(0.1, number);
            let body = json!({
                "image": "host", "prepare": { "cmd": "sleep", "args": prepare.args() },
                "run": { "cmd": "sleep" }, "tests": (1..=TESTS).map(|place| test(number + place)).collect::<Vec<_>>(),
            });
            told.push((promised(&daemon, &body), Vec::new()));
            // What somebody has seen must not become something else.
            let asked = random.below(told.len() as u64) as usize;
            let (path, seen) = &mut told[asked];
            *seen = results(&daemon.get(path).expect(200));
            std::thread::sleep(Duration::from_millis(random.below(100)));
        }
        daemon.kill9();
        daemon = daemon.restart();
    }
    let mut counts = BTreeMap::<String, usize>::new();
    for (path, seen) in &told {
        let batch = end_of(&daemon, path);
        for verdict in verdicts(&batch) {
            assert!(verdict == "accepted" || verdict == "internal_error", "{batch:#}");
            *counts.entry(verdict.to_owned()).or_default() += 1;
        }
        for (before, now) in seen.iter().zip(&results(&batch)) {
            assert!(before.is_null() || before == now, "{before} became {now}");
        }
    }
    let seen = watch.end();
    eprintln!("{} batches over {ROUNDS} lives, {seen} programs seen: {counts:?}", told.len());
    assert!(counts.len() == 2 && seen > told.len(), "{counts:?}");
}

/// The runs of a batch's tests, as far as there are any.
fn results(batch: &Value) -> Vec<Value> {
    batch["tests"].as_array().expect("tests").iter().map(|test| test["run"]["id"].clone()).collect()
}
