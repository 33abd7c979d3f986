//! What can be used before it is durable: layers that have their names, and images that are made of them. Both are
//! made durable behind that, and go again where that fails. docs/decisions/0018 says what is durable when.

use std::io;
use std::sync::{Arc, Weak};

use futures_util::future::Shared;
use futures_util::{FutureExt, TryFutureExt};
use jiff::Timestamp;
use tokio::sync::oneshot;

use super::state::State;
use super::{Hold, Shelf, unusable};
use crate::disk::{ImageRecord, KeptLayer, broken};
use crate::pull::off_thread;
use crate::store::BoxFuture;
use crate::{Eviction, ImageError, Observer};

/// Ends when something is durable, or can't be.
pub(crate) type Durable = Shared<BoxFuture<'static, Result<(), ImageError>>>;

/// An image that is in use before it is durable.
pub(super) struct Unkept {
    pulled_at: Timestamp,
    durable: Durable,
    /// Kept by whoever makes it durable, since a hold is never dropped under the lock.
    before: Weak<Before>,
}

/// What an image has replaced, with what that had replaced if it was not durable either.
struct Before {
    record: ImageRecord,
    _hold: Hold,
    earlier: Option<Arc<Self>>,
}

impl Before {
    /// The last first.
    fn chain(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |before| before.earlier.as_deref())
    }
}

/// Layers that sandboxes can have and that have yet to be made durable. Whoever drops it has not done so.
pub(crate) struct Unsettled {
    shelf: Arc<Shelf>,
    layers: Vec<(String, KeptLayer)>,
    /// Why they never will be.
    failure: Option<ImageError>,
}

impl Unsettled {
    /// Says that the trees and their names are durable, which makes the layers so. Blocks.
    pub(crate) fn settle(mut self) -> Result<(), ImageError> {
        let settled = self.write_down();
        self.failure = settled.clone().err();
        settled
    }

    pub(crate) fn fail(mut self, error: ImageError) {
        self.failure = Some(error);
    }

    fn write_down(&mut self) -> Result<(), ImageError> {
        let _writing = self.shelf.writing.lock().expect("no holder panics");
        self.shelf.disk.settle(&self.layers)?;
        for (name, announced) in &self.layers {
            // Others may have shown meanwhile that they could have it.
            let now = self.shelf.lock().layers.get(name).cloned();
            if let Some(now) = now.filter(|now| now.shown_to != announced.shown_to) {
                self.shelf.write_layer(name, now)?;
            }
        }
        let mut state = self.shelf.lock();
        for (name, _) in self.layers.drain(..) {
            state.unsettled.remove(&name);
        }
        Ok(())
    }
}

impl Drop for Unsettled {
    fn drop(&mut self) {
        if !self.layers.is_empty() {
            let given_up = || broken("keep a layer", io::Error::other("it was given up"));
            let error = self.failure.take().unwrap_or_else(given_up);
            tracing::error!(?error, layers = self.layers.len(), "what is in use could not be made durable");
            let mut state = self.shelf.lock();
            for (name, _) in self.layers.drain(..) {
                state.unsettled.remove(&name);
                state.layers.insert(name.clone(), unusable());
                state.suspect.insert(name, error.clone());
            }
        }
        self.shelf.changed.notify_waiters();
    }
}

impl State {
    /// Whether this very image, and no other of the same name, is there.
    fn has(&self, image: &ImageRecord) -> bool {
        self.images.get(&image.key()).is_some_and(|now| now.pulled_at == image.pulled_at)
    }

    fn is_no_longer_unkept(&mut self, image: &ImageRecord) {
        let key = image.key();
        if self.unkept_of(image).is_some() {
            self.unkept.remove(&key);
        }
    }

    /// What is known of this very image, if it is not durable yet.
    fn unkept_of(&self, image: &ImageRecord) -> Option<&Unkept> {
        self.unkept.get(&image.key()).filter(|unkept| unkept.pulled_at == image.pulled_at)
    }

    /// Ends when an image that is there is durable; nothing where it is.
    pub(super) fn durable(&self, image: &ImageRecord) -> Option<Durable> {
        self.unkept_of(image).map(|unkept| unkept.durable.clone())
    }

    /// Whether no other has its name that may go again, or it can't be kept anyhow.
    fn may_be_written_down(&self, image: &ImageRecord) -> bool {
        let other = self.unkept.get(&image.key()).filter(|unkept| unkept.pulled_at != image.pulled_at);
        other.is_none() || self.suspicion(&image.layers).is_some()
    }

    fn are_settled(&self, layers: &[String]) -> bool {
        !layers.iter().any(|layer| self.unsettled.contains(layer))
    }

    fn are_known(&self, before: &Before) -> bool {
        before.chain().all(|before| self.are_settled(&before.record.layers))
    }

    /// Why one of the layers is not to be counted on.
    fn suspicion(&self, layers: &[String]) -> Option<ImageError> {
        let bad = |layer: &String| match self.suspect.get(layer) {
            Some(error) => Some(error.clone()),
            None if self.is_usable(layer) => None,
            None => Some(broken("keep an image", io::Error::other("one of its layers is gone"))),
        };
        layers.iter().find_map(bad)
    }
}

impl Shelf {
    /// Says that sandboxes can have the layers from now on.
    pub(crate) fn place(self: &Arc<Self>, layers: Vec<(String, KeptLayer)>) -> Unsettled {
        let mut state = self.lock();
        state.unsettled.extend(layers.iter().map(|(name, _)| name.clone()));
        state.layers.extend(layers.iter().cloned());
        Unsettled { shelf: Arc::clone(self), layers, failure: None }
    }

    /// Until it is known whether a layer that is there is durable.
    pub(crate) async fn layer_settled(&self, layer: &str) {
        self.wait_until(|state| !state.unsettled.contains(layer)).await;
    }

    /// What is wrong with a layer of that name whose tree may still be in use.
    pub(crate) fn suspicion(&self, layer: &str) -> Option<ImageError> {
        self.lock().suspect.get(layer).cloned()
    }

    /// Puts an image on the shelf, whose layers the caller holds. It is written down behind that, as soon as they are
    /// durable; until then what had its name before is kept as well.
    pub(crate) fn stand(
        self: &Arc<Self>,
        mut image: ImageRecord,
        observer: Arc<dyn Observer>,
    ) -> (Hold, Durable) {
        let key = image.key();
        let mut state = self.lock();
        let mut hold = || self.hold_locked(&mut state, &image.layers, Some(key.clone()));
        let (hold, until_then) = (hold(), hold());
        let before = state.images.get(&key).cloned().map(|record| {
            let earlier = state.unkept_of(&record).and_then(|unkept| unkept.before.upgrade());
            let hold = self.hold_locked(&mut state, &record.layers, None);
            Arc::new(Before { record, _hold: hold, earlier })
        });
        let known = before.as_ref().map(Arc::downgrade).unwrap_or_default();
        // Whoever pinned the name meant whatever it comes to mean.
        image.pinned |= before.as_ref().is_some_and(|before| before.record.pinned);
        state.insert(image.clone());
        let (tell, kept) = oneshot::channel();
        let given_up = |error| Err(broken("keep an image", io::Error::other(error)));
        let durable = kept.unwrap_or_else(given_up).boxed().shared();
        let unkept = Unkept { pulled_at: image.pulled_at, durable: durable.clone(), before: known };
        state.unkept.insert(key, unkept);
        drop(state);
        // A runtime that ends would drop what it is given at once, and a hold is never dropped under the lock.
        let keeping = Arc::clone(self).keep(image, before, until_then, observer);
        self.runtime.spawn(async move {
            // Nobody may wait for it.
            let _ = tell.send(keeping.await);
        });
        (hold, durable)
    }

    async fn keep(
        self: Arc<Self>,
        image: ImageRecord,
        before: Option<Arc<Before>>,
        until_then: Hold,
        observer: Arc<dyn Observer>,
    ) -> Result<(), ImageError> {
        self.wait_until(|state| state.are_settled(&image.layers)).await;
        // What has its name now may go again, and then this one comes back: until that is known, neither this one nor
        // what it has replaced is to be given up.
        let kept = loop {
            self.wait_until(|state| state.may_be_written_down(&image)).await;
            let (shelf, written) = (Arc::clone(&self), image.clone());
            match off_thread(move || shelf.write_down(&written)).await {
                Ok(false) => {}
                kept => break kept.map(drop),
            }
        };
        if kept.is_err() {
            // Nothing comes back before it is known whether it is durable.
            self.wait_until(|state| before.iter().all(|before| state.are_known(before))).await;
        }
        let shelf = Arc::clone(&self);
        let done = off_thread(move || {
            if let Err(error) = &kept {
                tracing::error!(
                    image = image.reference,
                    ?error,
                    "an image goes again: it could not be made durable"
                );
                if shelf.fall(&image, before.as_deref()) {
                    observer.image_removed(Eviction::NotKept);
                }
            }
            // From now on it goes like any other.
            drop((until_then, before));
            kept
        })
        .await;
        self.changed.notify_waiters();
        done
    }

    /// Writes the image's record, unless another has its name or nobody wants it any more. Says whether that is known.
    fn write_down(&self, image: &ImageRecord) -> Result<bool, ImageError> {
        let _writing = self.writing.lock().expect("no holder panics");
        let now = {
            let state = self.lock();
            if let Some(error) = state.suspicion(&image.layers) {
                return Err(error);
            }
            if !state.may_be_written_down(image) {
                return Ok(false);
            }
            // It may have been pinned meanwhile.
            if state.has(image) { state.images.get(&image.key()).cloned() } else { None }
        };
        if let Some(now) = now {
            self.disk.write_image(&now)?;
        }
        self.lock().is_no_longer_unkept(image);
        Ok(true)
    }

    /// Takes an image away again, and puts back what it has replaced. Says whether it was there.
    fn fall(self: &Arc<Self>, image: &ImageRecord, before: Option<&Before>) -> bool {
        let _writing = self.writing.lock().expect("no holder panics");
        let mut state = self.lock();
        state.is_no_longer_unkept(image);
        if !state.has(image) {
            return false;
        }
        let gone = state.remove(&image.key());
        let is_good = |before: &&Before| state.suspicion(&before.record.layers).is_none();
        let before = before.and_then(|before| before.chain().find(is_good));
        // Whoever has pinned the name since, or not any more, meant whatever it comes to mean.
        let pinned = gone.is_some_and(|gone| gone.pinned);
        let before = before.map(|before| ImageRecord { pinned, ..before.record.clone() });
        before.iter().for_each(|before| drop(state.insert(before.clone())));
        self.sweep(&mut state, &image.layers);
        drop(state);
        // The disk may still have what was replaced, or this one, if it was pinned.
        let noted = match before {
            Some(before) => self.disk.write_image(&before),
            None => self.disk.remove_image(&image.key()),
        };
        if let Err(error) = noted {
            tracing::warn!(image = image.reference, ?error, "its record stays until the next start");
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use run::PrincipalName;

    use super::*;
    use crate::shelf::tests::puller;
    use crate::view::ShownTo;

    #[tokio::test(flavor = "multi_thread")]
    async fn a_layer_that_is_shown_before_it_is_durable_is_so_afterwards_and_not_before() {
        let (dir, puller) = puller();
        let shelf = &puller.shelf;
        let pulling = shelf.hold(vec!["a".into(), "b".into()]);
        let [first, name] = ["first", "somebody"].map(|name| PrincipalName::parse(name).unwrap());
        let shown_to = ShownTo::one(Some(&first));
        let layer = |name: &str| {
            (name.to_owned(), KeptLayer { entries: 1, shown_to: shown_to.clone(), ..KeptLayer::default() })
        };
        let record = || std::fs::read_to_string(dir.path().join("layers/a.json")).unwrap();
        shelf.announce(&[layer("a"), layer("b")]).unwrap();
        let (kept, lost) = (shelf.place(vec![layer("a")]), shelf.place(vec![layer("b")]));
        shelf.show("a", ShownTo::one(Some(&name))).unwrap();
        assert!(!record().contains("entries"), "{}", record());
        kept.settle().unwrap();
        assert!(record().contains("somebody"), "{}", record());
        lost.fail(broken("sync", io::Error::other("of the test")));
        shelf.show("b", ShownTo::one(Some(&name))).unwrap();
        assert!(shelf.has("a") && !shelf.has("b"), "it is not to be counted on");
        drop(pulling);
        shelf.settled().await;
        assert!(shelf.suspicion("b").is_none(), "it is gone");
        assert_eq!(std::fs::read_dir(dir.path().join("layers")).unwrap().count(), 0);
    }
}
