//! `sandglass image load`: images from a file, a folder or standard input, without any registry.

use std::fs::File;
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, ensure};
use image::Archive;

use crate::cli::flags::ConfigFlags;
use crate::cli::local::Local;
use crate::cli::pull::{Display, Show};

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// A file, a folder with an OCI layout, or - for standard input
    archive: PathBuf,
    /// What the image is called from then on; without it, as the archive says
    #[arg(long = "as", value_name = "IMAGE")]
    name: Option<String>,
    #[command(flatten)]
    show: Show,
    #[command(flatten)]
    config: ConfigFlags<false>,
}

pub(super) fn main(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let archive = if arguments.archive.as_os_str() == "-" {
        ensure!(!std::io::stdin().is_terminal(), "standard input is a terminal; name a file or a folder");
        Archive::File(File::from(
            std::io::stdin().as_fd().try_clone_to_owned().context("read standard input")?,
        ))
    } else {
        let path = &arguments.archive;
        Archive::Path(path.canonicalize().with_context(|| format!("open {}", path.display()))?)
    };
    let local = Local::start(&arguments.config.load()?)?;
    let mut display = Display::new(&arguments.show);
    let loaded = local.runtime.block_on(async {
        let name = arguments.name.as_deref();
        local.images.load(archive, name, &mut |step| display.show(step)).await
    });
    display.end();
    let said = loaded?.iter().try_for_each(|lease| arguments.show.done(lease));
    local.runtime.block_on(local.images.close());
    said?;
    Ok(ExitCode::SUCCESS)
}
