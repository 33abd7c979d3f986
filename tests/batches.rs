//! Batches: one command prepares, many tests are run over what it has left, and each gets its verdict.

use std::time::{Duration, Instant};

use support::events::Events;
use support::{Daemon, Registry, Value, host, json, until, within};

/// A batch whose tests all expect `ok`; each is a script of its own.
fn scripts(scripts: &[&str]) -> Value {
    let test = |script: &&str| json!({ "args": ["-c", script], "expect": { "stdout": "ok" } });
    json!({
        "image": "host", "run": { "cmd": "sh" }, "workdir": "/w",
        "tests": scripts.iter().map(test).collect::<Vec<_>>(),
    })
}

fn batch(daemon: &Daemon, body: &Value) -> Value {
    daemon.request("POST", "/batches").json(body).patience(Duration::from_secs(120)).send().expect(200)
}

fn verdicts(batch: &Value) -> Vec<&str> {
    let tests = batch["tests"].as_array().expect("tests").iter();
    tests.map(|test| test["verdict"].as_str().unwrap_or("none")).collect()
}

fn count(daemon: &Daemon) -> usize {
    daemon.get("/runs?limit=500").expect(200)["runs"].as_array().expect("runs").len()
}

#[test]
fn every_test_gets_the_verdict_of_what_it_did() {
    let daemon = Daemon::start();
    let mut body = scripts(&[
        "echo ok",
        "echo no",
        "sleep 60",
        "while :; do :; done",
        "head -c 2000 /dev/zero",
        "exit 3",
        "echo ok; kill -SEGV $$",
        "cat /dev/zero | tail; echo ok",
        "echo ' ok' ; echo",
    ]);
    body["run"]["limits"] = json!({ "stdout_bytes": 1000, "wall_time_ms": 20_000 });
    body["tests"][2]["limits"] = json!({ "wall_time_ms": 200 });
    body["tests"][3]["limits"] = json!({ "cpu_time_ms": 100 });
    body["tests"][7]["limits"] = json!({ "memory_bytes": 32 << 20 });
    body["tests"][8]["expect"]["compare"] = json!("tokens");
    body["tests"][8]["name"] = json!("loose");
    let done = batch(&daemon, &body);
    assert_eq!(
        verdicts(&done),
        [
            "accepted",
            "wrong_answer",
            "time_limit",
            "time_limit",
            "output_limit",
            "runtime_error",
            "runtime_error",
            "memory_limit",
            "accepted"
        ],
        "{done:#}"
    );
    assert_eq!((&done["verdict"], &done["state"]), (&json!("wrong_answer"), &json!("finished")));
    assert_eq!((&done["prepare"], &done["prepared"]), (&Value::Null, &Value::Null));
    assert_eq!(
        (&done["tests"][8]["name"], &done["tests"][5]["run"]["exit_code"]),
        (&json!("loose"), &json!(3))
    );
    let again = daemon.get(&format!("/batches/{}", done["id"].as_str().expect("an id"))).expect(200);
    assert_eq!(verdicts(&again), verdicts(&done));
    // Its runs are runs like any others.
    let run = done["tests"][0]["run"]["id"].as_str().expect("an id");
    assert_eq!(daemon.show(run)["stdout"], "ok\n");
    assert_eq!(daemon.metric("sandglass_batches_total{result=\"finished\"}"), 1.0);
}

#[test]
fn what_is_prepared_once_lies_under_every_test_and_none_sees_another_s_writes() {
    let registry = Registry::start();
    let daemon = Daemon::builder().registry(&registry).flag("--slots", 4).start();
    let look = "cat made; stat -c '%a %u %h' made linked secret; readlink link; ls old folder/kept bin 2>&1 | sort; \
                ls -A emptied; test -e /tmp/left && echo left; echo mine > made; echo more > new; cat made; ls new";
    let body = json!({
        "image": registry.image("python:3"), "workdir": "/w", "user": "1000:1000",
        "files": [{ "path": "given", "text": "given\n" }],
        "prepare": { "cmd": "sh", "args": ["-c",
            "cat given > made; chmod 640 made; ln made linked; ln -s made link; mkdir -p folder emptied; \
             touch folder/kept; echo x > secret; chmod 600 secret; mkfifo fifo; echo t > /tmp/left; \
             head -c 100 /dev/zero > sparse; truncate -s 10G sparse 2>/dev/null || true; echo prepared"] },
        "run": { "cmd": "sh", "args": ["-c", look] },
        "tests": vec![json!({}); 6], "parallelism": 3,
    });
    let done = batch(&daemon, &body);
    assert_eq!(
        (&done["prepare"]["stdout"], &done["verdict"]),
        (&json!("prepared\n"), &Value::Null),
        "{done:#}"
    );
    let tests = done["tests"].as_array().expect("tests");
    for test in tests {
        let run = &test["run"];
        assert_eq!(run["outcome"], "exited", "{run:#}");
        assert_eq!(
            run["stdout"],
            "given\n640 1000 2\n640 1000 2\n600 1000 1\nmade\nfolder/kept\nls: cannot access 'bin': No such file or \
             directory\nls: cannot access 'old': No such file or directory\nleft\nmine\nnew\n",
            "{run:#}"
        );
    }
    assert_eq!(tests.len(), 6);
    assert!(daemon.metric("sandglass_files_bytes") > 0.0, "what is prepared is counted");
}

/// Names that are gone stay gone, and a folder that was made anew hides the one below.
#[test]
fn what_was_removed_from_the_image_is_not_there_in_the_tests() {
    let registry = Registry::start();
    let daemon = Daemon::builder().registry(&registry).start();
    let body = json!({
        "image": registry.image("python:3"),
        "prepare": { "cmd": "sh", "args": ["-c",
            "rm /etc/debian_version && rm -r /usr/share/doc && mkdir /usr/share/doc && echo mine > /usr/share/doc/mine"] },
        "run": { "cmd": "sh", "args": ["-c", "ls /usr/share/doc; cat /etc/debian_version; ls /usr/bin/python3"] },
        "tests": [{}],
    });
    let done = batch(&daemon, &body);
    let run = &done["tests"][0]["run"];
    assert_eq!(run["stdout"], "mine\n/usr/bin/python3\n", "{done:#}");
    // The image itself is as it was.
    let plain = json!({ "image": registry.image("python:3"), "cmd": "ls", "args": ["/etc/debian_version"] });
    assert_eq!(daemon.run(&plain)["exit_code"], 0);
}

#[test]
fn a_compile_error_skips_every_test() {
    let daemon = Daemon::start();
    let mut body = scripts(&["echo ok", "echo ok"]);
    for (script, outcome, verdict) in [
        ("echo broken >&2; exit 1", "exited", "compile_error"),
        ("kill -SEGV $$", "signaled", "compile_error"),
        ("sleep 60", "wall_time_limit", "compile_error"),
    ] {
        body["prepare"] = json!({ "cmd": "sh", "args": ["-c", script], "limits": { "wall_time_ms": 300 } });
        let done = batch(&daemon, &body);
        assert_eq!(
            (&done["verdict"], &done["prepare"]["outcome"]),
            (&json!(verdict), &json!(outcome)),
            "{done:#}"
        );
        assert_eq!(verdicts(&done), ["skipped", "skipped"]);
        assert_eq!((&done["tests"][0]["run"], &done["prepared"]), (&Value::Null, &Value::Null));
    }
    assert_eq!(count(&daemon), 3, "no test was run");
    assert_eq!(daemon.metric("sandglass_files_bytes"), 0.0, "the room that was set aside is free again");
}

#[test]
fn nothing_behind_the_first_failure_counts() {
    let daemon = Daemon::builder().host_image().flag("--slots", 4).start();
    let mut body =
        scripts(&["sleep 0.5; echo ok", "sleep 0.2; echo no", "echo ok", "sleep 30; echo ok", "echo ok"]);
    body["stop_on_failure"] = json!(true);
    body["parallelism"] = json!(4);
    let asked = Instant::now();
    let done = batch(&daemon, &body);
    assert!(asked.elapsed() < Duration::from_secs(20), "the test that slept was not waited for");
    // One that was still running before the failure counts; those behind don't, ended or not.
    assert_eq!(verdicts(&done), ["accepted", "wrong_answer", "skipped", "skipped", "skipped"], "{done:#}");
    assert_eq!((&done["verdict"], &done["tests"][2]["run"]), (&json!("wrong_answer"), &Value::Null));
    // Where nothing is expected, what fails says by its verdict why the others were skipped.
    let tests = ["true", "exit 3", "true"].map(|script| json!({ "args": ["-c", script] }));
    let body = json!({ "image": "host", "run": { "cmd": "sh" }, "tests": tests, "stop_on_failure": true });
    let done = batch(&daemon, &body);
    assert_eq!(verdicts(&done), ["none", "runtime_error", "skipped"], "{done:#}");
    assert_eq!(done["verdict"], "runtime_error");
}

#[test]
fn cancelling_a_batch_ends_all_its_runs() {
    let daemon = Daemon::builder().host_image().flag("--slots", 2).start();
    let ours = || host::processes_of(daemon.pid(), daemon.launcher_pid()).len();
    let idle = ours();
    let body = scripts(&["echo ok", "sleep 600", "sleep 600", "sleep 600"]);
    let begun = daemon.request("POST", "/batches").header("Prefer", "respond-async").json(&body).send();
    assert_eq!(begun.status, 202);
    let path = begun.header("location").expect("a location").to_owned();
    until("the first test to end", || daemon.get(&path).expect(200)["tests"][0]["verdict"] == "accepted");
    let done = daemon.delete(&path).expect(200);
    assert_eq!(verdicts(&done), ["accepted", "cancelled", "cancelled", "cancelled"], "{done:#}");
    assert_eq!((&done["state"], &done["verdict"]), (&json!("finished"), &json!("cancelled")));
    let gone = || ours() <= idle;
    until("every process of it to be gone", gone);

    // A client that hangs up while it waits cancels, too.
    let waiting = daemon.request("POST", "/batches").json(&body).begin().expect("send");
    until("a test to run", || ours() > idle);
    drop(waiting);
    until("every process of it to be gone", gone);
    daemon.get("/batches/0193a5b0-0000-7000-8000-000000000000").problem(404, "batch-not-found");
    daemon.get("/batches/x").problem(404, "batch-not-found");
}

#[test]
fn what_one_batch_has_prepared_another_can_use() {
    let daemon = Daemon::start();
    let mut body = scripts(&["cat made"]);
    body["prepare"] = json!({ "cmd": "sh", "args": ["-c", "echo ok > made"] });
    let first = batch(&daemon, &body);
    assert_eq!(verdicts(&first), ["accepted"], "{first:#}");
    let id = first["prepared"]["id"].as_str().expect("an id");
    assert!(first["prepared"]["expires_at"].as_str().is_some_and(|time| time.ends_with('Z')));

    let mut again = scripts(&["cat made", "rm made; echo ok", "cat made"]);
    again["prepared"] = json!(id);
    again.as_object_mut().expect("an object").remove("image");
    let second = batch(&daemon, &again);
    assert_eq!((verdicts(&second), &second["prepare"]), (vec!["accepted"; 3], &Value::Null), "{second:#}");
    assert_eq!(count(&daemon), 5, "nothing was prepared twice");
    again["image"] = json!("alpine");
    let problem = daemon.post("/batches", &again).problem(422, "invalid-request");
    assert_eq!(problem["errors"][0]["pointer"], "/image");
    again["prepared"] = json!("0193a5b0-0000-7000-8000-000000000000");
    let problem = daemon.post("/batches", &again).problem(422, "invalid-request");
    assert_eq!(problem["errors"][0]["pointer"], "/prepared");
}

#[test]
fn what_is_prepared_has_a_budget_and_makes_room() {
    let daemon = Daemon::builder()
        .host_image()
        .flag("--files-bytes-max", 64 << 20)
        .flag("--file-bytes-max", 1 << 20)
        .start();
    let mut body = scripts(&["echo ok"]);
    body["prepare"] = json!({ "cmd": "sh", "args": ["-c", "head -c 10000000 /dev/zero > big"] });
    body["limits"] = json!({ "disk_bytes": 12 << 20, "inodes": 100 });
    let ids: Vec<Value> = (0..4).map(|_| batch(&daemon, &body)["prepared"]["id"].clone()).collect();
    let there = |id: &Value| {
        let mut body = scripts(&["test -s big && echo ok"]);
        body["prepared"] = id.clone();
        daemon.post("/batches", &body).status == 200
    };
    let kept: Vec<bool> = ids.iter().map(there).collect();
    assert_eq!(kept, [false, true, true, true]);
    until("what was dropped to be deleted", || daemon.metric("sandglass_files_bytes") < 32e6);
    // More than the budget is no prepared file system, and says so.
    body["limits"] = json!({ "disk_bytes": 60 << 20, "file_size_bytes": 60 << 20 });
    body["prepare"]["args"] = json!(["-c", "head -c 40000000 /dev/zero > big"]);
    let done = batch(&daemon, &body);
    assert!(done["not_prepared"].as_str().is_some_and(|why| why.contains("takes more than")), "{done:#}");
}

#[test]
fn batches_for_whose_prepared_files_there_is_no_room_wait_for_it_without_a_slot() {
    let daemon = Daemon::builder()
        .host_image()
        .flag("--slots", 2)
        .flag("--files-bytes-max", 40 << 20)
        .flag("--file-bytes-max", 20 << 20)
        .start();
    // The budget has room for two of them, but for only one while the file is in use.
    let held = daemon.request("POST", "/files").body(vec![1; 20 << 20]).send().expect(201)["file"].clone();
    let reader = json!({ "image": "host", "cmd": "sh", "args": ["-c", "sleep 2"],
        "files": [{ "path": "x", "file": held }] });
    let reader = daemon.run_async(&reader);
    let mut body = scripts(&["echo ok"]);
    body["prepare"] = json!({ "cmd": "true", "limits": { "disk_bytes": 15 << 20, "inodes": 1000 } });
    let begin = |body: &Value| {
        let begun = daemon.request("POST", "/batches").header("Prefer", "respond-async").json(body).send();
        assert_eq!(begun.status, 202, "{}", begun.text());
        begun.header("location").expect("a location").to_owned()
    };
    let paths: Vec<String> = (0..30).map(|_| begin(&body)).collect();
    // One that does not wait for room goes past them, and one that waits can be cancelled.
    let plain = json!({ "image": "host", "cmd": "true" });
    assert_eq!(daemon.run(&plain)["outcome"], "exited");
    assert_eq!(daemon.delete(&paths[29]).expect(200)["state"], "finished");
    for path in &paths[..29] {
        let finished = || Some(daemon.get(path).expect(200)).filter(|batch| batch["state"] == "finished");
        let done = within(Duration::from_secs(60), "the end of the batch", finished);
        assert_eq!(done["verdict"], "accepted", "{done:#}");
    }
    daemon.wait_for_state(&reader, "finished");
}

#[test]
fn results_come_as_they_are_there_and_the_stream_can_be_taken_up_again() {
    let daemon = Daemon::builder().host_image().flag("--slots", 2).start();
    let mut body = scripts(&["sleep 0.5; echo ok", "echo no"]);
    body["prepare"] = json!({ "cmd": "true" });
    let mut events = Events::open(daemon.request("POST", "/batches").json(&body));
    let mut seen = Vec::new();
    let result = loop {
        let event = events.next().expect("an event before the end");
        seen.push((event.name.clone(), event.data["number"].as_u64(), event.data["verdict"].clone()));
        if event.name == "result" {
            break event;
        }
    };
    let tested: Vec<_> = seen.iter().filter(|(name, ..)| name == "test").cloned().collect();
    assert_eq!(
        tested,
        [("test".into(), Some(1), json!("wrong_answer")), ("test".into(), Some(0), json!("accepted"))]
    );
    let names: Vec<&str> = seen.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!(names, ["state", "prepare", "state", "test", "test", "state", "result"]);
    assert_eq!(verdicts(&result.data), ["accepted", "wrong_answer"]);

    let path = format!("/batches/{}/events", result.data["id"].as_str().expect("an id"));
    let mut rest = Events::open(daemon.request("GET", &path).header("Last-Event-ID", "4"));
    assert_eq!(rest.next().expect("an event").name, "state");
    assert_eq!(rest.next().expect("an event").data, result.data);
    assert!(rest.next().is_none());
    let odd =
        daemon.request("GET", &path).header("Last-Event-ID", "99").header("Accept", "text/event-stream");
    odd.send().problem(422, "invalid-request");
}

#[test]
fn long_inputs_and_answers_are_uploaded_once() {
    let daemon = Daemon::start();
    let upload = |content: &str| {
        let reply = daemon.request("POST", "/files").body(content).send().expect(201);
        reply["file"].as_str().expect("an id").to_owned()
    };
    let (input, answer) = (upload("3 4\n"), upload("7\n"));
    let body = json!({
        "image": "host", "run": { "cmd": "sh", "args": ["-c", "read a b; echo $((a + b))"] },
        "tests": [
            { "stdin": { "file": input }, "expect": { "stdout": { "file": answer }, "compare": "exact" } },
            { "stdin": "1 1\n", "expect": { "stdout": { "file": answer } } },
        ],
    });
    assert_eq!(verdicts(&batch(&daemon, &body)), ["accepted", "wrong_answer"]);
}

#[test]
fn an_image_that_is_not_there_is_a_problem_and_no_verdict() {
    let registry = Registry::start();
    let daemon = Daemon::builder().registry(&registry).start();
    let mut body = scripts(&["echo ok"]);
    body["image"] = json!(registry.image("no-such-image"));
    daemon.post("/batches", &body).problem(422, "image-not-found");
    body["prepare"] = json!({ "cmd": "true" });
    daemon.post("/batches", &body).problem(422, "image-not-found");
}

/// Many outputs don't stay in memory for ever, and what is beyond the bound was compared all the same.
#[test]
fn outputs_beyond_the_bound_are_compared_and_forgotten() {
    let daemon = Daemon::start();
    let body = json!({
        "image": "host", "run": { "cmd": "sh", "args": ["-c", "head -c 1000000 /dev/zero | tr '\\0' x"] },
        "tests": vec![json!({ "expect": { "stdout": "x".repeat(1_000_000) } }); 5]
            .into_iter().chain(vec![json!({ "expect": { "stdout": "y" } }); 35]).collect::<Vec<_>>(),
    });
    let done = batch(&daemon, &body);
    let count = |verdict: &str| verdicts(&done).iter().filter(|given| **given == verdict).count();
    assert_eq!((count("accepted"), count("wrong_answer")), (5, 35));
    let kept =
        done["tests"].as_array().expect("tests").iter().filter(|test| test["run"]["stdout"] != "").count();
    assert_eq!(kept, 33);
    let cut = done["tests"].as_array().expect("tests").iter().find(|test| test["run"]["stdout"] == "");
    let cut = &cut.expect("a test whose output was forgotten")["run"];
    assert_eq!((&cut["stdout_truncated"], &cut["stdout_total_bytes"]), (&json!(true), &json!(1_000_000)));
}

#[test]
fn tests_and_the_prepare_command_hand_out_the_files_that_they_are_asked_for() {
    let daemon = Daemon::start();
    let script = "cat made > copy; head -c 100000 /dev/zero > large; echo $0 > own";
    let body = json!({
        "image": "host", "workdir": "/w",
        "prepare": { "cmd": "sh", "args": ["-c", "echo compiled > made"], "outputs": ["made"] },
        "run": { "cmd": "sh", "args": ["-c", script], "outputs": ["copy", "large", "gone"] },
        "tests": [
            { "expect": { "stdout": "" } },
            { "args": ["-c", script, "second"], "outputs": ["own", "maybe?"] },
            { "outputs": [] },
        ],
    });
    let done = batch(&daemon, &body);
    assert_eq!(done["prepare"]["outputs"][0]["text"], "compiled\n", "{done:#}");
    let first = &done["tests"][0]["run"];
    assert_eq!(
        (&first["outputs"][0]["path"], &first["outputs"][0]["text"]),
        (&json!("copy"), &json!("compiled\n"))
    );
    let large = first["outputs"][1]["file"].as_str().expect("a large one is a file");
    assert_eq!(daemon.get(&format!("/files/{large}")).body.len(), 100_000);
    assert_eq!(first["outputs_missing"], json!(["gone"]));
    assert_eq!(done["tests"][0]["verdict"], "accepted", "what is missing is no failure");
    let second = &done["tests"][1]["run"];
    assert_eq!((&second["outputs"][0]["text"], &second["outputs_missing"]), (&json!("second\n"), &json!([])));
    assert_eq!(done["tests"][2]["run"]["outputs"], json!([]));
    // They are kept with the batch as long as with their runs.
    let again =
        daemon.restart().get(&format!("/batches/{}", done["id"].as_str().expect("an id"))).expect(200);
    assert_eq!(again["tests"][0]["run"]["outputs"], first["outputs"]);
    assert_eq!(again["prepare"]["outputs"], done["prepare"]["outputs"]);
}
