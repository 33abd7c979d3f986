//! `sandglass pull`: fetches an image, with a bar for each layer in a terminal.

use std::io::IsTerminal;
use std::process::ExitCode;

use image::{Images, LayerState, Lease, Progress, WaitsFor};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use run::Pull;

use super::flags::ConfigFlags;
use super::local::Local;
use crate::say::{Unsaid, say};

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The image, as Docker users write it
    image: String,
    #[command(flatten)]
    show: Show,
    #[command(flatten)]
    config: ConfigFlags<false>,
}

/// What is shown of what is under way.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Show {
    /// Show no progress
    #[arg(short, long)]
    pub(super) quiet: bool,
    /// Say each step and the end as a line of JSON on standard output
    #[arg(long, conflicts_with = "quiet")]
    json: bool,
}

impl Show {
    pub(super) fn quiet(quiet: bool) -> Self {
        Self { quiet, json: false }
    }

    /// Says what is here now.
    pub(super) fn done(&self, lease: &Lease) -> Result<(), Unsaid> {
        let digest = lease.digest.as_deref().unwrap_or("none");
        if self.json {
            say!("{}", serde_json::json!({ "reference": lease.reference, "digest": digest }))
        } else {
            say!("{}@{digest}", lease.reference)
        }
    }
}

pub fn main(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let local = Local::start(&arguments.config.load()?)?;
    let pull = acquire(&local.images, &arguments.image, Pull::Always, &arguments.show);
    let lease = local.runtime.block_on(pull)?;
    let said = arguments.show.done(&lease);
    drop(lease);
    local.runtime.block_on(local.images.close());
    said?;
    Ok(ExitCode::SUCCESS)
}

/// Gets an image and shows how far that is, if somebody is watching.
pub(super) async fn acquire(
    images: &Images,
    image: &str,
    pull: Pull,
    show: &Show,
) -> Result<Lease, image::ImageError> {
    let mut display = Display::new(show);
    let lease = images.acquire_with_progress(None, image, pull, &mut |progress| display.show(progress)).await;
    display.end();
    lease
}

/// Where progress goes.
#[derive(Debug)]
pub(super) enum Display {
    Nowhere,
    Lines,
    Bars(Bars),
}

impl Display {
    pub(super) fn new(show: &Show) -> Self {
        match show {
            Show { json: true, .. } => Self::Lines,
            Show { quiet: false, .. } if std::io::stderr().is_terminal() => Self::Bars(Bars::default()),
            _ => Self::Nowhere,
        }
    }

    pub(super) fn show(&mut self, progress: Progress) {
        match self {
            Self::Nowhere => {}
            // A pull goes on also where nobody hears of it; what was asked for is the image.
            Self::Lines => drop(say!("{}", serde_json::to_string(&progress).unwrap_or_default())),
            Self::Bars(bars) => bars.show(progress),
        }
    }

    pub(super) fn end(&self) {
        if let Self::Bars(bars) = self {
            bars.screen.clear().unwrap_or_default();
        }
    }
}

/// One line for each layer.
#[derive(Debug, Default)]
pub(super) struct Bars {
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
        let template = "{prefix:>9} [{bar:30}] {binary_bytes:>10} / {binary_total_bytes:10} \
                        {binary_bytes_per_sec:>12} {msg}";
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
