//! Which files there are, who holds them, and which has to go first. No disk is touched here: what was
//! dropped is handed out for somebody else to delete.

use std::collections::{BTreeMap, HashMap};
use std::time::SystemTime;

use run::{FileId, StoredFile};

use super::FileCounts;
use super::folder;

/// Where a file lies: its owner's folder, and its content.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) folder: String,
    pub(super) id: FileId,
}

impl Key {
    pub(super) fn of(file: &StoredFile) -> Self {
        Self { folder: folder::name_of(&file.owner), id: file.id }
    }
}

#[derive(Debug)]
struct Entry {
    len: u64,
    expires: SystemTime,
    /// Its place in the order of use.
    turn: u64,
    leases: usize,
    /// Its owner has removed it; only the leases keep it.
    doomed: bool,
}

#[derive(Debug)]
pub(super) struct Index {
    bytes_max: u64,
    files: HashMap<Key, Entry>,
    /// The least recently used first.
    order: BTreeMap<u64, Key>,
    next_turn: u64,
    /// Of the files and of what is reserved.
    bytes: u64,
    /// Of those files that nobody holds: all of it could go. Whoever waits for room asks often.
    idle_bytes: u64,
    dropped: Vec<Key>,
}

impl Index {
    pub(super) fn new(bytes_max: u64) -> Self {
        let (files, order) = (HashMap::new(), BTreeMap::new());
        Self { bytes_max, files, order, next_turn: 0, bytes: 0, idle_bytes: 0, dropped: Vec::new() }
    }

    /// Adds a file, or says of one that is there already that it is kept from now on.
    pub(super) fn add(&mut self, key: Key, len: u64, expires: SystemTime) {
        if let Some(entry) = self.files.get_mut(&key) {
            (entry.expires, entry.doomed) = (expires, false);
            return self.use_now(&key);
        }
        let turn = self.next_turn(&key);
        self.files.insert(key, Entry { len, expires, turn, leases: 0, doomed: false });
        self.bytes += len;
        self.idle_bytes += len;
    }

    pub(super) fn look(&self, key: &Key, now: SystemTime) -> Option<(u64, SystemTime)> {
        let entry = self.files.get(key).filter(|entry| entry.is_there(now))?;
        Some((entry.len, entry.expires))
    }

    /// A lease on the file, whose length this is.
    pub(super) fn hold(&mut self, key: &Key, now: SystemTime) -> Option<u64> {
        let entry = self.files.get_mut(key).filter(|entry| entry.is_there(now))?;
        entry.leases += 1;
        let len = entry.len;
        if entry.leases == 1 {
            self.idle_bytes -= len;
        }
        self.use_now(key);
        Some(len)
    }

    pub(super) fn let_go(&mut self, key: &Key) {
        let Some(entry) = self.files.get_mut(key) else { return };
        entry.leases -= 1;
        if entry.leases > 0 {
            return;
        }
        self.idle_bytes += entry.len;
        if entry.doomed {
            self.drop_file(key);
        }
    }

    pub(super) fn remove(&mut self, key: &Key, now: SystemTime) -> bool {
        let Some(entry) = self.files.get_mut(key).filter(|entry| entry.is_there(now)) else { return false };
        entry.doomed = true;
        if entry.leases == 0 {
            self.drop_file(key);
        }
        true
    }

    /// Sets room aside, dropping what is in the way and not in use; `false` where that is not enough.
    pub(super) fn reserve(&mut self, bytes: u64, now: SystemTime) -> bool {
        if !self.fits(bytes) {
            self.expire(now);
            if !self.make_room(bytes) {
                return false;
            }
        }
        self.bytes += bytes;
        true
    }

    /// Whether there would be so much room if everything went that is not in use, and `given_up` came back.
    pub(super) fn could_hold(&self, bytes: u64, given_up: u64) -> bool {
        self.bytes.saturating_sub(self.idle_bytes + given_up).saturating_add(bytes) <= self.bytes_max
    }

    fn make_room(&mut self, bytes: u64) -> bool {
        // Nothing is dropped for somebody who could not be served all the same.
        if !self.could_hold(bytes, 0) {
            return false;
        }
        let oldest_first: Vec<Key> = self.order.values().cloned().collect();
        for key in oldest_first {
            if self.fits(bytes) {
                break;
            }
            if self.files.get(&key).is_some_and(|entry| entry.leases == 0) {
                self.drop_file(&key);
            }
        }
        true
    }

    pub(super) fn release(&mut self, bytes: u64) {
        self.bytes -= bytes;
    }

    pub(super) fn expire(&mut self, now: SystemTime) {
        let old = |entry: &Entry| entry.leases == 0 && !entry.is_there(now);
        let expired: Vec<Key> =
            self.files.iter().filter(|(_, entry)| old(entry)).map(|(key, _)| key.clone()).collect();
        expired.iter().for_each(|key| self.drop_file(key));
    }

    /// What is no longer a file of the store and still lies on the disk.
    pub(super) fn take_dropped(&mut self) -> Vec<Key> {
        std::mem::take(&mut self.dropped)
    }

    pub(super) fn counts(&self) -> FileCounts {
        FileCounts { files: self.files.len(), bytes: self.bytes }
    }

    fn fits(&self, bytes: u64) -> bool {
        self.bytes.saturating_add(bytes) <= self.bytes_max
    }

    /// One that nobody holds.
    fn drop_file(&mut self, key: &Key) {
        if let Some(entry) = self.files.remove(key) {
            self.bytes -= entry.len;
            self.idle_bytes -= entry.len;
            self.order.remove(&entry.turn);
            self.dropped.push(key.clone());
        }
    }

    fn use_now(&mut self, key: &Key) {
        let turn = self.next_turn(key);
        if let Some(entry) = self.files.get_mut(key) {
            self.order.remove(&entry.turn);
            entry.turn = turn;
        }
    }

    fn next_turn(&mut self, key: &Key) -> u64 {
        self.next_turn += 1;
        self.order.insert(self.next_turn, key.clone());
        self.next_turn
    }
}

impl Entry {
    fn is_there(&self, now: SystemTime) -> bool {
        !self.doomed && self.expires > now
    }
}
