//! What can be used before it is durable: layers that have their names, and images that are made of them. Both are
//! made durable behind that, and go again where that fails. docs/decisions/0018 says what is durable when.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;

use futures_util::future::Shared;
use futures_util::{FutureExt, TryFutureExt};

use super::state::State;
use super::{Hold, Shelf, Taken, unusable};
use crate::disk::{ImageRecord, KeptLayer, broken};
use crate::pull::off_thread;
use crate::store::BoxFuture;
use crate::{Eviction, ImageError, Observer};

/// Ends when something is durable, or can't be.
pub(crate) type Durable = Shared<BoxFuture<'static, Result<(), ImageError>>>;

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
        if self.unkept.get(&key).is_some_and(|(pulled_at, _)| *pulled_at == image.pulled_at) {
            self.unkept.remove(&key);
        }
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
            let hold = self.hold_locked(&mut state, &record.layers, None);
            Taken { record, hold }
        });
        // Whoever pinned the name meant whatever it comes to mean.
        image.pinned |= before.as_ref().is_some_and(|before| before.record.pinned);
        state.insert(image.clone());
        let pulled_at = image.pulled_at;
        let keeping = self.runtime.spawn(Arc::clone(self).keep(image, before, until_then, observer));
        let failed = |error| Err(broken("keep an image", io::Error::other(error)));
        let durable = keeping.unwrap_or_else(failed).boxed().shared();
        state.unkept.insert(key, (pulled_at, durable.clone()));
        (hold, durable)
    }

    /// Ends when an image that is there is durable; nothing where it is.
    pub(crate) fn unkept(&self, key: &str) -> Option<Durable> {
        self.lock().unkept.get(key).map(|(_, durable)| durable.clone())
    }

    async fn keep(
        self: Arc<Self>,
        image: ImageRecord,
        before: Option<Taken>,
        until_then: Hold,
        observer: Arc<dyn Observer>,
    ) -> Result<(), ImageError> {
        let layers: HashSet<&String> = image.layers.iter().collect();
        self.wait_until(|state| !layers.iter().any(|layer| state.unsettled.contains(*layer))).await;
        let shelf = Arc::clone(&self);
        let kept = off_thread(move || {
            let kept = shelf.write_down(&image);
            // From now on it goes like any other.
            drop(until_then);
            if let Err(error) = &kept {
                tracing::error!(
                    image = image.reference,
                    ?error,
                    "an image goes again: it could not be made durable"
                );
                if shelf.fall(&image, before.as_ref()) {
                    observer.image_removed(Eviction::NotKept);
                }
            } else {
                shelf.collect(0, |why| observer.image_removed(why));
            }
            kept
        })
        .await;
        self.changed.notify_waiters();
        kept
    }

    /// Writes the image's record, unless another has its name or nobody wants it any more.
    fn write_down(&self, image: &ImageRecord) -> Result<(), ImageError> {
        let _writing = self.writing.lock().expect("no holder panics");
        let now = {
            let state = self.lock();
            if let Some(error) = state.suspicion(&image.layers) {
                return Err(error);
            }
            // It may have been pinned meanwhile.
            if state.has(image) { state.images.get(&image.key()).cloned() } else { None }
        };
        if let Some(now) = now {
            self.disk.write_image(&now)?;
        }
        self.lock().is_no_longer_unkept(image);
        Ok(())
    }

    /// Takes an image away again, and puts back what it has replaced. Says whether it was there.
    fn fall(self: &Arc<Self>, image: &ImageRecord, before: Option<&Taken>) -> bool {
        let _writing = self.writing.lock().expect("no holder panics");
        let mut state = self.lock();
        state.is_no_longer_unkept(image);
        if !state.has(image) {
            return false;
        }
        state.remove(&image.key());
        let before = before.map(|before| &before.record);
        let before = before.filter(|before| state.suspicion(&before.layers).is_none());
        before.cloned().map(|before| state.insert(before));
        self.sweep(&mut state, &image.layers);
        drop(state);
        // The disk may still have what was replaced, or this one, if it was pinned.
        let noted = match before {
            Some(before) => self.disk.write_image(before),
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
