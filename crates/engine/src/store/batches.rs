//! What is remembered of batches, in the file of runs: those that were promised to somebody and have not ended,
//! each with the results that it has so far, and those that have. Outputs lie with the runs that wrote them.

use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::{Key, Known, StoreError};
use crate::batch::{Batch, BatchEvent, BatchId, BatchSpec, Listed, PreparedRecord, Test};

/// A batch that somebody was or will be told of, and that must therefore come to its end.
#[derive(Clone, Debug)]
pub struct BatchPromise {
    pub batch: Arc<Batch>,
    pub spec: Arc<BatchSpec>,
    pub key: Option<Key>,
}

/// One result of a batch: of the test of that number, or of its prepare command.
#[derive(Clone, Debug)]
pub struct BatchResult {
    pub test: Option<usize>,
    /// The number of the event that tells it.
    pub event: usize,
    pub result: Test,
}

/// A finished batch, and what has happened to it.
#[derive(Clone, Debug)]
pub struct FinishedBatch {
    pub batch: Arc<Batch>,
    pub events: Vec<BatchEvent>,
}

/// A promised batch that had not ended when the server did.
#[derive(Clone, Debug)]
pub struct UnfinishedBatch {
    pub batch: Batch,
    pub spec: BatchSpec,
    /// What it stands on, where an earlier batch has prepared that.
    pub ground: Option<PreparedRecord>,
    pub begun: bool,
    /// In the order in which they were told.
    pub results: Vec<BatchResult>,
}

/// What a list of finished batches is to hold.
#[derive(Clone, Copy)]
pub struct WantedBatches<'a> {
    /// Only batches that are older than this one.
    pub before: Option<BatchId>,
    pub batches: usize,
    pub matches: &'a (dyn Fn(&Batch) -> bool + Sync),
}

impl fmt::Debug for WantedBatches<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WantedBatches").field("before", &self.before).finish_non_exhaustive()
    }
}

/// Where batches are remembered. What a future stands for is durable when the future has ended well.
pub trait BatchStore: fmt::Debug + Send + Sync + 'static {
    /// Remembers a batch that has not begun, unless its key already stands for another.
    fn promise(&self, promise: BatchPromise) -> BoxFuture<'_, Result<Option<Known>, StoreError>>;

    /// What a key stands for.
    fn known(&self, key: &Key) -> Result<Option<Known>, StoreError>;

    /// Remembers that the first program of a promised batch is about to start.
    fn begun(&self, id: BatchId) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Remembers a result of a promised batch: many of them share a sync of the disk.
    fn result(&self, id: BatchId, result: BatchResult) -> BoxFuture<'static, Result<(), StoreError>>;

    /// Remembers how a batch has ended, with those results that were not written yet. `urgent`: somebody
    /// waits.
    fn kept(
        &self,
        batch: FinishedBatch,
        results: Vec<BatchResult>,
        urgent: bool,
    ) -> BoxFuture<'static, Result<(), StoreError>>;

    /// Forgets a batch and all its runs.
    fn forget(&self, id: BatchId) -> BoxFuture<'_, Result<(), StoreError>>;

    fn get(&self, id: BatchId) -> Result<Option<FinishedBatch>, StoreError>;

    /// Finished batches, the newest first, and where to go on.
    fn page(&self, wanted: WantedBatches<'_>) -> Result<(Vec<Listed>, Option<BatchId>), StoreError>;

    /// What was promised before and not kept, in the order in which it was promised.
    fn unfinished(&self) -> Result<Vec<UnfinishedBatch>, StoreError>;
}
