//! `sandglass image save`: images as a file that another machine can load, without any registry.

use std::fs::File;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, ensure};
use image::Saved;

use crate::cli::flags::ConfigFlags;
use crate::cli::local::Local;
use crate::say::{Unsaid, say, tell};

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The images, as Docker users write them; they must be in this machine's store
    #[arg(required = true)]
    images: Vec<String>,
    /// The file to write; without it, standard output
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    config: ConfigFlags<false>,
}

pub(super) fn main(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let to = open(arguments.output.as_deref())?;
    let saved = save(arguments, to);
    let saved = saved.map_err(|error| match &arguments.output {
        Some(path) => {
            // Half an archive helps nobody.
            let _ = std::fs::remove_file(path);
            error
        }
        None => of_standard_output(error),
    })?;
    for Saved { reference, digest, .. } in saved {
        let line = format!("{reference}@{digest}");
        if arguments.output.is_some() {
            say!("{line}")?;
        } else {
            tell!("{line}");
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn open(path: Option<&std::path::Path>) -> anyhow::Result<File> {
    if let Some(path) = path {
        return File::create(path).with_context(|| format!("write {}", path.display()));
    }
    ensure!(!io::stdout().is_terminal(), "standard output is a terminal; name a file with --output");
    let stdout = io::stdout().as_fd().try_clone_to_owned().context("write standard output")?;
    Ok(stdout.into())
}

/// What standard output did not take, if that is what an archive failed of.
fn of_standard_output(error: anyhow::Error) -> anyhow::Error {
    let cause = error.chain().find_map(|cause| cause.downcast_ref::<Arc<io::Error>>());
    match cause.map(|cause| cause.kind()) {
        Some(io::ErrorKind::BrokenPipe) => Unsaid::from(io::Error::from(io::ErrorKind::BrokenPipe)).into(),
        _ => error,
    }
}

fn save(arguments: &Arguments, to: File) -> anyhow::Result<Vec<Saved>> {
    let local = Local::start(&arguments.config.load()?)?;
    local.runtime.block_on(async {
        let saved = local.images.save(&arguments.images, to).await;
        local.images.close().await;
        Ok(saved?)
    })
}
