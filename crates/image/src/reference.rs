//! What an image is called. Written as Docker users write it, kept in full, and checked before
//! anything is asked of anybody: a reference comes from a stranger.

use std::fmt;

use crate::ImageError;
use crate::digest::is_digest;

/// The longest that is looked at: a host, a repository, a tag and a digest at their longest.
const MOST_BYTES: usize = 1024;
const MOST_HOST_BYTES: usize = 253;
const DOCKER_HUB: &str = "docker.io";
/// Names under which Docker Hub is also known.
const DOCKER_HUB_ALIASES: [&str; 2] = ["index.docker.io", "registry-1.docker.io"];

/// A registry, a repository in it, and which of its images.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Reference {
    /// `docker.io`, `localhost:5000`. Lower case.
    pub(crate) registry: String,
    pub(crate) repository: String,
    pub(crate) tag: Option<String>,
    /// Wins over the tag, which then only informs people.
    pub(crate) digest: Option<String>,
}

impl Reference {
    pub(crate) fn parse(text: &str) -> Result<Self, ImageError> {
        let bad = |reason: &str| {
            let reference = text.chars().take(200).collect();
            ImageError::BadReference { reference, reason: reason.into() }
        };
        if text.len() > MOST_BYTES {
            return Err(bad("it is too long"));
        }
        let parsed: oci_client::Reference =
            text.parse().map_err(|error: oci_client::ParseError| bad(&error.to_string()))?;
        // The parser takes the letters of all alphabets for letters, in tags for example.
        if !text.is_ascii() {
            return Err(bad("it has a character that is not ASCII"));
        }
        let registry = parsed.registry().to_ascii_lowercase();
        check_registry(&registry).map_err(bad)?;
        let registry =
            if DOCKER_HUB_ALIASES.contains(&registry.as_str()) { DOCKER_HUB.into() } else { registry };
        let mut repository = parsed.repository().to_owned();
        // `Host/x` has been taken for a repository, which it can't be, of Docker Hub.
        if repository.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(bad("a repository is written in lower case, and a registry has a dot or a port"));
        }
        if registry == DOCKER_HUB && !repository.contains('/') {
            repository = format!("library/{repository}");
        }
        let digest = parsed.digest().map(str::to_owned);
        if digest.as_deref().is_some_and(|digest| !is_digest(digest)) {
            return Err(bad("its digest is not sha256 or sha512 in lower-case hex"));
        }
        Ok(Self { registry, repository, tag: parsed.tag().map(str::to_owned), digest })
    }

    /// What the registry is asked for.
    pub(crate) fn wanted(&self) -> &str {
        self.digest.as_deref().or(self.tag.as_deref()).unwrap_or("latest")
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        self.tag.iter().try_for_each(|tag| write!(f, ":{tag}"))?;
        self.digest.iter().try_for_each(|digest| write!(f, "@{digest}"))
    }
}

fn check_registry(registry: &str) -> Result<(), &'static str> {
    let (host, port) = match registry.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (registry, None),
    };
    let is_port = |port: &str| port.len() <= 5 && port.parse::<u16>().is_ok_and(|port| port > 0);
    if port.is_some_and(|port| !is_port(port)) {
        return Err("its registry's port is not between 1 and 65535");
    }
    let is_label = |label: &str| (1..=63).contains(&label.len());
    if host.len() > MOST_HOST_BYTES || !host.split('.').all(is_label) {
        return Err("its registry is no host name");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn references_are_what_docker_users_mean() {
        let hex = "a".repeat(64);
        let digest = format!("sha256:{hex}");
        for (text, full) in [
            ("alpine", "docker.io/library/alpine:latest".into()),
            ("alpine:3.20", "docker.io/library/alpine:3.20".into()),
            ("o/n", "docker.io/o/n:latest".into()),
            ("docker.io/alpine", "docker.io/library/alpine:latest".into()),
            ("index.docker.io/library/alpine", "docker.io/library/alpine:latest".into()),
            ("index.docker.io/alpine", "docker.io/library/alpine:latest".into()),
            ("ghcr.io/o/n:tag", "ghcr.io/o/n:tag".into()),
            ("GHCR.io/o/n", "ghcr.io/o/n:latest".into()),
            ("localhost/x", "localhost/x:latest".into()),
            ("localhost:5000/x:y", "localhost:5000/x:y".into()),
            ("127.0.0.1:5000/a/b/c", "127.0.0.1:5000/a/b/c:latest".into()),
            ("host:5000/a__b/c-d.e", "host:5000/a__b/c-d.e:latest".into()),
            (format!("alpine@{digest}").as_str(), format!("docker.io/library/alpine@{digest}")),
            (format!("alpine:3@{digest}").as_str(), format!("docker.io/library/alpine:3@{digest}")),
        ] {
            let parsed = Reference::parse(text).unwrap();
            assert_eq!(parsed.to_string(), full, "{text}");
            assert_eq!(Reference::parse(&full).unwrap(), parsed, "{text}");
        }
        assert_eq!(Reference::parse(&format!("alpine:3@{digest}")).unwrap().wanted(), digest);
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        let hex = "a".repeat(64);
        for bad in [
            "",
            " ",
            "Alpine",
            "Host/a",
            "a b",
            "user:pw@host/x",
            "http://host/x",
            "a//b",
            "a/../b",
            "../a",
            "a:",
            "a@",
            "a:b:c",
            "/a",
            "a/",
            "-a",
            "a:-b",
            "a:1.\u{43f}",
            "host:0/a",
            "host:65536/a",
            "host:99999999/a",
            "[::1]:80/x",
            "аlpine",
            "a\n",
            "a@md5:00",
            "..a/b",
            "a..b/c:d e",
            &format!("a@sha256:{}", &hex[1..]),
            &format!("a@sha256:{}", hex.to_uppercase()),
            &format!("a@sha256:{hex}%0d%0aX: y"),
            &format!("{}/x", "a.".repeat(200)),
            &"a".repeat(300),
            &"a/".repeat(6000),
        ] {
            assert!(matches!(Reference::parse(bad), Err(ImageError::BadReference { .. })), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn every_text_is_refused_or_has_one_full_form(text in "[a-zA-Z0-9./:@_ -]{0,60}") {
            if let Ok(reference) = Reference::parse(&text) {
                prop_assert_eq!(Reference::parse(&reference.to_string()).unwrap(), reference);
            }
        }
    }
}
