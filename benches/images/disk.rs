//! What images that share layers take of the disk: each layer once, and next to nothing for each image.

use std::collections::BTreeMap;

use anyhow::Result;
use support::{Image, Layer, disk_bytes};

use crate::Row;
use crate::world::{World, pull};

/// One for each layer of `gcc`: that layer, those below it, and a small one of its own.
const IMAGES: usize = 5;
const MEGABYTE: f64 = 1e6;

pub(crate) fn measure(world: &World) -> Result<Vec<Row>> {
    let base = world.registry.image_of("gcc", "1");
    let own = |at: usize| {
        Layer::build(|tar| {
            tar.file(&format!("own/{at}"), at.to_string());
        })
    };
    let mut unique = BTreeMap::new();
    for at in 0..IMAGES {
        let layers = base.layers.iter().take(at + 1).cloned().chain([own(at)]);
        let image = Image::new(layers.collect::<Vec<_>>());
        unique.extend(image.layers.iter().map(|layer| (layer.diff_id.clone(), layer.clone())));
        world.registry.push(&format!("stack-{at}"), "1", &image);
    }
    let unpacked: u64 = unique.values().map(|layer| layer.unpacked_bytes()).sum();
    let daemon = world.server().start();
    let before = disk_bytes(&daemon.data_dir());
    for at in 0..IMAGES {
        pull(&daemon, &world.image(&format!("stack-{at}")))?;
    }
    let taken = (disk_bytes(&daemon.data_dir()) - before) as f64 / MEGABYTE;
    let unpacked = unpacked as f64 / MEGABYTE;
    Ok(vec![Row {
        what: format!("disk of {IMAGES} images that share layers"),
        unit: "MB",
        most: 1.02 * unpacked + IMAGES as f64,
        measured: taken,
        of: format!(
            "{unpacked:.0} MB of archives, each layer once: {:.3} of it, where 1.02 and 1 MB an image are wanted",
            taken / unpacked
        ),
    }])
}
