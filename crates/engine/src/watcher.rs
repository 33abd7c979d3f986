//! Follows one run, under way or finished. A watcher reads from what the run itself keeps, by offset: its
//! bytes exist once however many watch, and nothing is held for a watcher who is slow.

use std::sync::Arc;

use run::{Run, RunState, Stream};

use crate::live::{Live, RunHandle};

/// Cheap to clone; each clone looks where it likes.
#[derive(Clone, Debug)]
pub struct Watcher(Of);

#[derive(Clone, Debug)]
enum Of {
    Live(Arc<Live>),
    Finished(Arc<Run>),
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

    pub(crate) fn finished(run: Arc<Run>) -> Self {
        Self(Of::Finished(run))
    }

    /// The run as it stands.
    pub fn run(&self) -> Arc<Run> {
        match &self.0 {
            Of::Live(live) => live.run(),
            Of::Finished(run) => Arc::clone(run),
        }
    }

    /// What is kept of an output from `offset` on, at most `most` bytes of it.
    pub fn read(&self, stream: Stream, offset: u64, most: usize) -> Piece {
        self.look(stream, |bytes, whole| {
            let begin = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
            let end = begin.saturating_add(most).min(bytes.len());
            Piece { bytes: bytes[begin..end].to_vec(), last: whole && end == bytes.len() }
        })
    }

    pub fn extent(&self, stream: Stream) -> Extent {
        self.look(stream, |bytes, whole| Extent { bytes: bytes.len() as u64, whole })
    }

    fn look<T>(&self, stream: Stream, see: impl FnOnce(&[u8], bool) -> T) -> T {
        let live = match &self.0 {
            Of::Live(live) => live,
            Of::Finished(run) => return see(&of(run, stream).bytes, true),
        };
        match live.output(stream) {
            Some(kept) => kept.look(see),
            None => see(&[], live.run().state == RunState::Finished),
        }
    }

    /// What `look` finds in the run, as soon as it finds something. It is asked again after whatever
    /// happens to the run.
    pub async fn until<T>(&self, mut look: impl FnMut(&Self) -> Option<T>) -> T {
        match &self.0 {
            Of::Live(live) => live.until(|| look(self)).await,
            // Nothing more will happen.
            Of::Finished(_) => match look(self) {
                Some(found) => found,
                None => std::future::pending().await,
            },
        }
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
