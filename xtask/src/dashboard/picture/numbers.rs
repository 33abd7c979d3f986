//! How numbers and legends are written, in Grafana's manner.

use serde_json::Value;

/// A legend such as `{{method}} {{route}}` with the series' labels in their places.
pub(super) fn legend(format: &str, labels: &Value) -> String {
    let mut said = String::new();
    let mut rest = format;
    while let Some((before, after)) = rest.split_once("{{") {
        let (name, behind) = after.split_once("}}").unwrap_or((after, ""));
        said += before;
        said += labels[name].as_str().unwrap_or_default();
        rest = behind;
    }
    said + rest
}

/// A number with its unit, in three digits.
pub(super) fn shown(value: f64, unit: &str) -> String {
    match unit {
        "percentunit" => format!("{} %", digits(value * 100.0)),
        "s" if value.is_infinite() => "more".to_owned(),
        "s" if value != 0.0 && value < 1e-3 => format!("{} µs", digits(value * 1e6)),
        "s" if value != 0.0 && value < 1.0 => format!("{} ms", digits(value * 1e3)),
        "s" => format!("{} s", digits(value)),
        "bytes" | "Bps" => {
            let per = if unit == "Bps" { "/s" } else { "" };
            let (value, name) = scaled(value, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB"]);
            format!("{} {name}{per}", digits(value))
        }
        _ => {
            let (value, name) = scaled(value, 1000.0, &["", "k", "M", "G", "T"]);
            let per = if unit == "reqps" { "/s" } else { "" };
            format!("{}{name}{per}", digits(value))
        }
    }
}

fn scaled<'a>(mut value: f64, step: f64, names: &[&'a str]) -> (f64, &'a str) {
    let mut place = 0;
    while value >= step && place + 1 < names.len() {
        (value, place) = (value / step, place + 1);
    }
    (value, names[place])
}

fn digits(value: f64) -> String {
    let text = match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    };
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// The end of an axis that begins at 0 and holds all the values: 1, 2 or 5 of a power of ten.
pub(super) fn top_of(values: impl Iterator<Item = f64>) -> f64 {
    let most = values.fold(0.0, f64::max);
    if most <= 0.0 {
        return 1.0;
    }
    let power = 10f64.powf(most.log10().floor());
    [1.0, 2.0, 5.0, 10.0].map(|times| times * power).into_iter().find(|top| *top >= most).unwrap_or(most)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn numbers_are_written_with_their_units() {
        for (value, unit, text) in [
            (0.5, "percentunit", "50 %"),
            (0.0, "s", "0 s"),
            (0.000_25, "s", "250 µs"),
            (0.0123, "s", "12.3 ms"),
            (2.5, "s", "2.5 s"),
            (f64::INFINITY, "s", "more"),
            (1536.0, "bytes", "1.5 KiB"),
            (3_145_728.0, "Bps", "3 MiB/s"),
            (1234.0, "short", "1.23k"),
            (42.0, "reqps", "42/s"),
            (100.0, "short", "100"),
        ] {
            assert_eq!(shown(value, unit), text);
        }
    }

    #[test]
    fn a_legend_has_the_labels_in_their_places() {
        let labels = json!({ "method": "GET", "route": "/runs" });
        for (format, text) in
            [("{{method}} {{route}}", "GET /runs"), ("p95", "p95"), ("{{nope}} x", " x"), ("{{method", "GET")]
        {
            assert_eq!(legend(format, &labels), text);
        }
    }

    #[test]
    fn an_axis_ends_at_a_round_number() {
        for (values, top) in [
            (&[0.3, 0.7][..], 1.0),
            (&[1.5], 2.0),
            (&[42.0], 50.0),
            (&[100.0], 100.0),
            (&[], 1.0),
            (&[0.0], 1.0),
        ] {
            let found = top_of(values.iter().copied());
            assert!((found - top).abs() < 1e-9 * top, "{values:?}: {found}");
        }
    }
}
