//! What batches have prepared, kept for later ones: for a time, within a budget, the least recently used
//! going first, and never while tests run over it. It ends with the server, but for what batches wait for.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use run::{PrincipalName, RunSpec};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::PreparedInfo;
use crate::clock;
use crate::files::{Files, FilesError, Reservation};
use crate::over::Base;

/// What a name costs beside its content, as the launcher counts it.
const ENTRY_BYTES: u64 = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PreparedId(pub Uuid);

impl fmt::Display for PreparedId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for PreparedId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, uuid::Error> {
        text.parse().map(Self)
    }
}

/// A prepared file system that tests can be run over.
#[derive(Debug)]
pub struct Prepared {
    pub(super) id: PreparedId,
    pub(super) principal: PrincipalName,
    /// As it was asked for.
    pub(super) image: String,
    pub(super) expires: SystemTime,
    pub(super) base: Arc<Base>,
}

impl Prepared {
    pub fn image(&self) -> &str {
        &self.image
    }

    pub fn info(&self) -> PreparedInfo {
        PreparedInfo { id: self.id, expires_at: clock::told(self.expires) }
    }

    fn bytes(&self) -> u64 {
        self.base.layer.as_ref().map_or(0, |layer| layer.room.bytes())
    }

    /// Somebody else than the shelf holds it, or what it stands on.
    fn in_use(self: &Arc<Self>) -> bool {
        Arc::strong_count(self) > 1 || Arc::strong_count(&self.base) > 1
    }
}

#[derive(Debug)]
pub(super) struct Shelf {
    bytes_max: u64,
    kept_for: Duration,
    prepared: Mutex<HashMap<PreparedId, (Arc<Prepared>, Instant)>>,
}

impl Shelf {
    pub(super) fn new(bytes_max: u64, kept_for: Duration) -> Self {
        Self { bytes_max, kept_for, prepared: Mutex::new(HashMap::new()) }
    }

    /// All that this command can leave behind.
    pub(super) fn most(&self, run: &RunSpec) -> u64 {
        let names = run.limits.inodes.saturating_mul(ENTRY_BYTES);
        run.limits.disk_bytes.saturating_add(names).min(self.bytes_max)
    }

    /// Room for so much; what is not needed is given back later.
    pub(super) fn reserve(&self, files: &Files, bytes: u64) -> Result<Reservation, FilesError> {
        let dropped = self.make_room(bytes, |given_up| files.could_hold(bytes, given_up));
        // Dropped before the room is asked for: what they had is part of it.
        drop(dropped.ok_or(FilesError::Full { bytes, most_bytes: self.bytes_max })?);
        files.reserve(bytes)
    }

    /// Those that have to go, the least recently used, until there is room here and where all files are; `None`
    /// where that is never enough, and then nothing goes but what has expired.
    fn make_room(&self, bytes: u64, fits: impl Fn(u64) -> bool) -> Option<Vec<Arc<Prepared>>> {
        let mut prepared = self.prepared();
        let now = clock::now();
        let expired: Vec<_> = prepared
            .extract_if(|_, (prepared, _)| !prepared.in_use() && prepared.expires <= now)
            .map(|(_, (prepared, _))| prepared)
            .collect();
        let mut idle: Vec<(Instant, PreparedId, u64)> = prepared
            .values()
            .filter(|(prepared, _)| !prepared.in_use())
            .map(|(prepared, used)| (*used, prepared.id, prepared.bytes()))
            .collect();
        idle.sort_unstable();
        let held: u64 = prepared.values().map(|(prepared, _)| prepared.bytes()).sum();
        let of_expired: u64 = expired.iter().map(|prepared| prepared.bytes()).sum();
        let enough =
            |going: u64| (held - going).saturating_add(bytes) <= self.bytes_max && fits(of_expired + going);
        let mut going = 0;
        let mut idle = idle.into_iter();
        let mut go = Vec::new();
        while !enough(going) {
            let (_, id, bytes) = idle.next()?;
            going += bytes;
            go.push(id);
        }
        let gone = go.into_iter().filter_map(|id| prepared.remove(&id)).map(|(prepared, _)| prepared);
        Some(expired.into_iter().chain(gone).collect())
    }

    pub(super) fn keep(&self, principal: PrincipalName, image: String, base: Arc<Base>) -> Arc<Prepared> {
        let id = PreparedId(Uuid::now_v7());
        let expires = clock::now() + self.kept_for;
        self.put(Prepared { id, principal, image, expires, base })
    }

    pub(super) fn put(&self, prepared: Prepared) -> Arc<Prepared> {
        let prepared = Arc::new(prepared);
        self.prepared().insert(prepared.id, (Arc::clone(&prepared), Instant::now()));
        prepared
    }

    pub(super) fn get(&self, id: PreparedId, principal: &PrincipalName) -> Option<Arc<Prepared>> {
        let mut all = self.prepared();
        let (prepared, used) = all.get_mut(&id)?;
        let is_own = prepared.principal == *principal || !walls::stands("own_prepared");
        if !is_own || prepared.expires <= clock::now() {
            return None;
        }
        *used = Instant::now();
        Some(Arc::clone(prepared))
    }

    /// Whether it is still there for its owner.
    pub(super) fn has(&self, id: PreparedId) -> bool {
        let all = self.prepared();
        all.get(&id).is_some_and(|(prepared, _)| prepared.expires > clock::now())
    }

    fn prepared(&self) -> MutexGuard<'_, HashMap<PreparedId, (Arc<Prepared>, Instant)>> {
        // A panic under this lock leaves the map whole.
        self.prepared.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
