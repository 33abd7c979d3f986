//! Which images and layers are here and who needs them. A layer goes when no image names it and
//! nobody holds it; everything that decides this happens under one lock.

mod behind;
mod hold;
mod state;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use jiff::Timestamp;
use run::PrincipalName;
use tokio::runtime::Handle;
use tokio::sync::Notify;

pub(crate) use self::behind::{Durable, Unsettled};
pub(crate) use self::hold::{Hold, Taken};
pub(crate) use self::state::State;
use self::state::{add_one, info};
use crate::disk::{Disk, ImageRecord, KeptLayer, LayerRecord, key};
use crate::pull::off_thread;
use crate::view::ShownTo;
use crate::{Budget, ImageError, ImageInfo, LayerStore};

/// A record says when it was last used, and when its registry was last asked, to within this.
const LAST_USED_PRECISION: Duration = Duration::from_secs(600);

pub(crate) struct Shelf {
    pub(crate) disk: Disk,
    pub(crate) store: Arc<dyn LayerStore>,
    pub(crate) budget: Budget,
    /// Names that are never collected.
    pub(crate) pinned: BTreeSet<String>,
    state: Mutex<State>,
    /// Held while an image's record is written or removed, so that no old one outlives a new one.
    writing: Mutex<()>,
    /// Rung when a layer has been removed, and when something is durable or can't be.
    changed: Notify,
    /// Leases are dropped anywhere; layers are removed here.
    runtime: Handle,
}

impl Shelf {
    /// Reads the records. What has a tree but no use is removed.
    pub(crate) fn open(
        disk: Disk,
        store: Arc<dyn LayerStore>,
        budget: Budget,
        pinned: BTreeSet<String>,
    ) -> Result<Arc<Self>, ImageError> {
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
                disk.remove_image(&image.key())?;
            }
        }
        let (changed, runtime) = (Notify::new(), Handle::current());
        let all: Vec<String> = state.layers.keys().cloned().collect();
        let shelf = Arc::new(Self {
            disk,
            store,
            budget,
            pinned,
            state: Mutex::new(state),
            writing: Mutex::default(),
            changed,
            runtime,
        });
        shelf.sweep(&mut shelf.lock(), &all);
        Ok(shelf)
    }

    /// A lease's worth of an image that is here.
    pub(crate) fn take(self: &Arc<Self>, key: &str) -> Option<Taken> {
        let mut state = self.lock();
        let image = state.images.get_mut(key)?;
        let now = Timestamp::now();
        image.last_used_at = now;
        let is_stale = image.is_due_to_be_saved(now);
        let record = image.clone();
        let hold = self.hold_locked(&mut state, &record.layers, Some(key.to_owned()));
        let durable = state.durable(&record);
        drop(state);
        if is_stale {
            let (shelf, key) = (Arc::clone(self), key.to_owned());
            self.runtime.spawn_blocking(move || shelf.save(&key));
        }
        Some(Taken { record, hold, durable })
    }

    /// Holds layers, whether they are here yet or not.
    pub(crate) fn hold(self: &Arc<Self>, layers: Vec<String>) -> Hold {
        self.hold_locked(&mut self.lock(), &layers.into(), None)
    }

    fn hold_locked(
        self: &Arc<Self>,
        state: &mut State,
        layers: &Arc<[String]>,
        image: Option<String>,
    ) -> Hold {
        image.iter().for_each(|image| add_one(&mut state.leased, image));
        state.held.add(layers);
        Hold { shelf: Arc::clone(self), layers: Arc::clone(layers), image }
    }

    /// A layer that is here. One on its way out is waited for until it is gone. The caller holds it,
    /// so that it stays.
    pub(crate) async fn layer(&self, name: &str) -> Option<KeptLayer> {
        loop {
            let changed = self.changed.notified();
            {
                let state = self.lock();
                if !state.leaving.contains(name) {
                    return state.layers.get(name).cloned().filter(|layer| !is_unusable(layer));
                }
            }
            changed.await;
        }
    }

    /// Whether an image is here that has not come from a registry.
    pub(crate) fn was_loaded(&self, key: &str) -> bool {
        self.lock().images.get(key).is_some_and(|image| image.resolved_at.is_none())
    }

    /// Whether a layer is here already.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.lock().is_usable(name)
    }

    /// Says that trees may be there from now on, wanted or not.
    pub(crate) fn announce(&self, layers: &[(String, KeptLayer)]) -> Result<(), ImageError> {
        self.disk.announce(layers)?;
        self.lock().layers.extend(layers.iter().map(|(name, _)| (name.clone(), unusable())));
        Ok(())
    }

    /// Says that others have shown that they could have a layer that is here.
    pub(crate) fn show(self: &Arc<Self>, name: &str, to: ShownTo) -> Result<(), ImageError> {
        // Whoever wanted it shown may be gone before it is: what has left meanwhile must not come back by that.
        let _hold = self.hold(vec![name.to_owned()]);
        let _writing = self.writing.lock().expect("no holder panics");
        let Some(mut layer) = self.lock().layers.get(name).cloned().filter(|layer| !is_unusable(layer))
        else {
            return Ok(());
        };
        layer.shown_to.add(to.clone());
        // What is not durable is not written down before it is.
        if !self.lock().unsettled.contains(name) {
            self.write_layer(name, layer)?;
        }
        if let Some(layer) = self.lock().layers.get_mut(name) {
            layer.shown_to.add(to);
        }
        Ok(())
    }

    fn write_layer(&self, name: &str, kept: KeptLayer) -> Result<(), ImageError> {
        self.disk.write_layer(&LayerRecord { name: name.into(), kept: Some(kept) })
    }

    /// Marks an image as one that is never collected, or as any other.
    pub(crate) fn pin(&self, key: &str, pinned: bool) -> Result<bool, ImageError> {
        let _writing = self.writing.lock().expect("no holder panics");
        let image = {
            let mut state = self.lock();
            let Some(image) = state.images.get_mut(key) else { return Ok(false) };
            image.pinned = pinned;
            let image = image.clone();
            // It is written down once its layers are durable.
            if state.unkept.contains_key(key) {
                return Ok(true);
            }
            image
        };
        self.disk.write_image(&image).map(|()| true)
    }

    /// Notes that a registry has just said that a name still means what it meant.
    pub(crate) fn confirm(self: &Arc<Self>, key: &str) {
        let is_stale = {
            let (mut state, now) = (self.lock(), Timestamp::now());
            let Some(image) = state.images.get_mut(key) else { return };
            image.resolved_at = Some(now);
            image.is_due_to_be_saved(now)
        };
        // Every run may have its registry asked; the disk need not hear of each.
        if is_stale {
            let (shelf, key) = (Arc::clone(self), key.to_owned());
            self.runtime.spawn_blocking(move || shelf.save(&key));
        }
    }

    /// Whether a name was last asked about longer than `life` ago. Who is told so asks; nobody else
    /// is told so before that long again.
    pub(crate) fn is_due(&self, key: &str, life: Duration) -> bool {
        let (mut state, now) = (self.lock(), Timestamp::now());
        let Some(image) = state.images.get_mut(key) else { return false };
        let Some(last) = image.resolved_at.max(image.asked_at) else { return false };
        let is_due = image.resolved_at.is_some() && now.duration_since(last).unsigned_abs() >= life;
        if is_due {
            image.asked_at = Some(now);
        }
        is_due
    }

    /// An image of the same repository and owner that is the one with this digest, under whatever name.
    pub(crate) fn take_digest(
        self: &Arc<Self>,
        repository: &str,
        digest: &str,
        owner: Option<&PrincipalName>,
    ) -> Option<Taken> {
        let is_of = |image: &&ImageRecord| {
            let rest = image.reference.strip_prefix(repository);
            image.owner.as_ref() == owner
                && rest.is_some_and(|rest| rest.starts_with([':', '@']))
                && (image.digest == digest || image.manifest_digest == digest)
        };
        let mut state = self.lock();
        let record = state.images.values().find(is_of)?.clone();
        let hold = self.hold_locked(&mut state, &record.layers, Some(record.key()));
        let durable = state.durable(&record);
        drop(state);
        Some(Taken { record, hold, durable })
    }

    /// Writes down when each image was last used, which is otherwise done now and then.
    pub(crate) fn save_all(&self) {
        let used = |image: &&ImageRecord| image.saved_at != Some(image.last_used_at);
        let stale: Vec<_> = self.lock().images.values().filter(used).map(ImageRecord::key).collect();
        stale.iter().for_each(|key| self.save(key));
    }

    /// Writes what an image's record says now, if there still is one.
    fn save(&self, key: &str) {
        let _writing = self.writing.lock().expect("no holder panics");
        let Some(image) = self.image(key) else { return };
        if self.lock().unkept.contains_key(key) {
            return;
        }
        if let Err(error) = self.disk.write_image(&image) {
            tracing::warn!(key, error = ?error, "can't write when an image was last used");
        }
    }

    pub(crate) fn remove(self: &Arc<Self>, key: &str) -> Result<bool, ImageError> {
        self.remove_if(key, |_| true)
    }

    /// Removes an image that nobody has begun to use since it was chosen.
    pub(crate) fn remove_unused(self: &Arc<Self>, key: &str) -> Result<bool, ImageError> {
        self.remove_if(key, |state| {
            let is_pinned = state.images.get(key).is_some_and(|image| image.pinned);
            !is_pinned && !state.leased.contains_key(key)
        })
    }

    fn remove_if(
        self: &Arc<Self>,
        key: &str,
        may_go: impl FnOnce(&State) -> bool,
    ) -> Result<bool, ImageError> {
        let _writing = self.writing.lock().expect("no holder panics");
        let removed = {
            let mut state = self.lock();
            if may_go(&state) { state.remove(key) } else { None }
        };
        let Some(image) = removed else { return Ok(false) };
        // Where its record could not be removed, the next start does so, since its layers are gone.
        let forgotten = self.disk.remove_image(key);
        self.sweep(&mut self.lock(), &image.layers);
        forgotten.map(|()| true)
    }

    /// Until no layer is on its way out, and everything is durable that is going to be.
    pub(crate) async fn settled(&self) {
        let is_settled =
            |state: &State| state.unsettled.is_empty() && state.unkept.is_empty() && state.leaving.is_empty();
        self.wait_until(is_settled).await;
    }

    /// Until everything that was sent away has given its room back.
    pub(crate) async fn emptied(&self) {
        self.wait_until(|state| state.deleting_bytes == 0).await;
    }

    async fn wait_until(&self, is_so: impl Fn(&State) -> bool) {
        loop {
            let changed = self.changed.notified();
            if is_so(&self.lock()) {
                return;
            }
            changed.await;
        }
    }

    pub(crate) fn image(&self, key: &str) -> Option<ImageRecord> {
        self.lock().images.get(key).cloned()
    }

    pub(crate) fn list(&self) -> Vec<ImageInfo> {
        let state = self.lock();
        let mut images: Vec<_> = state.images.values().map(|image| info(image, &state)).collect();
        for image in &mut images {
            image.pinned |= image.owner.is_none() && self.pinned.contains(&image.reference);
        }
        images.sort_by_key(|image| std::cmp::Reverse(image.last_used_at));
        images
    }

    /// What the layers of these images take of the disk, each counted once.
    pub(crate) fn bytes_of(&self, images: &[ImageInfo]) -> u64 {
        let state = self.lock();
        let records =
            images.iter().filter_map(|image| state.images.get(&key(&image.reference, image.owner.as_ref())));
        let names: BTreeSet<_> = records.flat_map(|record| record.layers.iter()).collect();
        names.into_iter().filter_map(|name| state.layers.get(name)).map(KeptLayer::weight).sum()
    }

    pub(crate) fn info(&self, key: &str) -> Option<ImageInfo> {
        let state = self.lock();
        let mut image = info(state.images.get(key)?, &state);
        image.pinned |= self.pinned.contains(key);
        Some(image)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.lock().weight()
    }

    /// Sends away those of the layers that no image names and nobody holds.
    fn sweep(self: &Arc<Self>, state: &mut State, layers: &[String]) {
        let unnamed: Vec<&String> = layers.iter().filter(|layer| !state.named.contains_key(*layer)).collect();
        if unnamed.is_empty() {
            return;
        }
        let held = state.held.layers();
        let useless: Vec<&String> =
            unnamed.into_iter().filter(|layer| !held.contains(layer.as_str())).collect();
        for layer in useless {
            if let Some(kept) = state.layers.remove(layer) {
                state.suspect.remove(layer);
                state.leaving.insert(layer.clone());
                // What may be there or not brings nothing that could be counted on.
                let (bytes, inodes) =
                    if is_unusable(&kept) { (0, 0) } else { (kept.weight(), kept.inodes()) };
                state.deleting_bytes += bytes;
                state.deleting_inodes += inodes;
                self.runtime.spawn(send_away(Arc::clone(self), layer.clone(), bytes, inodes));
            }
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }
}

impl ImageRecord {
    /// Whether it was written longest ago enough. Who is told so writes it; nobody else is told so before that long
    /// again.
    fn is_due_to_be_saved(&mut self, now: Timestamp) -> bool {
        let is_due =
            self.saved_at.is_none_or(|saved| now.duration_since(saved).unsigned_abs() > LAST_USED_PRECISION);
        if is_due {
            self.saved_at = Some(now);
        }
        is_due
    }
}

/// The record goes last: as long as the tree may be there, the next start must know of it.
async fn send_away(shelf: Arc<Shelf>, layer: String, bytes: u64, inodes: u64) {
    let result = match shelf.store.remove(&layer).await {
        Ok(deleting) => {
            let (shelf, layer) = (Arc::clone(&shelf), layer.clone());
            off_thread(move || shelf.disk.remove_layer(&layer)).await.map(|()| deleting)
        }
        Err(error) => Err(crate::disk::broken("remove layer", error)),
    };
    shelf.lock().leaving.remove(&layer);
    shelf.changed.notify_waiters();
    let result = match result {
        Ok(deleting) => deleting.await.map_err(|error| crate::disk::broken("delete layer", error)),
        Err(error) => Err(error),
    };
    if let Err(error) = result {
        tracing::warn!(layer, error = ?error, "a layer could not be removed; the next start tries again");
    }
    {
        let mut state = shelf.lock();
        state.deleting_bytes -= bytes;
        state.deleting_inodes -= inodes;
    }
    shelf.changed.notify_waiters();
}

/// Stands for a layer whose tree may be there or not.
fn unusable() -> KeptLayer {
    KeptLayer { entries: u64::MAX, ..KeptLayer::default() }
}

fn is_unusable(layer: &KeptLayer) -> bool {
    layer.entries == u64::MAX
}

#[cfg(test)]
pub(crate) mod tests;
