//! How many runs of a principal are taken per minute: a bucket that fills as time passes.

use std::time::{Duration, Instant};

#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    left: f64,
    at: Instant,
}

impl Bucket {
    pub(super) fn full(per_minute: u32, now: Instant) -> Self {
        Self { left: depth(per_minute), at: now }
    }

    /// Takes one, or says when there will be one.
    pub(super) fn take(&mut self, per_minute: u32, now: Instant) -> Result<(), Duration> {
        let per_second = f64::from(per_minute) / 60.0;
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + passed * per_second).min(depth(per_minute));
        self.at = now;
        if self.left >= 1.0 {
            self.left -= 1.0;
            return Ok(());
        }
        Err(Duration::from_secs_f64((1.0 - self.left) / per_second))
    }

    /// The one that was taken was not used.
    pub(super) fn give_back(&mut self) {
        self.left += 1.0;
    }
}

/// Ten seconds' worth may come at once.
fn depth(per_minute: u32) -> f64 {
    (f64::from(per_minute) / 6.0).floor().max(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sixth_may_come_at_once_and_then_as_many_as_time_brings() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs_f64(seconds);
        for (per_minute, moments, taken) in [
            (60, &[0.0; 12][..], 10),
            (60, &[0.0, 0.0, 0.0, 1.0, 2.0], 5),
            (6, &[0.0, 0.0, 5.0, 9.9], 1),
            (6, &[0.0, 10.0, 20.0, 25.0], 3),
            (1, &[0.0, 59.0, 60.0, 61.0], 2),
        ] {
            let mut bucket = Bucket::full(per_minute, start);
            let count = moments.iter().filter(|at| bucket.take(per_minute, after(**at)).is_ok()).count();
            assert_eq!(count, taken, "{per_minute} {moments:?}");
        }
    }

    #[test]
    fn it_says_when_to_come_back_and_keeps_its_word() {
        let start = Instant::now();
        let mut bucket = Bucket::full(6, start);
        bucket.take(6, start).unwrap();
        let pause = bucket.take(6, start).unwrap_err();
        assert!((pause.as_secs_f64() - 10.0).abs() < 1e-6, "{pause:?}");
        assert!(bucket.take(6, start + pause).is_ok());
        bucket.give_back();
        assert!(bucket.take(6, start + pause).is_ok());
    }
}
