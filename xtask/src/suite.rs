//! Every attack in every manner: each alone, eight of each at once, and each beside a load that takes nine
//! tenths of the machine; in containers and without root; and after that each wall taken down. Much longer
//! than a check of every change may take, which makes each attack once.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};

use crate::{cargo, packages, walls};

/// The manners, by the names that the tests know them by.
const MANNERS: &[&str] = &["alone", "crowd", "loaded"];

/// Random attacks take as long as a run may last, less what it takes to come to an end, unless
/// `SANDGLASS_ATTACK_SECONDS` says otherwise.
const SECONDS: &str = "240";

/// Rows of the suite whose tests are not among the attacks, each with where they are.
const ELSEWHERE: &[(&str, &str)] = &[
    ("A-13", "tests/promises.rs"),
    ("C-04, G-22", "crates/unpack/tests/layer"),
    ("I-05, X-01", "tests/isolation/neighbours.rs"),
    ("K-09", "tests/isolation: what a program finds that looks around, for every image and user"),
    ("R-19, R-21, R-22, R-23", "tests/outcomes.rs, tests/http.rs"),
    ("R-30", "tests/crash.rs, tests/faults/phases.rs"),
    ("R-31", "cargo xtask soak"),
    ("R-32", "tests/faults, tests/store/faults.rs"),
    ("R-34", "tests/limits.rs"),
    ("S-09, S-10, S-12, S-20", "tests/outcomes.rs"),
    ("X-02", "tests/isolation/traces.rs, tests/pool.rs"),
    ("X-03", "K-02: the calls that would tell are not there"),
    ("X-07", "tests/security/strangers.rs, tests/principals"),
    ("X-08", "tests/principals/images.rs"),
    ("X-09", "G-14, G-21, crates/image/tests/pull"),
    ("other kernels", "cargo xtask vm"),
];

/// What the suite has and this machine can't do, each with the reason.
const NOT_RUN: &[(&str, &str)] = &[
    ("X-04, X-10", "not promised on a kernel that is shared; docs/THREAT-MODEL.md says so"),
    (
        "K-12",
        "the kernel's own tests of seccomp, Landlock and pidfds begin by making namespaces, mounts and filters that \
         listen, which a sandbox refuses: what they would show is what K-01 and K-05 show",
    ),
    ("R-29", "stress-ng's own loads are R-01 to R-28, one by one, each with its own bound"),
    ("public exploits", "never run on a machine that is in use; K-08 makes their first steps"),
];

/// What was asked for on the command line.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    full: bool,
    manners: Vec<&'static str>,
    /// Parts of tests' names; all of them where there is none.
    tests: Vec<String>,
}

impl Wanted {
    /// `--full` means every manner; a manner by its name means that one; any other word is of a test.
    fn parse(words: &[String]) -> Self {
        let full = words.iter().any(|word| word == "--full");
        let named = |manner: &&&str| full || words.iter().any(|word| word == **manner);
        let mut manners: Vec<_> = MANNERS.iter().filter(named).copied().collect();
        if manners.is_empty() {
            manners.push("together");
        }
        let is_test = |word: &&String| *word != "--full" && !MANNERS.contains(&word.as_str());
        Self { full, manners, tests: words.iter().filter(is_test).cloned().collect() }
    }
}

/// `cargo xtask suite [--full | MANNER…] [TEST…]`.
pub(crate) fn main(words: &[String]) -> Result<ExitCode> {
    let wanted = Wanted::parse(words);
    packages::install(packages::FOR_TESTS)?;
    cargo::run(&["run", "--quiet", "--package", "sandglass-test-support", "--bin", "test-images"], &[])?;
    let mut table = BTreeMap::<String, BTreeMap<&str, bool>>::new();
    let mut failed = BTreeSet::new();
    for manner in &wanted.manners {
        let started = Instant::now();
        let count = attack(manner, &wanted, &mut table, &mut failed)?;
        println!("{manner}: {count} tests in {:.0} s", started.elapsed().as_secs_f64());
    }
    show(&wanted.manners, &table);
    for (rows, place) in ELSEWHERE {
        println!("elsewhere  {rows}: {place}");
    }
    for (rows, reason) in NOT_RUN {
        println!("not run    {rows}: {reason}");
    }
    for test in &failed {
        println!("FAILED   {test}");
    }
    let walls = if wanted.full { walls::main(&[])? } else { ExitCode::SUCCESS };
    let good = failed.is_empty() && walls == ExitCode::SUCCESS;
    println!("{} tests failed", failed.len());
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs all attacks in one manner and notes what became of each; returns the number of tests.
fn attack<'a>(
    manner: &'a str,
    wanted: &Wanted,
    table: &mut BTreeMap<String, BTreeMap<&'a str, bool>>,
    failed: &mut BTreeSet<String>,
) -> Result<usize> {
    let mut command: Command = cargo::command();
    command.args(["test", "--no-fail-fast", "--test", "security", "--"]);
    // One test at a time, so that nothing but what is meant is beside an attack.
    command.args(["--show-output", "--test-threads=1"]);
    if manner == "loaded" {
        // Containers and users without root have as many slots as the machine has processors.
        command.args(["--skip", "modes::"]);
    }
    command.args(&wanted.tests);
    command.env("SANDGLASS_ATTACKS", manner);
    if wanted.full && std::env::var_os("SANDGLASS_ATTACK_SECONDS").is_none() {
        command.env("SANDGLASS_ATTACK_SECONDS", SECONDS);
    }
    eprintln!("$ SANDGLASS_ATTACKS={manner} {command:?}");
    let output = command.stderr(Stdio::inherit()).output().context("start cargo test")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut count = 0;
    for line in text.lines() {
        match line.split_once(' ') {
            Some((colour @ ("green" | "red"), rest)) => {
                let good = table.entry(rest.to_owned()).or_default().entry(manner).or_insert(true);
                *good &= colour == "green";
            }
            Some(("test", rest)) if rest.ends_with("... ok") || rest.ends_with("... FAILED") => {
                count += 1;
                if rest.ends_with("FAILED") {
                    failed.insert(format!("{manner}: {}", rest.trim_end_matches(" ... FAILED")));
                }
            }
            _ => {}
        }
        if line.starts_with("walls let something through") || line.contains("panicked at") {
            println!("       {line}");
        }
    }
    if !output.status.success() && failed.is_empty() {
        failed.insert(format!("{manner}: the tests could not be run to their end"));
    }
    if !failed.is_empty() {
        let path = cargo::target().join(format!("suite-{manner}.log"));
        std::fs::write(&path, &output.stdout).with_context(|| format!("write {}", path.display()))?;
        println!("       the whole output is in {}", path.display());
    }
    Ok(count)
}

fn show(manners: &[&str], table: &BTreeMap<String, BTreeMap<&str, bool>>) {
    let head: Vec<String> = manners.iter().map(|manner| format!("{manner:8}")).collect();
    println!("{} attack", head.join(" "));
    for (attack, results) in table {
        let cells: Vec<String> = manners
            .iter()
            .map(|manner| match results.get(manner) {
                Some(true) => format!("{:8}", "green"),
                Some(false) => format!("{:8}", "RED"),
                None => format!("{:8}", "-"),
            })
            .collect();
        println!("{} {attack}", cells.join(" "));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_manners_or_parts_of_tests_names() {
        let parse =
            |words: &[&str]| Wanted::parse(&words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>());
        let wanted = |full, manners: &[&'static str], tests: &[&str]| Wanted {
            full,
            manners: manners.to_vec(),
            tests: tests.iter().map(|&test| test.to_owned()).collect(),
        };
        assert_eq!(parse(&[]), wanted(false, &["together"], &[]));
        assert_eq!(parse(&["--full"]), wanted(true, MANNERS, &[]));
        assert_eq!(parse(&["alone", "kernel"]), wanted(false, &["alone"], &["kernel"]));
        assert_eq!(parse(&["kernel"]), wanted(false, &["together"], &["kernel"]));
    }
}
