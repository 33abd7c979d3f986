//! The recording rules and the alerts: valid, tested in both directions, each with its runbook.

use std::collections::BTreeSet;
use std::process::Command;

use support::{Finished, tool};

use crate::{file, text};

/// An alert's name and the expression that makes it fire.
pub(crate) fn alerts() -> Vec<(String, String)> {
    let text = text("deploy/prometheus/alerts.yml");
    let name = |block: &str| block.lines().next().expect("a name").trim().to_owned();
    let expression = |block: &str| {
        let line = block.lines().find_map(|line| line.trim().strip_prefix("expr: "));
        line.expect("an expression on one line").to_owned()
    };
    text.split("- alert:").skip(1).map(|block| (name(block), expression(block))).collect()
}

fn promtool(words: &[&str]) -> String {
    let mut command = Command::new(tool("promtool"));
    let done = Finished::of(command.args(words).current_dir(file("deploy/prometheus")));
    let said = done.stdout_text() + &done.stderr_text();
    assert_eq!(done.code(), Some(0), "promtool {words:?}: {said}");
    said
}

#[test]
fn prometheus_takes_the_configuration_and_the_rules() {
    let said = promtool(&["check", "config", "prometheus.yml"]);
    assert!(said.contains("2 rule files found"), "{said}");
    promtool(&["check", "rules", "--lint-fatal", "recording.yml", "alerts.yml"]);
}

#[test]
fn every_alert_fires_when_it_should_and_is_silent_when_it_should() {
    promtool(&["test", "rules", "alerts.test.yml"]);
    let tests = text("deploy/prometheus/alerts.test.yml");
    let (mut fires, mut silent) = (BTreeSet::new(), BTreeSet::new());
    for block in tests.split("alertname: ").skip(1) {
        let name = block.lines().next().expect("a name").to_owned();
        if block.contains("exp_alerts: []") { &mut silent } else { &mut fires }.insert(name);
    }
    let names: BTreeSet<String> = alerts().into_iter().map(|(name, _)| name).collect();
    assert_eq!((&fires, &silent), (&names, &names), "alerts that fire, and that are silent, in a test");
    let promised = format!("| {0} of {0} alerts fire", names.len());
    assert!(
        text("docs/SPECIFICATION.md").contains(&promised),
        "docs/SPECIFICATION.md should say {promised:?}"
    );
}

#[test]
fn every_alert_names_a_runbook_that_is_there_and_every_runbook_an_alert() {
    let text = text("deploy/prometheus/alerts.yml");
    let mut named = BTreeSet::new();
    for (name, _) in alerts() {
        let path = format!("docs/operating/runbooks/{name}.md");
        assert!(text.contains(&format!("runbook_url: {path}\n")), "{name} should name {path}");
        let runbook = crate::text(&path);
        for part in [&format!("# {name}: "), "\n## Look\n", "\n## Do\n"] {
            assert!(runbook.contains(part), "{path} lacks {part:?}");
        }
        named.insert(format!("{name}.md"));
    }
    // Every reason for which the server is not ready, as its code has them.
    let health = crate::text("server/http/health.rs");
    let reasons =
        health.split("fn not_ready(").nth(1).and_then(|rest| rest.split("\n}\n").next()).expect("a function");
    let reasons = reasons.split("problem::").skip(1).filter_map(|rest| rest.split([')', '}']).next());
    let runbook = crate::text("docs/operating/runbooks/SandglassNotReady.md");
    for reason in reasons.filter(|reason| reason.chars().all(|c| c.is_uppercase() || c == '_')) {
        let reason = reason.to_lowercase().replace('_', "-");
        assert!(
            runbook.contains(&format!("- `{reason}`: ")),
            "the runbook does not say what to do about {reason}"
        );
    }
    let there = std::fs::read_dir(file("docs/operating/runbooks")).expect("list the runbooks");
    let there: BTreeSet<String> =
        there.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    assert_eq!(there, named);
    assert!(named.len() >= 8);
}
