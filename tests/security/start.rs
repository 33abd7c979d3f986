//! Between the moment in which a run is told to its sandbox and the one in which its program starts: what a
//! request or an image can do to the process that is on this way, and whose fault it is said to be.

use std::path::PathBuf;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::image::Image;
use support::{Daemon, Registry, Value, host, json, until};

#[track_caller]
fn not_started(run: &Value, reason: &str) {
    let message = run["message"].as_str().expect("a message");
    let shown: String = message.chars().take(200).collect();
    assert_eq!(run["outcome"], "start_failed", "{shown}");
    assert!(message.len() < 20_000 && message.contains(reason), "{} bytes: {shown}", message.len());
}

/// Whatever is wrong with a request is told as that, also where the words for it need more room than a packet has.
#[test]
fn a_name_of_any_length_is_told_to_be_too_long() {
    let daemon = Daemon::builder().host_image().flag("--body-bytes-max", 4 << 20).start();
    for letter in ["x", "\u{1}", "\"", "é"] {
        for name in
            [letter.repeat(120_000 / letter.len()), format!("/{}", letter.repeat(60_000 / letter.len()))]
        {
            let run = daemon.run(&json!({ "image": "host", "cmd": name }));
            not_started(&run, "File name too long");
        }
    }
}

#[test]
fn what_an_image_says_of_itself_is_told_at_any_length() {
    let registry = Registry::start();
    let daemon = Daemon::builder().registry(&registry).start();
    let long = "x".repeat(100_000);
    for (name, value, reason) in [
        ("User", json!(long), "the image has no user"),
        ("User", json!(format!("0:{long}")), "the image has no group"),
        ("WorkingDir", json!(format!("/{long}")), "can't use the working directory"),
        ("Entrypoint", json!([format!("/{long}")]), "File name too long"),
    ] {
        let tag = name.to_lowercase();
        registry.push("long", &tag, &Image::busybox().set(name, value));
        let run = daemon.run(&json!({ "image": registry.image(&format!("long:{tag}")), "pull": "always" }));
        not_started(&run, reason);
    }
}

/// Together these would be gigabytes of paths, made before the program has a limit on time.
#[test]
fn a_long_name_is_not_looked_for_in_every_part_of_a_long_path() {
    let daemon = Daemon::builder().host_image().start();
    let run = daemon.run(&json!({
        "image": "host", "cmd": "x".repeat(100_000), "env": { "PATH": ":".repeat(100_000) },
    }));
    not_started(&run, "File name too long");
}

/// It lives in init's memory. Init goes on and says what it has seen, and that is no end of a program.
#[test]
fn a_process_that_dies_before_it_is_the_program_is_our_fault() {
    let daemon = Daemon::builder().host_image().flag("--prepared-max", 0).start();
    let content = vec![7; 2 << 20];
    let stored = daemon.request("POST", "/files").body(content).send().expect(201)["file"].clone();
    let files: Value = (0..60)
        .map(|number| json!({ "path": format!("f{number}"), "file": stored }))
        .collect::<Vec<_>>()
        .into();
    let request = json!({
        "image": "host", "cmd": "true", "workdir": "/w", "files": files,
        "limits": { "disk_bytes": 200 << 20, "memory_bytes": 400 << 20 },
    });
    let killed = (0..100).find_map(|_| {
        let id = daemon.run_async(&request);
        let was_killed = kill_while_files_are_laid(&daemon, &id);
        let run = daemon.wait_for_state(&id, "finished");
        was_killed.then_some(run)
    });
    let run = killed.expect("one of a hundred that was seen in time");
    assert_eq!(run["outcome"], "sandbox_error", "{run:#}");
    assert!(run["message"].as_str().expect("words").contains("before it became the program"), "{run:#}");
    // The server is none the worse for it.
    let run = daemon.run(&json!({ "image": "host", "cmd": "echo", "args": ["hi"] }));
    assert_eq!(run["stdout"], "hi\n", "{run:#}");
}

/// Stops it first, so that it is certain that it had not come to its last file.
fn kill_while_files_are_laid(daemon: &Daemon, id: &str) -> bool {
    let seen = |pid: i32, file: &str| PathBuf::from(format!("/proc/{pid}/root/w/{file}")).exists();
    let launcher = daemon.launcher_pid();
    // Launcher, keeper, init, command.
    let is_command = |pid: i32| {
        let keeper = host::parent(pid).and_then(host::parent);
        keeper.and_then(host::parent) == Some(launcher)
    };
    while daemon.show(id)["state"] != "finished" {
        let found = host::descendants(launcher).into_iter().find(|pid| seen(*pid, "f0") && is_command(*pid));
        let Some(pid) = found else { continue };
        let signal = |signal| kill(Pid::from_raw(pid), signal).is_ok();
        let state = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        if !signal(Signal::SIGSTOP) {
            return false;
        }
        until("it is stopped or gone", || !state().contains(") R ") && !state().contains(") D "));
        let in_time = state().contains(") T ") && !seen(pid, "f59");
        return signal(if in_time { Signal::SIGKILL } else { Signal::SIGCONT }) && in_time;
    }
    false
}
