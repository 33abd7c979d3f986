//! Questions about batches, and what can be done to them: those under way are in memory, the others in the store.

use std::sync::Arc;

use super::live::LiveBatch;
use super::{Batch, BatchHandle, BatchId, Batches, Listed};
use crate::store::{BatchStore, FinishedBatch, StoreError, WantedBatches};

/// Some batches, the newest first.
#[derive(Debug)]
pub struct FoundBatches {
    pub batches: Vec<Listed>,
    /// Where to go on; nothing at the end.
    pub until: Option<BatchId>,
}

impl Batches {
    /// A batch, in whatever state.
    pub async fn get(&self, id: BatchId) -> Result<Option<BatchHandle>, StoreError> {
        let here = self.shelf().get(id, std::time::Instant::now());
        if let Some(live) = here {
            return Ok(Some(BatchHandle { live }));
        }
        let store = Arc::clone(&self.inner.store);
        let found = crate::ask::apart(move || store.get(id)).await?;
        Ok(found.map(|found| BatchHandle { live: LiveBatch::ended(self.still_prepared(found)) }))
    }

    /// What is prepared goes earlier than the batch that has made it.
    fn still_prepared(&self, found: FinishedBatch) -> FinishedBatch {
        let there = |batch: &Batch| batch.prepared.is_none_or(|info| self.inner.prepared.has(info.id));
        if there(&found.batch) {
            return found;
        }
        let batch = Batch { prepared: None, ..Arc::unwrap_or_clone(found.batch) };
        FinishedBatch { batch: Arc::new(batch), ..found }
    }

    /// Batches that match, the newest first, older than `before`.
    pub async fn list(
        &self,
        before: Option<BatchId>,
        limit: usize,
        matches: impl Fn(&Batch) -> bool + Send + Sync + 'static,
    ) -> Result<FoundBatches, StoreError> {
        let here = self.shelf().all();
        let older = here.iter().filter(|live| before.is_none_or(|before| live.id() < before));
        let live: Vec<Listed> = older
            .map(|live| live.batch())
            .filter(|batch| matches(batch))
            .map(|batch| batch.listed())
            .collect();
        let store = Arc::clone(&self.inner.store);
        let page = move || {
            let wanted = WantedBatches { before, batches: limit, matches: &matches };
            BatchStore::page(&*store, wanted)
        };
        let (finished, until) = crate::ask::apart(page).await?;
        Ok(merge(live, finished, until, limit))
    }

    /// Forgets a finished batch and all its runs.
    pub async fn forget(&self, id: BatchId) -> Result<(), StoreError> {
        self.inner.store.forget(id).await?;
        self.shelf().remove(id);
        Ok(())
    }
}

/// Those under way among those that have finished. Behind `until` not all is known.
fn merge(live: Vec<Listed>, finished: Vec<Listed>, until: Option<BatchId>, limit: usize) -> FoundBatches {
    let known = |listed: &Listed| until.is_none_or(|until| listed.batch.id > until);
    let mut all: Vec<Listed> = live.into_iter().filter(known).chain(finished).collect();
    all.sort_by_key(|listed| std::cmp::Reverse(listed.batch.id));
    // One that was just written is there twice.
    all.dedup_by_key(|listed| listed.batch.id);
    let until = if all.len() > limit { all.get(limit - 1).map(|listed| listed.batch.id) } else { until };
    all.truncate(limit);
    FoundBatches { batches: all, until }
}
