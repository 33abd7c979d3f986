//! Category A: what can be asked over HTTP. The shape of requests and of headers
//! is looked at in `tests/http.rs`, the document as a whole in `tests/openapi.rs`. Keys, and
//! with them what one principal may see of another, do not exist yet; idempotency keys neither
//!

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use support::{
    Daemon, Folder, Image, Layer, Liar, Lie, Process, Registry, Request, Response, Service, json, sandglass,
    tool,
};

/// Somebody on loopback whom nobody may be sent to.
struct Trap(TcpListener);

impl Trap {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
        listener.set_nonblocking(true).expect("don't wait");
        Self(listener)
    }

    fn port(&self) -> u16 {
        self.0.local_addr().expect("an address").port()
    }

    #[track_caller]
    fn assert_empty(&self, id: &str) {
        assert!(self.0.accept().is_err(), "{id}: somebody was sent to an internal address");
    }
}

/// No answer may tell where on the machine the server lives, or what went on inside it.
#[track_caller]
fn tells_nothing(daemon: &Daemon, what: &str, response: &Response) {
    let text = response.text();
    let data = daemon.data_dir().display().to_string();
    for secret in [data.as_str(), "/home/", ".rs:", "panicked", "RUST_BACKTRACE", "/target/"] {
        assert!(!text.contains(secret), "{what} tells {secret:?}: {text}");
    }
}

#[track_caller]
fn is_well(daemon: &Daemon) {
    let run = daemon.run(&json!({ "image": "host", "cmd": "echo", "args": ["ok"] }));
    assert_eq!(run["stdout"], "ok\n");
    assert!(!daemon.log().contains("panicked"), "{}", daemon.log());
}

#[test]
fn a_01_no_spelling_of_an_internal_address_is_asked_for_an_image() {
    let daemon = Daemon::start();
    let trap = Trap::new();
    let port = trap.port();
    let host = daemon.host();
    for reference in [
        "169.254.169.254/latest/meta-data".to_owned(),
        "[fd00:ec2::254]/x".into(),
        "metadata.google.internal/x".into(),
        "host.docker.internal:2375/x".into(),
        "10.0.0.1/x".into(),
        "192.168.1.1:5000/x".into(),
        "172.17.0.1:2375/x".into(),
        "100.64.0.1/x".into(),
        "0.0.0.0:80/x".into(),
        format!("127.0.0.1:{port}/x"),
        format!("localhost:{port}/x"),
        format!("LOCALHOST:{port}/x"),
        format!("localhost.:{port}/x"),
        format!("127.1:{port}/x"),
        format!("0:{port}/x"),
        format!("0x7f.1:{port}/x"),
        format!("017700000001:{port}/x"),
        format!("2130706433:{port}/x"),
        format!("127.0.0.1.:{port}/x"),
        format!("[::1]:{port}/x"),
        format!("[::]:{port}/x"),
        format!("[::ffff:127.0.0.1]:{port}/x"),
        format!("[::ffff:7f00:1]:{port}/x"),
        format!("[::127.0.0.1]:{port}/x"),
        format!("[64:ff9b::7f00:1]:{port}/x"),
        format!("[2002:7f00:1::]:{port}/x"),
        "[::ffff:169.254.169.254]/x".into(),
        "[fe80::1%25lo]/x".into(),
    ] {
        for (path, body) in [
            ("/runs", json!({ "image": reference, "cmd": "true" })),
            ("/images", json!({ "image": reference })),
        ] {
            let started = Instant::now();
            let response = daemon.post(path, &body);
            let problem = response.json();
            let kind = problem["type"].as_str().unwrap_or_default().to_owned();
            // A name that does not resolve can't be asked either; that is the registry's failure.
            let resolves = !reference.contains("internal") && !reference.starts_with("localhost.");
            let fine = ["/problems/image-not-allowed", "/problems/invalid-request"].contains(&&*kind)
                || (!resolves && kind == "/problems/registry-failed");
            assert!(fine, "A-01 {reference}: {problem:#}");
            assert!(started.elapsed() < Duration::from_secs(30), "A-01 {reference}: {:?}", started.elapsed());
            tells_nothing(&daemon, &reference, &response);
        }
        trap.assert_empty(&format!("A-01 {reference}"));
    }
    is_well(&daemon);
    host.assert_unchanged();
}

/// A server that finds those lines in its `/etc/hosts`.
fn where_names_mean(lines: &str, folder: &Folder, flags: &[String]) -> Service {
    fs::write(folder.join("hosts"), lines).expect("write names");
    let script = "mount --bind \"$0\" /etc/hosts && exec \"$@\"";
    let mut command = Command::new(tool("unshare"));
    command.args(["--mount", "--propagation=private", "sh", "-c", script]).arg(folder.join("hosts"));
    command.arg(sandglass()).args(["serve", "--listen=127.0.0.1:0", "--data-dir"]).arg(folder.join("data"));
    command.args(flags).env("SANDGLASS_DOCKER_CONFIG", "");
    Service::wait_for(Process::start("sandglass serve", command))
}

#[test]
fn a_02_a_name_that_leads_inside_is_found_out_when_it_is_connected_to() {
    let trap = Trap::new();
    let port = trap.port();
    let folder = Folder::new();
    let lines = "127.0.0.1 here.example\n::1 six.example\n169.254.169.254 meta.example\n10.1.2.3 ten.example\n\
                 93.184.216.34 both.example\n127.0.0.1 both.example\n127.0.0.1 localhost\n";
    // Even where plain HTTP is allowed to another name on the same port.
    let flags = ["--private-registry=other.example:1".to_owned()];
    let service = where_names_mean(lines, &folder, &flags);
    for name in ["here.example", "six.example", "meta.example", "ten.example", "both.example"] {
        let body = json!({ "image": format!("{name}:{port}/x") });
        let started = Instant::now();
        let request = Request::new(service.address(), "POST", "/images").json(&body);
        let response = request.patience(Duration::from_secs(60)).send();
        let kind = response.json()["type"].as_str().unwrap_or_default().to_owned();
        // Of two addresses the public one may be tried; here nobody answers there.
        let expected: &[&str] = if name == "both.example" {
            &["/problems/image-not-allowed", "/problems/registry-failed", "/problems/pull-timeout"]
        } else {
            &["/problems/image-not-allowed"]
        };
        assert!(expected.contains(&&*kind), "A-02 {name}: {}", response.text());
        assert!(started.elapsed() < Duration::from_secs(60), "A-02 {name}");
        trap.assert_empty(&format!("A-02 {name}"));
    }
    assert_eq!(service.stop(), Some(0));
}

#[test]
fn a_03_a_registry_can_t_send_the_server_where_it_may_not_go() {
    let registry = Registry::empty();
    let layer = Layer::build(|tar| {
        tar.file("x", "x");
    });
    registry.push("x", "1", &Image::new([layer]));
    let trap = Trap::new();
    let targets = [
        format!("http://127.0.0.1:{}/v2/", trap.port()),
        format!("https://localhost:{}/v2/", trap.port()),
        format!("http://[::ffff:127.0.0.1]:{}/v2/", trap.port()),
        format!("//127.0.0.1:{}/v2/", trap.port()),
        "http://169.254.169.254/latest".to_owned(),
        "file:///etc/passwd".to_owned(),
        "gopher://127.0.0.1/".to_owned(),
    ];
    let redirect = |to: &str| Lie::Say(307, vec![("Location".into(), to.to_owned())], Vec::new());
    for target in targets {
        for (what, liar) in [
            ("manifest", {
                let target = target.clone();
                Liar::before(&registry, move |_, path| {
                    if path.contains("/manifests/") { redirect(&target) } else { Lie::Truth }
                })
            }),
            ("blob", {
                let target = target.clone();
                Liar::before(
                    &registry,
                    move |_, path| if path.contains("/blobs/") { redirect(&target) } else { Lie::Truth },
                )
            }),
            ("realm", {
                let challenge = format!("Bearer realm=\"{target}\",service=\"x\"");
                Liar::before(&registry, move |_, _| {
                    Lie::Say(401, vec![("WWW-Authenticate".into(), challenge.clone())], Vec::new())
                })
            }),
        ] {
            // With an account for that registry, which must stay between the two.
            let folder = Folder::new();
            let config = json!({ "auths": { liar.host(): { "auth": "c2FuZGdsYXNzOnNlY3JldA==" } } });
            fs::write(folder.join("config.json"), config.to_string()).expect("write a config");
            let daemon = Daemon::builder()
                .host_image()
                .flag("--insecure-registry", liar.host())
                .flag("--docker-config", folder.join("config.json").display())
                .flag("--pull-timeout-ms", 10_000)
                .start();
            let id = format!("A-03 {what} at {target}");
            let response = daemon.post("/images", &json!({ "image": liar.image("x:1") }));
            let kind = response.json()["type"].as_str().unwrap_or_default().to_owned();
            let fine = [
                "image-not-allowed",
                "registry-failed",
                "bad-image",
                "image-unauthorized",
                "image-not-found",
            ];
            assert!(fine.iter().any(|name| kind == format!("/problems/{name}")), "{id}: {}", response.text());
            tells_nothing(&daemon, &id, &response);
            trap.assert_empty(&id);
            is_well(&daemon);
        }
    }
}

#[test]
fn a_04_what_is_no_reference_is_refused_before_anything_is_asked() {
    let daemon = Daemon::start();
    let long = "a/".repeat(5000) + "x";
    for reference in [
        "",
        " ",
        "user:pw@host.example/x",
        "http://host.example/x",
        "https://host.example/x",
        "file:///etc/passwd",
        "/etc/passwd",
        "../x",
        "a/../b",
        "a//b",
        "a/",
        "a:",
        ":a",
        "a@",
        "a@sha256:",
        "a@sha256:xyz",
        "UPPER/case",
        "a:t ag",
        "a\nb",
        "a\u{0}b",
        "a@sha256:0000%0d%0aX: y",
        "ex\u{430}mple.com/x",
        "a:\u{1F600}",
        "a/b:c/d",
        "a?b",
        "a#b",
        "a%2fb",
        "-a/b",
        "a/.b",
        "host:99999/x",
        "host:-1/x",
        "host:80:80/x",
        "[::1/x",
        "::1]/x",
        "[::1]x/y",
        long.as_str(),
        "$(id)",
        "`id`",
        "a;b",
        "a|b",
        "a\\b",
        "~/x",
    ] {
        for path in ["/runs", "/images"] {
            let mut body = json!({ "image": reference });
            if path == "/runs" {
                body["cmd"] = json!("true");
            }
            let response = daemon.post(path, &body);
            response.problem(422, "invalid-request");
            tells_nothing(&daemon, reference, &response);
        }
    }
    is_well(&daemon);
}

#[test]
fn a_08_connections_that_say_nothing_or_nonsense_keep_nobody_out() {
    let daemon = Daemon::builder()
        .host_image()
        .flag("--header-timeout-ms", 2000)
        .flag("--connections-max", 300)
        .start();
    let host = daemon.host();
    // All that there may be, and some more.
    let idle: Vec<TcpStream> =
        (0..350).map(|_| TcpStream::connect(daemon.address()).expect("connect")).collect();
    let started = Instant::now();
    is_well(&daemon);
    assert!(started.elapsed() < Duration::from_secs(10), "kept out for {:?}", started.elapsed());
    drop(idle);
    let smuggled =
        "POST /runs HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nContent-Length: 30\r\n\r\nGET /x";
    for (what, bytes) in [
        ("http/0.9", &b"GET /info\r\n"[..]),
        ("two lengths", smuggled.as_bytes()),
        ("a length that is none", b"POST /runs HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n"),
        ("a sum for a length", b"POST /runs HTTP/1.1\r\nHost: localhost\r\nContent-Length: +5\r\n\r\n{\"a\":"),
        ("a chunk of any size", b"POST /runs HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n{"),
        ("another encoding", b"POST /runs HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
        ("a space before the colon", b"POST /runs HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n"),
        ("a folded header", b"GET /info HTTP/1.1\r\nHost: localhost\r\nX: a\r\n b\r\n\r\n"),
        ("no host", b"GET /info HTTP/1.1\r\n\r\n"),
        ("two hosts", b"GET /info HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n"),
        ("another's address", b"GET http://evil.example/info HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        ("a tunnel", b"CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: localhost\r\n\r\n"),
        ("http/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00"),
        ("tls", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
        ("zeros", &[0; 4096]),
        ("lines without end", &[b'\n'; 65536]),
    ] {
        let mut stream = TcpStream::connect(daemon.address()).expect("connect");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("set a timeout");
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let ended = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let reset = ended.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset);
        assert!(ended.is_ok() || reset, "A-08 {what}: {ended:?} after {answer:?}");
        // Read as one request or refused: never two.
        assert!(answer.matches("HTTP/1.1 ").count() <= 1, "A-08 {what}: {answer}");
        assert!(!answer.starts_with("HTTP/1.1 5"), "A-08 {what}: {answer}");
        let refused =
            ["two lengths", "a length that is none", "another encoding", "two hosts", "another's address", "a tunnel"];
        if refused.contains(&what) {
            assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "A-08 {what}: {answer}");
        }
    }
    // Several requests in one breath are answered in their order.
    let mut stream = TcpStream::connect(daemon.address()).expect("connect");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("set a timeout");
    let one = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let last = "GET /nope HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(format!("{}{last}", one.repeat(50)).as_bytes()).expect("write");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("read");
    assert_eq!(answer.matches("HTTP/1.1 200").count(), 50, "{answer}");
    assert!(answer.rfind("HTTP/1.1 404") > answer.rfind("HTTP/1.1 200"), "{answer}");
    is_well(&daemon);
    host.assert_unchanged();
}

#[test]
fn a_09_a_method_is_the_one_of_the_first_line() {
    let daemon = Daemon::start();
    let id = daemon.run(&json!({ "image": "host", "cmd": "true" }))["id"].as_str().expect("an id").to_owned();
    for header in ["X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"] {
        let shown =
            daemon.request("GET", &format!("/runs/{id}?_method=DELETE")).header(header, "DELETE").send();
        assert!([200, 422].contains(&shown.status), "{}", shown.text());
        assert_eq!(daemon.show(&id)["outcome"], "exited");
    }
    for method in ["TRACE", "PATCH", "PROPFIND", "get", "POSTX"] {
        let response = daemon.request(method, &format!("/runs/{id}")).send();
        assert!(
            [400, 405].contains(&response.status),
            "A-09 {method}: {} {}",
            response.status,
            response.text()
        );
        assert!(!response.text().contains(&id) || response.status == 405, "A-09 {method} echoes");
    }
}

#[test]
fn a_11_no_spelling_of_a_path_is_another_s() {
    let daemon = Daemon::start();
    for path in [
        "/runs/../info",
        "/runs/..%2finfo",
        "/runs/%2e%2e/info",
        "/runs/%00",
        "/runs/%0a",
        "/runs/.",
        "/runs/%ff",
        "//runs//",
        "/./info",
        "/runs/00000000-0000-0000-0000-000000000000",
        "/runs/{id}",
        "/runs/*",
        "/images/..%2f..%2fetc%2fpasswd",
        "/images/%00",
        "/images/../../etc/passwd",
        "/docs/../../etc/passwd",
        "/docs/..%2f..%2fetc%2fpasswd",
        "/docs/%2e%2e/%2e%2e/etc/passwd",
        "/problems/../info",
        "/problems/%2e%2e%2f",
        "/.env",
        "/.git/config",
        "/debug/pprof",
        "/admin",
        "/server-status",
    ] {
        let response = daemon.get(path);
        assert!(
            [400, 404, 422].contains(&response.status),
            "A-11 {path}: {} {}",
            response.status,
            response.text()
        );
        assert!(!response.text().contains("root:"), "A-11 {path}: {}", response.text());
        tells_nothing(&daemon, path, &response);
    }
    is_well(&daemon);
}

#[test]
fn a_15_what_everybody_may_read_tells_nothing_of_the_machine() {
    let daemon = Daemon::start();
    daemon.post("/runs", &json!({ "image": "host", "cmd": "/no/such/program" })).expect(200);
    daemon.post("/runs", &json!({ "image": "nowhere.invalid/x", "cmd": "true" }));
    for path in
        ["/metrics", "/info", "/healthz", "/readyz", "/openapi.json", "/runs", "/images", "/docs", "/nope"]
    {
        let response = daemon.get(path);
        let text = response.text();
        let data = daemon.data_dir().display().to_string();
        assert!(
            !text.contains(&data) && !text.contains("/target/") && !text.contains("panicked"),
            "A-15 {path}"
        );
        assert!(response.header("server").is_none_or(|name| !name.contains('/')), "A-15 {path}");
    }
}

/// what a client does not read is held once, and no longer than the client is there.
#[test]
fn a_16_a_client_that_never_reads_holds_its_own_answer_and_nothing_else() {
    let daemon = Daemon::builder().host_image().flag("--slots", 4).start();
    is_well(&daemon);
    let host = daemon.host();
    let resident = || -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).expect("read its status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("its memory");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    };
    let before = resident();
    let bytes = 8 << 20;
    let body = json!({
        "image": "host", "cmd": "yes", "on_output_limit": "discard",
        "limits": { "stdout_bytes": bytes, "wall_time_ms": 1500, "cpu_time_ms": 60_000 },
    });
    let pending: Vec<_> = (0..8)
        .map(|_| daemon.request("POST", "/runs").json(&body).begin().expect("send a request"))
        .collect();
    let mut most = 0;
    for _ in 0..50 {
        std::thread::sleep(Duration::from_millis(100));
        most = most.max(resident());
    }
    // Eight outputs of 8 MiB, each as it was read, as it is remembered and as it is written: no more.
    assert!(most - before < 8 * 3 * (8 << 10) + (64 << 10), "{before} KiB became {most} KiB");
    is_well(&daemon);
    drop(pending);
    host.assert_unchanged();
}
