//! `cargo xtask WORD`: what a developer does with this repository, in one word each.
//! It needs nothing but cargo, and it only ever calls other programs.

mod bench;
mod cargo;
mod dashboard;
mod demo;
mod docs;
mod fuzz;
mod packages;
mod pretty;
mod release;
mod rounds;
mod sandboxes;
mod soak;
mod suite;
mod tally;
mod test;
mod vm;
mod walls;

use std::process::ExitCode;

use anyhow::{Context, Result};

const HELP: &str = "\
cargo xtask compose   bring deploy/compose up, but for Grafana, with the image that the Dockerfile makes
cargo xtask demo      build, start the service, show a first run, keep serving
cargo xtask test      install what the tests need, run all of them, count
cargo xtask test      --vm 6.1 or 6.12: the black-box suites on that kernel, under emulation
cargo xtask ci        formatting, lints, documentation, a minute of each fuzz target, then the tests
cargo xtask openapi   write openapi/ anew from the code
cargo xtask dashboard write deploy/grafana/ anew from its source; or `picture`: draw what it shows under load
cargo xtask docs      write docs/operating/configuration.md anew from the program
cargo xtask release   static programs, a Debian package, what is in them, and their sums ([x86_64] [aarch64])
cargo xtask release   --from FOLDER: the same of programs that are built already
cargo xtask fuzz      feed each fuzz target for a minute ([--seconds N] [TARGET…])
cargo xtask soak      100,000 runs, good and hostile, and what they leave ([RUNS])
cargo xtask soak      faults: the tests of faults, drains and upgrades, twenty times ([ROUNDS])
cargo xtask soak      judge: a judge's day, 200 submissions with 50 tests each, twice ([SUBMISSIONS])
cargo xtask soak      footprint: memory with 10,000 finished runs kept, and with 1,000 asleep ([RUNS])
cargo xtask soak      clients: 64 clients for ten minutes, a server killed and one stopped meanwhile ([SECONDS])
cargo xtask bench     how long a sandbox takes, beside everybody else's, with a table and a plot ([--quick])
cargo xtask bench     phases: where the time of a short run goes, from the scheduler's events
cargo xtask bench     images: how long pulls take, beside podman, containerd and umoci, and what images that
                      are here cost ([--rounds N] [WHAT…])
cargo xtask bench     batches: the rate of a batch's tests beside that of single runs, in turns ([ROUNDS])
cargo xtask suite     the attacks; with --full in every manner (hours), and every wall taken down;
                      or in one manner (alone, crowd, loaded), or those with a word in their names
cargo xtask walls     take down one wall of the sandbox after the other: some test must notice each
cargo xtask vm        the sandbox's tests on Linux 6.1 and 6.12 with cgroup version 2, under emulation
cargo xtask vm        systemd: the Debian package in a machine that systemd has booted, from installing to purging it";

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let word = words.next().unwrap_or_default();
    let rest: Vec<String> = words.collect();
    let result = match word.as_str() {
        "demo" => demo::main(&rest),
        "test" if rest.first().is_some_and(|word| word == "--vm") => vm::suites(&rest[1..]),
        "test" => test::main(&rest),
        "ci" => ci(),
        "openapi" => openapi(),
        "dashboard" => dashboard::main(&rest),
        "docs" => docs::main(),
        "fuzz" => fuzz::main(&rest),
        "release" => release::main(&rest),
        "soak" if rest.first().is_some_and(|word| word == "faults") => rounds::main(&rest[1..]),
        "soak" => soak::main(&rest),
        "bench" if rest.first().is_some_and(|word| word == "images") => bench::main(&rest),
        "bench" if rest.first().is_some_and(|word| word == "batches") => batches(&rest[1..]),
        "bench" => sandboxes::main(&rest),
        "suite" => suite::main(&rest),
        "compose" => compose(),
        "walls" => walls::main(&rest),
        "vm" if rest.first().is_some_and(|word| word == "systemd") => vm::systemd::main(&rest[1..]),
        "vm" => vm::main(&rest),
        _ => {
            eprintln!("{HELP}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask {word}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A round of one and of the other in turns, so that what else the machine does meets both.
fn batches(words: &[String]) -> Result<ExitCode> {
    let rounds = words.first().map_or("15", String::as_str);
    anyhow::ensure!(
        words.len() <= 1 && rounds.parse::<usize>().is_ok(),
        "usage: cargo xtask bench batches [ROUNDS]"
    );
    let env = [("SANDGLASS_RATE_RUNS", "1000"), ("SANDGLASS_RATE_ROUNDS", rounds)];
    soak::release_test(&["judge", "--", "many_short"], &env)
}

/// Cheapest first, so that a slip of the pen is told within seconds.
fn ci() -> Result<ExitCode> {
    cargo::run(&["fmt", "--all", "--check"], &[])?;
    cargo::run(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"], &[])?;
    cargo::run(&["doc", "--workspace", "--no-deps"], &[("RUSTDOCFLAGS", "-Dwarnings")])?;
    // Before the tests, whose count is the last line.
    let fuzzed = fuzz::main(&[])?;
    if fuzzed != ExitCode::SUCCESS {
        return Ok(fuzzed);
    }
    test::main(&[])
}

/// The compose files brought up for real, with the image that the Dockerfile makes.
fn compose() -> Result<ExitCode> {
    packages::install(packages::FOR_TESTS)?;
    cargo::run(&["test", "--test", "compose"], &[])?;
    Ok(ExitCode::SUCCESS)
}

fn openapi() -> Result<ExitCode> {
    let programs = cargo::build(&["--package", "sandglass", "--bin", "sandglass"])?;
    for (file, words) in [("v1.json", &["openapi"][..]), ("problems.md", &["openapi", "--problems"])] {
        let document = cargo::output(programs.get("sandglass")?, words)?;
        let path = cargo::root().join("openapi").join(file);
        std::fs::write(&path, document).with_context(|| format!("write {}", path.display()))?;
        println!("wrote {}", path.display());
    }
    Ok(ExitCode::SUCCESS)
}
