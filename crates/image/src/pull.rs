//! Pulling one image, start to finish: name → manifest → config → layers → record.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;

use jiff::Timestamp;
use reqwest::Method;
use reqwest::header::CONTENT_TYPE;
use tokio::sync::Semaphore;

use crate::board::Board;
use crate::digest;
use crate::disk::{ImageRecord, KeptLayer, broken};
use crate::download::Download;
use crate::fixup;
use crate::flight::Flights;
use crate::layers::{Source, Wanted};
use crate::manifest::{self, BadConfig, Blob, Described, Document};
use crate::reference::Reference;
use crate::registry::{Ask, Registries};
use crate::retry::Failure;
use crate::shelf::{Hold, Shelf, Taken};
use crate::view::View;
use crate::{Config, ImageError, Observer, Progress};

/// An index may lead to an index, and that one to an image.
const MOST_INDEXES: usize = 2;
const HEADER_DIGEST: &str = "docker-content-digest";

pub(crate) struct Puller {
    pub(crate) config: Config,
    pub(crate) shelf: Arc<Shelf>,
    /// As everybody sees them.
    pub(crate) registries: Arc<Registries>,
    pub(crate) observer: Arc<dyn Observer>,
    pub(crate) layers: Flights<Result<(), ImageError>>,
    pub(crate) downloads: Semaphore,
}

/// What all who waited for a pull get.
pub(crate) type Pulled = Arc<(ImageRecord, Arc<Hold>)>;

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
}

impl Puller {
    pub(crate) fn new(config: Config, shelf: Arc<Shelf>, observer: Arc<dyn Observer>) -> Self {
        let registries = Arc::new(Registries::new(&config, Arc::clone(&observer)));
        // Who gives up a pull has waited long enough already.
        let layers = Flights::new(std::time::Duration::ZERO);
        let downloads = Semaphore::new(config.parallel_downloads.max(1));
        Self { config, shelf, registries, observer, layers, downloads }
    }

    /// Whether a registry may be asked at all: known before anything is sent.
    pub(crate) fn check(&self, image: &Reference) -> Result<(), ImageError> {
        self.registries.rules.endpoint(&image.registry).map(drop)
    }

    pub(crate) fn stop(&self) {
        self.layers.stop();
    }

    pub(crate) async fn pull(
        self: Arc<Self>,
        image: Reference,
        view: View,
        board: Arc<Board>,
    ) -> Result<Pulled, ImageError> {
        let limit = self.config.pull_timeout;
        let pull = Pull { puller: self, image, view, board };
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
        let pull = Pull { puller: Arc::clone(self), image, view, board: Arc::default() };
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

    /// Puts an image on the shelf, and makes room where the shelf has become too full by it.
    pub(crate) async fn keep(&self, record: &ImageRecord) -> Result<Hold, ImageError> {
        let hold = self.shelf.hold_image(record);
        let (shelf, record, observer) = (Arc::clone(&self.shelf), record.clone(), Arc::clone(&self.observer));
        off_thread(move || {
            shelf.put(record)?;
            shelf.collect(0, |why| observer.image_removed(why));
            Ok(())
        })
        .await?;
        Ok(hold)
    }
}

impl Pull {
    /// Where the disk is full all the same, everything that nobody needs goes, and there is one more try.
    async fn run_with_room(&self) -> Result<Pulled, ImageError> {
        match self.run().await {
            Err(error @ ImageError::NoSpace { .. }) => {
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

    /// Collects what has to go before the missing layers come, as far as their sizes can be foretold.
    async fn make_room(&self, wanted: &[Wanted]) -> Result<(), ImageError> {
        let shelf = Arc::clone(&self.puller.shelf);
        let incoming: u64 = wanted.iter().filter(|layer| !shelf.has(&layer.name)).map(Wanted::expected).sum();
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
            && let Some(Taken { record, hold }) = shelf.take(&self.key())
        {
            shelf.confirm(&record.key());
            return Ok(self.ready(record, hold));
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
        let kept = self.fetch_all(&wanted).await?;
        self.board.say(Progress::Committing);
        let (names, _fixup) = self.stack(&wanted, &kept).await?;
        let now = Timestamp::now();
        let record = ImageRecord {
            reference: self.name(),
            owner: self.view.owner.clone(),
            digest,
            manifest_digest,
            platform: self.puller.config.platform.to_string(),
            config: described.config,
            layers: names,
            compressed_bytes,
            bytes: kept.values().map(|layer| layer.bytes).sum(),
            pulled_at: now,
            last_used_at: now,
            resolved_at,
            pinned: false,
            asked_at: None,
            saved_at: Some(now),
        };
        let hold = self.puller.keep(&record).await?;
        Ok(self.ready(record, hold))
    }

    fn ready(&self, record: ImageRecord, hold: Hold) -> Pulled {
        self.board.say(Progress::Ready { digest: record.digest.clone() });
        Arc::new((record, Arc::new(hold)))
    }

    /// What the name leads to now, if the registry says so without sending it.
    async fn resolve(&self) -> Result<Option<String>, ImageError> {
        if let Some(digest) = &self.image.digest {
            return Ok(Some(digest.clone()));
        }
        match self.head(self.image.wanted()).await {
            Ok(response) => Ok(header(&response, HEADER_DIGEST).filter(|digest| digest::is_digest(digest))),
            // Not every registry knows HEAD; what is wrong besides that, GET will tell.
            Err(ImageError::Registry { .. } | ImageError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn head(&self, wanted: &str) -> Result<reqwest::Response, ImageError> {
        let ask = self.ask(Method::HEAD, wanted);
        let registries = &self.view.registries;
        registries.retrying(&self.image.registry, || registries.send(&ask)).await
    }

    /// The manifest for this machine, its digest, and the digest of what led there.
    async fn manifest(
        &self,
        resolved: Option<String>,
    ) -> Result<(String, String, Box<oci_client::manifest::OciImageManifest>), ImageError> {
        let mut wanted = resolved.unwrap_or_else(|| self.image.wanted().to_owned());
        let mut top = None;
        for _ in 0..=MOST_INDEXES {
            let (digest, document) = self.document(&wanted).await?;
            let top = top.get_or_insert_with(|| digest.clone());
            match document {
                Document::Image(manifest) => return Ok((top.clone(), digest, manifest)),
                Document::Index(index) => {
                    let chosen = manifest::choose(&index, &self.puller.config.platform);
                    let entry = chosen.map_err(|available| self.platform(available))?;
                    if !digest::is_digest(&entry.digest) {
                        return Err(self.bad("its index names a manifest that can't be".into()));
                    }
                    wanted.clone_from(&entry.digest);
                }
            }
        }
        Err(self.bad("its indexes lead to indexes without end".into()))
    }

    async fn document(&self, wanted: &str) -> Result<(String, Document), ImageError> {
        let registries = &self.view.registries;
        let ask = self.ask(Method::GET, wanted);
        let (said, kind, body) =
            registries.retrying(&self.image.registry, || self.get_document(&ask)).await?;
        let expected = if digest::is_digest(wanted) { Some(wanted.to_owned()) } else { said };
        let digest = match expected {
            None => digest::sha256(&body),
            Some(digest) if digest::matches(&digest, &body) || !walls::stands("manifest_digest") => digest,
            Some(digest) => {
                return Err(
                    self.bad(format!("its manifest has other bytes than its digest {digest:.100} says"))
                );
            }
        };
        let document = manifest::read(&body, kind.as_deref()).map_err(|reason| self.bad(reason))?;
        Ok((digest, document))
    }

    /// What the registry calls it, of which kind it says it is, and its bytes.
    async fn get_document(
        &self,
        ask: &Ask<'_>,
    ) -> Result<(Option<String>, Option<String>, Vec<u8>), Failure> {
        let limit = self.puller.config.limits.manifest_bytes;
        let response = self.view.registries.send(ask).await?;
        let (said, kind) = (header(&response, HEADER_DIGEST), header(&response, CONTENT_TYPE.as_str()));
        let body = self.view.registries.read(&self.image, response, limit, "bytes in its manifest").await?;
        Ok((said, kind, body))
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
            Wanted { at, name, diff_id: diff_id.clone(), source }
        });
        Ok(wanted.collect())
    }

    /// The names of what a rootfs is made of, the topmost first, with a fix-up on top if it needs one.
    async fn stack(
        &self,
        wanted: &[Wanted],
        kept: &BTreeMap<String, KeptLayer>,
    ) -> Result<(Vec<String>, Option<Hold>), ImageError> {
        let mut names = Vec::new();
        let mut layers = Vec::new();
        for Wanted { name, .. } in wanted.iter().rev() {
            let Some(layer) = kept.get(name).filter(|layer| layer.entries > 0) else { continue };
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
        self.fetch(Wanted { at, name: name.clone(), diff_id, source: Source::Bytes(archive.into()) }).await?;
        names.insert(0, name);
        Ok((names, Some(hold)))
    }

    fn ask(&self, method: Method, wanted: &str) -> Ask<'_> {
        Ask {
            image: &self.image,
            method,
            path: format!("manifests/{wanted}"),
            accept: Some(manifest::ACCEPT),
            from_byte: 0,
        }
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

fn header(response: &reqwest::Response, name: &str) -> Option<String> {
    response.headers().get(name)?.to_str().ok().map(str::to_owned)
}

/// Syncing a file may take its time, and no thread of the runtime has that.
pub(crate) async fn off_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(broken("write a record", io::Error::other(error))))
}
