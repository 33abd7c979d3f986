//! Whose turn it is: a pure table of what runs and what waits, by principal. A slot goes to the principal
//! who has the smallest share of the host, and of equals to the one who was served longest ago; within a
//! principal to the highest priority, and of equals to the one that came first.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Instant;

use run::{Principal, PrincipalName};

use super::claim::Claim;
use super::rate::Bucket;

/// How often others may go past a run that is too large for what is free; then room is kept for it.
const OVERTAKEN_MAX: u32 = 16;

/// A place in the queue.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(super) who: PrincipalName,
    pub(super) key: Key,
}

/// The order within a principal. The number is unique.
pub(super) type Key = (Reverse<i32>, u64);

/// A turn that has come: what it takes, and which cores are its own.
#[derive(Clone, Debug)]
pub(super) struct Turn {
    pub(super) place: Place,
    pub(super) claim: Claim,
    pub(super) cores: Vec<usize>,
}

#[derive(Debug)]
struct Waiting {
    claim: Claim,
    since: Instant,
    overtaken: u32,
}

/// One principal.
#[derive(Debug)]
struct Line {
    waiting: BTreeMap<Key, Waiting>,
    /// Batches none of whose runs has a place or a slot.
    seated: usize,
    /// Of those the ones that a free slot does not help: they wait for their rate, or for room.
    held_up: usize,
    running: Claim,
    /// The number of its latest turn.
    served: u64,
    concurrency: u64,
    bucket: Option<Bucket>,
}

#[derive(Debug)]
pub(super) struct Fair {
    whole: Claim,
    free: Claim,
    /// Where each run gets cores of its own.
    free_cores: Option<BTreeSet<usize>>,
    lines: HashMap<PrincipalName, Line>,
    arrivals: u64,
    turns: u64,
    queued: usize,
    seated: usize,
    held_up: usize,
}

/// How many runs of that principal may go at once.
fn most(who: &Principal) -> u64 {
    who.quota.concurrency.map_or(u64::MAX, u64::from)
}

impl Fair {
    pub(super) fn new(whole: Claim, cores: &[usize]) -> Self {
        let free_cores = (!cores.is_empty()).then(|| cores.iter().copied().collect());
        let lines = HashMap::new();
        Self {
            whole,
            free: whole,
            free_cores,
            lines,
            arrivals: 0,
            turns: 0,
            queued: 0,
            seated: 0,
            held_up: 0,
        }
    }

    pub(super) fn whole(&self) -> Claim {
        self.whole
    }

    pub(super) fn held(&self) -> usize {
        (self.whole.slots - self.free.slots) as usize
    }

    /// Whether nobody waits and one more run of that principal would have its turn at once, also when every batch
    /// that is about to begin has begun with one like it.
    pub(super) fn starts_at_once(&self, who: &Principal, claim: Claim) -> bool {
        let about_to = |seated: usize, held_up: usize| (seated - held_up) as u64;
        let own = self.lines.get(&who.name).map_or(0, |line| about_to(line.seated, line.held_up));
        let all = about_to(self.seated, self.held_up);
        let may_begin = self.running(who) + own < most(who);
        self.queued == 0 && claim.times(all + 1).fits(self.free) && may_begin
    }

    /// Whether the principal runs as much at once as it may; then only its own turns matter to it.
    fn has_all(&self, who: &Principal) -> bool {
        self.running(who) >= most(who)
    }

    fn running(&self, who: &Principal) -> u64 {
        self.lines.get(&who.name).map_or(0, |line| line.running.slots)
    }

    /// How many turns that come to an end make way for one more run of that principal.
    pub(super) fn makes_way(&self, who: &Principal) -> usize {
        if self.has_all(who) { self.running(who) as usize } else { self.held() }
    }

    pub(super) fn queued_of(&self, who: &PrincipalName) -> usize {
        self.lines.get(who).map_or(0, |line| line.waiting.len())
    }

    fn seated_of(&self, who: &PrincipalName) -> usize {
        self.lines.get(who).map_or(0, |line| line.seated)
    }

    /// What counts against what may wait: runs, and batches none of whose runs does.
    pub(super) fn waiting_of(&self, who: &PrincipalName) -> usize {
        self.queued_of(who) + self.seated_of(who)
    }

    pub(super) fn waiting(&self) -> usize {
        self.queued + self.seated
    }

    /// Everybody who waits, and with how many runs and batches.
    pub(super) fn waiting_by(&self) -> Vec<(PrincipalName, usize)> {
        let waiting = |line: &Line| line.waiting.len() + line.seated;
        let lines = self.lines.iter().filter(|(_, line)| waiting(line) > 0);
        lines.map(|(name, line)| (name.clone(), waiting(line))).collect()
    }

    /// Whether batches of that principal wait for something else than a slot: then one more is likely to.
    pub(super) fn is_held_up(&self, who: &PrincipalName) -> bool {
        self.lines.get(who).is_some_and(|line| line.held_up > 0)
    }

    /// Counts a batch none of whose runs has a place.
    pub(super) fn sit(&mut self, who: &Principal) {
        self.seated += 1;
        self.line(who).seated += 1;
    }

    /// It takes no slot for now, however many are free.
    pub(super) fn hold_up(&mut self, who: &PrincipalName) {
        self.held_up += 1;
        if let Some(line) = self.lines.get_mut(who) {
            line.held_up += 1;
        }
    }

    /// It counts no more.
    pub(super) fn rise(&mut self, who: &PrincipalName, held_up: bool) {
        self.seated -= 1;
        self.held_up -= usize::from(held_up);
        if let Some(line) = self.lines.get_mut(who) {
            line.seated -= 1;
            line.held_up -= usize::from(held_up);
        }
    }

    pub(super) fn oldest(&self) -> Option<Instant> {
        self.lines.values().flat_map(|line| line.waiting.values()).map(|waiting| waiting.since).min()
    }

    /// The principal's bucket, full at its first run.
    pub(super) fn bucket(&mut self, who: &Principal, per_minute: u32, now: Instant) -> &mut Bucket {
        let line = self.line(who);
        line.bucket.get_or_insert_with(|| Bucket::full(per_minute, now))
    }

    fn line(&mut self, who: &Principal) -> &mut Line {
        if !self.lines.contains_key(&who.name) {
            let line = Line {
                waiting: BTreeMap::new(),
                seated: 0,
                held_up: 0,
                running: Claim::default(),
                served: 0,
                concurrency: u64::MAX,
                bucket: None,
            };
            self.lines.insert(who.name.clone(), line);
        }
        let line = self.lines.get_mut(&who.name).expect("it was put there");
        line.concurrency = most(who);
        line
    }

    /// Puts a run into the queue; whether it has to wait there, [`Fair::next`] decides.
    pub(super) fn enter(&mut self, who: &Principal, priority: i32, claim: Claim, now: Instant) -> Place {
        let key = (Reverse(priority), self.arrivals);
        self.arrivals += 1;
        self.enter_as(who, key, claim, now)
    }

    /// The same for one that has had that place, and has left it.
    pub(super) fn enter_as(&mut self, who: &Principal, key: Key, claim: Claim, now: Instant) -> Place {
        self.queued += 1;
        self.line(who).waiting.insert(key, Waiting { claim, since: now, overtaken: 0 });
        Place { who: who.name.clone(), key }
    }

    /// Whether it was still there.
    pub(super) fn leave(&mut self, place: &Place) -> bool {
        let left =
            self.lines.get_mut(&place.who).is_some_and(|line| line.waiting.remove(&place.key).is_some());
        self.queued -= usize::from(left);
        left
    }

    /// What a turn has taken comes back.
    pub(super) fn release(&mut self, turn: &Turn) {
        self.free = self.free.plus(turn.claim);
        if let Some(cores) = &mut self.free_cores {
            cores.extend(&turn.cores);
        }
        if let Some(line) = self.lines.get_mut(&turn.place.who) {
            line.running = line.running.minus(turn.claim);
        }
    }

    /// The next turn, if anybody waits who may have one and there is room.
    pub(super) fn next(&mut self) -> Option<Turn> {
        if self.queued == 0 || self.free.slots == 0 {
            return None;
        }
        let mut passed: Vec<PrincipalName> = Vec::new();
        loop {
            let (who, key, first) = self.first(&passed)?;
            if first.claim.fits(self.free) {
                let (who, claim) = (who.clone(), first.claim);
                for name in &passed {
                    self.overtake(name);
                }
                return Some(self.serve(Place { who, key }, claim));
            }
            if first.overtaken >= OVERTAKEN_MAX {
                return None;
            }
            passed.push(who.clone());
        }
    }

    /// Whose turn it would be, but for those that were passed over.
    fn first(&self, passed: &[PrincipalName]) -> Option<(&PrincipalName, Key, &Waiting)> {
        let may_go = |(name, line): &(&PrincipalName, &Line)| {
            !line.waiting.is_empty() && line.running.slots < line.concurrency && !passed.contains(name)
        };
        let rank = |line: &Line| (line.running.share(self.whole), line.served);
        let lines = self.lines.iter().filter(may_go);
        let (name, line) = lines.min_by(|(_, a), (_, b)| {
            let ((a, a_served), (b, b_served)) = (rank(a), rank(b));
            a.total_cmp(&b).then(a_served.cmp(&b_served))
        })?;
        let (key, waiting) = line.waiting.first_key_value()?;
        Some((name, *key, waiting))
    }

    fn overtake(&mut self, name: &PrincipalName) {
        if let Some(mut first) = self.lines.get_mut(name).and_then(|line| line.waiting.first_entry()) {
            first.get_mut().overtaken += 1;
        }
    }

    fn serve(&mut self, place: Place, claim: Claim) -> Turn {
        self.turns += 1;
        self.free = self.free.minus(claim);
        self.leave(&place);
        if let Some(line) = self.lines.get_mut(&place.who) {
            line.served = self.turns;
            line.running = line.running.plus(claim);
        }
        let cores = match &mut self.free_cores {
            Some(free) => (0..claim.cores()).filter_map(|_| free.pop_first()).collect(),
            None => Vec::new(),
        };
        Turn { place, claim, cores }
    }

    /// How many turns come before this one and with it, if nobody else comes: its own principal's ahead of
    /// it, and of the others as many as they have, but not more, since they take turns.
    pub(super) fn position(&self, place: &Place) -> Option<usize> {
        let line = self.lines.get(&place.who).filter(|line| line.waiting.contains_key(&place.key))?;
        let rank = line.waiting.range(..=place.key).count();
        let others = self.lines.iter().filter(|(name, _)| **name != place.who);
        Some(rank + others.map(|(_, line)| line.waiting.len().min(rank)).sum::<usize>())
    }

    /// The same for one more run of that principal.
    pub(super) fn position_of_next(&self, who: &PrincipalName) -> usize {
        let rank = self.queued_of(who) + 1;
        let others = self.lines.iter().filter(|(name, _)| *name != who);
        rank + others.map(|(_, line)| line.waiting.len().min(rank)).sum::<usize>()
    }
}
