//! Who waits for room, and who gets it next: principals take turns, and within one the first that came goes first.
//! Whoever asks for less than those before it may go past them, but only so often; then what comes back is kept.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use run::PrincipalName;
use tokio::sync::oneshot;
use tokio::time::{Instant, MissedTickBehavior};

/// How often others may go past one that there is too little room for.
const OVERTAKEN_MAX: u32 = 16;

/// How often the first of a principal looks for what nobody tells of: files and what is prepared expire, or are in
/// use no more.
const LOOK: Duration = Duration::from_secs(1);

/// The line. `R` is the room that is waited for.
#[derive(Debug)]
pub(super) struct RoomLine<R> {
    /// How long nothing at all is given back before those who wait give up, and how long nobody has room before one
    /// does that keeps all others waiting: they may hold all that there is.
    patience: Duration,
    state: Mutex<State<R>>,
}

#[derive(Debug)]
struct State<R> {
    order: Order,
    grants: HashMap<u64, oneshot::Sender<R>>,
    /// When something was given back last, as far as anybody who waits was told.
    given_back: Option<Instant>,
    /// When somebody in the line had room last.
    granted: Option<Instant>,
}

/// The table behind it, without locks or time.
#[derive(Debug, Default)]
struct Order {
    lines: HashMap<PrincipalName, Line>,
    arrivals: u64,
    turns: u64,
}

/// One principal.
#[derive(Debug, Default)]
struct Line {
    waiting: VecDeque<Wanted>,
    /// The number of its latest turn.
    served: u64,
}

#[derive(Debug)]
struct Wanted {
    number: u64,
    bytes: u64,
    overtaken: u32,
}

/// A place in the line, which is left when this is dropped.
#[derive(Debug)]
pub(super) struct RoomPlace<R> {
    line: Arc<RoomLine<R>>,
    who: PrincipalName,
    number: u64,
    since: Instant,
    granted: oneshot::Receiver<R>,
}

/// Nothing was given back for as long as this, or too little.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct GaveUp(pub(super) Duration);

impl<R> RoomLine<R> {
    pub(super) fn new(patience: Duration) -> Arc<Self> {
        let state =
            State { order: Order::default(), grants: HashMap::new(), given_back: None, granted: None };
        Arc::new(Self { patience, state: Mutex::new(state) })
    }

    pub(super) fn enter(self: &Arc<Self>, who: &PrincipalName, bytes: u64) -> RoomPlace<R> {
        let (grant, granted) = oneshot::channel();
        let mut state = self.lock();
        let number = state.order.enter(who, bytes);
        state.grants.insert(number, grant);
        drop(state);
        RoomPlace { line: Arc::clone(self), who: who.clone(), number, since: Instant::now(), granted }
    }

    /// Gives room to everybody for whom `reserve` has some.
    pub(super) fn serve(&self, reserve: impl FnMut(u64) -> Option<R>) {
        let mut state = self.lock();
        for (number, room) in state.order.serve(reserve) {
            // Of one that has left in this moment it comes back by itself.
            let _ = state.grants.remove(&number).map(|grant| grant.send(room));
            state.granted = Some(Instant::now());
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<R>> {
        // A panic under this lock leaves the tables whole.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl<R> RoomPlace<R> {
    /// The room, if it has come.
    pub(super) fn granted(&mut self) -> Option<R> {
        self.granted.try_recv().ok()
    }

    /// Waits for the room. `given_back` ends when some may have become free, and `serve` looks for it: whoever is
    /// told does so for all.
    pub(super) async fn wait<G: Future<Output = ()>>(
        mut self,
        given_back: impl Fn() -> G,
        serve: impl Fn(),
    ) -> Result<R, GaveUp> {
        // Not anew each time: where much is given back it would never look.
        let mut looks = tokio::time::interval_at(Instant::now() + LOOK, LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                // The sender lives in the line for as long as the place does.
                Ok(room) = &mut self.granted => return Ok(room),
                _ = looks.tick() => self.look(&serve)?,
                () = given_back() => {
                    self.line.lock().given_back = Some(Instant::now());
                    serve();
                }
            }
        }
    }

    fn look(&self, serve: &impl Fn()) -> Result<(), GaveUp> {
        let state = self.line.lock();
        let first = state.order.is_first(&self.who, self.number);
        let keeps_others_waiting = first && state.order.keeps_all_waiting(&self.who);
        let nothing_since = if keeps_others_waiting { state.granted } else { state.given_back };
        drop(state);
        let nothing_since = nothing_since.map_or(self.since, |at| at.max(self.since));
        if nothing_since.elapsed() > self.line.patience {
            return Err(GaveUp(self.line.patience));
        }
        if first {
            serve();
        }
        Ok(())
    }
}

impl<R> Drop for RoomPlace<R> {
    fn drop(&mut self) {
        let mut state = self.line.lock();
        state.order.leave(&self.who, self.number);
        state.grants.remove(&self.number);
    }
}

impl Order {
    fn enter(&mut self, who: &PrincipalName, bytes: u64) -> u64 {
        self.arrivals += 1;
        let wanted = Wanted { number: self.arrivals, bytes, overtaken: 0 };
        self.lines.entry(who.clone()).or_default().waiting.push_back(wanted);
        self.arrivals
    }

    fn leave(&mut self, who: &PrincipalName, number: u64) {
        if let Some(line) = self.lines.get_mut(who) {
            line.waiting.retain(|wanted| wanted.number != number);
        }
    }

    fn is_first(&self, who: &PrincipalName, number: u64) -> bool {
        let first = self.lines.get(who).and_then(|line| line.waiting.front());
        first.is_some_and(|first| first.number == number)
    }

    /// Whether nobody goes past the first of that principal any more.
    fn keeps_all_waiting(&self, who: &PrincipalName) -> bool {
        let first = self.lines.get(who).and_then(|line| line.waiting.front());
        first.is_some_and(|first| first.overtaken >= OVERTAKEN_MAX)
    }

    /// Everybody who can have room now, and that room.
    fn serve<R>(&mut self, mut reserve: impl FnMut(u64) -> Option<R>) -> Vec<(u64, R)> {
        std::iter::from_fn(|| self.next(&mut reserve)).collect()
    }

    /// The first of each principal is asked for, the one that was served longest ago first.
    fn next<R>(&mut self, reserve: &mut impl FnMut(u64) -> Option<R>) -> Option<(u64, R)> {
        let mut lines: Vec<&mut Line> =
            self.lines.values_mut().filter(|line| !line.waiting.is_empty()).collect();
        lines.sort_unstable_by_key(|line| (line.served, line.waiting.front().map(|first| first.number)));
        for at in 0..lines.len() {
            let first = lines[at].waiting.front()?;
            if let Some(room) = reserve(first.bytes) {
                let number = first.number;
                lines[..at].iter_mut().filter_map(|line| line.waiting.front_mut()).for_each(|passed| {
                    passed.overtaken += 1;
                });
                self.turns += 1;
                lines[at].served = self.turns;
                lines[at].waiting.pop_front();
                return Some((number, room));
            }
            if first.overtaken >= OVERTAKEN_MAX {
                return None;
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    fn name(name: &str) -> PrincipalName {
        PrincipalName::parse(name).unwrap()
    }

    /// Who is served with so much room, by the numbers of their arrival.
    fn served(order: &mut Order, mut room: u64) -> Vec<u64> {
        let reserve = |bytes| {
            room = room.checked_sub(bytes)?;
            Some(())
        };
        // A `checked_sub` that fails leaves the room as it was.
        order.serve(reserve).into_iter().map(|(number, ())| number).collect()
    }

    #[test]
    fn principals_take_turns_and_within_one_the_first_goes_first() {
        let (alice, bob) = (name("alice"), name("bob"));
        let mut order = Order::default();
        for who in [&alice, &alice, &alice, &bob, &bob] {
            order.enter(who, 10);
        }
        assert!(served(&mut order, 9).is_empty());
        assert_eq!(served(&mut order, 20), [1, 4]);
        assert_eq!(served(&mut order, 10), [2]);
        assert_eq!(served(&mut order, 30), [5, 3]);
    }

    #[test]
    fn who_needs_less_goes_past_another_principal_but_not_past_its_own_first() {
        let (alice, bob) = (name("alice"), name("bob"));
        let mut order = Order::default();
        order.enter(&alice, 100);
        order.enter(&alice, 1);
        order.enter(&bob, 10);
        assert_eq!(served(&mut order, 50), [3]);
        assert!(served(&mut order, 50).is_empty());
        order.leave(&alice, 1);
        assert!(order.is_first(&alice, 2) && !order.is_first(&bob, 3));
        assert_eq!(served(&mut order, 50), [2]);
    }

    #[test]
    fn who_needs_much_is_not_passed_for_ever() {
        let (alice, bob) = (name("alice"), name("bob"));
        let mut order = Order::default();
        let large = order.enter(&alice, 100);
        let mut passed = 0;
        loop {
            let small = order.enter(&bob, 10);
            if served(&mut order, 10) != [small] {
                break;
            }
            passed += 1;
            assert!(passed < 100, "the large one starves");
        }
        assert_eq!(passed, OVERTAKEN_MAX);
        assert_eq!(served(&mut order, 110), [large, u64::from(OVERTAKEN_MAX) + 2]);
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_gives_up_when_nothing_was_given_back_for_long_and_leaves_the_line() {
        let (minute, alice) = (Duration::from_secs(60), name("alice"));
        let line = RoomLine::<u64>::new(10 * minute);
        let began = Instant::now();
        // Something is given back after five minutes, too little; then never again.
        let told = AtomicU64::new(0);
        let given_back = || {
            let now = told.fetch_add(1, Ordering::Relaxed) == 300;
            async move {
                if !now {
                    std::future::pending::<()>().await;
                }
            }
        };
        let gave_up = line.enter(&alice, 1).wait(given_back, || line.serve(|_| None)).await;
        assert_eq!(gave_up, Err(GaveUp(10 * minute)));
        let took = began.elapsed();
        assert!(took > 15 * minute && took < 16 * minute, "{took:?}");
        line.serve(|_| -> Option<u64> { panic!("nobody waits any more") });
    }

    #[tokio::test(start_paused = true)]
    async fn who_keeps_all_others_waiting_gives_up_however_much_is_given_back() {
        let (minute, alice, bob) = (Duration::from_secs(60), name("alice"), name("bob"));
        let line = RoomLine::<u64>::new(10 * minute);
        let serve = || line.serve(|bytes| (bytes <= 10).then_some(bytes));
        let large = line.enter(&alice, 100);
        for _ in 0..OVERTAKEN_MAX {
            let mut small = line.enter(&bob, 10);
            serve();
            assert_eq!(small.granted(), Some(10));
        }
        let often = || tokio::time::sleep(Duration::from_millis(700));
        let small = line.enter(&bob, 10);
        let began = Instant::now();
        let both = tokio::join!(large.wait(often, serve), small.wait(often, serve));
        assert_eq!(both, (Err(GaveUp(10 * minute)), Ok(10)));
        let took = began.elapsed();
        assert!(took > 10 * minute && took < 11 * minute, "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn room_that_nobody_tells_of_is_found_and_whoever_is_told_looks_for_all() {
        let line = RoomLine::<u64>::new(Duration::from_secs(600));
        let expires = Instant::now() + Duration::from_secs(20);
        let reserve = |bytes| (Instant::now() >= expires).then_some(bytes);
        let (one, other) = (line.enter(&name("alice"), 1), line.enter(&name("alice"), 2));
        let never = std::future::pending::<()>;
        let both =
            tokio::join!(one.wait(never, || line.serve(reserve)), other.wait(never, || line.serve(reserve)),);
        assert_eq!(both, (Ok(1), Ok(2)));
        assert!(Instant::now() < expires + Duration::from_secs(5));
    }
}
