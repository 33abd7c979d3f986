//! Who is asking, and what that one may have. A principal is a name that the operator chose; several keys
//! can be one principal's. On a server without keys there is one principal, who may do everything.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, LazyLock};

use serde::{Deserialize, Serialize};

use crate::LimitsRequest;

const NAME_BYTES_MAX: usize = 64;

/// What an operator calls a principal. Cheap to clone: every run carries one.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PrincipalName(Arc<str>);

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a principal's name has 1 to {NAME_BYTES_MAX} letters, digits and `.` `_` `-`, and is not `anonymous` or `other`"
)]
pub struct BadName;

impl PrincipalName {
    /// Whoever asks a server that has no keys.
    pub const ANONYMOUS: &str = "anonymous";

    /// A name that an operator may give. `other` is what metrics call the rest.
    pub fn parse(text: &str) -> Result<Self, BadName> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let good = (1..=NAME_BYTES_MAX).contains(&text.len()) && text.chars().all(plain);
        if good && ![Self::ANONYMOUS, "other"].contains(&text) { Ok(Self(text.into())) } else { Err(BadName) }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    pub fn is_anonymous(&self) -> bool {
        self.as_str() == Self::ANONYMOUS
    }
}

impl Default for PrincipalName {
    fn default() -> Self {
        Principal::anonymous().name.clone()
    }
}

impl fmt::Display for PrincipalName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<PrincipalName> for String {
    fn from(name: PrincipalName) -> Self {
        name.as_str().to_owned()
    }
}

/// What has been written down may be the anonymous principal's.
impl TryFrom<String> for PrincipalName {
    type Error = BadName;

    fn try_from(text: String) -> Result<Self, BadName> {
        if text == Self::ANONYMOUS { Ok(Self::default()) } else { Self::parse(&text) }
    }
}

/// What a key lets its holder do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Runs, batches and files: one's own.
    Run,
    /// The images of the store: list, pull, drop.
    Images,
    /// `/metrics` and `/info`.
    Metrics,
    /// Everything, also what is somebody else's.
    Admin,
}

impl Scope {
    pub const ALL: [Scope; 4] = [Scope::Run, Scope::Images, Scope::Metrics, Scope::Admin];

    pub fn as_str(self) -> &'static str {
        match self {
            Scope::Run => "run",
            Scope::Images => "images",
            Scope::Metrics => "metrics",
            Scope::Admin => "admin",
        }
    }

    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| scope.as_str() == name)
    }
}

/// The most that a principal may have. What is absent is bounded by the server alone.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Quota {
    /// The most of each limit of a run.
    pub maxima: LimitsRequest,
    /// Runs at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<u32>,
    /// Runs that wait for a slot.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queued: Option<u32>,
    /// Runs that are taken per minute, of which a sixth may come at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runs_per_minute: Option<u32>,
    /// The only images; empty: any that the server may pull.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<ImagePattern>,
}

/// Images by their full names: a repository, one tag or digest of it, everything below a path that ends
/// in `/*`, or `host`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ImagePattern(pub String);

impl ImagePattern {
    /// `full` is a name in full, as in `docker.io/library/alpine:latest`.
    pub fn covers(&self, full: &str) -> bool {
        if let Some(below) = self.0.strip_suffix('*') {
            return full.starts_with(below);
        }
        // A digest wins over a tag, so that a tag alone must not let every digest in.
        full == self.0
            || (!self.is_one_version() && full.starts_with(&format!("{}:", self.0)))
            || (!self.is_one_version() && full.starts_with(&format!("{}@", self.0)))
    }

    fn is_one_version(&self) -> bool {
        self.0.rsplit('/').next().is_some_and(|last| last.contains([':', '@']))
    }
}

/// Who is asking.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Principal {
    pub name: PrincipalName,
    pub scopes: BTreeSet<Scope>,
    pub quota: Quota,
}

impl Principal {
    /// Whoever asks a server that has no keys: may do everything.
    pub fn anonymous() -> &'static Arc<Principal> {
        static ANONYMOUS: LazyLock<Arc<Principal>> = LazyLock::new(|| {
            Arc::new(Principal {
                name: PrincipalName(PrincipalName::ANONYMOUS.into()),
                scopes: Scope::ALL.into(),
                quota: Quota::default(),
            })
        });
        &ANONYMOUS
    }

    pub fn is_anonymous(&self) -> bool {
        self.name.is_anonymous()
    }

    pub fn may(&self, scope: Scope) -> bool {
        self.scopes.contains(&scope) || self.scopes.contains(&Scope::Admin)
    }

    /// Whether what belongs to `owner` exists for this one.
    pub fn sees(&self, owner: &PrincipalName) -> bool {
        self.name == *owner || self.may(Scope::Admin)
    }

    /// Whether the image, by its full name, is one of those that this one may run at all.
    pub fn may_use_image(&self, full: &str) -> bool {
        let images = &self.quota.images;
        images.is_empty() || images.iter().any(|pattern| pattern.covers(full))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain_and_none_is_taken() {
        for (text, good) in [
            ("alice", true),
            ("team-1.eu_west", true),
            ("", false),
            ("anonymous", false),
            ("other", false),
            ("a b", false),
            ("ä", false),
            ("a\"", false),
            (&"x".repeat(64), true),
            (&"x".repeat(65), false),
        ] {
            assert_eq!(PrincipalName::parse(text).is_ok(), good, "{text:?}");
        }
        let written = serde_json::to_string(&PrincipalName::default()).unwrap();
        assert_eq!(serde_json::from_str::<PrincipalName>(&written).unwrap(), PrincipalName::default());
        assert!(serde_json::from_str::<PrincipalName>("\"a b\"").is_err());
    }

    #[test]
    fn a_pattern_covers_what_it_says_and_nothing_beside() {
        for (pattern, full, covered) in [
            ("docker.io/library/python", "docker.io/library/python:3.13", true),
            ("docker.io/library/python", "docker.io/library/python@sha256:aa", true),
            ("docker.io/library/python", "docker.io/library/python:3@sha256:aa", true),
            ("docker.io/library/python", "docker.io/library/python3:latest", false),
            ("docker.io/library/python", "docker.io/library/python/x:latest", false),
            ("docker.io/library/python:3.13", "docker.io/library/python:3.13", true),
            ("docker.io/library/python:3.13", "docker.io/library/python:3.13@sha256:aa", false),
            ("docker.io/library/python:3", "docker.io/library/python:3.13", false),
            ("docker.io/library/*", "docker.io/library/python:3.13", true),
            ("docker.io/library/*", "docker.io/libraryx/python:3.13", false),
            ("localhost:5000/*", "localhost:5000/a/b:latest", true),
            ("localhost:5000/x", "localhost:5000/x:latest", true),
            ("host", "host", true),
            ("host", "host.example/x:latest", false),
        ] {
            assert_eq!(ImagePattern(pattern.into()).covers(full), covered, "{pattern} {full}");
        }
    }

    #[test]
    fn an_admin_sees_everything_and_the_others_their_own() {
        let of = |name: &str, scopes: &[Scope]| Principal {
            name: PrincipalName::parse(name).unwrap(),
            scopes: scopes.iter().copied().collect(),
            quota: Quota::default(),
        };
        let (alice, root) = (of("alice", &[Scope::Run]), of("root", &[Scope::Admin]));
        let bob = PrincipalName::parse("bob").unwrap();
        for (who, owner, sees) in [
            (&alice, &alice.name, true),
            (&alice, &bob, false),
            (&alice, &PrincipalName::default(), false),
            (&root, &bob, true),
            (&**Principal::anonymous(), &bob, true),
        ] {
            assert_eq!(who.sees(owner), sees, "{} {owner}", who.name);
        }
        assert!(root.may(Scope::Images) && !alice.may(Scope::Images));
    }
}
