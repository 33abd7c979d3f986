//! One piece of work for all who want it at the same time. It runs in a task of its own, so that no
//! one waiter's leaving stops it; when the last one has left, it is stopped after a grace.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;

/// Work under way, by what it makes. `C` is what the work and those who wait for it share.
pub(crate) struct Flights<T, C = ()> {
    grace: Duration,
    under_way: UnderWay<T, C>,
    stop: watch::Sender<bool>,
}

type UnderWay<T, C> = Arc<Mutex<HashMap<String, Flight<T, C>>>>;

struct Flight<T, C> {
    waiters: watch::Sender<usize>,
    result: watch::Receiver<Option<T>>,
    context: C,
}

/// A seat. Dropping it is leaving.
pub(crate) struct Waiting<T, C = ()> {
    waiters: watch::Sender<usize>,
    result: watch::Receiver<Option<T>>,
    pub(crate) context: C,
    /// Whether the work was started for this waiter.
    pub(crate) leads: bool,
}

impl<T: Clone + Send + Sync + 'static, C: Clone + Default + Send + Sync + 'static> Flights<T, C> {
    pub(crate) fn new(grace: Duration) -> Self {
        Self { grace, under_way: Arc::default(), stop: watch::Sender::new(false) }
    }

    /// Joins the work named `key`, which is begun if nobody does it. What ends without a result has
    /// been given up.
    pub(crate) fn join<F>(&self, key: &str, work: impl FnOnce(C) -> F) -> Waiting<T, C>
    where
        F: Future<Output = T> + Send + 'static,
    {
        let mut under_way = self.under_way.lock().expect("no holder panics");
        if let Some(flight) = under_way.get(key) {
            return flight.sit(false);
        }
        let (waiters, (publish, result)) = (watch::Sender::new(0), watch::channel(None));
        let flight = Flight { waiters: waiters.clone(), result: result.clone(), context: C::default() };
        let (waiting, work) = (flight.sit(true), work(flight.context.clone()));
        under_way.insert(key.to_owned(), flight);
        let gone = Gone { key: key.to_owned(), result, under_way: Arc::clone(&self.under_way) };
        let (grace, mut stop) = (self.grace, self.stop.subscribe());
        tokio::spawn(async move {
            tokio::select! {
                value = work => {
                    drop(gone);
                    let _ = publish.send(Some(value));
                }
                () = abandoned(&waiters, grace, &gone) => {}
                _ = stop.wait_for(|stop| *stop) => {}
            }
        });
        waiting
    }

    /// Gives up all work, and whatever is begun later.
    pub(crate) fn stop(&self) {
        self.stop.send_replace(true);
    }

    pub(crate) fn count(&self) -> usize {
        self.under_way.lock().expect("no holder panics").len()
    }
}

/// Returns when nobody has waited for the whole grace, and nobody can begin to.
async fn abandoned<T, C>(waiters: &watch::Sender<usize>, grace: Duration, gone: &Gone<T, C>) {
    let mut count = waiters.subscribe();
    loop {
        let _ = count.wait_for(|count| *count == 0).await;
        tokio::select! {
            () = tokio::time::sleep(grace) => {}
            _ = count.wait_for(|count| *count > 0) => continue,
        }
        let mut under_way = gone.under_way.lock().expect("no holder panics");
        if *waiters.borrow() == 0 {
            gone.remove(&mut under_way);
            return;
        }
    }
}

/// Makes room for the next piece of the same work, however this one ends.
struct Gone<T, C> {
    key: String,
    result: watch::Receiver<Option<T>>,
    under_way: UnderWay<T, C>,
}

impl<T, C> Gone<T, C> {
    /// Removes this flight, and not the next one of the same name.
    fn remove(&self, under_way: &mut HashMap<String, Flight<T, C>>) {
        if under_way.get(&self.key).is_some_and(|flight| flight.result.same_channel(&self.result)) {
            under_way.remove(&self.key);
        }
    }
}

impl<T, C> Drop for Gone<T, C> {
    fn drop(&mut self) {
        let under_way = Arc::clone(&self.under_way);
        self.remove(&mut under_way.lock().expect("no holder panics"));
    }
}

impl<T, C: Clone> Flight<T, C> {
    fn sit(&self, leads: bool) -> Waiting<T, C> {
        self.waiters.send_modify(|count| *count += 1);
        let (waiters, result) = (self.waiters.clone(), self.result.clone());
        Waiting { waiters, result, context: self.context.clone(), leads }
    }
}

impl<T: Clone, C> Waiting<T, C> {
    /// The result, or nothing if the work was given up.
    pub(crate) async fn result(&mut self) -> Option<T> {
        self.result.wait_for(Option::is_some).await.ok().and_then(|value| value.clone())
    }
}

impl<T, C> Drop for Waiting<T, C> {
    fn drop(&mut self) {
        self.waiters.send_modify(|count| *count -= 1);
    }
}

impl<T, C> fmt::Debug for Flights<T, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flights").field("grace", &self.grace).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn all_who_come_in_time_share_one_piece_of_work() {
        let (flights, begun) = (Flights::new(Duration::from_secs(10)), Arc::new(AtomicUsize::new(0)));
        let join = || {
            let begun = Arc::clone(&begun);
            flights.join("key", |()| async move {
                begun.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_secs(1)).await;
                7
            })
        };
        let mut seats: Vec<_> = (0..100).map(|_| join()).collect();
        assert_eq!(seats.iter().filter(|seat| seat.leads).count(), 1);
        // The one who began it leaves; the others don't notice.
        drop(seats.remove(0));
        for mut seat in seats {
            assert_eq!(seat.result().await, Some(7));
        }
        assert_eq!((begun.load(Ordering::SeqCst), flights.count()), (1, 0));
        assert_eq!(join().result().await, Some(7));
        assert_eq!(begun.load(Ordering::SeqCst), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_nobody_waits_for_ends_after_its_grace() {
        let flights = Flights::new(Duration::from_secs(10));
        let (done, mut is_done) = watch::channel(());
        let work = move |()| async move {
            let _done = done;
            std::future::pending::<u32>().await
        };
        drop(flights.join("key", work));
        tokio::time::sleep(Duration::from_secs(9)).await;
        let back_in_time = flights.join("key", |()| async { 1 });
        assert!(!back_in_time.leads);
        tokio::time::sleep(Duration::from_secs(100)).await;
        drop(back_in_time);
        let left = tokio::time::Instant::now();
        assert!(is_done.changed().await.is_err());
        assert!((10..12).contains(&left.elapsed().as_secs()));
        assert_eq!(flights.count(), 0);
    }

    #[tokio::test]
    async fn a_panic_is_work_given_up() {
        let flights = Flights::new(Duration::from_secs(10));
        let mut seat = flights.join("key", |()| async { panic!("on purpose") as u32 });
        assert_eq!(seat.result().await, None);
        assert_eq!(flights.count(), 0);
    }
}
