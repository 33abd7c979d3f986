//! What is to be written, collected: many runs share one sync of the disk. Who was promised something waits
//! for it; for the others it happens a little later.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use run::{Run, RunId};
use tokio::sync::{Notify, oneshot};

use super::batches::{BatchPromise, BatchResult, FinishedBatch};
use super::format::inline_bytes;
use super::{Known, Promise, StoreError};
use crate::batch::BatchId;

/// How long what nobody waits for may lie around. It is lost if the server is killed meanwhile.
pub(super) const LINGER: Duration = Duration::from_millis(250);

/// How long results of batches are collected: nobody is told of one before it is written, and many are written
/// together.
pub(super) const SOON: Duration = Duration::from_millis(20);

/// How many finished runs may wait to be written, and how much they may hold, before runs are slowed down.
const PENDING_RUNS: usize = 2_000;
const PENDING_BYTES: usize = 32 * 1024 * 1024;

pub(super) type Answer<T> = oneshot::Sender<Result<T, StoreError>>;

/// One thing to be written.
#[derive(Debug)]
pub(super) enum Change {
    Promise(Promise, Answer<Option<Known>>),
    Started(RunId, Timestamp, Answer<()>),
    /// The run itself is among the pending.
    Finished(RunId, Option<Answer<()>>),
    TornDown(RunId, f64),
    Forget(RunId, Answer<()>),
    /// The end of a promised run, once more: it could not be written before.
    Owed(RunId),
    Batch(BatchChange),
    /// Whoever waits for it knows that what was to be written before is.
    Nothing(Answer<()>),
}

/// The same of batches.
#[derive(Debug)]
pub(super) enum BatchChange {
    Promise(BatchPromise, Answer<Option<Known>>),
    Begun(BatchId, Timestamp, Answer<()>),
    Result(BatchId, BatchResult, Answer<()>),
    Finished(FinishedBatch, Vec<BatchResult>, Answer<()>),
    Forget(BatchId, Answer<()>),
    Owed(FinishedBatch, Vec<BatchResult>),
}

impl Change {
    /// The same once more, for nobody who waits, where it is how something has ended that was promised.
    fn owed(&self) -> Option<Self> {
        match self {
            Change::Finished(id, Some(_)) | Change::Owed(id) => Some(Change::Owed(*id)),
            Change::Batch(BatchChange::Finished(batch, results, _) | BatchChange::Owed(batch, results)) => {
                Some(Change::Batch(BatchChange::Owed(batch.clone(), results.clone())))
            }
            Change::Promise(..)
            | Change::Started(..)
            | Change::Finished(_, None)
            | Change::TornDown(..)
            | Change::Forget(..)
            | Change::Nothing(_)
            | Change::Batch(
                BatchChange::Promise(..)
                | BatchChange::Begun(..)
                | BatchChange::Result(..)
                | BatchChange::Forget(..),
            ) => None,
        }
    }
}

/// Changes that are written together, with the runs that they speak of.
#[derive(Debug, Default)]
pub(super) struct Collected {
    pub changes: Vec<Change>,
    pub runs: HashMap<RunId, Arc<Run>>,
}

impl Collected {
    /// What must be written at last, should it fail now.
    pub(super) fn owed(&self) -> Vec<Change> {
        self.changes.iter().filter_map(Change::owed).collect()
    }
}

#[derive(Debug, Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    /// Wakes the writer.
    work: Condvar,
    /// Wakes who waits for room.
    room: Notify,
}

#[derive(Debug, Default)]
struct State {
    changes: Vec<Change>,
    /// When they are to be written.
    due: Option<Instant>,
    closing: bool,
    /// Finished runs that are not in the file yet.
    pending: BTreeMap<RunId, Arc<Run>>,
    bytes: usize,
}

impl State {
    /// Says whether it is to be written earlier than all that there was.
    fn push(&mut self, change: Change, within: Duration) -> bool {
        self.changes.push(change);
        let (due, before) = (Instant::now() + within, self.due);
        self.due = Some(before.map_or(due, |before| before.min(due)));
        self.due != before
    }

    fn full(&self) -> bool {
        self.pending.len() >= PENDING_RUNS || self.bytes >= PENDING_BYTES
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that holds this lock can panic half way.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// A change that is to be written within that time, with whatever else there is by then.
    pub(super) fn push(&self, change: Change, within: Duration) {
        if self.lock().push(change, within) {
            self.work.notify_one();
        }
    }

    pub(super) fn finished(&self, run: Arc<Run>, answer: Option<Answer<()>>) {
        let mut state = self.lock();
        let urgent = answer.is_some() || state.full();
        let earlier =
            state.push(Change::Finished(run.id, answer), if urgent { Duration::ZERO } else { LINGER });
        state.bytes += weight(&run);
        state.pending.insert(run.id, run);
        drop(state);
        if earlier {
            self.work.notify_one();
        }
    }

    /// Changes the run itself while it is not written; else it has to be written again.
    pub(super) fn torn_down(&self, id: RunId, took_ms: f64) {
        let mut state = self.lock();
        let waits = |change: &Change| matches!(change, Change::Finished(waiting, _) if *waiting == id);
        let waits = state.changes.iter().rev().any(waits);
        match state.pending.get_mut(&id) {
            Some(run) if waits => Arc::make_mut(run).timings.teardown_ms = Some(took_ms),
            _ => {
                if state.push(Change::TornDown(id, took_ms), LINGER) {
                    self.work.notify_one();
                }
            }
        }
    }

    pub(super) fn pending(&self, id: RunId) -> Option<Arc<Run>> {
        self.lock().pending.get(&id).cloned()
    }

    /// Those older than `before`, the newest first.
    pub(super) fn all_pending(&self, before: Option<RunId>) -> Vec<Arc<Run>> {
        let state = self.lock();
        let older = state.pending.values().rev().filter(|run| before.is_none_or(|before| run.id < before));
        older.cloned().collect()
    }

    pub(super) fn is_full(&self) -> bool {
        let state = self.lock();
        state.full() && !state.closing
    }

    pub(super) async fn room(&self) {
        loop {
            let room = self.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            if !self.is_full() {
                return;
            }
            room.await;
        }
    }

    /// What is to be written next, at the latest after `idle` although it may be nothing; `None` at the end.
    pub(super) fn next(&self, idle: Duration) -> Option<Collected> {
        let mut state = self.lock();
        let asleep = Instant::now();
        loop {
            let left = match state.due {
                _ if state.closing => Duration::ZERO,
                Some(due) => due.saturating_duration_since(Instant::now()),
                None => idle.saturating_sub(asleep.elapsed()),
            };
            if left.is_zero() {
                break;
            }
            state = self.work.wait_timeout(state, left).unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
        if state.closing && state.changes.is_empty() {
            return None;
        }
        state.due = None;
        let changes = std::mem::take(&mut state.changes);
        let finished = changes.iter().filter_map(|change| match change {
            Change::Finished(id, _) => Some(*id),
            _ => None,
        });
        let runs = finished.filter_map(|id| Some((id, Arc::clone(state.pending.get(&id)?)))).collect();
        Some(Collected { changes, runs })
    }

    /// They are in the file now, or never will be.
    pub(super) fn done(&self, runs: &HashMap<RunId, Arc<Run>>) {
        let mut state = self.lock();
        for id in runs.keys() {
            if let Some(run) = state.pending.remove(id) {
                state.bytes -= weight(&run);
            }
        }
        drop(state);
        self.room.notify_waiters();
    }

    /// What is there is still written; then the writer ends.
    pub(super) fn close(&self) {
        self.lock().closing = true;
        self.work.notify_one();
        self.room.notify_waiters();
    }
}

fn weight(run: &Run) -> usize {
    run.stdout.bytes.len() + run.stderr.bytes.len() + inline_bytes(run) as usize
}
