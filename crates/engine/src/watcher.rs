//! Follows one run, under way or finished. A watcher reads from what the run itself keeps, by offset: its
//! bytes exist once however many watch, and nothing is held for a watcher who is slow.

use std::sync::Arc;

use run::{Run, RunState, Stream};

use crate::live::{Live, RunHandle};
use crate::store::{Finished, RunStore, Shape};

/// Cheap to clone; each clone looks where it likes.
#[derive(Clone, Debug)]
pub struct Watcher(Of);

#[derive(Clone, Debug)]
enum Of {
    Live(Arc<Live>),
    /// It has ended, and somebody has its outputs.
    Ended(Arc<Run>),
    Stored(Finished, Arc<dyn RunStore>),
}

/// A part of an output.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Piece {
    pub bytes: Vec<u8>,
    /// Nothing will ever come after these bytes.
    pub last: bool,
}

/// How much there is of an output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    pub bytes: u64,
    /// Whether it will stay at that.
    pub whole: bool,
}

impl Watcher {
    pub(crate) fn live(live: Arc<Live>) -> Self {
        Self(Of::Live(live))
    }

    pub(crate) fn ended(run: Arc<Run>) -> Self {
        Self(Of::Ended(run))
    }

    pub(crate) fn stored(run: Finished, store: Arc<dyn RunStore>) -> Self {
        Self(Of::Stored(run, store))
    }

    /// The run as it stands. Its outputs are to be read here, not there.
    pub fn run(&self) -> Arc<Run> {
        match &self.0 {
            Of::Live(live) => live.run(),
            Of::Ended(run) => Arc::clone(run),
            Of::Stored(stored, _) => Arc::clone(&stored.run),
        }
    }

    /// The server stops and leaves the run to the next one: nothing more is to be seen here.
    pub fn is_over(&self) -> bool {
        matches!(&self.0, Of::Live(live) if live.is_parked())
    }

    /// What is kept of an output from `offset` on, at most `most` bytes of it.
    pub fn read(&self, stream: Stream, offset: u64, most: usize) -> Piece {
        let cut = |bytes: &[u8], whole: bool| {
            let begin = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
            let end = begin.saturating_add(most).min(bytes.len());
            Piece { bytes: bytes[begin..end].to_vec(), last: whole && end == bytes.len() }
        };
        match &self.0 {
            Of::Live(live) => look(live, stream, cut),
            Of::Ended(run) => cut(&of(run, stream).bytes, true),
            Of::Stored(stored, _) if stored.loaded => cut(&of(&stored.run, stream).bytes, true),
            Of::Stored(stored, store) => {
                let bytes = store.read(stored.run.id, stream, offset, most).unwrap_or_else(|error| {
                    tracing::error!(run.id = %stored.run.id, cause = %error.source, "{error}");
                    Vec::new()
                });
                // One that was forgotten meanwhile has nothing more to say.
                let end = offset.saturating_add(bytes.len() as u64);
                Piece { last: bytes.is_empty() || end >= stored.shape(stream).bytes, bytes }
            }
        }
    }

    pub fn extent(&self, stream: Stream) -> Extent {
        match &self.0 {
            Of::Live(live) => look(live, stream, |bytes, whole| Extent { bytes: bytes.len() as u64, whole }),
            Of::Ended(run) => Extent { bytes: of(run, stream).bytes.len() as u64, whole: true },
            Of::Stored(stored, _) => Extent { bytes: stored.shape(stream).bytes, whole: true },
        }
    }

    /// What an output of a finished run looks like as a whole.
    pub fn shape(&self, stream: Stream) -> Shape {
        match &self.0 {
            Of::Live(live) => Shape::of(of(&live.run(), stream)),
            Of::Ended(run) => Shape::of(of(run, stream)),
            Of::Stored(stored, _) => stored.shape(stream),
        }
    }

    /// What `look` finds in the run, as soon as it finds something. It is asked again after whatever
    /// happens to the run.
    pub async fn until<T>(&self, mut look: impl FnMut(&Self) -> Option<T>) -> T {
        match &self.0 {
            Of::Live(live) => live.until(|| look(self)).await,
            // Nothing more will happen.
            Of::Ended(_) | Of::Stored(..) => match look(self) {
                Some(found) => found,
                None => std::future::pending().await,
            },
        }
    }
}

fn look<T>(live: &Live, stream: Stream, see: impl FnOnce(&[u8], bool) -> T) -> T {
    match live.output(stream) {
        Some(kept) => kept.look(see),
        None => see(&[], live.run().state == RunState::Finished),
    }
}

impl RunHandle {
    pub fn watch(&self) -> Watcher {
        Watcher::live(Arc::clone(&self.live))
    }
}

fn of(run: &Run, stream: Stream) -> &run::Output {
    match stream {
        Stream::Stdout => &run.stdout,
        Stream::Stderr => &run.stderr,
    }
}
