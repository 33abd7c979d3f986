//! The tables, as Markdown.

use std::fmt::Write;

use super::samples::{Merged, Samples};

const NOTHING: &str = "–";

pub(super) fn markdown(samples: &Samples) -> String {
    let mut text = String::new();
    let extent = if samples.quick { "quick" } else { "whole" };
    let machine: Vec<_> = samples.machine.iter().map(|(name, value)| format!("{name}: {value}")).collect();
    let _ = writeln!(text, "A {extent} measurement in {} rounds. {}.\n", samples.rounds, machine.join("; "));
    for (program, what) in &samples.programs {
        let _ = writeln!(text, "### `{program}`: {what}\n");
        latency(&mut text, samples, program);
        rates(&mut text, samples, program);
        crowds(&mut text, samples, program);
    }
    goals(&mut text, samples);
    legend(&mut text, samples);
    text
}

fn ms(value: f64) -> String {
    if value < 100.0 { format!("{value:.2}") } else { format!("{value:.0}") }
}

fn rate(value: f64) -> String {
    if value < 100.0 { format!("{value:.1}") } else { format!("{value:.0}") }
}

/// How many times as much, where there is something to compare with.
fn times(value: f64, floor: Option<f64>) -> String {
    let ratio = floor.filter(|floor| *floor > 0.0).map(|floor| value / floor);
    ratio.map_or(
        NOTHING.into(),
        |ratio| if ratio < 0.1 { format!("{ratio:.4}") } else { format!("{ratio:.2}") },
    )
}

fn row(text: &mut String, cells: impl IntoIterator<Item = String>) {
    let cells: Vec<_> = cells.into_iter().collect();
    let _ = writeln!(text, "| {} |", cells.join(" | "));
}

fn head(text: &mut String, names: &[String]) {
    row(text, names.iter().cloned());
    row(text, names.iter().enumerate().map(|(place, _)| if place == 0 { "---" } else { "---:" }.into()));
}

fn latency(text: &mut String, samples: &Samples, program: &str) {
    let names = [
        "one client, a run every 10 ms",
        "p50 ms",
        "p90 ms",
        "p99 ms",
        "p50 × floor A",
        "p50 × floor B",
        "runs",
    ];
    head(text, &names.map(str::to_owned));
    let p50 = |subject: &str| samples.paced(subject, program).map(|merged| merged.percentile(50));
    let (floor_a, floor_b) = (p50("floor A"), p50("floor B"));
    for (subject, _) in &samples.subjects {
        let Some(merged) = samples.paced(subject, program) else { continue };
        let middle = merged.percentile(50);
        row(
            text,
            [
                subject.clone(),
                ms(middle),
                ms(merged.percentile(90)),
                ms(merged.percentile(99)),
                times(middle, floor_a),
                times(middle, floor_b),
                merged.runs().to_string(),
            ],
        );
    }
    text.push('\n');
}

fn rates(text: &mut String, samples: &Samples, program: &str) {
    let counts = samples.client_counts(program);
    let mut names = vec!["runs a second, by clients".to_owned()];
    names.extend(counts.iter().map(u64::to_string));
    names.extend(["most ÷ floor A's", "most ÷ floor B's"].map(str::to_owned));
    head(text, &names);
    let all =
        |subject: &str| counts.iter().map(|count| samples.rate(subject, program, *count)).collect::<Vec<_>>();
    let most = |subject: &str| all(subject).into_iter().flatten().reduce(f64::max);
    let (floor_a, floor_b) = (most("floor A"), most("floor B"));
    for (subject, _) in &samples.subjects {
        let Some(best) = most(subject) else { continue };
        let mut cells = vec![subject.clone()];
        cells.extend(all(subject).into_iter().map(|found| found.map_or(NOTHING.into(), rate)));
        cells.extend([times(best, floor_a), times(best, floor_b)]);
        row(text, cells);
    }
    text.push('\n');
}

fn crowds(text: &mut String, samples: &Samples, program: &str) {
    let has = |subject: &str| {
        ["burst", "staggered"].iter().any(|mode| samples.crowd(subject, program, mode).is_some())
    };
    if !samples.subjects.iter().any(|(subject, _)| has(subject)) {
        return;
    }
    let names = [
        "a hundred runs",
        "at once: p50 ms",
        "last answer ms",
        "at 200 a second: p50 ms",
        "p99 ms",
        "last answer ms",
    ];
    head(text, &names.map(str::to_owned));
    for (subject, _) in samples.subjects.iter().filter(|(subject, _)| has(subject)) {
        let cell = |mode: &str, value: fn(&Merged) -> f64| {
            samples.crowd(subject, program, mode).map_or(NOTHING.into(), |merged| ms(value(merged)))
        };
        row(
            text,
            [
                subject.clone(),
                cell("burst", |merged| merged.percentile(50)),
                cell("burst", Merged::last_answer),
                cell("staggered", |merged| merged.percentile(50)),
                cell("staggered", |merged| merged.percentile(99)),
                cell("staggered", Merged::last_answer),
            ],
        );
    }
    text.push('\n');
}

/// What Sandglass is meant to reach with the cheapest program, and whether it does here.
fn goals(text: &mut String, samples: &Samples) {
    let Some((program, _)) = samples.programs.first() else { return };
    let _ = writeln!(text, "### What Sandglass is to reach with `{program}`\n");
    head(text, &["goal", "wanted", "measured", ""].map(str::to_owned));
    let mut goal = |name: &str, wanted: String, measured: Option<(f64, bool)>| {
        let (found, verdict) = measured.map_or((NOTHING.into(), "not measured"), |(value, reached)| {
            (ms(value), if reached { "reached" } else { "missed" })
        });
        row(text, [name.to_owned(), wanted, found, verdict.to_owned()]);
    };
    let p50 = |subject: &str| samples.paced(subject, program).map(|merged| merged.percentile(50));
    let ours = p50("Sandglass");
    let over = |most: f64, value: Option<f64>, floor: Option<f64>| {
        Some(value? / floor?).map(|ratio| (ratio, ratio <= most))
    };
    let at_least = |least: f64, value: Option<f64>, floor: Option<f64>| {
        Some(value? / floor?).map(|ratio| (ratio, ratio >= least))
    };
    goal("p50, a run every 10 ms, ÷ floor A's", "≤ 2.5".into(), over(2.5, ours, p50("floor A")));
    let p99 = samples.paced("Sandglass", program).map(|merged| merged.percentile(99));
    goal("p99 ÷ its own p50", "≤ 3".into(), over(3.0, p99, ours));
    let rate = |subject: &str, clients: u64| samples.rate(subject, program, clients);
    let alone = at_least(0.8, rate("Sandglass", 1), rate("floor B", 1));
    goal("rate with one client ÷ floor B's with one spawner", "≥ 0.8".into(), alone);
    let busy = at_least(0.8, rate("Sandglass", 2 * samples.cores), rate("floor B", samples.cores));
    goal("rate with 2 × cores clients ÷ floor B's on all cores", "≥ 0.8".into(), busy);
    for (peer, factor) in [("bwrap", 3.0), ("runc", 15.0), ("docker", 100.0)] {
        goal(&format!("{peer}'s p50 ÷ ours"), format!("≥ {factor}"), at_least(factor, p50(peer), ours));
    }
    let p50_ahead = at_least(1.0, p50("go-judge"), ours);
    goal("go-judge's p50 ÷ ours: ahead of it", "> 1".into(), p50_ahead);
    let rate_ahead = at_least(1.0, rate("Sandglass", 2 * samples.cores), rate("go-judge", 2 * samples.cores));
    goal("rate with 2 × cores clients ÷ go-judge's: ahead of it", "> 1".into(), rate_ahead);
    let burst = samples.crowd("Sandglass", program, "burst").map(Merged::last_answer);
    let bound = rate("Sandglass", 2 * samples.cores).map(|rate| 100.0 / rate * 1000.0 + 100.0);
    let wanted = bound.map_or(NOTHING.into(), |bound| format!("≤ {}", ms(bound)));
    goal(
        "last answer of 100 at once, ms",
        wanted,
        burst.zip(bound).map(|(burst, bound)| (burst, burst <= bound)),
    );
    text.push('\n');
}

fn legend(text: &mut String, samples: &Samples) {
    let _ = writeln!(text, "### Who is who\n");
    for (subject, what) in &samples.subjects {
        let _ = writeln!(text, "- **{subject}**: {what}.");
    }
    for (what, why) in &samples.left_out {
        let why = why.split_whitespace().collect::<Vec<_>>().join(" ");
        let _ = writeln!(text, "- Left out: **{what}**, because: {}.", why.trim_end_matches('.'));
    }
}

#[cfg(test)]
mod tests {
    use super::super::samples::tests::some;
    use super::*;

    #[test]
    fn the_tables_say_what_was_measured_and_what_was_not() {
        let text = markdown(&some());
        for line in [
            "| Sandglass | 2.02 | 2.04 | 2.05 | 1.98 | 1.33 | 100 |",
            "| docker | 300 | 300 | 300 | 292.99 | 196.87 | 100 |",
            "| runs a second, by clients | 1 | 4 | most ÷ floor A's | most ÷ floor B's |",
            "| Sandglass | 500 | 500 | 0.50 | 0.75 |",
            "| Sandglass | 2.05 | 200 | – | – | – |",
            "| p50, a run every 10 ms, ÷ floor A's | ≤ 2.5 | 1.98 | reached |",
            "| rate with one client ÷ floor B's with one spawner | ≥ 0.8 | 0.75 | missed |",
            "| rate with 2 × cores clients ÷ floor B's on all cores | ≥ 0.8 | – | not measured |",
            "| docker's p50 ÷ ours | ≥ 100 | 148 | reached |",
            "| bwrap's p50 ÷ ours | ≥ 3 | – | not measured |",
            "| go-judge's p50 ÷ ours: ahead of it | > 1 | 1.25 | reached |",
            "| rate with 2 × cores clients ÷ go-judge's: ahead of it | > 1 | 1.25 | reached |",
            "- Left out: **nsjail**, because: it is not there.",
        ] {
            assert!(text.contains(line), "{line}\nis not in\n{text}");
        }
    }

    #[test]
    fn every_row_has_as_many_cells_as_its_head() {
        let mut columns = 0;
        for line in markdown(&some()).lines() {
            match line.matches('|').count() {
                0 => columns = 0,
                count if columns == 0 => columns = count,
                count => assert_eq!(count, columns, "{line}"),
            }
        }
    }
}
