//! How fast slots come back: what `Retry-After` and a place in the queue are worth in time.

use std::collections::VecDeque;
use std::time::Duration;

/// How many past runs the rate is computed from.
const REMEMBERED: usize = 64;

/// What is said when nothing is known yet.
const UNKNOWN_WAIT: Duration = Duration::from_secs(1);

const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(60);

/// For how long slots were held lately. Idle times in between count for nothing.
#[derive(Debug, Default)]
pub(super) struct Drain {
    held: VecDeque<Duration>,
    sum: Duration,
}

impl Drain {
    pub(super) fn ended(&mut self, held: Duration) {
        if self.held.len() == REMEMBERED {
            self.sum -= self.held.pop_front().unwrap_or_default();
        }
        self.held.push_back(held);
        self.sum += held;
    }

    /// How long it takes until so many slots have come back, when so many are held now.
    pub(super) fn time_for(&self, slots: usize, held_now: usize) -> Option<Duration> {
        let mean = self.sum.checked_div(self.held.len() as u32)?;
        let mean = mean.as_secs_f64() * slots as f64 / held_now.max(1) as f64;
        Duration::try_from_secs_f64(mean).ok()
    }

    /// When it is worth trying again: once that many will have gone.
    pub(super) fn retry_after(&self, slots: usize, held_now: usize) -> Duration {
        self.time_for(slots.max(1), held_now).map_or(UNKNOWN_WAIT, |time| time.clamp(SHORTEST, LONGEST))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_is_what_lies_ahead_at_the_rate_of_late() {
        let second = Duration::from_secs(1);
        let mut drain = Drain::default();
        assert_eq!((drain.time_for(5, 1), drain.retry_after(5, 1)), (None, UNKNOWN_WAIT));
        for _ in 0..REMEMBERED {
            drain.ended(60 * second);
        }
        for _ in 0..REMEMBERED {
            drain.ended(2 * second);
        }
        for (slots, held_now, expected) in [(1, 1, 2), (6, 2, 6), (10, 1, 20), (0, 1, 2), (1000, 1, 60)] {
            assert_eq!(drain.retry_after(slots, held_now), expected * second, "{slots} {held_now}");
        }
        drain.sum = Duration::ZERO;
        assert_eq!(drain.retry_after(1, 1), SHORTEST);
    }
}
