//! Work that wakes itself while it is polled is polled again at once. A request's body wakes the very connection
//! that brings it, and the runtime would wake a second thread for that, which finds nothing to do and takes the
//! processor from the run.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::task::AtomicWaker;

/// How often in a row, before others have their turn.
const AT_ONCE: usize = 4;

const ASLEEP: u8 = 0;
const POLLED: u8 = 1;
const WOKEN: u8 = 2;

#[derive(Debug, Default)]
struct Alarm {
    state: AtomicU8,
    outer: AtomicWaker,
}

impl Alarm {
    /// Whether nobody has woken it since it was polled.
    fn sleeps(&self) -> bool {
        self.state.compare_exchange(POLLED, ASLEEP, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.state.swap(WOKEN, Ordering::AcqRel) == ASLEEP {
            self.outer.wake();
        }
    }
}

pub(super) async fn eagerly<F: Future>(work: F) -> F::Output {
    let alarm = Arc::new(Alarm::default());
    let waker = Waker::from(Arc::clone(&alarm));
    let mut work = pin!(work);
    poll_fn(move |context| {
        alarm.outer.register(context.waker());
        for _ in 0..AT_ONCE {
            // Who has found it woken already, and wakes nobody, must have said what it says before this.
            alarm.state.swap(POLLED, Ordering::AcqRel);
            if let Poll::Ready(done) = work.as_mut().poll(&mut Context::from_waker(&waker)) {
                return Poll::Ready(done);
            }
            if alarm.sleeps() {
                return Poll::Pending;
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::task::ready;

    use super::*;

    #[derive(Default)]
    struct Bell(AtomicUsize);

    impl Wake for Bell {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Wakes itself that often before it is ready.
    fn restless(times: usize) -> impl Future<Output = usize> {
        let mut polls = 0;
        poll_fn(move |context| {
            polls += 1;
            if polls > times {
                return Poll::Ready(polls);
            }
            context.waker().wake_by_ref();
            Poll::Pending
        })
    }

    #[test]
    fn what_wakes_itself_is_polled_again_and_nobody_else_hears_of_it() {
        let bell = Arc::new(Bell::default());
        let waker = Waker::from(Arc::clone(&bell));
        let mut work = pin!(eagerly(restless(AT_ONCE - 1)));
        let polled = work.as_mut().poll(&mut Context::from_waker(&waker));
        assert_eq!((polled, bell.0.load(Ordering::Relaxed)), (Poll::Ready(AT_ONCE), 0));
    }

    #[test]
    fn what_never_rests_lets_others_have_their_turn() {
        let bell = Arc::new(Bell::default());
        let waker = Waker::from(Arc::clone(&bell));
        let mut work = pin!(eagerly(restless(AT_ONCE * 3)));
        let mut turns = 0;
        let polls = loop {
            turns += 1;
            match work.as_mut().poll(&mut Context::from_waker(&waker)) {
                Poll::Ready(polls) => break polls,
                Poll::Pending => assert_eq!(bell.0.load(Ordering::Relaxed), turns),
            }
        };
        assert_eq!((polls, turns), (AT_ONCE * 3 + 1, 4));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_wake_is_lost_between_threads() {
        for _ in 0..2_000 {
            let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
            let teller = tokio::spawn(async move {
                for word in 0..20 {
                    tell.send(word).unwrap();
                    tokio::task::yield_now().await;
                }
            });
            let heard = eagerly(poll_fn(|context| {
                let mut heard = 0;
                while ready!(told.poll_recv(context)).is_some() {
                    heard += 1;
                }
                Poll::Ready(heard)
            }));
            tokio::time::timeout(std::time::Duration::from_secs(60), heard).await.unwrap();
            teller.await.unwrap();
        }
    }
}
