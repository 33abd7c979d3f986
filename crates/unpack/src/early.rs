//! When the disk begins with a file. Left alone, it begins with all of them at the end, in the one sync that whoever
//! pulls an image waits for, while nothing else is left to do.

/// After so much of a file.
const STEP_BYTES: u64 = 1 << 20;
/// What is smaller costs more to be begun early than that saves.
const WORTH_BYTES: u64 = 64 << 10;

/// One stretch of a file that is being written.
pub(crate) struct Early {
    bytes: u64,
    begun: u64,
}

impl Early {
    pub(crate) fn with(bytes: u64) -> Self {
        Self { bytes, begun: 0 }
    }

    /// Where in the stretch, and with how many bytes, the disk is to begin once so much is written.
    pub(crate) fn after(&mut self, written: u64) -> Option<(u64, u64)> {
        let (from, more) = (self.begun, written - self.begun);
        let is_end = written == self.bytes && self.bytes >= WORTH_BYTES;
        let is_due = more >= STEP_BYTES || is_end;
        is_due.then(|| {
            self.begun = written;
            (from, more)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u64 = 1024;

    #[test]
    fn the_disk_begins_with_what_is_large_and_leaves_nothing_of_it_for_the_end() {
        let begun = |bytes: u64| {
            let mut early = Early::with(bytes);
            let written = (1..=bytes / (16 * KIB)).map(|at| at * 16 * KIB);
            written.filter_map(|written| early.after(written)).collect::<Vec<_>>()
        };
        assert_eq!(begun(48 * KIB), []);
        assert_eq!(begun(64 * KIB), [(0, 64 * KIB)]);
        assert_eq!(begun(1024 * KIB), [(0, 1024 * KIB)]);
        let ends = [(0, 1024 * KIB), (1024 * KIB, 1024 * KIB), (2048 * KIB, 32 * KIB)];
        assert_eq!(begun(2080 * KIB), ends);
    }
}
