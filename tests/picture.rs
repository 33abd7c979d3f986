//! What the dashboard shows of a real server under load, asked from a real Prometheus: for `cargo xtask dashboard
//! picture`, which draws it. It takes as long as one lets it, and so is no part of the tests.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use support::prometheus::{Watcher, load};
use support::{Daemon, Registry, Value, json, repository, target};

/// How many points a line has.
const POINTS: f64 = 120.0;

fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a clock after 1970").as_secs_f64()
}

#[test]
fn what_the_dashboard_shows_under_load() {
    let seconds = std::env::var("SANDGLASS_PICTURE_SECONDS").ok().and_then(|text| text.parse().ok());
    let long = Duration::from_secs(seconds.expect("SANDGLASS_PICTURE_SECONDS is a number"));
    let registry = Registry::start();
    let daemon = Daemon::builder()
        .host_image()
        .registry(&registry)
        .flag("--slots", 2)
        .flag("--queue-capacity", 4)
        .start();
    let watcher = Watcher::of(&daemon);
    let (enough, began, from) = (AtomicBool::new(false), Instant::now(), now());
    std::thread::scope(|scope| {
        scope.spawn(|| load(&daemon, &registry, &enough));
        std::thread::sleep(long);
        enough.store(true, Ordering::Relaxed);
    });
    let to = from + began.elapsed().as_secs_f64();
    let text = std::fs::read_to_string(repository().join("deploy/grafana/sandglass.json"));
    let dashboard: Value = serde_json::from_str(&text.expect("read the dashboard")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels").iter();
    let panels: Vec<Value> = panels.map(|panel| with_series(&watcher, panel, from, to)).collect();
    let file = target().join("dashboard.json");
    std::fs::write(&file, json!({ "from": from, "to": to, "panels": panels }).to_string())
        .expect("write it down");
}

/// A panel with what Prometheus answers to its queries in place of them.
fn with_series(watcher: &Watcher, panel: &Value, from: f64, to: f64) -> Value {
    let mut series = Vec::new();
    for target in panel["targets"].as_array().into_iter().flatten() {
        let query = target["expr"].as_str().expect("a query");
        let query = query.replace("$job", ".*").replace("$instance", ".*").replace("$__rate_interval", "10s");
        let answer = watcher.query_range(&query, from, to, (to - from) / POINTS).expect(200);
        for one in answer["data"]["result"].as_array().expect("a matrix") {
            let (labels, values) = (&one["metric"], &one["values"]);
            series.push(json!({ "legend": target["legendFormat"], "labels": labels, "values": values }));
        }
    }
    let mut panel = panel.clone();
    panel["series"] = series.into();
    panel
}
