//! Where the time of a layer goes: into waiting for its registry, or for its unpacker.

use std::time::{Duration, Instant};

use crate::{LayerState, WaitsFor};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Waited {
    pub(crate) registry: Duration,
    pub(crate) unpacker: Duration,
}

pub(crate) struct Waits {
    pub(crate) all: Waited,
    /// Since the last word about it.
    lately: Waited,
    since: Instant,
}

impl Waits {
    pub(crate) fn begin() -> Self {
        Self { all: Waited::default(), lately: Waited::default(), since: Instant::now() }
    }

    /// Says what was waited for until now.
    pub(crate) fn had(&mut self, waited_for: WaitsFor) {
        let took = self.since.elapsed();
        self.since += took;
        for waited in [&mut self.all, &mut self.lately] {
            match waited_for {
                WaitsFor::Registry => waited.registry += took,
                WaitsFor::Unpacker => waited.unpacker += took,
            }
        }
    }

    pub(crate) fn state(&mut self, bytes: u64, of: u64) -> LayerState {
        let Waited { registry, unpacker } = std::mem::take(&mut self.lately);
        let waits_for = if unpacker > registry { WaitsFor::Unpacker } else { WaitsFor::Registry };
        LayerState::Downloading { bytes, of, waits_for }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longer_wait_is_the_one_that_is_told() {
        let mut waits = Waits::begin();
        let said = |waits: &mut Waits| match waits.state(1, 2) {
            LayerState::Downloading { waits_for, .. } => waits_for,
            other => panic!("{other:?}"),
        };
        assert_eq!(said(&mut waits), WaitsFor::Registry);
        waits.since -= Duration::from_secs(2);
        waits.had(WaitsFor::Unpacker);
        waits.since -= Duration::from_secs(1);
        waits.had(WaitsFor::Registry);
        assert_eq!(said(&mut waits), WaitsFor::Unpacker);
        assert_eq!(said(&mut waits), WaitsFor::Registry);
        assert!(waits.all.unpacker >= Duration::from_secs(2) && waits.all.registry >= Duration::from_secs(1));
    }
}
