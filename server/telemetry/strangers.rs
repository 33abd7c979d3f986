//! Requests without a key. Each is counted, and of many at once only some have a line of their own: who knows no key
//! must not fill a disk with lines, nor keep those of others from being read.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How many lines there are in a second at most.
const LINES_MAX: u64 = 20;
const SECOND: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
pub(super) struct Strangers(Mutex<Window>);

#[derive(Debug, Default)]
struct Window {
    since: Option<Instant>,
    said: u64,
    unsaid: u64,
}

impl Strangers {
    /// Whether this one has a line, and how many before it had none.
    pub(super) fn may_say(&self, now: Instant) -> Option<u64> {
        let mut window = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if window.since.is_none_or(|since| now.saturating_duration_since(since) >= SECOND) {
            (window.since, window.said) = (Some(now), 0);
        }
        if window.said == LINES_MAX {
            window.unsaid += 1;
            return None;
        }
        window.said += 1;
        Some(std::mem::take(&mut window.unsaid))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_at_once_some_have_a_line_and_the_next_says_how_many_had_none() {
        let strangers = Strangers::default();
        let begin = Instant::now();
        let said = |after: Duration, times: u64| {
            (0..times).filter_map(|_| strangers.may_say(begin + after)).collect::<Vec<_>>()
        };
        assert_eq!(said(Duration::ZERO, 3), [0, 0, 0]);
        assert_eq!(said(SECOND / 2, 100).len() as u64, LINES_MAX - 3);
        assert_eq!(said(SECOND, 2), [83, 0]);
    }
}
