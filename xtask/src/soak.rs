//! What takes longer than a check of every change may: many thousand runs, good and hostile, and a look at the host
//! and the server before and after; a judge's whole day; many clients for ten minutes; ten thousand runs kept and a
//! thousand asleep.

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};

use crate::{cargo, packages};

const USAGE: &str = "usage: cargo xtask soak [RUNS], soak judge [SUBMISSIONS], soak clients [SECONDS], or soak footprint [RUNS]";

/// One of them: the test that does it, and what it is told.
struct Soak {
    test: &'static [&'static str],
    /// Where the number on the command line goes, and which it is without one.
    size: (&'static str, &'static str),
    more: &'static [(&'static str, &'static str)],
}

const RUNS: Soak = Soak { test: &["soak"], size: ("SANDGLASS_SOAK_RUNS", "100000"), more: &[] };

const JUDGE: Soak = Soak {
    test: &["judge", "--", "a_judge_s_day"],
    size: ("SANDGLASS_JUDGE_SUBMISSIONS", "200"),
    more: &[("SANDGLASS_JUDGE_TESTS", "50"), ("SANDGLASS_JUDGE_DAYS", "2")],
};

const CLIENTS: Soak = Soak {
    test: &["load"],
    size: ("SANDGLASS_LOAD_SECONDS", "600"),
    more: &[("SANDGLASS_LOAD_CLIENTS", "64")],
};

const FOOTPRINT: Soak = Soak {
    test: &["footprint", "--", "--test-threads=1"],
    size: ("SANDGLASS_FOOTPRINT_RUNS", "10000"),
    more: &[("SANDGLASS_FOOTPRINT_SLEEPERS", "1000")],
};

pub(crate) fn main(words: &[String]) -> Result<ExitCode> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (soak, rest) = match words[..] {
        ["judge", ref rest @ ..] => (JUDGE, rest),
        ["clients", ref rest @ ..] => (CLIENTS, rest),
        ["footprint", ref rest @ ..] => (FOOTPRINT, rest),
        ref rest => (RUNS, rest),
    };
    let number = rest.first().copied().unwrap_or(soak.size.1);
    ensure!(rest.len() <= 1 && number.parse::<usize>().is_ok(), USAGE);
    packages::install(packages::FOR_TESTS)?;
    cargo::run(&["run", "--quiet", "--package", "sandglass-test-support", "--bin", "test-images"], &[])?;
    release_test(soak.test, &[&[(soak.size.0, number)], soak.more].concat())
}

/// Runs one test program, or one test of it, in the form in which the service is used, and shows what it says.
pub(crate) fn release_test(test: &[&str], env: &[(&str, &str)]) -> Result<ExitCode> {
    let mut command = cargo::command();
    command.args(["test", "--release", "--test"]).args(test);
    if !test.contains(&"--") {
        command.arg("--");
    }
    let status = command.arg("--nocapture").envs(env.iter().copied()).status();
    let status = status.context("start cargo test")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
