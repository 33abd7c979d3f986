//! What is promised about images besides how long one pull takes. A program of its own measures it, which knows
//! HTTP and images as the tests do (`benches/images`); here it is asked, and shown beside what is wanted.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::cargo;

/// What it can be asked for.
pub(super) const ALL: [&str; 7] = ["memory", "there", "always", "disk", "crowd", "cut", "removal"];

#[derive(Debug, Deserialize, Serialize)]
pub(super) struct Row {
    what: String,
    unit: String,
    most: f64,
    measured: f64,
    of: String,
}

pub(super) fn measure(wanted: &[&str], rounds: usize, place: &Path) -> Result<Vec<Row>> {
    let output = place.join("images-rest.json");
    let path = output.to_str().context("the target folder's name is no text")?;
    let rounds = rounds.to_string();
    let words = ["bench", "--package", "sandglass", "--bench", "images", "--", path, &rounds];
    cargo::run(&[&words[..], wanted].concat(), &[])?;
    let text = std::fs::read(&output).with_context(|| format!("read {path}"))?;
    serde_json::from_slice(&text).with_context(|| format!("understand {path}"))
}

pub(super) fn markdown(rows: &[Row]) -> String {
    let mut text =
        String::from("\n## Besides\n\n| what | goal | measured | | of |\n|---|---:|---:|---|---|\n");
    for Row { what, unit, most, measured, of } in rows {
        let verdict = super::report::verdict(*measured, *most);
        let (most, measured) = (number(*most), number(*measured));
        let _ = writeln!(text, "| {what} | ≤ {most} {unit} | {measured} {unit} | {verdict} | {of} |");
    }
    text
}

/// With as many digits as tell anything.
fn number(number: f64) -> String {
    match number.abs() {
        0.0 => "0".into(),
        large if large >= 100.0 => format!("{number:.0}"),
        middle if middle >= 10.0 => format!("{number:.1}"),
        _ => format!("{number:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_what_is_wanted_what_there_is_and_whether_that_is_enough() {
        let row = |measured: f64| Row {
            what: "memory".into(),
            unit: "MiB".into(),
            most: 64.0,
            measured,
            of: "one pull".into(),
        };
        let text = markdown(&[row(12.345), row(0.0), row(64.01)]);
        let lines: Vec<_> = text.lines().skip(5).collect();
        assert_eq!(
            lines,
            [
                "| memory | ≤ 64.0 MiB | 12.3 MiB | met | one pull |",
                "| memory | ≤ 64.0 MiB | 0 MiB | met | one pull |",
                "| memory | ≤ 64.0 MiB | 64.0 MiB | **missed** | one pull |",
            ]
        );
    }
}
