//! The tables of the file, and what it takes to open them.

use std::path::Path;

use redb::{Database, ReadableTable, TableDefinition};
use run::{RunId, Stream};

use super::StoreError;
use super::format::FORMAT;
use crate::batch::BatchId;

/// Finished runs without their outputs.
pub(super) const RUNS: TableDefinition<'_, u128, &[u8]> = TableDefinition::new("runs");
/// Pieces of outputs, by run, output and number.
pub(super) const OUTPUTS: TableDefinition<'_, (u128, u8, u32), &[u8]> = TableDefinition::new("outputs");
/// Finished runs in the order in which they are forgotten, each with the bytes of its outputs.
pub(super) const EXPIRY: TableDefinition<'_, (i64, u128), u64> = TableDefinition::new("expiry");
/// Runs that were promised and have not ended.
pub(super) const PROMISED: TableDefinition<'_, u128, &[u8]> = TableDefinition::new("promised");
/// Those of them that have started, and when.
pub(super) const STARTED: TableDefinition<'_, u128, i64> = TableDefinition::new("started");
/// Clients' keys, by owner and name.
pub(super) const KEYS: TableDefinition<'_, (&str, &str), &[u8]> = TableDefinition::new("keys");
/// Keys in the order in which they are forgotten.
pub(super) const KEY_EXPIRY: TableDefinition<'_, (i64, &str, &str), ()> = TableDefinition::new("key_expiry");
/// Finished batches without their runs.
pub(super) const BATCHES: TableDefinition<'_, u128, &[u8]> = TableDefinition::new("batches");
/// The results of batches, finished or not, by batch and place.
pub(super) const BATCH_RESULTS: TableDefinition<'_, (u128, u32), &[u8]> =
    TableDefinition::new("batch_results");
/// Finished batches in the order in which they are forgotten, each with the bytes that it takes.
pub(super) const BATCH_EXPIRY: TableDefinition<'_, (i64, u128), u64> = TableDefinition::new("batch_expiry");
/// Batches that were promised and have not ended.
pub(super) const BATCHES_PROMISED: TableDefinition<'_, u128, &[u8]> =
    TableDefinition::new("batches_promised");
/// Those of them that have begun, and when.
pub(super) const BATCHES_BEGUN: TableDefinition<'_, u128, i64> = TableDefinition::new("batches_begun");
/// What is written to find out whether anything can be.
pub(super) const TRIAL: TableDefinition<'_, u8, &[u8]> = TableDefinition::new("trial");
const TRIAL_BYTES: usize = 256 * 1024;
pub(super) const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");

/// Does the same with each table there is: they are of several types.
macro_rules! each_table {
    (|$table:ident| $work:expr) => {
        each_table!(@each $table, $work; META TRIAL RUNS OUTPUTS EXPIRY PROMISED STARTED KEYS KEY_EXPIRY BATCHES
            BATCH_RESULTS BATCH_EXPIRY BATCHES_PROMISED BATCHES_BEGUN)
    };
    (@each $table:ident, $work:expr; $($name:ident)+) => {{
        $(
            let $table = super::tables::$name;
            $work;
        )+
    }};
}
pub(super) use each_table;

/// How much of an output one piece holds: what is read at once by who reads a part of it.
pub(super) const PIECE_BYTES: usize = 64 * 1024;

const OPENING: &str = "open the file of runs";

/// What the database may hold of its file in memory.
pub(super) const CACHE_BYTES: usize = 4 * 1024 * 1024;

pub(super) fn number(id: RunId) -> u128 {
    id.0.as_u128()
}

pub(super) fn number_of_batch(id: BatchId) -> u128 {
    id.0.as_u128()
}

pub(super) fn place(stream: Stream) -> u8 {
    match stream {
        Stream::Stdout => 1,
        Stream::Stderr => 2,
    }
}

/// What went wrong in the database, in our words.
pub(super) fn failed<E: Into<redb::Error>>(doing: &'static str) -> impl Fn(E) -> StoreError {
    move |error| StoreError::new(doing, error.into())
}

/// A file that no other version has written in a way that we don't know.
#[derive(Debug, thiserror::Error)]
#[error(
    "the file has format {found}, and this version knows {FORMAT}; start the version that wrote it, or move the file away"
)]
struct UnknownFormat {
    found: u64,
}

/// Finds out whether there is room to write: what it writes it removes again.
pub(super) fn try_to_write(file: &Database) -> Result<(), StoreError> {
    const TRYING: &str = "write to the file of runs";
    for bytes in [Some(vec![0; TRIAL_BYTES]), None] {
        let change = file.begin_write().map_err(failed(TRYING))?;
        {
            let mut trial = change.open_table(TRIAL).map_err(failed(TRYING))?;
            match bytes {
                Some(bytes) => drop(trial.insert(0, &*bytes).map_err(failed(TRYING))?),
                None => drop(trial.remove(0).map_err(failed(TRYING))?),
            }
        }
        change.commit().map_err(failed(TRYING))?;
    }
    Ok(())
}

/// Opens a file that is there. There need not be room to write to it.
pub(super) fn open_as_it_is(path: &Path) -> Result<Database, StoreError> {
    builder().open(path).map_err(failed(OPENING))
}

fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

pub(super) fn open(path: Option<&Path>) -> Result<Database, StoreError> {
    let database = match path {
        Some(path) => builder().create(path),
        None => builder().create_with_backend(redb::backends::InMemoryBackend::new()),
    };
    let database = database.map_err(failed(OPENING))?;
    let change = database.begin_write().map_err(failed(OPENING))?;
    {
        let mut meta = change.open_table(META).map_err(failed(OPENING))?;
        let found = meta.get("format").map_err(failed(OPENING))?.map(|found| found.value());
        match found {
            None => drop(meta.insert("format", FORMAT).map_err(failed(OPENING))?),
            Some(FORMAT) => {}
            Some(found) => return Err(StoreError::new(OPENING, UnknownFormat { found })),
        }
    }
    // Tables are made by opening them; a reader could not.
    each_table!(|table| drop(change.open_table(table).map_err(failed(OPENING))?));
    change.commit().map_err(failed(OPENING))?;
    Ok(database)
}
