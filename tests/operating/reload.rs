//! SIGHUP: what can change without a restart does, and what is wrong changes nothing.

use nix::sys::signal::Signal;
use support::{Daemon, Folder, json, until};

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
    assert_eq!((named(&reloaded.daemon), wall(&reloaded.daemon)), (403, json!(10_000)));
    // What runs goes on under the limits with which it began.
    let running = reloaded.daemon.run_async(&sleep);
    reloaded.daemon.wait_for_state(&running, "running");

    reloaded.reload(&format!(
        "{common}allowed_hosts = ['runs.example.org']\nallow_registry = ['ghcr.io']\nlog = 'debug'\n[limits]\nwall_time_ms = 50\n"
    ));
    let daemon = &reloaded.daemon;
    assert_eq!((named(daemon), wall(daemon)), (200, json!(50)));
    assert_eq!(daemon.run(&sleep)["outcome"], "wall_time_limit");
    assert_eq!(daemon.wait_for_state(&running, "finished")["outcome"], "exited");
    daemon.post("/runs", &json!({ "image": "quay.io/x/y", "cmd": "true" })).problem(422, "image-not-allowed");
    daemon.wait_for_log("DEBUG");
    daemon.wait_for_log("changed=\"allow_registry, allowed_hosts, limits, log\"");
    assert_eq!(daemon.pid(), pid);
}

#[test]
fn what_is_wrong_changes_nothing_and_what_needs_a_restart_is_named() {
    let mut reloaded = Reloaded::start("allow_host_image = true\n[limits]\nwall_time_ms = 5000\n");
    let wall = |daemon: &Daemon| daemon.get("/info").expect(200)["defaults"]["wall_time_ms"].clone();
    for wrong in ["slotz = 3\n", "[limits]\nwall_time_ms = 0\n", "not toml"] {
        reloaded.reload(wrong);
        assert_eq!(wall(&reloaded.daemon), json!(5000), "{wrong}");
    }
    reloaded.daemon.wait_for_log("everything stays as it was");
    reloaded.reload("allow_host_image = true\nkept_runs = 7\n[limits]\nwall_time_ms = 6000\n");
    assert_eq!(wall(&reloaded.daemon), json!(6000));
    reloaded.daemon.wait_for_log("with a restart only");
    let log = reloaded.daemon.log();
    assert!(log.contains("settings=\"kept_runs\"") && log.contains("with a restart only"), "{log}");
}
