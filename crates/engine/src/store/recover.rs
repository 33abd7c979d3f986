//! A file that can't be written just now, because its disk is full for instance: what must not be lost waits, and
//! from time to time the file is opened anew and tried again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use run::{Run, RunId};

use super::queue::{Change, Collected};

/// How long a file that could not be written is left alone.
const PAUSE_MIN: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(15);

/// How what was promised has ended, where that could not be written. It is no more than had been promised before:
/// nothing is promised meanwhile.
#[derive(Debug, Default)]
pub(super) struct Owed {
    changes: Vec<Change>,
    runs: HashMap<RunId, Arc<Run>>,
    pause: Duration,
    again_at: Option<Instant>,
}

impl Owed {
    /// How long the next try has time, if one is needed.
    pub(super) fn pause(&self) -> Option<Duration> {
        self.again_at.map(|at| at.saturating_duration_since(Instant::now()))
    }

    pub(super) fn is_due(&self) -> bool {
        self.pause().is_none_or(|pause| pause.is_zero())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// Puts what is owed before what is to be written now.
    pub(super) fn put_first(&mut self, collected: &mut Collected) {
        let new = std::mem::replace(&mut collected.changes, std::mem::take(&mut self.changes));
        collected.changes.extend(new);
        collected.runs.extend(self.runs.drain());
    }

    /// It was written.
    pub(super) fn settle(&mut self) {
        *self = Self::default();
    }

    /// It could not be written; `tried` says whether that was seen just now. Those runs stay that are spoken of.
    pub(super) fn keep(&mut self, changes: Vec<Change>, collected: &mut Collected, tried: bool) {
        for change in &changes {
            if let Change::Owed(id) = change {
                self.runs.extend(collected.runs.remove_entry(id));
            }
        }
        self.changes = changes;
        if tried {
            self.pause = (self.pause * 2).clamp(PAUSE_MIN, PAUSE_MAX);
            self.again_at = Some(Instant::now() + self.pause);
        }
    }
}
