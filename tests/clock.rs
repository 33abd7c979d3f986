//! The machine's clock is set by hours, forward and back, while runs go, wait and are kept: no limit strikes too
//! early or too late, nothing is forgotten that was to be kept, and nobody waits for hours.
//!
//! It needs a machine of its own, whose clock nobody else goes by: `cargo xtask vm` boots one.

use std::process::Command;
use std::time::{Instant, SystemTime};

use support::{Daemon, Finished, Value, json, tool};

const HOUR: i64 = 3600;

fn now() -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a clock after 1970");
    i64::try_from(now.as_secs()).expect("a small number")
}

fn set_clock(by: i64) {
    let wanted = now() + by;
    let done = Finished::of(Command::new(tool("date")).arg(format!("--set=@{wanted}")));
    assert!(done.status.success(), "{}", done.stderr_text());
    assert!((now() - wanted).abs() < 60, "the clock was set");
}

fn sh(script: &str, wall_time_ms: u64) -> Value {
    let limits = json!({ "wall_time_ms": wall_time_ms });
    json!({ "image": "host", "cmd": "sh", "args": ["-c", script], "limits": limits })
}

/// What is kept for an hour, or a day, and must be there whatever the clock says.
struct Kept {
    run: String,
    key: &'static str,
    file: String,
}

impl Kept {
    fn make(daemon: &Daemon, key: &'static str) -> Self {
        let request = daemon.request("POST", "/runs").header("Idempotency-Key", key);
        let run = request.json(&sh("echo kept", 60_000)).send().expect(200);
        let file = daemon.request("POST", "/files").body("some bytes").send();
        let file = file.json();
        let text = |value: &Value| value.as_str().expect("text").to_owned();
        Self { run: text(&run["id"]), key, file: text(&file["file"]) }
    }

    fn is_there(&self, daemon: &Daemon) {
        let run = daemon.show(&self.run);
        assert_eq!((&run["state"], &run["stdout"]), (&json!("finished"), &json!("kept\n")), "{run}");
        let request = daemon.request("POST", "/runs").header("Idempotency-Key", self.key);
        let again = request.json(&sh("echo kept", 60_000)).send().expect(200);
        assert_eq!(again["id"], self.run.as_str(), "the same key is the same run");
        let read = json!({ "image": "host", "cmd": "cat", "stdin": { "file": self.file } });
        assert_eq!(daemon.run(&read)["stdout"], "some bytes");
        let listed = daemon.get("/runs").expect(200);
        assert!(listed.to_string().contains(&self.run), "{listed:#}");
    }
}

/// Sets the clock while one run goes, one waits behind it, and one is on its way to its limit.
fn jump(daemon: &Daemon, by: i64) {
    let began = Instant::now();
    let late = daemon.run_async(&sh("sleep 600", 8_000));
    let good = daemon.run_async(&sh("sleep 3; echo good", 120_000));
    let queued = daemon.run_async(&sh("echo queued", 60_000));
    daemon.wait_for_state(&good, "running");
    assert_eq!(daemon.show(&queued)["state"], "queued");
    set_clock(by);
    for (id, said) in [(good, "good\n"), (queued, "queued\n")] {
        let run = daemon.wait_for_state(&id, "finished");
        assert_eq!((&run["outcome"], &run["stdout"]), (&json!("exited"), &json!(said)), "{by}: {run}");
    }
    let run = daemon.wait_for_state(&late, "finished");
    assert_eq!(run["outcome"], "wall_time_limit", "{by}: {run}");
    let used = run["usage"]["wall_time_ms"].as_f64().expect("a time");
    let took = began.elapsed().as_secs_f64() * 1000.0;
    assert!((8_000.0..=took).contains(&used), "{by}: {used} ms of {took}");
    for (phase, time) in run["timings"].as_object().expect("timings") {
        assert!(time.as_f64().is_none_or(|time| (0.0..=took).contains(&time)), "{phase}: {run}");
    }
}

/// What is told of a file's end is by the clock as it is when it is told.
fn an_end_is_told_by_the_clock_as_it_is(daemon: &Daemon) {
    let file = daemon.request("POST", "/files").body("other bytes").send().json();
    let at = file["expires_at"].as_str().expect("a time");
    let done = Finished::of(Command::new(tool("date")).args(["+%s", "--date", at]));
    let left = done.stdout_text().trim().parse::<i64>().expect("a number") - now();
    assert!((left - 24 * HOUR).abs() < 600, "{left} s are left, says {at}");
}

#[test]
fn a_clock_that_jumps_by_hours_fools_nobody() {
    assert!(
        std::env::var_os("SANDGLASS_OWN_MACHINE").is_some(),
        "this sets the machine's clock: run `cargo xtask vm`, which has a machine for it"
    );
    let daemon = Daemon::builder().host_image().flag("--slots", 2).start();
    let first = Kept::make(&daemon, "first");
    jump(&daemon, 30 * HOUR);
    first.is_there(&daemon);
    an_end_is_told_by_the_clock_as_it_is(&daemon);
    let second = Kept::make(&daemon, "second");
    jump(&daemon, -50 * HOUR);
    first.is_there(&daemon);
    second.is_there(&daemon);
    // The next server goes by the clock as it finds it: nothing is dropped for being from the future.
    let daemon = daemon.restart();
    second.is_there(&daemon);
    jump(&daemon, 20 * HOUR);
    assert!(daemon.get("/readyz").status == 200);
}
