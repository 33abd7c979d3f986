//! What is remembered of runs beyond their lives: those that were promised to somebody and have not ended, and
//! those that have. A promise survives the server; a finished run is kept as long as there is room for it.

pub(crate) mod embedded;

mod batch_reader;
mod batch_writer;
mod batches;
mod copy;
mod format;
mod queue;
mod recover;
mod tables;
mod writer;

use std::fmt;
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use jiff::Timestamp;
use run::{Encoding, Output, Run, RunId, RunSpec, Stream};
use serde::{Deserialize, Serialize};

pub use batches::{BatchPromise, BatchResult, BatchStore, FinishedBatch, UnfinishedBatch, WantedBatches};
pub use embedded::EmbeddedStore;

/// How much is remembered of finished runs and batches.
#[derive(Clone, Copy, Debug)]
pub struct Keep {
    pub runs: usize,
    /// Of their outputs; and what is written of batches takes no more than that, either.
    pub bytes: u64,
    pub batches: usize,
    pub time: Duration,
    /// How long a key stands for the run that was made under it, which is kept as long.
    pub keys: Duration,
}

/// Why the store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[error("can't {doing}")]
pub struct StoreError {
    pub doing: &'static str,
    #[source]
    pub source: Arc<dyn std::error::Error + Send + Sync>,
}

impl StoreError {
    pub fn new(doing: &'static str, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self { doing, source: Arc::new(source) }
    }
}

impl Clone for StoreError {
    fn clone(&self) -> Self {
        Self { doing: self.doing, source: Arc::clone(&self.source) }
    }
}

/// A client's own name for a request, by which it can ask again without running twice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Key {
    /// Whose key it is: two clients may use the same word.
    pub owner: String,
    pub name: String,
    /// What was asked under it.
    pub body: [u8; 32],
}

/// A run that somebody was or will be told of, and that must therefore come to its end.
#[derive(Clone, Debug)]
pub struct Promise {
    pub run: Arc<Run>,
    pub spec: Arc<RunSpec>,
    pub key: Option<Key>,
}

/// The run that was made under a key, or the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// A batch's has the same form. The body that belongs to a key says which of them it is.
    pub id: RunId,
    /// Whether the same was asked then.
    pub same: bool,
}

/// A promised run that had not ended when the server did.
#[derive(Clone, Debug)]
pub struct Unfinished {
    pub run: Run,
    pub spec: RunSpec,
    pub started_at: Option<Timestamp>,
}

/// One kept output without its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    pub bytes: u64,
    pub total: u64,
    pub encoding: Encoding,
}

impl Shape {
    pub fn of(output: &Output) -> Self {
        let text = std::str::from_utf8(&output.bytes).is_ok();
        let encoding = if text { Encoding::Utf8 } else { Encoding::Base64 };
        Self { bytes: output.bytes.len() as u64, total: output.total, encoding }
    }
}

/// A finished run whose outputs may have been left where they are.
#[derive(Clone, Debug)]
pub struct Finished {
    pub run: Arc<Run>,
    pub stdout: Shape,
    pub stderr: Shape,
    /// Whether `run` has its outputs.
    pub loaded: bool,
}

impl Finished {
    pub(crate) fn loaded(run: Arc<Run>) -> Self {
        Self { stdout: Shape::of(&run.stdout), stderr: Shape::of(&run.stderr), run, loaded: true }
    }

    pub fn shape(&self, stream: Stream) -> Shape {
        match stream {
            Stream::Stdout => self.stdout,
            Stream::Stderr => self.stderr,
        }
    }

    fn output_bytes(&self) -> u64 {
        self.stdout.bytes + self.stderr.bytes + format::inline_bytes(&self.run)
    }
}

/// What a list of finished runs is to hold.
#[derive(Clone, Copy)]
pub struct Wanted<'a> {
    /// Only runs that are older than this one.
    pub before: Option<RunId>,
    pub runs: usize,
    /// No more output than this, unless one run alone has more.
    pub bytes: u64,
    pub matches: &'a (dyn Fn(&Run) -> bool + Sync),
}

impl fmt::Debug for Wanted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wanted")
            .field("before", &self.before)
            .field("runs", &self.runs)
            .finish_non_exhaustive()
    }
}

/// Finished runs, the newest first.
#[derive(Debug, Default)]
pub struct Page {
    pub runs: Vec<Finished>,
    /// Where to go on; nothing where everything was looked at.
    pub until: Option<RunId>,
}

/// Where runs are remembered. What returns a future is durable when the future has ended well; what does
/// not is written soon after.
pub trait RunStore: fmt::Debug + Send + Sync + 'static {
    /// Remembers a run that has not started, unless its key already stands for another.
    fn promise(&self, promise: Promise) -> BoxFuture<'_, Result<Option<Known>, StoreError>>;

    /// What a key stands for.
    fn known(&self, key: &Key) -> Result<Option<Known>, StoreError>;

    /// Remembers that a promised run is about to start: from here on it is never started again.
    fn started(&self, id: RunId, at: Timestamp) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Remembers how a promised run has ended.
    fn kept(&self, run: Arc<Run>) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Remembers a finished run that nobody was promised.
    fn remember(&self, run: Arc<Run>);

    /// What is known of a finished run only after its end.
    fn torn_down(&self, id: RunId, took_ms: f64);

    /// Whether so much is still to be written that no more should come: a disk that is slower than the runs
    /// slows them.
    fn is_full(&self) -> bool;

    /// Ends when there is room again.
    fn room(&self) -> BoxFuture<'_, ()>;

    fn forget(&self, id: RunId) -> BoxFuture<'_, Result<(), StoreError>>;

    fn get(&self, id: RunId) -> Result<Option<Finished>, StoreError>;

    /// A part of a kept output; nothing where there is none any more.
    fn read(&self, id: RunId, stream: Stream, offset: u64, most: usize) -> Result<Vec<u8>, StoreError>;

    fn page(&self, wanted: Wanted<'_>) -> Result<Page, StoreError>;

    /// What was promised before and not kept, in the order in which it was promised.
    fn unfinished(&self) -> Result<Vec<Unfinished>, StoreError>;

    /// A copy of everything that was written or was to be, to be put in the place of the file later. It has no name.
    fn copy(&self) -> BoxFuture<'_, Result<File, StoreError>>;

    /// Why nothing can be remembered any more, if so.
    fn broken(&self) -> Option<StoreError>;

    /// Writes what is left; nothing is remembered after that. Blocks.
    fn close(&self);
}
