//! Who may run when: a fixed number of slots, and a bounded queue in front of them in which a higher
//! priority goes first and equals go in the order in which they came.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

/// How many past ends of runs the drain rate is computed from.
const REMEMBERED_ENDS: usize = 64;

/// What is said when nothing is known about the drain rate yet.
const UNKNOWN_WAIT: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(crate) struct Admission {
    state: Mutex<State>,
    slots: usize,
    capacity: usize,
}

#[derive(Debug)]
struct State {
    free: usize,
    next: u64,
    waiting: BTreeMap<Key, Waiting>,
    /// When slots came back, the oldest first.
    ends: VecDeque<Instant>,
}

type Key = (Reverse<i32>, u64);

#[derive(Debug)]
struct Waiting {
    since: Instant,
    grant: oneshot::Sender<Slot>,
}

/// The right to have one sandbox running. It is given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    admission: Arc<Admission>,
}

/// A place in the queue, or a slot already. Dropping it leaves the queue.
#[derive(Debug)]
pub(crate) struct Ticket {
    admission: Arc<Admission>,
    key: Key,
    granted: oneshot::Receiver<Slot>,
}

/// The queue is full.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Full {
    pub(crate) retry_after: Duration,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Occupancy {
    pub(crate) busy: usize,
    pub(crate) queued: usize,
    pub(crate) oldest: Option<Duration>,
}

impl Admission {
    pub(crate) fn new(slots: usize, capacity: usize) -> Arc<Self> {
        let state = State { free: slots, next: 0, waiting: BTreeMap::new(), ends: VecDeque::new() };
        Arc::new(Self { state: Mutex::new(state), slots, capacity })
    }

    pub(crate) fn enter(self: &Arc<Self>, priority: i32) -> Result<Ticket, Full> {
        let mut state = self.lock();
        let (grant, granted) = oneshot::channel();
        let key = (Reverse(priority), state.next);
        state.next += 1;
        if state.free > 0 {
            state.free -= 1;
            // The receiver is in our hands: this can't fail.
            let _ = grant.send(Slot { admission: Arc::clone(self) });
        } else if state.waiting.len() < self.capacity {
            state.waiting.insert(key, Waiting { since: Instant::now(), grant });
        } else {
            return Err(Full { retry_after: self.retry_after(&state) });
        }
        drop(state);
        Ok(Ticket { admission: Arc::clone(self), key, granted })
    }

    /// When half of the queue will have gone, at the rate at which runs have ended lately.
    fn retry_after(&self, state: &State) -> Duration {
        let (Some(first), Some(last)) = (state.ends.front(), state.ends.back()) else { return UNKNOWN_WAIT };
        let (span, ends) = (last.duration_since(*first), state.ends.len() - 1);
        if ends == 0 {
            return UNKNOWN_WAIT;
        }
        let ahead = (state.waiting.len() / 2).max(1) as u32;
        let wait = span / ends as u32 * ahead;
        wait.clamp(Duration::from_millis(100), Duration::from_secs(60))
    }

    pub(crate) fn occupancy(&self) -> Occupancy {
        let state = self.lock();
        Occupancy {
            busy: self.slots - state.free,
            queued: state.waiting.len(),
            oldest: state.waiting.values().map(|waiting| waiting.since.elapsed()).max(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that holds this lock can panic half way.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// A slot came back: it goes to whoever is first and still there.
    fn release(self: &Arc<Self>) {
        let mut state = self.lock();
        if state.ends.len() == REMEMBERED_ENDS {
            state.ends.pop_front();
        }
        state.ends.push_back(Instant::now());
        self.pass_on(state);
    }

    fn pass_on(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        while let Some((_, waiting)) = state.waiting.pop_first() {
            match waiting.grant.send(Slot { admission: Arc::clone(self) }) {
                Ok(()) => return,
                // It left in this very moment. Its slot must not come back through `drop`: that
                // would ask for the lock that we hold.
                Err(slot) => std::mem::forget(slot),
            }
        }
        state.free += 1;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.admission.release();
    }
}

impl Ticket {
    /// Waits for the slot. Dropping the future keeps the place; dropping the ticket gives it up.
    pub(crate) async fn slot(&mut self) -> Slot {
        match (&mut self.granted).await {
            Ok(slot) => slot,
            // The sender lives in the queue until it is used.
            Err(_) => unreachable!("a place in the queue is only given up by its ticket"),
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let left = self.admission.lock().waiting.remove(&self.key);
        drop(left);
        // A slot that was granted and never taken goes on to the next.
        self.granted.close();
        drop(self.granted.try_recv());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn slots_go_by_priority_and_then_by_arrival() {
        let admission = Admission::new(1, 10);
        let held = admission.enter(0).unwrap().slot().await;
        let mut low = admission.enter(-1).unwrap();
        let mut first = admission.enter(5).unwrap();
        let mut second = admission.enter(5).unwrap();
        assert_eq!(admission.occupancy().queued, 3);
        drop(held);
        let slot = first.slot().await;
        assert!(second.granted.try_recv().is_err());
        drop(slot);
        drop(second.slot().await);
        drop(low.slot().await);
        drop((first, second, low));
        assert_eq!((admission.occupancy().busy, admission.occupancy().queued), (0, 0));
    }

    #[tokio::test]
    async fn a_full_queue_says_when_to_come_back() {
        let admission = Admission::new(1, 1);
        let slot = admission.enter(0).unwrap().slot().await;
        let waiting = admission.enter(0).unwrap();
        assert_eq!(admission.enter(0).unwrap_err(), Full { retry_after: UNKNOWN_WAIT });
        drop(waiting);
        let mut waiting = admission.enter(0).unwrap();
        drop(slot);
        drop(waiting.slot().await);
    }

    #[tokio::test]
    async fn a_slot_that_nobody_takes_is_not_lost() {
        let admission = Admission::new(1, 4);
        let ticket = admission.enter(0).unwrap();
        let mut next = admission.enter(0).unwrap();
        drop(ticket);
        drop(next.slot().await);
        let left = admission.enter(0).unwrap();
        drop(left);
        assert_eq!(admission.occupancy().busy, 0);
    }
}
