//! Where the members of an archive lie, for archives that are not unpacked but looked into: an image
//! as a file holds its layers as members. The same reader as for layers, with the same bounds.

use std::io::Read;

use crate::UnpackError;
use crate::archive::{Archive, Kind};
use crate::job::{Compression, Limits};
use crate::stream::Stream;

/// One member of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// As it is written, `./` and all.
    pub path: Vec<u8>,
    pub content: Content,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// So many bytes from there on.
    File { offset: u64, size: u64 },
    /// What another member has, named from the folder that this one is in.
    Symlink(Vec<u8>),
    /// What another member has, named from the top.
    Hardlink(Vec<u8>),
    /// Nothing that could be read.
    Nothing,
}

/// What an archive that is not compressed holds.
pub fn members(archive: impl Read, limits: &Limits) -> Result<Vec<Member>, UnpackError> {
    let stream = Stream::unhashed(archive, limits)?;
    if stream.compression() != Compression::None {
        return Err(UnpackError::Compression { reason: "it is compressed".into() });
    }
    let mut archive = Archive::new(stream, limits.clone());
    let mut members = Vec::new();
    while let Some(entry) = archive.next()? {
        if members.len() as u64 >= limits.entries {
            return Err(UnpackError::too_large("entries", limits.entries));
        }
        let offset = archive.stream().position();
        let content = match entry.kind {
            Kind::File { size, stretches: None } => Content::File { offset, size },
            Kind::Symlink(target) => Content::Symlink(target),
            Kind::Hardlink(target) => Content::Hardlink(target),
            _ => Content::Nothing,
        };
        members.push(Member { path: entry.path, content });
    }
    Ok(members)
}

/// The bytes of a stream as they were before anybody compressed them, if somebody has.
pub fn plain<'a>(input: impl Read + 'a, limits: &Limits) -> Result<impl Read + 'a, UnpackError> {
    Stream::unhashed(input, limits)
}
