//! A batch as others see it: how it stands, what has happened to it so far, and their wish that it end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Batch, BatchEvent, BatchId};
use crate::store::FinishedBatch;

#[derive(Debug)]
pub(super) struct LiveBatch {
    id: BatchId,
    /// Somebody may come back for it: it is written down, and outlives the server.
    pub(super) promised: bool,
    seen: Mutex<FinishedBatch>,
    /// How many events there are.
    news: watch::Sender<usize>,
    /// Nothing more happens to it here: it has ended, or is left to the next server.
    over: CancellationToken,
    pub(super) cancel: CancellationToken,
    /// A client wanted its end, and not only we.
    unwanted: AtomicBool,
}

impl LiveBatch {
    /// A batch that is taken; it ends with `server` at the latest.
    pub(super) fn begin(batch: Batch, promised: bool, server: &CancellationToken) -> Arc<Self> {
        let events = vec![BatchEvent::State(batch.state)];
        Self::new(FinishedBatch { batch: Arc::new(batch), events }, promised, server.child_token())
    }

    /// A batch that has ended and was written down.
    pub(super) fn ended(finished: FinishedBatch) -> Arc<Self> {
        let live = Self::new(finished, false, CancellationToken::new());
        live.over.cancel();
        live
    }

    fn new(seen: FinishedBatch, promised: bool, cancel: CancellationToken) -> Arc<Self> {
        Arc::new(Self {
            id: seen.batch.id,
            promised,
            news: watch::Sender::new(seen.events.len()),
            seen: Mutex::new(seen),
            over: CancellationToken::new(),
            cancel,
            unwanted: AtomicBool::new(false),
        })
    }

    pub(super) fn id(&self) -> BatchId {
        self.id
    }

    pub(super) fn batch(&self) -> Arc<Batch> {
        Arc::clone(&self.seen().batch)
    }

    pub(super) fn events(&self) -> Vec<BatchEvent> {
        self.seen().events.clone()
    }

    /// Changes the batch and says what has happened.
    pub(super) fn happen(&self, event: BatchEvent, change: impl FnOnce(&mut Batch)) {
        let events = {
            let mut seen = self.seen();
            change(Arc::make_mut(&mut seen.batch));
            seen.events.push(event);
            seen.events.len()
        };
        self.news.send_replace(events);
    }

    /// It has ended so.
    pub(super) fn end(&self, finished: FinishedBatch) {
        let events = finished.events.len();
        *self.seen() = finished;
        self.over.cancel();
        self.news.send_replace(events);
    }

    /// It is left to the next server; whoever waits is let go.
    pub(super) fn park(&self) {
        self.over.cancel();
        self.news.send_modify(|_| {});
    }

    /// Ends it because a client wants it.
    fn unwant(&self) {
        self.unwanted.store(true, Ordering::Release);
        self.cancel.cancel();
    }

    pub(super) fn is_unwanted(&self) -> bool {
        self.unwanted.load(Ordering::Acquire)
    }

    fn seen(&self) -> MutexGuard<'_, FinishedBatch> {
        // A panic under this lock leaves the batch whole.
        self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// A batch that was taken.
#[derive(Clone, Debug)]
pub struct BatchHandle {
    pub(super) live: Arc<LiveBatch>,
}

impl BatchHandle {
    pub fn id(&self) -> BatchId {
        self.live.id
    }

    pub fn batch(&self) -> Arc<Batch> {
        self.live.batch()
    }

    /// The batch when it has finished, or as it stands when the time is over or the server stops before it
    /// has begun.
    pub async fn wait(&self, time: Option<Duration>) -> Arc<Batch> {
        let over = self.live.over.cancelled();
        match time {
            None => over.await,
            Some(time) => drop(tokio::time::timeout(time, over).await),
        }
        self.batch()
    }

    /// How many events there are already.
    pub fn events(&self) -> usize {
        *self.live.news.borrow()
    }

    /// The event of that number, as soon as it has happened; `None` behind the last.
    pub async fn event(&self, number: usize) -> Option<BatchEvent> {
        let mut news = self.live.news.subscribe();
        let is_there = |events: &usize| *events > number || self.live.over.is_cancelled();
        // The sender lives as long as this handle.
        let _ = news.wait_for(is_there).await;
        self.live.seen().events.get(number).copied()
    }

    /// Ends the batch and all its runs; answers when every process of it is dead.
    pub async fn cancel(&self) -> Arc<Batch> {
        self.live.unwant();
        self.wait(None).await
    }

    pub fn cancel_on_drop(&self) -> CancelBatchOnDrop {
        CancelBatchOnDrop { live: Some(Arc::clone(&self.live)) }
    }
}

/// Cancels a batch unless it is disarmed: for clients that wait, and may go away.
#[derive(Debug)]
pub struct CancelBatchOnDrop {
    live: Option<Arc<LiveBatch>>,
}

impl CancelBatchOnDrop {
    /// The client has its answer: the batch is left alone.
    pub fn disarm(mut self) {
        self.live = None;
    }
}

impl Drop for CancelBatchOnDrop {
    fn drop(&mut self) {
        if let Some(live) = &self.live {
            live.unwant();
        }
    }
}
