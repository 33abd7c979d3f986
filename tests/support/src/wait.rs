//! Waiting for a condition with a bound, never for a time.

use std::thread::sleep;
use std::time::{Duration, Instant};

/// How much longer everything may take here than on a machine that isn't emulated: `SANDGLASS_TIME_SCALE`.
pub fn scaled(bound: Duration) -> Duration {
    let scale = std::env::var("SANDGLASS_TIME_SCALE").ok().and_then(|text| text.parse::<u32>().ok());
    bound * scale.unwrap_or(1).max(1)
}

/// Asks again and again until there is an answer; panics with `what` when there is none in time.
#[track_caller]
pub fn within<T>(bound: Duration, what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let (started, bound) = (Instant::now(), scaled(bound));
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
