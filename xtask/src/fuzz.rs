//! Feeds everything that takes bytes from strangers with bytes that nobody thought of. libFuzzer does
//! it with the toolchain that builds the service: no nightly, and no program but a C++ compiler.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread;

use anyhow::{Context, Result, bail, ensure};

use crate::{cargo, packages};

const TARGETS: &[&str] = &["layer", "document", "reference", "request", "packet"];

/// Counters that libFuzzer reads, as `cargo fuzz` asks for them; its sanitizers, which need a nightly
/// compiler, would find little in code whose `unsafe` stands in two files.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
     -Cllvm-args=-sanitizer-coverage-trace-compares -Cllvm-args=-simplifycfg-branch-fold-threshold=0 \
     -Ccodegen-units=1 --cfg fuzzing";

/// An input that takes longer is as bad as one that crashes.
const SECONDS_PER_INPUT: u32 = 20;

/// How one target fared.
struct Outcome {
    target: &'static str,
    executions: u64,
    coverage: u64,
    /// The fuzzer's own words, where it found something.
    found: Option<String>,
}

pub(crate) fn main(words: &[String]) -> Result<ExitCode> {
    let (seconds, targets) = read(words)?;
    packages::install(&["g++"])?;
    let programs = build()?;
    let at_once = thread::available_parallelism().map_or(1, usize::from);
    let mut outcomes = Vec::new();
    for group in targets.chunks(at_once) {
        let running = group.iter().copied().map(|target| {
            let program = programs.get(target).map(Path::to_owned);
            thread::spawn(move || run(target, &program?, seconds))
        });
        for thread in running.collect::<Vec<_>>() {
            outcomes.push(thread.join().map_err(|_| anyhow::anyhow!("a fuzzer's thread panicked"))??);
        }
    }
    let mut bad = 0;
    for Outcome { target, executions, coverage, found } in outcomes {
        let word = if found.is_some() { "FOUND" } else { "ok   " };
        println!("{word}  {target:10} {executions:>10} inputs in {seconds} s, {coverage:>6} places reached");
        if let Some(words) = found {
            println!("{words}");
            bad += 1;
        }
    }
    Ok(if bad == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// `[--seconds N] [TARGET…]`
fn read(words: &[String]) -> Result<(u32, Vec<&'static str>)> {
    let (mut seconds, mut targets) = (60, Vec::new());
    let mut words = words.iter();
    while let Some(word) = words.next() {
        if word == "--seconds" {
            seconds = words.next().context("--seconds wants a number")?.parse().context("--seconds")?;
        } else if let Some(target) = TARGETS.iter().find(|target| *target == word) {
            targets.push(*target);
        } else {
            bail!("there is no target {word}; there are {}", TARGETS.join(", "));
        }
    }
    Ok((seconds, if targets.is_empty() { TARGETS.to_vec() } else { targets }))
}

fn build() -> Result<cargo::Programs> {
    let place = cargo::target().join("fuzz");
    let place = place.to_str().context("the target folder's name is no text")?;
    let args = ["--manifest-path", "fuzz/Cargo.toml", "--release", "--bins", "--locked"];
    cargo::build_with(&args, &[("RUSTFLAGS", FLAGS), ("CARGO_TARGET_DIR", place)])
}

fn run(target: &'static str, program: &Path, seconds: u32) -> Result<Outcome> {
    let corpus = folder(cargo::target().join("fuzz-corpus").join(target))?;
    let found = folder(cargo::root().join("fuzz/found"))?;
    let output = Command::new(program)
        .args([format!("-max_total_time={seconds}"), format!("-timeout={SECONDS_PER_INPUT}")])
        .args(["-rss_limit_mb=2048", "-print_final_stats=1", "-verbosity=1"])
        .arg(format!("-artifact_prefix={}/{target}-", found.display()))
        .arg(corpus)
        .arg(cargo::root().join("fuzz/seeds").join(target))
        .env("RUST_BACKTRACE", "0")
        .stdout(Stdio::null())
        .output()
        .with_context(|| format!("start the fuzzer of {target}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let number = |after: &str| {
        let rest = said.rsplit_once(after)?.1.split_whitespace().next()?;
        rest.parse::<u64>().ok()
    };
    let (executions, coverage) = (number("stat::number_of_executed_units:"), number("cov:"));
    let tail =
        || said.lines().rev().take(40).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n");
    if output.status.success() {
        // A fuzzer that tried nothing, or saw nothing of the program, has proved nothing.
        let tried =
            executions.is_some_and(|number| number > 100) && coverage.is_some_and(|number| number > 20);
        ensure!(tried, "the fuzzer of {target} did no work:\n{}", tail());
    }
    Ok(Outcome {
        target,
        executions: executions.unwrap_or_default(),
        coverage: coverage.unwrap_or_default(),
        found: (!output.status.success()).then(tail),
    })
}

fn folder(path: PathBuf) -> Result<PathBuf> {
    std::fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
    Ok(path)
}
