//! `sandglass completions`: what a shell needs to complete subcommands and flags.

use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::Shell;

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Which shell
    shell: Shell,
}

pub fn main(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    clap_complete::generate(arguments.shell, &mut super::Cli::command(), "sandglass", &mut std::io::stdout());
    Ok(ExitCode::SUCCESS)
}
