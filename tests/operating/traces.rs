//! A collector of the test's own gets one trace for each run, a span for each phase, and no secret.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use support::{Daemon, Value, json, until, within};

const CALLER: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// Takes OTLP over HTTP, as JSON, for as long as the test lives.
struct Collector {
    address: SocketAddr,
    bodies: Arc<Mutex<Vec<String>>>,
}

impl Collector {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
        let address = listener.local_addr().expect("an address");
        let bodies = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&bodies);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.expect("a connection");
                let mut reader = BufReader::new(stream.try_clone().expect("double a socket"));
                let (mut line, mut length) = (String::new(), 0);
                while reader.read_line(&mut line).is_ok_and(|read| read > 2) {
                    if let Some(value) = line.to_lowercase().trim().strip_prefix("content-length: ") {
                        length = value.parse().expect("a length");
                    }
                    line.clear();
                }
                let mut body = vec![0; length];
                reader.read_exact(&mut body).expect("a body");
                kept.lock().expect("a list").push(String::from_utf8(body).expect("text"));
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}");
            }
        });
        Self { address, bodies }
    }

    fn text(&self) -> String {
        self.bodies.lock().expect("a list").join("\n")
    }

    fn spans(&self) -> Vec<Value> {
        let bodies = self.bodies.lock().expect("a list");
        let documents = bodies.iter().map(|body| serde_json::from_str::<Value>(body).expect("JSON"));
        documents
            .flat_map(|document| {
                document["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().expect("spans").clone()
            })
            .collect()
    }
}

fn nanoseconds(span: &Value, end: &str) -> u128 {
    span[end].as_str().expect("a time").parse().expect("a number")
}

#[test]
fn a_run_is_a_trace_of_whoever_asked_with_a_span_for_each_phase() {
    let collector = Collector::start();
    let to = format!("http://{}/v1/traces", collector.address);
    let daemon = Daemon::builder().host_image().flag("--traces-to", to).start();
    let body = json!({
        "image": "host", "cmd": "sh", "args": ["-c", "sleep 0.1; echo s3cret"],
        "stdin": "s3cret", "env": { "PASSWORD": "s3cret" },
    });
    let answer = daemon.request("POST", "/runs").header("traceparent", CALLER).json(&body).send();
    let carried = answer.header("traceparent").expect("a traceparent").to_owned();
    let run = answer.expect(200);
    let spans = within(Duration::from_secs(10), "five spans", || {
        Some(collector.spans()).filter(|spans| spans.len() >= 5)
    });
    let named = |name: &str| spans.iter().find(|span| span["name"] == name).expect("a span");
    let whole = named("run");
    assert_eq!(whole["traceId"], "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(whole["parentSpanId"], "b7ad6b7169203331");
    let own = whole["spanId"].as_str().expect("an id");
    assert_eq!(carried, format!("00-0af7651916cd43dd8448eb211c80319c-{own}-01"));
    assert!(whole["attributes"].to_string().contains(run["id"].as_str().expect("an id")), "{whole}");
    let mut at = nanoseconds(whole, "startTimeUnixNano");
    for phase in ["queue", "image", "setup", "program"] {
        let span = named(phase);
        assert_eq!(
            (&span["parentSpanId"], &span["traceId"]),
            (&whole["spanId"], &whole["traceId"]),
            "{phase}"
        );
        assert_eq!(nanoseconds(span, "startTimeUnixNano"), at, "{phase} begins where the last one ended");
        at = nanoseconds(span, "endTimeUnixNano");
    }
    let program = named("program");
    let took = nanoseconds(program, "endTimeUnixNano") - nanoseconds(program, "startTimeUnixNano");
    assert!(took >= 100_000_000, "{took}");
    assert!(!collector.text().contains("s3cret"), "what a request carries is never sent");
    assert!(!daemon.log().contains("s3cret"), "nor logged");
}

#[test]
fn a_caller_who_records_nothing_is_left_alone_and_a_collector_that_is_gone_harms_nobody() {
    let collector = Collector::start();
    let to = format!("http://{}/v1/traces", collector.address);
    let daemon = Daemon::builder().host_image().flag("--traces-to", to).start();
    let body = json!({ "image": "host", "cmd": "true" });
    let unrecorded = CALLER.replace("-01", "-00");
    daemon.request("POST", "/runs").header("traceparent", unrecorded).json(&body).send().expect(200);
    daemon.request("POST", "/runs").json(&body).send().expect(200);
    until("the spans of the second", || collector.spans().iter().any(|span| span["name"] == "program"));
    assert!(!collector.text().contains("0af7651916cd43dd8448eb211c80319c"));

    let gone = TcpListener::bind("127.0.0.1:0").expect("listen").local_addr().expect("an address");
    let daemon = Daemon::builder().host_image().flag("--traces-to", format!("http://{gone}/")).start();
    for _ in 0..20 {
        daemon.run(&body);
    }
    until("it is told once", || daemon.log().matches("traces can't be sent").count() == 1);
}
