//! Whoever reads what the program says may go at any time: `sandglass images | head -1`, a log's collector that ends.

use std::io::PipeWriter;
use std::process::{Command, Stdio};

use support::{Daemon, Folder, Process, Registry, Service, Value, json, sandglass, tool};

/// What shells say of a program that SIGPIPE has ended.
const ENDED_BY_SIGPIPE: i32 = 141;

/// A pipe whose reader has gone.
fn unread() -> PipeWriter {
    std::io::pipe().expect("make a pipe").1
}

/// A command on the data of a server that is stopped, whose standard output nobody reads.
fn into_nothing(daemon: &Daemon, words: &[&str]) -> Command {
    let mut command = Command::new(sandglass());
    command.args(words).env("SANDGLASS_DATA_DIR", daemon.data_dir()).env("SANDGLASS_DOCKER_CONFIG", "");
    command.stdin(Stdio::null()).stdout(unread());
    command
}

#[test]
fn a_command_whose_output_nobody_reads_ends_quietly() {
    let registry = Registry::start();
    let image = registry.image("busybox");
    let mut daemon = Daemon::builder().registry(&registry).start();
    daemon.run(&json!({ "image": image, "cmd": "true" }));
    daemon.stop();
    let insecure = format!("--insecure-registry={}", registry.host());
    for words in [
        &["serve", "--print-config"][..],
        &["doctor"],
        &["images"],
        &["images", "--json"],
        &["image", "pin", &image],
        &["image", "save", &image],
        &["pull", &insecure, &image],
        &["pull", "--json", &insecure, &image],
        &["key", "list"],
        &["key", "list", "--json"],
        &["openapi"],
        &["openapi", "--problems"],
        &["completions", "bash"],
        &["backup", "-"],
    ] {
        let done = into_nothing(&daemon, words).output().expect("start sandglass");
        let said = String::from_utf8_lossy(&done.stderr);
        assert_eq!((done.status.code(), said.as_ref()), (Some(ENDED_BY_SIGPIPE), ""), "{words:?}");
    }
}

#[test]
fn a_command_that_nobody_hears_at_all_does_what_it_was_told() {
    let daemon = Daemon::builder().host_image().start();
    let mut create = into_nothing(&daemon, &["key", "create", "alice"]);
    let status = create.stderr(unread()).status().expect("start sandglass");
    assert_eq!(status.code(), Some(ENDED_BY_SIGPIPE));
    let mut revoke = into_nothing(&daemon, &["key", "revoke", "--principal", "alice"]);
    assert_eq!(revoke.stderr(unread()).status().expect("start sandglass").code(), Some(0));
    let list = daemon.builder_of().key_command(&["list", "--json"]);
    let keys: Value = serde_json::from_slice(&list.stdout).expect("JSON");
    assert_eq!(keys["keys"][0]["state"], "revoked", "{keys}");
}

/// It had answered nothing any more: a line that its log did not take was a panic in the middle of a run.
#[test]
fn a_server_whose_log_nobody_reads_goes_on() {
    let folder = Folder::new();
    let mut command = Command::new(tool("bash"));
    command.args(["-c", "exec \"$0\" serve \"$@\" 2> >(sed -u '/^listening/q')"]).arg(sandglass());
    command.args(["--listen=127.0.0.1:0", "--allow-host-image", "--docker-config=", "--log=debug"]);
    command.arg("--data-dir").arg(folder.path());
    let service = Service::wait_for(Process::start("sandglass serve", command));
    for _ in 0..3 {
        let run = service.run(&json!({ "image": "host", "cmd": "echo", "args": ["hello"] }));
        assert_eq!(run["stdout"], "hello\n", "{run}");
    }
    assert_eq!(service.get("/metrics").status, 200);
    assert_eq!(service.stop(), Some(0));
}
