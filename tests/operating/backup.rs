//! A backup of a server that goes on, and of one that is stopped; and what comes back of it elsewhere.

use std::io::Read;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use support::{Builder, Daemon, Finished, Folder, Request, Value, json, sandglass, tool};

fn echo(words: &str) -> Value {
    json!({ "image": "host", "cmd": "echo", "args": [words] })
}

/// A run that was promised and has ended.
fn kept(daemon: &Daemon, key: &str, words: &str) -> String {
    let request = daemon.request("POST", "/runs").key(key).header("Prefer", "wait=60");
    let run = request.json(&echo(words)).send().expect(200);
    run["id"].as_str().expect("an id").to_owned()
}

pub(crate) fn sandglass_on(words: &[&str], data_dir: &Path) -> Finished {
    let mut command = Command::new(sandglass());
    Finished::of(command.args(words).arg("--data-dir").arg(data_dir))
}

/// Puts a backup into the data directory of a daemon to be.
pub(crate) fn restored(archive: &Path) -> Builder {
    let builder = Daemon::builder().host_image();
    let done = sandglass_on(&["restore", &archive.display().to_string()], &builder.data_dir());
    assert_eq!(done.code(), Some(0), "{}", done.stderr_text());
    builder
}

/// A run that has the only slot for as long as its server lives.
fn running(daemon: &Daemon) -> String {
    let limits = json!({ "wall_time_ms": 60_000 });
    let id = daemon.run_async(&json!({ "image": "host", "cmd": "sleep", "args": ["600"], "limits": limits }));
    daemon.wait_for_state(&id, "running");
    id
}

fn stdout(daemon: &Daemon, key: &str, id: &str) -> String {
    let run = daemon.request("GET", &format!("/runs/{id}")).key(key).send().expect(200);
    run["stdout"].as_str().expect("an output").to_owned()
}

/// The archive by the tools that everybody has: `tar` lists and unpacks it, `sha256sum` checks it.
fn check_with_tools(archive: &Path, folder: &Folder, keys: bool) {
    let path = archive.display().to_string();
    let names = Finished::output(&tool("tar"), &["-tf", &path]);
    let inner = if keys { "keys/keys.json\nrecords/principals.json\n" } else { "" };
    assert_eq!(names, format!("sandglass.json\n{inner}runs/runs.redb\nSHA256SUMS\n"));
    let unpacked = folder.join("unpacked");
    let _ = std::fs::remove_dir_all(&unpacked);
    std::fs::create_dir(&unpacked).expect("make a folder");
    Finished::output(&tool("tar"), &["-xf", &path, "-C", &unpacked.display().to_string()]);
    let checked = Command::new(tool("sha256sum"))
        .args(["--check", "--strict", "SHA256SUMS"])
        .current_dir(&unpacked)
        .output();
    let checked = checked.expect("start sha256sum");
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
}

#[test]
fn a_backup_of_a_server_under_load_brings_keys_and_runs_to_another_data_directory() {
    let folder = Folder::new();
    let archive = folder.join("backup.tar");
    let builder = Daemon::builder().host_image();
    let (alice, admin) = (builder.key(&["alice"]), builder.key(&["operator", "--scope", "admin"]));
    let daemon = builder.start();
    let first = kept(&daemon, &alice, "first");
    let enough = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            while !enough.load(Ordering::Relaxed) {
                kept(&daemon, &alice, "load");
            }
        });
        for _ in 0..3 {
            let before = kept(&daemon, &alice, "before the backup");
            let answer = daemon.request("GET", "/backup").key(&admin).send();
            assert_eq!(answer.status, 200, "{}", answer.text());
            assert_eq!(answer.header("content-type"), Some("application/x-tar"));
            std::fs::write(&archive, &answer.body).expect("write a backup");
            check_with_tools(&archive, &folder, true);
            let other = restored(&archive).start();
            assert_eq!(stdout(&other, &alice, &first), "first\n");
            assert_eq!(stdout(&other, &alice, &before), "before the backup\n");
            other.get("/runs").problem(401, "unauthorized");
            let used = other.request("GET", "/principals").key(&admin).send().expect(200);
            assert!(used["principals"][0]["usage"]["runs"].as_u64() >= Some(2), "{used:#}");
            // It is a server like any other.
            let more = kept(&other, &alice, "more");
            assert_eq!(stdout(&other, &alice, &more), "more\n");
        }
        enough.store(true, Ordering::Relaxed);
        load.join().expect("the load, of which nothing failed");
    });
}

#[test]
fn only_admins_get_a_backup_and_it_is_told_who_did() {
    let builder = Daemon::builder();
    let alice = builder.key(&["alice", "--scope", "run,images,metrics"]);
    let admin = builder.key(&["operator", "--scope", "admin"]);
    let daemon = builder.start();
    daemon.request("GET", "/backup").key(&alice).send().problem(403, "insufficient-scope");
    daemon.get("/backup").problem(401, "unauthorized");
    assert!(!daemon.log().contains("operator GET /backup"));
    let backup = daemon.request("GET", "/backup").key(&admin).send();
    assert_eq!(backup.status, 200, "{}", backup.text());
    daemon.wait_for_log("operator GET /backup");
    // Nobody finds a key in it, nor a page of another site one.
    let text = String::from_utf8_lossy(&backup.body);
    assert!(!text.contains(&admin) && !text.contains(&alice));
    let foreign = daemon.request("GET", "/backup").key(&admin).header("Origin", "https://evil.example");
    foreign.send().problem(403, "foreign-origin");
}

#[test]
fn what_waited_when_the_backup_was_made_runs_where_it_is_restored_once() {
    let folder = Folder::new();
    let archive = folder.join("backup.tar");
    let mut daemon = Daemon::builder().host_image().flag("--slots", 1).start();
    let long = running(&daemon);
    let keyed = |daemon: &Daemon, words: &str| -> Request {
        let request = daemon.request("POST", "/runs").header("Idempotency-Key", "k");
        request.header("Prefer", "respond-async").json(&echo(words))
    };
    let waits = keyed(&daemon, "at last").send().expect(202)["id"].as_str().expect("an id").to_owned();
    let file = daemon.request("POST", "/files").body("input").send().expect(201)["file"].clone();
    let mut reads = echo("reads");
    reads["files"] = json!([{ "path": "in", "file": file }]);
    let reads = daemon.run_async(&reads);
    std::fs::write(&archive, daemon.get("/backup").body).expect("write a backup");
    daemon.kill9();
    let other = restored(&archive).start();
    assert_eq!(other.wait_for_state(&waits, "finished")["stdout"], "at last\n");
    assert_eq!(other.wait_for_state(&long, "finished")["problem"]["type"], "/problems/interrupted");
    // Uploaded files are not in it: what needs one says so.
    let missing = other.wait_for_state(&reads, "finished");
    assert_eq!(missing["outcome"], "start_failed", "{missing:#}");
    assert!(missing["message"].as_str().is_some_and(|text| text.contains("there is no file")), "{missing:#}");
    // The client's key still stands for its run.
    assert_eq!(keyed(&other, "at last").send().json()["id"], waits.as_str());
    keyed(&other, "something else").send().problem(422, "idempotency-key-reused");
}

#[test]
fn batches_come_back_with_every_result_and_those_that_waited_are_run() {
    let folder = Folder::new();
    let archive = folder.join("backup.tar");
    let mut daemon = Daemon::builder().host_image().flag("--slots", 1).start();
    let batch = |script: &str| {
        json!({ "image": "host", "run": { "cmd": "sh" },
                "tests": [{ "args": ["-c", script], "expect": { "stdout": "ok" } },
                          { "args": ["-c", "echo no"], "expect": { "stdout": "ok" } }] })
    };
    let begin = |daemon: &Daemon, script: &str| {
        let request =
            daemon.request("POST", "/batches").header("Prefer", "respond-async").json(&batch(script));
        request.send().header("location").expect("a location").to_owned()
    };
    let end_of = |daemon: &Daemon, path: &str| {
        let done = daemon.request("GET", path).header("Prefer", "wait=60").send().expect(200);
        assert_eq!(done["state"], "finished", "{done:#}");
        done
    };
    let first = begin(&daemon, "echo ok");
    let first_end = end_of(&daemon, &first);
    running(&daemon);
    let second = begin(&daemon, "echo ok; echo later >&2");
    std::fs::write(&archive, daemon.get("/backup").body).expect("write a backup");
    daemon.kill9();
    let other = restored(&archive).start();
    assert_eq!(other.get(&first).expect(200), first_end);
    let second_end = end_of(&other, &second);
    assert_eq!(second_end["tests"][0]["verdict"], "accepted", "{second_end:#}");
    assert_eq!(second_end["tests"][0]["run"]["stderr"], "later\n", "{second_end:#}");
}

#[test]
fn a_client_that_does_not_read_its_backup_holds_up_no_run() {
    let daemon = Daemon::start();
    let mut stream = daemon.request("GET", "/backup").begin().expect("ask for a backup").into_stream();
    let mut status = [0; 12];
    stream.read_exact(&mut status).expect("a status");
    assert_eq!(&status, b"HTTP/1.1 200");
    for _ in 0..5 {
        assert_eq!(daemon.run(&echo("plain"))["stdout"], "plain\n");
        let id = daemon.run_async(&echo("promised"));
        assert_eq!(daemon.wait_for_state(&id, "finished")["stdout"], "promised\n");
    }
    drop(stream);
    // It has given its place to the next.
    assert_eq!(daemon.get("/backup").status, 200);
}

#[test]
fn a_disk_without_room_for_a_copy_is_left_to_the_runs() {
    let daemon = Daemon::builder().host_image().on_disk_of(48 << 20).start();
    daemon.get("/backup").problem(503, "run-store-failed");
    daemon.wait_for_log("a copy may take");
    let id = daemon.run_async(&echo("goes on"));
    assert_eq!(daemon.wait_for_state(&id, "finished")["stdout"], "goes on\n");
}

#[test]
fn a_stopped_server_is_backed_up_by_the_command_and_one_that_runs_says_how() {
    let folder = Folder::new();
    let archive = folder.join("backup.tar");
    let words = ["backup", &archive.display().to_string()];
    let mut daemon = Daemon::start();
    let id = daemon.run_async(&echo("kept"));
    daemon.wait_for_state(&id, "finished");
    let refused = sandglass_on(&words, &daemon.data_dir());
    assert_ne!(refused.code(), Some(0));
    assert!(refused.stderr_text().contains("GET /backup"), "{}", refused.stderr_text());
    assert!(!archive.exists());
    assert!(daemon.stop().success());
    let done = sandglass_on(&words, &daemon.data_dir());
    assert_eq!(done.code(), Some(0), "{}", done.stderr_text());
    check_with_tools(&archive, &folder, false);
    assert_ne!(sandglass_on(&words, &daemon.data_dir()).code(), Some(0), "it writes over a backup");
    // Where no server has been, none is backed up, and nothing is made.
    let empty = sandglass_on(&["backup", "-"], &folder.join("empty"));
    assert!(empty.stderr_text().contains("no server has used"), "{}", empty.stderr_text());
    assert!(empty.stdout_text().is_empty() && !folder.join("empty").exists());
    let other = restored(&archive).start();
    assert_eq!(other.show(&id)["stdout"], "kept\n");
}
