//! One file on its way into the store: hashed and written as it comes, a piece at a time, so that its
//! size costs no memory. Nobody sees it before it is whole.

use std::io::Write;

use run::{FileId, StoredFile};
use sha2::{Digest, Sha256};

use super::folder::Aside;
use super::index::Key;
use super::lease::Reservation;
use super::{FileInfo, Files, FilesError, info};
use crate::clock;

/// How much is gathered before it is handed to a thread that may block.
const PIECE_BYTES: usize = 256 * 1024;

/// The room that is asked for at once where nobody has said how long the file is.
const STEP_BYTES: u64 = 4 * 1024 * 1024;

#[derive(Debug)]
pub struct Upload {
    files: Files,
    owner: String,
    pending: Vec<u8>,
    /// Gone after the first error: then nothing of the upload is left.
    sink: Option<Sink>,
}

struct Sink {
    aside: Aside,
    hasher: Sha256,
    len: u64,
    room: Reservation,
}

impl std::fmt::Debug for Sink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sink").field("len", &self.len).finish_non_exhaustive()
    }
}

impl Upload {
    pub(super) fn begin(files: Files, owner: &str, announced: Option<u64>) -> Result<Self, FilesError> {
        let most_bytes = files.inner.config.file_bytes_max;
        if announced.is_some_and(|len| len > most_bytes) {
            return Err(FilesError::TooLarge { most_bytes });
        }
        let room = files.reserve(announced.unwrap_or(0))?;
        let aside = files.inner.folder.aside().map_err(FilesError::io("make a file"))?;
        let sink = Sink { aside, hasher: Sha256::new(), len: 0, room };
        Ok(Self { files, owner: owner.into(), pending: Vec::new(), sink: Some(sink) })
    }

    /// How much has come so far.
    pub fn len(&self) -> u64 {
        self.sink.as_ref().map_or(0, |sink| sink.len) + self.pending.len() as u64
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes the next bytes. Dropping the future gives the upload up.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), FilesError> {
        self.pending.extend_from_slice(bytes);
        if self.pending.len() < PIECE_BYTES { Ok(()) } else { self.flush().await }
    }

    async fn flush(&mut self) -> Result<(), FilesError> {
        let pieces = std::mem::take(&mut self.pending);
        let sink = self.sink.take().ok_or_else(given_up)?;
        let most_bytes = self.files.inner.config.file_bytes_max;
        let (sink, mut pieces) = blocking(move || sink.take(pieces, most_bytes)).await?;
        pieces.clear();
        (self.sink, self.pending) = (Some(sink), pieces);
        Ok(())
    }

    /// Gives the file its name. A file that is there already is as good, and is kept anew.
    pub async fn finish(mut self) -> Result<FileInfo, FilesError> {
        self.flush().await?;
        let sink = self.sink.take().ok_or_else(given_up)?;
        let (files, owner) = (self.files, self.owner);
        blocking(move || sink.keep(&files, owner)).await
    }
}

impl Sink {
    fn take(mut self, bytes: Vec<u8>, most_bytes: u64) -> Result<(Self, Vec<u8>), FilesError> {
        self.len += bytes.len() as u64;
        if self.len > most_bytes {
            return Err(FilesError::TooLarge { most_bytes });
        }
        let missing = self.len.saturating_sub(self.room.bytes());
        if missing > 0 {
            // Where so much at once doesn't fit, what is needed may.
            self.room.grow(missing.max(STEP_BYTES)).or_else(|_| self.room.grow(missing))?;
        }
        self.hasher.update(&bytes);
        self.aside.file.write_all(&bytes).map_err(FilesError::io("write a file"))?;
        Ok((self, bytes))
    }

    fn keep(self, files: &Files, owner: String) -> Result<FileInfo, FilesError> {
        let Self { aside, hasher, len, mut room } = self;
        let id = FileId::of_digest(hasher.finalize().into());
        let key = Key::of(&StoredFile { owner, id });
        let folder = &files.inner.folder;
        let expires = clock::now() + files.inner.config.keep_for;
        aside.file.sync_all().map_err(FilesError::io("write a file"))?;
        {
            // The name is given while nobody can drop what has it.
            let mut index = files.index();
            folder.keep(&aside, &key).map_err(FilesError::io("keep a file"))?;
            index.release(room.disarm());
            index.add(key.clone(), len, expires);
        }
        folder.sync(&key).map_err(FilesError::io("keep a file"))?;
        Ok(info(id, len, expires))
    }
}

fn given_up() -> FilesError {
    FilesError::Io { doing: "go on with a file", source: std::io::ErrorKind::BrokenPipe.into() }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, FilesError> + Send + 'static,
) -> Result<T, FilesError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(FilesError::Io { doing: "work on a file", source: std::io::Error::other(error) }),
    }
}
