//! The one door to images.

use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use run::{PrincipalName, Pull};
use tokio::sync::broadcast::error::RecvError;

use crate::board::Board;
use crate::disk::{Disk, ImageRecord, key};
use crate::flight::Flights;
use crate::lease::Guard;
use crate::pull::{Pulled, Puller, off_thread};
use crate::reference::Reference;
use crate::shelf::{Shelf, Taken};
use crate::view::{Accounts, Asker, View};
use crate::{
    Archive, Config, ImageConfig, ImageError, ImageInfo, LayerStore, Lease, Observer, Progress, PullResult,
    Rootfs, Saved,
};

/// The name of the machine's own programs.
const HOST: &str = "host";

/// The images of this machine. Cloning it is cheap; all clones are the same store.
#[derive(Clone)]
pub struct Images {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) puller: Arc<Puller>,
    pub(crate) shelf: Arc<Shelf>,
    pub(crate) observer: Arc<dyn Observer>,
    pulls: Flights<Result<Pulled, ImageError>, Arc<Board>>,
    /// Registries being asked whether somebody may still have what it has.
    pub(crate) proofs: Flights<Result<bool, ImageError>>,
    pub(crate) accounts: Accounts,
}

impl std::fmt::Debug for Images {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Images").field("dir", &self.inner.puller.config.dir).finish_non_exhaustive()
    }
}

impl Images {
    /// Reads the records and removes what an earlier life left half done. Must be called in a runtime.
    pub async fn open(
        config: Config,
        store: Arc<dyn LayerStore>,
        observer: Arc<dyn Observer>,
    ) -> Result<Self, ImageError> {
        let pinned = config.pinned.iter().filter_map(|name| Some(Reference::parse(name).ok()?.to_string()));
        let shelf = Shelf::open(Disk::open(&config.dir)?, store, config.budget, pinned.collect())?;
        let (pulls, proofs) = (Flights::new(config.grace), Flights::new(Duration::ZERO));
        let accounts = Accounts::new(Arc::clone(&config.logins));
        let puller = Arc::new(Puller::new(config, Arc::clone(&shelf), Arc::clone(&observer)));
        Ok(Self { inner: Arc::new(Inner { puller, shelf, observer, pulls, proofs, accounts }) })
    }

    /// Whether the text is a reference at all; asks nobody.
    pub fn check_reference(reference: &str) -> Result<(), ImageError> {
        if reference == HOST { Ok(()) } else { Reference::parse(reference).map(drop) }
    }

    /// The name in full, as records and rules have it: `docker.io/library/alpine:latest`.
    pub fn full_name(reference: &str) -> Result<String, ImageError> {
        if reference == HOST { Ok(HOST.into()) } else { Ok(Reference::parse(reference)?.to_string()) }
    }

    /// Everybody's image of that name, pulled if need be and `pull` allows it. Dropping the future leaves the
    /// pull to the others who wait for it; the last one to leave ends it, after a grace.
    pub async fn acquire(&self, reference: &str, pull: Pull) -> Result<Lease, ImageError> {
        self.obtain(None, reference, pull, Until::Usable, &mut |_| {}).await
    }

    /// The same for a principal: what the name means to it.
    pub async fn acquire_for(
        &self,
        principal: &PrincipalName,
        reference: &str,
        pull: Pull,
    ) -> Result<Lease, ImageError> {
        self.obtain(Some(principal), reference, pull, Until::Usable, &mut |_| {}).await
    }

    /// The same, told step by step. It ends when the image is durable, and not as soon as it can be used.
    pub async fn acquire_with_progress(
        &self,
        principal: Option<&PrincipalName>,
        reference: &str,
        pull: Pull,
        on: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Lease, ImageError> {
        self.obtain(principal, reference, pull, Until::Durable, on).await
    }

    async fn obtain(
        &self,
        principal: Option<&PrincipalName>,
        reference: &str,
        pull: Pull,
        until: Until,
        on: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Lease, ImageError> {
        if reference == HOST {
            return self.host();
        }
        let image = Reference::parse(reference)?;
        let asker = self.asker(principal, &image);
        let name = image.to_string();
        // What came as a file has no registry that could be asked.
        if let Err(refused) = self.inner.puller.check(&image)
            && !asker.names(&name).iter().any(|key| self.inner.shelf.was_loaded(key))
        {
            return Err(refused);
        }
        // A digest never comes to mean anything else, so there is nothing to ask.
        let may_use = pull != Pull::Always || image.digest.is_some();
        if may_use && let Some(Taken { record, hold, durable }) = self.take(&asker, &image, &name).await? {
            self.inner.observer.cache_hit();
            if pull == Pull::Missing {
                self.refresh(&asker, &image, &record);
            }
            let pulled = Pulled { record: Arc::new(record), hold: Arc::new(hold), durable };
            return until.is_reached(pulled, on).await;
        }
        if pull == Pull::Never {
            return Err(ImageError::NotPresent { reference: name });
        }
        self.inner.observer.cache_miss();
        let pulled = self.pull(&asker, &image, name, on).await?;
        Ok(until.is_reached(pulled, on).await?.fetched())
    }

    /// Takes images from a file or a folder: that of the given name, or the only one there is, under
    /// that name; or all, under their own.
    pub async fn load(
        &self,
        archive: Archive,
        name: Option<&str>,
        on: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Vec<Lease>, ImageError> {
        self.load_for(None, archive, name, on).await
    }

    /// The same for one principal alone.
    pub async fn load_for(
        &self,
        owner: Option<&PrincipalName>,
        archive: Archive,
        name: Option<&str>,
        on: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Vec<Lease>, ImageError> {
        let name = name.map(Reference::parse).transpose()?;
        if let Some(Reference { digest: Some(_), .. }) = &name {
            let (reference, reason) = (
                name.expect("it is one").to_string(),
                "a digest can't be given; it follows from the content",
            );
            return Err(ImageError::BadReference { reference, reason: reason.into() });
        }
        let board = Arc::new(Board::default());
        let (_, mut events) = board.read();
        let mut loading =
            std::pin::pin!(self.inner.puller.load(archive, name, owner.cloned(), Arc::clone(&board)));
        let loaded = loop {
            tokio::select! {
                biased;
                event = events.recv() => event.into_iter().for_each(&mut *on),
                loaded = &mut loading => break loaded?,
            }
        };
        while let Ok(event) = events.try_recv() {
            on(event);
        }
        Ok(loaded.into_iter().map(lease).collect())
    }

    /// Writes images of the store into an archive that this and others can load: an OCI layout that also
    /// has the list of `docker save`. Images that are a principal's own are not among them.
    pub async fn save(&self, names: &[String], to: File) -> Result<Vec<Saved>, ImageError> {
        let mut taken = Vec::new();
        for name in names {
            let image = Reference::parse(name)?;
            let name = image.to_string();
            let found = self.take_of(None, &image, &name).await?;
            taken.push((image, found.ok_or(ImageError::NotPresent { reference: name })?));
        }
        self.inner.puller.save(taken, to).await
    }

    /// Allows these registries only, from now on; none named means any. Images that are here stay.
    pub fn allow_registries(&self, names: &[String]) {
        self.inner.puller.registries.rules.allow(names);
    }

    /// The largest archive that is read.
    pub fn archive_bytes_max(&self) -> u64 {
        self.inner.puller.config.limits.image_bytes
    }

    /// A file to receive an archive in. It is on the store's disk, nobody else can find it, and it
    /// goes when it is closed, however that comes about.
    pub fn incoming(&self) -> Result<File, ImageError> {
        crate::load::receive(&self.inner.puller)
    }

    /// Above how many bytes images are collected.
    pub fn limit_bytes(&self) -> u64 {
        self.inner.shelf.budget.high_bytes
    }

    /// What all layers take of the disk, each counted once.
    pub fn total_bytes(&self) -> u64 {
        self.inner.shelf.bytes()
    }

    /// The same of the layers of some images only.
    pub fn bytes_of(&self, images: &[ImageInfo]) -> u64 {
        self.inner.shelf.bytes_of(images)
    }

    /// Ends every pull and waits until none is left.
    pub async fn close(&self) {
        self.inner.pulls.stop();
        self.inner.proofs.stop();
        self.inner.puller.stop();
        while self.inner.pulls.count() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.inner.puller.settled().await;
        self.inner.shelf.settled().await;
        let shelf = Arc::clone(&self.inner.shelf);
        let saved = off_thread(move || {
            shelf.save_all();
            Ok(())
        });
        let _ = saved.await;
    }

    /// An image that is here and that the asker may have: of its own, or else everybody's.
    async fn take(&self, asker: &Asker, image: &Reference, name: &str) -> Result<Option<Taken>, ImageError> {
        if let Some(owner) = &asker.name
            && let Some(own) = self.take_of(Some(owner), image, name).await?
            && self.may_have(asker, image, &own.record).await?
        {
            return Ok(Some(own));
        }
        self.take_of(None, image, name).await
    }

    /// By its name, or by its digest under another name.
    async fn take_of(
        &self,
        owner: Option<&PrincipalName>,
        image: &Reference,
        name: &str,
    ) -> Result<Option<Taken>, ImageError> {
        let (shelf, key) = (&self.inner.shelf, key(name, owner));
        if let Some(taken) = shelf.take(&key) {
            return Ok(Some(taken));
        }
        let Some(digest) = &image.digest else { return Ok(None) };
        let repository = format!("{}/{}", image.registry, image.repository);
        let Some(Taken { record: known, hold: _stays, .. }) = shelf.take_digest(&repository, digest, owner)
        else {
            return Ok(None);
        };
        let named = ImageRecord { reference: name.into(), digest: digest.clone(), pinned: false, ..known };
        let _kept = self.inner.puller.keep(named).await?;
        Ok(shelf.take(&key))
    }

    /// Where tags are believed for a while only, has the registry asked once that is over. Nobody waits
    /// for the answer: it is for those who come next.
    fn refresh(&self, asker: &Asker, image: &Reference, record: &ImageRecord) {
        let Some(life) = self.inner.puller.config.tag_life else { return };
        if image.digest.is_some() || !self.inner.shelf.is_due(&record.key(), life) {
            return;
        }
        let (images, image, name) = (self.clone(), image.clone(), record.reference.clone());
        // Everybody's is asked about with nobody's login, whoever has noticed that it is due.
        let account = asker.account.clone().filter(|_| record.owner.is_some());
        let asker = Asker { name: record.owner.clone(), account };
        tokio::spawn(async move {
            if let Err(error) = images.pull(&asker, &image, name, &mut |_| {}).await {
                tracing::warn!(%image, %error, "a tag could not be asked about; what is here is used");
            }
        });
    }

    async fn pull(
        &self,
        asker: &Asker,
        image: &Reference,
        name: String,
        on: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Pulled, ImageError> {
        let view = asker.account.as_ref().map_or_else(
            || View { owner: None, registries: Arc::clone(&self.inner.puller.registries) },
            |account| account.view.clone(),
        );
        let id = asker.account.as_ref().map(|account| format!("#{}", account.id)).unwrap_or_default();
        let flight = format!("{}{id}", view.key(&name));
        let mut seat =
            self.inner.pulls.join(&flight, |board| watched(&self.inner, image.clone(), view, board));
        if !seat.leads {
            self.inner.observer.pull_coalesced();
        }
        let (said, mut events) = seat.context.read();
        said.into_iter().for_each(&mut *on);
        let result = loop {
            tokio::select! {
                biased;
                event = events.recv() => match event {
                    Ok(event) => on(event),
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => break seat.result().await,
                },
                result = seat.result() => break result,
            }
        };
        while let Ok(event) = events.try_recv() {
            on(event);
        }
        let pulled = result.unwrap_or(Err(ImageError::Cancelled { reference: name }))?;
        if let Some(account) = &asker.account {
            account.prove(pulled.record.key(), self.inner.puller.config.access_life);
        }
        Ok(pulled)
    }

    fn host(&self) -> Result<Lease, ImageError> {
        if !self.inner.puller.config.host_image {
            return Err(ImageError::NotAllowed {
                registry: HOST.into(),
                reason: "the machine's own programs are not offered".into(),
                flag: "--allow-host-image".into(),
            });
        }
        Ok(Lease::unguarded(HOST, None, Rootfs::Host, ImageConfig::default()))
    }
}

/// What is waited for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    /// Runs need no more.
    Usable,
    Durable,
}

impl Until {
    async fn is_reached(
        self,
        pulled: Pulled,
        on: &mut (dyn FnMut(Progress) + Send),
    ) -> Result<Lease, ImageError> {
        if self == Self::Durable {
            pulled.is_durable().await?;
        }
        on(Progress::Ready { digest: pulled.record.digest.clone() });
        Ok(lease(pulled))
    }
}

fn lease(Pulled { record, hold, .. }: Pulled) -> Lease {
    let rootfs = Rootfs::Layers(Arc::clone(&record.layers));
    let lease =
        Lease::unguarded(&record.reference, Some(record.digest.clone()), rootfs, record.config.clone());
    lease.owned_by(record.owner.clone()).guarded_by(hold as Arc<dyn Guard>)
}

/// A pull that is counted however it ends.
fn watched(
    inner: &Inner,
    image: Reference,
    view: View,
    board: Arc<Board>,
) -> impl Future<Output = Result<Pulled, ImageError>> + Send + use<> {
    let puller = Arc::clone(&inner.puller);
    let mut counted = Counted {
        observer: Arc::clone(&inner.observer),
        begun: Instant::now(),
        result: PullResult::Cancelled,
    };
    async move {
        counted.observer.pull_started();
        let result = puller.pull(image, view, board).await;
        counted.is(&result);
        result
    }
}

struct Counted {
    observer: Arc<dyn Observer>,
    begun: Instant,
    result: PullResult,
}

impl Counted {
    fn is(&mut self, result: &Result<Pulled, ImageError>) {
        self.result = result.as_ref().map_or_else(outcome, |_| PullResult::Ok);
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.observer.pull_finished(self.result, self.begun.elapsed());
    }
}

/// One line per error: a new one must not compile until it is counted.
fn outcome(error: &ImageError) -> PullResult {
    match error {
        ImageError::BadReference { .. }
        | ImageError::NotAllowed { .. }
        | ImageError::NotFound { .. }
        | ImageError::Unauthorized { .. }
        | ImageError::BadImage { .. }
        | ImageError::BadLayer { .. }
        | ImageError::Platform { .. }
        | ImageError::TooLarge { .. }
        | ImageError::NotPresent { .. } => PullResult::Refused,
        ImageError::RateLimited { .. } | ImageError::Registry { .. } => PullResult::Registry,
        ImageError::Timeout { .. } => PullResult::Timeout,
        ImageError::Cancelled { .. } => PullResult::Cancelled,
        ImageError::NoSpace { .. } | ImageError::NoInodes { .. } | ImageError::Store { .. } => {
            PullResult::Internal
        }
    }
}
