//! Many thousand runs, good and hostile ones mixed, and a look at the host and the server before and after.

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};

use crate::{cargo, packages};

const RUNS: &str = "100000";

pub(crate) fn main(words: &[String]) -> Result<ExitCode> {
    let runs = words.first().map_or(RUNS, String::as_str);
    ensure!(words.len() <= 1 && runs.parse::<usize>().is_ok(), "usage: cargo xtask soak [RUNS]");
    packages::install(packages::FOR_TESTS)?;
    cargo::run(&["run", "--quiet", "--package", "sandglass-test-support", "--bin", "test-images"], &[])?;
    let status = cargo::command()
        .args(["test", "--release", "--test", "soak", "--", "--nocapture"])
        .env("SANDGLASS_SOAK_RUNS", runs)
        .status()
        .context("start cargo test")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
