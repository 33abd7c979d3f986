//! What happens in the engine, for whoever counts it. One method per event.

use std::time::Duration;

use run::{KilledFor, Run, Verdict};

/// Why a run was turned away: a closed set, because it becomes a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    QueueFull,
    /// The principal asks too often.
    RateLimit,
    /// As many of the principal's runs wait as its key allows.
    Quota,
    /// It asks for more than the host has.
    TooLarge,
    /// It could not start as soon as it must.
    Deadline,
}

impl Rejection {
    pub fn as_str(self) -> &'static str {
        match self {
            Rejection::QueueFull => "queue_full",
            Rejection::RateLimit => "rate_limit",
            Rejection::Quota => "quota",
            Rejection::TooLarge => "too_large",
            Rejection::Deadline => "deadline",
        }
    }
}

/// How long the parts of a start took.
#[derive(Clone, Copy, Debug)]
pub struct Startup {
    pub image: Duration,
    /// From the launcher's having the request to the program's start.
    pub setup: Duration,
    /// The rest: the way to the launcher and back.
    pub exec: Duration,
    /// The image had to be fetched first.
    pub fetched: bool,
}

/// Every method may be called from any thread and must not block.
pub trait Observer: Send + Sync + 'static {
    fn rejected(&self, reason: Rejection) {
        let _ = reason;
    }
    /// A slot was given to a run that had waited this long.
    fn dequeued(&self, waited: Duration) {
        let _ = waited;
    }
    fn started(&self, startup: Startup) {
        let _ = startup;
    }
    /// `overshoot` is how far past its limit a run that was killed for time died.
    fn finished(&self, run: &Run, overshoot: Option<(KilledFor, Duration)>) {
        let _ = (run, overshoot);
    }
    /// `verdict` is absent where nothing was expected of any test.
    fn batch_finished(&self, verdict: Option<Verdict>) {
        let _ = verdict;
    }
    /// Mounts and cgroups are gone, or (not `clean`) something stayed behind.
    fn torn_down(&self, took: Duration, clean: bool) {
        let _ = (took, clean);
    }
}

/// Counts nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoObserver;

impl Observer for NoObserver {}
