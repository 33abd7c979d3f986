//! What operators see is true, valid, and bounded whatever clients do.

use std::collections::BTreeSet;

use support::{Daemon, Finished, Registry, Request, Value, json, tool, until};

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
    for phase in ["image", "setup", "exec", "total"] {
        let name = format!("sandglass_run_startup_seconds_count{{cache=\"hit\",phase=\"{phase}\"}}");
        assert_eq!(daemon.metric(&name), 5.0, "{phase}");
    }
    until("every run is torn down", || daemon.metric("sandglass_run_teardown_seconds_count") >= 5.0);
    assert_eq!(
        daemon.metric("sandglass_http_requests_total{method=\"POST\",route=\"/runs\",status=\"2xx\"}"),
        6.0
    );
    let page = daemon.get("/metrics").text();
    let build = page.lines().find(|line| line.starts_with("sandglass_build_info{")).expect("a line");
    let rustc = build.split("rustc=\"").nth(1).and_then(|rest| rest.split('"').next()).expect("a compiler");
    assert!(rustc.starts_with(|digit: char| digit.is_ascii_digit()), "{build}");
    assert!(build.contains(concat!("version=\"", env!("CARGO_PKG_VERSION"), "\"")), "{build}");
    assert!(daemon.metric("process_open_fds") > 0.0);
}

#[test]
fn what_is_live_is_shown_and_goes_back_to_nothing() {
    let daemon = Daemon::builder()
        .host_image()
        .flag("--slots", 2)
        .flag("--queue-capacity", 1)
        .flag("--prepared-max", 0)
        .start();
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

/// Every call that the document knows, as a method and a path that fits its template.
fn calls(daemon: &Daemon) -> Vec<(String, String)> {
    let document = daemon.get("/openapi.json").json();
    let paths = document["paths"].as_object().expect("paths").iter();
    let one = |path: &str, method: &String| {
        let filled = path.split('/').map(|part| if part.starts_with('{') { "x" } else { part });
        (method.to_uppercase(), filled.collect::<Vec<_>>().join("/"))
    };
    paths
        .flat_map(|(path, methods)| {
            methods.as_object().expect("methods").keys().map(move |method| one(path, method))
        })
        .collect()
}

#[test]
fn the_page_stays_small_and_quick_whatever_clients_do() {
    let daemon = Daemon::builder().host_image().flag("--wait-max-s", 1).start();
    daemon.run(&sh("true"));
    daemon.run(&sh("exit 1"));
    daemon.run(&sh("kill -SEGV $$"));
    for (_, path) in calls(&daemon) {
        for method in ["GET", "POST", "PUT", "DELETE", "HEAD", "PATCH", "ANY"] {
            let request = daemon.request(method, &path);
            drop(request.clone().header("Content-Type", "text/plain").body("x").send());
            // And one who goes away.
            drop(request.begin());
        }
    }
    let took = (0..20).map(|_| {
        let asked = std::time::Instant::now();
        let page = daemon.get("/metrics");
        assert!(page.body.len() < 200_000, "{} bytes", page.body.len());
        asked.elapsed()
    });
    let took = took.min().expect("twenty times");
    println!("{} bytes in {took:?}", daemon.get("/metrics").body.len());
    assert!(took < std::time::Duration::from_millis(5), "{took:?}");
}

#[test]
fn what_is_too_large_is_counted() {
    let daemon = Daemon::builder().host_image().flag("--body-bytes-max", 1000).start();
    let refused = daemon.request("POST", "/runs").json(&sh(&"x".repeat(2000))).send();
    assert_eq!(refused.status, 413);
    assert_eq!(daemon.metric("sandglass_rejected_total{reason=\"too_large\"}"), 1.0);
}

#[test]
fn metrics_that_are_served_apart_need_no_key_and_nothing_else_is_there() {
    let builder = Daemon::builder().host_image().flag("--metrics-listen", "127.0.0.1:0");
    builder.key(&["alice"]);
    let mut daemon = builder.start();
    assert_eq!(daemon.get("/metrics").status, 401);
    let within = std::time::Duration::from_secs(10);
    let address = daemon.process().wait_for_line("where its metrics are", within, |line| {
        line.strip_prefix("metrics on http://")?.parse().ok()
    });
    let ask = |method: &str, path: &str| Request::new(address, method, path).send();
    assert!(ask("GET", "/metrics").text().contains("sandglass_build_info{"));
    assert!(ask("GET", "/info").expect(200)["version"].is_string());
    // Probes, which clients that hold every connection of the other address can't keep from their answers.
    assert_eq!((ask("GET", "/healthz").text().as_str(), ask("GET", "/readyz").status), ("ok\n", 200));
    for path in ["/runs", "/images", "/principals"] {
        assert_eq!(ask("GET", path).status, 404, "{path}");
    }
    assert_eq!(ask("POST", "/runs").status, 404);
    assert!(daemon.stop().success());
}

#[test]
fn who_has_no_key_is_counted() {
    let builder = Daemon::builder().host_image();
    let key = builder.key(&["watcher", "--scope", "metrics"]);
    let daemon = builder.start();
    assert_eq!(daemon.post("/runs", &sh("true")).status, 401);
    let run = daemon.request("POST", "/runs").key(&key).json(&sh("true")).send();
    assert_eq!(run.status, 403, "a key that may only look");
    let page = daemon.request("GET", "/metrics").key(&key).send().text();
    assert!(page.contains("sandglass_rejected_total{reason=\"auth\"} 2\n"), "{page}");
}

#[test]
fn a_server_that_drains_is_not_ready() {
    let mut daemon = Daemon::start();
    assert_eq!(daemon.metric("sandglass_ready"), 1.0);
    assert!(daemon.metric("sandglass_data_disk_free_bytes") <= daemon.metric("sandglass_data_disk_bytes"));
    assert!(daemon.metric("sandglass_data_disk_bytes") > 0.0);
    let id = daemon.run_async(&sh("sleep 3"));
    daemon.wait_for_state(&id, "running");
    daemon.process().signal(nix::sys::signal::Signal::SIGTERM);
    until("it says that it takes no more work", || daemon.metric("sandglass_ready") < 0.5);
    assert_eq!(daemon.metric("sandglass_slots{state=\"idle\"}"), 0.0);
}

/// On the address of its own, too, while the server stops.
#[test]
fn a_server_that_drains_says_so_apart() {
    let mut daemon = Daemon::builder().host_image().flag("--metrics-listen", "127.0.0.1:0").start();
    let within = std::time::Duration::from_secs(10);
    let address = daemon.process().wait_for_line("where its metrics are", within, |line| {
        line.strip_prefix("metrics on http://")?.parse().ok()
    });
    let id = daemon.run_async(&sh("sleep 3"));
    daemon.wait_for_state(&id, "running");
    daemon.process().signal(nix::sys::signal::Signal::SIGTERM);
    until("it is not ready", || Request::new(address, "GET", "/readyz").send().status == 503);
    Request::new(address, "GET", "/readyz").send().problem(503, "draining");
    assert_eq!(Request::new(address, "GET", "/healthz").send().status, 200);
}

/// A mount that a bug would leave in the launcher's namespace, made by hand.
#[test]
fn a_mount_that_is_left_behind_raises_the_alarm() {
    use nix::mount::{MsFlags, mount, umount};
    use nix::sched::{CloneFlags, setns, unshare};
    let daemon = Daemon::start();
    daemon.run(&sh("true"));
    assert_eq!(daemon.metric("sandglass_mounts_live"), 0.0);
    let namespace = std::fs::File::open(format!("/proc/{}/ns/mnt", daemon.launcher_pid()));
    let namespace = namespace.expect("open the launcher's mount namespace");
    let inside = |work: fn() -> nix::Result<()>| {
        // A thread of its own, whose working directory is nobody else's.
        std::thread::scope(|scope| {
            let entered = scope.spawn(|| {
                unshare(CloneFlags::CLONE_FS)?;
                setns(&namespace, CloneFlags::CLONE_NEWNS)?;
                work()
            });
            entered.join().expect("a thread").expect("work in the launcher's mount namespace");
        });
    };
    inside(|| mount(Some("left"), "/attach", Some("tmpfs"), MsFlags::empty(), None::<&str>));
    assert_eq!(daemon.metric("sandglass_mounts_live"), 1.0);
    inside(|| umount("/attach"));
    assert_eq!(daemon.metric("sandglass_mounts_live"), 0.0);
}

/// The metrics that operators read about, with their types, from the documentation's tables.
fn documented() -> BTreeSet<(String, String)> {
    let text = include_str!("../docs/operating/metrics.md");
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    rows.map(|(name, rest)| {
        let kind = rest.split('|').nth(1).expect("a row has a type").trim();
        (name.to_owned(), kind.to_owned())
    })
    .collect()
}

#[test]
fn the_documentation_lists_every_metric_and_no_other() {
    let daemon = Daemon::start();
    daemon.run(&sh("true"));
    let page = daemon.get("/metrics").text();
    let types = page.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let served: BTreeSet<_> =
        types.filter_map(|line| line.split_once(' ')).map(|(n, t)| (n.to_owned(), t.to_owned())).collect();
    let documented = documented();
    let only = |a: &BTreeSet<(String, String)>, b| a.difference(b).cloned().collect::<Vec<_>>();
    assert_eq!(only(&served, &documented), [], "served and not documented in docs/operating/metrics.md");
    assert_eq!(only(&documented, &served), [], "documented and not served");
}
