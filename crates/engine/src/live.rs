//! A run under way, and everything by which others follow it: its state, what it has written so far, and
//! their wish that it end.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use run::{Run, RunId, RunState, Stream};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::admission::Place;
use crate::output::Kept;

#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) id: RunId,
    /// Where it stands, or stood, in the queue.
    pub(crate) place: Place,
    pub(crate) state: watch::Sender<Arc<Run>>,
    /// Somebody may come back for it: it is written down, and outlives the server.
    pub(crate) promised: bool,
    pub(crate) cancel: CancellationToken,
    /// A client wanted its end, and not only we.
    unwanted: AtomicBool,
    /// It is left to the next server.
    parked: AtomicBool,
    /// Known once the run was handed to the launcher.
    outputs: OnceLock<[Arc<Kept>; 2]>,
    /// Wakes whoever has seen everything there was to see.
    news: Notify,
}

impl Live {
    pub(crate) fn new(run: Run, place: Place, promised: bool) -> Arc<Self> {
        Arc::new(Self {
            id: run.id,
            place,
            promised,
            unwanted: AtomicBool::new(false),
            parked: AtomicBool::new(false),
            state: watch::Sender::new(Arc::new(run)),
            cancel: CancellationToken::new(),
            outputs: OnceLock::new(),
            news: Notify::new(),
        })
    }

    pub(crate) fn run(&self) -> Arc<Run> {
        Arc::clone(&self.state.borrow())
    }

    /// Ends the run because a client wants it.
    pub(crate) fn unwant(&self) {
        self.unwanted.store(true, Ordering::Release);
        self.cancel.cancel();
    }

    pub(crate) fn is_unwanted(&self) -> bool {
        self.unwanted.load(Ordering::Acquire)
    }

    /// Nothing more happens to it here; whoever waits is let go.
    pub(crate) fn park(&self) {
        self.parked.store(true, Ordering::Release);
        self.update(|run| run.state = RunState::Queued);
    }

    pub(crate) fn is_parked(&self) -> bool {
        self.parked.load(Ordering::Acquire)
    }

    pub(crate) fn publish(&self, run: Arc<Run>) {
        self.state.send_replace(run);
        self.news.notify_waiters();
    }

    pub(crate) fn update(&self, change: impl FnOnce(&mut Run)) {
        self.state.send_modify(|run| change(Arc::make_mut(run)));
        self.news.notify_waiters();
    }

    pub(crate) fn writes_to(&self, stdout: &Arc<Kept>, stderr: &Arc<Kept>) {
        // A run is launched once; a second time could not be told from the first.
        let _ = self.outputs.set([Arc::clone(stdout), Arc::clone(stderr)]);
    }

    /// An output has grown.
    pub(crate) fn wrote(&self) {
        self.news.notify_waiters();
    }

    pub(crate) fn output(&self, stream: Stream) -> Option<&Kept> {
        let [stdout, stderr] = self.outputs.get()?;
        Some(match stream {
            Stream::Stdout => stdout,
            Stream::Stderr => stderr,
        })
    }

    /// What `look` finds, as soon as it finds something.
    pub(crate) async fn until<T>(&self, mut look: impl FnMut() -> Option<T>) -> T {
        loop {
            // Enlisted before looking: what happens in between wakes us too.
            let news = self.news.notified();
            tokio::pin!(news);
            news.as_mut().enable();
            if let Some(found) = look() {
                return found;
            }
            news.await;
        }
    }
}

/// A run that was taken.
#[derive(Clone, Debug)]
pub struct RunHandle {
    pub(crate) live: Arc<Live>,
}

impl RunHandle {
    pub fn id(&self) -> RunId {
        self.live.id
    }

    pub fn run(&self) -> Arc<Run> {
        self.live.run()
    }

    /// The run when it has finished, or as it stands when the time is over or the server stops before it
    /// has started.
    pub async fn wait(&self, time: Option<Duration>) -> Arc<Run> {
        let mut state = self.live.state.subscribe();
        let finished = state.wait_for(|run| run.state == RunState::Finished || self.live.is_parked());
        match time {
            None => drop(finished.await),
            Some(time) => drop(tokio::time::timeout(time, finished).await),
        }
        self.run()
    }

    /// Asks for the run's end.
    pub(crate) fn cancel(&self) {
        self.live.cancel.cancel();
    }

    pub fn cancel_on_drop(&self) -> CancelOnDrop {
        CancelOnDrop { live: Some(Arc::clone(&self.live)) }
    }
}

/// Cancels a run unless it is disarmed: for clients that wait, and may go away.
#[derive(Debug)]
pub struct CancelOnDrop {
    live: Option<Arc<Live>>,
}

impl CancelOnDrop {
    /// The client has its answer: the run is left alone.
    pub fn disarm(mut self) {
        self.live = None;
    }
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        if let Some(live) = &self.live {
            live.unwant();
        }
    }
}
