//! A real Prometheus scrapes a real server under load: every query of the dashboard, and what every alert
//! looks at, has data.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use support::prometheus::{Watcher, load};
use support::{Daemon, Finished, Registry, Value, skip, within};

use crate::containers::from_elsewhere;
use crate::rules::alerts;
use crate::{file, text};

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

/// What Grafana's schemas do not know of a dashboard, by path.
fn unknown_to_grafana(python: &Path, dashboard: &str) -> Vec<String> {
    let mut command = Command::new(python);
    let done = Finished::with_input(command.arg(file("tests/operating/grafana.py")), dashboard.as_bytes());
    assert_eq!(done.code(), Some(0), "{}", done.stderr_text());
    done.stdout_text().lines().map(str::to_owned).collect()
}

#[test]
fn grafana_s_schemas_know_everything_in_the_dashboard() {
    let Some(python) = from_elsewhere("venv/bin/python3") else {
        return skip("grafana-foundation-sdk is not there");
    };
    // Grafana's source of data and its editor of variables read these; the schemas leave them to plugins.
    let of_plugins = ["/step", "/titleFormat", "/definition"];
    let dashboard = text("deploy/grafana/sandglass.json");
    let mut unknown = unknown_to_grafana(&python, &dashboard);
    unknown.retain(|path| !of_plugins.iter().any(|name| path.ends_with(name)) || path.starts_with("/panels"));
    assert_eq!(unknown, Vec::<String>::new());
    for (name, typo) in [("\"gridPos\"", "\"gridpos\""), ("\"reduceOptions\"", "\"reducedOptions\"")] {
        let wrong = dashboard.replacen(name, typo, 1);
        let unknown = unknown_to_grafana(&python, &wrong);
        assert!(unknown.iter().any(|path| path.ends_with(typo.trim_matches('"'))), "{typo}: {unknown:?}");
    }
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
    let rules = watcher.rules();
    assert!(!rules.to_string().contains("\"health\":\"err\""), "{rules:#}");
}
