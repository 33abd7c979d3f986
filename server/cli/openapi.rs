//! `sandglass openapi`: prints the document, so that nobody has to start a server to have it.

use std::process::ExitCode;

use crate::http::{docs, problem};
use crate::say::{self, say};

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Print the list of problems instead
    #[arg(long)]
    problems: bool,
}

pub fn main(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    if arguments.problems {
        say::all(problem::list().as_bytes())?;
    } else {
        say!("{}", serde_json::to_string_pretty(&docs::document())?)?;
    }
    Ok(ExitCode::SUCCESS)
}
