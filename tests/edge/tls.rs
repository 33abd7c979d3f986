//! TLS of the server's own.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::signal::Signal;
use support::{Daemon, Finished, json, tool, until};

use crate::certificates::Certificates;

const RUN: &str = r#"{"image":"host","cmd":"echo","args":["hi"]}"#;

#[test]
fn clients_get_tls_with_http2_or_http1_as_they_like() {
    let certificates = Certificates::new();
    let daemon = certificates.daemon("server.pem", "server.key").start();
    for (wanted, version) in
        [("--http2", "2"), ("--http1.1", "1.1"), ("--tlsv1.3", "2"), ("--no-alpn", "1.1")]
    {
        let words = [wanted, "--data", RUN, "--write-out", "\n%{http_version} %{http_code}"];
        let done = certificates.curl(&daemon, "server.pem", "/runs", &words);
        let said = done.stdout_text();
        assert!(said.ends_with(&format!("\n{version} 200")), "{wanted}: {said} {}", done.stderr_text());
        assert!(said.contains(r#""stdout":"hi\n""#), "{said}");
    }
    let tls12 = certificates.curl(&daemon, "server.pem", "/healthz", &["--tls-max", "1.2"]);
    assert_eq!(tls12.stdout_text(), "ok\n");
}

#[test]
fn who_speaks_no_tls_or_an_old_one_gets_nothing_and_is_counted() {
    let certificates = Certificates::new();
    let daemon = certificates.daemon("server.pem", "server.key").start();
    let failed =
        || certificates.metric(&daemon, "server.pem", "sandglass_tls_handshakes_total{result=\"failed\"}");
    let before = failed();
    let mut plain = TcpStream::connect(daemon.address()).expect("connect");
    plain.set_read_timeout(Some(Duration::from_secs(60))).expect("set a timeout");
    plain.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("ask");
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    let mut old = Command::new(tool("openssl"));
    old.args([
        "s_client",
        "-tls1_1",
        "-cipher",
        "ALL:@SECLEVEL=0",
        "-connect",
        &daemon.address().to_string(),
    ]);
    let old = Finished::of(&mut old);
    assert_ne!(old.code(), Some(0), "{}", old.stdout_text());
    until("both are counted", || failed() >= before + 2.0);
}

#[test]
fn what_is_wrong_with_certificate_or_key_is_said_at_the_start() {
    let certificates = Certificates::new();
    certificates.make("other", "30");
    certificates.encrypt_key("locked");
    std::fs::write(certificates.path("junk"), "junk").expect("write a file");
    let secret = certificates.path("secret.key");
    std::fs::copy(certificates.path("server.key"), &secret).expect("copy a key");
    let only_root = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&secret, only_root).expect("hide a key");
    for (certificate, key, words) in [
        (
            "server.pem",
            "other.key",
            &["the key in tls_key", "other.key is not that of the first certificate"][..],
        ),
        ("nothing.pem", "server.key", &["read tls_cert", "nothing.pem", "No such file"]),
        ("server.pem", "nothing.key", &["read tls_key", "nothing.key", "No such file"]),
        (
            "server.pem",
            "secret.key",
            &["read tls_key", "as the user that the server has become", "Permission denied"],
        ),
        ("server.pem", "locked.key", &["tls_key", "locked.key: is encrypted"]),
        ("junk", "server.key", &["tls_cert", "junk: holds no certificate in PEM"]),
        ("server.key", "server.key", &["server.key: holds no certificate in PEM"]),
        ("server.pem", "server.pem", &["server.pem: holds no private key in PEM"]),
    ] {
        let mut process = certificates.daemon(certificate, key).spawn();
        assert!(!process.wait().success(), "{certificate} {key}");
        for words in words {
            assert!(process.log().contains(words), "{certificate} {key}: no {words:?} in {}", process.log());
        }
    }
    let mut half = Daemon::builder().flag("--tls-cert", "/x.pem").spawn();
    assert!(!half.wait().success());
    assert!(half.log().contains("TLS needs both"), "{}", half.log());
}

#[test]
fn an_expired_certificate_is_served_with_a_warning() {
    let certificates = Certificates::new();
    certificates.make_expired("old");
    let daemon = certificates.daemon("old.pem", "server.key").start();
    daemon.wait_for_log("the certificate has expired");
    let refused = certificates.curl(&daemon, "old.pem", "/healthz", &[]);
    assert!(refused.stderr_text().contains("expired"), "{}", refused.stderr_text());
    let careless = certificates.curl(&daemon, "old.pem", "/healthz", &["--insecure"]);
    assert_eq!(careless.stdout_text(), "ok\n");
}

fn days_left(certificates: &Certificates, daemon: &Daemon, trusted: &str) -> f64 {
    let at = certificates.metric(daemon, trusted, "sandglass_tls_certificate_expires_timestamp_seconds");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later").as_secs_f64();
    (at - now) / 86_400.0
}

#[test]
fn a_renewed_certificate_is_shown_after_sighup_while_connections_go_on() {
    let certificates = Certificates::new();
    let mut daemon = certificates.daemon("server.pem", "server.key").start();
    std::fs::copy(certificates.path("server.pem"), certificates.path("first.pem")).expect("keep the first");
    assert_eq!(days_left(&certificates, &daemon, "first.pem").ceil(), 30.0);
    let slow = json!({ "image": "host", "cmd": "sh", "args": ["-c", "sleep 2; echo done"] }).to_string();
    std::thread::scope(|scope| {
        let daemon = &mut daemon;
        let address = daemon.address();
        let certificates = &certificates;
        let port = address.port().to_string();
        let waiting = scope.spawn(move || {
            let url = format!("https://localhost:{port}/runs");
            let mut curl = Command::new(tool("curl"));
            curl.args(["--silent", "--show-error", "--data", &slow, "--cacert"]);
            Finished::of(curl.arg(certificates.path("first.pem")).args(["-4", &url]))
        });
        until("it runs", || {
            let list = certificates.curl(daemon, "first.pem", "/runs?state=running", &[]);
            list.stdout_text().contains("\"running\"")
        });
        // One that is no good changes nothing.
        std::fs::write(certificates.path("server.pem"), "junk").expect("break it");
        daemon.process().signal(Signal::SIGHUP);
        until("it says so", || daemon.log().contains("the certificate stays as it was"));
        assert_eq!(certificates.curl(daemon, "first.pem", "/healthz", &[]).stdout_text(), "ok\n");

        certificates.make("server", "90");
        daemon.process().signal(Signal::SIGHUP);
        until("it has read it", || daemon.log().contains("serving with this certificate from now on"));
        let old = certificates.curl(daemon, "first.pem", "/healthz", &[]);
        assert_ne!(old.code(), Some(0), "the first certificate is still shown");
        assert_eq!(days_left(certificates, daemon, "server.pem").ceil(), 90.0);
        let answer = waiting.join().expect("a client");
        assert!(answer.stdout_text().contains(r#""stdout":"done\n""#), "{}", answer.stderr_text());
    });
}

#[test]
fn clients_that_stall_their_handshake_keep_nobody_waiting_and_are_hung_up_on() {
    const STALLED: usize = 100;
    let certificates = Certificates::new();
    let daemon = certificates
        .daemon("server.pem", "server.key")
        .flag("--connections-max", STALLED + 20)
        .flag("--header-timeout-ms", 3000)
        .start();
    let mut stalled: Vec<TcpStream> = (0..STALLED)
        .map(|number| {
            let mut stream = TcpStream::connect(daemon.address()).expect("connect");
            stream.set_read_timeout(Some(Duration::from_secs(60))).expect("set a timeout");
            // Half of them begin: a record of 512 bytes, of which three come.
            if number % 2 == 0 {
                stream.write_all(&[0x16, 3, 1, 2, 0, 1, 0, 1]).expect("begin a handshake");
            }
            stream
        })
        .collect();
    let answered = certificates.curl(&daemon, "server.pem", "/runs", &["--data", RUN]);
    assert!(answered.stdout_text().contains("\"exited\""), "{}", answered.stderr_text());
    for stream in &mut stalled {
        let mut answer = Vec::new();
        let ended = stream.read_to_end(&mut answer);
        assert!(ended.is_ok(), "not hung up on: {ended:?}");
    }
    let timeouts = "sandglass_tls_handshakes_total{result=\"timeout\"}";
    assert_eq!(certificates.metric(&daemon, "server.pem", timeouts), STALLED as f64);
}

#[test]
fn as_many_as_there_may_be_connections_stall_and_the_next_one_waits_no_longer_than_they_may() {
    let certificates = Certificates::new();
    let builder = certificates.daemon("server.pem", "server.key");
    let daemon = builder.flag("--connections-max", 4).flag("--header-timeout-ms", 1500).start();
    let stalled: Vec<_> = (0..8).map(|_| TcpStream::connect(daemon.address()).expect("connect")).collect();
    let answered = certificates.curl(&daemon, "server.pem", "/runs", &["--data", RUN]);
    assert!(answered.stdout_text().contains("\"exited\""), "{}", answered.stderr_text());
    drop(stalled);
}
