//! A batch as others see it: how it stands, what has happened to it so far, and their wish that it end.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Batch, BatchId, BatchState};

/// What happens to a batch, in its order. An event's number is its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchEvent {
    State(BatchState),
    /// The prepare command has ended.
    Prepared,
    /// The test of that number has ended, or will never be run.
    Tested(usize),
    /// There is nothing more.
    Result,
}

#[derive(Debug)]
pub(super) struct LiveBatch {
    id: BatchId,
    seen: Mutex<(Arc<Batch>, Vec<BatchEvent>)>,
    /// How many events there are.
    news: watch::Sender<usize>,
    pub(super) cancel: CancellationToken,
}

impl LiveBatch {
    pub(super) fn new(batch: Batch) -> Arc<Self> {
        let events = vec![BatchEvent::State(batch.state)];
        Arc::new(Self {
            id: batch.id,
            news: watch::Sender::new(events.len()),
            seen: Mutex::new((Arc::new(batch), events)),
            cancel: CancellationToken::new(),
        })
    }

    pub(super) fn id(&self) -> BatchId {
        self.id
    }

    pub(super) fn batch(&self) -> Arc<Batch> {
        Arc::clone(&self.seen().0)
    }

    /// Changes the batch and says what has happened.
    pub(super) fn happen(&self, event: BatchEvent, change: impl FnOnce(&mut Batch)) {
        let events = {
            let mut seen = self.seen();
            change(Arc::make_mut(&mut seen.0));
            seen.1.push(event);
            seen.1.len()
        };
        self.news.send_replace(events);
    }

    fn seen(&self) -> MutexGuard<'_, (Arc<Batch>, Vec<BatchEvent>)> {
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

    /// The batch when it has finished, or as it stands when the time is over.
    pub async fn wait(&self, time: Option<Duration>) -> Arc<Batch> {
        let mut news = self.live.news.subscribe();
        let finished = news.wait_for(|_| self.live.batch().state == BatchState::Finished);
        match time {
            None => drop(finished.await),
            Some(time) => drop(tokio::time::timeout(time, finished).await),
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
        let is_there =
            |events: &usize| *events > number || self.live.seen().1.last() == Some(&BatchEvent::Result);
        // The sender lives as long as this handle.
        let _ = news.wait_for(is_there).await;
        self.live.seen().1.get(number).copied()
    }

    /// Ends the batch and all its runs; answers when every process of it is dead.
    pub async fn cancel(&self) -> Arc<Batch> {
        self.live.cancel.cancel();
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
            live.cancel.cancel();
        }
    }
}
