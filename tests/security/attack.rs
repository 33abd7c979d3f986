//! How an attack is made and judged.

use std::fmt::Write;
use std::time::Duration;

use support::{Daemon, Host, Value, json, skip};

/// One attack: a Python script that runs inside, and what a correct sandbox lets it print.
pub(crate) struct Attack {
    /// The row of the suite, such as `F-03`.
    pub(crate) id: &'static str,
    /// What is tried, in words.
    pub(crate) tries: &'static str,
    pub(crate) script: &'static str,
    /// What it may print, without white space at the ends. One of these.
    pub(crate) shows: &'static [&'static str],
    /// How the run may end.
    pub(crate) ends: &'static str,
    /// The longest that the program may have taken, where that says whether a wall stood.
    pub(crate) within_ms: f64,
    /// Fields of the request beyond image and command, as JSON.
    pub(crate) request: &'static str,
}

/// An attack that leaves its program alive to tell of it.
pub(crate) const fn attack(
    id: &'static str,
    tries: &'static str,
    script: &'static str,
    shows: &'static [&'static str],
) -> Attack {
    Attack { id, tries, script, shows, ends: "exited", within_ms: f64::INFINITY, request: "{}" }
}

impl Attack {
    /// For those that are meant to end otherwise than with code 0.
    pub(crate) const fn ends(self, outcome: &'static str) -> Self {
        Self { ends: outcome, ..self }
    }

    pub(crate) const fn within_ms(self, within_ms: f64) -> Self {
        Self { within_ms, ..self }
    }

    pub(crate) const fn with(self, request: &'static str) -> Self {
        Self { request, ..self }
    }
}

/// What every script finds already there.
const PRELUDE: &str = include_str!("prelude.py");

/// Makes every attack of a category, one after the other, and fails with the list of those that got
/// through or left something behind.
pub(crate) fn repel(attacks: &[Attack]) {
    repel_on(Daemon::builder().host_image().flag("--slots", 4), attacks);
}

pub(crate) fn repel_on(daemon: support::Builder, attacks: &[Attack]) {
    if !cfg!(target_arch = "x86_64") {
        skip("the attacks name system calls by the numbers of x86-64");
        return;
    }
    let daemon = daemon.start();
    // What is made once, at the first run, is no trace of an attack.
    daemon.run(&json!({ "image": "host", "cmd": "true" }));
    let host = daemon.host();
    let mut red = String::new();
    for attack in attacks {
        match attack.made_on(&daemon, &host) {
            Ok(()) => println!("green {}: {}", attack.id, attack.tries),
            Err(reason) => {
                println!("red {}: {}", attack.id, attack.tries);
                let _ = writeln!(red, "{} ({}): {reason}", attack.id, attack.tries);
            }
        }
    }
    assert!(red.is_empty(), "walls let something through:\n{red}");
}

impl Attack {
    fn made_on(&self, daemon: &Daemon, host: &Host) -> Result<(), String> {
        let mut request: Value = serde_json::from_str(self.request).expect("an attack's request is JSON");
        let script = format!("{PRELUDE}\n{}", self.script);
        request["image"] = json!("host");
        if request.get("limits").is_none() {
            // Time enough on a slow machine: what is tested is not the clock.
            request["limits"] = json!({ "wall_time_ms": 60_000, "cpu_time_ms": 60_000 });
        }
        request["cmd"] = json!("python3");
        request["args"] = json!(["-u", "-c", script]);
        let asked =
            daemon.request("POST", "/runs").json(&request).patience(Duration::from_secs(320)).try_send();
        let response = asked.map_err(|error| format!("the server does not answer: {error}"))?;
        if response.status != 200 {
            return Err(format!("status {}: {}", response.status, response.text()));
        }
        let run = response.json();
        let ended = run["outcome"].as_str().unwrap_or_default();
        let shown = run["stdout"].as_str().unwrap_or_default().trim();
        let zero = ended != "exited" || run["exit_code"] == 0;
        if ended != self.ends || !zero {
            let stderr = run["stderr"].as_str().unwrap_or_default();
            return Err(format!("ended as {}: {shown:?} {stderr:?}", run["message"]));
        }
        if !self.shows.contains(&shown) {
            return Err(format!("showed {shown:?} instead of one of {:?}", self.shows));
        }
        let took = run["usage"]["wall_time_ms"].as_f64().unwrap_or_default();
        if took > self.within_ms {
            return Err(format!("took {took} ms"));
        }
        host.settled().map_err(|left| format!("left on the host:\n{left}"))
    }
}
