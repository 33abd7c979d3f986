//! The time by which things are kept: the machine's clock when this process started, and from there on one
//! that nobody sets. A machine whose clock jumps by hours forgets nothing too early and keeps nothing for longer.
//! What is told to people, when a run began and ended, is the machine's own clock as it is.

use std::sync::OnceLock;
use std::time::{Instant, SystemTime};

use jiff::Timestamp;

/// Now, however often the machine's clock was set since the start.
pub(crate) fn now() -> SystemTime {
    static START: OnceLock<(SystemTime, Instant)> = OnceLock::new();
    let (clock, since) = START.get_or_init(|| (SystemTime::now(), Instant::now()));
    *clock + since.elapsed()
}

/// The same as what is written down.
pub(crate) fn timestamp() -> Timestamp {
    Timestamp::try_from(now()).unwrap_or(Timestamp::MAX)
}

/// When something that is kept until `at` will be gone by the machine's clock, as that goes now.
pub(crate) fn told(at: SystemTime) -> Timestamp {
    let left = at.duration_since(now()).unwrap_or_default();
    Timestamp::try_from(SystemTime::now() + left).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// On a machine whose clock is not set meanwhile both are the same.
    #[test]
    fn it_goes_as_the_machine_s_clock_does() {
        let (first, second) = (now(), now());
        assert!(first <= second);
        let hour = Duration::from_secs(3600);
        let apart = told(now() + hour).duration_since(Timestamp::try_from(SystemTime::now() + hour).unwrap());
        assert!(apart.unsigned_abs() < Duration::from_secs(60), "{apart:?}");
        assert!(timestamp().duration_since(Timestamp::now()).unsigned_abs() < Duration::from_secs(60));
    }
}
