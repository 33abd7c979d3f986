//! Sandboxes prepared ahead of need: how many, for which images, and which one a run gets. Nothing here
//! waits or asks anybody; the launcher's client does what this decides. A sandbox is for one run: it is
//! taken out to be used, and never comes back.

use std::collections::VecDeque;

use sandbox::protocol::{LaunchSpec, Outline};

/// How many of the last runs say which images will be wanted next.
const REMEMBERED_RUNS: usize = 32;

/// After this many runs that all found more sandboxes than they needed there is one less.
const CALM_RUNS: usize = 64;

/// How well foresight has worked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolCounts {
    /// Sandboxes that wait for a run.
    pub prepared: usize,
    /// Runs that found a sandbox, and runs that had to wait for theirs.
    pub hits: u64,
    pub misses: u64,
}

/// `S` is a sandbox as its owner knows it.
#[derive(Debug)]
pub(crate) struct Pool<S> {
    /// Never more than this; 0 means none at all.
    max: usize,
    /// As many as are wanted now.
    target: usize,
    /// The oldest first.
    waiting: VecDeque<(Outline, S)>,
    /// What the last runs wanted, the newest last.
    wanted: VecDeque<Outline>,
    calm: usize,
    hits: u64,
    misses: u64,
    removals: u64,
}

impl<S> Pool<S> {
    pub(crate) fn new(max: usize) -> Self {
        Self {
            max,
            target: max.min(1),
            waiting: VecDeque::new(),
            wanted: VecDeque::new(),
            calm: 0,
            hits: 0,
            misses: 0,
            removals: 0,
        }
    }

    /// A sandbox for this run: one with its layers if there is one, else one that has none yet.
    /// `is_fit` says of each whether it still lives; one that doesn't is dropped.
    pub(crate) fn take(&mut self, spec: &LaunchSpec, mut is_fit: impl FnMut(&S) -> bool) -> Option<S> {
        if self.max == 0 {
            return None;
        }
        let mut taken = None;
        while taken.is_none() {
            let suits = |rooted: bool| {
                move |(outline, _): &(Outline, S)| outline.rootfs.is_some() == rooted && outline.suits(spec)
            };
            let place = self.waiting.iter().position(suits(true));
            let Some(place) = place.or_else(|| self.waiting.iter().position(suits(false))) else { break };
            taken = self.waiting.remove(place).map(|(_, sandbox)| sandbox).filter(&mut is_fit);
        }
        self.learn(spec, taken.is_some());
        taken
    }

    /// As many as are used up, and no more: each run that finds none asks for one more from then on.
    fn learn(&mut self, spec: &LaunchSpec, hit: bool) {
        if self.wanted.len() == REMEMBERED_RUNS {
            self.wanted.pop_front();
        }
        self.wanted.push_back(Outline::of(spec));
        if hit {
            self.hits += 1;
            self.calm = if self.waiting.is_empty() { 0 } else { self.calm + 1 };
        } else {
            self.misses += 1;
            self.calm = 0;
            self.target = (self.target + 1).min(self.max);
        }
        if self.calm == CALM_RUNS {
            self.calm = 0;
            self.target = (self.target - 1).max(1);
        }
    }

    /// What to prepare next, if there are too few. What was wanted more than once lately will be wanted
    /// again, and goes before what is wanted no more; else one is prepared that any image can use.
    pub(crate) fn missing(&mut self, blank: &Outline) -> Option<Outline> {
        let next = self.likely().unwrap_or_else(|| blank.clone());
        if self.waiting.len() < self.target {
            return Some(next);
        }
        let enough = self.max == 0 || self.waiting.iter().any(|(outline, _)| outline.is_like(&next));
        if enough || next.rootfs.is_none() {
            return None;
        }
        self.waiting.pop_front();
        Some(next)
    }

    /// The newest of the wanted ones, if it was wanted before.
    fn likely(&self) -> Option<Outline> {
        let newest = self.wanted.back()?;
        let times = self.wanted.iter().filter(|wanted| wanted.is_like(newest)).count();
        (times > 1).then(|| newest.clone())
    }

    pub(crate) fn add(&mut self, outline: Outline, sandbox: S) {
        self.waiting.push_back((outline, sandbox));
    }

    /// Takes a used one, as only a build does in which that wall can be taken down: it is the next to be used.
    pub(crate) fn take_back(&mut self, outline: Outline, sandbox: S) {
        self.waiting.push_front((outline, sandbox));
        self.waiting.truncate(self.target);
    }

    /// Forgets every sandbox that has layers when some have been removed since the last call: a layer
    /// that is fetched again has the same name and is another.
    pub(crate) fn heed_removals(&mut self, removals: u64) {
        if self.removals != removals && walls::stands("removed_layers") {
            self.removals = removals;
            self.waiting.retain(|(outline, _)| outline.rootfs.is_none());
        }
    }

    pub(crate) fn counts(&self) -> PoolCounts {
        PoolCounts { prepared: self.waiting.len(), hits: self.hits, misses: self.misses }
    }
}

#[cfg(test)]
mod tests {
    use run::{Limits, Profile};

    use super::*;

    const MAX: usize = 3;

    fn spec(layer: &str) -> LaunchSpec {
        serde_json::from_value(serde_json::json!({
            "rootfs": { "layers": [layer] }, "argv": ["x"], "env": [], "workdir": "", "user": "",
            "limits": Limits::default(), "files": [], "profile": "strict",
        }))
        .unwrap()
    }

    fn blank() -> Outline {
        Outline::blank(Limits::default())
    }

    fn of(layer: &str) -> Outline {
        Outline::of(&spec(layer))
    }

    fn take(pool: &mut Pool<u32>, layer: &str) -> Option<u32> {
        pool.take(&spec(layer), |_| true)
    }

    #[test]
    fn a_run_gets_the_sandbox_with_its_layers_before_one_without_any() {
        let mut pool = Pool::new(MAX);
        pool.add(blank(), 1);
        pool.add(of("a"), 2);
        assert_eq!(
            [take(&mut pool, "a"), take(&mut pool, "a"), take(&mut pool, "a")],
            [Some(2), Some(1), None]
        );
        pool.add(of("a"), 3);
        assert_eq!(take(&mut pool, "b"), None);
        assert_eq!(pool.counts(), PoolCounts { prepared: 1, hits: 2, misses: 2 });
    }

    #[test]
    fn another_profile_s_sandbox_is_not_taken() {
        let mut pool = Pool::new(MAX);
        pool.add(Outline { profile: Profile::Compat, ..blank() }, 1);
        assert_eq!(take(&mut pool, "a"), None);
    }

    #[test]
    fn a_dead_sandbox_is_passed_over() {
        let mut pool = Pool::new(MAX);
        pool.add(of("a"), 1);
        pool.add(of("a"), 2);
        assert_eq!(pool.take(&spec("a"), |sandbox| *sandbox != 1), Some(2));
        assert_eq!(pool.counts().prepared, 0);
    }

    #[test]
    fn there_are_more_when_runs_find_none_and_fewer_when_all_find_too_many() {
        let mut pool = Pool::<u32>::new(MAX);
        for _ in 0..10 {
            assert_eq!(take(&mut pool, "a"), None);
        }
        assert_eq!(pool.target, MAX);
        for number in 0..3 {
            let outline = pool.missing(&blank()).expect("too few");
            pool.add(outline, number);
        }
        assert_eq!(pool.missing(&blank()), None);
        for number in 0..CALM_RUNS as u32 {
            assert!(take(&mut pool, "a").is_some());
            pool.add(of("a"), number);
        }
        assert_eq!(pool.target, MAX - 1);
    }

    #[test]
    fn what_is_wanted_again_and_again_is_prepared_and_what_was_wanted_once_is_not() {
        let mut pool = Pool::<u32>::new(MAX);
        take(&mut pool, "a");
        assert_eq!(pool.missing(&blank()), Some(blank()));
        take(&mut pool, "a");
        assert_eq!(pool.missing(&blank()), Some(of("a")));
    }

    #[test]
    fn a_new_favourite_takes_the_place_of_the_old_one() {
        let mut pool = Pool::new(1);
        pool.add(of("a"), 1);
        take(&mut pool, "b");
        assert_eq!(pool.missing(&blank()), None);
        take(&mut pool, "b");
        assert_eq!(pool.missing(&blank()), Some(of("b")));
        assert_eq!(pool.counts().prepared, 0);
    }

    #[test]
    fn without_room_for_any_nothing_is_prepared_or_counted() {
        let mut pool = Pool::<u32>::new(0);
        assert_eq!(take(&mut pool, "a"), None);
        assert_eq!(pool.missing(&blank()), None);
        assert_eq!(pool.counts(), PoolCounts::default());
    }

    #[test]
    fn layers_that_go_take_their_sandboxes_along() {
        let mut pool = Pool::new(MAX);
        pool.add(of("a"), 1);
        pool.add(blank(), 2);
        pool.heed_removals(0);
        assert_eq!(pool.counts().prepared, 2);
        pool.heed_removals(1);
        assert_eq!(take(&mut pool, "a"), Some(2));
    }
}
