//! SIGHUP: what can change without a restart does, and what is wrong changes nothing.

use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use support::{Daemon, Folder, Process, json, sandglass, tool, until};

/// A daemon whose file is `text`, and a way to give it another one.
struct Reloaded {
    daemon: Daemon,
    folder: Folder,
}

impl Reloaded {
    fn start(text: &str) -> Self {
        let folder = Folder::new();
        let path = folder.join("config.toml");
        std::fs::write(&path, text).expect("write a configuration");
        let daemon = Daemon::builder().flag("--config", path.display()).start();
        Self { daemon, folder }
    }

    fn reload(&mut self, text: &str) {
        std::fs::write(self.folder.join("config.toml"), text).expect("write a configuration");
        let before = self.daemon.log().matches("SIGHUP").count();
        self.daemon.process().signal(Signal::SIGHUP);
        until("it has read it", || self.daemon.log().matches("SIGHUP").count() > before);
    }
}

#[test]
fn limits_names_and_allow_lists_change_without_a_restart() {
    let common = "allow_host_image = true\n";
    let mut reloaded = Reloaded::start(common);
    let pid = reloaded.daemon.pid();
    let sleep = json!({ "image": "host", "cmd": "sleep", "args": ["1"] });
    let named =
        |daemon: &Daemon| daemon.request("GET", "/info").header("Host", "runs.example.org").send().status;
    let wall = |daemon: &Daemon| daemon.get("/info").expect(200)["defaults"]["wall_time_ms"].clone();
    let page = |daemon: &Daemon| {
        let answer = daemon.request("GET", "/info").header("Origin", "https://judge.example.org").send();
        (answer.status, answer.header("access-control-allow-origin").map(str::to_owned))
    };
    assert_eq!((named(&reloaded.daemon), wall(&reloaded.daemon)), (403, json!(10_000)));
    assert_eq!(page(&reloaded.daemon), (403, None));
    // What runs goes on under the limits with which it began.
    let running = reloaded.daemon.run_async(&sleep);
    reloaded.daemon.wait_for_state(&running, "running");

    reloaded.reload(&format!(
        "{common}allowed_hosts = ['runs.example.org']\nallowed_origins = ['https://judge.example.org']\nallow_registry = ['ghcr.io']\nlog = 'debug'\n[limits]\nwall_time_ms = 50\n"
    ));
    let daemon = &reloaded.daemon;
    assert_eq!((named(daemon), wall(daemon)), (200, json!(50)));
    assert_eq!(page(daemon), (200, Some("https://judge.example.org".into())));
    assert_eq!(daemon.run(&sleep)["outcome"], "wall_time_limit");
    assert_eq!(daemon.wait_for_state(&running, "finished")["outcome"], "exited");
    daemon.post("/runs", &json!({ "image": "quay.io/x/y", "cmd": "true" })).problem(422, "image-not-allowed");
    daemon.wait_for_log("DEBUG");
    daemon.wait_for_log("changed=\"allow_registry, allowed_hosts, allowed_origins, limits, log\"");
    assert_eq!(daemon.pid(), pid);
}

#[test]
fn what_is_wrong_changes_nothing_and_what_needs_a_restart_is_named() {
    let mut reloaded = Reloaded::start("allow_host_image = true\n[limits]\nwall_time_ms = 5000\n");
    let wall = |daemon: &Daemon| daemon.get("/info").expect(200)["defaults"]["wall_time_ms"].clone();
    for wrong in [
        "slotz = 3\n",
        "log = 'engine=loud'\n[limits]\nwall_time_ms = 60\n",
        "[limits]\nwall_time_ms = 0\n",
        "not toml",
    ] {
        reloaded.reload(wrong);
        assert_eq!(wall(&reloaded.daemon), json!(5000), "{wrong}");
    }
    // A budget that comes with a restart only is no room for larger runs before.
    let memory =
        reloaded.daemon.get("/info").expect(200)["budget"]["memory_bytes"].as_u64().expect("a number");
    let more = memory + (1 << 20);
    reloaded.reload(&format!(
        "allow_host_image = true\nbudget_memory_bytes = {more}\n[limits]\nmemory_bytes = {more}\n[maxima]\nmemory_bytes = {more}\n"
    ));
    assert_eq!(reloaded.daemon.run(&json!({ "image": "host", "cmd": "true" }))["outcome"], "exited");
    reloaded.daemon.wait_for_log("everything stays as it was");
    reloaded.reload("allow_host_image = true\nkept_runs = 7\n[limits]\nwall_time_ms = 6000\n");
    assert_eq!(wall(&reloaded.daemon), json!(6000));
    reloaded.daemon.wait_for_log("with a restart only");
    let log = reloaded.daemon.log();
    assert!(log.contains("settings=\"kept_runs\"") && log.contains("with a restart only"), "{log}");
}

/// As in a container: root's data directory has the keys that let it listen for others. When it reads its configuration
/// again it is root no more, and the directory is the same.
#[test]
fn what_the_defaults_were_at_the_start_they_are_at_sighup() {
    let folder = Folder::new();
    let path = folder.join("config.toml");
    std::fs::write(&path, "allow_host_image = true\n").expect("write a configuration");
    let script =
        "mount -t tmpfs -o mode=755 none /var/lib && \"$0\" key create me && exec \"$0\" serve \"$@\"";
    let mut command = Command::new(tool("unshare"));
    command.args(["--mount", "sh", "-c", script]).arg(sandglass());
    command.args(["--listen=0.0.0.0:0", "--docker-config=", "--log-format=text", "--config"]).arg(&path);
    command.env("HOME", "/nowhere").env_remove("XDG_DATA_HOME");
    let process = Process::start("sandglass serve", command);
    let listens = |line: &str| line.strip_prefix("listening on http://").map(drop);
    process.wait_for_line("where it listens", Duration::from_secs(60), listens);
    std::fs::write(&path, "allow_host_image = true\n[limits]\nwall_time_ms = 50\n").expect("write another");
    process.signal(Signal::SIGHUP);
    until("it has read it", || process.log().contains("SIGHUP"));
    let log = process.log();
    assert!(log.contains("changed=\"limits\"") && !log.contains("with a restart only"), "{log}");
}
