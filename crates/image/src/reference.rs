//! What an image is called. Written as Docker users write it, kept in full, and checked before
//! anything is asked of anybody: a reference comes from a stranger.

use std::fmt;

use crate::ImageError;
use crate::digest::is_digest;

/// The longest that is looked at: a host, a repository, a tag and a digest at their longest.
const MOST_BYTES: usize = 1024;
const MOST_HOST_BYTES: usize = 253;
const MOST_REPOSITORY_BYTES: usize = 255;
const MOST_TAG_BYTES: usize = 128;
const DOCKER_HUB: &str = "docker.io";
/// Names under which Docker Hub is also known.
const DOCKER_HUB_ALIASES: [&str; 2] = ["index.docker.io", "registry-1.docker.io"];

/// A registry, a repository in it, and which of its images.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Reference {
    /// `docker.io`, `localhost:5000`. Lower case.
    pub(crate) registry: String,
    pub(crate) repository: String,
    /// None where there is a digest.
    pub(crate) tag: Option<String>,
    pub(crate) digest: Option<String>,
}

impl Reference {
    /// By hand, though `oci_client` has a parser: every run's request has a reference, and that parser's
    /// regular expression takes 16 MB and more time than all of the rest of reading a request. The tests
    /// hold this one against it.
    pub(crate) fn parse(text: &str) -> Result<Self, ImageError> {
        Self::read(text).map_err(|reason| ImageError::BadReference {
            reference: text.chars().take(200).collect(),
            reason: reason.into(),
        })
    }

    fn read(text: &str) -> Result<Self, &'static str> {
        if text.len() > MOST_BYTES {
            return Err("it is too long");
        }
        if !text.is_ascii() {
            return Err("it has a character that is not ASCII");
        }
        let (text, digest) = split_last(text, text.find('@'));
        if digest.is_some_and(|digest| !is_digest(digest)) {
            return Err("its digest is not sha256 or sha512 in lower-case hex");
        }
        // A colon before a slash is that of a port.
        let after_slash = text.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = split_last(text, text[after_slash..].find(':').map(|colon| after_slash + colon));
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err("its tag is not 1 to 128 of letters, digits, _, . and -, the first neither . nor -");
        }
        let (registry, repository) = split_registry(name);
        let registry = registry.map_or_else(|| DOCKER_HUB.to_owned(), str::to_ascii_lowercase);
        check_registry(&registry)?;
        check_repository(repository)?;
        let is_hub = registry == DOCKER_HUB || DOCKER_HUB_ALIASES.contains(&registry.as_str());
        let prefix = if is_hub && !repository.contains('/') { "library/" } else { "" };
        let repository = format!("{prefix}{repository}");
        if repository.len() > MOST_REPOSITORY_BYTES {
            return Err("its repository has more than 255 characters");
        }
        // A digest wins over a tag, which then means nothing: with it the same image would have any number of names,
        // and one that stands for no tag of its own could pass for one that is allowed.
        let tag = if digest.is_some() { None } else { tag.or(Some("latest")) };
        Ok(Self {
            registry: if is_hub { DOCKER_HUB.into() } else { registry },
            repository,
            tag: tag.map(str::to_owned),
            digest: digest.map(str::to_owned),
        })
    }

    /// What has that content in the same repository.
    pub(crate) fn by_digest(self, digest: &str) -> Option<Self> {
        is_digest(digest).then(|| Self { tag: None, digest: Some(digest.to_owned()), ..self })
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

/// What stands before the byte at this place, and what stands after it.
fn split_last(text: &str, at: Option<usize>) -> (&str, Option<&str>) {
    at.map_or((text, None), |at| (&text[..at], Some(&text[at + 1..])))
}

/// What stands before the first slash is a registry if it looks like none of Docker Hub's users.
fn split_registry(name: &str) -> (Option<&str>, &str) {
    match name.split_once('/') {
        Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => (Some(host), rest),
        _ => (None, name),
    }
}

fn check_registry(registry: &str) -> Result<(), &'static str> {
    let (host, port) = split_last(registry, registry.find(':'));
    let is_port = |port: &str| {
        let are_digits = port.bytes().all(|byte| byte.is_ascii_digit());
        are_digits && port.len() <= 5 && port.parse::<u16>().is_ok_and(|port| port > 0)
    };
    if port.is_some_and(|port| !is_port(port)) {
        return Err("its registry's port is not between 1 and 65535");
    }
    let is_label = |label: &str| {
        let are_fit = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        are_fit && (1..=63).contains(&label.len()) && !label.starts_with('-') && !label.ends_with('-')
    };
    if host.len() > MOST_HOST_BYTES || !host.split('.').all(is_label) {
        return Err("its registry is no host name");
    }
    Ok(())
}

fn check_repository(repository: &str) -> Result<(), &'static str> {
    // `Host/x` can't be a repository of Docker Hub, which it would be for its first part.
    if repository.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err("a repository is written in lower case, and a registry has a dot or a port");
    }
    if repository.is_empty() {
        return Err("it has no repository");
    }
    if !repository.split('/').all(is_component) {
        return Err(
            "a part of its repository is not lower-case letters and digits, with ., _, __ or - between them",
        );
    }
    Ok(())
}

/// Letters and digits, and between them one dot, one or two underscores, or any number of dashes.
fn is_component(part: &str) -> bool {
    let is_letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let between =
        |between: &str| matches!(between, "" | "." | "_" | "__") || between.bytes().all(|byte| byte == b'-');
    let is_edge = |byte: Option<&u8>| byte.is_some_and(|byte| is_letter(*byte));
    is_edge(part.as_bytes().first())
        && is_edge(part.as_bytes().last())
        && part.split(|c: char| is_letter(c as u8) && c.is_ascii()).all(between)
}

fn is_tag(tag: &str) -> bool {
    let is_fit = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    (1..=MOST_TAG_BYTES).contains(&tag.len()) && tag.bytes().all(is_fit) && !tag.starts_with(['.', '-'])
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_image_has_the_same_content_whatever_it_was_called() {
        let (digest, other) = (format!("sha256:{}", "a".repeat(64)), format!("sha256:{}", "b".repeat(64)));
        for (text, name) in [
            ("docker.io/library/alpine:3".into(), "docker.io/library/alpine"),
            ("127.0.0.1:5000/a/b:latest".into(), "127.0.0.1:5000/a/b"),
            (format!("quay.io/x/y@{other}"), "quay.io/x/y"),
        ] {
            assert_eq!(crate::by_digest(&text, &digest), Some(format!("{name}@{digest}")), "{text}");
        }
        assert_eq!((crate::by_digest("a", "sha256:ab"), crate::by_digest("A", &digest)), (None, None));
    }

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
            (format!("alpine:3@{digest}").as_str(), format!("docker.io/library/alpine@{digest}")),
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

    /// The registry's own client has another parser, that of Docker in Rust. What only one of them takes
    /// is what this one refuses on purpose: `Host/x`, hosts and ports that can't be, other digests.
    fn assert_same_as_the_client(text: &str) {
        let theirs = text.parse::<oci_client::Reference>().ok();
        let Ok(ours) = Reference::parse(text) else {
            if let Some(theirs) = theirs {
                let on_purpose = check_registry(&theirs.registry().to_ascii_lowercase()).is_err()
                    || check_repository(theirs.repository())
                        .is_err_and(|reason| reason.contains("lower case, and"))
                    || theirs.digest().is_some_and(|digest| !is_digest(digest));
                assert!(on_purpose, "{text:?} is refused here only");
            }
            return;
        };
        let theirs = theirs.unwrap_or_else(|| panic!("{text:?} is taken here only"));
        assert_eq!(ours.tag.as_deref(), theirs.tag().filter(|_| theirs.digest().is_none()), "{text:?}");
        assert_eq!(ours.digest.as_deref(), theirs.digest(), "{text:?}");
        let registry = theirs.registry().to_ascii_lowercase();
        if !DOCKER_HUB_ALIASES.contains(&registry.as_str()) && registry != DOCKER_HUB {
            assert_eq!((ours.registry.as_str(), ours.repository.as_str()), (&*registry, theirs.repository()));
        } else {
            assert_eq!(ours.registry, DOCKER_HUB);
            assert!(ours.repository.ends_with(theirs.repository()), "{text:?}");
        }
    }

    #[test]
    fn long_parts_are_taken_up_to_where_the_client_takes_them() {
        for len in [126, 127, 128, 129, 246, 247, 248, 254, 255, 256] {
            let part = "a".repeat(len);
            for text in [format!("x:{part}"), part.clone(), format!("o/{part}"), format!("h.io/{part}")] {
                assert_same_as_the_client(&text);
            }
        }
    }

    proptest! {
        #[test]
        fn the_client_of_the_registry_reads_the_same(text in "[aA0.][aAb0./:@_-]{0,12}(@sha256:[0a]{64})?") {
            assert_same_as_the_client(&text);
        }

        #[test]
        fn and_so_it_does_with_likely_ones(
            text in "([aA0-]{1,3}(\\.[a0]{1,2}){0,2}(:[0-9]{0,6})?/)?[a0]{1,2}([._-]{0,3}[a0/]{1,2}){0,3}(:[aA0._-]{0,4})?"
        ) {
            assert_same_as_the_client(&text);
        }

        #[test]
        fn every_text_is_refused_or_has_one_full_form(text in "[a-zA-Z0-9./:@_ -]{0,60}") {
            if let Ok(reference) = Reference::parse(&text) {
                prop_assert_eq!(Reference::parse(&reference.to_string()).unwrap(), reference);
            }
        }
    }
}
