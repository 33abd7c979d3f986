//! Runs by their ids: those under way, and the finished ones as long as there is room for them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use run::{OutputContent, Run, RunId};

/// How much is remembered of finished runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keep {
    pub(crate) runs: usize,
    pub(crate) bytes: u64,
    pub(crate) time: Duration,
}

/// Finished runs, bounded by number, by the bytes of their outputs and by age.
#[derive(Debug)]
pub(crate) struct FinishedRuns {
    keep: Keep,
    runs: BTreeMap<RunId, Arc<Run>>,
    /// In the order in which they finished.
    order: VecDeque<(Instant, RunId, u64)>,
    bytes: u64,
}

impl FinishedRuns {
    pub(crate) fn new(keep: Keep) -> Self {
        Self { keep, runs: BTreeMap::new(), order: VecDeque::new(), bytes: 0 }
    }

    pub(crate) fn insert(&mut self, run: Arc<Run>, now: Instant) {
        let bytes = weight(&run);
        self.order.push_back((now, run.id, bytes));
        self.bytes += bytes;
        self.runs.insert(run.id, run);
        self.expire(now);
    }

    /// The same run with more known of it: what it weighs stays as it was.
    pub(crate) fn replace(&mut self, run: Arc<Run>) {
        if let Some(kept) = self.runs.get_mut(&run.id) {
            *kept = run;
        }
    }

    pub(crate) fn get(&self, id: RunId) -> Option<Arc<Run>> {
        self.runs.get(&id).cloned()
    }

    pub(crate) fn remove(&mut self, id: RunId) {
        if self.runs.remove(&id).is_some() {
            self.order.retain(|(_, kept, bytes)| {
                if *kept == id {
                    self.bytes -= bytes;
                }
                *kept != id
            });
        }
    }

    /// The newest first.
    pub(crate) fn newest(&self) -> impl Iterator<Item = &Arc<Run>> {
        self.runs.values().rev()
    }

    pub(crate) fn expire(&mut self, now: Instant) {
        while let Some((at, id, bytes)) = self.order.front().copied() {
            let too_many = self.order.len() > self.keep.runs || self.bytes > self.keep.bytes;
            let too_old = now.saturating_duration_since(at) > self.keep.time;
            if !too_many && !too_old {
                return;
            }
            self.order.pop_front();
            self.bytes -= bytes;
            self.runs.remove(&id);
        }
    }
}

fn weight(run: &Run) -> u64 {
    let inline = run.outputs.iter().map(|output| match &output.content {
        OutputContent::Bytes(bytes) => bytes.len(),
        OutputContent::Stored { .. } | OutputContent::Refused(_) => 0,
    });
    (run.stdout.bytes.len() + run.stderr.bytes.len() + inline.sum::<usize>()) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::tests_support::finished_run;

    fn ids(store: &FinishedRuns) -> Vec<RunId> {
        store.newest().map(|run| run.id).collect()
    }

    #[test]
    fn the_oldest_go_first_when_there_are_too_many_too_large_or_too_old_ones() {
        let keep = Keep { runs: 3, bytes: 100, time: Duration::from_secs(60) };
        let mut store = FinishedRuns::new(keep);
        let start = Instant::now();
        let runs: Vec<_> = (0..5).map(|_| finished_run(30)).collect();
        for run in &runs[..4] {
            store.insert(Arc::clone(run), start);
        }
        assert_eq!(ids(&store), [runs[3].id, runs[2].id, runs[1].id]);
        let large = finished_run(80);
        store.insert(Arc::clone(&large), start + Duration::from_secs(30));
        assert_eq!(ids(&store), [large.id]);
        store.expire(start + Duration::from_secs(91));
        assert_eq!(ids(&store), []);
        assert_eq!(store.bytes, 0);
    }

    #[test]
    fn a_removed_run_frees_its_bytes() {
        let mut store = FinishedRuns::new(Keep { runs: 3, bytes: 100, time: Duration::MAX });
        let run = finished_run(30);
        store.insert(Arc::clone(&run), Instant::now());
        store.remove(run.id);
        assert_eq!((store.bytes, store.order.len()), (0, 0));
    }
}
