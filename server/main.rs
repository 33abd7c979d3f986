//! The program: reads the command line and does what it says.

use std::process::ExitCode;

use clap::Parser;
use sandglass::cli::{self, Cli};
use sandglass::log::LastWords;

fn main() -> ExitCode {
    let _said = LastWords;
    match Cli::try_parse() {
        Ok(cli) => cli.execute(),
        Err(error) => cli::misused(&error),
    }
}
