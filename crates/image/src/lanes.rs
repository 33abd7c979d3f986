//! How many layers come at once. A layer whose registry sends next to nothing gives its place back to one that gets
//! on, and comes aside; else a few that never come would keep everybody else's images from coming. Of those there is a
//! bound as well, since each has a process that waits for its bytes.

use std::pin::pin;
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout};

/// For so many bytes a registry may be waited for so long: 128 KiB a second.
const PACE_BYTES: usize = 256 << 10;
const PACE_TIME: Duration = Duration::from_secs(2);

/// How many may come aside for each that comes as it should.
const ASIDE_EACH: usize = 8;

pub(crate) struct Lanes {
    places: Semaphore,
    aside: Semaphore,
}

/// The place of one layer.
pub(crate) struct Lane<'a> {
    lanes: &'a Lanes,
    _place: SemaphorePermit<'a>,
    is_aside: bool,
    /// How long the registry was waited for, and what it has sent in that time.
    waited: Duration,
    bytes: usize,
}

impl Lanes {
    pub(crate) fn new(places: usize) -> Self {
        Self { places: Semaphore::new(places), aside: Semaphore::new(places * ASIDE_EACH) }
    }

    pub(crate) async fn enter(&self) -> Lane<'_> {
        let place = self.places.acquire().await.expect("it is never closed");
        Lane { lanes: self, _place: place, is_aside: false, waited: Duration::ZERO, bytes: 0 }
    }
}

impl Lane<'_> {
    /// What comes from a registry next. As long as it does not come, the layer may lose its place.
    pub(crate) async fn wait<T>(&mut self, next: impl Future<Output = T>) -> T {
        let mut next = pin!(next);
        while !self.is_aside {
            let began = Instant::now();
            let came = timeout(PACE_TIME.saturating_sub(self.waited), &mut next).await;
            self.waited += began.elapsed();
            if let Ok(came) = came {
                return came;
            }
            self.step_aside();
        }
        next.await
    }

    pub(crate) fn had(&mut self, bytes: usize) {
        self.bytes += bytes;
        if self.bytes >= PACE_BYTES {
            (self.waited, self.bytes) = (Duration::ZERO, 0);
        }
    }

    fn step_aside(&mut self) {
        if let Ok(place) = self.lanes.aside.try_acquire() {
            (self._place, self.is_aside) = (place, true);
        }
        (self.waited, self.bytes) = (Duration::ZERO, 0);
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_sends_too_little_makes_room_and_who_sends_enough_does_not() {
        let lanes = Lanes::new(1);
        let mut slow = lanes.enter().await;
        assert!(timeout(PACE_TIME / 2, slow.wait(pending::<()>())).await.is_err());
        assert!(timeout(Duration::ZERO, lanes.enter()).await.is_err(), "it has the only place");
        // One that sends a little now and then is no better than one that sends nothing.
        slow.waited = PACE_TIME;
        slow.had(1);
        assert!(timeout(PACE_TIME / 2, slow.wait(pending::<()>())).await.is_err());
        let mut quick = timeout(Duration::ZERO, lanes.enter()).await.expect("there is room");
        quick.waited = PACE_TIME;
        quick.had(PACE_BYTES);
        quick.wait(ready(())).await;
        assert!(slow.is_aside && !quick.is_aside);
        assert!(timeout(Duration::ZERO, lanes.enter()).await.is_err(), "it has kept its place");
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_stepped_aside_have_a_bound() {
        let lanes = Lanes::new(1);
        let mut slow = Vec::new();
        for _ in 0..=ASIDE_EACH {
            let mut lane = lanes.enter().await;
            lane.waited = PACE_TIME;
            assert!(timeout(PACE_TIME / 2, lane.wait(pending::<()>())).await.is_err());
            slow.push(lane);
        }
        let aside = slow.iter().filter(|lane| lane.is_aside).count();
        assert_eq!(aside, ASIDE_EACH);
        assert!(timeout(Duration::ZERO, lanes.enter()).await.is_err());
        slow.pop();
        lanes.enter().await;
    }
}
