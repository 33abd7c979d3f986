//! A real Prometheus scrapes a real server under load: every query of the dashboard, and what every alert
//! looks at, has data.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use support::{Daemon, Folder, Process, Registry, Request, Response, Value, json, tool, within};

use crate::rules::alerts;
use crate::{file, text};

/// Prometheus and the exporter of the machine's own numbers, with the configuration that is shipped.
struct Watcher {
    address: std::net::SocketAddr,
    // Stopped before the folder goes.
    _processes: [Process; 2],
    _folder: Folder,
}

/// Both say so in the same words.
fn listens(process: &Process) -> std::net::SocketAddr {
    process.wait_for_line("where it listens", Duration::from_secs(30), |line| {
        let rest = line.split_once("msg=\"Listening on\" address=")?.1;
        rest.split_whitespace().next()?.parse().ok()
    })
}

impl Watcher {
    fn of(daemon: &Daemon) -> Self {
        let folder = Folder::new();
        let mut exporter = Command::new(tool("prometheus-node-exporter"));
        exporter.arg("--web.listen-address=127.0.0.1:0");
        let exporter = Process::start("prometheus-node-exporter", exporter);
        let config = text("deploy/prometheus/prometheus.yml")
            .replace("localhost:8080", &daemon.address().to_string())
            .replace("localhost:9100", &listens(&exporter).to_string())
            .replace(": 15s", ": 1s");
        for name in ["recording.yml", "alerts.yml"] {
            std::fs::copy(file("deploy/prometheus").join(name), folder.join(name)).expect("copy the rules");
        }
        std::fs::write(folder.join("prometheus.yml"), config).expect("write a configuration");
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

    fn query(&self, query: &str) -> Response {
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        Request::new(self.address, "POST", "/api/v1/query")
            .header("Content-Type", "application/x-www-form-urlencoded")
            .body(format!("query={encoded}"))
            .send()
    }

    /// Whether there is at least one number, and how it answered.
    fn has_data(&self, query: &str) -> (bool, String) {
        let answer = self.query(query).expect(200);
        let series = answer["data"]["result"].as_array().expect("a vector");
        let number = |one: &Value| one["value"][1].as_str().is_some_and(|text| text != "NaN");
        (series.iter().any(number), answer.to_string())
    }
}

/// What clients do all day: good runs and bad ones, images that are there and that are not, too much at once.
fn load(daemon: &Daemon, registry: &Registry, enough: &AtomicBool) {
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

/// The queries of every panel, with the variables as an operator sees them first.
fn queries() -> Vec<(String, String)> {
    let dashboard: Value = serde_json::from_str(&text("deploy/grafana/sandglass.json")).expect("JSON");
    let mut all = Vec::new();
    for panel in dashboard["panels"].as_array().expect("panels") {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let query = target["expr"].as_str().expect("a query");
            let query = query
                .replace("$job", ".*sandglass.*")
                .replace("$instance", ".*")
                .replace("$__rate_interval", "10s");
            assert!(!query.contains('$'), "an unknown variable in {query}");
            all.push((panel["title"].as_str().expect("a title").to_owned(), query));
        }
    }
    all
}

/// What an alert compares: it has data also where the alert is silent.
fn looked_at(expression: &str) -> &str {
    let compared = [" > ", " == "].iter().find_map(|sign| expression.rsplit_once(sign));
    compared.expect("an alert compares something").0
}

#[test]
fn every_query_of_the_dashboard_and_of_the_alerts_has_data_under_load() {
    let registry = Registry::start();
    let daemon = Daemon::builder()
        .host_image()
        .registry(&registry)
        .flag("--slots", 2)
        .flag("--queue-capacity", 2)
        .start();
    let watcher = Watcher::of(&daemon);
    let mut open = queries();
    assert!(open.len() > 40, "{}", open.len());
    open.extend(alerts().into_iter().map(|(name, expression)| (name, looked_at(&expression).to_owned())));
    let enough = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let loading = scope.spawn(|| load(&daemon, &registry, &enough));
        let mut answers = Vec::new();
        let all = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            within(Duration::from_secs(90), "data for every query", || {
                answers.clear();
                open.retain(|(title, query)| {
                    let (found, answer) = watcher.has_data(query);
                    if !found {
                        answers.push(format!("{title}: {query}\n    {answer}"));
                    }
                    !found
                });
                std::thread::sleep(Duration::from_millis(500));
                open.is_empty().then_some(())
            });
        }));
        enough.store(true, Ordering::Relaxed);
        loading.join().expect("the load");
        assert!(all.is_ok(), "queries without data:\n{}", answers.join("\n"));
    });
    let rules = Request::new(watcher.address, "GET", "/api/v1/rules").send().expect(200);
    assert!(!rules.to_string().contains("\"health\":\"err\""), "{rules:#}");
}
