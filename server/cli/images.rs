//! `sandglass images`: a table of the store.

use std::process::ExitCode;

use image::ImageInfo;
use run::PrincipalName;

use super::flags::ConfigFlags;
use super::local::Local;
use crate::say::{Unsaid, say};

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Say each image as a line of JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigFlags<false>,
}

pub fn main(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let local = Local::start(&arguments.config.load()?)?;
    let images = local.images.list();
    if arguments.json {
        for image in &images {
            say!("{}", serde_json::to_string(image)?)?;
        }
    } else {
        table(&images)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn table(images: &[ImageInfo]) -> Result<(), Unsaid> {
    let width = images.iter().map(|image| image.reference.len()).max().unwrap_or_default().max(9);
    say!(
        "{:width$}  {:12}  {:>6}  {:>10}  {:>10}  {:16}  {:6}  PRINCIPAL",
        "REFERENCE",
        "DIGEST",
        "LAYERS",
        "SIZE",
        "OWN",
        "LAST USED",
        "PINNED"
    )?;
    for image in images {
        let digest = image.digest.split(':').next_back().unwrap_or_default();
        let digest = digest.get(..12).unwrap_or(digest);
        let size = |bytes: u64| indicatif::BinaryBytes(bytes).to_string();
        say!(
            "{:width$}  {digest:12}  {:>6}  {:>10}  {:>10}  {:16}  {:6}  {}",
            image.reference,
            image.layers,
            size(image.bytes),
            size(image.own_bytes),
            image.last_used_at.strftime("%Y-%m-%d %H:%M").to_string(),
            if image.pinned { "yes" } else { "no" },
            image.owner.as_ref().map_or("-", PrincipalName::as_str),
        )?;
    }
    Ok(())
}
