//! What files take of a run when they are laid in. What can't fit into its limits is refused by name, or the set-up
//! would fail later and less clearly.

use std::collections::BTreeSet;

use run::{FileContent, FileSpec, Limits, StoredFile};

use super::content::Lookup;
use super::problem::BadValue;

const PAGE_BYTES: u64 = 4096;

/// Each is a descriptor on its way to the sandbox, and those are limited.
const MAX_STORED_FILES: usize = 190;

/// Of some files together.
#[derive(Clone, Debug, Default)]
pub(super) struct Laid {
    bytes: u64,
    inodes: u64,
    stored: BTreeSet<StoredFile>,
}

impl Laid {
    pub(super) fn of(files: &[FileSpec], lookup: Lookup<'_>) -> Self {
        let mut laid = Self::default();
        for file in files {
            let len = match &file.content {
                FileContent::Bytes(bytes) => bytes.len() as u64,
                FileContent::Stored(stored) => lookup(&stored.id).map_or(0, |found| found.len),
                FileContent::Local(_) => 0,
            };
            laid.add(file, len);
        }
        laid
    }

    pub(super) fn add(&mut self, file: &FileSpec, len: u64) {
        self.bytes = self.bytes.saturating_add(len.next_multiple_of(PAGE_BYTES));
        self.inodes += file.path.split('/').filter(|name| !name.is_empty()).count() as u64;
        if let FileContent::Stored(stored) = &file.content {
            self.stored.insert(stored.clone());
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.inodes == 0
    }

    pub(super) fn and(&self, more: &Self) -> Self {
        let (bytes, inodes) = (self.bytes.saturating_add(more.bytes), self.inodes + more.inodes);
        Self { bytes, inodes, stored: self.stored.union(&more.stored).cloned().collect() }
    }

    /// What of it is too much for a run with these limits.
    pub(super) fn check(&self, at: &str, limits: &Limits) -> Vec<BadValue> {
        let mut bad = Vec::new();
        let Self { bytes, inodes, stored } = self;
        for (name, most) in [("disk_bytes", limits.disk_bytes), ("memory_bytes", limits.memory_bytes)] {
            if *bytes > most {
                let detail =
                    format!("hold {bytes} bytes together (whole pages); the limit `{name}` is {most}");
                bad.push(BadValue::at(at, detail));
            }
        }
        if *inodes > limits.inodes {
            let detail =
                format!("may need {inodes} files and folders; the limit `inodes` is {}", limits.inodes);
            bad.push(BadValue::at(at, detail));
        }
        if stored.len() > MAX_STORED_FILES {
            let detail =
                format!("name {} uploaded files; at most {MAX_STORED_FILES} are allowed", stored.len());
            bad.push(BadValue::at(at, detail));
        }
        bad
    }
}
