//! A copy of the file as it is at one moment, made while it is written on: a reader sees what was there when it began,
//! however long it looks. The copy has no name, and nothing waits for a disk on its account.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::{fs, io};

use nix::sys::statvfs::statvfs;
use redb::{
    Database, ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTable, StorageBackend,
    TableDefinition, TableHandle, Value, WriteTransaction,
};

use super::StoreError;
use super::embedded::Shared;
use super::tables::{CACHE_BYTES, each_table, failed};

pub(super) const COPYING: &str = "copy the file of runs";

/// What stays free on the disk, so that a copy stops nobody who writes.
const LEFT_FREE_BYTES: u64 = 64 * 1024 * 1024;

#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("there is no file: runs are kept in memory")]
    InMemory,
    #[error("the disk has {free_bytes} bytes left, and a copy may take {bytes}")]
    NoRoom { bytes: u64, free_bytes: u64 },
    #[error("the table {name:?} would be missing in the copy")]
    Forgotten { name: String },
}

/// Blocks for as long as it takes to read the file and to write another.
pub(super) fn copy(shared: &Shared) -> Result<File, StoreError> {
    let path = shared.path.as_deref().ok_or_else(|| StoreError::new(COPYING, Refused::InMemory))?;
    check_room(path)?;
    // Only to begin is the file held: who mends it need not wait for a copy, which fails then.
    let reading = shared.with_file(|file| file.begin_read().map_err(failed(COPYING)))?;
    let file = unnamed(path).map_err(|error| StoreError::new(COPYING, error))?;
    let backend = file.try_clone().map(Unsynced).map_err(|error| StoreError::new(COPYING, error))?;
    let copy = Database::builder().set_cache_size(CACHE_BYTES).create_with_backend(backend);
    let copy = copy.map_err(failed(COPYING))?;
    let writing = copy.begin_write().map_err(failed(COPYING))?;
    copy_tables(&reading, &writing)?;
    writing.commit().map_err(failed(COPYING))?;
    Ok(file)
}

fn check_room(path: &Path) -> Result<(), StoreError> {
    let look = || -> io::Result<(u64, u64)> {
        let disk = statvfs(path)?;
        Ok((fs::metadata(path)?.len(), disk.blocks_available() * disk.fragment_size()))
    };
    let (bytes, free_bytes) = look().map_err(|error| StoreError::new(COPYING, error))?;
    if free_bytes >= bytes.saturating_add(LEFT_FREE_BYTES) {
        return Ok(());
    }
    Err(StoreError::new(COPYING, Refused::NoRoom { bytes, free_bytes }))
}

/// A file beside the other that is gone when the last who holds it is, even if the server is killed.
fn unnamed(path: &Path) -> io::Result<File> {
    let name = path.with_extension(format!("{}.copy", uuid::Uuid::now_v7()));
    let file = File::options().read(true).write(true).create_new(true).open(&name)?;
    fs::remove_file(&name)?;
    Ok(file)
}

fn copy_tables(reading: &ReadTransaction, writing: &WriteTransaction) -> Result<(), StoreError> {
    let mut copied = Vec::new();
    each_table!(|table| {
        copy_table(reading, writing, table)?;
        copied.push(table.name().to_owned());
    });
    // A table that somebody adds elsewhere is noticed by the first copy that there is.
    let there = reading.list_tables().map_err(failed(COPYING))?;
    let forgotten = there.map(|table| table.name().to_owned()).find(|name| !copied.contains(name));
    forgotten.map_or(Ok(()), |name| Err(StoreError::new(COPYING, Refused::Forgotten { name })))
}

fn copy_table<K: redb::Key + 'static, V: Value + 'static>(
    reading: &ReadTransaction,
    writing: &WriteTransaction,
    table: TableDefinition<'_, K, V>,
) -> Result<(), StoreError> {
    let from: ReadOnlyTable<K, V> = reading.open_table(table).map_err(failed(COPYING))?;
    let mut to = writing.open_table(table).map_err(failed(COPYING))?;
    for entry in from.iter().map_err(failed(COPYING))? {
        let (key, value) = entry.map_err(failed(COPYING))?;
        to.insert(key.value(), value.value()).map_err(failed(COPYING))?;
    }
    Ok(())
}

/// A file that needs to outlive nothing: syncing it would hold up the syncs of promises.
#[derive(Debug)]
struct Unsynced(File);

impl StorageBackend for Unsynced {
    fn len(&self) -> Result<u64, io::Error> {
        Ok(self.0.metadata()?.len())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        self.0.read_exact_at(out, offset)
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        self.0.write_all_at(data, offset)
    }
}
