//! Category A: attacks on the HTTP API itself, by a client who needs no program inside. After each the
//! service must answer an ordinary run, the host must be as it was, and no answer may have told where
//! on the machine anything is.
//!
//! A-13 (idempotency keys) and the rows about other principals need keys, which a later version brings;
//! until then everybody who reaches the socket is the same client. A-14 is `tests/openapi.rs`.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit};
use support::{Builder, Daemon, Host, Request, Response, Value, json};

mod egress;

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

    /// A-15: where something is, and how the program is made, is for the log only.
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

/// `POST /runs` on the wire, up to where its own headers begin.
const POST: &str = "POST /runs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";

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
fn bodies_that_are_huge_endless_packed_or_ambiguous_are_refused_fast() {
    let target = Target::start(Daemon::builder());
    let before = target.memory_bytes();
    let asked = Instant::now();
    let gib = "Content-Length: 1073741824\r\n";
    for (id, heads) in [("announced", ""), ("expected", "Expect: 100-continue\r\n")] {
        let (answers, text) =
            target.raw(&format!("A-07 {id}"), &[format!("{POST}{gib}{heads}\r\n").as_bytes()]);
        assert!(answers == 1 && text.starts_with("HTTP/1.1 413"), "A-07 {id}: {text}");
    }
    // It never ends, and is hung up on once it is longer than any body may be.
    let chunk = format!("{:x}\r\n{}\r\n", 1 << 20, " ".repeat(1 << 20));
    let mut parts = vec![chunk.as_bytes(); 200];
    let head = format!("{POST}Transfer-Encoding: chunked\r\n\r\n");
    parts.insert(0, head.as_bytes());
    let (_, text) = target.raw("A-07 endless", &parts);
    assert!(text.is_empty() || text.starts_with("HTTP/1.1 413"), "A-07 endless: {text}");
    let deep =
        [r#"{"image":"host","cmd":"true","x":"#, &"[".repeat(100_000), &"]".repeat(100_000), "}"].concat();
    let objects = format!("{}1{}", r#"{"a":"#.repeat(100_000), "}".repeat(100_000));
    let values = format!("[{}0]", "0,".repeat(1_000_000));
    for (id, headers, body, status) in [
        ("deep arrays", "", deep.as_bytes(), 400),
        ("deep objects", "", objects.as_bytes(), 400),
        ("open arrays", "", "[".repeat(5_000_000).as_bytes(), 400),
        ("many values", "", values.as_bytes(), 422),
        ("a key twice", "", br#"{"image":"host","cmd":"true","cmd":"id"}"#, 400),
        ("a key twice, written otherwise", "", br#"{"image":"host","cmd":"true","c\u006dd":"id"}"#, 400),
        ("a mark", "", "\u{feff}{}".as_bytes(), 400),
        ("UTF-16", "", b"{\0\"\0i\0\"\0", 400),
        ("not UTF-8", "", b"{\"image\":\"\xff\"}", 400),
        ("half a surrogate", "", br#"{"image":"\ud800"}"#, 400),
        ("two values", "", b"{} {}", 400),
        ("a number beyond all", "", br#"{"image":"host","cmd":"true","priority":1e999}"#, 422),
        ("gzip", "Content-Encoding: gzip\r\n", b"\x1f\x8b\x08", 415),
        ("gzip under identity", "Content-Encoding: identity, gzip\r\n", b"{}", 415),
        ("a form", "Content-Type: multipart/form-data; boundary=x\r\n", b"--x--", 415),
        ("XML", "Content-Type: text/xml\r\n", b"<!DOCTYPE x SYSTEM 'file:///etc/passwd'>", 415),
        ("a type without words", "Content-Type: \r\n", b"{}", 415),
    ] {
        let id = format!("A-07 {id}");
        let type_of = if headers.contains("Type") { "" } else { "Content-Type: application/json\r\n" };
        let head =
            format!("POST /runs HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{type_of}{headers}");
        let head = format!("{head}Content-Length: {}\r\n\r\n", body.len());
        let (answers, text) = target.raw(&id, &[head.as_bytes(), body]);
        assert!(answers == 1 && text.starts_with(&format!("HTTP/1.1 {status} ")), "{id}: {text}");
    }
    let took = asked.elapsed();
    assert!(took < Duration::from_secs(15), "A-07: took {took:?}");
    let grown = target.memory_bytes().saturating_sub(before);
    assert!(grown < 128 << 20, "A-07: the service has grown by {grown} bytes");
    target.stands("A-07");
}

#[test]
fn clients_that_are_slow_or_say_nothing_keep_nobody_else_waiting() {
    let target = Target::start(Daemon::builder());
    // Other tests of this program need descriptors as well.
    let files = getrlimit(Resource::RLIMIT_NOFILE).expect("ask for the limit").0;
    let most = usize::try_from(files / 2).unwrap_or(usize::MAX).min(1000);
    let begun = |text: &str| {
        let mut stream = target.connect();
        stream.write_all(text.as_bytes()).expect("send");
        stream
    };
    let idle: Vec<_> = (0..most).map(|_| begun("")).collect();
    target.serves("A-08 idle");
    let headers: Vec<_> =
        (0..20).map(|_| begun("GET /runs HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")).collect();
    target.serves("A-08 slow headers");
    // Each announces as much as a body may hold, and together they announce more than all bodies may.
    let large = format!("{POST}Content-Length: 33554432\r\n\r\n{{");
    let bodies: Vec<_> = (0..20).map(|_| begun(&large)).collect();
    target.serves("A-08 slow bodies");
    let chunked = format!("{POST}Transfer-Encoding: chunked\r\n\r\n1\r\n{{\r\n");
    let chunks: Vec<_> = (0..20).map(|_| begun(&chunked)).collect();
    target.serves("A-08 slow chunks");
    drop((idle, headers, bodies, chunks));
    target.stands("A-08");
}
