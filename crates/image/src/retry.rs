//! When a request is worth repeating, and how long to wait before it is.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, SystemTime};

use reqwest::header::{HeaderMap, RETRY_AFTER};

use crate::ImageError;

/// Why requests are repeated, all there is.
pub const REASONS: [&str; 5] = ["rate_limit", "server_error", "timeout", "connect", "broken"];
const ATTEMPTS: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A registry that wants us to wait longer is told to its clients as an error.
pub(crate) const MOST_PATIENCE: Duration = Duration::from_secs(60);

/// Why one attempt failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Another attempt would fail alike.
    Final(ImageError),
    /// It may be better in a moment. The error is for when it is not.
    Passing { reason: &'static str, after: Option<Duration>, error: ImageError },
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        Self::Final(error)
    }
}

/// Counts attempts. Progress in between starts the count again.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failed: u32,
}

impl Backoff {
    pub(crate) fn progress(&mut self) {
        self.failed = 0;
    }

    /// The pause before the next attempt and why it is made, or the error that stays.
    pub(crate) fn after(&mut self, failure: Failure) -> Result<(Duration, &'static str), ImageError> {
        let (reason, after, error) = match failure {
            Failure::Final(error) => return Err(error),
            Failure::Passing { reason, after, error } => (reason, after, error),
        };
        self.failed += 1;
        if self.failed >= ATTEMPTS || after.is_some_and(|after| after > MOST_PATIENCE) {
            return Err(error);
        }
        // All who failed at the same moment must not come back at the same moment.
        let most = (FIRST_PAUSE * 2u32.pow(self.failed - 1)).min(LONGEST_PAUSE);
        let jitter = most.mul_f64(random());
        Ok((after.map_or(jitter, |after| after + jitter.min(FIRST_PAUSE)), reason))
    }
}

/// Between 0 and 1. The standard library seeds every hasher at random, and that is random enough.
fn random() -> f64 {
    (RandomState::new().hash_one(0u8) >> 11) as f64 / (1u64 << 53) as f64
}

/// `Retry-After` in seconds or as a date.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    match text.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => {
            let date = httpdate::parse_http_date(text).ok()?;
            Some(date.duration_since(SystemTime::now()).unwrap_or_default())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passing(after: Option<u64>) -> Failure {
        let error = ImageError::RateLimited { registry: "r".into(), retry_after: None };
        Failure::Passing { reason: "429", after: after.map(Duration::from_secs), error }
    }

    #[test]
    fn attempts_are_counted_and_progress_forgives() {
        let mut backoff = Backoff::default();
        for most in [500, 1000, 2000, 4000] {
            let (pause, _) = backoff.after(passing(None)).unwrap();
            assert!(pause <= Duration::from_millis(most));
        }
        assert!(backoff.after(passing(None)).is_err());
        backoff.progress();
        let (pause, reason) = backoff.after(passing(Some(7))).unwrap();
        assert!(pause >= Duration::from_secs(7) && reason == "429");
        assert!(backoff.after(passing(Some(61))).is_err());
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, text.parse().unwrap());
            retry_after(&headers)
        };
        assert_eq!(read("12"), Some(Duration::from_secs(12)));
        let soon = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(30));
        assert!((25..=30).contains(&read(&soon).unwrap().as_secs()));
        assert_eq!(read("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        assert_eq!(read("soon"), None);
    }
}
