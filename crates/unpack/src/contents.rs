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

/// Of all members of an archive together.
const NAMES_BYTES: u64 = 32 << 20;

/// What an archive that is not compressed holds.
pub fn members(archive: impl Read, limits: &Limits) -> Result<Vec<Member>, UnpackError> {
    let stream = Stream::unhashed(archive, limits)?;
    if stream.compression() != Compression::None {
        return Err(UnpackError::Compression { reason: "it is compressed".into() });
    }
    let mut archive = Archive::new(stream, limits.clone());
    let (mut members, mut names) = (Vec::new(), 0);
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
        // One name is as long as a header may be, and all of them are held at once.
        let link = match &content {
            Content::Symlink(target) | Content::Hardlink(target) => target.len(),
            Content::File { .. } | Content::Nothing => 0,
        };
        names += (entry.path.len() + link) as u64;
        if names > NAMES_BYTES {
            return Err(UnpackError::too_large("bytes of names", NAMES_BYTES));
        }
        members.push(Member { path: entry.path, content });
    }
    Ok(members)
}

/// The bytes of a stream as they were before anybody compressed them, if somebody has.
pub fn plain<'a>(input: impl Read + 'a, limits: &Limits) -> Result<impl Read + 'a, UnpackError> {
    Stream::unhashed(input, limits)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Compressed, such an archive is a thousandth of what it would have its reader remember.
    #[test]
    fn long_names_are_not_remembered_without_end() {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(0);
        let name = "a".repeat(1_000_000);
        (0..40).for_each(|_| builder.append_data(&mut header, &name, &b""[..]).unwrap());
        let archive = builder.into_inner().unwrap();
        assert!(matches!(members(&archive[..], &Limits::default()), Err(UnpackError::TooLarge { .. })));
    }
}
