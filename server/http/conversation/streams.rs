//! The streams of one connection of HTTP/2, each a request and its answer. Each is watched apart: a client
//! that takes one answer and not the other keeps the other no longer than it could with a connection of its own.

use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hyper::rt::Executor;

tokio::task_local! {
    /// The stream of this task.
    static TAKING: Arc<Taking>;
}

/// Whether a client takes what it is given.
#[derive(Debug, Default)]
pub(super) struct Taking(Mutex<Option<Instant>>);

impl Taking {
    /// Of the stream in whose task this is asked.
    pub(super) fn of_this_stream() -> Arc<Self> {
        TAKING.try_with(Arc::clone).unwrap_or_default()
    }

    /// From now on it is the client's turn, who has something to take.
    pub(super) fn given(&self) {
        *lock(&self.0) = Some(Instant::now());
    }

    /// The client has taken all that there was: it is our turn.
    pub(super) fn taken(&self) {
        *lock(&self.0) = None;
    }

    fn waiting(&self) -> Option<Duration> {
        lock(&self.0).map(|since| since.elapsed())
    }
}

/// Runs the streams of one connection, and knows since when there are none.
#[derive(Clone, Debug)]
pub(super) struct Streams {
    now: Arc<Mutex<Now>>,
    /// How long a client may take nothing of an answer.
    patience: Duration,
}

#[derive(Debug)]
struct Now {
    open: usize,
    /// When the last one ended.
    quiet_since: Instant,
}

/// Counts one stream for as long as it lives.
struct Open(Arc<Mutex<Now>>);

impl Drop for Open {
    fn drop(&mut self) {
        let mut now = lock(&self.0);
        now.open -= 1;
        now.quiet_since = Instant::now();
    }
}

impl Streams {
    pub(super) fn new(patience: Duration) -> Self {
        let now = Now { open: 0, quiet_since: Instant::now() };
        Self { now: Arc::new(Mutex::new(now)), patience }
    }

    fn open(&self) -> Open {
        lock(&self.now).open += 1;
        Open(Arc::clone(&self.now))
    }

    fn quiet_for(&self) -> Option<Duration> {
        let now = lock(&self.now);
        (now.open == 0).then(|| now.quiet_since.elapsed())
    }

    /// Waits until there has been no stream for that long.
    pub(super) async fn quiet(&self, long: Duration) {
        while let Some(left) = left(self.quiet_for(), long) {
            tokio::time::sleep(left).await;
        }
    }
}

impl<F> Executor<F> for Streams
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, stream: F) {
        let (open, patience, taking) = (self.open(), self.patience, Arc::new(Taking::default()));
        let watched = Arc::clone(&taking);
        let stream = async move {
            let mut stream = pin!(stream);
            while let Some(left) = left(watched.waiting(), patience) {
                if tokio::time::timeout(left, stream.as_mut()).await.is_ok() {
                    break;
                }
            }
            drop(open);
        };
        tokio::spawn(TAKING.scope(taking, stream));
    }
}

/// How much later to look again whether something has lasted for `long`; `None` if it has.
fn left(lasted: Option<Duration>, long: Duration) -> Option<Duration> {
    match lasted {
        None => Some(long),
        Some(lasted) => long.checked_sub(lasted).filter(|left| !left.is_zero()),
    }
}

/// Nothing that holds one of these locks can panic half way.
fn lock<T>(what: &Mutex<T>) -> MutexGuard<'_, T> {
    what.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_lasted_long_enough_is_not_waited_for() {
        let s = Duration::from_secs;
        for (lasted, left_over) in
            [(None, Some(s(10))), (Some(s(3)), Some(s(7))), (Some(s(10)), None), (Some(s(11)), None)]
        {
            assert_eq!(left(lasted, s(10)), left_over, "{lasted:?}");
        }
    }

    #[tokio::test]
    async fn a_stream_that_nobody_takes_is_given_up_and_one_that_waits_for_us_is_not() {
        let streams = Streams::new(Duration::from_millis(50));
        let (deaf, ended) = tokio::sync::oneshot::channel::<()>();
        streams.execute(async move {
            Taking::of_this_stream().given();
            let _held = deaf;
            std::future::pending::<()>().await;
        });
        let (answer, answered) = tokio::sync::oneshot::channel();
        streams.execute(async move {
            let taking = Taking::of_this_stream();
            taking.given();
            taking.taken();
            tokio::time::sleep(Duration::from_millis(300)).await;
            let _ = answer.send("answer");
        });
        assert!(ended.await.is_err(), "dropped");
        assert_eq!(answered.await, Ok("answer"));
        streams.quiet(Duration::from_millis(10)).await;
    }
}
