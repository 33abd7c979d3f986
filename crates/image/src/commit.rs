//! Keeping what was unpacked. The layers that one image lacked get their names together, and from then on runs can
//! have them; behind that they are made durable, with one sync for all of them, and only then written down. Until it
//! has its name a layer belongs to those who pull it, and whoever is done first keeps it for the others too.
//! docs/decisions/0018 says what is durable when.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Instant;

use futures_util::future::join_all;
use run::PrincipalName;
use tokio::sync::OwnedSemaphorePermit;

use crate::disk::{KeptLayer, broken};
use crate::layers::Had;
use crate::pull::{Pull, off_thread};
use crate::shelf::{Hold, Unsettled};
use crate::view::ShownTo;
use crate::{Commit, ImageError};

/// How many layers may wait at once to be kept, each with a process that waits with it. Beyond that, layers
/// are kept one by one.
pub(crate) const MOST_WAITING: usize = 256;

/// A layer that is unpacked, and that nothing but this keeps from being thrown away.
pub(crate) struct Fresh {
    name: String,
    pub(crate) kept: KeptLayer,
    stage: Mutex<Stage>,
    /// Who has shown that it could have it, by now.
    shown_to: Mutex<ShownTo>,
    /// It must not go while somebody counts on it.
    _hold: Hold,
    _permit: Option<OwnedSemaphorePermit>,
    /// When its unpacker was there and had nothing to write yet.
    begun: Instant,
}

enum Stage {
    Waiting(Box<dyn Commit>),
    Kept,
    Failed(ImageError),
}

/// Layers that somebody has unpacked and that others can use, once they are kept.
#[derive(Default)]
pub(crate) struct Waiting(Mutex<HashMap<String, Weak<Fresh>>>);

impl Waiting {
    pub(crate) fn get(&self, layer: &str) -> Option<Arc<Fresh>> {
        let fresh = self.0.lock().expect("no holder panics").get(layer)?.upgrade()?;
        // What could not be kept once is brought again, by whoever still wants it.
        fresh.failure().is_none().then_some(fresh)
    }

    fn insert(&self, fresh: &Arc<Fresh>) {
        let mut waiting = self.0.lock().expect("no holder panics");
        waiting.retain(|_, fresh| fresh.strong_count() > 0);
        waiting.insert(fresh.name.clone(), Arc::downgrade(fresh));
    }
}

impl Fresh {
    fn stage(&self) -> MutexGuard<'_, Stage> {
        self.stage.lock().expect("no holder panics")
    }

    fn shown_to(&self) -> MutexGuard<'_, ShownTo> {
        self.shown_to.lock().expect("no holder panics")
    }

    pub(crate) fn is_shown_to(&self, owner: Option<&PrincipalName>) -> bool {
        self.shown_to().includes(owner)
    }

    /// What an earlier try has come to, if it has come to nothing.
    fn failure(&self) -> Option<ImageError> {
        match &*self.stage() {
            Stage::Failed(error) => Some(error.clone()),
            Stage::Waiting(_) | Stage::Kept => None,
        }
    }

    /// The right to keep it, if nobody has had that yet. Whoever takes it says how it went, before anybody
    /// else may ask.
    fn take(&self) -> Option<Box<dyn Commit>> {
        match std::mem::replace(&mut *self.stage(), Stage::Kept) {
            Stage::Waiting(commit) => Some(commit),
            Stage::Kept | Stage::Failed(_) => None,
        }
    }
}

impl Pull {
    /// Lets a layer wait for the others of its image, unless too many wait already.
    pub(crate) async fn set_aside(
        &self,
        name: &str,
        kept: KeptLayer,
        commit: Box<dyn Commit>,
        begun: Instant,
    ) -> Result<Arc<Fresh>, ImageError> {
        let puller = &self.puller;
        let permit = Arc::clone(&puller.may_wait).try_acquire_owned().ok();
        let is_one_too_many = permit.is_none();
        let fresh = Arc::new(Fresh {
            name: name.to_owned(),
            shown_to: Mutex::new(kept.shown_to.clone()),
            kept,
            stage: Mutex::new(Stage::Waiting(commit)),
            _hold: puller.shelf.hold(vec![name.to_owned()]),
            _permit: permit,
            begun,
        });
        puller.waiting.insert(&fresh);
        if is_one_too_many {
            self.commit(vec![Arc::clone(&fresh)]).await?;
            // Its process waits until then, and there are enough of those.
            puller.shelf.layer_settled(name).await;
        }
        Ok(fresh)
    }

    /// Shows a layer that is there to whom this pull is for, who has had its bytes. Not while it is being kept: its
    /// record says who has it. There is nothing to show where others have given the layer up meanwhile.
    pub(crate) async fn show_proved(&self, name: &str) -> Result<Option<Had>, ImageError> {
        if self.find(name).await.is_none() {
            return Ok(None);
        }
        let _turn = self.puller.committing.lock().await;
        let shown_to = ShownTo::one(self.view.owner.as_ref());
        match self.find(name).await {
            Some(Had { fresh: Some(fresh), .. }) => {
                fresh.shown_to().add(shown_to);
                Ok(Some(Had::fresh(fresh)))
            }
            Some(Had { fresh: None, .. }) => {
                self.show(vec![(name.to_owned(), shown_to)]).await?;
                Ok(self.find(name).await)
            }
            None => Ok(None),
        }
    }

    async fn show(&self, layers: Vec<(String, ShownTo)>) -> Result<(), ImageError> {
        let shelf = Arc::clone(&self.puller.shelf);
        off_thread(move || layers.into_iter().try_for_each(|(name, to)| shelf.show(&name, to))).await
    }

    /// Keeps those of the layers that nobody has kept yet, and returns when they can be used. Whoever no longer waits
    /// for that does not stop it: others may count on the same layers.
    pub(crate) async fn commit(&self, fresh: Vec<Arc<Fresh>>) -> Result<(), ImageError> {
        if fresh.is_empty() {
            return Ok(());
        }
        let pull = self.clone();
        let done = tokio::spawn(async move {
            let named = pull.name_in_turn(&fresh).await?;
            if let Some(named) = named {
                tokio::spawn(async move { pull.settle(named, fresh).await });
            }
            Ok(())
        });
        let done = done.await.unwrap_or_else(|error| Err(broken("keep layers", io::Error::other(error))));
        // It may have failed under another's hands, whose image is nobody else's concern.
        done.map_err(|error| error.in_words(&self.name()))
    }

    async fn name_in_turn(&self, fresh: &[Arc<Fresh>]) -> Result<Option<Named>, ImageError> {
        let _turn = self.puller.committing.lock().await;
        let shelf = &self.puller.shelf;
        if let Some((layer, error)) =
            fresh.iter().find_map(|layer| Some((layer, shelf.suspicion(&layer.name)?)))
        {
            *self.held_up.lock().expect("no holder panics") = Some(layer.name.clone());
            return Err(error);
        }
        if let Some(error) = fresh.iter().find_map(|layer| layer.failure()) {
            return Err(error);
        }
        let (mut layers, mut commits, mut twice) = (Vec::new(), Vec::new(), Vec::new());
        for layer in fresh {
            let Some(commit) = layer.take() else { continue };
            let (name, shown_to) = (layer.name.clone(), layer.shown_to().clone());
            if shelf.has(&name) {
                // It was unpacked twice. This tree is not needed, but whoever has had its bytes has had them.
                twice.push((name, shown_to));
            } else {
                layers.push((name, KeptLayer { shown_to, ..layer.kept.clone() }));
                commits.push((layer.begun, commit));
            }
        }
        commits.sort_by_key(|(begun, _)| std::cmp::Reverse(*begun));
        let commits = commits.into_iter().map(|(_, commit)| commit).collect();
        let ours: Vec<String> = layers.iter().map(|(name, _)| name.clone()).collect();
        let result = match self.show(twice).await {
            Ok(()) => self.name_layers(layers, commits).await,
            Err(error) => Err(error),
        };
        if let Err(error) = &result {
            say_that_they_failed(fresh, &ours, error);
        }
        result
    }

    /// With the commit of the layer last that was begun first.
    async fn name_layers(
        &self,
        layers: Vec<(String, KeptLayer)>,
        mut commits: Vec<Box<dyn Commit>>,
    ) -> Result<Option<Named>, ImageError> {
        if commits.is_empty() {
            return Ok(None);
        }
        let shelf = Arc::clone(&self.puller.shelf);
        let layers = off_thread(move || shelf.announce(&layers).map(|()| layers)).await?;
        // All of them end before anything else is done: a name that comes late would be nobody's.
        let named = join_all(commits.iter_mut().map(|layer| layer.name())).await;
        named.into_iter().collect::<io::Result<()>>().map_err(|error| self.store("name a layer", error))?;
        let names = layers.iter().map(|(name, _)| name.clone()).collect();
        let first = commits.pop().expect("there is one");
        Ok(Some(Named { names, unsettled: self.puller.shelf.place(layers), first }))
    }

    /// The order is the argument: no record of a layer before its tree and its name are durable.
    async fn settle(&self, named: Named, fresh: Vec<Arc<Fresh>>) {
        let Named { names, unsettled, mut first } = named;
        let shelf = Arc::clone(&self.puller.shelf);
        let synced = match first.sync().await {
            Ok(()) => off_thread(move || shelf.disk.sync()).await,
            Err(error) => Err(broken("keep a layer", error)),
        };
        let settled = match synced {
            Ok(()) => off_thread(move || unsettled.settle()).await,
            Err(error) => {
                unsettled.fail(error.clone());
                Err(error)
            }
        };
        if let Err(error) = settled {
            say_that_they_failed(&fresh, &names, &error);
        }
    }
}

/// Layers that can be used.
struct Named {
    names: Vec<String>,
    unsettled: Unsettled,
    /// Of the layer that was begun first.
    first: Box<dyn Commit>,
}

fn say_that_they_failed(fresh: &[Arc<Fresh>], names: &[String], error: &ImageError) {
    let failed = fresh.iter().filter(|layer| names.contains(&layer.name));
    failed.for_each(|layer| *layer.stage() = Stage::Failed(error.clone()));
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::future::ready;

    use super::*;
    use crate::pull::Puller;
    use crate::reference::Reference;
    use crate::store::BoxFuture;
    use crate::view::View;

    struct Tree;

    impl Commit for Tree {
        fn name(&mut self) -> BoxFuture<'_, io::Result<()>> {
            Box::pin(ready(Ok(())))
        }

        fn sync(&mut self) -> BoxFuture<'_, io::Result<()>> {
            Box::pin(ready(Ok(())))
        }
    }

    /// One on a disk that takes its time.
    struct Slow(tokio::sync::watch::Receiver<bool>);

    impl Commit for Slow {
        fn name(&mut self) -> BoxFuture<'_, io::Result<()>> {
            Box::pin(ready(Ok(())))
        }

        fn sync(&mut self) -> BoxFuture<'_, io::Result<()>> {
            Box::pin(async {
                let _ = self.0.wait_for(|is_done| *is_done).await;
                Ok(())
            })
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_layer_that_is_one_too_many_has_no_process_that_waits_behind_its_pull() {
        let (_dir, puller) = crate::shelf::tests::puller();
        let pull = pull(&puller);
        let _others = Arc::clone(&puller.may_wait).acquire_many_owned(MOST_WAITING as u32).await.unwrap();
        let (disk, synced) = tokio::sync::watch::channel(false);
        let kept = KeptLayer { entries: 1, ..KeptLayer::default() };
        let mut aside = Box::pin(pull.set_aside("a", kept, Box::new(Slow(synced)), Instant::now()));
        let waited = tokio::time::timeout(std::time::Duration::from_millis(200), &mut aside).await;
        assert!(waited.is_err(), "as many more come as there are images");
        disk.send_replace(true);
        aside.await.unwrap();
    }

    fn pull(puller: &Arc<Puller>) -> Pull {
        Pull {
            puller: Arc::clone(puller),
            image: Reference::parse("h.io/x").unwrap(),
            view: View { owner: None, registries: Arc::clone(&puller.registries) },
            board: Arc::default(),
            held_up: Arc::default(),
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_layer_that_was_given_up_because_another_could_not_be_shown_counts_as_kept_for_nobody() {
        let (dir, puller) = crate::shelf::tests::puller();
        let pull = pull(&puller);
        let unpacked = async |name: &str| {
            let kept = KeptLayer { entries: 1, ..KeptLayer::default() };
            pull.set_aside(name, kept, Box::new(Tree), Instant::now()).await.unwrap()
        };
        let (first, again, other) = (unpacked("a").await, unpacked("a").await, unpacked("b").await);
        pull.commit(vec![first]).await.unwrap();
        puller.shelf.settled().await;
        // The disk takes no record more.
        fs::create_dir(dir.path().join("layers/a.json.new")).unwrap();
        pull.commit(vec![again, Arc::clone(&other)]).await.unwrap_err();
        // Another pull counts on the same layer.
        let kept = pull.commit(vec![other]).await;
        assert!(kept.is_err() || puller.shelf.has("b"), "it is said to be kept, and is not");
    }
}
