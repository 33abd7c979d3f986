//! Everything that a request can have too much of is refused, with its name and what is allowed.

use std::time::{Duration, Instant};

use serde_json::Map;
use support::{Daemon, Value, json};

fn with(field: &str, value: Value) -> Value {
    let mut body = json!({ "image": "host", "cmd": "true" });
    body[field] = value;
    body
}

fn map(entries: usize) -> Value {
    (0..entries).map(|number| (format!("K{number}"), json!("v"))).collect::<Map<String, Value>>().into()
}

fn files(entries: usize) -> Value {
    (0..entries).map(|number| json!({ "path": format!("f{number}"), "text": "" })).collect::<Vec<_>>().into()
}

/// Refused, with the place at fault and the number that is allowed.
#[track_caller]
fn refused_by_name(daemon: &Daemon, path: &str, body: &Value, pointer: &str, allowed: &str) {
    let shown: String = body.to_string().chars().take(60).collect();
    let problem = daemon.post(path, body).problem(422, "invalid-request");
    let errors = problem["errors"].as_array().expect("errors");
    let named = errors.iter().find(|error| error["pointer"] == pointer);
    let named = named.unwrap_or_else(|| panic!("{pointer} is not named for {shown}: {errors:?}"));
    let detail = named["detail"].as_str().expect("words");
    assert!(detail.contains(allowed), "{pointer}: {detail:?} does not say {allowed}");
}

#[test]
fn every_limit_on_input_is_refused_by_name_with_the_number_that_is_allowed() {
    let daemon = Daemon::builder().host_image().flag("--body-bytes-max", 4 << 20).start();
    let long = |bytes: usize| json!("x".repeat(bytes));
    for (body, pointer, allowed) in [
        (with("image", long(513)), "/image", "512"),
        (with("cmd", long(131_072)), "/cmd", "131071"),
        (with("args", json!([long(131_072)])), "/args/0", "131071"),
        (with("args", json!(vec!["x"; 4097])), "/args", "4096"),
        (with("args", json!(vec!["x".repeat(1 << 17); 10])), "/args/0", "131071"),
        (with("args", json!(vec!["x".repeat(1 << 16); 17])), "/args", "1048576"),
        (with("env", map(1025)), "/env", "1024"),
        (with("env", json!({ "A": long(131_071) })), "/env/A", "131070"),
        (
            with(
                "env",
                (0..20).map(|i| (format!("K{i}"), long(60_000))).collect::<Map<String, Value>>().into(),
            ),
            "/env",
            "1048576",
        ),
        (with("labels", map(33)), "/labels", "32"),
        (with("labels", json!({ "a": long(257) })), "/labels/a", "256"),
        (with("labels", json!({ "x".repeat(65): "v" })), &format!("/labels/{}", "x".repeat(65)), "64"),
        (with("files", files(1001)), "/files", "1000"),
        (with("files", json!([{ "path": long(4096), "text": "" }])), "/files/0/path", "4095"),
        (with("files", json!([{ "path": long(256), "text": "" }])), "/files/0/path", "255"),
        (with("workdir", json!(format!("/{}", "x".repeat(4096)))), "/workdir", "4095"),
        (with("user", long(256)), "/user", "must be `user`"),
        (with("user", json!("65536")), "/user", "65535"),
        (with("priority", json!(1001)), "/priority", "1000"),
        (with("outputs", json!(vec!["x"; 2000])), "/outputs", "at most"),
    ] {
        refused_by_name(&daemon, "/runs", &body, pointer, allowed);
    }
}

#[test]
fn the_body_itself_has_a_size_a_depth_and_a_number_of_values() {
    let daemon = Daemon::builder().host_image().flag("--body-bytes-max", 1 << 20).start();
    let post = |body: String| daemon.request("POST", "/runs").body(body).send();
    let problem = post("x".repeat((1 << 20) + 1)).problem(413, "body-too-large");
    assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains("1048576")), "{problem}");
    let deep = format!("{}{}", "[".repeat(33), "]".repeat(33));
    let problem = post(deep).problem(400, "not-json");
    assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains("32 levels")), "{problem}");
    let many = format!("[{}0]", "0,".repeat(65_536));
    let problem = post(many).problem(422, "invalid-request");
    assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains("65536")), "{problem}");
    // As much as is allowed is taken.
    let mut body =
        json!({ "image": "host", "cmd": "true", "labels": map(32), "env": map(1024), "files": files(1000) });
    body["args"] = json!(vec!["x"; 4096]);
    assert_eq!(daemon.run(&body)["outcome"], "exited");
}

#[test]
fn batches_are_limited_as_runs_are_and_by_the_number_of_their_tests() {
    let daemon = Daemon::builder().host_image().flag("--body-bytes-max", 4 << 20).start();
    let batch = |tests: Value| json!({ "image": "host", "run": { "cmd": "true" }, "tests": tests });
    let with = |field: &str, value: Value| {
        let mut body = batch(json!([{}]));
        body[field] = value;
        body
    };
    for (body, pointer, allowed) in [
        (batch(json!(vec![json!({}); 5001])), "/tests", "5000"),
        (batch(json!([{ "name": "x".repeat(201) }])), "/tests/0/name", "200"),
        (batch(json!([{ "args": vec!["x"; 4097] }])), "/tests/0/args", "4096"),
        (batch(json!([{}, { "files": files(1001) }])), "/tests/1/files", "1000"),
        (with("parallelism", json!(1025)), "/parallelism", "1024"),
        (with("env", map(1025)), "/env", "1024"),
        (with("labels", map(33)), "/labels", "32"),
        (with("files", files(1001)), "/files", "1000"),
        (with("prepare", json!({ "cmd": "true", "args": vec!["x"; 4097] })), "/prepare/args", "4096"),
        (with("run", json!({ "cmd": "x".repeat(131_072) })), "/run/cmd", "131071"),
    ] {
        refused_by_name(&daemon, "/batches", &body, pointer, allowed);
    }
}

#[test]
fn what_comes_beside_a_body_and_what_is_uploaded_is_limited_too() {
    let daemon = Daemon::builder().host_image().flag("--file-bytes-max", 1024).start();
    let small = with("cmd", json!("true"));
    let post =
        |name: &str, value: String| daemon.request("POST", "/runs").header(name, value).json(&small).send();
    let problem = post("Idempotency-Key", "x".repeat(256)).problem(422, "invalid-request");
    assert!(
        problem.to_string().contains("Idempotency-Key") && problem.to_string().contains("255"),
        "{problem}"
    );
    post("X-Padding", "x".repeat(64 * 1024)).problem(431, "headers-too-large");
    let problem = daemon.get("/runs?limit=501").problem(422, "invalid-request");
    assert!(problem.to_string().contains("limit") && problem.to_string().contains("500"), "{problem}");

    let upload = |bytes: usize| daemon.request("POST", "/files").body("x".repeat(bytes)).send();
    let problem = upload(1025).problem(413, "body-too-large");
    assert!(problem["detail"].as_str().is_some_and(|detail| detail.contains("1024")), "{problem}");
    upload(1024).expect(201);
    let named = |number: usize| {
        let sent = daemon.request("POST", "/files").body(format!("{number}")).send().expect(201);
        json!({ "path": format!("f{number}"), "file": sent["file"] })
    };
    let named: Vec<_> = (0..191).map(named).collect();
    refused_by_name(&daemon, "/runs", &with("files", json!(named)), "/files", "190");
}

/// A call that takes anything without saying so would show here: they all are asked.
#[test]
fn a_parameter_that_a_call_does_not_take_is_refused_by_name_by_every_call_but_those_of_probes() {
    const RUN: &str = "0193a5b0-0000-7000-8000-000000000000";
    const FILE: &str = "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
    let daemon = Daemon::start();
    let document = daemon.get("/openapi.json").expect(200);
    let probes = ["/healthz", "/readyz", "/metrics"];
    for (template, calls) in document["paths"].as_object().expect("paths") {
        let id = if template.starts_with("/files") { FILE } else { RUN };
        let path =
            template.replace("{id}", id).replace("{reference}", "alpine").replace("{name}", "queue-full");
        for method in calls.as_object().expect("calls").keys().map(|method| method.to_uppercase()) {
            let response = daemon.request(&method, &format!("{path}?stauts=1&cachebuster")).send();
            if probes.contains(&template.as_str()) {
                assert_eq!(response.status, 200, "{method} {path}");
                continue;
            }
            assert_eq!(response.status, 422, "{method} {path}: {}", response.text());
            if method == "HEAD" {
                continue;
            }
            let problem = response.problem(422, "invalid-request");
            let named: Vec<_> = problem["errors"].as_array().expect("errors").iter().collect();
            let names: Vec<_> = named.iter().map(|error| error["parameter"].as_str()).collect();
            assert_eq!(names, [Some("stauts"), Some("cachebuster")], "{method} {path}");
            let takes = calls[&method.to_lowercase()]["parameters"].as_array().into_iter().flatten();
            let takes =
                takes.filter(|taken| taken["in"] == "query").filter_map(|taken| taken["name"].as_str());
            let takes: Vec<_> = takes.collect();
            let said = named[0]["detail"].as_str().expect("words");
            let said = said.strip_prefix("unknown parameter; this call takes ").expect("what is allowed");
            let mut said: Vec<_> = said.split(", ").filter(|name| *name != "none").collect();
            said.sort_unstable();
            let mut documented = takes;
            documented.sort_unstable();
            assert_eq!(said, documented, "{method} {path}");
        }
    }
    let run = with("cmd", json!("true"));
    let problem = daemon.post("/runs?wiat=1", &run).problem(422, "invalid-request");
    assert_eq!(problem["detail"], "wiat: unknown parameter; this call takes none");
    assert_eq!(daemon.get("/runs").expect(200)["runs"], json!([]), "nothing was run");
    daemon.post("/runs?", &run).expect(200);
}

/// Each alone would fit.
#[test]
fn what_a_batch_lays_in_and_what_a_test_does_must_fit_together() {
    let daemon = Daemon::start();
    let pages = |name: &str, pages: usize| json!([{ "path": name, "text": "x".repeat(4096 * pages) }]);
    let body = |test: Value, limits: Value| {
        let limits = json!({ "cmd": "true", "limits": limits });
        json!({ "image": "host", "files": pages("a", 3), "run": limits, "tests": [{}, test] })
    };
    let own = json!({ "files": pages("b", 3) });
    refused_by_name(
        &daemon,
        "/batches",
        &body(own, json!({ "disk_bytes": 16384 })),
        "/tests/1/files",
        "16384",
    );
    let less = json!({ "limits": { "disk_bytes": 8192 } });
    refused_by_name(&daemon, "/batches", &body(less, json!({})), "/files", "8192");

    let named = |names: std::ops::Range<usize>| -> Vec<Value> {
        let upload = |number: usize| {
            let sent = daemon.request("POST", "/files").body(format!("{number}")).send().expect(201);
            json!({ "path": format!("f{number}"), "file": sent["file"] })
        };
        names.map(upload).collect()
    };
    let mut body = body(json!({ "files": named(0..100) }), json!({}));
    body["files"] = json!(named(100..191));
    refused_by_name(&daemon, "/batches", &body, "/tests/1/files", "190");
    body["files"] = json!(named(100..190));
    assert_eq!(daemon.post("/batches", &body).expect(200)["tests"][1]["run"]["outcome"], "exited");
}

/// What all tests have in common is read once, and told once.
#[test]
fn a_batch_with_a_thousand_mistakes_and_thousands_of_tests_is_refused_at_once() {
    let daemon = Daemon::start();
    let names = (0..1024).map(|number| (format!("K={number}{}", "x".repeat(100)), json!("v")));
    let env: Value = names.collect::<Map<String, Value>>().into();
    let body = json!({ "image": "host", "env": env, "run": { "cmd": "true", "limits": { "cpus": 0 } },
                       "tests": vec![json!({}); 5000] });
    let began = Instant::now();
    let problem = daemon.post("/batches", &body).problem(422, "invalid-request");
    let took = began.elapsed();
    let errors = problem["errors"].as_array().expect("errors");
    let place = |error: &Value| {
        error["pointer"].as_str().is_some_and(|at| at.starts_with("/env/K=") || at == "/run/limits/cpus")
    };
    assert!(
        errors.len() == 1025 && errors.iter().all(place),
        "{} errors, such as {}",
        errors.len(),
        errors[1024]
    );
    assert!(took < Duration::from_secs(15), "it took {took:?}");
}
