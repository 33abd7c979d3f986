//! The keys as the server holds them. It looks at the file again when it changes; what it can't read it
//! does not heed, and a server that had keys never opens again by itself.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use jiff::Timestamp;
use run::{Principal, PrincipalName};

use super::file::{Seen, seen};
use super::secret::Hash;
use super::{KeyFile, KeyRecord, Ledger, LoginBook, Secret};
use crate::http::auth::{Authenticator, Caller, Refused};

/// How often the file is looked at: a `stat`.
const LOOK_EVERY: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub struct KeyRing {
    path: PathBuf,
    ledger: Arc<Ledger>,
    /// `None` as long as there has never been a file: then the server is open.
    keys: RwLock<Option<Keys>>,
}

#[derive(Debug)]
struct Keys {
    seen: Option<Seen>,
    by_id: HashMap<String, Held>,
    /// When the next key expires: then what it said of its principal does not hold any more.
    until: Option<Timestamp>,
}

#[derive(Debug)]
struct Held {
    record: KeyRecord,
    hash: Hash,
    caller: Caller,
}

impl KeyRing {
    /// Reads the keys; a file that can't be read is a reason not to start.
    pub fn open(data_dir: &std::path::Path, ledger: Arc<Ledger>) -> anyhow::Result<Self> {
        let ring = Self { path: super::file::path(data_dir), ledger, keys: RwLock::new(None) };
        ring.read()?;
        Ok(ring)
    }

    fn read(&self) -> anyhow::Result<()> {
        let seen = seen(&self.path);
        let Some(file) = KeyFile::read(&self.path)? else { return Ok(()) };
        let now = Timestamp::now();
        let (counted, until) = (counted(&file.keys, now), next_end(&file.keys, now));
        let held = |record: KeyRecord| {
            let hash = Hash::parse(&record.hash).unwrap_or_else(Hash::nobody);
            let mut principal = record.principal();
            if let Some(Counted { concurrency, queued, runs_per_minute }) = counted.get(&principal.name) {
                let quota = &mut principal.quota;
                (quota.concurrency, quota.queued) = (*concurrency, *queued);
                quota.runs_per_minute = *runs_per_minute;
            }
            let caller = Caller { principal: Arc::new(principal), key: Some(record.id.as_str().into()) };
            (record.id.clone(), Held { record, hash, caller })
        };
        let by_id: HashMap<_, _> = file.keys.into_iter().map(held).collect();
        let good = by_id.values().filter(|held| held.record.is_good(now)).count();
        tracing::info!(keys = good, "keys read: {good} good");
        *self.keys.write().unwrap_or_else(std::sync::PoisonError::into_inner) =
            Some(Keys { seen, by_id, until });
        Ok(())
    }

    /// Whether the file is not the one that was read last, or says something else by now.
    fn is_stale(&self) -> bool {
        let held = self.held();
        let before = held.as_ref().and_then(|keys| keys.seen);
        let until = held.as_ref().and_then(|keys| keys.until);
        seen(&self.path) != before || until.is_some_and(|until| until <= Timestamp::now())
    }

    fn held(&self) -> std::sync::RwLockReadGuard<'_, Option<Keys>> {
        self.keys.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn refresh(&self) {
        if let Err(error) = self.read() {
            tracing::error!(
                error = format!("{error:#}"),
                "the keys can't be read; those from before stay in force"
            );
        }
        if let Some(keys) = self.keys.write().unwrap_or_else(std::sync::PoisonError::into_inner).as_mut() {
            let seen = seen(&self.path);
            if seen.is_none() && keys.seen.is_some() {
                tracing::error!("the file with the keys is gone; those from before stay in force");
            }
            keys.seen = seen;
            keys.until = keys.until.filter(|until| *until > Timestamp::now());
        }
    }

    /// Looks at the file, and at the one beside it, whenever they change and whenever it is told to. Never ends.
    pub async fn watch(&self, logins: &LoginBook) -> std::io::Result<()> {
        let mut told = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup())?;
        let mut tick = tokio::time::interval(LOOK_EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = told.recv() => self.refresh(),
                _ = tick.tick() => if self.is_stale() { self.refresh() },
            }
            logins.look();
        }
    }
}

/// What is counted for a principal, whichever of its keys is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counted {
    concurrency: Option<u32>,
    queued: Option<u32>,
    runs_per_minute: Option<u32>,
}

/// Of each number the newest good key that has one decides, for all keys of its principal.
fn counted(keys: &[KeyRecord], now: Timestamp) -> HashMap<PrincipalName, Counted> {
    let mut good: Vec<_> = keys.iter().filter(|key| key.is_good(now)).collect();
    good.sort_by_key(|key| key.created_at);
    let mut all: HashMap<_, Counted> = HashMap::new();
    for KeyRecord { principal, quota, .. } in good {
        let one = all.entry(principal.clone()).or_default();
        one.concurrency = quota.concurrency.or(one.concurrency);
        one.queued = quota.queued.or(one.queued);
        one.runs_per_minute = quota.runs_per_minute.or(one.runs_per_minute);
    }
    all
}

fn next_end(keys: &[KeyRecord], now: Timestamp) -> Option<Timestamp> {
    keys.iter().filter(|key| key.is_good(now)).filter_map(|key| key.expires_at).min()
}

impl Authenticator for KeyRing {
    fn is_open(&self) -> bool {
        self.held().is_none()
    }

    fn authenticate(&self, bearer: Option<&str>) -> Result<Caller, Refused> {
        let held = self.held();
        let Some(keys) = &*held else { return Ok(Caller::anonymous()) };
        let Some(text) = bearer else { return Err(Refused::NoKey) };
        let Some(secret) = Secret::parse(text) else { return Err(Refused::BadKey) };
        let found = keys.by_id.get(&secret.id);
        let hash = secret.hash();
        let is_right = found.map_or_else(Hash::nobody, |held| held.hash.clone()).is(&hash);
        let Some(held) = found.filter(|_| is_right) else { return Err(Refused::BadKey) };
        let now = Timestamp::now();
        match held.record.state(now) {
            "good" => {
                self.ledger.used(&held.record.id, now);
                Ok(held.caller.clone())
            }
            "expired" => Err(Refused::Expired),
            _ => Err(Refused::BadKey),
        }
    }

    fn principals(&self) -> Vec<PrincipalName> {
        let held = self.held();
        let Some(keys) = &*held else { return vec![Principal::anonymous().name.clone()] };
        let mut names: Vec<_> = keys.by_id.values().map(|held| held.record.principal.clone()).collect();
        names.sort();
        names.dedup();
        names
    }
}

#[cfg(test)]
mod tests {
    use run::{Quota, Scope};

    use super::*;

    fn add(dir: &std::path::Path, name: &str, change: impl FnOnce(&mut KeyRecord)) -> String {
        let secret = Secret::random().unwrap();
        let mut record = KeyRecord {
            id: secret.id.clone(),
            principal: PrincipalName::parse(name).unwrap(),
            hash: secret.hash().to_string(),
            scopes: [Scope::Run].into(),
            quota: Quota::default(),
            created_at: Timestamp::now(),
            expires_at: None,
            revoked_at: None,
        };
        change(&mut record);
        KeyFile::change(dir, |file| {
            file.keys.push(record);
            Ok(())
        })
        .unwrap();
        secret.reveal()
    }

    #[test]
    fn a_key_opens_and_nothing_else_does() {
        let dir = tempfile::tempdir().unwrap();
        let ring = KeyRing::open(dir.path(), Arc::new(Ledger::in_memory())).unwrap();
        assert!(ring.is_open() && ring.authenticate(None).unwrap().principal.is_anonymous());

        let alice = add(dir.path(), "alice", |_| {});
        let expired = add(dir.path(), "bob", |key| key.expires_at = Some(Timestamp::UNIX_EPOCH));
        let revoked = add(dir.path(), "carl", |key| key.revoked_at = Some(Timestamp::now()));
        assert!(ring.is_stale());
        ring.refresh();
        assert!(!ring.is_stale() && !ring.is_open());
        let forged = format!("{}x", &alice[..alice.len() - 1]);
        let stranger = Secret::random().unwrap().reveal();
        for (key, refused) in [
            (None, Refused::NoKey),
            (Some(""), Refused::BadKey),
            (Some(forged.as_str()), Refused::BadKey),
            (Some(&stranger), Refused::BadKey),
            (Some(&revoked), Refused::BadKey),
            (Some(&expired), Refused::Expired),
        ] {
            assert_eq!(ring.authenticate(key).unwrap_err(), refused, "{key:?}");
        }
        let caller = ring.authenticate(Some(&alice)).unwrap();
        assert_eq!(
            (caller.principal.name.as_str(), caller.key.as_deref()),
            ("alice", alice.split('_').nth(1))
        );
        assert!(ring.ledger.last_use(caller.key.as_deref().unwrap()).is_some());
    }

    #[test]
    fn what_counts_is_what_the_newest_good_key_says_that_says_something() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let key = |made: i64, ends: Option<i64>, concurrency: Option<u32>, rate: Option<u32>| KeyRecord {
            id: String::new(),
            principal: PrincipalName::parse("alice").unwrap(),
            hash: String::new(),
            scopes: [Scope::Run].into(),
            quota: Quota { concurrency, runs_per_minute: rate, ..Quota::default() },
            created_at: at(made),
            expires_at: ends.map(at),
            revoked_at: None,
        };
        let (old, new) = (key(1, None, Some(1), Some(60)), key(2, Some(9), Some(3), None));
        for (keys, now, concurrency, rate) in [
            (&[old.clone()][..], 5, Some(1), Some(60)),
            (&[new.clone(), old.clone()], 5, Some(3), Some(60)),
            (&[old.clone(), new.clone()], 9, Some(1), Some(60)),
            (&[old.clone(), key(3, None, None, None)], 5, Some(1), Some(60)),
            (&[key(3, None, None, None)], 5, None, None),
        ] {
            let all = counted(keys, at(now));
            let one = all.values().next().unwrap();
            assert_eq!((one.concurrency, one.runs_per_minute), (concurrency, rate), "{keys:?} {now}");
        }
        assert_eq!(next_end(&[old, new.clone()], at(5)), Some(at(9)));
        assert_eq!(next_end(&[new], at(9)), None);
    }

    #[test]
    fn a_server_that_had_keys_does_not_open_by_itself() {
        let dir = tempfile::tempdir().unwrap();
        let alice = add(dir.path(), "alice", |_| {});
        let ring = KeyRing::open(dir.path(), Arc::new(Ledger::in_memory())).unwrap();
        for broken in [true, false] {
            let path = super::super::file::path(dir.path());
            if broken {
                std::fs::write(path, "{").unwrap();
            } else {
                std::fs::remove_file(path).unwrap();
            }
            ring.refresh();
            assert_eq!(ring.authenticate(None).unwrap_err(), Refused::NoKey);
            assert!(ring.authenticate(Some(&alice)).is_ok());
            assert!(!ring.is_stale(), "a file that can't be read is complained about once");
        }
    }
}
