//! Pulling one image, start to finish: name → manifest → config → layers → record.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex};

use jiff::Timestamp;
use tokio::sync::Semaphore;

use crate::board::Board;
use crate::commit::{MOST_WAITING, Waiting};
use crate::digest;
use crate::disk::{ImageRecord, broken};
use crate::download::Download;
use crate::fixup;
use crate::flight::Flights;
use crate::lanes::Lanes;
use crate::layers::{Had, Layers, Source, Wanted};
use crate::manifest::{self, BadConfig, Blob, Described};
use crate::reference::Reference;
use crate::registry::Registries;
use crate::shelf::{Durable, Hold, Shelf, Taken};
use crate::view::View;
use crate::{Config, ImageError, Observer, Progress};

pub(crate) struct Puller {
    pub(crate) config: Config,
    pub(crate) shelf: Arc<Shelf>,
    /// As everybody sees them.
    pub(crate) registries: Arc<Registries>,
    pub(crate) observer: Arc<dyn Observer>,
    pub(crate) layers: Flights<Result<Had, ImageError>>,
    pub(crate) lanes: Lanes,
    pub(crate) waiting: Waiting,
    pub(crate) may_wait: Arc<Semaphore>,
    /// Held while layers are given their names.
    pub(crate) committing: tokio::sync::Mutex<()>,
}

/// What all who waited for a pull get: an image that can be used.
#[derive(Clone)]
pub(crate) struct Pulled {
    pub(crate) record: Arc<ImageRecord>,
    pub(crate) hold: Arc<Hold>,
    /// Ends when it is durable; nothing where it is.
    pub(crate) durable: Option<Durable>,
}

impl Pulled {
    pub(crate) async fn is_durable(&self) -> Result<(), ImageError> {
        let Some(durable) = self.durable.clone() else { return Ok(()) };
        // It may have failed under another's hands, whose image is nobody else's concern.
        durable.await.map_err(|error| error.in_words(&self.record.reference))
    }
}

/// What is known of an image before its layers are here, the lowest first.
pub(crate) struct Found {
    pub(crate) digest: String,
    pub(crate) manifest_digest: String,
    pub(crate) described: Described,
    pub(crate) layers: Vec<Source>,
    pub(crate) compressed_bytes: u64,
    pub(crate) resolved_at: Option<Timestamp>,
}

/// One pull: the image and whom to tell about it.
#[derive(Clone)]
pub(crate) struct Pull {
    pub(crate) puller: Arc<Puller>,
    pub(crate) image: Reference,
    pub(crate) view: View,
    pub(crate) board: Arc<Board>,
    /// A layer of it that could not be kept once and was still in use.
    pub(crate) held_up: Arc<Mutex<Option<String>>>,
}

impl Puller {
    pub(crate) fn new(config: Config, shelf: Arc<Shelf>, observer: Arc<dyn Observer>) -> Self {
        let registries = Arc::new(Registries::new(&config, Arc::clone(&observer)));
        // Who gives up a pull has waited long enough already.
        let layers = Flights::new(std::time::Duration::ZERO);
        let lanes = Lanes::new(config.parallel_downloads.max(1));
        let may_wait = Arc::new(Semaphore::new(MOST_WAITING));
        let (waiting, committing) = (Waiting::default(), tokio::sync::Mutex::default());
        Self { config, shelf, registries, observer, layers, lanes, waiting, may_wait, committing }
    }

    /// Whether a registry may be asked at all: known before anything is sent.
    pub(crate) fn check(&self, image: &Reference) -> Result<(), ImageError> {
        self.registries.rules.endpoint(&image.registry).map(drop)
    }

    pub(crate) fn stop(&self) {
        self.layers.stop();
    }

    /// Until no layer is being given its name.
    pub(crate) async fn settled(&self) {
        drop(self.committing.lock().await);
    }

    pub(crate) async fn pull(
        self: Arc<Self>,
        image: Reference,
        view: View,
        board: Arc<Board>,
    ) -> Result<Pulled, ImageError> {
        let limit = self.config.pull_timeout;
        let pull = Pull { puller: self, image, view, board, held_up: Arc::default() };
        match tokio::time::timeout(limit, pull.run_with_room()).await {
            Ok(result) => result,
            Err(_) => Err(ImageError::Timeout { reference: pull.image.to_string(), limit }),
        }
    }

    /// Whether the registry still lets an account have what it was given once.
    pub(crate) async fn asks_for(
        self: &Arc<Self>,
        image: Reference,
        view: View,
        digest: &str,
    ) -> Result<bool, ImageError> {
        let (puller, board) = (Arc::clone(self), Arc::default());
        let pull = Pull { puller, image, view, board, held_up: Arc::default() };
        let asked = pull.head(digest).await.map(drop);
        let asked = match asked {
            // Not every registry knows HEAD.
            Err(ImageError::Registry { .. }) => pull.document(digest).await.map(drop),
            asked => asked,
        };
        match asked {
            Ok(()) => Ok(true),
            Err(ImageError::NotFound { .. } | ImageError::Unauthorized { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Puts an image on the shelf, where it is kept behind that; and then makes room where the shelf has become too
    /// full by it.
    pub(crate) async fn keep(&self, record: ImageRecord) -> Result<Pulled, ImageError> {
        let (hold, durable) = self.shelf.stand(record.clone(), Arc::clone(&self.observer));
        let pulled = Pulled { record: Arc::new(record), hold: Arc::new(hold), durable: Some(durable) };
        // Now, while somebody holds it: what has just come is not what has to go.
        let (shelf, observer) = (Arc::clone(&self.shelf), Arc::clone(&self.observer));
        off_thread(move || Ok(shelf.collect(0, |why| observer.image_removed(why)))).await?;
        Ok(pulled)
    }
}

impl Pull {
    /// Where the disk is full all the same, everything that nobody needs goes, and there is one more try.
    async fn run_with_room(&self) -> Result<Pulled, ImageError> {
        match self.run().await.map_err(|error| error.in_words(&self.name())) {
            // There was no room once, and more room is of no use now.
            Err(error) if self.is_held_up() => Err(error),
            Err(error @ (ImageError::NoSpace { .. } | ImageError::NoInodes { .. })) => {
                let (shelf, observer) = (Arc::clone(&self.puller.shelf), Arc::clone(&self.puller.observer));
                let gone = off_thread(move || Ok(shelf.collect_all(|why| observer.image_removed(why))));
                if gone.await? == 0 {
                    return Err(error);
                }
                self.puller.shelf.emptied().await;
                self.run().await
            }
            result => result,
        }
    }

    /// Whether others still use a layer that could not be kept.
    fn is_held_up(&self) -> bool {
        let layer = self.held_up.lock().expect("no holder panics").take();
        layer.is_some_and(|layer| self.puller.shelf.suspicion(&layer).is_some())
    }

    /// Collects what has to go before the missing layers come, as far as their sizes can be foretold.
    async fn make_room(&self, wanted: &[Wanted]) -> Result<(), ImageError> {
        let shelf = Arc::clone(&self.puller.shelf);
        let incoming: u64 = wanted.iter().filter(|layer| !shelf.has(&layer.name)).map(Wanted::expected).sum();
        // No more can come, whatever the layers' sizes are said to be; others' images need not go for it.
        let incoming = incoming.min(self.puller.config.limits.image_bytes);
        let observer = Arc::clone(&self.puller.observer);
        off_thread(move || Ok(shelf.collect(incoming, |why| observer.image_removed(why)))).await.map(drop)
    }

    async fn run(&self) -> Result<Pulled, ImageError> {
        let shelf = &self.puller.shelf;
        self.board.say(Progress::Resolving { reference: self.name() });
        let known = shelf.image(&self.key());
        let resolved = match &known {
            Some(_) => self.resolve().await?,
            None => None,
        };
        // Held before it is looked at again, so that it can't go meanwhile.
        if known.is_some_and(|known| resolved.as_ref() == Some(&known.digest))
            && let Some(Taken { record, hold, durable }) = shelf.take(&self.key())
            // Another may have come under that name while the registry was asked, from a file.
            && resolved.as_ref() == Some(&record.digest)
        {
            shelf.confirm(&record.key());
            return Ok(Pulled { record: Arc::new(record), hold: Arc::new(hold), durable });
        }
        let (top, manifest_digest, manifest) = self.manifest(resolved).await?;
        let (config_blob, blobs) = manifest::blobs(&manifest).map_err(|reason| self.bad(reason))?;
        if let Some((what, limit)) = manifest::over_limit(&config_blob, &blobs, &self.puller.config.limits) {
            return Err(self.too_large(what, limit));
        }
        let described = self.config(&config_blob).await?;
        let compressed_bytes = blobs.iter().map(|layer| layer.size).sum();
        let layers = blobs.into_iter().map(Source::Registry).collect();
        let resolved_at = Some(Timestamp::now());
        self.assemble(Found {
            digest: top,
            manifest_digest,
            described,
            layers,
            compressed_bytes,
            resolved_at,
        })
        .await
    }

    /// From what makes an image to the image: its layers are fetched, stacked and written down.
    pub(crate) async fn assemble(&self, found: Found) -> Result<Pulled, ImageError> {
        let shelf = &self.puller.shelf;
        let Found { digest, manifest_digest, described, layers, compressed_bytes, resolved_at } = found;
        self.board.say(Progress::Resolved {
            digest: digest.clone(),
            layers: layers.len(),
            bytes: compressed_bytes,
        });
        let wanted = self.wanted(layers, &described.diff_ids)?;
        let _hold = shelf.hold(wanted.iter().map(|layer| layer.name.clone()).collect());
        self.make_room(&wanted).await?;
        let mut had = self.fetch_all(&wanted).await?;
        let bytes = had.values().map(|had| had.layer.bytes).sum();
        let (names, _fixup) = self.stack(&wanted, &mut had).await?;
        self.commit(had.into_values().filter_map(|had| had.fresh).collect()).await?;
        let now = Timestamp::now();
        let record = ImageRecord {
            reference: self.name(),
            owner: self.view.owner.clone(),
            digest,
            manifest_digest,
            platform: self.puller.config.platform.to_string(),
            config: described.config,
            layers: names.into(),
            compressed_bytes,
            bytes,
            pulled_at: now,
            last_used_at: now,
            resolved_at,
            pinned: false,
            asked_at: None,
            saved_at: Some(now),
        };
        let pulled = self.puller.keep(record).await?;
        self.board.say(Progress::Committing);
        Ok(pulled)
    }

    pub(crate) fn described(&self, bytes: &[u8]) -> Result<Described, ImageError> {
        manifest::read_config(bytes, &self.puller.config.platform).map_err(|error| match error {
            BadConfig::Broken(reason) => self.bad(reason),
            BadConfig::Platform(available) => self.platform(available),
        })
    }

    async fn config(&self, blob: &Blob) -> Result<Described, ImageError> {
        let mut download = Download::new(&self.view.registries, &self.image, blob);
        let mut bytes = Vec::new();
        while let Some(chunk) = download.next().await? {
            bytes.extend_from_slice(&chunk);
        }
        self.described(&bytes)
    }

    /// Gives every layer its name. One that comes twice needs two trees, and so two names: an
    /// overlay takes no directory twice.
    fn wanted(&self, layers: Vec<Source>, diff_ids: &[String]) -> Result<Vec<Wanted>, ImageError> {
        if layers.len() != diff_ids.len() {
            let reason =
                format!("it has {} layers, but its config speaks of {}", layers.len(), diff_ids.len());
            return Err(self.bad(reason));
        }
        let mut seen: HashMap<&str, usize> = HashMap::new();
        let wanted = layers.into_iter().zip(diff_ids).enumerate().map(|(at, (source, diff_id))| {
            let copy = seen.entry(diff_id).and_modify(|copy| *copy += 1).or_default();
            let hex = digest::hex_of(diff_id).expect("the config was checked");
            let name = if *copy == 0 { hex.to_owned() } else { format!("{hex}-{copy}") };
            Wanted { at, name, diff_id: diff_id.clone(), source, niceness: 0 }
        });
        Ok(wanted.collect())
    }

    /// The names of what a rootfs is made of, the topmost first, with a fix-up on top if it needs one.
    async fn stack(
        &self,
        wanted: &[Wanted],
        had: &mut Layers,
    ) -> Result<(Vec<String>, Option<Hold>), ImageError> {
        let mut names = Vec::new();
        let mut layers = Vec::new();
        for Wanted { name, .. } in wanted.iter().rev() {
            let Some(layer) = had.get(name).map(|had| &had.layer).filter(|layer| layer.entries > 0) else {
                continue;
            };
            names.push(name.clone());
            layers.push(layer.clone());
            if layer.root_opaque {
                break;
            }
        }
        let Some(archive) = fixup::archive(&layers) else { return Ok((names, None)) };
        let diff_id = digest::sha256(&archive);
        let name = digest::hex_of(&diff_id).expect("it is a digest").to_owned();
        let hold = self.puller.shelf.hold(vec![name.clone()]);
        let at = wanted.len();
        let wanted =
            Wanted { at, name: name.clone(), diff_id, source: Source::Bytes(archive.into()), niceness: 0 };
        had.insert(name.clone(), self.fetch(wanted).await?);
        names.insert(0, name);
        Ok((names, Some(hold)))
    }

    pub(crate) fn name(&self) -> String {
        self.image.to_string()
    }

    fn key(&self) -> String {
        self.view.key(&self.name())
    }

    pub(crate) fn bad(&self, reason: String) -> ImageError {
        ImageError::BadImage { reference: self.name(), reason }
    }

    pub(crate) fn too_large(&self, what: &str, limit: u64) -> ImageError {
        ImageError::TooLarge { reference: self.name(), what: what.into(), limit }
    }

    pub(crate) fn platform(&self, available: String) -> ImageError {
        ImageError::Platform {
            reference: self.name(),
            wanted: self.puller.config.platform.to_string(),
            available,
        }
    }
}

/// Syncing a file may take its time, and no thread of the runtime has that.
pub(crate) async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(broken("write a record", io::Error::other(error))))
}
