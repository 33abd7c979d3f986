//! `POST`, `GET`, `HEAD` and `DELETE /files`, and runs that read what was uploaded.

use std::io::Write;
use std::net::{Shutdown, TcpStream};

use support::{Daemon, Value, host, json, until};

const HELLO: &str = "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
const MIB: u64 = 1024 * 1024;

fn upload(daemon: &Daemon, content: impl Into<Vec<u8>>) -> String {
    let reply = daemon.request("POST", "/files").body(content).send().expect(201);
    reply["file"].as_str().expect("an id").to_owned()
}

fn sh(script: &str) -> Value {
    json!({ "image": "host", "cmd": "sh", "args": ["-c", script] })
}

fn files_bytes(daemon: &Daemon) -> u64 {
    let page = daemon.get("/metrics").text();
    let line = page.lines().find_map(|line| line.strip_prefix("sandglass_files_bytes "));
    line.expect("the metric files_bytes").parse().expect("a number")
}

#[test]
fn a_file_comes_back_as_it_was_and_is_gone_when_it_is_deleted() {
    let daemon = Daemon::start();
    let sent = daemon.request("POST", "/files").header("Content-Type", "text/html").body("hello").send();
    assert_eq!(sent.header("location"), Some(format!("/files/{HELLO}").as_str()));
    let reply = sent.expect(201);
    assert_eq!((reply["file"].as_str(), reply["size_bytes"].as_u64()), (Some(HELLO), Some(5)));
    assert!(reply["expires_at"].as_str().is_some_and(|time| time.ends_with('Z')), "{reply}");
    assert_eq!(files_bytes(&daemon), 5);

    let back = daemon.get(&format!("/files/{HELLO}"));
    assert_eq!((back.status, back.text().as_str()), (200, "hello"));
    assert_eq!(back.header("content-type"), Some("application/octet-stream"));
    assert_eq!(back.header("x-content-type-options"), Some("nosniff"));
    let head = daemon.request("HEAD", &format!("/files/{HELLO}")).send();
    assert_eq!((head.status, head.header("content-length")), (200, Some("5")));

    assert_eq!(daemon.delete(&format!("/files/{HELLO}")).status, 204);
    for method in ["GET", "DELETE"] {
        let path = format!("/files/{HELLO}");
        daemon.request(method, &path).send().problem(404, "file-not-found");
    }
    daemon.get("/files/..%2F..%2Fetc%2Fpasswd").problem(404, "file-not-found");
    assert_eq!(files_bytes(&daemon), 0);
}

#[test]
fn a_form_carries_one_file() {
    let daemon = Daemon::start();
    let form = |parts: &[&str]| {
        let part = |content: &&str| {
            format!(
                "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"x\"\r\n\r\n{content}\r\n"
            )
        };
        let body = parts.iter().map(part).collect::<String>() + "--b--\r\n";
        daemon
            .request("POST", "/files")
            .header("Content-Type", "multipart/form-data; boundary=b")
            .body(body)
            .send()
    };
    assert_eq!(form(&["hello"]).expect(201)["file"], HELLO);
    form(&[]).problem(400, "not-a-form");
    form(&["hello", "more"]).problem(400, "not-a-form");
    let odd = daemon.request("POST", "/files").header("Content-Type", "multipart/form-data").body("x").send();
    odd.problem(400, "not-a-form");
}

#[test]
fn runs_read_uploaded_files_and_their_stdin_from_them() {
    let daemon = Daemon::builder().host_image().start();
    let id = upload(&daemon, "hello");
    let mut body = sh("cat; cat a/b c; stat -c %a c; readlink /proc/self/fd/0; echo more >> c; cat c");
    body["stdin"] = json!({ "file": id });
    body["workdir"] = json!("/w");
    body["files"] = json!([{ "path": "a/b", "file": id }, { "path": "c", "file": id, "mode": "0600" }]);
    let run = daemon.run(&body);
    let stdout = run["stdout"].as_str().expect("text");
    assert!(stdout.starts_with("hellohellohello600\n"), "{run:#}");
    assert!(stdout.ends_with("hellomore\n"), "{run:#}");
    assert!(!stdout.contains(&id[7..]), "the store's path is seen inside: {stdout}");
    // What one run has written the next does not see.
    assert_eq!(daemon.get(&format!("/files/{id}")).text(), "hello");

    for (body, pointer) in [
        (json!({ "image": "host", "stdin": { "file": "sha256:x" } }), "/stdin/file"),
        (
            json!({ "image": "host", "stdin": { "file": format!("sha256:{}", "0".repeat(64)) } }),
            "/stdin/file",
        ),
        (
            json!({ "image": "host", "files": [{ "path": "a", "file": format!("sha256:{}", "0".repeat(64)) }] }),
            "/files/0/file",
        ),
        (json!({ "image": "host", "files": [{ "path": "a", "file": id, "text": "" }] }), "/files/0"),
        (
            json!({ "image": "host", "files": [{ "path": "a", "file": id }], "limits": { "disk_bytes": 1024 } }),
            "/files",
        ),
    ] {
        let problem = daemon.post("/runs", &body).problem(422, "invalid-request");
        assert_eq!(problem["errors"][0]["pointer"], pointer, "{problem:#}");
    }
}

#[test]
fn a_large_stdin_comes_through_a_pipe_and_its_reader_may_go_early() {
    // Sandboxes that wait for a run have descriptors too, and are made when nobody looks.
    let daemon = Daemon::builder().host_image().flag("--prepared-max", 0).start();
    let id = upload(&daemon, vec![b'x'; 5 * MIB as usize + 3]);
    let mut body = sh("wc -c");
    body["stdin"] = json!({ "file": id });
    assert_eq!(daemon.run(&body)["stdout"], format!("{}\n", 5 * MIB + 3));
    body["args"] = json!(["-c", "head -c 3; exec sleep 0.1"]);
    assert_eq!(daemon.run(&body)["stdout"], "xxx");
    let descriptors = || host::descriptors(daemon.pid()).len();
    let before = descriptors();
    daemon.run(&body);
    until("the pipe to be closed", || descriptors() <= before);
}

/// The most memory that a server has held.
fn held_at_most(daemon: &Daemon) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).expect("its status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("VmHWM");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

/// Uploads so many bytes a piece at a time, and says under which id they are.
fn upload_large(daemon: &Daemon, size: u64, fill: u8) -> String {
    let piece = vec![fill; MIB as usize];
    let mut stream = TcpStream::connect(daemon.address()).expect("connect");
    write!(
        stream,
        "POST /files HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {size}\r\n\r\n"
    )
    .expect("send the head");
    for _ in 0..size / MIB {
        stream.write_all(&piece).expect("send a piece");
    }
    let mut answer = String::new();
    std::io::Read::read_to_string(&mut stream, &mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    let id = answer.split('"').find(|word| word.starts_with("sha256:"));
    id.unwrap_or_else(|| panic!("{answer} names no file")).to_owned()
}

/// 256 MiB go through a server that may hold a small part of that.
#[test]
fn a_large_upload_costs_no_memory() {
    let daemon = Daemon::start();
    let before = held_at_most(&daemon);
    upload_large(&daemon, 256 * MIB, 7);
    let grown = held_at_most(&daemon).saturating_sub(before);
    assert!(grown < 32 * MIB, "the server grew by {grown} bytes");
    assert_eq!(files_bytes(&daemon), 256 * MIB);
}

#[test]
fn an_expected_output_is_compared_without_being_held() {
    let daemon = Daemon::start();
    let (wrong, blank) = (upload_large(&daemon, 128 * MIB, b'x'), upload_large(&daemon, 8 * MIB, b' '));
    let before = held_at_most(&daemon);
    let test =
        |file: &str, compare: &str| json!({ "expect": { "stdout": { "file": file }, "compare": compare } });
    let body = json!({ "image": "host", "run": { "cmd": "echo" }, "tests": [
        test(&wrong, "exact"), test(&wrong, "lines"), test(&blank, "exact"), test(&blank, "lines"), test(&blank, "tokens"),
    ]});
    let done = daemon.request("POST", "/batches").json(&body).send().expect(200);
    let verdicts: Vec<_> =
        done["tests"].as_array().expect("tests").iter().map(|test| &test["verdict"]).collect();
    assert_eq!(
        verdicts,
        ["wrong_answer", "wrong_answer", "wrong_answer", "accepted", "accepted"],
        "{done:#}"
    );
    let grown = held_at_most(&daemon).saturating_sub(before);
    assert!(grown < 32 * MIB, "the server grew by {grown} bytes");
}

#[test]
fn there_is_a_budget_and_what_was_not_used_lately_makes_room() {
    let daemon = Daemon::builder()
        .host_image()
        .flag("--files-bytes-max", 10 * MIB)
        .flag("--file-bytes-max", 8 * MIB)
        .start();
    let megabytes = |fill: u8, count: u64| vec![fill; (count * MIB) as usize];
    daemon.request("POST", "/files").body(megabytes(0, 9)).send().problem(413, "body-too-large");
    let (old, new) = (upload(&daemon, megabytes(1, 4)), upload(&daemon, megabytes(2, 4)));
    let mut reader = sh("sleep 1; wc -c < x");
    reader["files"] = json!([{ "path": "x", "file": old }]);
    let id = daemon.run_async(&reader);
    let third = upload(&daemon, megabytes(3, 5));
    let there = |id: &str| daemon.request("HEAD", &format!("/files/{id}")).send().status == 200;
    assert_eq!((there(&old), there(&new), there(&third)), (true, false, true));
    let full = daemon.request("POST", "/files").body(megabytes(4, 7)).send().problem(503, "files-full");
    assert_eq!(full["retry_after_ms"], json!(1000), "{full}");
    assert_eq!(daemon.wait_for_state(&id, "finished")["stdout"], format!("{}\n", 4 * MIB));
    upload(&daemon, megabytes(4, 7));
    assert_eq!(files_bytes(&daemon), 7 * MIB);
}

#[test]
fn a_server_that_was_killed_has_its_files_again_and_no_half_ones() {
    let mut daemon = Daemon::start();
    let id = upload(&daemon, "hello");
    let mut half = TcpStream::connect(daemon.address()).expect("connect");
    half.write_all(b"POST /files HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500000\r\n\r\n")
        .expect("send");
    half.write_all(&vec![1; 300_000]).expect("send a part");
    let aside = daemon.data_dir().join("files/tmp");
    let count = || std::fs::read_dir(&aside).expect("the folder").count();
    until("the upload to begin", || count() == 1);
    daemon.kill9();
    let daemon = daemon.restart();
    assert_eq!((daemon.get(&format!("/files/{id}")).text().as_str(), count()), ("hello", 0));
    assert_eq!(files_bytes(&daemon), 5);

    // A client that goes away in the middle leaves nothing either.
    let mut half = TcpStream::connect(daemon.address()).expect("connect");
    half.write_all(b"POST /files HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500000\r\n\r\n")
        .expect("send");
    half.write_all(&vec![1; 300_000]).expect("send a part");
    until("the upload to begin", || count() == 1);
    half.shutdown(Shutdown::Both).expect("hang up");
    until("the upload to be given up", || count() == 0);
    until("its room to be free", || files_bytes(&daemon) == 5);
}
