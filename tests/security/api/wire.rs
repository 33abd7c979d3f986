//! A-07, A-08 and A-16: bytes and connections as no honest client sends and holds them.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit};
use support::{Daemon, json, until};

use super::{Target, ordinary};

/// `POST /runs` on the wire, up to where its own headers begin.
const POST: &str = "POST /runs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";

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

#[test]
fn a_connection_carries_the_requests_that_were_sent_on_it_and_no_others() {
    let target = Target::start(Daemon::builder().flag("--header-timeout-ms", 500));
    let hidden = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let body = ordinary().to_string();
    let length = body.len();
    let chunked = format!("{length:x}\r\n{body}\r\n0\r\n\r\n");
    // Two readers of these could see the end of the request at different places.
    for (headers, body) in [
        (format!("Content-Length: {}\r\nTransfer-Encoding: chunked", chunked.len()), &chunked),
        ("Transfer-Encoding: chunked\r\nContent-Length: 4".into(), &chunked),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity".into(), &chunked),
        ("Transfer-Encoding: chunked, identity".into(), &chunked),
        ("Transfer-Encoding: xchunked".into(), &chunked),
        ("Transfer-Encoding : chunked".into(), &chunked),
        ("Transfer-Encoding: \u{b}chunked".into(), &chunked),
        ("Transfer-Encoding:\r\n chunked".into(), &chunked),
        (format!("Content-Length: 4\r\nContent-Length: {length}"), &body),
        (format!("Content-Length: {length}\r\nContent-Length: 4"), &body),
        (format!("Content-Length: {length}, 4"), &body),
        (format!("Content-Length: +{length}"), &body),
        ("Content-Length: -1".into(), &body),
        ("Content-Length: 0x1d".into(), &body),
        ("Content-Length: 18446744073709551645".into(), &body),
        ("Content-Length : 5".into(), &body),
    ] {
        let id = format!("A-08 {headers:?}");
        let (answers, text) = target.raw(&id, &[format!("{POST}{headers}\r\n\r\n{body}{hidden}").as_bytes()]);
        assert_eq!(answers, 1, "{id}: {text}");
        assert!(!text.contains("# HELP"), "{id}: {text}");
    }
    for chunks in [
        format!("FFFFFFFFFFFFFFFF{length:x}\r\n{body}\r\n0\r\n\r\n"),
        format!("1000000000000001d\r\n{body}\r\n0\r\n\r\n"),
        format!("-1\r\n{body}\r\n0\r\n\r\n"),
        format!("0x{length:x}\r\n{body}\r\n0\r\n\r\n"),
        format!("{length:x}\n{body}\n0\n\n"),
        format!("{length:x}\r\n{body}xx0\r\n\r\n"),
        format!("{length:x};{}\r\n{body}\r\n0\r\n\r\n", "a".repeat(100_000)),
        format!("{length:x}\r\n{body}\r\n0\r\n{}\r\n", "X: y\r\n".repeat(100_000)),
    ] {
        let id = format!("A-08 chunks {:?}", chunks.chars().take(40).collect::<String>());
        let request = format!("{POST}Transfer-Encoding: chunked\r\n\r\n{chunks}{hidden}");
        let (answers, text) = target.raw(&id, &[request.as_bytes()]);
        assert!(answers == 1 && text.starts_with("HTTP/1.1 400"), "{id}: {text}");
    }
    // A body that nobody reads is no request either.
    let inside = hidden.len();
    for head in
        ["POST /runs HTTP/1.1\r\nContent-Type: text/plain", "GET /healthz HTTP/1.1", "POST /nope HTTP/1.1"]
    {
        let request = format!("{head}\r\nHost: localhost\r\nContent-Length: {inside}\r\n\r\n{hidden}");
        let (answers, text) = target.raw("A-08", &[request.as_bytes()]);
        assert!(answers == 1 && !text.contains("# HELP"), "A-08 {head:?}: {text}");
    }
    // Other languages, and requests that are meant for somebody else.
    for (request, statuses) in [
        ("GET /runs\r\n\r\n", &["400"][..]),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\u{4}\0\0\0\0\0", &[]),
        ("GET /runs HTTP/1.1\r\nHost: localhost\r\nX: a\0b\r\n\r\n", &["400"]),
        ("GET /\u{1}runs HTTP/1.1\r\nHost: localhost\r\n\r\n", &["400"]),
        ("CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: localhost\r\n\r\n", &["403", "404"]),
        ("CONNECT evil.test:80 HTTP/1.1\r\nHost: localhost\r\n\r\n", &["403"]),
        ("GET http://evil.test/runs HTTP/1.1\r\nHost: localhost\r\n\r\n", &["403"]),
        ("GET http://localhost@evil.test/runs HTTP/1.1\r\nHost: localhost\r\n\r\n", &["403"]),
        ("GET http://localhost/healthz HTTP/1.1\r\nHost: evil.test\r\nConnection: close\r\n\r\n", &["200"]),
        ("OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", &["404"]),
        ("TRACE /runs HTTP/1.1\r\nHost: localhost\r\nCookie: secret\r\n\r\n", &["405"]),
        ("GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n", &["200"]),
    ] {
        let (answers, text) = target.raw("A-08", &[request.as_bytes()]);
        let status = text.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3));
        assert_eq!(answers, usize::from(!statuses.is_empty()), "A-08 {request:?}: {text}");
        assert!(status.is_none_or(|status| statuses.contains(&status)), "A-08 {request:?}: {text}");
        assert!(!text.contains("secret"), "A-08 {request:?}: {text}");
    }
    // Honest requests may follow each other without waiting, and are answered in their order.
    let many: String =
        (0..200).map(|i| format!("GET /runs/{i} HTTP/1.1\r\nHost: localhost\r\n\r\n")).collect();
    let (answers, text) = target.raw("A-08 pipelined", &[many.as_bytes(), hidden.as_bytes()]);
    assert!(answers == 201 && text.contains("# HELP"), "A-08: {answers} answers");
    // Many answers that nobody fetches are not kept in memory either.
    let before = target.memory_bytes();
    let mut deaf = target.connect();
    deaf.set_write_timeout(Some(Duration::from_secs(1))).expect("set a timeout");
    let _ = (0..500).try_for_each(|_| {
        deaf.write_all("GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(100).as_bytes())
    });
    let grown = target.memory_bytes().saturating_sub(before);
    assert!(grown < 64 << 20, "A-08: unread answers hold {grown} bytes");
    drop(deaf);
    target.stands("A-08");
}

#[test]
fn a_client_that_never_reads_costs_its_own_answer_and_no_run() {
    // Prepared sandboxes are descriptors, too, and more or fewer of them at any time.
    let target = Target::start(Daemon::builder().flag("--answer-timeout-ms", 2000).flag("--prepared-max", 0));
    let before = target.memory_bytes();
    let connections =
        || std::fs::read_dir(format!("/proc/{}/fd", target.daemon.pid())).expect("list").count();
    let quiet = connections();
    let busy = || target.daemon.metric("sandglass_slots{state=\"busy\"}");
    let ended =
        |outcome: &str| target.daemon.metric(&format!("sandglass_runs_total{{outcome=\"{outcome}\"}}"));
    let deaf: Vec<_> = ["kill", "discard"]
        .map(|then| {
            let body = json!({
                "image": "host", "cmd": "yes", "on_output_limit": then,
                "limits": { "stdout_bytes": 32 << 20, "wall_time_ms": 3000 },
            });
            let body = body.to_string();
            let mut stream = target.connect();
            stream
                .write_all(format!("{POST}Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes())
                .expect("send");
            stream
        })
        .into();
    until("A-16: both runs end", || {
        ended("output_limit") == 1.0 && ended("wall_time_limit") == 1.0 && busy() == 0.0
    });
    let grown = target.memory_bytes().saturating_sub(before);
    assert!(grown < 400 << 20, "A-16: two answers of 32 MiB hold {grown} bytes");
    target.serves("A-16");
    // Who takes nothing of an answer for that long is hung up on, and the rest of the answer is gone.
    until("A-16: the service hangs up", || connections() <= quiet);
    for mut stream in deaf {
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        assert!(rest.len() < 32 << 20, "A-16: all {} bytes were kept for who never read", rest.len());
    }
    target.stands("A-16");
}

/// A list of runs holds their outputs, and a zero byte is six letters of JSON.
#[test]
fn a_list_of_runs_is_no_larger_than_a_page_however_much_they_have_written() {
    let target = Target::start(Daemon::builder().flag("--slots", 4));
    let zeros = json!({ "image": "host", "cmd": "head", "args": ["-c", "1000000", "/dev/zero"] });
    let ids: Vec<_> = (0..30).map(|_| target.daemon.run(&zeros)["id"].clone()).collect();
    let before = target.memory_bytes();
    let (mut listed, mut page) = (Vec::new(), "/runs?limit=500".to_owned());
    loop {
        let response = target.daemon.get(&page);
        assert!(response.body.len() < 64 << 20, "A-16: a page of {} bytes", response.body.len());
        let list = response.expect(200);
        let runs = list["runs"].as_array().expect("runs").iter();
        listed.extend(runs.map(|run| run["id"].clone()));
        let Some(cursor) = list["next_cursor"].as_str() else { break };
        page = format!("/runs?limit=500&cursor={cursor}");
    }
    let ours: Vec<_> = listed.into_iter().filter(|id| ids.contains(id)).rev().collect();
    assert_eq!(ours, ids, "A-16: every run is on exactly one page");
    let grown = target.memory_bytes().saturating_sub(before);
    assert!(grown < 128 << 20, "A-16: lists hold {grown} bytes");
    target.stands("A-16");
}
