//! Grafana's dashboard from its one source: `dashboard/rows.rs` says what is shown, this file how such
//! a document looks. `cargo xtask dashboard` writes it, and a test compares what is written.

mod picture;
mod rows;

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::cargo;
use rows::{Kind, Panel, ROWS};

/// Which series a query is about; every query has it, so that the variables choose.
const SELECTOR: &str = r#"job=~"$job",instance=~"$instance""#;

/// Grafana's grid has this many columns.
const COLUMNS: u32 = 24;
const HEIGHT: u32 = 8;

pub(crate) fn main(words: &[String]) -> Result<ExitCode> {
    match words {
        [] => {}
        [word, rest @ ..] if word == "picture" => return picture::main(rest),
        _ => bail!("usage: cargo xtask dashboard [picture [SECONDS]]"),
    }
    let path = cargo::root().join("deploy/grafana/sandglass.json");
    std::fs::write(&path, text()).with_context(|| format!("write {}", path.display()))?;
    println!("wrote {}", path.display());
    Ok(ExitCode::SUCCESS)
}

fn text() -> String {
    format!("{:#}\n", dashboard())
}

fn dashboard() -> Value {
    json!({
        "uid": "sandglass",
        "title": "Sandglass",
        "tags": ["sandglass"],
        "timezone": "browser",
        "schemaVersion": 39,
        "version": 1,
        "editable": true,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": { "from": "now-3h", "to": "now" },
        "annotations": { "list": annotations() },
        "templating": { "list": variables() },
        "links": [],
        "panels": panels(),
    })
}

fn datasource() -> Value {
    json!({ "type": "prometheus", "uid": "${datasource}" })
}

fn annotations() -> Vec<Value> {
    let one = |name: &str, color: &str, expr: String, title: &str| {
        json!({
            "name": name, "enable": true, "iconColor": color, "datasource": datasource(),
            "expr": expr, "step": "30s", "titleFormat": title,
        })
    };
    vec![
        one(
            "Restarts",
            "orange",
            format!("changes(process_start_time_seconds{{{SELECTOR}}}[1m]) > 0"),
            "{{instance}} was restarted",
        ),
        one(
            "Versions",
            "blue",
            format!("sandglass_build_info{{{SELECTOR}}} unless sandglass_build_info{{{SELECTOR}}} offset 1m"),
            "{{instance}} runs {{version}}",
        ),
    ]
}

fn variables() -> Vec<Value> {
    let values = |name: &str, query: &str| {
        json!({
            "name": name, "label": name, "type": "query", "datasource": datasource(),
            "query": { "query": query, "refId": name }, "definition": query,
            "refresh": 2, "sort": 1, "includeAll": true, "multi": true, "allValue": ".*",
            "current": { "text": "All", "value": "$__all" },
        })
    };
    vec![
        json!({ "name": "datasource", "label": "datasource", "type": "datasource", "query": "prometheus" }),
        values("job", "label_values(sandglass_build_info, job)"),
        values("instance", r#"label_values(sandglass_build_info{job=~"$job"}, instance)"#),
    ]
}

fn panels() -> Vec<Value> {
    let (mut all, mut id, mut y) = (Vec::new(), 0, 0);
    for row in ROWS {
        id += 1;
        all.push(json!({
            "id": id, "type": "row", "title": row.title, "collapsed": false, "panels": [],
            "gridPos": { "x": 0, "y": y, "w": COLUMNS, "h": 1 },
        }));
        y += 1;
        let mut x = 0;
        for panel in row.panels {
            if x + panel.width > COLUMNS {
                (x, y) = (0, y + HEIGHT);
            }
            id += 1;
            all.push(one_panel(panel, id, x, y));
            x += panel.width;
        }
        y += HEIGHT;
    }
    all
}

fn one_panel(panel: &Panel, id: u32, x: u32, y: u32) -> Value {
    let kind = match panel.kind {
        Kind::Lines | Kind::Stacked => "timeseries",
        Kind::Number => "stat",
        Kind::Heatmap => "heatmap",
    };
    let custom = match panel.kind {
        Kind::Stacked => json!({ "fillOpacity": 40, "stacking": { "mode": "normal" } }),
        Kind::Lines => json!({ "fillOpacity": 5 }),
        Kind::Number | Kind::Heatmap => json!({}),
    };
    json!({
        "id": id,
        "type": kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": datasource(),
        "gridPos": { "x": x, "y": y, "w": panel.width, "h": HEIGHT },
        "fieldConfig": { "defaults": { "unit": panel.unit, "custom": custom }, "overrides": [] },
        "options": options(panel.kind),
        "targets": panel.queries.iter().enumerate().map(|(i, query)| target(panel.kind, i, *query)).collect::<Vec<_>>(),
    })
}

fn options(kind: Kind) -> Value {
    match kind {
        Kind::Lines | Kind::Stacked => json!({
            "legend": { "displayMode": "list", "placement": "bottom" }, "tooltip": { "mode": "multi" },
        }),
        Kind::Number => {
            json!({ "reduceOptions": { "calcs": ["lastNotNull"] }, "textMode": "value_and_name" })
        }
        Kind::Heatmap => json!({ "calculate": false, "yAxis": { "unit": "s" } }),
    }
}

fn target(kind: Kind, number: usize, (query, legend): (&str, &str)) -> Value {
    let letter = char::from(b'A' + number as u8).to_string();
    let format = if matches!(kind, Kind::Heatmap) { "heatmap" } else { "time_series" };
    json!({
        "refId": letter, "datasource": datasource(), "editorMode": "code", "range": true,
        "expr": query.replace('@', SELECTOR), "legendFormat": legend, "format": format,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_the_source_says() {
        let written = include_str!("../../deploy/grafana/sandglass.json");
        assert_eq!(written, text(), "run `cargo xtask dashboard`");
    }

    #[test]
    fn every_query_lets_the_variables_choose() {
        for panel in ROWS.iter().flat_map(|row| row.panels) {
            for (query, _) in panel.queries {
                assert!(query.contains('@') || query.contains("node_"), "{query}");
            }
        }
    }
}
