//! Which images and layers are here and who needs them. A layer goes when no image names it and
//! nobody holds it; everything that decides this happens under one lock.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use jiff::Timestamp;
use tokio::runtime::Handle;
use tokio::sync::Notify;

use crate::disk::{Disk, ImageRecord, KeptLayer, LayerRecord};
use crate::lease::Guard;
use crate::{ImageError, ImageInfo, LayerStore};

/// A record says when it was last used to within this.
const LAST_USED_PRECISION: Duration = Duration::from_secs(600);

pub(crate) struct Shelf {
    pub(crate) disk: Disk,
    pub(crate) store: Arc<dyn LayerStore>,
    state: Mutex<State>,
    /// Held while an image's record is written or removed, so that no old one outlives a new one.
    writing: Mutex<()>,
    /// Rung when a layer has been removed.
    removed: Notify,
    /// Leases are dropped anywhere; layers are removed here.
    runtime: Handle,
}

#[derive(Default)]
struct State {
    images: BTreeMap<String, ImageRecord>,
    layers: HashMap<String, KeptLayer>,
    /// How many images name each layer.
    named: HashMap<String, usize>,
    /// How many hold each layer.
    held: HashMap<String, usize>,
    /// Layers on their way out: they must be gone before they may come back.
    leaving: HashSet<String>,
}

impl State {
    /// Puts an image under its name; what had the name before comes back.
    fn insert(&mut self, image: ImageRecord) -> Option<ImageRecord> {
        image.layers.iter().for_each(|layer| add_one(&mut self.named, layer));
        let before = self.images.insert(image.reference.clone(), image)?;
        before.layers.iter().for_each(|layer| take_one(&mut self.named, layer));
        Some(before)
    }

    fn remove(&mut self, reference: &str) -> Option<ImageRecord> {
        let image = self.images.remove(reference)?;
        image.layers.iter().for_each(|layer| take_one(&mut self.named, layer));
        Some(image)
    }
}

fn add_one(counts: &mut HashMap<String, usize>, layer: &str) {
    *counts.entry(layer.to_owned()).or_default() += 1;
}

fn take_one(counts: &mut HashMap<String, usize>, layer: &str) {
    if let Some(count) = counts.get_mut(layer) {
        *count -= 1;
        if *count == 0 {
            counts.remove(layer);
        }
    }
}

/// Keeps layers from being removed.
pub(crate) struct Hold {
    shelf: Arc<Shelf>,
    layers: Vec<String>,
}

impl Guard for Hold {}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Hold").field(&self.layers).finish()
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut state = self.shelf.lock();
        self.layers.iter().for_each(|layer| take_one(&mut state.held, layer));
        self.shelf.sweep(&mut state, &self.layers);
    }
}

impl Shelf {
    /// Reads the records. What has a tree but no use is removed.
    pub(crate) fn open(disk: Disk, store: Arc<dyn LayerStore>) -> Result<Arc<Self>, ImageError> {
        let mut state = State::default();
        for LayerRecord { name, kept } in disk.layers()? {
            // A layer that was on its way in when the lights went out counts as useless.
            state.layers.insert(name, kept.unwrap_or_else(unusable));
        }
        for image in disk.images()? {
            let is_whole = image
                .layers
                .iter()
                .all(|layer| state.layers.get(layer).is_some_and(|layer| !is_unusable(layer)));
            if is_whole {
                state.insert(image);
            } else {
                tracing::warn!(image = image.reference, "forgetting an image whose layers are gone");
                disk.remove_image(&image.reference)?;
            }
        }
        let (removed, runtime) = (Notify::new(), Handle::current());
        let all: Vec<String> = state.layers.keys().cloned().collect();
        let shelf = Arc::new(Self {
            disk,
            store,
            state: Mutex::new(state),
            writing: Mutex::default(),
            removed,
            runtime,
        });
        shelf.sweep(&mut shelf.lock(), &all);
        Ok(shelf)
    }

    /// A lease's worth of an image that is here.
    pub(crate) fn take(self: &Arc<Self>, reference: &str) -> Option<(ImageRecord, Hold)> {
        let mut state = self.lock();
        let image = state.images.get_mut(reference)?;
        let now = Timestamp::now();
        image.last_used_at = now;
        let is_stale =
            image.saved_at.is_none_or(|saved| now.duration_since(saved).unsigned_abs() > LAST_USED_PRECISION);
        if is_stale {
            image.saved_at = Some(now);
        }
        let image = image.clone();
        let hold = self.hold_locked(&mut state, image.layers.clone());
        drop(state);
        if is_stale {
            let (shelf, reference) = (Arc::clone(self), reference.to_owned());
            self.runtime.spawn_blocking(move || shelf.save(&reference));
        }
        Some((image, hold))
    }

    /// Holds layers, whether they are here yet or not.
    pub(crate) fn hold(self: &Arc<Self>, layers: Vec<String>) -> Hold {
        self.hold_locked(&mut self.lock(), layers)
    }

    fn hold_locked(self: &Arc<Self>, state: &mut State, layers: Vec<String>) -> Hold {
        layers.iter().for_each(|layer| add_one(&mut state.held, layer));
        Hold { shelf: Arc::clone(self), layers }
    }

    /// A layer that is here. One on its way out is waited for until it is gone. The caller holds it,
    /// so that it stays.
    pub(crate) async fn layer(&self, name: &str) -> Option<KeptLayer> {
        loop {
            let removed = self.removed.notified();
            {
                let state = self.lock();
                if !state.leaving.contains(name) {
                    return state.layers.get(name).cloned().filter(|layer| !is_unusable(layer));
                }
            }
            removed.await;
        }
    }

    /// Says that a tree may be there from now on, wanted or not.
    pub(crate) fn expect(&self, name: &str) -> Result<(), ImageError> {
        self.disk.write_layer(&LayerRecord { name: name.into(), kept: None })?;
        self.lock().layers.insert(name.into(), unusable());
        Ok(())
    }

    /// Says that the tree is there.
    pub(crate) fn keep(&self, name: &str, layer: KeptLayer) -> Result<(), ImageError> {
        self.disk.write_layer(&LayerRecord { name: name.into(), kept: Some(layer.clone()) })?;
        self.lock().layers.insert(name.into(), layer);
        Ok(())
    }

    /// Puts an image on the shelf, whose layers the caller holds.
    pub(crate) fn put(self: &Arc<Self>, image: ImageRecord) -> Result<(), ImageError> {
        let _writing = self.writing.lock().expect("no holder panics");
        self.disk.write_image(&image)?;
        let mut state = self.lock();
        if let Some(before) = state.insert(image) {
            self.sweep(&mut state, &before.layers);
        }
        Ok(())
    }

    /// Writes what an image's record says now, if there still is one.
    fn save(&self, reference: &str) {
        let _writing = self.writing.lock().expect("no holder panics");
        let Some(image) = self.image(reference) else { return };
        if let Err(error) = self.disk.write_image(&image) {
            tracing::warn!(reference, error = ?error, "can't write when an image was last used");
        }
    }

    pub(crate) fn remove(self: &Arc<Self>, reference: &str) -> Result<bool, ImageError> {
        let _writing = self.writing.lock().expect("no holder panics");
        let Some(image) = self.lock().remove(reference) else { return Ok(false) };
        self.disk.remove_image(reference)?;
        self.sweep(&mut self.lock(), &image.layers);
        Ok(true)
    }

    /// Until no layer is on its way out.
    pub(crate) async fn settled(&self) {
        loop {
            let removed = self.removed.notified();
            if self.lock().leaving.is_empty() {
                return;
            }
            removed.await;
        }
    }

    pub(crate) fn image(&self, reference: &str) -> Option<ImageRecord> {
        self.lock().images.get(reference).cloned()
    }

    pub(crate) fn list(&self) -> Vec<ImageInfo> {
        let state = self.lock();
        let mut images: Vec<_> = state.images.values().map(|image| info(image, &state)).collect();
        images.sort_by_key(|image| std::cmp::Reverse(image.last_used_at));
        images
    }

    pub(crate) fn info(&self, reference: &str) -> Option<ImageInfo> {
        let state = self.lock();
        state.images.get(reference).map(|image| info(image, &state))
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.lock().layers.values().map(|layer| layer.bytes).sum()
    }

    /// Sends away those of the layers that no image names and nobody holds.
    fn sweep(self: &Arc<Self>, state: &mut State, layers: &[String]) {
        for layer in layers {
            let is_needed = state.named.contains_key(layer) || state.held.contains_key(layer);
            if !is_needed && state.layers.remove(layer).is_some() {
                state.leaving.insert(layer.clone());
                self.runtime.spawn(send_away(Arc::clone(self), layer.clone()));
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }
}

/// The record goes last: as long as the tree may be there, the next start must know of it.
async fn send_away(shelf: Arc<Shelf>, layer: String) {
    let result = match shelf.store.remove(&layer).await {
        Ok(()) => shelf.disk.remove_layer(&layer),
        Err(error) => Err(crate::disk::broken("remove layer", error)),
    };
    if let Err(error) = result {
        tracing::warn!(layer, error = ?error, "a layer could not be removed; the next start tries again");
    }
    shelf.lock().leaving.remove(&layer);
    shelf.removed.notify_waiters();
}

fn info(image: &ImageRecord, state: &State) -> ImageInfo {
    ImageInfo {
        reference: image.reference.clone(),
        digest: image.digest.clone(),
        platform: image.platform.clone(),
        layers: image.layers.len(),
        compressed_bytes: image.compressed_bytes,
        bytes: image.bytes,
        pulled_at: image.pulled_at,
        last_used_at: image.last_used_at,
        in_use: image.layers.iter().any(|layer| state.held.contains_key(layer)),
    }
}

/// Stands for a layer whose tree may be there or not.
fn unusable() -> KeptLayer {
    KeptLayer { entries: u64::MAX, ..KeptLayer::default() }
}

fn is_unusable(layer: &KeptLayer) -> bool {
    layer.entries == u64::MAX
}
