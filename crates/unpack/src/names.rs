//! Which names are taken. Whoever makes a file without looking what is in its place, or out of turn, asks here first.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};

/// Every name that something was made under so far, also where it was removed since. Two names may be taken for one,
/// rarely, and then the second is said to be taken though it is free; never the other way round. Four bytes a name, as
/// there may be millions of them.
#[derive(Default)]
pub(crate) struct Names {
    hasher: RandomState,
    taken: HashSet<u32>,
}

impl Names {
    /// Takes the name in the directory with that inode. Whether it was free.
    pub(crate) fn take(&mut self, directory: u64, name: &[u8]) -> bool {
        let hash = self.hasher.hash_one((directory, name));
        self.taken.insert((hash >> 32) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_free_once_in_each_directory() {
        let mut names = Names::default();
        assert!(names.take(1, b"a"));
        assert!(names.take(2, b"a"));
        assert!(names.take(1, b"b"));
        assert!(!names.take(1, b"a"));
        assert!(!names.take(2, b"a"));
    }
}
