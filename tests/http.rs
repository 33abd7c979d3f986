//! The HTTP side of the contract: what is accepted, what is refused and in which words, who waits for
//! whom.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use support::{Daemon, Response, Value, json, until};

fn sh(script: &str) -> Value {
    json!({ "image": "host", "cmd": "sh", "args": ["-c", script] })
}

/// Sends bytes as they are and returns the whole answer.
fn raw(daemon: &Daemon, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(daemon.address()).expect("connect");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("set a timeout");
    stream.write_all(bytes).expect("send");
    let mut answer = Vec::new();
    // A server that hangs up on nonsense may do so while we still read.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

fn post(daemon: &Daemon, headers: &[(&str, &str)], body: &str) -> Response {
    let request = daemon.request("POST", "/runs").body(body);
    headers.iter().fold(request, |request, (name, value)| request.header(name, value)).send()
}

const JSON: (&str, &str) = ("Content-Type", "application/json");
const TRUE: &str = r#"{"image":"host","cmd":"true"}"#;

#[test]
fn a_run_is_waited_for_or_followed_by_its_id() {
    let daemon = Daemon::start();
    let waited = daemon.post("/runs", &sh("echo out; echo err >&2; exit 4"));
    assert_eq!(waited.header("content-type"), Some("application/json"));
    assert!(waited.header("server-timing").is_some_and(|value| value.contains("setup;dur=")));
    let run = waited.expect(200);
    assert_eq!(
        (run["stdout"].as_str(), run["stderr"].as_str(), run["exit_code"].as_u64()),
        (Some("out\n"), Some("err\n"), Some(4))
    );
    let again = daemon.show(run["id"].as_str().expect("an id"));
    assert_eq!(
        (&again["stdout"], &again["outcome"], &again["finished_at"]),
        (&run["stdout"], &run["outcome"], &run["finished_at"])
    );

    let begun = daemon
        .request("POST", "/runs")
        .header("Prefer", "respond-async")
        .json(&sh("sleep 0.5; echo late"))
        .send();
    assert_eq!(begun.status, 202);
    let id = begun.json()["id"].as_str().expect("an id").to_owned();
    assert_eq!(begun.header("location"), Some(format!("/runs/{id}").as_str()));
    assert_ne!(begun.json()["state"], "finished");
    let polled = daemon.request("GET", &format!("/runs/{id}")).header("Prefer", "wait=20").send().expect(200);
    assert_eq!((polled["state"].as_str(), polled["stdout"].as_str()), (Some("finished"), Some("late\n")));

    // `wait` answers at its time, and the run goes on.
    let asked = Instant::now();
    let early =
        daemon.request("POST", "/runs").header("Prefer", "wait=1").json(&sh("sleep 2; echo there")).send();
    assert!(asked.elapsed() < Duration::from_millis(1900));
    let early = early.expect(202);
    let run = daemon.wait_for_state(early["id"].as_str().expect("an id"), "finished");
    assert_eq!(run["stdout"], "there\n");
}

#[test]
fn ids_that_nobody_has_are_not_found() {
    let daemon = Daemon::start();
    for id in ["0193a5b0-0000-7000-8000-000000000000", "x", "..%2F..%2Fetc", "%00", "0193A5B0"] {
        daemon.get(&format!("/runs/{id}")).problem(404, "run-not-found");
        daemon.delete(&format!("/runs/{id}")).problem(404, "run-not-found");
    }
    daemon.get("/nothing").problem(404, "not-found");
    daemon.get("/runs/../admin").problem(404, "not-found");
    let problem = daemon.request("PATCH", "/runs").send();
    assert!(problem.header("allow").is_some_and(|allow| allow.contains("POST")), "{problem:?}");
    problem.problem(405, "method-not-allowed");
}

#[test]
fn runs_are_listed_newest_first_and_filtered() {
    let daemon = Daemon::start();
    for code in [0, 1, 2] {
        let mut body = sh(&format!("exit {code}"));
        body["labels"] = json!({ "code": code.to_string() });
        daemon.run(&body);
    }
    daemon.run(&json!({ "image": "host", "cmd": "nope" }));
    let codes = |query: &str| -> Vec<Value> {
        let listed = daemon.get(&format!("/runs{query}")).expect(200);
        listed["runs"].as_array().expect("a list").iter().map(|run| run["exit_code"].clone()).collect()
    };
    assert_eq!(codes(""), [json!(null), json!(2), json!(1), json!(0)]);
    assert_eq!(codes("?limit=2"), [json!(null), json!(2)]);
    assert_eq!(codes("?outcome=exited"), [json!(2), json!(1), json!(0)]);
    assert_eq!(codes("?outcome=start_failed&state=finished"), [json!(null)]);
    assert_eq!(codes("?label=code:1"), [json!(1)]);
    for query in ["?limit=0", "?limit=501", "?limit=x", "?state=done", "?outcome=ok", "?what=1"] {
        daemon.get(&format!("/runs{query}")).problem(422, "invalid-request");
    }
}

#[test]
fn what_is_no_json_is_told_from_json_that_is_wrong() {
    let daemon = Daemon::start();
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    for body in [
        "",
        "{",
        "nope",
        "{\"image\":\"host\"",
        "{\"image\":\"host\",}",
        "{\"a\":1,\"a\":2}",
        "\u{feff}{}",
        "{} {}",
        "{'image':'host'}",
        "{\"image\":\"\u{1}\"}",
        "[1,2",
        &deep,
    ] {
        let shown: String = body.chars().take(40).collect();
        let response = post(&daemon, &[JSON], body);
        assert_eq!(response.status, 400, "{shown:?}: {}", response.text());
        response.problem(400, "not-json");
    }
    let response =
        daemon.request("POST", "/runs").header(JSON.0, JSON.1).body(b"{\"image\":\"\xff\"}".to_vec()).send();
    response.problem(400, "not-json");
    // Every value that is wrong is named, all at once.
    let body = json!({
        "image": 5, "cmd": ["sh"], "args": "x", "env": { "A=B": "c", "D": 1 }, "limits": { "wall_time_ms": 0, "x": 1 },
        "mounts": ["/:/host"], "privileged": true, "network": "host", "priority": 5000, "files": [{ "path": "" }],
    });
    let problem = daemon.post("/runs", &body).problem(422, "invalid-request");
    let pointers: Vec<&str> = problem["errors"]
        .as_array()
        .expect("errors")
        .iter()
        .filter_map(|error| error["pointer"].as_str())
        .collect();
    for pointer in ["/image", "/cmd", "/args", "/env/D", "/limits/x", "/mounts", "/privileged", "/network"] {
        assert!(pointers.contains(&pointer), "{pointer} is not among {pointers:?}");
    }
    for (body, pointer) in [
        (json!({ "image": "host", "cmd": "a\u{0}b" }), "/cmd"),
        (json!({ "image": "host", "cmd": "true", "args": ["x".repeat(200_000)] }), "/args/0"),
        (json!({ "image": "host", "cmd": "true", "args": vec!["x"; 20_000] }), "/args"),
        (json!({ "image": "host", "cmd": "true", "env": { "A=B": "c" } }), "/env/A=B"),
        (json!({ "image": "host", "cmd": "true", "user": "70000" }), "/user"),
        (json!({ "image": "host", "cmd": "true", "user": "4294967296" }), "/user"),
        (json!({ "image": "host", "cmd": "true", "user": "1:2:3" }), "/user"),
        (json!({ "image": "host", "cmd": "true", "stdin": { "base64": "?" } }), "/stdin/base64"),
        (json!({ "image": "host", "cmd": "true", "stdin": { "file": "sha256:x" } }), "/stdin/file"),
        (json!({ "image": "host", "cmd": "true", "workdir": "relative" }), "/workdir"),
        (json!({ "image": "host", "cmd": "true", "files": [{ "path": "a" }] }), "/files/0"),
        (
            json!({ "image": "host", "cmd": "true", "files": [{ "path": "a", "text": "", "mode": "4755" }] }),
            "/files/0/mode",
        ),
        (json!({ "image": "host", "cmd": "true", "profile": "compat" }), "/profile"),
        (json!({ "image": "host", "cmd": "true", "outputs": [""] }), "/outputs/0"),
        (json!({ "image": "host", "cmd": "true", "labels": { "a b": "c" } }), "/labels/a b"),
    ] {
        let problem = daemon.post("/runs", &body).problem(422, "invalid-request");
        assert_eq!(problem["errors"][0]["pointer"], pointer, "{problem:#}");
    }
}

#[test]
fn headers_decide_who_may_ask_and_in_what() {
    let daemon = Daemon::start();
    let own = format!("http://{}", daemon.address());
    for headers in [
        &[JSON][..],
        &[],
        &[("Content-Type", "application/x-www-form-urlencoded")],
        &[("Content-Type", "application/json; charset=utf-8")],
        &[JSON, ("Origin", own.as_str())],
        &[JSON, ("Sec-Fetch-Site", "same-origin")],
        &[JSON, ("Host", "localhost")],
        &[JSON, ("Accept", "*/*")],
    ] {
        assert_eq!(post(&daemon, headers, TRUE).status, 200, "{headers:?}");
    }
    for (headers, status, name) in [
        (&[("Content-Type", "text/plain")][..], 415, "unsupported-media-type"),
        (&[("Content-Type", "multipart/form-data")], 415, "unsupported-media-type"),
        (&[JSON, ("Content-Encoding", "gzip")], 415, "unsupported-media-type"),
        (&[JSON, ("Accept", "text/html")], 406, "not-acceptable"),
        (&[JSON, ("Origin", "https://evil.example")], 403, "foreign-origin"),
        (&[JSON, ("Origin", "null")], 403, "foreign-origin"),
        (&[JSON, ("Sec-Fetch-Site", "cross-site")], 403, "foreign-origin"),
        (&[JSON, ("Host", "evil.example")], 403, "unknown-host"),
    ] {
        let response = post(&daemon, headers, TRUE);
        assert_eq!(response.status, status, "{headers:?}: {}", response.text());
        response.problem(status, name);
    }
    let named = daemon.request("GET", "/healthz").header("X-Request-Id", "mine-1.2_3").send();
    assert_eq!(named.header("x-request-id"), Some("mine-1.2_3"));
    let odd = daemon.request("GET", "/nope").header("X-Request-Id", "<script>").send();
    let given = odd.header("x-request-id").expect("an id").to_owned();
    assert_ne!(given, "<script>");
    assert_eq!(odd.problem(404, "not-found")["instance"], given);
}

#[test]
fn bodies_and_headers_have_bounds_in_size_and_time() {
    let daemon = Daemon::builder()
        .host_image()
        .flag("--body-bytes-max", 10_000)
        .flag("--body-timeout-ms", 1000)
        .flag("--header-timeout-ms", 1000)
        .start();
    let large = json!({ "image": "host", "cmd": "true", "stdin": "x".repeat(20_000) });
    daemon.post("/runs", &large).problem(413, "body-too-large");
    // Chunked, and so without a length to look at first.
    let chunk = format!("{:x}\r\n{}\r\n", 6000, "x".repeat(6000));
    let head = "POST /runs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
    let answer = raw(
        &daemon,
        format!("{head}Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n{chunk}{chunk}0\r\n\r\n")
            .as_bytes(),
    );
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    let asked = Instant::now();
    let answer = raw(&daemon, format!("{head}Content-Length: 100\r\nConnection: close\r\n\r\n{{").as_bytes());
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(asked.elapsed() < Duration::from_secs(10));
    // Headers that never end, and headers without end.
    let asked = Instant::now();
    let answer = raw(&daemon, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Slow: ");
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(asked.elapsed() < Duration::from_secs(10));
    let answer = raw(
        &daemon,
        format!("GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Big: {}\r\n\r\n", "x".repeat(40_000))
            .as_bytes(),
    );
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    // Both lengths at once is how requests are smuggled.
    let smuggled = format!(
        "{head}Content-Length: 5\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n0\r\n\r\n"
    );
    let answer = raw(&daemon, smuggled.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert_eq!(daemon.get("/healthz").status, 200);
}

#[test]
fn a_full_queue_says_when_to_come_back_and_a_higher_priority_goes_first() {
    let daemon = Daemon::builder().host_image().flag("--slots", 1).flag("--queue-capacity", 3).start();
    let blocker = daemon.run_async(&sh("sleep 2"));
    daemon.wait_for_state(&blocker, "running");
    let queued: Vec<String> = [0, -5, 10]
        .iter()
        .map(|priority| {
            let mut body = sh("date +%s%N");
            body["priority"] = json!(priority);
            daemon.run_async(&body)
        })
        .collect();
    let refused = daemon.post("/runs", &sh("true"));
    let seconds: u64 =
        refused.header("retry-after").and_then(|value| value.parse().ok()).expect("Retry-After in seconds");
    assert!((1..=3600).contains(&seconds));
    assert!(refused.problem(429, "queue-full")["retry_after_ms"].as_u64().is_some_and(|ms| ms > 0));
    assert_eq!(daemon.metric("sandglass_queue_depth"), 3.0);
    let started: Vec<u128> = queued
        .iter()
        .map(|id| {
            daemon.wait_for_state(id, "finished")["stdout"]
                .as_str()
                .expect("text")
                .trim()
                .parse()
                .expect("a time")
        })
        .collect();
    assert!(started[2] < started[0] && started[0] < started[1], "{started:?}");
    // A queued run can be cancelled without ever having started.
    let blocker = daemon.run_async(&sh("sleep 1"));
    daemon.wait_for_state(&blocker, "running");
    let id = daemon.run_async(&sh("echo never"));
    let run = daemon.delete(&format!("/runs/{id}")).expect(200);
    assert_eq!((run["outcome"].as_str(), run["started_at"].as_str()), (Some("cancelled"), None));
}

#[test]
fn a_hundred_at_once_over_two_slots_all_get_their_own_answer() {
    let daemon = Daemon::builder().host_image().flag("--slots", 2).start();
    daemon.run(&sh("true"));
    let host = daemon.host();
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..100)
            .map(|number| {
                let request = daemon
                    .request("POST", "/runs")
                    .json(&sh(&format!("echo {number}; exit {number}")))
                    .patience(Duration::from_secs(100));
                scope.spawn(move || (number, request.send().expect(200)))
            })
            .collect();
        for run in runs {
            let (number, run) = run.join().expect("an answer");
            assert_eq!(
                (run["stdout"].as_str(), run["exit_code"].as_u64()),
                (Some(format!("{number}\n").as_str()), Some(number))
            );
        }
    });
    host.assert_unchanged();
}

#[test]
fn a_run_that_is_not_waited_for_outlives_its_client() {
    let daemon = Daemon::start();
    for prefer in ["respond-async", "wait=30"] {
        let mut body = sh("sleep 1; echo done");
        body["labels"] = json!({ "prefer": prefer.replace('=', "-") });
        let pending =
            daemon.request("POST", "/runs").header("Prefer", prefer).json(&body).begin().expect("send");
        let find = || daemon.get("/runs?limit=1").json()["runs"][0].clone();
        until("the run runs", || {
            find()["labels"]["prefer"] == prefer.replace('=', "-") && find()["state"] == "running"
        });
        let id = find()["id"].as_str().expect("an id").to_owned();
        drop(pending);
        assert_eq!(daemon.wait_for_state(&id, "finished")["stdout"], "done\n", "{prefer}");
    }
}

#[test]
fn a_command_gets_what_the_request_says_and_nothing_else() {
    let daemon = Daemon::start();
    let args = ["a b", "", "'\"$(id)`", "-n", "ü\n\t", "*"];
    let print = "import sys,json,os; print(json.dumps([sys.argv[1:], dict(os.environ), os.getcwd(), sys.stdin.read()]))";
    let mut all = vec!["-c", print];
    all.extend(args);
    let run = daemon.run(&json!({
        "image": "host", "cmd": "python3", "args": all, "env": { "KEY": "a=b c", "EMPTY": "" }, "workdir": "/made/here",
        "stdin": "line\n", "user": "1000:100",
    }));
    let shown: Value = serde_json::from_str(run["stdout"].as_str().expect("text")).expect("JSON");
    assert_eq!(shown[0], json!(args));
    let mut env = shown[1].as_object().expect("variables").clone();
    assert!(env.remove("PATH").is_some() && env.remove("HOME").is_some());
    env.remove("LC_CTYPE"); // Python's own.
    assert_eq!(Value::Object(env), json!({ "KEY": "a=b c", "EMPTY": "" }));
    assert_eq!((shown[2].as_str(), shown[3].as_str()), (Some("/made/here"), Some("line\n")));

    let files = json!([
        { "path": "rel/a.txt", "text": "relative" }, { "path": "/tmp/abs", "base64": "AP8=", "mode": "0600" },
        { "path": "run.sh", "text": "#!/bin/sh\nstat -c '%a %u %g %n' rel rel/a.txt /tmp/abs run.sh; od -An -tx1 /tmp/abs; cat rel/a.txt", "mode": "0755" },
    ]);
    let run = daemon.run(
        &json!({ "image": "host", "cmd": "./run.sh", "files": files, "workdir": "/w", "user": "1000:100" }),
    );
    assert_eq!(
        run["stdout"],
        "755 1000 100 rel\n644 1000 100 rel/a.txt\n600 1000 100 /tmp/abs\n755 1000 100 run.sh\n 00 ff\nrelative"
    );
}

#[test]
fn output_is_text_where_it_is_text_and_base64_where_it_is_not() {
    let daemon = Daemon::start();
    let run = daemon.run(&sh("printf 'ü\\000\\033[31m\\342\\200\\250'; printf '\\377' >&2"));
    assert_eq!(
        (run["stdout"].as_str(), run["stdout_encoding"].as_str()),
        (Some("ü\0\u{1b}[31m\u{2028}"), Some("utf-8"))
    );
    assert_eq!((run["stderr"].as_str(), run["stderr_encoding"].as_str()), (Some("/w=="), Some("base64")));
    let mut body = sh("echo hi");
    body["output_encoding"] = json!("base64");
    let run = daemon.run(&body);
    assert_eq!((run["stdout"].as_str(), run["stdout_encoding"].as_str()), (Some("aGkK"), Some("base64")));
}

#[test]
fn a_server_says_what_it_is() {
    let daemon = Daemon::builder().host_image().flag("--slots", 3).start();
    assert_eq!(daemon.get("/healthz").text(), "ok\n");
    assert_eq!(daemon.get("/readyz").text(), "ready\n");
    let info = daemon.get("/info").expect(200);
    assert_eq!((info["slots"]["total"].as_u64(), info["profiles"].clone()), (Some(3), json!(["strict"])));
    let walls = info["walls"].as_array().expect("walls");
    for name in [
        "namespaces",
        "ids",
        "root",
        "layers",
        "capabilities",
        "seccomp",
        "landlock",
        "proc",
        "devices",
        "cgroup_memory",
        "cgroup_pids",
        "cgroup_cpu",
        "kill",
    ] {
        let wall = walls.iter().find(|wall| wall["name"] == name).unwrap_or_else(|| panic!("no wall {name}"));
        assert!(["up", "weaker", "down"].contains(&wall["state"].as_str().expect("a state")));
    }
    let page = daemon.get("/docs");
    let page = daemon.get(page.header("location").expect("where the page is"));
    assert_eq!(page.status, 200);
    let loads: Vec<_> = page
        .text()
        .split('"')
        .filter(|text| text.starts_with("http://") || text.starts_with("https://") || text.starts_with("//"))
        .map(str::to_owned)
        .collect();
    let foreign: Vec<_> = loads
        .iter()
        .filter(|url| {
            page.text().contains(&format!("src=\"{url}\""))
                || page.text().contains(&format!("rel=\"stylesheet\" href=\"{url}\""))
        })
        .collect();
    assert!(foreign.is_empty(), "the page needs the network: {foreign:?}");
    assert_eq!(
        daemon.get("/openapi.json").expect(200)["openapi"].as_str().map(|version| &version[..2]),
        Some("3.")
    );
    let told = daemon.get("/problems/queue-full").expect(200);
    assert_eq!(told["status"], 429);
    daemon.get("/problems/nope").problem(404, "not-found");
}

#[test]
fn one_connection_serves_many_requests() {
    let daemon = Daemon::start();
    let mut stream = TcpStream::connect(daemon.address()).expect("connect");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("set a timeout");
    for _ in 0..3 {
        let request =
            format!("POST /runs HTTP/1.1\r\nHost: localhost\r\nContent-Length: {}\r\n\r\n{TRUE}", TRUE.len());
        stream.write_all(request.as_bytes()).expect("send");
        let mut answer = Vec::new();
        let mut byte = [0];
        while !answer.ends_with(b"\r\n\r\n") {
            stream.read_exact(&mut byte).expect("read");
            answer.push(byte[0]);
        }
        let head = String::from_utf8(answer).expect("text").to_lowercase();
        assert!(head.starts_with("http/1.1 200"), "{head}");
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
        let mut body = vec![0; length.parse().expect("a number")];
        stream.read_exact(&mut body).expect("read");
        assert_eq!(serde_json::from_slice::<Value>(&body).expect("JSON")["outcome"], "exited");
    }
}
