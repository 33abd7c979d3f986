//! The layers of one image: which are here, which are on their way for somebody else, and the one
//! pass in which a missing one is downloaded, checked, unpacked and kept.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, TryStreamExt, stream};
use run::PrincipalName;
use unpack::UnpackError;

use crate::bundle::Piece;
use crate::commit::Fresh;
use crate::disk::{KeptLayer, broken};
use crate::download::Download;
use crate::lanes::Lane;
use crate::manifest::Blob;
use crate::pull::{Pull, off_thread};
use crate::view::ShownTo;
use crate::waits::Waits;
use crate::{Commit, ImageError, LayerState, Unpacked, Unpacking, WaitsFor};

/// How many bytes lie between two words about a download.
const PROGRESS_BYTES: u64 = 1 << 20;

/// One layer of the image that is being pulled.
#[derive(Clone)]
pub(crate) struct Wanted {
    pub(crate) at: usize,
    pub(crate) name: String,
    pub(crate) diff_id: String,
    pub(crate) source: Source,
    /// How far its unpacker steps back for others.
    pub(crate) niceness: u8,
}

/// A layer that is here, or will be once it is committed.
#[derive(Clone)]
pub(crate) struct Had {
    pub(crate) layer: KeptLayer,
    pub(crate) fresh: Option<Arc<Fresh>>,
}

impl Had {
    fn kept(layer: KeptLayer) -> Self {
        Self { layer, fresh: None }
    }

    pub(crate) fn fresh(fresh: Arc<Fresh>) -> Self {
        Self { layer: fresh.kept.clone(), fresh: Some(fresh) }
    }

    fn is_shown_to(&self, owner: Option<&PrincipalName>) -> bool {
        match &self.fresh {
            Some(fresh) => fresh.is_shown_to(owner),
            None => self.layer.shown_to.includes(owner),
        }
    }
}

/// The layers of an image by name.
pub(crate) type Layers = BTreeMap<String, Had>;

/// Where a layer's bytes are; a fix-up brings its own.
#[derive(Clone)]
pub(crate) enum Source {
    Registry(Blob),
    /// A file of an image that came as an archive or a folder.
    Piece(Piece),
    Bytes(Bytes),
}

impl Source {
    /// Which bytes they are, as far as that is known without them.
    fn name(&self) -> &str {
        match self {
            Self::Registry(blob) => &blob.digest,
            Self::Piece(_) => "a file",
            Self::Bytes(_) => "here",
        }
    }
}

/// With so few left, a layer that found no room found no inode.
const FEW_INODES: u64 = 16;

/// How much larger files are than the layers that they come in, most of the time.
const USUAL_RATIO: u64 = 3;

/// A tenth of the weight of the largest layer.
const BESIDE_THE_LARGEST: u8 = 10;

impl Wanted {
    /// What it will probably take of the disk.
    pub(crate) fn expected(&self) -> u64 {
        match &self.source {
            Source::Registry(blob) => blob.size.saturating_mul(USUAL_RATIO),
            Source::Piece(piece) => piece.size,
            Source::Bytes(bytes) => bytes.len() as u64,
        }
    }
}

impl Pull {
    /// Fetches what is missing, the largest first: it takes the longest, whatever happens beside it.
    pub(crate) async fn fetch_all(&self, wanted: &[Wanted]) -> Result<Layers, ImageError> {
        let (first, copies): (Vec<_>, Vec<_>) =
            wanted.iter().cloned().partition(|layer| !layer.name.contains('-'));
        let had = self.fetch_some(first, Layers::new()).await?;
        // A copy of a layer without entries would change nothing.
        let is_empty = |layer: &Wanted| {
            let original = layer.name.split('-').next().and_then(|name| had.get(name));
            original.is_some_and(|original| original.layer.entries == 0)
        };
        let copies = copies.into_iter().filter(|layer| !is_empty(layer)).collect();
        self.fetch_some(copies, had).await
    }

    /// What is more than an image may be ends here, before the rest of it comes.
    fn check_size(&self, had: &Layers) -> Result<(), ImageError> {
        let limits = &self.puller.config.limits;
        if had.values().map(|had| had.layer.bytes).sum::<u64>() > limits.image_bytes {
            return Err(self.too_large("bytes", limits.image_bytes));
        }
        if had.values().map(|had| had.layer.entries).sum::<u64>() > limits.entries {
            return Err(self.too_large("entries", limits.entries));
        }
        Ok(())
    }

    /// Adds them to what there is.
    async fn fetch_some(&self, mut wanted: Vec<Wanted>, mut had: Layers) -> Result<Layers, ImageError> {
        wanted.sort_by_key(|layer| match &layer.source {
            Source::Registry(blob) => Reverse(blob.size),
            Source::Piece(piece) => Reverse(piece.size),
            Source::Bytes(bytes) => Reverse(bytes.len() as u64),
        });
        // The largest one has a processor while others share what is left: with equal parts for all it would be
        // the last to end, alone, beside processors that have nothing to do.
        wanted.iter_mut().skip(1).for_each(|layer| layer.niceness = BESIDE_THE_LARGEST);
        let fetch = |layer: Wanted| {
            let pull = self.clone();
            async move { Ok((layer.name.clone(), pull.fetch(layer).await?)) }.boxed()
        };
        let parallel = self.puller.config.parallel_layers.max(1);
        let mut fetched = stream::iter(wanted).map(fetch).buffer_unordered(parallel);
        while let Some((name, layer)) = fetched.try_next().await? {
            had.insert(name, layer);
            self.check_size(&had)?;
        }
        Ok(had)
    }

    /// A layer, from here or from wherever it is. The caller holds it. Whoever has not shown yet that it could
    /// have the layer does so by having it unpacked, and whoever shares that has the same name and asks the same
    /// registry for the same bytes: nobody waits for what another's may never send, or for what only claims to be
    /// the layer and is a thousand times as long.
    pub(crate) async fn fetch(&self, layer: Wanted) -> Result<Had, ImageError> {
        let from = layer.source.name();
        let flight = format!("{} from {}: {from}", self.view.key(&layer.name), self.image.registry);
        loop {
            if let Some(had) = self.find_shown(&layer.name).await {
                self.board.layer(layer.at, LayerState::Shared);
                return Ok(had);
            }
            let pull = self.clone();
            let mut seat = self.puller.layers.join(&flight, |()| {
                let layer = layer.clone();
                async move { pull.bring(&layer).await }
            });
            match seat.result().await {
                Some(Ok(had)) => {
                    let state = if seat.leads { LayerState::Done } else { LayerState::Shared };
                    self.board.layer(layer.at, state);
                    return Ok(had);
                }
                // Another image failed, or was given up; ours may not be.
                Some(Err(_)) | None if !seat.leads => {}
                Some(Err(error)) => return Err(error),
                None => return Err(ImageError::Cancelled { reference: self.name() }),
            }
        }
    }

    /// A layer that is on the shelf, or that somebody has unpacked and not kept yet.
    pub(crate) async fn find(&self, name: &str) -> Option<Had> {
        if let Some(kept) = self.puller.shelf.layer(name).await {
            return Some(Had::kept(kept));
        }
        self.puller.waiting.get(name).map(Had::fresh)
    }

    /// The same, if whom this pull is for has shown that it could have it.
    async fn find_shown(&self, name: &str) -> Option<Had> {
        let had = self.find(name).await?;
        let is_shown = had.is_shown_to(self.view.owner.as_ref()) || !walls::stands("shown_layers");
        is_shown.then_some(had)
    }

    /// Downloads and unpacks one layer in one pass. One that is here for others is fetched like any other, since
    /// whoever has its bytes may have its tree, and a hash is not its bytes; what comes of that is dropped.
    async fn bring(&self, layer: &Wanted) -> Result<Had, ImageError> {
        let puller = &self.puller;
        let mut lane = puller.lanes.enter().await;
        // Somebody may have been done with it just before this began.
        if let Some(had) = self.find_shown(&layer.name).await {
            return Ok(had);
        }
        let (report, commit, begun) = self.unpack_one(layer, &mut lane).await?;
        puller.observer.layer_unpacked(begun.elapsed());
        if let Some(had) = self.show_proved(&layer.name).await? {
            return Ok(had);
        }
        let kept = KeptLayer {
            bytes: report.file_bytes,
            disk_bytes: report.disk_bytes,
            entries: report.entries,
            root_opaque: report.root_opaque,
            root_described: report.root_described,
            implicit_dirs: report.implicit_dirs,
            special_dirs: report.special_dirs,
            shown_to: ShownTo::one(self.view.owner.as_ref()),
        };
        self.set_aside(&layer.name, kept, commit, begun).await.map(Had::fresh)
    }

    /// Nothing is kept before the commit. Says also when the unpacker was there, before it was given anything.
    async fn unpack_one(
        &self,
        layer: &Wanted,
        lane: &mut Lane<'_>,
    ) -> Result<(unpack::Report, Box<dyn Commit>, Instant), ImageError> {
        let puller = &self.puller;
        let limits = unpack::Limits {
            bytes: puller.config.limits.image_bytes,
            entries: puller.config.limits.entries,
            ..unpack::Limits::default()
        };
        let job = unpack::Job { diff_id: layer.diff_id.clone(), limits, niceness: layer.niceness };
        let started = puller.shelf.store.unpack(&layer.name, &job).await;
        let mut unpacking = started.map_err(|error| self.store("start to unpack a layer", error))?;
        let begun = Instant::now();
        let is_all = self.feed(layer, lane, unpacking.as_mut()).await?;
        self.board.layer(layer.at, LayerState::Unpacking);
        let finished = unpacking.finish().await;
        let Unpacked { report, commit } = finished.map_err(|error| self.store("unpack a layer", error))?;
        let report = unpack::read_result(&report)
            .map_err(|error| self.store("read what the unpacker says", io::Error::other(error)))?
            .map_err(|error| self.unpack(layer, error))?;
        if !is_all {
            return Err(self.store("unpack a layer", io::Error::other("the unpacker did not read all of it")));
        }
        Ok((report, commit, begun))
    }

    /// Hands every byte to the unpacker, and says whether it took them all. One that reads no more
    /// will say why when it is asked.
    async fn feed(
        &self,
        layer: &Wanted,
        lane: &mut Lane<'_>,
        unpacking: &mut dyn Unpacking,
    ) -> Result<bool, ImageError> {
        let blob = match &layer.source {
            Source::Bytes(bytes) => {
                return Ok(unpacking.write(bytes.clone()).await.is_ok());
            }
            Source::Piece(piece) => return self.feed_piece(piece, unpacking).await,
            Source::Registry(blob) => blob,
        };
        let mut download = Download::new(&self.view.registries, &self.image, blob);
        let (mut said, mut waits) = (0, Waits::begin());
        self.board.layer(layer.at, waits.state(0, blob.size));
        while let Some(bytes) = lane.wait(download.next()).await? {
            waits.had(WaitsFor::Registry);
            lane.had(bytes.len());
            self.puller.observer.bytes_downloaded(bytes.len() as u64);
            if unpacking.write(bytes).await.is_err() {
                return Ok(false);
            }
            waits.had(WaitsFor::Unpacker);
            if download.received - said >= PROGRESS_BYTES {
                said = download.received;
                self.board.layer(layer.at, waits.state(said, blob.size));
            }
        }
        self.puller.observer.layer_waited(waits.all.registry, waits.all.unpacker);
        Ok(true)
    }

    async fn feed_piece(&self, piece: &Piece, unpacking: &mut dyn Unpacking) -> Result<bool, ImageError> {
        let mut at = 0;
        while at < piece.size {
            let from = piece.clone();
            let bytes =
                off_thread(move || from.read(at).map_err(|error| broken("read an image's file", error)));
            let bytes = bytes.await?;
            at += bytes.len() as u64;
            if unpacking.write(bytes.into()).await.is_err() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    pub(crate) fn store(&self, doing: &str, error: io::Error) -> ImageError {
        match broken(doing, error).in_words(&self.name()) {
            ImageError::NoSpace { .. } => self.full(),
            error => error,
        }
    }

    /// To be asked while what there was no room for is still there.
    fn full(&self) -> ImageError {
        let reference = self.name();
        if self.puller.shelf.store.free_inodes().is_some_and(|free| free < FEW_INODES) {
            ImageError::NoInodes { reference }
        } else {
            ImageError::NoSpace { reference }
        }
    }

    fn unpack(&self, layer: &Wanted, error: UnpackError) -> ImageError {
        match error {
            UnpackError::NoSpace => self.full(),
            UnpackError::TooLarge { what, limit } => self.too_large(&what, limit),
            error => {
                let source = Box::new(error);
                ImageError::BadLayer { reference: self.name(), layer: layer.diff_id.clone(), source }
            }
        }
    }
}
