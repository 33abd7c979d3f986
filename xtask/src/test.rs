//! The second command of the README: installs what the tests need, runs all of them, and counts.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::process::{ExitCode, Stdio};

use anyhow::{Context, Result, ensure};

use crate::tally::Tally;
use crate::{cargo, packages};

/// Each test has a daemon of its own; more at once would make them slow rather than the whole fast.
const TESTS_AT_ONCE: &str = "--test-threads=4";

pub(crate) fn main(words: &[String]) -> Result<ExitCode> {
    let root = std::fs::metadata("/proc/self").context("ask who we are")?.uid() == 0;
    ensure!(
        root,
        "the tests start real sandboxes on a real machine and need root: run `sudo cargo xtask test`"
    );
    packages::install(packages::FOR_TESTS)?;
    let schemathesis = packages::schemathesis()?;
    packages::typescript()?;
    packages::helm()?;
    // Also what only other systems build: the test of the architecture asks for the whole tree, offline.
    cargo::run(&["fetch", "--locked"], &[])?;
    cargo::run(&["run", "--quiet", "--package", "sandglass-test-support", "--bin", "test-images"], &[])?;

    if words.is_empty() {
        // Some minutes of release build, which no test should have to wait for.
        let image = ["run", "--quiet", "--package", "sandglass-test-support", "--bin", "container-image"];
        cargo::run(&image, &[])?;
    }

    let skips = cargo::target().join("skipped-tests");
    std::fs::write(&skips, "").with_context(|| format!("write {}", skips.display()))?;
    let mut command = cargo::command();
    command.args(["test", "--no-fail-fast"]).args(words);
    if words.is_empty() {
        command.arg("--workspace");
    }
    if !words.iter().any(|word| word == "--") {
        command.arg("--");
    }
    command.arg(TESTS_AT_ONCE).env("SANDGLASS_SKIPS", &skips).env("SANDGLASS_SCHEMATHESIS", &schemathesis);
    eprintln!("$ {command:?}");
    let mut tests = command.stdout(Stdio::piped()).spawn().context("start cargo test")?;
    let tally = relay(tests.stdout.take().context("cargo has no output")?)?;
    let status = tests.wait().context("wait for cargo test")?;

    let skipped = std::fs::read_to_string(&skips).with_context(|| format!("read {}", skips.display()))?;
    Ok(conclude(tally, &skipped, status.success()))
}

/// Passes every line on at once and counts those that count.
fn relay(output: impl std::io::Read) -> Result<Tally> {
    let mut tally = Tally::default();
    let mut lines = BufReader::new(output);
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line).context("read the tests' output")? > 0 {
        std::io::stdout().write_all(&line).context("pass the tests' output on")?;
        tally.read(&String::from_utf8_lossy(&line));
        line.clear();
    }
    Ok(tally)
}

fn conclude(mut tally: Tally, skipped: &str, succeeded: bool) -> ExitCode {
    tally.skip(skipped.lines().count());
    for line in skipped.lines() {
        println!("SKIPPED: {line}");
    }
    if !succeeded && tally.failed == 0 {
        println!("FAILED: a test program that could not be built, or that ended before it could count");
        tally.failed = 1;
    }
    if succeeded && tally.passed == 0 {
        println!("FAILED: no test was run");
        tally.failed = 1;
    }
    if tally.skipped > 0 && std::env::var("CI").is_ok_and(|value| value == "true") {
        println!(
            "FAILED: this machine promises all that the tests need (CI=true), and yet some were skipped"
        );
        tally.failed += tally.skipped;
        tally.skipped = 0;
    }
    println!("{tally}");
    if tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
