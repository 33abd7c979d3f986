//! `sandglass pull`: fetches an image, with a bar for each layer in a terminal.

use std::io::IsTerminal;
use std::process::ExitCode;

use image::{Images, LayerState, Lease, Progress, WaitsFor};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use run::Pull;

use super::flags::ConfigFlags;
use super::local::Local;

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The image, as Docker users write it
    image: String,
    /// Show no progress
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    config: ConfigFlags<false>,
}

pub fn main(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let local = Local::start(&arguments.config.load()?)?;
    let pull = acquire(&local.images, &arguments.image, Pull::Always, arguments.quiet);
    let lease = local.runtime.block_on(pull)?;
    println!("{}@{}", lease.reference, lease.digest.as_deref().unwrap_or("none"));
    local.runtime.block_on(local.images.close());
    Ok(ExitCode::SUCCESS)
}

/// Gets an image and shows how far that is, if somebody is watching.
pub async fn acquire(
    images: &Images,
    image: &str,
    pull: Pull,
    quiet: bool,
) -> Result<Lease, image::ImageError> {
    if quiet || !std::io::stderr().is_terminal() {
        return images.acquire(image, pull).await;
    }
    let mut bars = Bars::default();
    let lease = images.acquire_with_progress(image, pull, &mut |progress| bars.show(progress)).await;
    bars.screen.clear().unwrap_or_default();
    lease
}

/// One line for each layer.
#[derive(Debug, Default)]
struct Bars {
    screen: MultiProgress,
    layers: Vec<ProgressBar>,
}

impl Bars {
    fn show(&mut self, progress: Progress) {
        match progress {
            Progress::Resolving { reference } => {
                self.screen.println(format!("resolving {reference}")).unwrap_or_default();
            }
            Progress::Resolved { layers, .. } => {
                self.layers = (0..layers).map(|layer| self.bar(layer)).collect();
            }
            Progress::Layer { layer, state } => self.show_layer(layer, &state),
            Progress::Committing | Progress::Ready { .. } => {}
        }
    }

    fn bar(&self, layer: usize) -> ProgressBar {
        let template = "{prefix:>9} [{bar:30}] {binary_bytes:>10} / {binary_total_bytes:10} {binary_bytes_per_sec:>12} {msg}";
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = self.screen.add(ProgressBar::new(0).with_style(style.progress_chars("=> ")));
        bar.set_prefix(format!("layer {}", layer + 1));
        bar
    }

    fn show_layer(&self, layer: usize, state: &LayerState) {
        let Some(bar) = self.layers.get(layer) else { return };
        match state {
            LayerState::Downloading { bytes, of, waits_for } => {
                bar.set_message(match waits_for {
                    WaitsFor::Registry => "waits for the registry",
                    WaitsFor::Unpacker => "waits for the unpacker",
                });
                bar.set_length(*of);
                bar.set_position(*bytes);
            }
            LayerState::Unpacking => bar.set_message("unpacking"),
            LayerState::Shared => bar.finish_with_message("already here"),
            LayerState::Done => bar.finish_with_message("done"),
        }
    }
}
