//! `sandglass completions`: what a shell needs to complete subcommands and flags.

use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::Shell;

use crate::say;

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Which shell
    shell: Shell,
}

pub fn main(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    // It has no way to say that nobody reads.
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut super::Cli::command(), "sandglass", &mut script);
    say::all(&script)?;
    Ok(ExitCode::SUCCESS)
}
