//! What a run takes of the host while it has a slot, and what the host has.

use run::Limits;

/// What all runs together may claim.
#[derive(Clone, Debug, PartialEq)]
pub struct Budget {
    pub cpus: f64,
    pub memory_bytes: u64,
    /// Cores of which each run gets its own; empty: runs share all of them.
    pub cores: Vec<usize>,
}

impl Default for Budget {
    /// Bounded by the slots alone.
    fn default() -> Self {
        Self { cpus: f64::from(u32::MAX), memory_bytes: u64::MAX, cores: Vec::new() }
    }
}

/// What one run takes. Processors are counted in thousandths, so that sums are exact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(super) slots: u64,
    pub(super) milli_cpus: u64,
    pub(super) memory_bytes: u64,
}

/// A run that asks for more than there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TooLarge {
    pub(crate) limit: &'static str,
    pub(crate) asked: String,
    pub(crate) most: String,
}

impl Claim {
    pub(super) fn of(limits: &Limits, budget: &Budget) -> Self {
        let milli = |cpus: f64| (cpus * 1000.0).ceil() as u64;
        let milli_cpus = match budget.cores.is_empty() {
            true => milli(limits.cpus),
            false => milli(limits.cpus.ceil().max(1.0)),
        };
        Self { slots: 1, milli_cpus, memory_bytes: limits.memory_bytes }
    }

    /// Everything that there is.
    pub(super) fn all(slots: usize, budget: &Budget) -> Self {
        let milli_cpus = match budget.cores.len() {
            0 => (budget.cpus * 1000.0) as u64,
            cores => cores as u64 * 1000,
        };
        Self { slots: slots as u64, milli_cpus, memory_bytes: budget.memory_bytes }
    }

    pub(super) fn cores(self) -> usize {
        self.milli_cpus.div_ceil(1000) as usize
    }

    pub(super) fn plus(self, other: Self) -> Self {
        Self {
            slots: self.slots + other.slots,
            milli_cpus: self.milli_cpus.saturating_add(other.milli_cpus),
            memory_bytes: self.memory_bytes.saturating_add(other.memory_bytes),
        }
    }

    pub(super) fn times(self, number: u64) -> Self {
        Self {
            slots: self.slots * number,
            milli_cpus: self.milli_cpus.saturating_mul(number),
            memory_bytes: self.memory_bytes.saturating_mul(number),
        }
    }

    pub(super) fn minus(self, other: Self) -> Self {
        Self {
            slots: self.slots.saturating_sub(other.slots),
            milli_cpus: self.milli_cpus.saturating_sub(other.milli_cpus),
            memory_bytes: self.memory_bytes.saturating_sub(other.memory_bytes),
        }
    }

    pub(super) fn fits(self, within: Self) -> bool {
        self.slots <= within.slots
            && self.milli_cpus <= within.milli_cpus
            && self.memory_bytes <= within.memory_bytes
    }

    /// How much of the whole this is, by what it has the most of.
    pub(super) fn share(self, whole: Self) -> f64 {
        let part = |part: u64, whole: u64| part as f64 / whole.max(1) as f64;
        part(self.slots, whole.slots)
            .max(part(self.milli_cpus, whole.milli_cpus))
            .max(part(self.memory_bytes, whole.memory_bytes))
    }

    pub(super) fn check(self, limits: &Limits, whole: Self) -> Result<(), TooLarge> {
        let too_large = |limit, asked: String, most: String| Err(TooLarge { limit, asked, most });
        if self.milli_cpus > whole.milli_cpus {
            return too_large(
                "cpus",
                limits.cpus.to_string(),
                (whole.milli_cpus as f64 / 1000.0).to_string(),
            );
        }
        if self.memory_bytes > whole.memory_bytes {
            return too_large("memory_bytes", self.memory_bytes.to_string(), whole.memory_bytes.to_string());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budget(cpus: f64, memory_bytes: u64, cores: &[usize]) -> Budget {
        Budget { cpus, memory_bytes, cores: cores.to_vec() }
    }

    #[test]
    fn a_run_that_is_larger_than_the_host_is_refused_by_name() {
        let limits = |cpus: f64, memory_bytes: u64| Limits { cpus, memory_bytes, ..Limits::default() };
        let shared = budget(4.0, 1 << 30, &[]);
        let pinned = budget(64.0, 1 << 30, &[0, 1]);
        for (limits, budget, named) in [
            (limits(4.0, 1 << 30), &shared, None),
            (limits(4.001, 1), &shared, Some("cpus")),
            (limits(1.0, (1 << 30) + 1), &shared, Some("memory_bytes")),
            (limits(2.0, 1), &pinned, None),
            (limits(2.1, 1), &pinned, Some("cpus")),
        ] {
            let checked = Claim::of(&limits, budget).check(&limits, Claim::all(8, budget));
            assert_eq!(checked.err().map(|large| large.limit), named, "{limits:?}");
        }
    }

    #[test]
    fn a_pinned_run_takes_whole_cores() {
        let pinned = budget(0.0, 1, &[3, 4, 5]);
        for (cpus, cores) in [(0.01, 1), (1.0, 1), (1.01, 2), (3.0, 3)] {
            let claim = Claim::of(&Limits { cpus, ..Limits::default() }, &pinned);
            assert_eq!((claim.cores(), claim.milli_cpus), (cores, cores as u64 * 1000), "{cpus}");
        }
    }

    #[test]
    fn a_share_is_that_of_what_is_scarcest() {
        let whole = Claim { slots: 10, milli_cpus: 4000, memory_bytes: 100 };
        for (slots, milli_cpus, memory_bytes, share) in
            [(1, 100, 1, 0.1), (1, 2000, 1, 0.5), (1, 100, 90, 0.9), (0, 0, 0, 0.0)]
        {
            let claim = Claim { slots, milli_cpus, memory_bytes };
            assert!((claim.share(whole) - share).abs() < 1e-9, "{claim:?}");
        }
    }
}
