//! A run that somebody has asked for. Large outputs of one that has ended are not copied for whoever asks: they stay
//! where they are, in memory or on the disk, and are read from there bit by bit.

use std::sync::Arc;

use run::{Run, RunId, RunState, Stream};

use crate::ask::{apart, load};
use crate::engine::Engine;
use crate::store::StoreError;
use crate::watcher::Watcher;

/// Outputs that are larger than this together are read bit by bit.
const LARGE_BYTES: u64 = 256 << 10;

#[derive(Clone, Debug)]
pub enum Found {
    /// With its outputs.
    Whole(Arc<Run>),
    /// It has ended, and its outputs are to be read there.
    Large(Watcher),
}

impl From<Arc<Run>> for Found {
    fn from(run: Arc<Run>) -> Self {
        let bytes = run.stdout.bytes.len() + run.stderr.bytes.len();
        let large = run.state == RunState::Finished && bytes as u64 > LARGE_BYTES;
        if large { Self::Large(Watcher::ended(run)) } else { Self::Whole(run) }
    }
}

impl Found {
    /// Without its outputs, if they are large.
    pub fn run(&self) -> Arc<Run> {
        match self {
            Self::Whole(run) => Arc::clone(run),
            Self::Large(watcher) => watcher.run(),
        }
    }
}

impl Engine {
    /// The run as it stands.
    pub async fn find(&self, id: RunId) -> Result<Option<Found>, StoreError> {
        if let Some(handle) = self.live(id) {
            return Ok(Some(self.inner.with_position(&handle.live).into()));
        }
        let store = Arc::clone(&self.inner.store);
        apart(move || {
            let Some(stored) = store.get(id)? else { return Ok(None) };
            let bytes: u64 =
                [Stream::Stdout, Stream::Stderr].map(|stream| stored.shape(stream).bytes).iter().sum();
            if bytes > LARGE_BYTES {
                return Ok(Some(Found::Large(Watcher::stored(stored, store))));
            }
            load(&*store, stored).map(|run| Some(Found::Whole(run)))
        })
        .await
    }
}
