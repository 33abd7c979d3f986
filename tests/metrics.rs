//! What operators see is true, valid, and bounded whatever clients do.

use std::collections::BTreeSet;

use support::{Daemon, Finished, Registry, Value, json, tool, until};

fn sh(script: &str) -> Value {
    json!({ "image": "host", "cmd": "sh", "args": ["-c", script] })
}

/// Everything before the value, line by line.
fn series(page: &str) -> BTreeSet<String> {
    let lines = page.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| line.rsplit_once(' ')).map(|(name, _)| name.to_owned()).collect()
}

#[test]
fn the_page_passes_prometheus_own_check() {
    let registry = Registry::start();
    let daemon = Daemon::builder().host_image().registry(&registry).start();
    daemon.run(&sh("true"));
    daemon.run(&json!({ "image": registry.image("busybox"), "cmd": "true" }));
    daemon.post("/runs", &json!({ "image": registry.image("nope") }));
    let page = daemon.get("/metrics");
    assert!(page.header("content-type").is_some_and(|kind| kind.starts_with("text/plain; version=0.0.4")));
    let mut check = std::process::Command::new(tool("promtool"));
    let done = Finished::with_input(check.args(["check", "metrics"]), &page.body);
    assert_eq!(
        (done.code(), done.stdout_text(), done.stderr_text()),
        (Some(0), String::new(), String::new())
    );
    assert!(page.body.len() < 200_000);
}

#[test]
fn runs_are_counted_by_outcome_and_measured() {
    let daemon = Daemon::start();
    for _ in 0..3 {
        daemon.run(&sh("exit 1"));
    }
    let mut slow = sh("sleep 60");
    slow["limits"] = json!({ "wall_time_ms": 100 });
    daemon.run(&slow);
    daemon.run(&sh("kill -SEGV $$"));
    daemon.run(&json!({ "image": "host", "cmd": "nope" }));
    for (outcome, count) in [
        ("exited", 3.0),
        ("wall_time_limit", 1.0),
        ("signaled", 1.0),
        ("start_failed", 1.0),
        ("memory_limit", 0.0),
        ("sandbox_error", 0.0),
    ] {
        assert_eq!(
            daemon.metric(&format!("sandglass_runs_total{{outcome=\"{outcome}\"}}")),
            count,
            "{outcome}"
        );
    }
    assert_eq!(daemon.metric("sandglass_run_duration_seconds_count{outcome=\"exited\"}"), 3.0);
    assert_eq!(daemon.metric("sandglass_run_limit_overshoot_seconds_count{limit=\"wall\"}"), 1.0);
    assert_eq!(daemon.metric("sandglass_run_queue_wait_seconds_count"), 6.0);
    for phase in ["image", "setup", "total"] {
        let name = format!("sandglass_run_startup_seconds_count{{cache=\"hit\",phase=\"{phase}\"}}");
        assert_eq!(daemon.metric(&name), 5.0, "{phase}");
    }
    until("every run is torn down", || daemon.metric("sandglass_run_teardown_seconds_count") >= 5.0);
    assert_eq!(
        daemon.metric("sandglass_http_requests_total{method=\"POST\",route=\"/runs\",status=\"2xx\"}"),
        6.0
    );
    assert!(daemon.get("/metrics").text().contains("sandglass_build_info{"));
    assert!(daemon.metric("process_open_fds") > 0.0);
}

#[test]
fn what_is_live_is_shown_and_goes_back_to_nothing() {
    let daemon = Daemon::builder().host_image().flag("--slots", 2).flag("--queue-capacity", 1).start();
    let first = daemon.run_async(&sh("sleep 2"));
    let second = daemon.run_async(&sh("sleep 2"));
    daemon.wait_for_state(&first, "running");
    daemon.wait_for_state(&second, "running");
    daemon.run_async(&sh("true"));
    let refused = daemon.post("/runs", &sh("true"));
    assert_eq!(refused.status, 429);
    let live = [
        ("sandglass_slots{state=\"busy\"}", 2.0),
        ("sandglass_slots{state=\"idle\"}", 0.0),
        ("sandglass_sandboxes{state=\"running\"}", 2.0),
        ("sandglass_cgroups_live", 2.0),
        ("sandglass_queue_depth", 1.0),
        ("sandglass_queue_capacity", 1.0),
        ("sandglass_rejected_total{reason=\"queue_full\"}", 1.0),
    ];
    for (name, value) in live {
        assert_eq!(daemon.metric(name), value, "{name}");
    }
    for (name, value) in [
        ("sandglass_slots{state=\"busy\"}", 0.0),
        ("sandglass_slots{state=\"idle\"}", 2.0),
        ("sandglass_sandboxes{state=\"running\"}", 0.0),
        ("sandglass_sandboxes{state=\"ending\"}", 0.0),
        ("sandglass_cgroups_live", 0.0),
        ("sandglass_queue_depth", 0.0),
    ] {
        until(name, || (daemon.metric(name) - value).abs() < 0.5);
    }
}

#[test]
fn pulls_and_the_cache_are_counted() {
    let registry = Registry::start();
    let daemon = Daemon::with_registry(&registry);
    let image = registry.image("busybox");
    let run = json!({ "image": image, "cmd": "true" });
    for _ in 0..3 {
        daemon.run(&run);
    }
    daemon.post("/runs", &json!({ "image": registry.image("nope") }));
    for (name, value) in [
        ("sandglass_image_pulls_total{result=\"ok\"}", 1.0),
        ("sandglass_image_cache_hits_total", 2.0),
        ("sandglass_image_cache_misses_total", 2.0),
        ("sandglass_image_cache_entries", 1.0),
        ("sandglass_run_startup_seconds_count{cache=\"miss\",phase=\"image\"}", 1.0),
        ("sandglass_run_startup_seconds_count{cache=\"hit\",phase=\"image\"}", 2.0),
    ] {
        assert_eq!(daemon.metric(name), value, "{name}");
    }
    assert!(daemon.metric("sandglass_image_cache_bytes") > 100_000.0);
    assert!(daemon.metric("sandglass_image_pull_bytes_total") > 100_000.0);
}

#[test]
fn nothing_that_a_client_types_becomes_a_label() {
    let daemon = Daemon::start();
    daemon.run(&sh("true"));
    daemon.get("/nope");
    daemon.request("PATCH", "/runs").send();
    daemon.post("/runs", &json!({ "image": "x y" }));
    daemon.get("/runs/0193a5b0-0000-7000-8000-000000000000");
    daemon.get("/metrics");
    let before = series(&daemon.get("/metrics").text());
    for number in 0..40 {
        let mut body = sh("true");
        body["labels"] = json!({ "who": format!("client-{number}") });
        daemon.run(&body);
        daemon.post("/runs", &json!({ "image": format!("10.0.0.{number}/x:{number}"), "cmd": "true" }));
        daemon.get(&format!("/path-{number}"));
        daemon.get(&format!("/runs/0193a5b0-0000-7000-8000-{number:012}"));
        daemon.get(&format!("/images/name-{number}"));
        daemon.request(&format!("M{number}"), "/runs").send();
    }
    let after = series(&daemon.get("/metrics").text());
    let new: Vec<_> =
        after.difference(&before).filter(|name| !name.contains("/images/{reference}")).collect();
    assert!(new.is_empty(), "{new:?}");
}
