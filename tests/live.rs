//! Runs that are followed while they go: nothing is told late, twice or not at all, and watching costs the
//! run nothing.

use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

use support::{Daemon, Event, Events, Request, Value, guest, host, json, until, within};

fn sh(script: &str) -> Value {
    json!({ "image": "host", "cmd": "sh", "args": ["-c", script] })
}

/// Submits a run whose answer is its events.
fn submit(daemon: &Daemon, body: &Value) -> Events {
    Events::open(daemon.request("POST", "/runs").json(body))
}

fn watch(daemon: &Daemon, id: &str) -> Events {
    Events::open(daemon.request("GET", &format!("/runs/{id}/events")))
}

fn resume(daemon: &Daemon, id: &str, seen: &str) -> Events {
    Events::open(daemon.request("GET", &format!("/runs/{id}/events")).header("Last-Event-ID", seen))
}

/// What the events of one output say together, after checking that each begins where the last one ended.
#[track_caller]
fn text<'a>(events: impl IntoIterator<Item = &'a Event>, output: &str) -> String {
    let mut text = String::new();
    for event in events.into_iter().filter(|event| event.name == output) {
        assert_eq!(event.data["offset"], text.len(), "a gap or a repetition in {output}: {event:?}");
        text += event.data["text"].as_str().unwrap_or_else(|| panic!("no text: {event:?}"));
    }
    text
}

fn names(events: &[Event]) -> Vec<&str> {
    events.iter().map(|event| event.name.as_str()).collect()
}

/// What differs between two looks at one finished run: its traces go after its end.
fn without_teardown(mut run: Value) -> Value {
    run["timings"]["teardown_ms"] = Value::Null;
    run
}

#[test]
fn a_run_is_told_from_its_submission_to_its_result() {
    let daemon = Daemon::start();
    let script = "echo one; sleep 0.2; echo two >&2; sleep 0.2; printf 'drei \\342\\202\\254'; exit 3";
    let mut events = submit(&daemon, &sh(script));
    let first = events.next().expect("an event");
    assert_eq!(first.name, "state");
    let id = first.data["id"].as_str().expect("the run's id").to_owned();
    let told: Vec<Event> = events.by_ref().collect();
    let states: Vec<_> = told.iter().filter(|event| event.name == "state").collect();
    assert_eq!(states.last().expect("more states").data, json!({ "id": id, "state": "running" }));
    assert_eq!(text(&told, "stdout"), "one\ndrei €");
    assert_eq!(text(&told, "stderr"), "two\n");
    let result = told.last().expect("a result");
    assert_eq!((result.name.as_str(), &result.data["exit_code"]), ("result", &json!(3)));
    assert_eq!(without_teardown(result.data.clone()), without_teardown(daemon.show(&id)));

    // A run that has finished is told in the same way.
    let again: Vec<Event> = watch(&daemon, &id).collect();
    assert_eq!(names(&again), ["state", "stdout", "stderr", "result"]);
    assert_eq!(again[0].data, json!({ "id": id, "state": "finished" }));
    assert_eq!((text(&again, "stdout"), text(&again, "stderr")), ("one\ndrei €".into(), "two\n".into()));
    assert_eq!(without_teardown(again[3].data.clone()), without_teardown(result.data.clone()));
}

#[test]
fn each_chunk_is_here_a_few_milliseconds_after_it_was_written() {
    const CHUNKS: usize = 100;
    let daemon = Daemon::start();
    let body = json!({
        "image": "host", "cmd": "/tmp/clock", "args": [CHUNKS.to_string(), "10"], "files": [guest::file("clock")],
    });
    let events: Vec<Event> = submit(&daemon, &body).filter(|event| event.name == "stdout").collect();
    let mut late: Vec<Duration> = Vec::new();
    for event in &events {
        let here = event.at.duration_since(UNIX_EPOCH).expect("a time after 1970");
        for line in event.data["text"].as_str().expect("text").lines() {
            let written = Duration::from_nanos(line.parse().expect("a time"));
            late.push(here.saturating_sub(written));
        }
    }
    late.sort_unstable();
    assert_eq!(late.len(), CHUNKS);
    // All but those in which the machine did something else.
    let (most, median) = (late[CHUNKS * 9 / 10], late[CHUNKS / 2]);
    eprintln!("median {median:?}, nine tenths within {most:?}, worst {:?}", late[CHUNKS - 1]);
    assert!(median < Duration::from_millis(5), "the median took {median:?}");
    assert!(most < Duration::from_millis(50), "nine tenths took up to {most:?}");
}

/// Cut off after every event in turn, each time going on behind the last one.
#[test]
fn who_is_cut_off_goes_on_where_it_was() {
    let daemon = Daemon::start();
    let script = "for i in $(seq 40); do echo line $i; echo error $i >&2; sleep 0.02; done";
    let id = daemon.run_async(&sh(script));
    let (mut told, mut seen) = (Vec::new(), None::<String>);
    while !told.iter().any(|event: &Event| event.name == "result") {
        let mut events = match &seen {
            None => watch(&daemon, &id),
            Some(seen) => resume(&daemon, &id, seen),
        };
        let event = events.next().expect("an event");
        seen = Some(event.id.clone());
        told.push(event);
    }
    let run = daemon.show(&id);
    assert_eq!(text(&told, "stdout"), run["stdout"].as_str().expect("text"));
    assert_eq!(text(&told, "stderr"), run["stderr"].as_str().expect("text"));
    assert!(told.len() > 20, "{}", told.len());
    let states = told.iter().filter(|event| event.name == "state").count();
    assert!((1..=3).contains(&states), "{:?}", names(&told));

    // Behind the result there is nothing, and a browser stops asking.
    let request = || daemon.request("GET", &format!("/runs/{id}/events"));
    let done = request().header("Last-Event-ID", seen.expect("an id")).send();
    assert_eq!((done.status, done.body.len()), (204, 0));
    for id in ["nonsense", "9-0-0", "3-1-99999999", "3-0"] {
        let problem = request().header("Last-Event-ID", id).send().problem(422, "invalid-request");
        assert_eq!(problem["errors"][0]["parameter"], "Last-Event-ID", "{problem:#}");
    }
    let nobody = daemon.get("/runs/0193a5b0-0000-7000-8000-000000000000/events");
    nobody.problem(404, "run-not-found");
}

#[test]
fn a_character_is_never_split_and_bytes_that_are_none_are_base64() {
    let daemon = Daemon::start();
    let split = "printf 'a\\342'; sleep 0.1; printf '\\202'; sleep 0.1; printf '\\254b'";
    let told: Vec<Event> = submit(&daemon, &sh(split)).collect();
    assert_eq!(text(&told, "stdout"), "a€b");
    let chunks: Vec<_> = told.iter().filter(|event| event.name == "stdout").collect();
    assert_eq!(chunks.len(), 2, "{chunks:?}");

    let told: Vec<Event> = submit(&daemon, &sh("printf 'a\\377b'")).collect();
    let chunks: Vec<_> =
        told.iter().filter(|event| event.name == "stdout").map(|event| &event.data).collect();
    assert_eq!(chunks, [&json!({"offset": 0, "text": "a"}), &json!({"offset": 1, "base64": "/2I="})]);
    let result = &told.last().expect("a result").data;
    assert_eq!((&result["stdout"], &result["stdout_encoding"]), (&json!("Yf9i"), &json!("base64")));

    let mut body = sh("printf ab");
    body["output_encoding"] = json!("base64");
    let mut events = submit(&daemon, &body);
    assert_eq!(events.until("stdout").data, json!({"offset": 0, "base64": "YWI="}));
}

/// Fifty watchers who read nothing, on a run that writes sixteen mebibytes; beside them one who reads all.
#[test]
fn a_slow_watcher_neither_slows_the_run_nor_costs_memory() {
    const BYTES: u64 = 16 << 20;
    let daemon = Daemon::start();
    let body = |bytes: u64| {
        json!({ "image": "host", "cmd": "sh", "args": ["-c", format!("sleep 0.3; head -c {bytes} /dev/zero | tr '\\0' x")],
            "limits": { "stdout_bytes": 64 << 20, "wall_time_ms": 300_000, "cpu_time_ms": 300_000 } })
    };
    let alone = daemon.run(&body(BYTES));
    assert_eq!(daemon.delete(&format!("/runs/{}", alone["id"].as_str().expect("an id"))).status, 200);

    let before = host::memory_bytes(daemon.pid());
    let id = daemon.run_async(&body(BYTES));
    let slow: Vec<_> = (0..50).map(|_| watch(&daemon, &id).stop_reading()).collect();
    assert_eq!(daemon.metric("sandglass_sse_watchers"), 50.0);
    let mut quick = watch(&daemon, &id);
    let mut bytes = 0;
    let result = loop {
        let event = quick.next().expect("an event");
        match event.name.as_str() {
            "stdout" => bytes += event.data["text"].as_str().expect("text").len() as u64,
            "result" => break event.data,
            _ => {}
        }
    };
    assert_eq!((bytes, &result["stdout_bytes"]), (BYTES, &json!(BYTES)));
    assert_eq!(result["stdout"].as_str().map(str::len), Some(BYTES as usize));
    // They take processor time until their connections are full, but nobody waits for them.
    let [alone, watched] =
        [&alone, &result].map(|run| run["usage"]["wall_time_ms"].as_f64().expect("a time"));
    assert!(watched < 10.0 * alone + 5_000.0, "{watched} ms rather than {alone}");
    // The bytes are there once; fifty copies would be 800 MiB.
    let grown = host::memory_bytes(daemon.pid()).saturating_sub(before);
    eprintln!("alone {alone} ms, watched {watched} ms, grown by {} MiB", grown >> 20);
    assert!(grown < 5 * BYTES, "grown by {} MiB", grown >> 20);
    drop((slow, quick));
    until("nobody watches any more", || daemon.metric("sandglass_sse_watchers") == 0.0);
}

#[test]
fn who_hangs_up_cancels_its_run_unless_it_said_that_it_may_go() {
    let daemon = Daemon::builder().host_image().flag("--slots", 2).start();
    for (prefer, cancelled) in [(None, true), (Some("respond-async"), false), (Some("wait=1"), false)] {
        let mut request = daemon.request("POST", "/runs").json(&sh("echo on; sleep 1; echo done"));
        if let Some(prefer) = prefer {
            request = request.header("Prefer", prefer);
        }
        let mut events = Events::open(request);
        let id = events.until("state").data["id"].as_str().expect("an id").to_owned();
        events.until("stdout");
        drop(events);
        let run = daemon.wait_for_state(&id, "finished");
        let outcome = if cancelled { "cancelled" } else { "exited" };
        assert_eq!(run["outcome"], outcome, "{prefer:?}: {run:#}");
    }
    // A watcher is not the one who submitted: it may come and go.
    let id = daemon.run_async(&sh("echo on; sleep 0.5"));
    let mut events = watch(&daemon, &id);
    events.until("stdout");
    drop(events);
    assert_eq!(daemon.wait_for_state(&id, "finished")["outcome"], "exited");
}

#[test]
fn a_connection_on_which_nothing_happens_is_kept_alive() {
    let daemon = Daemon::start();
    let mut body = sh("sleep 16; echo done");
    body["limits"] = json!({ "wall_time_ms": 30_000 });
    let mut events = submit(&daemon, &body);
    assert_eq!(events.until("stdout").data["text"], "done\n");
    assert_eq!(events.comments, 1);
}

#[test]
fn a_run_that_never_starts_has_a_result_as_well() {
    let daemon = Daemon::start();
    let told: Vec<Event> = submit(&daemon, &json!({ "image": "host", "cmd": "no-such-program" })).collect();
    let result = &told.last().expect("a result").data;
    assert_eq!(result["outcome"], "start_failed", "{result:#}");
    let bad = daemon.request("POST", "/runs").header("Accept", "text/event-stream").json(&json!({})).send();
    bad.problem(422, "invalid-request");
    let unreadable = daemon.request("GET", "/runs").header("Accept", "text/event-stream").send();
    unreadable.problem(406, "not-acceptable");
}

#[test]
fn outputs_are_given_as_bytes_and_in_ranges() {
    let daemon = Daemon::start();
    let run = daemon.run(&sh("printf '0123456789'; printf '\\377\\0' >&2"));
    let path = |output: &str| format!("/runs/{}/{output}", run["id"].as_str().expect("an id"));
    let whole = daemon.get(&path("stdout"));
    assert_eq!((whole.status, whole.body.as_slice()), (200, &b"0123456789"[..]));
    assert_eq!(whole.header("accept-ranges"), Some("bytes"));
    assert_eq!(whole.header("content-type"), Some("application/octet-stream"));
    assert_eq!(daemon.get(&path("stderr")).body, b"\xff\0");
    for (range, status, body, told) in [
        ("bytes=2-4", 206, "234", Some("bytes 2-4/10")),
        ("bytes=-2", 206, "89", Some("bytes 8-9/10")),
        ("bytes=9-", 206, "9", Some("bytes 9-9/10")),
        ("bytes=0-1,3-4", 200, "0123456789", None),
    ] {
        let part = daemon.request("GET", &path("stdout")).header("Range", range).send();
        assert_eq!((part.status, part.text().as_str()), (status, body), "{range}");
        assert_eq!(part.header("content-range"), told, "{range}");
    }
    let beyond = daemon.request("GET", &path("stdout")).header("Range", "bytes=10-").send();
    assert_eq!(beyond.header("content-range"), Some("bytes */10"));
    beyond.problem(416, "range-not-satisfiable");
    let head = daemon.request("HEAD", &path("stdout")).send();
    assert_eq!((head.status, head.header("content-length"), head.body.len()), (200, Some("10"), 0));
    daemon.get("/runs/0193a5b0-0000-7000-8000-000000000000/stdout").problem(404, "run-not-found");
}

#[test]
fn outputs_can_be_read_while_they_grow() {
    let daemon = Daemon::start();
    let id = daemon.run_async(&sh("printf 'abc'; sleep 2; printf 'def'"));
    let read = |range: Option<&str>| {
        let request: Request = daemon.request("GET", &format!("/runs/{id}/stdout"));
        range.map_or_else(|| request.clone(), |range| request.clone().header("Range", range)).send()
    };
    within(Duration::from_secs(10), "the first bytes", || (read(None).body == b"abc").then_some(()));
    let part = read(Some("bytes=1-"));
    assert_eq!((part.status, part.header("content-range")), (206, Some("bytes 1-2/*")));
    assert_eq!(part.body, b"bc");
    read(Some("bytes=3-")).problem(416, "range-not-satisfiable");
    daemon.wait_for_state(&id, "finished");
    assert_eq!(read(Some("bytes=3-")).body, b"def");
}

/// Different outputs of many runs at once, each with several watchers: nobody hears another's words.
#[test]
fn many_watchers_of_many_runs_each_hear_their_own() {
    let daemon = Daemon::builder().host_image().flag("--slots", 8).start();
    let runs: BTreeMap<usize, String> = (0..8)
        .map(|number| {
            let script = format!("for i in $(seq 30); do echo run {number} line $i; sleep 0.01; done");
            let mut body = sh(&script);
            // A machine that is emulated takes its time with so many watchers.
            body["limits"] = json!({ "wall_time_ms": 300_000, "cpu_time_ms": 300_000 });
            (number, daemon.run_async(&body))
        })
        .collect();
    std::thread::scope(|scope| {
        for (number, id) in runs.iter().flat_map(|run| std::iter::repeat_n(run, 5)) {
            let daemon = &daemon;
            scope.spawn(move || {
                let told: Vec<Event> = watch(daemon, id).collect();
                let expected: String = (1..=30).map(|line| format!("run {number} line {line}\n")).collect();
                assert_eq!(text(&told, "stdout"), expected);
                assert_eq!(told.last().map(|event| event.name.as_str()), Some("result"));
            });
        }
    });
}
