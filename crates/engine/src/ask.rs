//! Questions about runs, and what can be done to them: those under way are in memory, the others in the store.

use std::sync::Arc;
use std::time::Duration;

use run::{Output, PrincipalName, Run, RunId, Stream};

use crate::engine::Engine;
use crate::live::RunHandle;
use crate::store::{Finished, RunStore, StoreError, Wanted};
use crate::watcher::Watcher;

/// Some runs, the newest first.
#[derive(Debug)]
pub struct Runs {
    pub runs: Vec<Arc<Run>>,
    /// Where to go on; nothing at the end.
    pub until: Option<RunId>,
}

impl Engine {
    /// The run as it stands, with its outputs.
    pub async fn get(&self, id: RunId) -> Result<Option<Arc<Run>>, StoreError> {
        if let Some(handle) = self.live(id) {
            return Ok(Some(self.inner.with_position(&handle.live)));
        }
        let store = Arc::clone(&self.inner.store);
        apart(move || store.get(id)?.map(|run| load(&*store, run)).transpose()).await
    }

    /// Whose run it is.
    pub async fn owner(&self, id: RunId) -> Result<Option<PrincipalName>, StoreError> {
        Ok(self.watch(id).await?.map(|watcher| watcher.run().principal.clone()))
    }

    /// A run that has not finished.
    pub fn live(&self, id: RunId) -> Option<RunHandle> {
        self.inner.runs().live.get(&id).map(|live| RunHandle { live: Arc::clone(live) })
    }

    /// The run when it has finished, or as it stands when the time is over. No time means no end.
    pub async fn wait(&self, id: RunId, time: Option<Duration>) -> Result<Option<Arc<Run>>, StoreError> {
        match self.live(id) {
            Some(handle) => Ok(Some(handle.wait(time).await)),
            None => self.get(id).await,
        }
    }

    /// Cancels the run if it hasn't ended; answers when every process of it is dead.
    pub async fn cancel(&self, id: RunId) -> Result<Option<Arc<Run>>, StoreError> {
        if let Some(handle) = self.live(id) {
            handle.live.unwant();
        }
        self.wait(id, None).await
    }

    /// Forgets a finished run.
    pub async fn forget(&self, id: RunId) -> Result<(), StoreError> {
        self.inner.store.forget(id).await
    }

    /// Follows a run, in whatever state.
    pub async fn watch(&self, id: RunId) -> Result<Option<Watcher>, StoreError> {
        if let Some(handle) = self.live(id) {
            return Ok(Some(handle.watch()));
        }
        let store = Arc::clone(&self.inner.store);
        let found = apart(move || store.get(id)).await?;
        Ok(found.map(|run| Watcher::stored(run, Arc::clone(&self.inner.store))))
    }

    /// Runs that match, the newest first, older than `before`; fewer than `limit` where their outputs would
    /// be more than `bytes`, or where too many had to be looked at.
    pub async fn list(
        &self,
        before: Option<RunId>,
        limit: usize,
        bytes: u64,
        matches: impl Fn(&Run) -> bool + Send + Sync + 'static,
    ) -> Result<Runs, StoreError> {
        let older = |id: RunId| before.is_none_or(|before| id < before);
        let live: Vec<Arc<Run>> = {
            let runs = self.inner.runs();
            let live = runs.live.values().filter(|live| older(live.id)).map(|live| live.run());
            live.filter(|run| matches(run)).collect()
        };
        let store = Arc::clone(&self.inner.store);
        apart(move || {
            let page = store.page(Wanted { before, runs: limit, bytes, matches: &matches })?;
            merge(live, page.runs, page.until, limit, |run| load(&*store, run))
        })
        .await
    }

    /// Writes down what is left to be, for good.
    pub async fn close(&self) {
        let store = Arc::clone(&self.inner.store);
        let closed = tokio::task::spawn_blocking(move || store.close()).await;
        if closed.is_err() {
            tracing::error!("the file of runs was not closed");
        }
    }

    /// A copy of everything that is remembered of runs and batches, as one file without a name.
    pub async fn copy_runs(&self) -> Result<std::fs::File, StoreError> {
        self.inner.store.copy().await
    }

    /// Why runs can't be remembered any more, if so.
    pub fn store_is_broken(&self) -> Option<StoreError> {
        self.inner.store.broken()
    }
}

/// Those under way among those that have finished. Behind `until` not all is known.
fn merge(
    live: Vec<Arc<Run>>,
    finished: Vec<Finished>,
    until: Option<RunId>,
    limit: usize,
    load: impl Fn(Finished) -> Result<Arc<Run>, StoreError>,
) -> Result<Runs, StoreError> {
    let known = |run: &Arc<Run>| until.is_none_or(|until| run.id > until);
    let live = live.into_iter().filter(known).map(Finished::loaded);
    let mut all: Vec<Finished> = finished.into_iter().chain(live).collect();
    all.sort_by_key(|run| std::cmp::Reverse(run.run.id));
    // One that finished while we looked is there twice.
    all.dedup_by_key(|run| run.run.id);
    let until = if all.len() > limit { all.get(limit - 1).map(|run| run.run.id) } else { until };
    let runs: Result<Vec<_>, _> = all.into_iter().take(limit).map(load).collect();
    Ok(Runs { runs: runs?, until })
}

/// The run with its outputs.
pub(crate) fn load(store: &dyn RunStore, stored: Finished) -> Result<Arc<Run>, StoreError> {
    if stored.loaded {
        return Ok(stored.run);
    }
    let mut run = Arc::unwrap_or_clone(stored.run);
    for (stream, shape) in [(Stream::Stdout, stored.stdout), (Stream::Stderr, stored.stderr)] {
        let most = usize::try_from(shape.bytes).unwrap_or(usize::MAX);
        let output = Output { bytes: store.read(run.id, stream, 0, most)?.into(), total: shape.total };
        match stream {
            Stream::Stdout => run.stdout = output,
            Stream::Stderr => run.stderr = output,
        }
    }
    Ok(Arc::new(run))
}

/// On a thread that may wait for the disk.
pub(crate) async fn apart<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|panic| Err(StoreError::new("look into the file of runs", panic)))
}
