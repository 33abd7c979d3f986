//! What principals have used, and when each key was used last. Kept in memory, written beside the records
//! every few seconds where something has changed: a crash forgets seconds of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use jiff::Timestamp;
use run::{PrincipalName, Run};
use serde::{Deserialize, Serialize};

const VERSION: u32 = 1;
const WRITE_EVERY: Duration = Duration::from_secs(5);

/// All that a principal has used since its first run here.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Totals {
    /// Runs that have ended.
    pub runs: u64,
    /// Those of them that ended by themselves with the code 0.
    pub runs_succeeded: u64,
    /// Wall time of their programs.
    pub wall_time_ms: f64,
    /// Processor time of all their processes.
    pub cpu_time_ms: f64,
    /// What they wrote to both outputs.
    pub output_bytes: u64,
    /// Since when these are counted.
    #[schema(value_type = Option<String>, format = DateTime)]
    pub since: Option<Timestamp>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Page {
    version: u32,
    principals: BTreeMap<PrincipalName, Totals>,
    /// By the key's id.
    last_use: BTreeMap<String, Timestamp>,
    #[serde(skip)]
    changed: bool,
}

#[derive(Debug)]
pub struct Ledger {
    /// Absent: nothing is written.
    path: Option<PathBuf>,
    page: Mutex<Page>,
}

impl Ledger {
    pub fn path(data_dir: &Path) -> PathBuf {
        data_dir.join("records/principals.json")
    }

    /// What can't be read is begun anew: it is a count, not a right.
    pub fn open(data_dir: &Path) -> Self {
        let path = Self::path(data_dir);
        let page = match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice::<Page>(&text).ok().filter(|page| page.version == VERSION),
            Err(_) => Some(Page::default()),
        };
        if page.is_none() {
            tracing::warn!(path = %path.display(), "what principals have used can't be read; counting from zero");
        }
        Self { path: Some(path), page: Mutex::new(page.unwrap_or_default()) }
    }

    #[cfg(test)]
    pub fn in_memory() -> Self {
        Self { path: None, page: Mutex::default() }
    }

    pub fn used(&self, key: &str, now: Timestamp) {
        let mut page = self.page();
        page.changed = true;
        match page.last_use.get_mut(key) {
            Some(at) => *at = now,
            None => drop(page.last_use.insert(key.into(), now)),
        }
    }

    pub fn last_use(&self, key: &str) -> Option<Timestamp> {
        self.page().last_use.get(key).copied()
    }

    /// On a server without keys nobody is counted.
    pub fn finished(&self, run: &Run) {
        if run.principal.is_anonymous() {
            return;
        }
        let mut page = self.page();
        page.changed = true;
        let totals = page.principals.entry(run.principal.clone()).or_default();
        totals.since.get_or_insert_with(Timestamp::now);
        totals.runs += 1;
        totals.runs_succeeded += u64::from(run.outcome == Some(run::Outcome::Exited { code: 0 }));
        totals.output_bytes += run.stdout.total + run.stderr.total;
        if let Some(usage) = &run.usage {
            totals.wall_time_ms += usage.wall_time_ms;
            totals.cpu_time_ms += usage.cpu_time_ms;
        }
    }

    pub fn totals(&self, principal: &PrincipalName) -> Totals {
        self.page().principals.get(principal).cloned().unwrap_or_default()
    }

    /// Writes what has changed, now and then. Never ends.
    pub async fn keep(&self) {
        let mut tick = tokio::time::interval(WRITE_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            self.write().await;
        }
    }

    /// Writes what has changed.
    pub async fn write(&self) {
        let Some(path) = self.path.clone() else { return };
        let page = {
            let mut page = self.page();
            if !std::mem::take(&mut page.changed) {
                return;
            }
            Page { version: VERSION, ..page.clone() }
        };
        let written = tokio::task::spawn_blocking(move || write(&path, &page)).await;
        if let Err(error) = written.unwrap_or_else(|error| Err(std::io::Error::other(error))) {
            tracing::warn!(%error, "can't write what principals have used");
            self.page().changed = true;
        }
    }

    fn page(&self) -> MutexGuard<'_, Page> {
        // Numbers are whole at every moment.
        self.page.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn write(path: &Path, page: &Page) -> std::io::Result<()> {
    let aside = path.with_extension("json.new");
    std::fs::write(&aside, serde_json::to_vec_pretty(page)?)?;
    std::fs::rename(aside, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_used_is_known_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("records")).unwrap();
        let ledger = Ledger::open(dir.path());
        let now = Timestamp::now();
        ledger.used("0123", now);
        ledger.write().await;
        assert_eq!(Ledger::open(dir.path()).last_use("0123"), Some(now));
        std::fs::write(Ledger::path(dir.path()), "{").unwrap();
        assert_eq!(Ledger::open(dir.path()).last_use("0123"), None);
    }
}
