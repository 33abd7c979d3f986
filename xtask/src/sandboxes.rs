//! How long a sandbox takes, beside everybody else who can start a program here: measures, and makes a
//! table and a plot of what was measured. The raw data stays beside them, and both can be made of it anew.

mod peers;
mod phases;
mod plot;
mod report;
mod samples;

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use crate::{cargo, packages};
use samples::Samples;

/// For the file tree that all of them run the programs in.
const TOOLS: &[&str] = &["docker-registry", "gcc", "libc6-dev", "mmdebstrap"];

const USAGE: &str =
    "usage: cargo xtask bench [--quick], cargo xtask bench phases, or cargo xtask bench report RAW.json";

pub(crate) fn main(words: &[String]) -> Result<ExitCode> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        [] => sandboxes(false),
        ["--quick"] => sandboxes(true),
        ["phases"] => phases::main(),
        ["report", raw] => report(raw.as_ref(), &[]),
        _ => bail!("{USAGE}"),
    }
}

fn sandboxes(quick: bool) -> Result<ExitCode> {
    packages::install(TOOLS)?;
    let peers = peers::install()?;
    let folder = cargo::target().join("bench");
    fs::create_dir_all(&folder).context("make a folder for what is measured")?;
    let raw = folder.join("sandboxes.json");
    let path = raw.to_str().context("the target folder's name is no text")?;
    let mut words = vec!["bench", "--package", "sandglass", "--bench", "sandboxes", "--", path];
    words.extend(quick.then_some("--quick"));
    cargo::run(&words, &[("PATH", &peers.path)])?;
    report(&raw, &peers.left_out)
}

/// Beside the raw data, with its name.
fn report(raw: &Path, left_out: &[(String, String)]) -> Result<ExitCode> {
    let bytes = fs::read(raw).with_context(|| format!("read {}", raw.display()))?;
    let mut samples = Samples::read(&bytes).with_context(|| format!("read {}", raw.display()))?;
    let measured: Vec<_> = samples.subjects.iter().map(|(name, _)| name.clone()).collect();
    peers::explain(&mut samples.left_out, |name| measured.iter().any(|other| other == name), left_out);
    let (table, drawing) = (raw.with_extension("md"), raw.with_extension("svg"));
    let text = report::markdown(&samples);
    fs::write(&table, &text).with_context(|| format!("write {}", table.display()))?;
    fs::write(&drawing, plot::svg(&samples)).with_context(|| format!("write {}", drawing.display()))?;
    println!("{text}");
    for path in [raw, &table, &drawing] {
        println!("wrote {}", path.display());
    }
    Ok(ExitCode::SUCCESS)
}
