//! Who may ask, for what, and that nobody sees what is somebody else's.

mod images;
mod together;

use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use nix::sys::signal::Signal;
use support::{Daemon, Finished, Folder, Response, Value, json, sandglass, until, within};

fn sh(script: &str) -> Value {
    json!({ "image": "host", "cmd": "sh", "args": ["-c", script] })
}

fn get(daemon: &Daemon, key: &str, path: &str) -> Response {
    daemon.request("GET", path).key(key).send()
}

fn post(daemon: &Daemon, key: &str, body: &Value) -> Response {
    daemon.request("POST", "/runs").key(key).json(body).send()
}

/// Whoever reads the audit later wants to know what became of the call.
#[test]
fn the_audit_names_the_run_the_batch_or_the_file_that_a_call_was_about() {
    let builder = Daemon::builder().host_image();
    let alice = builder.key(&["alice"]);
    let daemon = builder.start();
    let request = |method: &str, path: &str| daemon.request(method, path).key(&alice);
    let batch = json!({ "image": "host", "run": { "cmd": "true" }, "tests": [{}] });
    let waited = request("POST", "/batches").json(&batch).send().expect(200)["id"].clone();
    let begun = request("POST", "/batches").header("Prefer", "respond-async").json(&batch).send();
    let begun = begun.expect(202)["id"].clone();
    let file = request("POST", "/files").body("x").send().expect(201)["file"].clone();
    let events = request("POST", "/runs").header("Accept", "text/event-stream").json(&sh("true")).send();
    assert_eq!(events.status, 200);
    let followed = get(&daemon, &alice, "/runs?limit=1").expect(200)["runs"][0]["id"].clone();
    let run = post(&daemon, &alice, &sh("true")).expect(200)["id"].clone();
    let text = |id: &Value| id.as_str().expect("an id").to_owned();
    let purge = format!("/runs/{}?purge=true", text(&run));
    request("DELETE", &purge).send().expect(200);
    daemon.wait_for_log("purge=true");
    let log = daemon.log();
    let audit = |call: &str, id: &str| {
        let lines = log.lines().filter(|line| line.contains("audit") && line.contains(call));
        assert_eq!(lines.filter(|line| line.contains(id)).count(), 1, "{call} {id}: {log}");
    };
    audit("alice POST /batches", &format!("batch.id=\"{}\"", text(&waited)));
    audit("alice POST /batches", &format!("batch.id=\"{}\"", text(&begun)));
    audit("alice POST /files", &format!("file=\"{}\"", text(&file)));
    audit("alice POST /runs", &format!("run.id=\"{}\"", text(&followed)));
    audit("alice POST /runs", &format!("run.id=\"{}\"", text(&run)));
    audit(&format!("alice DELETE {purge}"), &format!("run.id=\"{}\"", text(&run)));
}

#[test]
fn a_key_lets_in_and_nothing_else_does() {
    let builder = Daemon::builder().host_image();
    let alice = builder.key(&["alice"]);
    let daemon = builder.start();
    let run = post(&daemon, &alice, &sh("echo in")).expect(200);
    assert_eq!(run["stdout"], "in\n");

    let (most, last) = alice.split_at(alice.len() - 1);
    let forged = format!("{most}{}", if last == "A" { "B" } else { "A" });
    let twisted = alice.to_uppercase();
    for (header, error) in [
        (None, ""),
        (Some(format!("Basic {alice}")), ""),
        (Some(alice.clone()), ""),
        (Some("Bearer".into()), ""),
        (Some("Bearer x".into()), ", error=\"invalid_token\""),
        (Some(format!("Bearer {forged}")), ", error=\"invalid_token\""),
        (Some(format!("Bearer {twisted}")), ", error=\"invalid_token\""),
    ] {
        for (method, path) in
            [("POST", "/runs"), ("GET", "/runs"), ("GET", "/nothing"), ("DELETE", "/images/x")]
        {
            let request = daemon.request(method, path);
            let request =
                header.iter().fold(request, |request, value| request.header("Authorization", value));
            let refused = request.json(&sh("true")).send();
            let challenge = format!("Bearer realm=\"sandglass\"{error}");
            assert_eq!(refused.header("www-authenticate"), Some(challenge.as_str()), "{header:?} {path}");
            refused.problem(401, "unauthorized");
        }
    }
    // The key is good, and not for this.
    for (path, scope) in
        [("/images", "images"), ("/metrics", "metrics"), ("/info", "metrics"), ("/principals", "admin")]
    {
        let refused = get(&daemon, &alice, path);
        assert!(
            refused
                .header("www-authenticate")
                .is_some_and(|told| told.contains(&format!("scope=\"{scope}\"")))
        );
        refused.problem(403, "insufficient-scope");
    }
    for path in ["/healthz", "/readyz", "/openapi.json", "/docs/", "/problems/unauthorized"] {
        assert_eq!(daemon.get(path).status, 200, "{path}");
    }
    let all = make_key(&daemon, &["watcher", "--scope", "metrics"]);
    let page = within_a_second(&daemon, &all, "/metrics").text();
    let refused =
        page.lines().find_map(|line| line.strip_prefix("sandglass_rejected_total{reason=\"auth\"} "));
    assert!(
        refused.is_some_and(|count| count.parse::<f64>().is_ok_and(|count| count >= 28.0)),
        "{refused:?}"
    );
}

#[test]
fn who_knows_no_key_does_not_fill_the_log() {
    let builder = Daemon::builder();
    builder.key(&["alice"]);
    let daemon = builder.start();
    let began = std::time::Instant::now();
    for _ in 0..300 {
        daemon.get("/runs").problem(401, "unauthorized");
    }
    let seconds = began.elapsed().as_secs() as usize + 2;
    let page = |log: &str| log.matches("a request was not let in").count();
    until("some lines", || page(&daemon.log()) > 0);
    assert!(page(&daemon.log()) <= 20 * seconds, "{} lines in {seconds} s", page(&daemon.log()));
    std::thread::sleep(Duration::from_millis(1100));
    daemon.get("/runs").problem(401, "unauthorized");
    daemon.wait_for_log("unsaid=");
}

#[test]
fn a_path_that_somebody_has_made_up_is_not_logged_whole() {
    let builder = Daemon::builder();
    let alice = builder.key(&["alice"]);
    let daemon = builder.start();
    let path = format!("/runs/{}", "x".repeat(20_000));
    daemon.request("DELETE", &path).key(&alice).send().problem(404, "run-not-found");
    daemon.wait_for_log("alice DELETE /runs/xxx");
    let log = daemon.log();
    assert!(log.lines().all(|line| line.len() < 5_000), "{log}");
}

fn make_key(daemon: &Daemon, words: &[&str]) -> String {
    daemon.builder_of().key(words)
}

/// Asks until the server has seen a key that was just made.
fn within_a_second(daemon: &Daemon, key: &str, path: &str) -> Response {
    within(Duration::from_secs(2), "the server to see a new key", || {
        Some(get(daemon, key, path)).filter(|answer| answer.status != 401)
    })
}

#[test]
fn a_running_server_sees_keys_come_and_go() {
    let mut daemon = Daemon::start();
    assert_eq!(daemon.post("/runs", &sh("true")).status, 200);
    let first = make_key(&daemon, &["alice"]);
    until("the first key closes the server", || daemon.get("/runs").status == 401);
    get(&daemon, &first, "/runs").expect(200);
    daemon.post("/runs", &sh("true")).problem(401, "unauthorized");

    let second = make_key(&daemon, &["alice", "--expires", "3s"]);
    within_a_second(&daemon, &second, "/runs").expect(200);
    until("a key expires", || get(&daemon, &second, "/runs").status == 401);
    assert!(
        get(&daemon, &second, "/runs").problem(401, "unauthorized")["detail"]
            .as_str()
            .is_some_and(|d| d.contains("expired"))
    );

    let revoked = daemon.builder_of().key_command(&["revoke", first.split('_').nth(1).expect("an id")]);
    assert!(revoked.status.success(), "{}", revoked.stderr_text());
    daemon.process().signal(Signal::SIGHUP);
    until("a key is taken back", || get(&daemon, &first, "/runs").status == 401);
    // Without any good key it is closed, not open.
    daemon.get("/runs").problem(401, "unauthorized");
    let again = daemon.restart();
    again.get("/runs").problem(401, "unauthorized");
    for words in [&["revoke", "000000000000"][..], &["revoke", "--principal", "bob"]] {
        let refused = again.builder_of().key_command(words);
        assert!(refused.stderr_text().contains("no such key"), "{}", refused.stderr_text());
    }
}

#[test]
fn one_principal_never_sees_what_is_anothers() {
    let builder = Daemon::builder().host_image();
    let alice = builder.key(&["alice"]);
    let also_alice = builder.key(&["alice"]);
    let bob = builder.key(&["bob"]);
    let admin = builder.key(&["root", "--scope", "admin"]);
    let daemon = builder.start();
    let done = post(&daemon, &alice, &sh("echo secret")).expect(200);
    let begun = daemon.request("POST", "/runs").key(&alice).header("Prefer", "respond-async");
    let begun = begun.json(&sh("sleep 30")).send().expect(202);
    for run in [&done, &begun] {
        let path = format!("/runs/{}", run["id"].as_str().expect("an id"));
        for method in ["GET", "DELETE"] {
            daemon.request(method, &path).key(&bob).send().problem(404, "run-not-found");
        }
        let waited = daemon.request("GET", &path).key(&bob).header("Prefer", "wait=5").send();
        waited.problem(404, "run-not-found");
        for key in [&also_alice, &admin] {
            assert_eq!(get(&daemon, key, &path).expect(200)["id"], run["id"]);
        }
    }
    let count = |key: &str, query: &str| {
        let listed = get(&daemon, key, &format!("/runs{query}")).expect(200);
        listed["runs"].as_array().map(Vec::len)
    };
    for query in ["", "?limit=1", "?state=running", "?outcome=exited"] {
        assert_eq!(count(&bob, query), Some(0), "{query}");
    }
    assert_eq!((count(&alice, ""), count(&also_alice, ""), count(&admin, "")), (Some(2), Some(2), Some(2)));
    // Neither do files, even of the same content.
    let upload = |key: &str| daemon.request("POST", "/files").key(key).body("mine").send().expect(201);
    let id = upload(&alice)["file"].as_str().expect("an id").to_owned();
    let mut reads = sh("cat");
    reads["stdin"] = json!({ "file": id });
    for (method, path) in [("GET", "files"), ("HEAD", "files"), ("DELETE", "files")] {
        assert_eq!(daemon.request(method, &format!("/{path}/{id}")).key(&bob).send().status, 404, "{method}");
    }
    post(&daemon, &bob, &reads).problem(422, "invalid-request");
    assert_eq!(post(&daemon, &also_alice, &reads).expect(200)["stdout"], "mine");
    upload(&bob);
    assert_eq!(daemon.request("DELETE", &format!("/files/{id}")).key(&bob).send().status, 204);
    assert_eq!(get(&daemon, &alice, &format!("/files/{id}")).status, 200);
    // A cursor into somebody else's runs leads nowhere.
    assert_eq!(count(&bob, &format!("?cursor={}", begun["id"].as_str().expect("an id"))), Some(0));
    let path = format!("/runs/{}", begun["id"].as_str().expect("an id"));
    assert_eq!(get(&daemon, &alice, &path).expect(200)["outcome"], Value::Null, "bob has cancelled nothing");
    let cancelled = daemon.request("DELETE", &path).key(&admin).send().expect(200);
    assert_eq!(cancelled["outcome"], "cancelled");
}

#[test]
fn a_key_has_limits_and_images_of_its_own() {
    let builder = Daemon::builder().host_image();
    let small = builder.key(&[
        "small",
        "--limit",
        "wall_time_ms=700",
        "--limit",
        "cpus=0.5",
        "--allow-image",
        "host",
    ]);
    let elsewhere =
        builder.key(&["elsewhere", "--allow-image", "docker.io/library/*", "--allow-image", "python:3.13"]);
    let daemon = builder.start();
    let run = post(&daemon, &small, &sh("sleep 5")).expect(200);
    assert_eq!((&run["outcome"], &run["limits"]["wall_time_ms"]), (&json!("wall_time_limit"), &json!(700)));
    assert_eq!(run["limits"]["cpus"], 0.5);
    let mut more = sh("true");
    more["limits"] = json!({ "wall_time_ms": 701, "cpus": 0.5 });
    let problem = post(&daemon, &small, &more).problem(422, "invalid-request");
    assert_eq!(problem["errors"][0]["pointer"], "/limits/wall_time_ms");
    assert!(
        problem["errors"][0]["detail"].as_str().is_some_and(|detail| detail.contains("at most 700")),
        "{problem}"
    );

    let problem = post(&daemon, &elsewhere, &sh("true")).problem(422, "image-not-allowed");
    assert!(
        problem["detail"].as_str().is_some_and(|detail| detail.contains("docker.io/library/python:3.13")),
        "{problem}"
    );
    let problem = post(&daemon, &small, &json!({ "image": "alpine", "cmd": "true" }));
    problem.problem(422, "image-not-allowed");
}

#[test]
fn what_is_kept_of_a_key_is_not_the_key() {
    let builder = Daemon::builder().host_image();
    let alice = builder.key(&["alice", "--concurrency", "3"]);
    let admin = builder.key(&["root", "--scope", "admin"]);
    let mut daemon = builder.start();
    post(&daemon, &alice, &sh("printf 12345")).expect(200);
    post(&daemon, &alice, &sh("exit 1")).expect(200);
    let refused = daemon.request("DELETE", "/runs/0193a5b0-0000-7000-8000-000000000000").key(&alice).send();
    refused.problem(404, "run-not-found");

    let told = get(&daemon, &admin, "/principals").expect(200);
    let names: Vec<_> =
        told["principals"].as_array().expect("a list").iter().map(|one| &one["name"]).collect();
    assert_eq!(names, ["alice", "root"]);
    let usage = &told["principals"][0]["usage"];
    assert_eq!(
        (&usage["runs"], &usage["runs_succeeded"], &usage["output_bytes"]),
        (&json!(2), &json!(1), &json!(5))
    );
    assert!(
        usage["wall_time_ms"].as_f64().is_some_and(|ms| ms > 0.0)
            && usage["cpu_time_ms"].as_f64() > Some(0.0)
    );

    // Who has changed what is in the log, once for each call; reading is not.
    daemon.wait_for_log("alice DELETE");
    let log = daemon.log();
    let audit: Vec<_> = log.lines().filter(|line| line.contains("audit")).collect();
    assert_eq!(audit.len(), 3, "{audit:#?}");
    assert!(audit[0].contains("alice POST /runs") && audit[0].contains("status=200"), "{}", audit[0]);
    assert!(
        audit[2].contains("alice DELETE /runs/0193a5b0") && audit[2].contains("status=404"),
        "{}",
        audit[2]
    );

    assert!(daemon.stop().success());
    let listed = daemon.builder_of().key_command(&["list", "--json"]);
    let listed: Value = serde_json_from(&listed.stdout_text());
    let key = &listed["keys"][0];
    assert_eq!(
        (&key["principal"], &key["state"], &key["quota"]["concurrency"]),
        (&json!("alice"), &json!("good"), &json!(3))
    );
    assert_eq!(key["principal_usage"]["runs"], 2);
    assert!(key["last_use_at"].is_string(), "{key}");
    let table = daemon.builder_of().key_command(&["list"]).stdout_text();
    assert!(table.contains("alice") && table.contains(&alice[3..15]), "{table}");

    let secret = alice.splitn(3, '_').nth(2).expect("a secret");
    let file = daemon.data_dir().join("keys/keys.json");
    let kept = std::fs::read_to_string(&file).expect("read the keys");
    for text in [&kept, &log, &table, &listed.to_string()] {
        assert!(!text.contains(secret));
    }
    let metadata = std::fs::metadata(&file).expect("look at the keys");
    assert_eq!(
        (metadata.mode() & 0o777, metadata.uid()),
        (0o640, 0),
        "the server may read its keys, not write them"
    );
}

/// The shell commands of the guide, in order, as somebody would type them.
#[test]
fn the_guide_to_keys_does_what_it_says() {
    let daemon = Daemon::start();
    let guide = include_str!("../../docs/KEYS.md");
    let blocks: Vec<&str> =
        guide.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert_eq!(blocks.len(), 4);
    let path = sandglass().parent().expect("a folder").display().to_string();
    let script = format!("set -eu; PATH={path}:$PATH\n{}", blocks.join("sleep 2; echo; echo ----\n"));
    let mut shell = std::process::Command::new("bash");
    shell.arg("-c").arg(script).env("SERVER", daemon.url("")).env("SANDGLASS_DATA_DIR", daemon.data_dir());
    shell.env("TOKEN", "secret");
    let done = Finished::of(&mut shell);
    assert!(done.status.success(), "{}", done.stderr_text());
    let told = done.stdout_text();
    let parts: Vec<&str> = told.split("----").collect();
    assert!(parts[0].contains(r#""stdout":"hello\n""#), "{told}");
    assert!(parts[1].contains("alice") && parts[1].contains("/problems/unauthorized"), "{told}");
    assert!(parts[3].contains(r#""name":"operator""#) && parts[3].contains(r#""runs":1"#), "{told}");
    assert!(done.stderr_text().contains("alice has a login of its own at ghcr.io"), "{}", done.stderr_text());
}

#[test]
fn a_web_page_that_is_allowed_may_send_a_key() {
    let builder = Daemon::builder().host_image().flag("--allowed-origins", "https://judge.example");
    let alice = builder.key(&["alice"]);
    let daemon = builder.start();
    for (origin, allowed) in [("https://judge.example", true), ("https://evil.example", false)] {
        let asked = daemon.request("OPTIONS", "/runs").header("Origin", origin);
        let asked = asked.header("Access-Control-Request-Method", "POST");
        let asked = asked.header("Access-Control-Request-Headers", "authorization,idempotency-key").send();
        assert_eq!(asked.header("access-control-allow-origin"), allowed.then_some(origin));
        let names = asked.header("access-control-allow-headers").unwrap_or_default();
        for name in ["authorization", "content-type", "prefer", "idempotency-key", "last-event-id"] {
            assert!(!allowed || names.split(',').any(|given| given == name), "{name} is not in {names}");
        }
        let refused = daemon.request("POST", "/runs").header("Origin", origin).json(&sh("true")).send();
        assert_eq!(refused.status, if allowed { 401 } else { 403 });
        assert_eq!(refused.header("access-control-allow-origin"), allowed.then_some(origin), "{refused:?}");
        let run =
            daemon.request("POST", "/runs").header("Origin", origin).key(&alice).json(&sh("true")).send();
        assert_eq!(run.status, if allowed { 200 } else { 403 });
    }
}

#[test]
fn without_keys_a_server_is_for_this_machine_only() {
    let place = Folder::new();
    let mut serve = std::process::Command::new(sandglass());
    serve.args(["serve", "--listen", "0.0.0.0:0", "--data-dir"]).arg(place.path());
    let refused = Finished::of(&mut serve);
    assert!(!refused.status.success());
    assert!(refused.stderr_text().contains("sandglass key create"), "{}", refused.stderr_text());
    // A file that nobody can read closes the server rather than opening it.
    let builder = Daemon::builder();
    builder.key(&["alice"]);
    std::fs::write(builder.data_dir().join("keys/keys.json"), "{").expect("break the keys");
    let mut refused = builder.spawn();
    assert!(!refused.wait().success());
    until("it says which file", || refused.log().contains("keys.json"));
}

fn serde_json_from(text: &str) -> Value {
    text.parse().expect("JSON")
}

/// As a Secret brings keys to every machine.
#[test]
fn keys_of_another_machine_are_taken_over_and_what_it_takes_back_is_taken_back() {
    let (there, here) = (Daemon::builder(), Daemon::builder().host_image());
    let (alice, bob) = (there.key(&["alice"]), here.key(&["bob"]));
    let file = there.data_dir().join("keys/keys.json").display().to_string();
    let import = || {
        let done = here.key_command(&["import", &file]);
        assert!(done.status.success(), "{}", done.stderr_text());
    };
    import();
    let daemon = here.clone().start();
    for key in [&alice, &bob] {
        assert_eq!(post(&daemon, key, &sh("echo in")).expect(200)["stdout"], "in\n");
    }
    assert!(there.key_command(&["revoke", &alice]).status.success());
    import();
    until("the key is taken back", || post(&daemon, &alice, &sh("true")).status == 401);
    assert_eq!(post(&daemon, &bob, &sh("true")).status, 200);
    let none = here.key_command(&["import", "/nothing"]);
    assert!(!none.status.success() && none.stderr_text().contains("/nothing"), "{}", none.stderr_text());
}
