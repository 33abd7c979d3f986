//! The logins that principals have of their own at registries. They can't be hashes, since registries want to see
//! them, so they are not in the file with the keys: that one may be handed around.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};

use anyhow::{Context, bail, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use image::{Credential, Logins};
use run::PrincipalName;
use serde::{Deserialize, Serialize};

use super::file::{self, Seen};

const VERSION: u32 = 1;
const NAME: &str = "registries.json";
/// Much more than anybody has logins.
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// What each principal has, as `docker login` writes it down.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LoginFile {
    version: u32,
    pub principals: BTreeMap<PrincipalName, Auths>,
}

/// A Docker configuration, as far as it is a list of logins.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Auths {
    #[serde(default)]
    pub auths: BTreeMap<String, Auth>,
}

#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Auth {
    /// `USER:PASSWORD` in base64.
    #[serde(skip_serializing_if = "Option::is_none")]
    auth: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    username: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    password: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    identitytoken: Option<String>,
}

impl Default for LoginFile {
    fn default() -> Self {
        Self { version: VERSION, principals: BTreeMap::new() }
    }
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Auth(…)")
    }
}

impl Auth {
    pub fn password(user: &str, password: &str) -> Self {
        let auth = BASE64_STANDARD.encode(format!("{user}:{password}"));
        Self { auth: Some(auth), ..Self::default() }
    }

    fn credential(&self) -> Option<Credential> {
        let Self { auth, username, password, identitytoken } = self;
        if let Some(token) = identitytoken.as_ref().filter(|token| !token.is_empty()) {
            return Some(Credential::Refresh(token.clone()));
        }
        let decoded =
            auth.as_ref().and_then(|auth| String::from_utf8(BASE64_STANDARD.decode(auth).ok()?).ok());
        let (user, password) = match (&decoded, username, password) {
            (Some(decoded), ..) => decoded.split_once(':')?,
            (None, Some(user), Some(password)) => (user.as_str(), password.as_str()),
            (None, ..) => return None,
        };
        match user {
            "" => None,
            "<token>" => Some(Credential::Refresh(password.into())),
            user => Some(Credential::Password { user: user.into(), password: password.into() }),
        }
    }
}

/// A registry's name as references have it: `https://index.docker.io/v1/` is `docker.io`.
pub fn registry(text: &str) -> anyhow::Result<String> {
    let host = text.trim_start_matches("https://").trim_start_matches("http://");
    let host = host.split('/').next().unwrap_or_default();
    let full = image::Images::full_name(&format!("{host}/x/x"));
    let found = full.ok().and_then(|full| Some(full.strip_suffix("/x/x:latest")?.to_owned()));
    // A word that is no host is taken for a part of Docker Hub.
    let found = found.filter(|found| !found.contains('/'));
    found.with_context(|| format!("{text:?} is no registry; write HOST or HOST:PORT"))
}

fn path(data_dir: &Path) -> PathBuf {
    file::folder(data_dir).join(NAME)
}

impl Auths {
    /// The registries.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.auths.keys().map(String::as_str)
    }

    /// Takes over the logins of a Docker configuration. One that keeps its secrets in a helper has none to give.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
        // What serde says of a broken file may quote it.
        let Ok(given) = serde_json::from_slice::<Self>(&text) else {
            bail!("{} is no Docker configuration", path.display());
        };
        let mut auths = BTreeMap::new();
        for (name, auth) in given.auths {
            ensure!(
                auth.credential().is_some(),
                "{} has no password for {name}; where `credsStore` keeps it, log in here with --username",
                path.display()
            );
            auths.insert(registry(&name)?, auth);
        }
        Ok(Self { auths })
    }
}

impl LoginFile {
    fn read(path: &Path) -> anyhow::Result<Self> {
        let Some(text) = file::read_small(path, FILE_BYTES_MAX)? else { return Ok(Self::default()) };
        let Ok(file) = serde_json::from_slice::<Self>(&text) else {
            bail!("{} is no list of logins", path.display());
        };
        ensure!(
            file.version == VERSION,
            "{} is of version {}; this program reads version {VERSION}",
            path.display(),
            file.version
        );
        Ok(file)
    }

    pub fn of(data_dir: &Path) -> anyhow::Result<Self> {
        Self::read(&path(data_dir))
    }

    pub fn change<T>(
        data_dir: &Path,
        change: impl FnOnce(&mut Self) -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        file::locked(data_dir, |folder| {
            let mut file = Self::of(data_dir)?;
            let result = change(&mut file)?;
            file::put(folder, NAME, &serde_json::to_vec_pretty(&file)?)
                .with_context(|| format!("write {}", path(data_dir).display()))?;
            Ok(result)
        })
    }

    fn credentials(self) -> HashMap<PrincipalName, HashMap<String, Credential>> {
        let known = |(name, auth): (String, Auth)| Some((registry(&name).ok()?, auth.credential()?));
        let of = |(principal, auths): (PrincipalName, Auths)| {
            (principal, auths.auths.into_iter().filter_map(known).collect())
        };
        self.principals.into_iter().map(of).collect()
    }
}

/// The logins as the server holds them.
pub struct LoginBook {
    path: PathBuf,
    held: RwLock<Held>,
}

#[derive(Default)]
struct Held {
    seen: Option<Seen>,
    credentials: HashMap<PrincipalName, HashMap<String, Credential>>,
}

impl fmt::Debug for LoginBook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoginBook").field("path", &self.path).finish_non_exhaustive()
    }
}

impl LoginBook {
    /// Reads the logins; a file that can't be read is a reason not to start.
    pub fn open(data_dir: &Path) -> anyhow::Result<Self> {
        let book = Self { path: path(data_dir), held: RwLock::default() };
        book.read()?;
        Ok(book)
    }

    fn read(&self) -> anyhow::Result<()> {
        let seen = file::seen(&self.path);
        let credentials = LoginFile::read(&self.path)?.credentials();
        *self.held.write().unwrap_or_else(PoisonError::into_inner) = Held { seen, credentials };
        Ok(())
    }

    /// Reads the file again if it is another one by now. What can't be read changes nothing; a file that is gone
    /// has no logins.
    pub fn look(&self) {
        let seen = file::seen(&self.path);
        if self.held.read().unwrap_or_else(PoisonError::into_inner).seen == seen {
            return;
        }
        match self.read() {
            Ok(()) => tracing::info!("the logins of principals at registries were read"),
            Err(error) => {
                self.held.write().unwrap_or_else(PoisonError::into_inner).seen = seen;
                tracing::error!(
                    error = format!("{error:#}"),
                    "the logins can't be read; those from before stay in force"
                );
            }
        }
    }
}

impl Logins for LoginBook {
    fn find(&self, principal: &PrincipalName, registry: &str) -> Option<Credential> {
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
        held.credentials.get(principal)?.get(registry).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_are_written_as_docker_writes_them() {
        for (text, name) in [
            ("ghcr.io", Some("ghcr.io")),
            ("docker.io", Some("docker.io")),
            ("https://index.docker.io/v1/", Some("docker.io")),
            ("localhost:5000", Some("localhost:5000")),
            ("http://127.0.0.1:5000/", Some("127.0.0.1:5000")),
            ("alpine", None),
            ("", None),
            ("a b.example", None),
        ] {
            assert_eq!(registry(text).ok().as_deref(), name, "{text}");
        }
    }

    #[test]
    fn a_login_is_a_password_or_a_token() {
        let password = |user: &str, password: &str| {
            Some(Credential::Password { user: user.into(), password: password.into() })
        };
        let auth = |user_and_password: &str| BASE64_STANDARD.encode(user_and_password);
        for (text, credential) in [
            (format!(r#"{{"auth": "{}"}}"#, auth("u:p:q")), password("u", "p:q")),
            (r#"{"username": "u", "password": "p", "email": "x"}"#.into(), password("u", "p")),
            (r#"{"identitytoken": "t", "auth": "eDp5"}"#.into(), Some(Credential::Refresh("t".into()))),
            (format!(r#"{{"auth": "{}"}}"#, auth("<token>:t")), Some(Credential::Refresh("t".into()))),
            (format!(r#"{{"auth": "{}"}}"#, auth("u")), None),
            (r#"{"auth": "%"}"#.into(), None),
            ("{}".into(), None),
        ] {
            let read: Auth = serde_json::from_str(&text).unwrap();
            assert!(read.credential() == credential, "{text}");
        }
    }

    #[test]
    fn what_is_given_and_taken_back_is_seen_and_a_broken_file_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let book = LoginBook::open(dir.path()).unwrap();
        let alice = PrincipalName::parse("alice").unwrap();
        let has = |registry: &str| {
            book.look();
            book.find(&alice, registry).is_some()
        };
        assert!(!has("ghcr.io"));
        LoginFile::change(dir.path(), |file| {
            let auths = &mut file.principals.entry(alice.clone()).or_default().auths;
            auths.insert("https://index.docker.io/v1/".into(), Auth::password("u", "p"));
            auths.insert("ghcr.io".into(), Auth::password("u", "p"));
            Ok(())
        })
        .unwrap();
        assert!(has("ghcr.io") && has("docker.io") && !has("quay.io"));
        assert!(book.find(&PrincipalName::parse("bob").unwrap(), "ghcr.io").is_none());
        assert!(!format!("{book:?}").contains("Credential"));
        std::fs::write(path(dir.path()), "{").unwrap();
        assert!(has("ghcr.io") && LoginBook::open(dir.path()).is_err());
        std::fs::remove_file(path(dir.path())).unwrap();
        assert!(!has("ghcr.io"));
    }
}
