//! `cargo xtask dashboard picture`: what the dashboard shows of a real server under load, asked from a real
//! Prometheus panel by panel and drawn here. It is not Grafana's own drawing, and says so.

mod numbers;

use std::fmt::Write;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{cargo, packages};
use numbers::{legend, shown, top_of};

const SECONDS: &str = "120";

/// Of one column and one row of Grafana's grid, in pixels.
const COLUMN: f64 = 52.0;
const ROW: f64 = 26.0;
const COLOURS: [&str; 10] = [
    "#3274d9", "#e0752d", "#37872d", "#c4162a", "#8f3bb8", "#0e8f9c", "#b8860b", "#d44a8f", "#5a6b7b",
    "#7a9a01",
];
/// Lines of a legend that find room.
const NAMED: usize = 9;

pub(super) fn main(words: &[String]) -> Result<ExitCode> {
    let seconds = words.first().map_or(SECONDS, String::as_str);
    ensure!(
        words.len() <= 1 && seconds.parse::<u32>().is_ok_and(|seconds| seconds >= 20),
        "usage: cargo xtask dashboard picture [SECONDS], 20 or more"
    );
    packages::install(packages::FOR_TESTS)?;
    cargo::run(&["test", "--test", "picture"], &[("SANDGLASS_PICTURE_SECONDS", seconds)])?;
    let file = cargo::target().join("dashboard.json");
    let text = std::fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
    let path = cargo::root().join("docs/operating/dashboard.svg");
    std::fs::write(&path, svg(&serde_json::from_str(&text)?)).context("write the picture")?;
    println!("wrote {}", path.display());
    Ok(ExitCode::SUCCESS)
}

/// Where something is drawn.
#[derive(Clone, Copy)]
struct Area {
    x: f64,
    y: f64,
    width: f64,
    height: f64,
}

impl Area {
    fn of(panel: &Value) -> Self {
        let place = |name: &str| panel["gridPos"][name].as_f64().unwrap_or_default();
        let (x, y) = (place("x") * COLUMN, place("y") * ROW + 40.0);
        Self { x, y, width: place("w") * COLUMN, height: place("h") * ROW }
    }
}

fn svg(document: &Value) -> String {
    let number = |name: &str| document[name].as_f64().unwrap_or_default();
    let (from, to) = (number("from"), number("to"));
    let mut body = String::new();
    let mut bottom = 40.0_f64;
    for panel in document["panels"].as_array().into_iter().flatten() {
        let area = Area::of(panel);
        bottom = bottom.max(area.y + area.height);
        draw(&mut body, panel, area, (from, to));
    }
    let said = format!(
        "Every panel of deploy/grafana/sandglass.json, drawn by `cargo xtask dashboard picture` (not by Grafana) from \
         what Prometheus answered during {:.0} s of load",
        to - from
    );
    let (width, height) = (24.0 * COLUMN, bottom + 12.0);
    let mut head = String::new();
    text(&mut head, (12.0, 24.0), "start", "fill=\"#334155\" font-size=\"13\"", &said);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height:.0}\" width=\"{width}\" \
         height=\"{height:.0}\" font-family=\"sans-serif\" font-size=\"10\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#f4f5f7\"/>\n{head}{body}</svg>\n"
    )
}

fn draw(body: &mut String, panel: &Value, area: Area, time: (f64, f64)) {
    let title = panel["title"].as_str().unwrap_or_default();
    if panel["type"] == "row" {
        return text(
            body,
            (area.x + 8.0, area.y + 18.0),
            "start",
            "font-weight=\"bold\" font-size=\"13\"",
            title,
        );
    }
    let _ = writeln!(
        body,
        "<rect x=\"{:.0}\" y=\"{:.0}\" width=\"{:.0}\" height=\"{:.0}\" rx=\"3\" fill=\"#ffffff\" stroke=\"#d8dbe0\"/>",
        area.x + 3.0,
        area.y + 3.0,
        area.width - 6.0,
        area.height - 6.0
    );
    text(body, (area.x + 12.0, area.y + 20.0), "start", "font-size=\"12\"", title);
    let unit = panel["fieldConfig"]["defaults"]["unit"].as_str().unwrap_or("short");
    let series: Vec<Series> = panel["series"].as_array().into_iter().flatten().map(Series::read).collect();
    let inner =
        Area { x: area.x + 52.0, y: area.y + 30.0, width: area.width - 68.0, height: area.height - 74.0 };
    match panel["type"].as_str() {
        Some("stat") => number(body, area, unit, &series),
        Some("heatmap") => heatmap(body, inner, time, &series),
        _ => lines(body, inner, time, unit, &series),
    }
}

/// One answer to a query: what it is called, and its points, oldest first.
struct Series {
    name: String,
    points: Vec<(f64, f64)>,
}

impl Series {
    fn read(series: &Value) -> Self {
        let points = series["values"].as_array().into_iter().flatten().filter_map(|point| {
            let value = point[1].as_str()?.parse::<f64>().ok()?;
            Some((point[0].as_f64()?, value)).filter(|_| value.is_finite())
        });
        let points = points.collect();
        Self { name: legend(series["legend"].as_str().unwrap_or_default(), &series["labels"]), points }
    }

    fn last(&self) -> Option<f64> {
        self.points.last().map(|(_, value)| *value)
    }
}

fn number(body: &mut String, area: Area, unit: &str, series: &[Series]) {
    for (place, one) in series.iter().take(3).enumerate() {
        let y = area.y + 70.0 + 48.0 * place as f64;
        let value = one.last().map_or("no data".to_owned(), |value| shown(value, unit));
        let middle = area.x + area.width / 2.0;
        text(body, (middle, y), "middle", "font-size=\"26\" fill=\"#37872d\"", &value);
        text(body, (middle, y + 16.0), "middle", "fill=\"#64748b\"", &short(&one.name, 30));
    }
}

fn lines(body: &mut String, area: Area, (from, to): (f64, f64), unit: &str, series: &[Series]) {
    let values = series.iter().flat_map(|one| one.points.iter().map(|(_, value)| *value));
    let top = top_of(values);
    grid(body, area, |share| shown(top * share, unit));
    let bottom = area.y + area.height;
    for (place, one) in series.iter().enumerate() {
        let colour = COLOURS[place % COLOURS.len()];
        let point = |(at, value): &(f64, f64)| {
            let x = area.x + area.width * (at - from) / (to - from);
            format!("{x:.1},{:.1}", bottom - area.height * (value / top).clamp(0.0, 1.0))
        };
        let path: Vec<_> = one.points.iter().map(point).collect();
        let _ = writeln!(
            body,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.4\"/>",
            path.join(" ")
        );
    }
    names(body, area, series);
}

/// What each line is, as far as there is room.
fn names(body: &mut String, area: Area, series: &[Series]) {
    let across = if area.width > 500.0 { 5 } else { 3 };
    let step = (area.width + 44.0) / across as f64;
    for (place, one) in series.iter().take(NAMED).enumerate() {
        let x = area.x - 40.0 + step * (place % across) as f64;
        let y = area.y + area.height + 12.0 + 12.0 * (place / across) as f64;
        let colour = COLOURS[place % COLOURS.len()];
        let _ = writeln!(
            body,
            "<rect x=\"{x:.0}\" y=\"{:.0}\" width=\"8\" height=\"3\" fill=\"{colour}\"/>",
            y - 4.0
        );
        text(body, (x + 11.0, y), "start", "fill=\"#475569\"", &short(&one.name, (step / 5.8) as usize - 2));
    }
}

/// Buckets are counted up: what belongs to one is what it has more than the one below it.
fn heatmap(body: &mut String, area: Area, (from, to): (f64, f64), series: &[Series]) {
    let mut buckets: Vec<_> = series.iter().collect();
    let bound = |one: &Series| one.name.parse::<f64>().unwrap_or(f64::INFINITY);
    buckets.sort_by(|one, other| bound(one).total_cmp(&bound(other)));
    let height = area.height / buckets.len().max(1) as f64;
    let counts = |place: usize, at: f64| {
        let value =
            |one: &Series| one.points.iter().find(|(when, _)| *when == at).map_or(0.0, |(_, value)| *value);
        let below = place.checked_sub(1).map_or(0.0, |below| value(buckets[below]));
        (value(buckets[place]) - below).max(0.0)
    };
    let times: Vec<f64> =
        buckets.last().map_or(Vec::new(), |one| one.points.iter().map(|point| point.0).collect());
    let cells = |place: usize| times.iter().map(move |at| (*at, counts(place, *at)));
    let most = (0..buckets.len()).flat_map(cells).map(|(_, count)| count).fold(1.0, f64::max);
    let width = area.width / times.len().max(1) as f64;
    for (place, bucket) in buckets.iter().enumerate() {
        let y = area.y + area.height - height * (place + 1) as f64;
        if place % 3 == 0 {
            text(body, (area.x - 4.0, y + height), "end", "fill=\"#64748b\"", &shown(bound(bucket), "s"));
        }
        for (at, count) in cells(place).filter(|(_, count)| *count > 0.0) {
            let x = area.x + area.width * (at - from) / (to - from);
            let _ = writeln!(
                body,
                "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"#3274d9\" \
                 opacity=\"{:.2}\"/>",
                0.15 + 0.85 * count / most
            );
        }
    }
}

fn grid(body: &mut String, area: Area, label: impl Fn(f64) -> String) {
    for share in [0.0, 0.5, 1.0] {
        let y = area.y + area.height * (1.0 - share);
        let _ = writeln!(
            body,
            "<line x1=\"{:.0}\" y1=\"{y:.0}\" x2=\"{:.0}\" y2=\"{y:.0}\" stroke=\"#e5e7eb\"/>",
            area.x,
            area.x + area.width
        );
        text(body, (area.x - 4.0, y + 3.0), "end", "fill=\"#64748b\"", &label(share));
    }
}

fn text(body: &mut String, (x, y): (f64, f64), anchor: &str, style: &str, said: &str) {
    let said = said.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(body, "<text x=\"{x:.0}\" y=\"{y:.0}\" text-anchor=\"{anchor}\" {style}>{said}</text>");
}

fn short(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        text.to_owned()
    } else {
        text.chars().take(most - 1).chain(['…']).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_panel_is_drawn_with_its_title_and_what_was_answered() {
        let place = |y: u32, h: u32| json!({ "x": 0, "y": y, "w": 12, "h": h });
        let series = |legend: &str, values: Value| json!([{ "legend": legend, "labels": { "le": "0.5" }, "values": values }]);
        let values = json!([[0, "1"], [30, "NaN"], [60, "3"]]);
        let document = json!({ "from": 0.0, "to": 60.0, "panels": [
            { "type": "row", "title": "1 <Overview>", "gridPos": place(0, 1) },
            { "type": "stat", "title": "Runs", "gridPos": place(1, 8), "series": series("runs", values.clone()) },
            { "type": "timeseries", "title": "Wait", "gridPos": place(9, 8), "series": series("p95", values.clone()) },
            { "type": "heatmap", "title": "Latency", "gridPos": place(17, 8), "series": series("{{le}}", values) },
        ] });
        let drawing = svg(&document);
        for said in ["1 &lt;Overview>", ">Runs<", ">Wait<", ">p95<", ">Latency<", ">3<"] {
            assert!(drawing.contains(said), "no {said} in {drawing}");
        }
        assert_eq!(drawing.matches("<polyline").count(), 1);
        assert!(!drawing.contains("NaN") && !drawing.contains("inf"), "{drawing}");
        assert!(drawing.starts_with("<svg ") && drawing.ends_with("</svg>\n"));
    }
}
