//! The program: reads the command line and does what it says.

use std::process::ExitCode;

use clap::Parser;
use sandglass::cli::{self, Cli};

fn main() -> ExitCode {
    match Cli::try_parse() {
        Ok(cli) => cli.execute(),
        Err(error) => cli::misused(&error),
    }
}
