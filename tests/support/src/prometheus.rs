//! A real Prometheus that watches a real server, and the load under which it is looked at.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::{Daemon, Folder, Process, Registry, Request, Response, repository, tool};

/// Prometheus and the exporter of the machine's own numbers, with the configuration that is shipped.
#[derive(Debug)]
pub struct Watcher {
    address: std::net::SocketAddr,
    // Stopped before the folder goes.
    _processes: [Process; 2],
    _folder: Folder,
}

fn shipped(name: &str) -> PathBuf {
    repository().join("deploy/prometheus").join(name)
}

/// Both say so in the same words.
fn listens(process: &Process) -> std::net::SocketAddr {
    process.wait_for_line("where it listens", Duration::from_secs(30), |line| {
        let rest = line.split_once("msg=\"Listening on\" address=")?.1;
        rest.split_whitespace().next()?.parse().ok()
    })
}

impl Watcher {
    #[track_caller]
    pub fn of(daemon: &Daemon) -> Self {
        let folder = Folder::new();
        let mut exporter = Command::new(tool("prometheus-node-exporter"));
        exporter.arg("--web.listen-address=127.0.0.1:0");
        let exporter = Process::start("prometheus-node-exporter", exporter);
        let config = fs::read_to_string(shipped("prometheus.yml"))
            .expect("read the configuration that is shipped")
            .replace("localhost:8080", &daemon.address().to_string())
            .replace("localhost:9100", &listens(&exporter).to_string())
            .replace(": 15s", ": 1s");
        for name in ["recording.yml", "alerts.yml"] {
            fs::copy(shipped(name), folder.join(name)).expect("copy the rules");
        }
        fs::write(folder.join("prometheus.yml"), config).expect("write a configuration");
        let mut command = Command::new(tool("prometheus"));
        command.arg(format!("--config.file={}", folder.join("prometheus.yml").display()));
        command.arg(format!("--storage.tsdb.path={}", folder.join("data").display()));
        command.arg("--web.listen-address=127.0.0.1:0");
        let prometheus = Process::start("prometheus", command);
        let address = listens(&prometheus);
        // It listens a little before it can answer.
        prometheus.wait_for_line("that it is ready", Duration::from_secs(30), |line| {
            line.contains("Server is ready").then_some(())
        });
        Self { address, _processes: [prometheus, exporter], _folder: folder }
    }

    /// What a query says now.
    pub fn query(&self, query: &str) -> Response {
        self.ask("query", &format!("query={}", encoded(query)))
    }

    /// What it said every `step` seconds from one time to the other, in seconds since 1970.
    pub fn query_range(&self, query: &str, from: f64, to: f64, step: f64) -> Response {
        self.ask("query_range", &format!("query={}&start={from}&end={to}&step={step}", encoded(query)))
    }

    fn ask(&self, call: &str, form: &str) -> Response {
        Request::new(self.address, "POST", &format!("/api/v1/{call}"))
            .header("Content-Type", "application/x-www-form-urlencoded")
            .body(form)
            .send()
    }

    /// How it finds its rules.
    pub fn rules(&self) -> Value {
        Request::new(self.address, "GET", "/api/v1/rules").send().expect(200)
    }

    /// Whether there is at least one number, and how it answered.
    pub fn has_data(&self, query: &str) -> (bool, String) {
        let answer = self.query(query).expect(200);
        let series = answer["data"]["result"].as_array().expect("a vector");
        let number = |one: &Value| one["value"][1].as_str().is_some_and(|text| text != "NaN");
        (series.iter().any(number), answer.to_string())
    }
}

fn encoded(query: &str) -> String {
    query.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

/// What clients do all day: good runs and bad ones, images that are there and that are not, too much at once.
pub fn load(daemon: &Daemon, registry: &Registry, enough: &AtomicBool) {
    let host = |script: &str| json!({ "image": "host", "cmd": "sh", "args": ["-c", script] });
    let busybox = json!({ "image": registry.image("busybox"), "cmd": "true" });
    let limited = |script: &str, limits: Value| {
        let mut body = host(script);
        body["limits"] = limits;
        body
    };
    let bodies = [
        host("true"),
        host("exit 3"),
        host("kill -SEGV $$"),
        limited("sleep 9", json!({ "wall_time_ms": 50 })),
        limited("while :; do :; done", json!({ "cpu_time_ms": 50 })),
        json!({ "image": registry.image("nope"), "cmd": "true" }),
        busybox,
        json!({ "image": "a b" }),
    ];
    while !enough.load(Ordering::Relaxed) {
        for body in &bodies {
            daemon.post("/runs", body);
        }
        for _ in 0..8 {
            drop(daemon.request("POST", "/runs").header("Prefer", "respond-async").json(&bodies[0]).send());
        }
        daemon.get("/runs");
        daemon.get("/nothing");
        // So that it has to be pulled again.
        daemon.delete(&format!("/images/{}", registry.image("busybox:latest")));
    }
}
