//! Runs with large outputs, and many who want them at once.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use support::{Daemon, Value, json};

const LINE: &str = "grüße\t\"\u{1}\\ 0123456789\n";
const OUTPUT_BYTES: usize = 24 << 20;
const READERS: usize = 32;

/// The most that all readers together may cost: a copy for each would be 768 MiB and more.
const MOST_BYTES: f64 = 96.0 * 1024.0 * 1024.0;

fn body() -> Value {
    let script = format!("yes \"$0\" | head -c {OUTPUT_BYTES}; echo no >&2");
    let limits = json!({ "stdout_bytes": OUTPUT_BYTES, "cpu_time_ms": 60_000, "wall_time_ms": 60_000 });
    json!({ "image": "host", "cmd": "sh", "args": ["-c", script, LINE.trim_end_matches('\n')], "limits": limits })
}

fn check(run: &Value) {
    assert_eq!((&run["outcome"], &run["stderr"]), (&json!("exited"), &json!("no\n")), "{}", run["message"]);
    let expected = LINE.repeat(OUTPUT_BYTES / LINE.len() + 1);
    let text = run["stdout"].as_str().expect("text");
    assert_eq!(run["stdout_bytes"], OUTPUT_BYTES);
    assert!(text == &expected[..OUTPUT_BYTES], "{} bytes came, not the same", text.len());
}

/// Begins to read an answer and stops behind its head.
fn stalled(daemon: &Daemon, path: &str) -> TcpStream {
    let mut stream = TcpStream::connect(daemon.address()).expect("connect");
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("set a timeout");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("ask");
    let mut head = [0; 512];
    let length = stream.read(&mut head).expect("the beginning of an answer");
    let head = String::from_utf8_lossy(&head[..length]).into_owned();
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    stream
}

/// Each of them had a copy of its own of the whole, from before its first byte to its last.
#[test]
fn many_who_want_a_large_run_at_once_do_not_each_cost_its_size() {
    let daemon = Daemon::builder().host_image().flag("--prepared-max", 0).start();
    let waited = daemon.run(&body());
    check(&waited);
    let path = format!("/runs/{}", waited["id"].as_str().expect("an id"));
    check(&daemon.get(&path).expect(200));
    let daemon = daemon.restart();
    let before = daemon.metric("process_resident_memory_bytes");
    let readers: Vec<_> = (0..READERS).map(|_| stalled(&daemon, &path)).collect();
    let grown = daemon.metric("process_resident_memory_bytes") - before;
    eprintln!("{READERS} readers of {OUTPUT_BYTES} bytes cost {:.1} MiB", grown / 1024.0 / 1024.0);
    assert!(grown < MOST_BYTES, "{READERS} readers cost {grown} bytes");
    drop(readers);
    let mut again = daemon.get(&path).expect(200);
    check(&again);
    // It is the same that it was, but for what was not known then.
    let mut before = waited;
    for run in [&mut again, &mut before] {
        run["timings"]["teardown_ms"] = Value::Null;
    }
    assert!(again == before, "the run is another after a restart");
}
