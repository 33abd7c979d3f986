//! The books: which images and layers there are, and how many need each of them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::behind::Unkept;
use super::is_unusable;
use crate::disk::{ImageRecord, KeptLayer};
use crate::{ImageError, ImageInfo};

#[derive(Default)]
pub(crate) struct State {
    pub(crate) images: BTreeMap<String, ImageRecord>,
    pub(crate) layers: HashMap<String, KeptLayer>,
    /// How many images name each layer.
    pub(crate) named: HashMap<String, usize>,
    /// Layers that somebody holds.
    pub(crate) held: Held,
    /// How many hold each image.
    pub(crate) leased: HashMap<String, usize>,
    /// Layers that are in use before they are durable.
    pub(super) unsettled: HashSet<String>,
    /// Layers that could not be made durable, and why. They may be in use as well.
    pub(super) suspect: HashMap<String, ImageError>,
    /// Images that are in use before they are durable.
    pub(super) unkept: HashMap<String, Unkept>,
    /// Layers on their way out: they must be gone before they may come back.
    pub(super) leaving: HashSet<String>,
    /// Bytes of files that nobody can find any more and that are being deleted.
    pub(crate) deleting_bytes: u64,
    /// How many files that are.
    pub(crate) deleting_inodes: u64,
}

/// Lists of layers, and how many hold each. All who use an image hold the same list, which costs each of them as much
/// as if it had one layer.
#[derive(Default)]
pub(crate) struct Held(HashMap<usize, (Arc<[String]>, usize)>);

impl Held {
    fn place(layers: &Arc<[String]>) -> usize {
        Arc::as_ptr(layers).addr()
    }

    pub(super) fn add(&mut self, layers: &Arc<[String]>) {
        self.0.entry(Self::place(layers)).or_insert_with(|| (Arc::clone(layers), 0)).1 += 1;
    }

    pub(super) fn take(&mut self, layers: &Arc<[String]>) {
        let place = Self::place(layers);
        if let Some((_, count)) = self.0.get_mut(&place) {
            *count -= 1;
            if *count == 0 {
                self.0.remove(&place);
            }
        }
    }

    pub(crate) fn layers(&self) -> HashSet<&str> {
        self.0.values().flat_map(|(layers, _)| layers.iter()).map(String::as_str).collect()
    }
}

impl State {
    pub(super) fn is_usable(&self, layer: &str) -> bool {
        self.layers.get(layer).is_some_and(|layer| !is_unusable(layer))
    }

    /// Puts an image under its name; what had the name before comes back.
    pub(super) fn insert(&mut self, image: ImageRecord) -> Option<ImageRecord> {
        image.layers.iter().for_each(|layer| add_one(&mut self.named, layer));
        let before = self.images.insert(image.key(), image)?;
        before.layers.iter().for_each(|layer| take_one(&mut self.named, layer));
        Some(before)
    }

    /// What all layers take of the disk, each counted once.
    pub(crate) fn weight(&self) -> u64 {
        self.layers.values().map(KeptLayer::weight).sum()
    }

    /// Whether another image has the layer, among those that whoever has this one could use: of what others have
    /// alone nothing is told, not even that it is here.
    fn others_share(&self, image: &ImageRecord, layer: &String) -> bool {
        let is_seen = |other: &ImageRecord| other.owner.is_none() || other.owner == image.owner;
        self.named.get(layer).is_some_and(|count| *count > 1)
            && self
                .images
                .iter()
                .any(|(key, other)| *key != image.key() && is_seen(other) && other.layers.contains(layer))
    }

    pub(super) fn remove(&mut self, key: &str) -> Option<ImageRecord> {
        let image = self.images.remove(key)?;
        image.layers.iter().for_each(|layer| take_one(&mut self.named, layer));
        Some(image)
    }
}

pub(super) fn add_one(counts: &mut HashMap<String, usize>, layer: &str) {
    *counts.entry(layer.to_owned()).or_default() += 1;
}

pub(super) fn take_one(counts: &mut HashMap<String, usize>, layer: &str) {
    if let Some(count) = counts.get_mut(layer) {
        *count -= 1;
        if *count == 0 {
            counts.remove(layer);
        }
    }
}

/// What is told of an image.
pub(super) fn info(image: &ImageRecord, state: &State) -> ImageInfo {
    let layers = || image.layers.iter().filter_map(|name| Some((name, state.layers.get(name)?)));
    let own = layers().filter(|(name, _)| !state.others_share(image, name));
    ImageInfo {
        own_bytes: own.map(|(_, layer)| layer.bytes).sum(),
        disk_bytes: layers().map(|(_, layer)| layer.weight()).sum(),
        resolved_at: image.resolved_at,
        pinned: image.pinned,
        reference: image.reference.clone(),
        digest: image.digest.clone(),
        platform: image.platform.clone(),
        layers: image.layers.len(),
        compressed_bytes: image.compressed_bytes,
        bytes: image.bytes,
        pulled_at: image.pulled_at,
        last_used_at: image.last_used_at,
        owner: image.owner.clone(),
        in_use: state.leased.contains_key(&image.key()),
    }
}
