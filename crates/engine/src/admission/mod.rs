//! Who may run when. What is decided here is decided in `fair`, a table without locks or time; this wraps
//! it in a lock and hands out slots. No lock is held while anything is waited for.

mod claim;
mod drain;
mod fair;
mod rate;

#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use run::{Limits, Principal, PrincipalName, RunSpec};
use tokio::sync::oneshot;

pub use claim::Budget;
pub(crate) use claim::TooLarge;
pub(crate) use fair::Place;

use claim::Claim;
use drain::Drain;
use fair::{Fair, Turn};

#[derive(Debug)]
pub(crate) struct Admission {
    state: Mutex<State>,
    budget: Budget,
    /// How many runs of one principal may wait; of its batches, one of each does at least.
    capacity: usize,
}

#[derive(Debug)]
struct State {
    fair: Fair,
    drain: Drain,
    /// Who is told of a turn, by the number of its place.
    grants: HashMap<u64, oneshot::Sender<Slot>>,
}

/// The right to have one sandbox running. It is given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Slot {
    /// Absent once what it had taken has been given back.
    admission: Option<Arc<Admission>>,
    turn: Turn,
    since: Instant,
}

/// A place in the queue, or a slot already. Dropping it leaves the queue.
#[derive(Debug)]
pub(crate) struct Ticket {
    admission: Arc<Admission>,
    place: Place,
    granted: oneshot::Receiver<Slot>,
}

/// What a batch has that waits and none of whose runs has a place: it counts like one. Dropping it gives it up.
#[derive(Debug)]
pub(crate) struct Seat {
    admission: Arc<Admission>,
    who: PrincipalName,
    /// It waits for something else than a slot, and keeps none from others.
    held_up: bool,
}

/// Why a run may not even wait.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// As many runs wait as may; `own`: as the principal's own quota allows.
    Full {
        retry_after: Duration,
        own: bool,
    },
    /// The principal's rate is used up.
    Rate {
        retry_after: Duration,
    },
    TooLarge(TooLarge),
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Occupancy {
    pub(crate) busy: usize,
    pub(crate) queued: usize,
    pub(crate) oldest: Option<Duration>,
}

impl Admission {
    pub(crate) fn new(slots: usize, capacity: usize, budget: Budget) -> Arc<Self> {
        let fair = Fair::new(Claim::all(slots, &budget), &budget.cores);
        let state = State { fair, drain: Drain::default(), grants: HashMap::new() };
        Arc::new(Self { state: Mutex::new(state), budget, capacity })
    }

    /// Whether a run with these limits can ever have its turn.
    pub(crate) fn check(&self, limits: &Limits) -> Result<(), Refused> {
        let claim = Claim::of(limits, &self.budget);
        claim.check(limits, self.lock().fair.whole()).map_err(Refused::TooLarge)
    }

    pub(crate) fn enter(self: &Arc<Self>, spec: &RunSpec) -> Result<Ticket, Refused> {
        self.enter_from(spec, &mut None)
    }

    /// The same for a run of a batch: where that has a seat, the run gets a place for it, however many wait.
    pub(crate) fn enter_from(
        self: &Arc<Self>,
        spec: &RunSpec,
        seat: &mut Option<Seat>,
    ) -> Result<Ticket, Refused> {
        let principal = &*spec.principal;
        let claim = Claim::of(&spec.limits, &self.budget);
        let now = Instant::now();
        let mut state = self.lock();
        claim.check(&spec.limits, state.fair.whole()).map_err(Refused::TooLarge)?;
        let rate = principal.quota.runs_per_minute;
        if let Some(rate) = rate {
            let taken = state.fair.bucket(principal, rate, now).take(rate, now);
            if let Err(retry_after) = taken {
                if let Some(seat) = seat {
                    seat.hold_up(&mut state.fair);
                }
                return Err(Refused::Rate { retry_after });
            }
        }
        let place = state.fair.enter(principal, spec.priority, claim, now);
        let (grant, granted) = oneshot::channel();
        state.grants.insert(place.key.1, grant);
        self.serve(&mut state);
        let too_many = state.fair.waiting_of(&place.who) > self.may_wait(principal);
        if state.grants.contains_key(&place.key.1) && too_many && seat.is_none() {
            state.fair.leave(&place);
            state.grants.remove(&place.key.1);
            if let Some(rate) = rate {
                state.fair.bucket(principal, rate, now).give_back();
            }
            return Err(self.full(&state, principal));
        }
        drop(state);
        *seat = None;
        Ok(Ticket { admission: Arc::clone(self), place, granted })
    }

    /// A seat for a batch whose first run has these limits, if one more may wait or it would start at once.
    pub(crate) fn sit(self: &Arc<Self>, who: &Principal, limits: &Limits) -> Result<Seat, Refused> {
        let claim = Claim::of(limits, &self.budget);
        let mut state = self.lock();
        let waits = !state.fair.starts_at_once(who, claim) || state.fair.is_held_up(&who.name);
        if waits && state.fair.waiting_of(&who.name) >= self.may_wait(who) {
            return Err(self.full(&state, who));
        }
        state.fair.sit(who);
        Ok(self.seat(who))
    }

    /// The same for a batch that was taken, however many wait.
    pub(crate) fn sit_again(self: &Arc<Self>, who: &Principal) -> Seat {
        self.lock().fair.sit(who);
        self.seat(who)
    }

    fn seat(self: &Arc<Self>, who: &Principal) -> Seat {
        Seat { admission: Arc::clone(self), who: who.name.clone(), held_up: false }
    }

    /// How many of that principal's may wait.
    fn may_wait(&self, who: &Principal) -> usize {
        let own = who.quota.queued.map_or(usize::MAX, |queued| queued as usize);
        own.min(self.capacity)
    }

    fn full(&self, state: &State, who: &Principal) -> Refused {
        Refused::Full { retry_after: state.retry_after(&who.name), own: self.may_wait(who) < self.capacity }
    }

    /// A place for a run that had one before, however many wait.
    pub(crate) fn enter_again(self: &Arc<Self>, spec: &RunSpec) -> Result<Ticket, TooLarge> {
        let claim = Claim::of(&spec.limits, &self.budget);
        let mut state = self.lock();
        claim.check(&spec.limits, state.fair.whole())?;
        let place = state.fair.enter(&spec.principal, spec.priority, claim, Instant::now());
        let (grant, granted) = oneshot::channel();
        state.grants.insert(place.key.1, grant);
        self.serve(&mut state);
        drop(state);
        Ok(Ticket { admission: Arc::clone(self), place, granted })
    }

    /// Hands out slots as long as there are some and somebody may have one.
    fn serve(self: &Arc<Self>, state: &mut State) {
        while let Some(turn) = state.fair.next() {
            let Some(grant) = state.grants.remove(&turn.place.key.1) else {
                state.fair.release(&turn);
                continue;
            };
            let slot = Slot { admission: Some(Arc::clone(self)), turn, since: Instant::now() };
            if let Err(mut slot) = grant.send(slot) {
                // It left in this very moment. Its slot must not come back through `drop`: that
                // would ask for the lock that we hold.
                slot.admission = None;
                state.fair.release(&slot.turn);
            }
        }
    }

    pub(crate) fn occupancy(&self) -> Occupancy {
        let fair = &self.lock().fair;
        Occupancy {
            busy: fair.held(),
            queued: fair.waiting(),
            oldest: fair.oldest().map(|since| since.elapsed()),
        }
    }

    /// Everybody who has something waiting, and how much.
    pub(crate) fn waiting_by(&self) -> Vec<(PrincipalName, usize)> {
        self.lock().fair.waiting_by()
    }

    /// How many turns it takes until this one's has come; `None` when it has.
    pub(crate) fn position(&self, place: &Place) -> Option<usize> {
        self.lock().fair.position(place)
    }

    /// How long one more run of that principal would wait, as far as anybody can tell.
    pub(crate) fn expected_wait(&self, who: &Principal, limits: &Limits) -> Option<Duration> {
        let claim = Claim::of(limits, &self.budget);
        let state = self.lock();
        if state.fair.starts_at_once(who, claim) {
            return Some(Duration::ZERO);
        }
        state.drain.time_for(state.fair.position_of_next(&who.name), state.fair.makes_way(who))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that holds this lock can panic half way.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn release(self: &Arc<Self>, turn: &Turn, held: Duration) {
        let mut state = self.lock();
        state.drain.ended(held);
        state.fair.release(turn);
        self.serve(&mut state);
    }
}

impl State {
    /// When half of what the principal has waiting will have gone.
    fn retry_after(&self, who: &PrincipalName) -> Duration {
        let half = self.fair.waiting_of(who).div_ceil(2).max(1);
        let takers = self.fair.waiting_by().len().max(1);
        self.drain.retry_after(half * takers, self.fair.held())
    }
}

impl Slot {
    /// The cores that are this run's alone; empty: it shares all of them.
    pub(crate) fn cores(&self) -> &[usize] {
        &self.turn.cores
    }

    /// Gives it back as if it had never been had: that says nothing of how long slots are held.
    fn give_back(mut self) {
        if let Some(admission) = self.admission.take() {
            let mut state = admission.lock();
            state.fair.release(&self.turn);
            admission.serve(&mut state);
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(admission) = &self.admission {
            admission.release(&self.turn, self.since.elapsed());
        }
    }
}

impl Seat {
    fn hold_up(&mut self, fair: &mut Fair) {
        if !std::mem::replace(&mut self.held_up, true) {
            fair.hold_up(&self.who);
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.admission.lock().fair.rise(&self.who, self.held_up);
    }
}

impl Ticket {
    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// Gives the slot back unused. The seat counts the run as one that waits until it stands in the queue again.
    pub(crate) fn step_aside(&self, who: &Principal, slot: Slot) -> Seat {
        let mut seat = self.admission.sit_again(who);
        seat.hold_up(&mut self.admission.lock().fair);
        slot.give_back();
        seat
    }

    /// Takes the same place again, after its slot was given back.
    pub(crate) fn stand_again(&mut self, spec: &RunSpec) {
        let claim = Claim::of(&spec.limits, &self.admission.budget);
        let mut state = self.admission.lock();
        self.place = state.fair.enter_as(&spec.principal, self.place.key, claim, Instant::now());
        let (grant, granted) = oneshot::channel();
        state.grants.insert(self.place.key.1, grant);
        self.granted = granted;
        self.admission.serve(&mut state);
    }

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
        let mut state = self.admission.lock();
        if state.fair.leave(&self.place) {
            state.grants.remove(&self.place.key.1);
            // Whoever stood behind it may be small enough for what is free.
            self.admission.serve(&mut state);
        }
        drop(state);
        // A slot that was granted and never taken goes on to the next.
        self.granted.close();
        drop(self.granted.try_recv());
    }
}
