//! Batches by their ids: those under way, and finished ones that could not be written down, as long as there is
//! room for them.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::BatchId;
use super::live::LiveBatch;

#[derive(Debug)]
pub(super) struct Shelf {
    kept: usize,
    kept_bytes: u64,
    kept_for: Duration,
    batches: HashMap<BatchId, Arc<LiveBatch>>,
    /// In the order in which they finished.
    finished: VecDeque<(Instant, BatchId, u64)>,
    bytes: u64,
}

impl Shelf {
    pub(super) fn new(kept: usize, kept_bytes: u64, kept_for: Duration) -> Self {
        Self { kept, kept_bytes, kept_for, batches: HashMap::new(), finished: VecDeque::new(), bytes: 0 }
    }

    pub(super) fn begin(&mut self, batch: Arc<LiveBatch>) {
        self.batches.insert(batch.id(), batch);
    }

    pub(super) fn finish(&mut self, id: BatchId, bytes: u64, written: bool, now: Instant) {
        if written {
            return self.remove(id);
        }
        self.finished.push_back((now, id, bytes));
        self.bytes += bytes;
        self.expire(now);
    }

    pub(super) fn remove(&mut self, id: BatchId) {
        self.batches.remove(&id);
    }

    pub(super) fn all(&self) -> Vec<Arc<LiveBatch>> {
        self.batches.values().cloned().collect()
    }

    pub(super) fn get(&mut self, id: BatchId, now: Instant) -> Option<Arc<LiveBatch>> {
        self.expire(now);
        self.batches.get(&id).cloned()
    }

    fn expire(&mut self, now: Instant) {
        while let Some((at, id, bytes)) = self.finished.front().copied() {
            let too_many = self.finished.len() > self.kept || self.bytes > self.kept_bytes;
            if !too_many && now.saturating_duration_since(at) <= self.kept_for {
                return;
            }
            self.finished.pop_front();
            self.bytes -= bytes;
            self.batches.remove(&id);
        }
    }
}
