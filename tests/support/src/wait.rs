//! Waiting for a condition with a bound, never for a time.

use std::thread::sleep;
use std::time::{Duration, Instant};

/// Asks again and again until there is an answer; panics with `what` when there is none in time.
#[track_caller]
pub fn within<T>(bound: Duration, what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(started.elapsed() < bound, "{what}: not within {bound:?}");
        sleep(Duration::from_millis(5));
    }
}

/// Waits at most ten seconds for something to be true.
#[track_caller]
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    within(Duration::from_secs(10), what, || condition().then_some(()));
}
