//! The folders on disk: names, leftovers, renames.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use run::FileId;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::index::Key;

/// Where files are written and where they go before they are deleted. No owner's folder is called so.
const ASIDE: &str = "tmp";

#[derive(Debug)]
pub(super) struct Folder {
    dir: PathBuf,
}

/// A file of an earlier life.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) key: Key,
    pub(super) len: u64,
    pub(super) since: SystemTime,
}

/// A file on its way in; it goes away with this unless it was given its name.
#[derive(Debug)]
pub(super) struct Aside {
    pub(super) file: File,
    path: PathBuf,
}

impl Drop for Aside {
    fn drop(&mut self) {
        // After a rename there is nothing of that name any more.
        let _ = fs::remove_file(&self.path);
    }
}

/// The folder of an owner: a name may have characters that a path must not.
pub(super) fn name_of(owner: &str) -> String {
    let owner = if walls::stands("own_files") { owner } else { "" };
    let digest: [u8; 32] = Sha256::digest(owner.as_bytes()).into();
    FileId::of_digest(digest).hex()[..32].to_owned()
}

impl Folder {
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        let aside = dir.join(ASIDE);
        match fs::remove_dir_all(&aside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => make(&aside)?,
        }
        Ok(Self { dir: dir.to_owned() })
    }

    /// Every file, the longest unchanged first.
    pub(super) fn read(&self) -> io::Result<Vec<Found>> {
        let mut all = Vec::new();
        for owner in fs::read_dir(&self.dir)? {
            let owner = owner?;
            let Ok(folder) = owner.file_name().into_string() else { continue };
            if folder == ASIDE || !owner.file_type()?.is_dir() {
                continue;
            }
            for entry in fs::read_dir(owner.path())? {
                let entry = entry?;
                let name = entry.file_name();
                let Some(id) = name.to_str().and_then(|name| FileId::from_hex(name).ok()) else { continue };
                let metadata = entry.metadata()?;
                let key = Key { folder: folder.clone(), id };
                all.push(Found { key, len: metadata.len(), since: metadata.modified()? });
            }
        }
        all.sort_by_key(|found| found.since);
        Ok(all)
    }

    pub(super) fn aside(&self) -> io::Result<Aside> {
        let path = self.dir.join(ASIDE).join(Uuid::now_v7().to_string());
        let file = File::options().create_new(true).write(true).read(true).mode(0o600).open(&path)?;
        Ok(Aside { file, path })
    }

    /// Gives the file its name, in place of one that had it: the content is the same.
    pub(super) fn keep(&self, aside: &Aside, key: &Key) -> io::Result<()> {
        let owner = self.dir.join(&key.folder);
        make(&owner)?;
        fs::rename(&aside.path, owner.join(key.id.hex()))
    }

    /// Makes the name last.
    pub(super) fn sync(&self, key: &Key) -> io::Result<()> {
        File::open(self.dir.join(&key.folder))?.sync_all()
    }

    pub(super) fn open_file(&self, key: &Key) -> io::Result<File> {
        File::open(self.path(key))
    }

    /// Called while the index is locked: the names are free at once. The blocks follow when the last
    /// reader has closed.
    pub(super) fn discard(&self, keys: Vec<Key>) {
        for key in keys {
            if let Err(error) = fs::remove_file(self.path(&key)) {
                tracing::warn!(%error, "a file that was dropped from the store could not be deleted");
            }
        }
    }

    fn path(&self, key: &Key) -> PathBuf {
        self.dir.join(&key.folder).join(key.id.hex())
    }
}

fn make(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}
