//! A layer store in a folder: layers are unpacked for real, and the disk does as it is told.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use axum::body::Bytes;
use image::{BoxFuture, Commit, Deleting, LayerStore, Packing, Unpacked, Unpacking};

/// A disk that makes durable what it is given when it is told to.
#[derive(Clone)]
pub(crate) struct SlowDisk {
    told: tokio::sync::watch::Sender<Told>,
    /// How often it was asked.
    asked: Arc<AtomicU64>,
}

type Does = Result<(), io::ErrorKind>;

#[derive(Default)]
struct Told {
    all: Option<Does>,
    /// By how often it was asked before.
    some: BTreeMap<u64, Does>,
}

impl Default for SlowDisk {
    /// At once.
    fn default() -> Self {
        let told = Told { all: Some(Ok(())), some: BTreeMap::new() };
        Self { told: tokio::sync::watch::Sender::new(told), asked: Arc::default() }
    }
}

impl SlowDisk {
    pub(crate) fn waits(&self) {
        self.told.send_modify(|told| told.all = None);
    }

    pub(crate) fn does(&self, what: Result<(), io::ErrorKind>) {
        self.told.send_modify(|told| told.all = Some(what));
    }

    /// For one who has asked already, by how often it was asked before.
    pub(crate) fn does_for(&self, asked: u64, what: Result<(), io::ErrorKind>) {
        self.told.send_modify(|told| {
            told.some.insert(asked, what);
        });
    }

    /// How often it was asked.
    pub(crate) fn asked(&self) -> u64 {
        self.asked.load(Ordering::SeqCst)
    }

    async fn synced(&self) -> io::Result<()> {
        let number = self.asked.fetch_add(1, Ordering::SeqCst);
        let mut told = self.told.subscribe();
        let what = |told: &Told| told.some.get(&number).copied().or(told.all);
        let done = what(&told.wait_for(|told| what(told).is_some()).await.unwrap());
        Ok(done.expect("it was waited for")?)
    }
}

/// Layers as folders.
#[derive(Clone, Default)]
pub(crate) struct Folder {
    path: PathBuf,
    pub(crate) opaque: Arc<Mutex<Vec<String>>>,
    /// How many layers were begun.
    pub(crate) begun: Arc<AtomicU64>,
    /// How many had been when the first of them was given something to write.
    pub(crate) begun_dry: Arc<OnceLock<u64>>,
    /// Who was asked to sync, by how many had been begun before.
    pub(crate) synced: Arc<Mutex<Vec<u64>>>,
    pub(crate) disk: SlowDisk,
    /// How far each layer's unpacker was to step back.
    pub(crate) niceness: Arc<Mutex<BTreeMap<String, u8>>>,
}

impl Folder {
    pub(crate) fn at(path: PathBuf) -> Self {
        Self { path, ..Self::default() }
    }
}

impl LayerStore for Folder {
    fn unpack<'a>(
        &'a self,
        layer: &'a str,
        job: &'a unpack::Job,
    ) -> BoxFuture<'a, io::Result<Box<dyn Unpacking>>> {
        Box::pin(async move {
            let number = self.begun.fetch_add(1, Ordering::SeqCst);
            self.niceness.lock().unwrap().insert(layer.to_owned(), job.niceness);
            let aside = self.path.join(format!("tmp-{number}"));
            fs::create_dir(&aside)?;
            let (mut reader, writer) = io::pipe()?;
            let (done, report) = tokio::sync::oneshot::channel();
            let (root, job, opaque) =
                (File::open(&aside)?, serde_json::to_string(job)?, Arc::clone(&self.opaque));
            std::thread::spawn(move || {
                let mut mark = |dir: BorrowedFd<'_>| {
                    let path = fs::read_link(format!("/proc/self/fd/{}", dir.as_raw_fd()))?;
                    opaque.lock().unwrap().push(path.display().to_string());
                    Ok(())
                };
                let input = File::from(std::os::fd::OwnedFd::from(reader.try_clone().unwrap()));
                let _ = done.send(unpack::jailed(input, root.into(), &job, &mut mark));
                let _ = reader.read(&mut []);
            });
            let place = Place { aside, home: self.path.join(layer), kept: false };
            let (synced, disk) = (Arc::clone(&self.synced), self.disk.clone());
            let keep = Keep { place, number, synced, disk };
            Ok(Box::new(Writing { store: self.clone(), writer: Some(writer), report, keep })
                as Box<dyn Unpacking>)
        })
    }

    fn pack<'a>(
        &'a self,
        layer: &'a str,
        job: &'a unpack::PackJob,
    ) -> BoxFuture<'a, io::Result<Box<dyn Packing>>> {
        Box::pin(async move {
            let root = File::open(self.path.join(layer))?;
            let mut archive = Vec::new();
            let packed = unpack::pack(&mut archive, root.as_fd(), job, &mut |_| Ok(false));
            let report = serde_json::to_string(&packed)?;
            Ok(Box::new(PackedInMemory { archive: archive.into(), report }) as Box<dyn Packing>)
        })
    }

    fn remove<'a>(&'a self, layer: &'a str) -> BoxFuture<'a, io::Result<Deleting>> {
        Box::pin(async move {
            match fs::remove_dir_all(self.path.join(layer)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(Box::pin(async { Ok(()) }) as Deleting),
            }
        })
    }
}

struct PackedInMemory {
    archive: Bytes,
    report: String,
}

impl Packing for PackedInMemory {
    fn read(&mut self) -> BoxFuture<'_, io::Result<Bytes>> {
        Box::pin(std::future::ready(Ok(std::mem::take(&mut self.archive))))
    }

    fn finish(self: Box<Self>) -> BoxFuture<'static, io::Result<String>> {
        Box::pin(std::future::ready(Ok(self.report)))
    }
}

struct Place {
    aside: PathBuf,
    home: PathBuf,
    kept: bool,
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.kept {
            let _ = fs::remove_dir_all(&self.aside);
        }
    }
}

struct Writing {
    store: Folder,
    writer: Option<io::PipeWriter>,
    report: tokio::sync::oneshot::Receiver<String>,
    keep: Keep,
}

impl Unpacking for Writing {
    fn write(&mut self, bytes: Bytes) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            self.store.begun_dry.get_or_init(|| self.store.begun.load(Ordering::SeqCst));
            let mut writer = self.writer.take().ok_or(io::ErrorKind::BrokenPipe)?;
            let written =
                tokio::task::spawn_blocking(move || writer.write_all(&bytes).map(|()| writer)).await.unwrap();
            self.writer = Some(written?);
            Ok(())
        })
    }

    fn finish(mut self: Box<Self>) -> BoxFuture<'static, io::Result<Unpacked>> {
        Box::pin(async move {
            drop(self.writer.take());
            let report = self.report.await.map_err(io::Error::other)?;
            Ok(Unpacked { report, commit: Box::new(self.keep) })
        })
    }
}

struct Keep {
    place: Place,
    number: u64,
    synced: Arc<Mutex<Vec<u64>>>,
    disk: SlowDisk,
}

impl Commit for Keep {
    fn name(&mut self) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            if self.place.home.exists() {
                fs::remove_dir_all(&self.place.home)?;
            }
            self.place.kept = true;
            fs::rename(&self.place.aside, &self.place.home)
        })
    }

    fn sync(&mut self) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(async move {
            self.synced.lock().unwrap().push(self.number);
            self.disk.synced().await
        })
    }
}
