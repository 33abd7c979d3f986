//! Files that clients have uploaded and runs have left behind, by the hash of their content: streamed
//! to disk, kept for a time and within a budget, the least recently used going first, and none while a
//! run reads it.
//!
//! On disk a file is `OWNER/HEX`, written aside and renamed, and its time of change says since when it
//! is kept. There is nothing else to lose: after a crash the index is read from the folders again.

mod folder;
mod index;
mod lease;
mod upload;

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use run::{FileId, StoredFile};
use tokio::sync::Notify;

pub use lease::{FileLease, Leases, Reservation};
pub use upload::Upload;

use folder::Folder;
use index::{Index, Key};

use crate::clock;

#[derive(Clone, Debug)]
pub struct FilesConfig {
    /// Belongs to this store alone.
    pub dir: PathBuf,
    /// Of all files together.
    pub bytes_max: u64,
    /// Of one file.
    pub file_bytes_max: u64,
    /// From its last upload on.
    pub keep_for: Duration,
}

/// One file, as its owner sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileInfo {
    pub id: FileId,
    pub size_bytes: u64,
    pub expires_at: Timestamp,
}

#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    #[error("the file has more than {most_bytes} bytes")]
    TooLarge { most_bytes: u64 },
    #[error(
        "there is no room for {bytes} bytes: the store may hold {most_bytes}, and runs use what is in it"
    )]
    Full { bytes: u64, most_bytes: u64 },
    #[error(
        "there can't be room for the {bytes} bytes that the command may leave behind beside the {files_bytes} of the \
         batch's own files: the store may hold {most_bytes}"
    )]
    Never { bytes: u64, files_bytes: u64, most_bytes: u64 },
    #[error("can't {doing}")]
    Io { doing: &'static str, source: io::Error },
}

impl FilesError {
    pub(crate) fn io(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing, source }
    }
}

/// How much there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileCounts {
    pub files: usize,
    /// What is reserved for files on their way in is part of it.
    pub bytes: u64,
}

/// Cheap to clone; all clones are the same store.
#[derive(Clone, Debug)]
pub struct Files {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: FilesConfig,
    folder: Folder,
    index: Mutex<Index>,
    /// Told when room may have become free; one of those who wait for it looks for all.
    given_back: Notify,
}

impl Files {
    /// Reads what an earlier life has left and removes what it left half done.
    pub fn open(config: FilesConfig) -> io::Result<Self> {
        let folder = Folder::open(&config.dir)?;
        let mut index = Index::new(config.bytes_max);
        for found in folder.read()? {
            index.add(found.key, found.len, found.since + config.keep_for);
        }
        Ok(Self {
            inner: Arc::new(Inner { config, folder, index: Mutex::new(index), given_back: Notify::new() }),
        })
    }

    /// Begins to take a file of which nothing is known yet. `announced` is how long it says that it is.
    pub fn begin(&self, owner: &str, announced: Option<u64>) -> Result<Upload, FilesError> {
        Upload::begin(self.clone(), owner, announced)
    }

    /// What the owner would see of it now.
    pub fn get(&self, file: &StoredFile) -> Option<FileInfo> {
        let (len, expires) = self.index().look(&Key::of(file), clock::now())?;
        Some(info(file.id, len, expires))
    }

    /// Keeps the file for as long as the lease lives, and makes it the most recently used.
    pub fn lease(&self, file: &StoredFile) -> Option<FileLease> {
        let key = Key::of(file);
        let len = self.index().hold(&key, clock::now())?;
        Some(FileLease::new(self.clone(), key, len))
    }

    /// Forgets a file; those who read it go on. `false` where there was none.
    pub fn remove(&self, file: &StoredFile) -> bool {
        let mut index = self.index();
        let removed = index.remove(&Key::of(file), clock::now());
        self.inner.folder.discard(index.take_dropped());
        removed
    }

    /// Sets room aside that is counted like files, making it by dropping what was not used lately.
    pub fn reserve(&self, bytes: u64) -> Result<Reservation, FilesError> {
        let mut reservation = Reservation::empty(self.clone());
        reservation.grow(bytes)?;
        Ok(reservation)
    }

    pub fn counts(&self) -> FileCounts {
        let mut index = self.index();
        index.expire(clock::now());
        self.inner.folder.discard(index.take_dropped());
        index.counts()
    }

    pub(crate) fn bytes_max(&self) -> u64 {
        self.inner.config.bytes_max
    }

    /// Whether there would be so much room if everything went that is not in use, and `given_up` came back.
    pub(crate) fn could_hold(&self, bytes: u64, given_up: u64) -> bool {
        self.index().could_hold(bytes, given_up)
    }

    /// Ends when something was given back since the last time; of several that wait one is told.
    pub(crate) async fn given_back(&self) {
        self.inner.given_back.notified().await;
    }

    pub fn file_bytes_max(&self) -> u64 {
        self.inner.config.file_bytes_max
    }

    /// Room for as much more, or why there is none.
    fn make_room(&self, bytes: u64) -> Result<(), FilesError> {
        let mut index = self.index();
        let made = index.reserve(bytes, clock::now());
        self.inner.folder.discard(index.take_dropped());
        made.then_some(()).ok_or(FilesError::Full { bytes, most_bytes: self.inner.config.bytes_max })
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        // A panic under this lock leaves the maps whole.
        self.inner.index.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn info(id: FileId, size_bytes: u64, expires: SystemTime) -> FileInfo {
    FileInfo { id, size_bytes, expires_at: clock::told(expires) }
}

#[cfg(test)]
mod tests;
