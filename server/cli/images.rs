//! `sandglass images`: a table of the store.

use std::process::ExitCode;

use super::flags::ConfigFlags;
use super::local::Local;

#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    config: ConfigFlags<false>,
}

pub fn main(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let local = Local::start(&arguments.config.load()?)?;
    let images = local.images.list();
    let width = images.iter().map(|image| image.reference.len()).max().unwrap_or_default().max(9);
    println!("{:width$}  {:12}  {:>6}  {:>10}  PULLED", "REFERENCE", "DIGEST", "LAYERS", "SIZE");
    for image in images {
        let digest = image.digest.split(':').next_back().unwrap_or_default();
        let digest = digest.get(..12).unwrap_or(digest);
        let size = indicatif::BinaryBytes(image.bytes).to_string();
        let pulled = image.pulled_at.strftime("%Y-%m-%d %H:%M");
        println!("{:width$}  {digest:12}  {:>6}  {size:>10}  {pulled}", image.reference, image.layers);
    }
    Ok(ExitCode::SUCCESS)
}
