//! The file with the keys: read by the server, written by the command line, whole or not at all. That it
//! is there closes the server, whether or not any of its keys is still good.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use jiff::Timestamp;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::stat::{Mode, umask};
use run::{Principal, PrincipalName, Quota, Scope};
use serde::{Deserialize, Serialize};

const VERSION: u32 = 1;
const NAME: &str = "keys.json";
/// Held by whoever changes something in the folder.
pub const LOCK: &str = "lock";

/// Much more than anybody has keys; a file that is larger was not written by us.
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// What is kept of one key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyRecord {
    pub id: String,
    pub principal: PrincipalName,
    pub hash: String,
    pub scopes: std::collections::BTreeSet<Scope>,
    pub quota: Quota,
    pub created_at: Timestamp,
    pub expires_at: Option<Timestamp>,
    pub revoked_at: Option<Timestamp>,
}

impl KeyRecord {
    pub fn principal(&self) -> Principal {
        Principal { name: self.principal.clone(), scopes: self.scopes.clone(), quota: self.quota.clone() }
    }

    pub fn is_good(&self, now: Timestamp) -> bool {
        self.revoked_at.is_none() && self.expires_at.is_none_or(|end| now < end)
    }

    /// In one word, for lists.
    pub fn state(&self, now: Timestamp) -> &'static str {
        match (self.revoked_at, self.is_good(now)) {
            (Some(_), _) => "revoked",
            (None, true) => "good",
            (None, false) => "expired",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyFile {
    version: u32,
    pub keys: Vec<KeyRecord>,
}

impl Default for KeyFile {
    fn default() -> Self {
        Self { version: VERSION, keys: Vec::new() }
    }
}

/// Where the keys of this data directory are.
pub fn folder(data_dir: &Path) -> PathBuf {
    data_dir.join("keys")
}

pub fn path(data_dir: &Path) -> PathBuf {
    folder(data_dir).join(NAME)
}

/// Whether this server has been given keys. What can't be looked at counts: in doubt it is closed.
pub fn exists(data_dir: &Path) -> bool {
    !matches!(fs::symlink_metadata(path(data_dir)), Err(error) if error.kind() == io::ErrorKind::NotFound)
}

impl KeyFile {
    /// `None` where there is no file.
    pub fn read(path: &Path) -> anyhow::Result<Option<Self>> {
        let Some(text) = read_small(path, FILE_BYTES_MAX)? else { return Ok(None) };
        let file: Self = serde_json::from_slice(&text).with_context(|| format!("read {}", path.display()))?;
        ensure!(
            file.version == VERSION,
            "{} is of version {}; this program reads version {VERSION}",
            path.display(),
            file.version
        );
        for key in &file.keys {
            ensure!(
                super::secret::Hash::parse(&key.hash).is_some(),
                "key {} has no hash that can be read",
                key.id
            );
        }
        Ok(Some(file))
    }

    /// Changes the keys of a data directory; others who want to wait until it is done.
    pub fn change<T>(
        data_dir: &Path,
        change: impl FnOnce(&mut KeyFile) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        locked(data_dir, |folder| {
            let mut file = Self::read(&path(data_dir))?.unwrap_or_default();
            let result = change(&mut file)?;
            put(folder, NAME, &serde_json::to_vec_pretty(&file)?)
                .with_context(|| format!("write {}", path(data_dir).display()))?;
            Ok(result)
        })
    }
}

/// By what a file is known to be another one.
pub(super) type Seen = (u64, i64, i64, u64);

pub(super) fn seen(path: &Path) -> Option<Seen> {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.ino(), metadata.mtime(), metadata.mtime_nsec(), metadata.len()))
}

/// `None` where there is no file.
pub(super) fn read_small(path: &Path, bytes_max: u64) -> anyhow::Result<Option<Vec<u8>>> {
    let metadata = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        metadata => metadata.with_context(|| format!("read {}", path.display()))?,
    };
    ensure!(metadata.len() <= bytes_max, "{} is too large to be one of ours", path.display());
    fs::read(path).map(Some).with_context(|| format!("read {}", path.display()))
}

/// While it lives, what is made has the mode that is said. Whoever starts this program may hide what they make from all
/// others (`umask 077`), which would be the server, too: it is another user, and would not see a single key.
#[derive(Debug)]
pub struct Shown(Mode);

impl Shown {
    pub fn begin() -> Self {
        Self(umask(Mode::S_IWGRP | Mode::S_IWOTH))
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        umask(self.0);
    }
}

/// Does something with the folder of a data directory; others who want to wait until it is done.
pub fn locked<T>(data_dir: &Path, work: impl FnOnce(&Path) -> anyhow::Result<T>) -> anyhow::Result<T> {
    let _shown = Shown::begin();
    let folder = folder(data_dir);
    let make = || fs::DirBuilder::new().recursive(true).mode(0o755).create(data_dir);
    make().with_context(|| format!("make {}", data_dir.display()))?;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o750)
        .create(&folder)
        .with_context(|| format!("make {}", folder.display()))?;
    let lock = File::options().create(true).truncate(false).write(true).mode(0o600).open(folder.join(LOCK));
    let lock = lock.with_context(|| format!("lock {}", folder.display()))?;
    let _held = Flock::lock(lock, FlockArg::LockExclusive)
        .map_err(|(_, errno)| errno)
        .with_context(|| format!("lock {}", folder.display()))?;
    work(&folder)
}

/// Writes a file whole or not at all. The server's group, which the folder has, may read it.
pub(super) fn put(folder: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let aside = folder.join(format!("{name}.new"));
    let _ = fs::remove_file(&aside);
    let mut file = File::options().create_new(true).write(true).mode(0o640).open(&aside)?;
    file.write_all(bytes)?;
    if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::fchown(&file, None, Some(fs::metadata(folder)?.gid()))?;
    }
    file.sync_all()?;
    fs::rename(&aside, folder.join(name))?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_and_what_is_of_another_version_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!exists(dir.path()) && KeyFile::read(&path(dir.path())).unwrap().is_none());
        let record = KeyRecord {
            id: "0123456789ab".into(),
            principal: PrincipalName::parse("alice").unwrap(),
            hash: super::super::Secret::random().unwrap().hash().to_string(),
            scopes: [Scope::Run].into(),
            quota: Quota { concurrency: Some(2), ..Quota::default() },
            created_at: Timestamp::now(),
            expires_at: None,
            revoked_at: None,
        };
        KeyFile::change(dir.path(), |file| {
            file.keys.push(record.clone());
            Ok(())
        })
        .unwrap();
        assert_eq!(KeyFile::read(&path(dir.path())).unwrap().unwrap().keys, [record]);
        assert!(exists(dir.path()));
        for (text, words) in [
            (r#"{"version":2,"keys":[]}"#, "of version 2"),
            (r#"{"version":1,"keys":[],"more":1}"#, "unknown field"),
            ("", "read"),
        ] {
            fs::write(path(dir.path()), text).unwrap();
            let error = format!("{:#}", KeyFile::read(&path(dir.path())).unwrap_err());
            assert!(error.contains(words), "{text}: {error}");
            assert!(exists(dir.path()), "a file that can't be read must not open the server");
        }
    }

    #[test]
    fn a_key_is_good_until_it_is_revoked_or_expires() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let key = |expires: Option<i64>, revoked: Option<i64>| KeyRecord {
            id: String::new(),
            principal: PrincipalName::default(),
            hash: String::new(),
            scopes: Default::default(),
            quota: Quota::default(),
            created_at: at(0),
            expires_at: expires.map(at),
            revoked_at: revoked.map(at),
        };
        for (key, state) in [
            (key(None, None), "good"),
            (key(Some(11), None), "good"),
            (key(Some(10), None), "expired"),
            (key(Some(11), Some(5)), "revoked"),
        ] {
            assert_eq!((key.state(at(10)), key.is_good(at(10))), (state, state == "good"));
        }
    }
}
