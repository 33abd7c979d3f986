//! Whoever reads what the program says may go at any time: `sandglass images | head -1`, a log's collector that ends.

use std::io::PipeWriter;
use std::process::{Command, Stdio};

use support::{
    Daemon, Finished, Folder, Process, Registry, Request, Service, Value, json, sandglass, tool, until,
};

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

/// A server whose log is read up to where it listens, and on only once `more` has been written to; and a key for it.
fn stalled(folder: &Folder) -> (Service, String) {
    const READER: &str = "while IFS= read -r line; do printf '%s\\n' \"$line\"; case $line in listening*) break;; \
                          esac; done; read -r _ < \"$MORE\"; exec cat";
    let more = folder.join("more");
    let made = Command::new(tool("mkfifo")).arg(&more).status().expect("start mkfifo");
    assert!(made.success());
    let data = folder.join("data");
    let made = Finished::of(
        Command::new(sandglass())
            .args(["key", "create", "root", "--scope", "run", "--scope", "admin", "--data-dir"])
            .arg(&data),
    );
    let key = made.stdout_text().trim().to_owned();
    let mut command = Command::new(tool("bash"));
    command.args(["-c", &format!("exec \"$0\" serve \"$@\" 2> >({READER})")]).arg(sandglass());
    command.args(["--listen=127.0.0.1:0", "--allow-host-image", "--docker-config=", "--log=debug"]);
    command.arg("--data-dir").arg(data).env("MORE", &more).env("SANDGLASS_LOG_FORMAT", "text");
    (Service::wait_for(Process::start("sandglass serve", command)), key)
}

fn run((service, key): &(Service, String), body: &Value) -> Value {
    Request::new(service.address(), "POST", "/runs").key(key).json(body).send().expect(200)
}

fn dropped((service, key): &(Service, String), kind: &str) -> u64 {
    let name = format!("sandglass_log_lines_dropped_total{{kind=\"{kind}\"}} ");
    let page = Request::new(service.address(), "GET", "/metrics").key(key).send().text();
    page.lines().find_map(|line| line.strip_prefix(&name)).expect("a count").parse().expect("a number")
}

/// Calls until the log has no room for what is said of them, each with a name in its line; says how many.
fn fill(service: &(Service, String)) -> u64 {
    let long = "x".repeat(20_000);
    let mut calls = 0;
    while dropped(service, "audit") < 5 {
        assert!(calls < 1_000, "the log takes whatever comes");
        let path = format!("/runs/{calls}-{long}");
        assert_eq!(Request::new(service.0.address(), "DELETE", &path).key(&service.1).send().status, 404);
        calls += 1;
    }
    calls
}

/// The thread that logged waited for the reader, and soon every thread of the server did.
#[test]
fn a_server_whose_log_is_read_by_somebody_who_stalls_goes_on_and_says_how_much_was_lost() {
    let folder = Folder::new();
    let service = stalled(&folder);
    let calls = fill(&service);
    let said = run(&service, &json!({ "image": "host", "cmd": "echo", "args": ["hello"] }));
    assert_eq!(said["stdout"], "hello\n", "{said}");
    assert!(dropped(&service, "other") > 0, "plain lines leave room for those of the audit");
    let audit = dropped(&service, "audit");
    std::fs::write(folder.join("more"), "\n").expect("let the reader go on");
    until("it says what was lost", || service.0.log().contains("lines of the log were lost"));
    let said = service.0.log();
    let line = said.lines().find(|line| line.contains("lines of the log were lost")).expect("a line");
    assert!(line.contains(&format!(" audit={audit}")), "{line}");
    // What was not lost is whole, and in its order. The run is one more call.
    let kept: Vec<_> = said.lines().filter(|line| line.contains("audit: ")).collect();
    assert_eq!(kept.len() as u64 + audit, calls + 1);
    for (call, line) in kept.iter().filter(|line| line.contains("DELETE")).enumerate() {
        assert!(line.contains(&format!("DELETE /runs/{call}-x")) && line.contains("request.id="), "{line}");
    }
    run(&service, &json!({ "image": "host", "cmd": "true" }));
    assert_eq!(dropped(&service, "audit"), audit, "nothing more is lost");
}

#[test]
fn a_server_whose_log_is_read_by_somebody_who_stalls_ends_when_it_is_told_to() {
    let folder = Folder::new();
    let service = stalled(&folder);
    fill(&service);
    assert_eq!(service.0.stop(), Some(0));
    std::fs::write(folder.join("more"), "\n").expect("let the reader end");
}

#[test]
fn the_last_line_of_a_server_is_read() {
    for _ in 0..5 {
        let mut daemon = Daemon::start();
        assert!(daemon.stop().success());
        daemon.wait_for_log(" stopped");
    }
}
