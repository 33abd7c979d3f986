//! Calling cargo and other programs, with errors that say which.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// The top of the repository.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// `target/`, or wherever the environment has put it. Cargo takes a relative path from the top of the
/// repository, where `command` starts it.
pub(crate) fn target() -> PathBuf {
    root().join(std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}

pub(crate) fn command() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

pub(crate) fn run(args: &[&str], env: &[(&str, &str)]) -> Result<()> {
    eprintln!("$ cargo {}", args.join(" "));
    let status = command().args(args).envs(env.iter().copied()).status().context("start cargo")?;
    ensure!(status.success(), "cargo {} failed: {status}", args.join(" "));
    Ok(())
}

/// Runs a program to its end, with its output shown.
pub(crate) fn call(program: &str, args: &[&str]) -> Result<()> {
    eprintln!("$ {program} {}", args.join(" "));
    let status = Command::new(program).args(args).status().with_context(|| format!("start {program}"))?;
    ensure!(status.success(), "{program} failed: {status}");
    Ok(())
}

/// What a program prints.
pub(crate) fn output(program: &Path, args: &[&str]) -> Result<Vec<u8>> {
    let name = program.display();
    let output = Command::new(program).args(args).stderr(Stdio::inherit()).output();
    let output = output.with_context(|| format!("start {name}"))?;
    ensure!(output.status.success(), "{name} {} failed: {}", args.join(" "), output.status);
    Ok(output.stdout)
}

/// The programs that a build has made, by name.
#[derive(Debug)]
pub(crate) struct Programs(BTreeMap<String, PathBuf>);

impl Programs {
    pub(crate) fn get(&self, name: &str) -> Result<&Path> {
        self.0
            .get(name)
            .map(PathBuf::as_path)
            .with_context(|| format!("the build has made no program {name}"))
    }
}

/// Builds test programs and the binaries beside them; each with its name.
pub(crate) fn build_tests(args: &[&str]) -> Result<Vec<(String, PathBuf)>> {
    let Programs(programs) = cargo_json(&[&["test", "--no-run"], args].concat(), &[])?;
    Ok(programs.into_iter().collect())
}

/// Builds, and asks cargo where the programs are rather than guessing.
pub(crate) fn build(args: &[&str]) -> Result<Programs> {
    build_with(args, &[])
}

pub(crate) fn build_with(args: &[&str], env: &[(&str, &str)]) -> Result<Programs> {
    cargo_json(&[&["build"], args].concat(), env)
}

fn cargo_json(args: &[&str], env: &[(&str, &str)]) -> Result<Programs> {
    eprintln!("$ cargo {}", args.join(" "));
    let output = command()
        .args(args)
        .envs(env.iter().copied())
        .arg("--message-format=json-render-diagnostics")
        .stderr(Stdio::inherit())
        .output()
        .context("start cargo")?;
    if !output.status.success() {
        bail!("cargo {} failed: {}", args.join(" "), output.status);
    }
    let mut programs = BTreeMap::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let message: Value = serde_json::from_str(line).context("read cargo's messages")?;
        // A program's own tests are a program of the same name.
        if message["profile"]["test"] == true && message["target"]["kind"][0] == "bin" {
            continue;
        }
        if let (Some(name), Some(path)) = (message["target"]["name"].as_str(), message["executable"].as_str())
        {
            programs.insert(name.to_owned(), path.into());
        }
    }
    Ok(Programs(programs))
}
