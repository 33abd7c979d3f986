//! Category A: attacks on the HTTP API itself, by a client who needs no program inside. After each the
//! service must answer an ordinary run, the host must be as it was, and no answer may have told where
//! on the machine anything is.
//!
//! A-13 (idempotency keys) is in `tests/promises.rs`, A-14 is `tests/openapi`, and what one principal may
//! know of another's is in `strangers.rs` and `tests/principals`.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use support::{Builder, Daemon, Host, Image, Registry, Request, Response, Value, json};

mod egress;
mod wire;

/// A service, and what it looked like before it was attacked.
struct Target {
    daemon: Daemon,
    host: Host,
    data_dir: String,
}

impl Target {
    #[track_caller]
    fn start(builder: Builder) -> Self {
        let daemon = builder.host_image().start();
        // What is made once, at the first run, is no trace of an attack.
        daemon.run(&ordinary());
        let host = daemon.host();
        let data_dir = daemon.data_dir().display().to_string();
        Self { daemon, host, data_dir }
    }

    /// Asks, and looks into the answer for what a stranger should not be told.
    #[track_caller]
    fn ask(&self, id: &str, request: Request) -> Response {
        let response = request.try_send().unwrap_or_else(|error| panic!("{id}: no answer: {error}"));
        self.is_discreet(id, &response.text());
        response
    }

    #[track_caller]
    fn post(&self, id: &str, path: &str, body: &Value) -> Response {
        self.ask(id, self.daemon.request("POST", path).json(body))
    }

    /// Sends bytes as they are and returns all that comes back, with the number of answers in it.
    #[track_caller]
    fn raw(&self, id: &str, parts: &[&[u8]]) -> (usize, String) {
        let mut stream = self.connect();
        // A server that hangs up on nonsense may do so while we still talk.
        let _ = parts.iter().try_for_each(|part| stream.write_all(part));
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        assert!(!read.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock), "{id}: it hangs");
        let answer = String::from_utf8_lossy(&answer).into_owned();
        self.is_discreet(id, &answer);
        (answer.matches("HTTP/1.1 ").count(), answer)
    }

    #[track_caller]
    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.daemon.address()).expect("connect");
        stream.set_read_timeout(Some(Duration::from_secs(20))).expect("set a timeout");
        stream.set_write_timeout(Some(Duration::from_secs(20))).expect("set a timeout");
        stream
    }

    /// where something is, and how the program is made, is for the log only.
    #[track_caller]
    fn is_discreet(&self, id: &str, answer: &str) {
        for secret in [self.data_dir.as_str(), "/home", "src/", ".rs:", "panicked", "stack backtrace"] {
            assert!(!answer.contains(secret), "{id}, A-15: {secret} is in {answer}");
        }
    }

    /// An ordinary client is served, soon, and nothing is left of the attack.
    #[track_caller]
    fn stands(&self, id: &str) {
        self.serves(id);
        self.host.settled().unwrap_or_else(|left| panic!("{id} left on the host:\n{left}"));
        assert!(!self.daemon.log().contains("panicked"), "{id}: {}", self.daemon.log());
    }

    #[track_caller]
    fn serves(&self, id: &str) {
        // Twice: the first may overtake what the attackers have sent.
        for _ in 0..2 {
            self.serves_once(id);
        }
    }

    #[track_caller]
    fn serves_once(&self, id: &str) {
        let asked = Instant::now();
        let run = self.post(id, "/runs", &ordinary()).expect(200);
        assert_eq!((&run["outcome"], &run["exit_code"]), (&json!("exited"), &json!(0)), "{id}: {run:#}");
        let took = asked.elapsed();
        assert!(took < Duration::from_secs(8), "{id}: an ordinary run took {took:?}");
    }

    fn memory_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.daemon.pid())).expect("read");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a size");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
    }
}

fn ordinary() -> Value {
    json!({ "image": "host", "cmd": "true" })
}

#[test]
fn what_names_no_image_is_refused_with_the_reason() {
    let target = Target::start(Daemon::builder());
    let hex = "a".repeat(64);
    for image in [
        "",
        " ",
        "user:pw@host.test/x",
        "http://host.test/x",
        "https://host.test/x:1",
        "file:///etc/passwd",
        "oci:/etc",
        "a b",
        " alpine",
        "alpine\n",
        "alpine\r\nX: y",
        "alpine\0",
        "Alpine",
        "host.test/Alpine",
        "\u{430}lpine",
        "alpine:\u{ff11}",
        "a//b",
        "/a",
        "a/",
        "../a",
        "a/../b",
        "host.test/../x",
        "a:",
        "a@",
        "a:b:c",
        "host.test:0/a",
        "host.test:65536/a",
        "host.test:80:80/a",
        "a@sha256:1",
        "a?x=1",
        "a#b",
        "a%2fb",
        "$(id)",
        "`id`",
        "-rf",
        &format!("a/b@sha256:{hex}%0d%0aX: y"),
        &format!("a/b@sha256:{hex}\r\nX: y"),
        &format!("a/b@sha256:{}", hex.to_uppercase()),
        &"a".repeat(10_000),
        &"a/".repeat(200),
    ] {
        for path in ["/runs", "/images"] {
            let id = format!("A-04 {path} {image:?}");
            let response = target.post(&id, path, &json!({ "image": image }));
            assert_eq!(response.status, 422, "{id}: {}", response.text());
            let problem = response.problem(422, "invalid-request");
            assert_eq!(problem["errors"][0]["pointer"], "/image", "{id}: {problem:#}");
            let detail = problem["errors"][0]["detail"].as_str().expect("words");
            assert!(detail.len() < 1000 && !detail.contains(['\r', '\n']), "{id}: {detail:?}");
        }
    }
    target.stands("A-04");
}

#[test]
fn words_of_a_command_are_words_and_nothing_passes_a_shell() {
    let target = Target::start(Daemon::builder());
    let long = "x".repeat(129 * 1024);
    for (body, pointer) in [
        (json!({ "cmd": "" }), "/cmd"),
        (json!({ "cmd": "true\u{0}id" }), "/cmd"),
        (json!({ "cmd": long }), "/cmd"),
        (json!({ "cmd": 1 }), "/cmd"),
        (json!({ "cmd": ["sh", "-c", "id"] }), "/cmd"),
        (json!({ "cmd": { "sh": "id" } }), "/cmd"),
        (json!({ "args": ["a", "b\u{0}c"] }), "/args/1"),
        (json!({ "args": ["a", long] }), "/args/1"),
        (json!({ "args": ["a", 1] }), "/args/1"),
        (json!({ "args": ["a", null] }), "/args/1"),
        (json!({ "args": "a b" }), "/args"),
        (json!({ "args": vec!["x"; 60_000] }), "/args"),
        (json!({ "args": vec!["x".repeat(100_000); 30] }), "/args"),
        (json!({ "env": { "A": "b\u{0}c" } }), "/env/A"),
        (json!({ "env": { "A\u{0}": "b" } }), "/env/A\u{0}"),
        (json!({ "env": { "": "b" } }), "/env/"),
        (json!({ "env": { "A=B": "c" } }), "/env/A=B"),
        (json!({ "env": { "A": long } }), "/env/A"),
        (json!({ "env": { "A": 1 } }), "/env/A"),
        (json!({ "env": ["A=b"] }), "/env"),
    ] {
        let (mut asked, mut shown) = (ordinary(), body.to_string());
        shown.truncate(60);
        let id = format!("A-06 {shown}");
        asked.as_object_mut().expect("an object").extend(body.as_object().expect("an object").clone());
        let response = target.post(&id, "/runs", &asked);
        assert_eq!(response.status, 422, "{id}: {}", response.text());
        let problem = response.problem(422, "invalid-request");
        assert_eq!(problem["errors"][0]["pointer"], pointer, "{id}: {problem:#}");
    }
    // More values than a body may hold at all.
    let many = json!({ "image": "host", "cmd": "true", "args": vec!["x"; 100_000] });
    target.post("A-06 100000 words", "/runs", &many).problem(422, "invalid-request");
    // What a shell would take for its own is part of a program's name, which nobody has.
    for cmd in ["true; id", "true\nid", "true|id", "$(id)", "`id`", "true ", "sh -c id", "-c", "\u{202e}eurt"]
    {
        let run = target.post("A-06", "/runs", &json!({ "image": "host", "cmd": cmd })).expect(200);
        assert_eq!(run["outcome"], "start_failed", "A-06 {cmd:?}: {run:#}");
    }
    let args =
        ["$(id)", "`id`", "a\nb", "; id", "*", "~", "\u{1b}[31m", "--", "", "%s%n", &"y".repeat(120 * 1024)];
    let mut words = vec!["-c", "import sys, json; print(json.dumps(sys.argv[1:]))"];
    words.extend(args);
    let run = target
        .post("A-06", "/runs", &json!({ "image": "host", "cmd": "python3", "args": words }))
        .expect(200);
    let shown: Value = serde_json(&run["stdout"]);
    assert_eq!(shown, json!(args), "A-06: words arrive as they were sent");
    target.stands("A-06");
}

/// What a program printed, as JSON.
fn serde_json(text: &Value) -> Value {
    text.as_str().expect("text").parse().expect("JSON")
}

#[test]
fn a_web_page_can_neither_reach_the_service_by_a_name_of_its_own_nor_ask_through_a_browser() {
    let target = Target::start(Daemon::builder());
    let request = |method: &str| target.daemon.request(method, "/runs");
    for host in [
        "evil.test",
        "evil.test:80",
        "127.0.0.1.evil.test",
        "localhost.evil.test",
        "evil.test:127.0.0.1",
        "127.0.0.1@evil.test",
        "localhost, evil.test",
        "localhost evil.test",
        "",
        "[::1",
        "0x7f.1.evil.test",
    ] {
        let id = format!("A-09 Host: {host}");
        let response = target.ask(&id, request("GET").header("Host", host));
        assert!([400, 403].contains(&response.status), "{id}: {} {}", response.status, response.text());
    }
    for second in ["localhost", "evil.test"] {
        let id = format!("A-09 two hosts, {second} last");
        let first = if second == "localhost" { "evil.test" } else { "localhost" };
        let response = target.ask(&id, request("GET").header("Host", first).header("Host", second));
        assert!([400, 403].contains(&response.status), "{id}: {} {}", response.status, response.text());
    }
    for (name, value) in [
        ("Origin", "https://evil.test"),
        ("Origin", "null"),
        ("Origin", "http://localhost:1"),
        ("Sec-Fetch-Site", "cross-site"),
    ] {
        let id = format!("A-09 {name}: {value}");
        for method in ["GET", "POST", "OPTIONS"] {
            let asked = request(method).header(name, value).body(ordinary().to_string());
            let response = target.ask(&id, asked.header("Access-Control-Request-Method", "POST"));
            assert_eq!(response.status, 403, "{id}: {}", response.text());
            assert!(response.headers.iter().all(|(name, _)| !name.starts_with("access-control")), "{id}");
        }
    }
    // A GET stays a GET, whatever its headers, its parameters or its body say.
    for (path, header) in [
        ("/runs", "X-HTTP-Method-Override"),
        ("/runs", "X-HTTP-Method"),
        ("/runs", "X-Method-Override"),
        ("/runs?_method=POST", "X-Nothing"),
    ] {
        let asked = target.daemon.request("GET", path).header(header, "POST").body(ordinary().to_string());
        let response = target.ask("A-09", asked);
        assert!([200, 422].contains(&response.status), "A-09 {header}: {}", response.text());
        assert!(response.json()["outcome"].is_null(), "A-09 {header} has run something: {}", response.text());
    }
    // Without keys there are no principals: a token is neither asked for nor looked at. What a wrong or an
    // expired one is answered, and in what time, can be tested when there are keys.
    for (path, token) in
        [("/runs", "Bearer wrong"), ("/runs", "Basic !"), ("/runs?access_token=x", "Bearer x")]
    {
        let asked = target.daemon.request("POST", path).header("Authorization", token).json(&ordinary());
        let response = target.ask("A-09", asked);
        assert!([200, 422].contains(&response.status), "A-09 {path} {token}: {}", response.text());
    }
    target.stands("A-09");
}

#[test]
fn nobody_gets_privileges_by_asking_for_them() {
    let target = Target::start(Daemon::builder());
    for (field, value) in [
        ("mounts", json!(["/:/host"])),
        ("volumes", json!({ "/": "/host" })),
        ("binds", json!(["/etc:/etc"])),
        ("devices", json!(["/dev/kvm"])),
        ("privileged", json!(true)),
        ("Privileged", json!(true)),
        ("caps", json!(["CAP_SYS_ADMIN"])),
        ("cap_add", json!(["ALL"])),
        ("security_opt", json!(["seccomp=unconfined"])),
        ("seccomp", json!("unconfined")),
        ("network", json!("host")),
        ("network", json!("bridge")),
        ("network", json!("container:1")),
        ("pid", json!("host")),
        ("ipc", json!("host")),
        ("userns", json!("host")),
        ("cgroup_parent", json!("/")),
        ("runtime", json!("runc")),
        ("hooks", json!({ "prestart": [{ "path": "/bin/sh" }] })),
        ("sysctls", json!({ "kernel.core_pattern": "|/x" })),
        ("credentials", json!({ "user": "x" })),
        ("launcher", json!("/bin/sh")),
        ("data_dir", json!("/")),
        ("__proto__", json!({ "privileged": true })),
        ("profile", json!("compat")),
        ("profile", json!("none")),
        ("user", json!("4294967295")),
        ("workdir", json!("../../etc")),
        ("limits/memory_bytes", json!(1_u64 << 62)),
        ("limits/memory_bytes", json!(-1)),
        ("limits/wall_time_ms", json!(0)),
        ("limits/processes", json!(10_000_000)),
        ("limits/cpus", json!(1e9)),
        ("limits/unlimited", json!(true)),
        ("files/0/mode", json!("4755")),
        ("files/0/owner", json!("0:0")),
        ("files/0/symlink", json!("/etc/passwd")),
    ] {
        let id = format!("A-10 {field}: {value}");
        let mut body = json!({
            "image": "host", "cmd": "true", "limits": {}, "files": [{ "path": "x", "text": "" }],
        });
        match field.split('/').collect::<Vec<_>>()[..] {
            ["limits", name] => body["limits"][name] = value,
            ["files", _, name] => body["files"][0][name] = value,
            _ => body[field] = value,
        }
        let response = target.post(&id, "/runs", &body);
        assert_eq!(response.status, 422, "{id}: {}", response.text());
        let problem = response.problem(422, "invalid-request");
        assert_eq!(problem["errors"][0]["pointer"], format!("/{field}"), "{id}: {problem:#}");
    }
    for query in ["?privileged=true", "?network=host"] {
        let id = format!("A-10 {query}");
        let response = target.ask(&id, target.daemon.request("GET", &format!("/runs{query}")));
        response.problem(422, "invalid-request");
    }
    target.stands("A-10");
}

#[test]
fn paths_lead_nowhere_but_to_calls() {
    let target = Target::start(Daemon::builder());
    let deep = format!("/runs/{}etc/passwd", "%2e%2e%2f".repeat(20));
    for path in [
        "/runs/../admin",
        "/runs/%2e%2e%2fadmin",
        "/runs/%2e%2e/%2e%2e/etc/passwd",
        "/runs/..%2f..%2fetc%2fpasswd",
        "/runs/..%5c..%5cetc",
        "/runs/%252e%252e%252f",
        "/runs/%c0%ae%c0%ae%c0%af",
        "/runs/%00",
        "/runs/%0d%0aX:%20y",
        "/runs/%ff",
        "/runs/..;/admin",
        "/runs/0193a5b0-0000-7000-8000-000000000000%00.json",
        "/runs/0193a5b0-0000-7000-8000-000000000000/../../metrics",
        &deep,
        "/images/../../etc/passwd",
        "/images/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "/images//etc/passwd",
        "/images/file:///etc/passwd",
        "/problems/../../etc/passwd",
        "/problems/%2e%2e%2fconfig",
        "/docs/../../etc/passwd",
        "/docs/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "/docs/..%5c..%5cetc",
        "//etc/passwd",
        "//runs",
        "/admin",
        "/debug/pprof/",
        "/.git/config",
        "/.env",
    ] {
        for method in ["GET", "DELETE"] {
            let id = format!("A-11 {method} {path}");
            let response = target.ask(&id, target.daemon.request(method, path));
            let refused = response.status == 404 || method == "DELETE" && response.status == 405;
            assert!(refused, "{id}: {} {}", response.status, response.text());
            assert!(!response.text().contains("root:"), "{id}: {}", response.text());
            assert!(response.header("x").is_none(), "{id}: a header of the attacker's");
        }
    }
    target.stands("A-11");
}

#[test]
fn one_client_fills_the_queue_and_no_more() {
    let target = Target::start(Daemon::builder().flag("--slots", 1).flag("--queue-capacity", 50));
    let sleeper = json!({ "image": "host", "cmd": "sleep", "args": ["60"] });
    let mut ids = Vec::new();
    for _ in 0..400 {
        let asked = target.daemon.request("POST", "/runs").header("Prefer", "respond-async").json(&sleeper);
        let response = target.ask("A-12", asked);
        if response.status == 202 {
            ids.push(response.json()["id"].as_str().expect("an id").to_owned());
            continue;
        }
        let pause = response.header("retry-after").and_then(|text| text.parse::<u64>().ok());
        assert!(pause.is_some_and(|seconds| (1..=3600).contains(&seconds)), "A-12: {response:?}");
        response.problem(429, "queue-full");
    }
    assert!((50..=51).contains(&ids.len()), "A-12: {} were taken", ids.len());
    // What needs no slot is answered all the same. That another principal is still served can be tested
    // when there are principals.
    for path in ["/healthz", "/readyz", "/metrics", "/info"] {
        assert_eq!(target.ask("A-12", target.daemon.request("GET", path)).status, 200, "A-12 {path}");
    }
    for id in ids.iter().rev() {
        let run = target.ask("A-12", target.daemon.request("DELETE", &format!("/runs/{id}"))).expect(200);
        assert_eq!(run["outcome"], "cancelled", "A-12: {run:#}");
    }
    target.stands("A-12");
}

#[test]
fn what_anybody_may_read_tells_nothing_of_the_machine() {
    let target = Target::start(Daemon::builder());
    let missing =
        json!({ "image": "host", "cmd": "/nonexistent", "workdir": "/proc/self", "user": "nobody-here" });
    target.post("A-15", "/runs", &missing);
    for path in
        ["/healthz", "/readyz", "/metrics", "/info", "/openapi.json", "/docs", "/docs/", "/images", "/runs"]
    {
        let response = target.ask(&format!("A-15 {path}"), target.daemon.request("GET", path));
        assert!(response.status < 400, "A-15 {path}: {}", response.text());
        assert!(
            response.header("server").is_none() && response.header("x-powered-by").is_none(),
            "A-15 {path}"
        );
    }
    // What fails on our side is told with its name; where on the disk it failed is for the log.
    let registry = Registry::empty();
    registry.push("busybox", "latest", &Image::busybox());
    let broken = Target::start(Daemon::builder().registry(&registry));
    std::fs::remove_dir_all(broken.daemon.data_dir().join("layers")).expect("lose the layers");
    let response = broken.post("A-15", "/images", &json!({ "image": registry.image("busybox") }));
    assert!(!response.problem(500, "store-failed")["detail"].to_string().contains('/'), "{response:?}");
    // Metrics name no run, no image and nothing that a client has said.
    let run = target.post(
        "A-15",
        "/runs",
        &json!({ "image": "host", "cmd": "true", "labels": { "k": "tell-tale" } }),
    );
    let id = run.json()["id"].as_str().expect("an id").to_owned();
    target.ask("A-15", target.daemon.request("GET", "/tell-tale").header("X-Request-Id", "tell-tale"));
    let metrics = target.daemon.get("/metrics").text();
    assert!(!metrics.contains("tell-tale") && !metrics.contains(&id), "A-15: {metrics}");
    target.stands("A-15");
}
