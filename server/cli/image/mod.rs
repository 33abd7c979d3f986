//! `sandglass image`: what can be done with this machine's store, one file for each that has more to it
//! than a call. `pull` and `images` are the short forms of two of them.

mod load;
mod save;

use std::process::ExitCode;

use clap::Subcommand;
use image::{ImageError, Images, Whose};
use run::PrincipalName;

use super::flags::ConfigFlags;
use super::local::Local;
use super::{images, pull};
use crate::say::{say, tell};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Fetch an image into this machine's store
    Pull(pull::Arguments),
    /// List the images of this machine's store
    Ls(images::Arguments),
    /// Take images from a file or a folder: what `docker save` writes, or an OCI layout
    Load(load::Arguments),
    /// Write images into an archive for other machines, which `load` and other programs take
    Save(save::Arguments),
    /// Forget images
    Rm(RmArguments),
    /// Keep images from ever being collected
    Pin(PinArguments),
}

#[derive(Debug, clap::Args)]
pub struct RmArguments {
    /// The images, as Docker users write them
    #[arg(required = true)]
    images: Vec<String>,
    /// The images that this principal alone may use, rather than everybody's
    #[arg(long)]
    principal: Option<String>,
    #[command(flatten)]
    config: ConfigFlags<false>,
}

#[derive(Debug, clap::Args)]
pub struct PinArguments {
    /// The images, as Docker users write them
    #[arg(required = true)]
    images: Vec<String>,
    /// Let them go again
    #[arg(long)]
    off: bool,
    #[command(flatten)]
    config: ConfigFlags<false>,
}

pub fn main(command: &Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Pull(arguments) => pull::main(arguments),
        Command::Ls(arguments) => images::main(arguments),
        Command::Load(arguments) => load::main(arguments),
        Command::Save(arguments) => save::main(arguments),
        Command::Rm(arguments) => {
            let owner = arguments.principal.as_deref().map(PrincipalName::parse).transpose()?;
            let whose = owner.as_ref().map_or(Whose::Everybodys, Whose::Own);
            each(&arguments.config, &arguments.images, async |images, name| {
                images.remove_of(whose, name).await
            })
        }
        Command::Pin(arguments) => each(&arguments.config, &arguments.images, async |images, name| {
            images.pin(name, !arguments.off).await
        }),
    }
}

/// Does the same to each of the images, and says which it failed for.
fn each(
    config: &ConfigFlags<false>,
    names: &[String],
    mut work: impl AsyncFnMut(&Images, &str) -> Result<(), ImageError>,
) -> anyhow::Result<ExitCode> {
    let local = Local::start(&config.load()?)?;
    let failed = local.runtime.block_on(async {
        let (mut failed, mut said) = (false, Ok(()));
        for name in names {
            match work(&local.images, name).await {
                Ok(()) => said = said.and_then(|()| say!("{}", Images::full_name(name).unwrap_or_default())),
                Err(error) => {
                    tell!("sandglass: {error}");
                    failed = true;
                }
            }
        }
        local.images.close().await;
        said.map(|()| failed)
    })?;
    Ok(ExitCode::from(u8::from(failed)))
}
