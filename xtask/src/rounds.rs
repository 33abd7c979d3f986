//! `cargo xtask soak faults`: the tests of what goes wrong, of draining and of upgrades, again and again. What
//! fails once in twenty times is found here rather than by somebody whose change it has nothing to do with.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::{cargo, packages};

const ROUNDS: u32 = 20;

/// Test programs, each with what of it is meant.
const TESTS: &[(&str, &[&str])] = &[
    ("faults", &[]),
    ("crash", &[]),
    ("leftovers", &[]),
    ("promises", &[]),
    ("store", &["faults::"]),
    ("security", &["registries::"]),
    ("operating", &["upgrade::", "reload::"]),
];

pub(crate) fn main(words: &[String]) -> Result<ExitCode> {
    let rounds = words.first().map_or(Ok(ROUNDS), |word| word.parse());
    ensure!(words.len() <= 1 && rounds.is_ok(), "usage: cargo xtask soak faults [ROUNDS]");
    let rounds = rounds.unwrap_or(ROUNDS);
    packages::install(packages::FOR_TESTS)?;
    cargo::run(&["run", "--quiet", "--package", "sandglass-test-support", "--bin", "test-images"], &[])?;
    let mut names = vec!["--bins"];
    TESTS.iter().for_each(|(name, _)| names.extend(["--test", name]));
    let programs: BTreeMap<_, _> = cargo::build_tests(&names)?.into_iter().collect();
    let mut failures = BTreeMap::<String, u32>::new();
    for round in 1..=rounds {
        let (began, mut passed) = (Instant::now(), 0);
        for (name, filter) in TESTS {
            let program =
                programs.get(*name).with_context(|| format!("the build has made no test {name}"))?;
            let said = run(program, filter)?;
            passed += said.lines().filter(|line| is_verdict(line, "ok")).count();
            for test in failed(&said) {
                *failures.entry(format!("{name}: {test}")).or_default() += 1;
                println!("{said}");
            }
        }
        ensure!(passed > 0, "no test was run");
        println!("round {round} of {rounds}: {passed} passed in {} s", began.elapsed().as_secs());
    }
    for (test, times) in &failures {
        println!("FAILED {times} of {rounds} times: {test}");
    }
    println!("{} tests failed at least once in {rounds} rounds", failures.len());
    Ok(if failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run(program: &Path, filter: &[&str]) -> Result<String> {
    let mut command = Command::new(program);
    command.args(filter).arg("--test-threads=4").current_dir(cargo::root());
    let output = command.output().with_context(|| format!("start {}", program.display()))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr))
}

/// `test NAME ... ok`
fn is_verdict(line: &str, verdict: &str) -> bool {
    line.starts_with("test ") && line.ends_with(&format!(" ... {verdict}"))
}

/// The tests that failed; or that the program ended before it could tell.
fn failed(said: &str) -> Vec<&str> {
    let failed = said.lines().filter(|line| is_verdict(line, "FAILED"));
    let names: Vec<_> = failed.filter_map(|line| line.split(' ').nth(1)).collect();
    if names.is_empty() && !said.contains("test result: ok") { vec!["the whole program"] } else { names }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_is_read_off_what_a_test_program_says() {
        let good = "test a::b ... ok\ntest result: ok. 1 passed; 0 failed\n";
        let bad = "test a::b ... ok\ntest c ... FAILED\n\ntest result: FAILED. 1 passed; 1 failed\n";
        for (said, tests) in [
            (good, &[][..]),
            (bad, &["c"]),
            ("Segmentation fault\n", &["the whole program"]),
            ("", &["the whole program"]),
        ] {
            assert_eq!(failed(said), tests, "{said}");
        }
        assert!(is_verdict("test a::b ... ok", "ok") && !is_verdict("test result: ok", "ok"));
    }
}
