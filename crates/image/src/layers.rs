//! The layers of one image: which are here, which are on their way for somebody else, and the one
//! pass in which a missing one is downloaded, checked, unpacked and kept.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, TryStreamExt, stream};
use unpack::UnpackError;

use crate::bundle::Piece;
use crate::disk::{KeptLayer, broken};
use crate::download::Download;
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
}

/// Where a layer's bytes are; a fix-up brings its own.
#[derive(Clone)]
pub(crate) enum Source {
    Registry(Blob),
    /// A file of an image that came as an archive or a folder.
    Piece(Piece),
    Bytes(Bytes),
}

/// How much larger files are than the layers that they come in, most of the time.
const USUAL_RATIO: u64 = 3;

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
    pub(crate) async fn fetch_all(
        &self,
        wanted: &[Wanted],
    ) -> Result<BTreeMap<String, KeptLayer>, ImageError> {
        let (first, copies): (Vec<_>, Vec<_>) =
            wanted.iter().cloned().partition(|layer| !layer.name.contains('-'));
        let mut kept = self.fetch_some(first).await?;
        // A copy of a layer without entries would change nothing.
        let is_empty = |layer: &Wanted| {
            let original = layer.name.split('-').next().and_then(|name| kept.get(name));
            original.is_some_and(|original| original.entries == 0)
        };
        let copies = copies.into_iter().filter(|layer| !is_empty(layer)).collect();
        let more = self.fetch_some(copies).await?;
        kept.extend(more);
        let limits = &self.puller.config.limits;
        if kept.values().map(|layer| layer.bytes).sum::<u64>() > limits.image_bytes {
            return Err(self.too_large("bytes", limits.image_bytes));
        }
        if kept.values().map(|layer| layer.entries).sum::<u64>() > limits.entries {
            return Err(self.too_large("entries", limits.entries));
        }
        Ok(kept)
    }

    async fn fetch_some(&self, mut wanted: Vec<Wanted>) -> Result<BTreeMap<String, KeptLayer>, ImageError> {
        wanted.sort_by_key(|layer| match &layer.source {
            Source::Registry(blob) => Reverse(blob.size),
            Source::Piece(piece) => Reverse(piece.size),
            Source::Bytes(bytes) => Reverse(bytes.len() as u64),
        });
        let fetch = |layer: Wanted| {
            let pull = self.clone();
            async move { Ok((layer.name.clone(), pull.fetch(layer).await?)) }.boxed()
        };
        let parallel = self.puller.config.parallel_layers.max(1);
        stream::iter(wanted).map(fetch).buffer_unordered(parallel).try_collect().await
    }

    /// A layer, from here or from wherever it is. The caller holds it.
    pub(crate) async fn fetch(&self, layer: Wanted) -> Result<KeptLayer, ImageError> {
        let owner = self.view.owner.as_ref();
        let mut brought = false;
        loop {
            let here = self.puller.shelf.layer(&layer.name).await;
            let flight = match here {
                Some(kept) if kept.shown_to.includes(owner) || !walls::stands("shown_layers") => {
                    self.board.layer(layer.at, if brought { LayerState::Done } else { LayerState::Shared });
                    return Ok(kept);
                }
                // It was brought, and is gone although it is held.
                None if brought => return Err(ImageError::Cancelled { reference: self.name() }),
                Some(_) => self.view.key(&format!("{} shown", layer.name)),
                None => layer.name.clone(),
            };
            let (pull, is_here) = (self.clone(), flight != layer.name);
            let mut seat = self.puller.layers.join(&flight, |()| {
                let layer = layer.clone();
                async move { if is_here { pull.show(&layer).await } else { pull.bring(&layer).await } }
            });
            match seat.result().await {
                // Another image's registry failed us; ours may not.
                Some(Err(_)) | None if !seat.leads => {}
                Some(Err(error)) => return Err(error),
                None => return Err(ImageError::Cancelled { reference: self.name() }),
                Some(Ok(())) => brought = seat.leads,
            }
        }
    }

    /// Downloads and unpacks one layer in one pass.
    async fn bring(&self, layer: &Wanted) -> Result<(), ImageError> {
        let puller = &self.puller;
        let _permit = puller.downloads.acquire().await.expect("it is never closed");
        let begun = Instant::now();
        let (shelf, name) = (Arc::clone(&puller.shelf), layer.name.clone());
        off_thread(move || shelf.expect(&name)).await?;
        let (report, commit) = self.unpack_one(layer).await?;
        commit.commit().await.map_err(|error| self.store("keep a layer", error))?;
        let kept = KeptLayer {
            bytes: report.file_bytes,
            disk_bytes: report.disk_bytes,
            entries: report.entries,
            root_opaque: report.root_opaque,
            implicit_dirs: report.implicit_dirs,
            special_dirs: report.special_dirs,
            shown_to: ShownTo::one(self.view.owner.as_ref()),
        };
        let (shelf, name) = (Arc::clone(&puller.shelf), layer.name.clone());
        off_thread(move || shelf.keep(&name, kept)).await?;
        puller.observer.layer_unpacked(begun.elapsed());
        Ok(())
    }

    /// A layer that is here for others: whoever has its bytes may have its tree, and a hash is not its bytes. They
    /// are fetched and unpacked like any other's, and what comes of that is dropped.
    async fn show(&self, layer: &Wanted) -> Result<(), ImageError> {
        let _permit = self.puller.downloads.acquire().await.expect("it is never closed");
        self.unpack_one(layer).await?;
        let (shelf, name, owner) =
            (Arc::clone(&self.puller.shelf), layer.name.clone(), self.view.owner.clone());
        off_thread(move || shelf.show(&name, owner.as_ref())).await
    }

    /// Nothing is kept before the commit.
    async fn unpack_one(&self, layer: &Wanted) -> Result<(unpack::Report, Box<dyn Commit>), ImageError> {
        let puller = &self.puller;
        let limits = unpack::Limits {
            bytes: puller.config.limits.image_bytes,
            entries: puller.config.limits.entries,
            ..unpack::Limits::default()
        };
        let job = unpack::Job { diff_id: layer.diff_id.clone(), limits };
        let started = puller.shelf.store.unpack(&layer.name, &job).await;
        let mut unpacking = started.map_err(|error| self.store("start to unpack a layer", error))?;
        let is_all = self.feed(layer, unpacking.as_mut()).await?;
        self.board.layer(layer.at, LayerState::Unpacking);
        let finished = unpacking.finish().await;
        let Unpacked { report, commit } = finished.map_err(|error| self.store("unpack a layer", error))?;
        let report = unpack::read_result(&report)
            .map_err(|error| self.store("read what the unpacker says", io::Error::other(error)))?
            .map_err(|error| self.unpack(layer, error))?;
        if !is_all {
            return Err(self.store("unpack a layer", io::Error::other("the unpacker did not read all of it")));
        }
        Ok((report, commit))
    }

    /// Hands every byte to the unpacker, and says whether it took them all. One that reads no more
    /// will say why when it is asked.
    async fn feed(&self, layer: &Wanted, unpacking: &mut dyn Unpacking) -> Result<bool, ImageError> {
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
        while let Some(bytes) = download.next().await? {
            waits.had(WaitsFor::Registry);
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

    fn store(&self, doing: &str, error: io::Error) -> ImageError {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                ImageError::NoSpace { reference: self.name() }
            }
            _ => broken(doing, error),
        }
    }

    fn unpack(&self, layer: &Wanted, error: UnpackError) -> ImageError {
        match error {
            UnpackError::NoSpace => ImageError::NoSpace { reference: self.name() },
            UnpackError::TooLarge { what, limit } => self.too_large(&what, limit),
            error => {
                let source = Box::new(error);
                ImageError::BadLayer { reference: self.name(), layer: layer.diff_id.clone(), source }
            }
        }
    }
}
