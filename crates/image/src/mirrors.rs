//! Other places for what a registry has: they are asked before it, in the operator's order, and
//! whatever one of them lacks or gets wrong, the next one may have. The registry itself comes last.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::reference::Reference;

/// How long a mirror that failed is left alone.
const PAUSE: Duration = Duration::from_secs(30);
/// And at most, whatever it asks for: it may say any number.
const LONGEST_PAUSE: Duration = Duration::from_secs(3600);

/// One place instead of a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirror {
    /// The registry that it stands for: `docker.io`.
    pub registry: String,
    /// `HOST` or `HOST:PORT`.
    pub host: String,
    /// What goes before the repository there, without slashes around it; may be empty.
    pub prefix: String,
}

impl Mirror {
    /// Reads `docker.io=mirror.example:5000/prefix`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong =
            |why: &str| format!("{text:?} is no mirror: {why}; it is written like docker.io=HOST:PORT");
        let (registry, place) = text.split_once('=').ok_or_else(|| wrong("there is no ="))?;
        let (host, prefix) = place.split_once('/').unwrap_or((place, ""));
        let prefix = prefix.trim_matches('/');
        // What can't be written in a reference can't be asked for either.
        let repository = if prefix.is_empty() { "x".to_owned() } else { format!("{prefix}/x") };
        let known =
            Reference::parse(&format!("{registry}/x/x")).map_err(|error| wrong(&error.to_string()))?;
        let there =
            Reference::parse(&format!("{host}/{repository}")).map_err(|error| wrong(&error.to_string()))?;
        if there.registry != host.to_ascii_lowercase() {
            return Err(wrong("what comes after the = is no host"));
        }
        Ok(Self { registry: known.registry, host: there.registry, prefix: prefix.into() })
    }

    fn reference(&self, image: &Reference) -> Reference {
        let slash = if self.prefix.is_empty() { "" } else { "/" };
        let repository = format!("{}{slash}{}", self.prefix, image.repository);
        Reference { registry: self.host.clone(), repository, ..image.clone() }
    }
}

/// The answer came from a mirror.
#[derive(Clone, Debug)]
pub(crate) struct FromMirror(pub(crate) String);

impl FromMirror {
    pub(crate) fn of(response: &reqwest::Response) -> Option<Self> {
        response.extensions().get().cloned()
    }
}

#[derive(Debug)]
pub(crate) struct Mirrors {
    all: Vec<Mirror>,
    /// Those that have failed, and until when they are left alone.
    resting: Mutex<HashMap<String, Instant>>,
}

impl Mirrors {
    pub(crate) fn new(all: Vec<Mirror>) -> Self {
        Self { all, resting: Mutex::default() }
    }

    /// The image at those mirrors of its registry that are worth asking now.
    pub(crate) fn of(&self, image: &Reference) -> Vec<Reference> {
        let mut resting = self.resting.lock().expect("no holder panics");
        resting.retain(|_, until| *until > Instant::now());
        let of_it = self.all.iter().filter(|mirror| mirror.registry == image.registry);
        of_it
            .filter(|mirror| !resting.contains_key(&mirror.host))
            .map(|mirror| mirror.reference(image))
            .collect()
    }

    /// Leaves a mirror alone for a while.
    pub(crate) fn rest(&self, host: &str, after: Option<Duration>) {
        tracing::debug!(mirror = host, "a mirror fails and is left alone for a while");
        let until = Instant::now() + after.unwrap_or_default().clamp(PAUSE, LONGEST_PAUSE);
        self.resting.lock().expect("no holder panics").insert(host.into(), until);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_are_read_as_they_are_written() {
        let read =
            |text: &str| Mirror::parse(text).map(|mirror| (mirror.registry, mirror.host, mirror.prefix));
        let of = |parts: [&str; 3]| {
            let [registry, host, prefix] = parts.map(str::to_owned);
            Ok((registry, host, prefix))
        };
        assert_eq!(read("docker.io=mirror.example"), of(["docker.io", "mirror.example", ""]));
        assert_eq!(read("index.docker.io=m.example:5000/hub/"), of(["docker.io", "m.example:5000", "hub"]));
        assert_eq!(read("localhost:5000=127.0.0.1:5001"), of(["localhost:5000", "127.0.0.1:5001", ""]));
        for wrong in
            ["docker.io", "docker.io=", "=m.example", "docker.io=https://m.example", "docker.io=mirror"]
        {
            assert!(read(wrong).unwrap_err().contains("docker.io=HOST:PORT"), "{wrong}");
        }
    }

    #[test]
    fn one_that_fails_is_not_asked_for_a_while() {
        let mirror = |host: &str| Mirror::parse(&format!("docker.io={host}/p")).unwrap();
        let mirrors = Mirrors::new(vec![mirror("a.example"), mirror("b.example")]);
        let of = |image: &str| {
            let places = mirrors.of(&Reference::parse(image).unwrap());
            places.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(of("alpine:3"), ["a.example/p/library/alpine:3", "b.example/p/library/alpine:3"]);
        assert!(of("ghcr.io/o/n").is_empty());
        mirrors.rest("a.example", None);
        assert_eq!(of("alpine:3"), ["b.example/p/library/alpine:3"]);
        // `Retry-After: 18446744073709551615`
        mirrors.rest("b.example", Some(Duration::from_secs(u64::MAX)));
        assert!(of("alpine:3").is_empty());
        let most = Instant::now() + LONGEST_PAUSE;
        assert!(mirrors.resting.lock().unwrap().values().all(|until| *until <= most));
    }
}
