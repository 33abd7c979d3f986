//! The command line: one file for each subcommand.

pub mod flags;

pub mod backup;
pub mod completions;
pub mod doctor;
pub mod image;
pub mod images;
pub mod key;
pub mod manual;
pub mod openapi;
pub mod pull;
pub mod run;
pub mod serve;

mod advice;
mod local;
mod passthrough;
mod run_spec;
mod stdin;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::say;

/// Runs one command of one OCI image in one fresh sandbox, with a limit on everything, and says exactly how it ended.
#[derive(Debug, Parser)]
#[command(name = "sandglass", version, about, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve the HTTP API
    Serve(serve::Arguments),
    /// Run one command of one image here and now, without a server
    Run(run::Arguments),
    /// Fetch, list, load, drop and pin the images of this machine's store
    #[command(subcommand)]
    Image(image::Command),
    /// Fetch an image into this machine's store
    Pull(pull::Arguments),
    /// List the images of this machine's store
    Images(images::Arguments),
    /// Make, list and take back the keys with which a server is asked
    Key(key::Arguments),
    /// Write keys and runs of a server that is stopped into one file; one that runs answers `GET /backup`
    Backup(backup::Arguments),
    /// Put a backup into a data directory that has neither keys nor runs
    Restore(backup::RestoreArguments),
    /// Say what this machine's kernel offers, what is missing and how to get it
    Doctor(doctor::Arguments),
    /// Print the OpenAPI document
    Openapi(openapi::Arguments),
    /// Print what makes a shell complete the words of this program
    Completions(completions::Arguments),
    /// Write the manual's pages: one for each subcommand, and one for the configuration
    Manual(manual::Arguments),
}

/// Says what is wrong with the command line, or shows the help that was asked for. With `run` a code
/// of 2 could be the program's, so there it is the one that is ours.
pub fn misused(error: &clap::Error) -> ExitCode {
    let code = match (error.use_stderr(), std::env::args().nth(1).as_deref()) {
        (false, _) => 0,
        (true, Some("run")) => run::OUR_FAULT,
        (true, _) => 2,
    };
    let _ = error.print();
    ExitCode::from(code)
}

impl Cli {
    pub fn execute(self) -> ExitCode {
        let result = match self.command {
            Command::Serve(arguments) => serve::main(&arguments),
            // Its codes are the program's, so ours is one of its own.
            Command::Run(arguments) => return run::main(&arguments),
            Command::Image(command) => image::main(&command),
            Command::Pull(arguments) => pull::main(&arguments),
            Command::Images(arguments) => images::main(&arguments),
            Command::Key(arguments) => key::main(&arguments),
            Command::Backup(arguments) => backup::main(&arguments),
            Command::Restore(arguments) => backup::restore_main(&arguments),
            Command::Doctor(arguments) => doctor::main(&arguments),
            Command::Openapi(arguments) => openapi::main(&arguments),
            Command::Completions(arguments) => completions::main(&arguments),
            Command::Manual(arguments) => manual::main(&arguments),
        };
        result.unwrap_or_else(|error| say::failed(&error))
    }
}
