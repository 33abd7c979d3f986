//! Every attack in every manner: each alone, eight of each at once, and each beside a load that takes nine
//! tenths of the machine; in containers and without root; and after that each wall taken down. Much longer
//! than a check of every change may take, which makes each attack once.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::{cargo, packages, walls};

/// The manners, by the names that the tests know them by.
const MANNERS: &[&str] = &["alone", "crowd", "loaded"];

/// Random attacks take as long as a run may last, less what it takes to come to an end, unless
/// `SANDGLASS_ATTACK_SECONDS` says otherwise.
const SECONDS: &str = "240";

/// What the suite has and this machine can't do, each with the reason.
const NOT_RUN: &[(&str, &str)] = &[
    ("F-10, F-11, F-14", "a request can't collect outputs yet"),
    ("X-04, X-10", "not promised on a kernel that is shared; docs/THREAT-MODEL.md says so"),
    ("X-08, A-13", "keys and idempotency keys do not exist yet"),
    ("K-12", "the kernel's own tests are not packaged by Debian; other kernels: `cargo xtask vm`"),
    ("R-31", "a long run of its own: `cargo xtask soak`"),
    ("public exploits", "never run on a machine that is in use; K-08 makes their first steps"),
];

pub(crate) fn main(words: &[String]) -> Result<ExitCode> {
    let full = match words {
        [] => false,
        [word] if word == "--full" => true,
        _ => bail!("usage: cargo xtask suite [--full]"),
    };
    packages::install(packages::FOR_TESTS)?;
    cargo::run(&["run", "--quiet", "--package", "sandglass-test-support", "--bin", "test-images"], &[])?;
    let manners = if full { MANNERS } else { &["together"] };
    let mut table = BTreeMap::<String, BTreeMap<&str, bool>>::new();
    let mut failed = BTreeSet::new();
    for manner in manners {
        let started = Instant::now();
        let count = attack(manner, full, &mut table, &mut failed)?;
        println!("{manner}: {count} tests in {:.0} s", started.elapsed().as_secs_f64());
    }
    show(manners, &table);
    for (rows, reason) in NOT_RUN {
        println!("not run  {rows}: {reason}");
    }
    for test in &failed {
        println!("FAILED   {test}");
    }
    let walls = if full { walls::main(&[])? } else { ExitCode::SUCCESS };
    let good = failed.is_empty() && walls == ExitCode::SUCCESS;
    println!("{} tests failed", failed.len());
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs all attacks in one manner and notes what became of each; returns the number of tests.
fn attack<'a>(
    manner: &'a str,
    full: bool,
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
    command.env("SANDGLASS_ATTACKS", manner);
    if full && std::env::var_os("SANDGLASS_ATTACK_SECONDS").is_none() {
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
