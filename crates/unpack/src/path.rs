//! Names inside a layer. A path is split once, here, and from then on it is a list of names of which
//! none is empty, `.`, `..` or has a slash or a NUL.

use crate::UnpackError;
use crate::job::Limits;

/// Where an entry is, seen from the layer's root. Empty is the root itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Path(Vec<Vec<u8>>);

impl Path {
    /// Takes a path as archives have them: `a/b`, `./a/b/`, `/a/b`. `..` can't lead out.
    pub(crate) fn parse(raw: &[u8], limits: &Limits) -> Result<Self, UnpackError> {
        if raw.len() > limits.path_bytes {
            return Err(UnpackError::too_large("bytes in a path", limits.path_bytes as u64));
        }
        if raw.is_empty() || raw.contains(&0) {
            return Err(UnpackError::entry(raw, "its name is empty or has a NUL"));
        }
        let mut names: Vec<Vec<u8>> = Vec::new();
        for name in raw.split(|byte| *byte == b'/') {
            match name {
                b"" | b"." => {}
                b".." if walls::stands("dots") => drop(names.pop()),
                name if name.len() > limits.name_bytes => {
                    return Err(UnpackError::too_large("bytes in a name", limits.name_bytes as u64));
                }
                name => names.push(name.to_vec()),
            }
        }
        if names.len() > limits.depth && walls::stands("layer_depth") {
            return Err(UnpackError::too_large("names in a path", limits.depth as u64));
        }
        Ok(Self(names))
    }

    pub(crate) fn names(&self) -> &[Vec<u8>] {
        &self.0
    }

    /// The directory and the name in it; nothing for the root.
    pub(crate) fn split(&self) -> Option<(Path, &[u8])> {
        let (name, parent) = self.0.split_last()?;
        Some((Path(parent.to_vec()), name))
    }

    /// One of these names, which are known to be names.
    pub(crate) fn of(names: Vec<Vec<u8>>) -> Self {
        Self(names)
    }

    pub(crate) fn join(&self) -> Vec<u8> {
        self.0.join(&b'/')
    }
}

/// What a name says about the layers below.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Marker<'a> {
    /// Hides this name of the lower layers.
    Whiteout(&'a [u8]),
    /// Hides everything that lower layers have in the directory.
    Opaque,
    /// A union file system's own bookkeeping.
    Ignored,
}

const PREFIX: &[u8] = b".wh.";

impl<'a> Marker<'a> {
    pub(crate) fn parse(name: &'a [u8]) -> Result<Option<Self>, &'static str> {
        match name.strip_prefix(PREFIX) {
            None => Ok(None),
            Some(b"" | b"." | b"..") => Err("it is a whiteout of nothing"),
            Some(b".wh..opq") => Ok(Some(Self::Opaque)),
            Some(rest) if rest.starts_with(PREFIX) => Ok(Some(Self::Ignored)),
            Some(rest) => Ok(Some(Self::Whiteout(rest))),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn joined(raw: &str) -> String {
        String::from_utf8(Path::parse(raw.as_bytes(), &Limits::default()).unwrap().join()).unwrap()
    }

    #[test]
    fn every_spelling_ends_up_inside() {
        for (raw, path) in [
            ("a/b", "a/b"),
            ("./a//b/", "a/b"),
            ("/a/./b", "a/b"),
            ("../../a", "a"),
            ("a/../../b", "b"),
            ("a/..", ""),
            ("/", ""),
            ("./", ""),
        ] {
            assert_eq!(joined(raw), path, "{raw}");
        }
    }

    #[test]
    fn sizes_are_limited() {
        let limits = Limits::default();
        for bad in [&b""[..], b"a\0b", &[b'a'; 256], &[b'a'; 5000], &b"a/".repeat(129)] {
            assert!(Path::parse(bad, &limits).is_err());
        }
        assert!(Path::parse(&b"a/".repeat(128), &limits).is_ok());
        assert!(Path::parse(&[b'a'; 255], &limits).is_ok());
    }

    #[test]
    fn whiteouts_of_nothing_are_refused() {
        for bad in [".wh.", ".wh..", ".wh..."] {
            assert!(Marker::parse(bad.as_bytes()).is_err(), "{bad}");
        }
        assert_eq!(Marker::parse(b".wh.a"), Ok(Some(Marker::Whiteout(b"a"))));
        assert_eq!(Marker::parse(b".wh..a"), Ok(Some(Marker::Whiteout(b".a"))));
        assert_eq!(Marker::parse(b".wh..wh..opq"), Ok(Some(Marker::Opaque)));
        assert_eq!(Marker::parse(b".wh..wh.plnk"), Ok(Some(Marker::Ignored)));
        assert_eq!(Marker::parse(b".wha"), Ok(None));
    }

    proptest! {
        #[test]
        fn no_name_is_ever_a_way_out(raw in prop::collection::vec(prop::sample::select(b"ab./\0".to_vec()), 0..40)) {
            if let Ok(path) = Path::parse(&raw, &Limits::default()) {
                for name in path.names() {
                    prop_assert!(!name.is_empty() && name != b"." && name != b".." && !name.contains(&b'/') && !name.contains(&0));
                }
            }
        }
    }
}
