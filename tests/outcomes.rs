//! How a run ended, row by row of the contract's table. A wrong word here costs a contestant.

use std::time::{Duration, Instant};

use support::{Daemon, Value, guest, json, scaled, until};

/// A run of a guest program with its arguments.
fn guest_run(name: &str, args: &[&str], more: &Value) -> Value {
    let mut body = json!({
        "image": "host", "cmd": format!("/tmp/{name}"), "args": args, "files": [guest::file(name)],
    });
    for (key, value) in more.as_object().expect("fields of a request") {
        body[key] = value.clone();
    }
    body
}

fn shell(script: &str, more: &Value) -> Value {
    let mut body = json!({ "image": "host", "cmd": "sh", "args": ["-c", script] });
    for (key, value) in more.as_object().expect("fields of a request") {
        body[key] = value.clone();
    }
    body
}

#[track_caller]
fn assert_outcome(run: &Value, outcome: &str, exit_code: Option<u64>, signal: Option<&str>) {
    let found = (run["outcome"].as_str(), run["exit_code"].as_u64(), run["signal"].as_str());
    assert_eq!(found, (Some(outcome), exit_code, signal), "{run:#}");
    assert_eq!(run["state"], "finished");
    assert!(!run["message"].as_str().expect("a message").is_empty());
}

fn pause() {
    std::thread::sleep(Duration::from_millis(100));
}

#[test]
fn an_exit_code_is_the_program_s_own_whatever_it_looks_like() {
    let daemon = Daemon::start();
    daemon.run(&shell("true", &json!({})));
    let host = daemon.host();
    for code in [0, 1, 2, 77, 124, 125, 126, 127, 128, 130, 137, 139, 143, 255] {
        let run = daemon.run(&shell(&format!("exit {code}"), &json!({})));
        assert_outcome(&run, "exited", Some(code), None);
        assert_eq!(run["limit_hits"], json!([]));
    }
    host.assert_unchanged();
}

/// Every signal that a program can send, with the name by which people know it. 32 and 33 belong to the C library.
fn signals() -> Vec<(i32, String)> {
    const NAMES: &str = "HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD CONT \
                         STOP TSTP TTIN TTOU URG XCPU XFSZ VTALRM PROF WINCH IO PWR SYS RTMIN";
    let named = NAMES.split_whitespace().map(|name| format!("SIG{name}"));
    let real_time = (1..=30).map(|more| format!("SIGRTMIN+{more}"));
    (1..=31).chain(34..=64).zip(named.chain(real_time)).collect()
}

/// SIGXCPU looks like a limit and SIGKILL like the OOM killer: a program that sends them to itself met neither.
#[test]
fn every_signal_that_ends_a_program_is_told_by_its_name() {
    let daemon = Daemon::start();
    daemon.run(&shell("true", &json!({})));
    let host = daemon.host();
    let mut lived_on = Vec::new();
    for (number, name) in signals().into_iter().filter(|(_, name)| name != "SIGSTOP") {
        let run = daemon.run(&guest_run("signal_self", &[&number.to_string()], &json!({})));
        if run["outcome"] == "exited" {
            assert_outcome(&run, "exited", Some(3), None);
            lived_on.push(name);
        } else {
            assert_outcome(&run, "signaled", None, Some(&name));
            assert_eq!(run["message"], format!("ended by {name}"));
            let hits = if name == "SIGXFSZ" { json!(["file_size"]) } else { json!([]) };
            assert_eq!(run["limit_hits"], hits, "{name}");
        }
    }
    // Ignored by default; and nobody could let a stopped program go on without a terminal, so the
    // kernel doesn't let a terminal's signals stop it.
    assert_eq!(lived_on, ["SIGCHLD", "SIGCONT", "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGURG", "SIGWINCH"]);
    let stopped = guest_run("signal_self", &["19"], &json!({ "limits": { "wall_time_ms": 400 } }));
    assert_outcome(&daemon.run(&stopped), "wall_time_limit", None, None);
    host.assert_unchanged();
}

/// The kernel drops signals to a PID 1 that has no handler for them: a command in its place would live on.
#[test]
fn a_command_that_aborts_does_not_survive_as_pid_1_would() {
    let daemon = Daemon::start();
    let run = daemon.run(&shell("test $$ -ne 1 && kill -ABRT $$; exit 9", &json!({})));
    assert_outcome(&run, "signaled", None, Some("SIGABRT"));
}

#[test]
fn how_a_child_ended_is_its_parent_s_affair() {
    let daemon = Daemon::start();
    let run = daemon.run(&shell("sh -c 'kill -9 $$'; echo \"child: $?\"; exit 5", &json!({})));
    assert_outcome(&run, "exited", Some(5), None);
    assert_eq!((&run["stdout"], &run["limit_hits"]), (&json!("child: 137\n"), &json!([])));
}

#[test]
fn a_crash_is_a_signal_and_never_a_limit() {
    let daemon = Daemon::start();
    for (word, signal) in [
        ("segv", "SIGSEGV"),
        ("bus", "SIGBUS"),
        ("fpe", "SIGFPE"),
        ("ill", "SIGILL"),
        ("abort", "SIGABRT"),
        ("trap", "SIGTRAP"),
    ] {
        let run = daemon.run(&guest_run("crash", &[word], &json!({})));
        assert_outcome(&run, "signaled", None, Some(signal));
        assert_eq!(run["limit_hits"], json!([]), "{word}");
    }
}

#[test]
fn memory_that_runs_out_is_the_memory_limit_whoever_dies_and_however_it_ends() {
    let daemon = Daemon::start();
    daemon.run(&shell("true", &json!({})));
    let host = daemon.host();
    let limits = json!({ "limits": { "memory_bytes": 64 << 20 } });
    for args in [&[][..], &["200", "child", "0"], &["200", "child", "137"], &["200", "child", "1"]] {
        let run = daemon.run(&guest_run("eat_memory", args, &limits));
        assert_eq!(run["outcome"], "memory_limit", "{args:?}: {run:#}");
        assert!(run["message"].as_str().expect("a message").contains("memory"), "{run:#}");
    }
    // Well within: it ends by itself, and with the same code as one that was killed.
    let run = daemon.run(&guest_run("eat_memory", &["16", "child", "137"], &limits));
    assert_outcome(&run, "exited", Some(137), None);
    host.assert_unchanged();
}

/// Its parent would sleep on for a minute after the child's death, and a sibling write past a cap.
#[test]
fn memory_ends_the_whole_run_at_once_and_comes_before_other_limits() {
    let daemon = Daemon::start();
    daemon.run(&shell("true", &json!({})));
    let host = daemon.host();
    let limits = json!({ "memory_bytes": 32 << 20, "wall_time_ms": 60_000, "stdout_bytes": 10 });
    let more = json!({ "limits": limits, "files": [guest::file("eat_memory")] });
    let run = daemon.run(&shell("/tmp/eat_memory & sleep 55", &more));
    assert_outcome(&run, "memory_limit", None, None);
    let wall = run["usage"]["wall_time_ms"].as_f64().expect("a number");
    assert!(wall < 30_000.0, "{wall}");
    let run = daemon.run(&shell("/tmp/eat_memory; echo more than ten bytes", &more));
    assert_outcome(&run, "memory_limit", None, None);
    host.assert_unchanged();
}

#[test]
fn wall_time_ends_whatever_does_not_end_itself() {
    let daemon = Daemon::builder().host_image().flag("--slots", 4).start();
    daemon.run(&shell("true", &json!({})));
    let host = daemon.host();
    // Long enough for the shell to have said something, on any machine.
    let limit = scaled(Duration::from_millis(400));
    let limits = json!({ "limits": { "wall_time_ms": limit.as_millis() as u64 } });
    for request in [
        guest_run("stubborn", &[], &limits),
        guest_run("stop_self", &[], &limits),
        shell("echo partial; sleep 600", &limits),
        shell("trap '' TERM INT HUP; while :; do sleep 1; done", &limits),
        shell("sleep 600 & sleep 600 & wait", &limits),
    ] {
        let asked = Instant::now();
        let run = daemon.run(&request);
        assert_outcome(&run, "wall_time_limit", None, None);
        let wall = run["usage"]["wall_time_ms"].as_f64().expect("a number");
        let range = [limit, limit + scaled(Duration::from_secs(1))].map(|time| time.as_secs_f64() * 1000.0);
        assert!((range[0]..range[1]).contains(&wall), "{wall} of {range:?}");
        assert!(asked.elapsed() < scaled(Duration::from_secs(8)));
    }
    let run = daemon.run(&shell("echo partial; sleep 600", &limits));
    assert_eq!(run["stdout"], "partial\n");
    host.assert_unchanged();
}

#[test]
fn processor_time_is_a_limit_of_its_own() {
    let daemon = Daemon::start();
    for args in [&["1"][..], &["4"]] {
        let limits = json!({ "limits": { "cpu_time_ms": 300, "wall_time_ms": 20_000 } });
        let run = daemon.run(&guest_run("burn", args, &limits));
        assert_outcome(&run, "cpu_time_limit", None, None);
        let cpu = run["usage"]["cpu_time_ms"].as_f64().expect("a number");
        assert!((300.0..900.0).contains(&cpu), "{cpu}");
    }
    // Children's time counts, and that of those that have ended.
    let children = "i=0; while [ $i -lt 40 ]; do /tmp/burn 1 0.1; i=$((i+1)); done";
    let request = shell(
        children,
        &json!({ "limits": { "cpu_time_ms": 500, "wall_time_ms": 30_000 }, "files": [guest::file("burn")] }),
    );
    assert_outcome(&daemon.run(&request), "cpu_time_limit", None, None);
    // Sleeping costs nothing.
    let run = daemon.run(&shell("sleep 1", &json!({ "limits": { "cpu_time_ms": 300 } })));
    assert_outcome(&run, "exited", Some(0), None);
}

#[test]
fn output_past_its_cap_ends_the_run_or_is_thrown_away_as_the_request_says() {
    let daemon = Daemon::start();
    for (stream, other) in [("stdout", "stderr"), ("stderr", "stdout")] {
        let limits = json!({ "stdout_bytes": 1000, "stderr_bytes": 1000, "wall_time_ms": 20_000 });
        let run = daemon.run(&guest_run("spam", &["100000", stream], &json!({ "limits": limits })));
        assert_outcome(&run, "output_limit", None, None);
        assert_eq!(run[format!("{stream}_bytes")], 1000);
        assert_eq!(run[format!("{stream}_truncated")], true);
        assert_eq!(run[format!("{other}_bytes")], 0);

        let more = json!({ "limits": limits, "on_output_limit": "discard" });
        let run = daemon.run(&guest_run("spam", &["100000", stream], &more));
        assert_outcome(&run, "exited", Some(0), None);
        let bytes = |name: &str| run[format!("{stream}_{name}")].as_u64().expect("a number");
        assert_eq!((bytes("bytes"), bytes("total_bytes")), (1000, 100_000));
        assert_eq!(run[format!("{stream}_truncated")], true);
    }
    // To the byte at the cap is not past it.
    let limits = json!({ "limits": { "stdout_bytes": 1000 } });
    let run = daemon.run(&guest_run("spam", &["1000", "stdout"], &limits));
    assert_outcome(&run, "exited", Some(0), None);
    assert_eq!((run["stdout_bytes"].as_u64(), run["stdout_truncated"].as_bool()), (Some(1000), Some(false)));
}

/// The command may have exited before anybody has read what it wrote.
#[test]
fn an_output_past_its_cap_counts_although_the_command_has_exited() {
    let daemon = Daemon::start();
    for _ in 0..10 {
        let run = daemon.run(&shell("echo 123456789", &json!({ "limits": { "stdout_bytes": 9 } })));
        assert_outcome(&run, "output_limit", None, None);
        assert_eq!(run["stdout"], "123456789");
        assert_eq!(run["message"], "wrote more than 9 bytes to stdout");
    }
    // A character that the cap cuts in two is no text any more, and nothing of it is lost.
    let more = json!({ "limits": { "stdout_bytes": 4 }, "on_output_limit": "discard" });
    let run = daemon.run(&shell(r"printf 'caf\303\251'", &more));
    assert_outcome(&run, "exited", Some(0), None);
    assert_eq!((&run["stdout"], &run["stdout_encoding"]), (&json!("Y2Fmww=="), &json!("base64")));
}

#[test]
fn both_outputs_flooded_at_once_neither_hang_nor_grow() {
    let daemon = Daemon::start();
    let run = daemon.run(&guest_run("spam", &[], &json!({})));
    assert_outcome(&run, "output_limit", None, None);
    let more =
        json!({ "on_output_limit": "discard", "limits": { "wall_time_ms": 1000, "cpu_time_ms": 60_000 } });
    let run = daemon.run(&guest_run("spam", &[], &more));
    assert_outcome(&run, "wall_time_limit", None, None);
    assert_eq!((run["stdout_bytes"].as_u64(), run["stderr_bytes"].as_u64()), (Some(1 << 20), Some(1 << 20)));
}

#[test]
fn the_run_ends_with_its_command_and_not_with_its_outputs() {
    let daemon = Daemon::start();
    daemon.run(&shell("true", &json!({})));
    let host = daemon.host();
    // A daemon left behind holds both outputs open for ever.
    for code in ["0", "5"] {
        let asked = Instant::now();
        let run = daemon.run(&guest_run("daemonise", &[code], &json!({})));
        assert_outcome(&run, "exited", code.parse().ok(), None);
        assert!(asked.elapsed() < Duration::from_secs(5));
    }
    // And the other way round: outputs that end early end nothing.
    let run = daemon.run(&guest_run("close_stdio", &["300"], &json!({})));
    assert_outcome(&run, "exited", Some(7), None);
    assert_eq!(run["stdout"], "before\n");
    assert!(run["usage"]["wall_time_ms"].as_f64().expect("a number") >= 300.0);
    host.assert_unchanged();
}

#[test]
fn ten_megabytes_that_nobody_reads_hold_nobody_up() {
    let daemon = Daemon::start();
    let run = daemon.run(&guest_run("ignore_stdin", &["200"], &json!({ "stdin": "x".repeat(10 << 20) })));
    assert_outcome(&run, "exited", Some(0), None);
    let run = daemon.run(&shell("wc -c", &json!({ "stdin": "x".repeat(10 << 20) })));
    assert_eq!(run["stdout"].as_str().map(str::trim), Some("10485760"));
    let run = daemon.run(&shell("exec <&-; sleep 0.2", &json!({ "stdin": "x".repeat(1 << 20) })));
    assert_outcome(&run, "exited", Some(0), None);
    // Without any, the program finds the end at once.
    let run = daemon.run(&shell("wc -c", &json!({})));
    assert_eq!(run["stdout"].as_str().map(str::trim), Some("0"));
}

#[test]
fn what_cannot_be_started_says_why() {
    let daemon = Daemon::start();
    let file = |name: &str, text: &str, mode: &str| json!({ "path": format!("/tmp/{name}"), "text": text, "mode": mode });
    let elf = {
        let mut bytes = guest::bytes("burn");
        bytes[18] = 0x28; // EM_ARM
        json!({ "path": "/tmp/arm", "base64": base64(&bytes), "mode": "0755" })
    };
    for (cmd, files, words) in [
        ("nope", json!([]), "PATH"),
        ("/nope", json!([]), "no such file"),
        ("/tmp/plain", json!([file("plain", "#!/bin/sh\n", "0644")]), "not an executable"),
        ("/tmp", json!([]), "not an executable"),
        ("/tmp/script", json!([file("script", "#!/no/such/interpreter\n", "0755")]), "interpreter"),
        ("/tmp/text", json!([file("text", "echo hello\n", "0755")]), "not a program for this machine"),
        ("/tmp/empty", json!([file("empty", "", "0755")]), "not a program for this machine"),
        ("/tmp/arm", json!([elf]), "not a program for this machine"),
        ("/tmp/loop", json!([file("loop", "#!/tmp/loop\n", "0755")]), "/tmp/loop"),
    ] {
        let run = daemon.run(&json!({ "image": "host", "cmd": cmd, "files": files }));
        assert_outcome(&run, "start_failed", None, None);
        let message = run["message"].as_str().expect("a message");
        assert!(message.contains(words), "{cmd}: {message}");
        assert_eq!(run["usage"]["wall_time_ms"], 0.0);
    }
    for (more, words) in [
        (json!({ "user": "nobody-we-know" }), "nobody-we-know"),
        (json!({ "user": "0:nogroup-we-know" }), "nogroup-we-know"),
        (json!({ "workdir": "/etc/passwd" }), "working directory"),
        (json!({ "workdir": "/usr/x" }), "working directory"),
    ] {
        let run = daemon.run(&shell("true", &more));
        assert_outcome(&run, "start_failed", None, None);
        assert!(run["message"].as_str().expect("a message").contains(words), "{run:#}");
    }
}

fn base64(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::prelude::BASE64_STANDARD.encode(bytes)
}

#[test]
fn a_run_is_cancelled_by_delete_and_is_dead_when_that_answers() {
    let daemon = Daemon::start();
    daemon.run(&shell("true", &json!({})));
    let host = daemon.host();
    let id = daemon.run_async(&shell(
        "echo begun; sleep 600 & sleep 600",
        &json!({ "limits": { "wall_time_ms": 60_000 } }),
    ));
    daemon.wait_for_state(&id, "running");
    pause();
    let inside = || support::host::in_cgroups_of(daemon.launcher_pid()).len();
    assert!(inside() >= 3, "init, the shell and two that sleep");
    let run = daemon.delete(&format!("/runs/{id}")).expect(200);
    assert_eq!(inside(), 0, "every process of it is dead when the answer comes");
    assert_outcome(&run, "cancelled", None, None);
    assert_eq!(run["stdout"], "begun\n");
    host.assert_unchanged();
    // Again, and after its end: the same answer.
    assert_outcome(&daemon.delete(&format!("/runs/{id}")).expect(200), "cancelled", None, None);
    assert_outcome(&daemon.show(&id), "cancelled", None, None);
    let done = daemon.run(&shell("exit 3", &json!({})));
    let id = done["id"].as_str().expect("an id");
    assert_outcome(&daemon.delete(&format!("/runs/{id}")).expect(200), "exited", Some(3), None);
}

#[test]
fn a_waiting_client_that_goes_away_cancels_its_run() {
    let daemon = Daemon::builder().host_image().flag("--slots", 1).start();
    daemon.run(&shell("true", &json!({})));
    let host = daemon.host();
    let pending = daemon
        .request("POST", "/runs")
        .json(&shell(
            "sleep 600",
            &json!({ "limits": { "wall_time_ms": 60_000 }, "labels": { "who": "gone" } }),
        ))
        .begin()
        .expect("send a request");
    until("the run runs", || daemon.get("/runs").json()["runs"][0]["state"] == "running");
    let id = daemon.get("/runs").json()["runs"][0]["id"].as_str().expect("an id").to_owned();
    drop(pending);
    assert_outcome(&daemon.wait_for_state(&id, "finished"), "cancelled", None, None);
    host.assert_unchanged();
    // The only slot is free again.
    assert_outcome(&daemon.run(&shell("true", &json!({}))), "exited", Some(0), None);
}

/// Whoever hangs up while the run is still queued has not asked for it any more.
#[test]
fn a_waiting_client_that_goes_away_takes_its_run_out_of_the_queue() {
    let daemon = Daemon::builder().host_image().flag("--slots", 1).start();
    let long = json!({ "limits": { "wall_time_ms": 280_000 } });
    let first = daemon.run_async(&shell("sleep 250", &long));
    daemon.wait_for_state(&first, "running");
    let pending = daemon
        .request("POST", "/runs")
        .json(&shell("echo never", &json!({})))
        .begin()
        .expect("send a request");
    until("a run is queued", || daemon.get("/runs?state=queued").json()["runs"][0].is_object());
    let queued = daemon.get("/runs?state=queued").json()["runs"][0]["id"].as_str().expect("an id").to_owned();
    drop(pending);
    let run = daemon.wait_for_state(&queued, "finished");
    assert_outcome(&run, "cancelled", None, None);
    assert_eq!((&run["started_at"], &run["stdout"]), (&Value::Null, &json!("")));
    assert_eq!(daemon.show(&first)["state"], "running");
    assert_outcome(&daemon.delete(&format!("/runs/{first}")).expect(200), "cancelled", None, None);
}

/// Cancelled at the moment of its own end, a run is one or the other, and its answer doesn't change.
#[test]
fn a_cancel_that_comes_with_the_end_leaves_one_verdict() {
    let daemon = Daemon::start();
    daemon.run(&shell("true", &json!({})));
    let host = daemon.host();
    let mut seen = std::collections::BTreeSet::new();
    for step in 0..40 {
        let id = daemon.run_async(&shell("sleep 0.03; exit 6", &json!({})));
        until("it has started", || !daemon.show(&id)["started_at"].is_null());
        std::thread::sleep(Duration::from_millis(step * 2));
        let run = daemon.delete(&format!("/runs/{id}")).expect(200);
        match run["outcome"].as_str() {
            Some("exited") => assert_outcome(&run, "exited", Some(6), None),
            _ => assert_outcome(&run, "cancelled", None, None),
        }
        let later = daemon.show(&id);
        assert_eq!((&later["outcome"], &later["finished_at"]), (&run["outcome"], &run["finished_at"]));
        seen.insert(run["outcome"].as_str().expect("an outcome").to_owned());
    }
    assert!(seen.contains("exited"), "the last ones had all the time that they needed: {seen:?}");
    host.assert_unchanged();
}

#[test]
fn an_image_that_cannot_be_had_is_a_problem_to_who_waits_and_an_outcome_to_who_does_not() {
    let registry = support::Registry::empty();
    let daemon = Daemon::with_registry(&registry);
    let missing = registry.image("nothing");
    for (image, status, problem) in [
        (missing.clone(), 422, "image-not-found"),
        ("host".to_owned(), 422, "image-not-allowed"),
        ("127.0.0.1:9/gone:1".to_owned(), 422, "image-not-allowed"),
    ] {
        let body = json!({ "image": image, "cmd": "true" });
        let refused = daemon.post("/runs", &body).problem(status, problem);
        let waited = daemon.show(refused["run_id"].as_str().expect("a problem about a run names it"));
        let id = daemon.run_async(&body);
        for run in [waited, daemon.wait_for_state(&id, "finished")] {
            assert_outcome(&run, "image_failed", None, None);
            assert_eq!(run["problem"]["type"], format!("/problems/{problem}"), "{image}");
        }
    }
    drop(registry);
    let refused = daemon.post("/runs", &json!({ "image": missing, "cmd": "true" }));
    let refused = refused.problem(502, "registry-failed");
    let run = daemon.show(refused["run_id"].as_str().expect("a problem about a run names it"));
    assert_outcome(&run, "image_failed", None, None);
}

#[test]
fn what_was_used_is_plausible() {
    let daemon = Daemon::start();
    let run = daemon.run(&guest_run("burn", &["1", "0.5"], &json!({})));
    let usage = |name: &str| run["usage"][name].as_f64().expect("a number");
    assert!((450.0..2500.0).contains(&usage("cpu_time_ms")), "{run:#}");
    assert!(usage("wall_time_ms") >= 450.0);
    let sum = usage("user_time_ms") + usage("system_time_ms");
    assert!((sum - usage("cpu_time_ms")).abs() < 60.0, "{run:#}");
    assert_eq!(run["usage"]["processes_peak"], 1);
    let run = daemon.run(&guest_run("eat_memory", &["50"], &json!({})));
    let peak = run["usage"]["memory_peak_bytes"].as_u64().expect("a number");
    assert!((50 << 20..70 << 20).contains(&peak), "{peak}");
    let run = daemon.run(&shell("sleep 0.3 & sleep 0.3 & sleep 0.3 & wait", &json!({})));
    assert_eq!(run["usage"]["processes_peak"], 4);
    for time in ["queue_ms", "image_ms", "setup_ms", "run_ms"] {
        assert!(run["timings"][time].as_f64().is_some_and(|ms| ms >= 0.0), "{time}: {run:#}");
    }
}
