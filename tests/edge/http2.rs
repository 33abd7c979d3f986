//! HTTP/2 without TLS, by prior knowledge; every bound that HTTP/1.1 has holds here as well.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

use h2::Reason;
use support::{Daemon, Finished, Value, json, tool, until};
use tokio::time::timeout;

use crate::client::{Client, reason, runtime, take};

/// Longer than anything takes, on any machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn run(script: &str) -> Value {
    json!({ "image": "host", "cmd": "sh", "args": ["-c", script] })
}

#[test]
fn a_plain_socket_speaks_http2_with_who_begins_with_it() {
    let daemon = Daemon::start();
    let body = run("cat").to_string().replace("\"cat\"]", "\"cat\"],\"stdin\":\"in\"");
    let curl = |words: &[&str]| {
        let mut command = Command::new(tool("curl"));
        command.args(["--silent", "--show-error", "--max-time", "60", "--data", &body]).args(words);
        Finished::of(command.args(["--write-out", "\n%{http_version} %{http_code}", &daemon.url("/runs")]))
    };
    for (words, version) in [(&["--http2-prior-knowledge"][..], "2"), (&[], "1.1"), (&["--http2"], "1.1")] {
        let said = curl(words).stdout_text();
        assert!(said.ends_with(&format!("\n{version} 200")), "{words:?}: {said}");
        assert!(said.contains(r#""stdout":"in""#), "{said}");
    }
}

#[test]
fn many_runs_share_one_connection_and_events_come_as_they_happen() {
    let daemon = Daemon::start();
    runtime().block_on(async {
        let mut client = Client::connect(daemon.address()).await;
        let mut answers = Vec::new();
        for number in 0..20 {
            answers
                .push(client.ask("POST", "/runs", Some(&run(&format!("echo {number}")))).await.expect("ask"));
        }
        for (number, answer) in answers.into_iter().enumerate() {
            let (status, text) = timeout(PATIENCE, take(answer)).await.expect("in time").expect("an answer");
            assert_eq!(status, 200, "{text}");
            assert!(text.contains(&format!("\"stdout\":\"{number}\\n\"")), "{text}");
        }
        let events = [("accept", "text/event-stream")];
        let body = run("echo one; sleep 1; echo two");
        let answer = client.ask_with("POST", "/runs", Some(&body), &events).await.expect("ask");
        let (status, text) = timeout(PATIENCE, take(answer)).await.expect("in time").expect("an answer");
        assert_eq!(status, 200);
        assert!(text.contains("one") && text.contains("two") && text.contains("event: result"), "{text}");
    });
}

#[test]
fn one_connection_has_no_more_requests_than_there_may_be_connections() {
    let daemon = Daemon::builder().host_image().flag("--connections-max", 3).flag("--slots", 8).start();
    runtime().block_on(async {
        let mut client = Client::connect(daemon.address()).await;
        let mut held = Vec::new();
        for _ in 0..3 {
            held.push(client.ask("POST", "/runs", Some(&run("sleep 60"))).await.expect("ask"));
        }
        let refused = timeout(PATIENCE, client.call("GET", "/healthz", None)).await.expect("in time");
        assert_eq!(reason(refused), Some(Reason::REFUSED_STREAM));
        // Who goes away makes room: their runs are cancelled.
        drop(held);
        let began = Instant::now();
        while client.call("GET", "/healthz", None).await.is_err() {
            assert!(began.elapsed() < PATIENCE, "there never was room again");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let cancelled = async || client.call("GET", "/runs?outcome=cancelled", None).await.expect("a list").1;
        let mut cancelled = cancelled;
        let began = Instant::now();
        while cancelled().await.matches("\"cancelled\"").count() < 3 {
            assert!(began.elapsed() < PATIENCE, "their runs go on");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
}

#[test]
fn an_answer_that_nobody_takes_is_given_up_and_the_others_of_its_connection_are_not() {
    let daemon = Daemon::builder().host_image().flag("--answer-timeout-ms", 1000).start();
    let large = json!({
        "image": "host", "cmd": "sh", "args": ["-c", "head -c 2000000 /dev/zero | tr '\\0' x"],
        "limits": { "stdout_bytes": 4_000_000 },
    });
    runtime().block_on(async {
        let mut client = Client::connect(daemon.address()).await;
        let slow = client.ask("POST", "/runs", Some(&run("sleep 4; echo slow"))).await.expect("ask");
        let deaf = client.ask("POST", "/runs", Some(&large)).await.expect("ask");
        let mut body = timeout(PATIENCE, deaf).await.expect("in time").expect("headers").into_body();
        // Takes what its window lets through, and makes no more room.
        let mut taken = 0;
        let ended = loop {
            match timeout(PATIENCE, body.data()).await.expect("in time").expect("no end of a cut answer") {
                Ok(data) => taken += data.len(),
                Err(error) => break error,
            }
        };
        assert_eq!(ended.reason(), Some(Reason::CANCEL), "{ended}");
        assert!(taken < 100_000, "{taken}");
        let (status, text) = timeout(PATIENCE, take(slow)).await.expect("in time").expect("an answer");
        assert!(status == 200 && text.contains("slow"), "{text}");
    });
}

/// The end of a connection on which `begin` was said and nothing else.
fn hung_up_on(daemon: &Daemon, begin: &[u8]) {
    let mut stream = TcpStream::connect(daemon.address()).expect("connect");
    stream.set_read_timeout(Some(PATIENCE)).expect("set a timeout");
    stream.write_all(begin).expect("begin");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("the end of the connection");
}

#[test]
fn who_begins_and_does_not_go_on_is_hung_up_on() {
    let daemon = Daemon::builder()
        .host_image()
        .flag("--header-timeout-ms", 500)
        .flag("--answer-timeout-ms", 500)
        .start();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    // HEADERS of a stream, which are to go on, and don't.
    let headers = [0, 0, 1, 1, 0, 0, 0, 0, 1, 0x82];
    for begin in
        [&preface[..], &[preface, &settings[..]].concat(), &[preface, &settings[..], &headers[..]].concat()]
    {
        hung_up_on(&daemon, begin);
    }
}

#[test]
fn requests_that_are_taken_back_at_once_cost_nobody_else_anything() {
    let daemon = Daemon::builder().host_image().flag("--slots", 2).flag("--prepared-max", 0).start();
    runtime().block_on(async {
        let mut ended = 0;
        for _ in 0..5 {
            let mut client = Client::connect(daemon.address()).await;
            for _ in 0..400 {
                match client.ask("POST", "/runs", Some(&run("sleep 60"))).await {
                    Ok(answer) => drop(answer),
                    Err(_) => {
                        ended += 1;
                        break;
                    }
                }
            }
        }
        println!("{ended} of 5 connections were ended for it");
    });
    let answered = daemon.run(&run("echo well"));
    assert_eq!(answered["stdout"], "well\n");
    until("no run of theirs is left", || {
        let running = daemon.get("/runs?state=running").text() + &daemon.get("/runs?state=queued").text();
        !running.contains("sleep") && !running.contains("\"running\"") && !running.contains("\"queued\"")
    });
}

#[test]
fn headers_that_are_too_large_are_refused_in_words() {
    let daemon = Daemon::start();
    runtime().block_on(async {
        let mut client = Client::connect(daemon.address()).await;
        let long = "x".repeat(40 * 1024);
        let answer = client.ask_with("GET", "/healthz", None, &[("x-long", &long)]).await.expect("ask");
        let (status, text) = timeout(PATIENCE, take(answer)).await.expect("in time").expect("an answer");
        assert!(status == 431 && text.contains("headers-too-large"), "{status} {text}");
        // More than the server reads at all.
        let long = "x".repeat(200 * 1024);
        let answer = client.ask_with("GET", "/healthz", None, &[("x-long", &long)]).await;
        if let Ok(answer) = answer {
            let status = timeout(PATIENCE, take(answer)).await.expect("in time").map(|(status, _)| status);
            assert_ne!(status.ok(), Some(200));
        }
    });
    assert_eq!(daemon.get("/healthz").status, 200);
}

#[test]
fn a_server_that_stops_gives_http2_clients_their_answers_first() {
    let mut daemon = Daemon::start();
    runtime().block_on(async {
        let mut client = Client::connect(daemon.address()).await;
        let slow = client.ask("POST", "/runs", Some(&run("sleep 1; echo kept"))).await.expect("ask");
        until("it runs", || daemon.get("/runs?state=running").text().contains("\"running\""));
        assert!(daemon.stop().success());
        let (status, text) = timeout(PATIENCE, take(slow)).await.expect("in time").expect("an answer");
        assert!(status == 200 && text.contains("kept"), "{text}");
        assert!(timeout(PATIENCE, client.ended).await.expect("in time").expect("no panic").is_ok());
    });
}
