//! An image as a file or a folder, as far as its pieces go: names, and the bytes behind them. What the
//! pieces mean stands in `load`.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Seek};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use unpack::{Content, Member, UnpackError};

/// How much of a piece is read at once.
const PIECE_BYTES: u64 = 1 << 20;
/// A link in an archive leads to a file, or to a link that does.
const MOST_LINKS: usize = 4;
const MOST_MEMBERS: u64 = 100_000;

/// A stretch of a file.
#[derive(Clone, Debug)]
pub(crate) struct Piece {
    file: Arc<File>,
    offset: u64,
    pub(crate) size: u64,
}

impl Piece {
    /// Some bytes from there on; none only at the end.
    pub(crate) fn read(&self, at: u64) -> io::Result<Vec<u8>> {
        let len = self.size.saturating_sub(at).min(PIECE_BYTES);
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
        self.file.read_exact_at(&mut bytes, self.offset + at)?;
        Ok(bytes)
    }

    /// All of it, if that is no more than `limit`.
    pub(crate) fn read_whole(&self, limit: u64) -> io::Result<Vec<u8>> {
        if self.size > limit {
            return Err(io::Error::other(format!("it has more than {limit} bytes")));
        }
        let mut bytes = vec![0; usize::try_from(self.size).unwrap_or(usize::MAX)];
        self.file.read_exact_at(&mut bytes, self.offset)?;
        Ok(bytes)
    }
}

/// Where the pieces of one or several images are.
#[derive(Debug)]
pub(crate) enum Bundle {
    Folder(PathBuf),
    Archive { file: Arc<File>, members: HashMap<String, Content> },
}

impl Bundle {
    /// A folder, or an archive, compressed or not.
    pub(crate) fn open(path: &Path, spool: &Path, limit: u64) -> io::Result<Self> {
        if path.is_dir() {
            return Ok(Self::Folder(path.to_owned()));
        }
        Self::of_file(File::open(path)?, spool, limit)
    }

    /// An archive. One that is compressed, or can't be read twice, is written down in `spool` first.
    pub(crate) fn of_file(mut file: File, spool: &Path, limit: u64) -> io::Result<Self> {
        let limits = unpack::Limits {
            bytes: limit,
            entries: MOST_MEMBERS,
            ratio: u64::MAX,
            ..unpack::Limits::default()
        };
        let mut first = [0; 4];
        let is_plain = file.metadata()?.is_file() && {
            let read = file.read_at(&mut first, 0)?;
            read == 4 && first[..2] != [0x1f, 0x8b] && first != [0x28, 0xb5, 0x2f, 0xfd]
        };
        if file.metadata()?.is_file() {
            file.rewind()?;
        }
        if !is_plain {
            let mut aside = spooled(spool)?;
            let mut plain = unpack::plain(file, &limits).map_err(io::Error::other)?;
            io::copy(&mut plain, &mut aside)?;
            file = aside;
        }
        file.rewind()?;
        let members = unpack::members(BufReader::with_capacity(1 << 18, &file), &limits).map_err(said)?;
        Ok(Self::Archive { file: Arc::new(file), members: by_name(members) })
    }

    /// The piece of that name, if there is one.
    pub(crate) fn piece(&self, name: &str) -> Option<Piece> {
        match self {
            Self::Folder(folder) => {
                let is_plain = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
                let file = is_plain.then(|| File::open(folder.join(name)).ok())??;
                let stat = file.metadata().ok().filter(std::fs::Metadata::is_file)?;
                Some(Piece { file: Arc::new(file), offset: 0, size: stat.len() })
            }
            Self::Archive { file, members } => {
                let mut name = clean(name);
                for _ in 0..=MOST_LINKS {
                    match members.get(&name)? {
                        Content::File { offset, size } => {
                            return Some(Piece { file: Arc::clone(file), offset: *offset, size: *size });
                        }
                        Content::Hardlink(target) => name = clean(str::from_utf8(target).ok()?),
                        Content::Symlink(target) => {
                            let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
                            name = clean(&format!("{folder}/{}", str::from_utf8(target).ok()?));
                        }
                        Content::Nothing => return None,
                    }
                }
                None
            }
        }
    }
}

/// A file that nobody else can find and that goes when it is closed, however that comes about.
pub(crate) fn spooled(folder: &Path) -> io::Result<File> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let path = folder.join(format!("incoming-{}-{number}", std::process::id()));
    let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

/// Of members of the same name the last one counts, as everywhere.
fn by_name(members: Vec<Member>) -> HashMap<String, Content> {
    let named = members
        .into_iter()
        .filter_map(|Member { path, content }| Some((clean(&String::from_utf8(path).ok()?), content)));
    named.collect()
}

/// `./a/../b` is `b`, and nothing is above the top.
fn clean(name: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

fn said(error: UnpackError) -> io::Error {
    io::Error::other(error)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn archive(fill: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        fill(&mut builder);
        builder.into_inner().unwrap()
    }

    fn link(builder: &mut tar::Builder<Vec<u8>>, kind: tar::EntryType, path: &str, target: &str) {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(0);
        builder.append_link(&mut header, path, target).unwrap();
    }

    fn open(bytes: &[u8], spool: &Path) -> io::Result<Bundle> {
        let mut file = spooled(spool).unwrap();
        file.write_all(bytes).unwrap();
        Bundle::of_file(file, spool, 1 << 20)
    }

    #[test]
    fn pieces_are_found_through_links_and_compression_and_never_outside() {
        let spool = tempfile::tempdir().unwrap();
        let plain = archive(|tar| {
            let mut header = tar::Header::new_gnu();
            header.set_size(5);
            header.set_mode(0o644);
            tar.append_data(&mut header, "a/layer.tar", &b"bytes"[..]).unwrap();
            link(tar, tar::EntryType::Symlink, "b/layer.tar", "../a/layer.tar");
            link(tar, tar::EntryType::Link, "c", "a/layer.tar");
            link(tar, tar::EntryType::Symlink, "loop", "loop");
            link(tar, tar::EntryType::Symlink, "out", "/etc/passwd");
        });
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&plain).unwrap();
        for bytes in [plain, gzip.finish().unwrap()] {
            let bundle = open(&bytes, spool.path()).unwrap();
            for name in ["a/layer.tar", "./a/layer.tar", "b/layer.tar", "c"] {
                let piece = bundle.piece(name).unwrap_or_else(|| panic!("{name}"));
                assert_eq!(piece.read(0).unwrap(), b"bytes", "{name}");
                assert!(piece.read_whole(4).is_err() && piece.read(5).unwrap().is_empty());
            }
            for name in ["loop", "out", "nothing", "../a"] {
                assert!(bundle.piece(name).is_none(), "{name}");
            }
        }
        assert!(open(b"no archive at all", spool.path()).is_err());
        assert_eq!(std::fs::read_dir(spool.path()).unwrap().count(), 0);
        let folder = Bundle::open(spool.path(), spool.path(), 1).unwrap();
        std::fs::write(spool.path().join("x"), "bytes").unwrap();
        assert_eq!(folder.piece("x").unwrap().read(0).unwrap(), b"bytes");
        assert!(folder.piece("../etc/passwd").is_none() && folder.piece("/etc/passwd").is_none());
    }
}
