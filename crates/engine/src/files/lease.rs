//! What keeps a file, or room for one, for as long as somebody needs it.

use std::collections::HashMap;
use std::fs::File;
use std::io;

use run::{RunSpec, StoredFile};

use super::index::Key;
use super::{Files, FilesError};

/// A file in use: it is not dropped, whatever else happens to it.
#[derive(Debug)]
pub struct FileLease {
    files: Files,
    key: Key,
    len: u64,
}

impl FileLease {
    pub(super) fn new(files: Files, key: Key, len: u64) -> Self {
        Self { files, key, len }
    }

    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A descriptor with an offset of its own.
    pub fn open(&self) -> io::Result<File> {
        self.files.inner.folder.open_file(&self.key)
    }
}

impl Drop for FileLease {
    fn drop(&mut self) {
        let mut index = self.files.index();
        index.let_go(&self.key);
        self.files.inner.folder.discard(index.take_dropped());
        self.files.inner.given_back.notify_one();
    }
}

/// Room in the store that something else than a file takes, or a file that is not there yet.
#[derive(Debug)]
pub struct Reservation {
    files: Files,
    bytes: u64,
}

impl Reservation {
    pub(super) fn empty(files: Files) -> Self {
        Self { files, bytes: 0 }
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn grow(&mut self, bytes: u64) -> Result<(), FilesError> {
        self.files.make_room(bytes)?;
        self.bytes += bytes;
        Ok(())
    }

    fn give_back(&self, bytes: u64) {
        self.files.index().release(bytes);
        self.files.inner.given_back.notify_one();
    }

    /// What was set aside is somebody else's to give back.
    pub(super) fn disarm(&mut self) -> u64 {
        std::mem::take(&mut self.bytes)
    }

    /// Gives back what is not needed after all.
    pub fn shrink_to(&mut self, bytes: u64) {
        let less = self.bytes.saturating_sub(bytes);
        self.give_back(less);
        self.bytes -= less;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.give_back(self.bytes);
    }
}

/// Every uploaded file that one run reads, from its submission to its end.
#[derive(Debug, Default)]
pub struct Leases {
    held: HashMap<StoredFile, FileLease>,
}

impl Leases {
    /// All of them, or the one that is not there.
    pub fn take(files: Option<&Files>, spec: &RunSpec) -> Result<Self, StoredFile> {
        Self::take_all(files, spec.stored_files())
    }

    pub(crate) fn take_all<'a>(
        files: Option<&Files>,
        wanted: impl Iterator<Item = &'a StoredFile>,
    ) -> Result<Self, StoredFile> {
        let mut held = HashMap::new();
        for stored in wanted {
            if !held.contains_key(stored) {
                let lease = files.and_then(|files| files.lease(stored)).ok_or_else(|| stored.clone())?;
                held.insert(stored.clone(), lease);
            }
        }
        Ok(Self { held })
    }

    /// Of all files together.
    pub(crate) fn bytes(&self) -> u64 {
        self.held.values().map(FileLease::len).sum()
    }

    pub(crate) fn get(&self, stored: &StoredFile) -> io::Result<&FileLease> {
        let gone = || io::Error::new(io::ErrorKind::NotFound, format!("there is no file {}", stored.id));
        self.held.get(stored).ok_or_else(gone)
    }
}
