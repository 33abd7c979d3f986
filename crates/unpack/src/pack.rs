//! The way back: the tree that a layer was unpacked to becomes an archive again. It has the same files, but
//! seldom the same bytes as the archive that it came from, because those could be written in many ways.
//! Names are sorted, so that the same tree gives the same archive.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, readlinkat};
use nix::sys::stat::{FileStat, SFlag, fstat};
use nix::unistd::{Whence, lseek};
use serde::{Deserialize, Serialize};

use crate::UnpackError;
use crate::member::{Member, Writer};
use crate::sparse::Stretch;
use crate::sys;
use crate::walk::{self, beneath, is_whiteout, os};

const BUFFER_BYTES: usize = 128 * 1024;
/// A file in more pieces than this is written with its holes: whoever reads the map has bounds too.
const MOST_STRETCHES: usize = 10_000;

/// What is known of a layer besides its tree.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PackJob {
    /// Directories that are only there because something is in them.
    pub implicit_dirs: Vec<String>,
    /// Whether the layer says what the root looks like.
    pub root_described: bool,
}

/// What was packed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packed {
    /// Of the archive.
    pub bytes: u64,
    pub entries: u64,
}

/// Says of a directory of the layer whether it hides what lower layers have there.
type IsOpaque<'a> = &'a mut dyn FnMut(BorrowedFd<'_>) -> io::Result<bool>;

/// Reads the job, packs the layer and says as JSON how it went.
pub fn pack_jailed(output: File, root: BorrowedFd<'_>, job: &str, is_opaque: IsOpaque<'_>) -> String {
    let result = match serde_json::from_str::<PackJob>(job) {
        Ok(job) => pack(output, root, &job, is_opaque),
        Err(error) => Err(UnpackError::BadJob { reason: error.to_string() }),
    };
    serde_json::to_string(&result).expect("a report is plain data")
}

/// Packs the layer below `root` into `output`.
pub fn pack(
    output: impl Write,
    root: BorrowedFd<'_>,
    job: &PackJob,
    is_opaque: IsOpaque<'_>,
) -> Result<Packed, UnpackError> {
    let implicit = job.implicit_dirs.iter().map(|path| path.as_bytes().to_vec()).collect();
    let out = Writer::new(BufWriter::with_capacity(BUFFER_BYTES, output));
    let mut packer = Packer { out, is_opaque, implicit, links: HashMap::new(), entries: 0 };
    if job.root_described {
        let stat = fstat(root).map_err(|errno| read_failed(b".", &errno.into()))?;
        packer.entry(&Member { kind: b'5', path: b"./", ..described(&stat) })?;
    }
    let names = names(root).map_err(|error| read_failed(b".", &error))?;
    packer.directory(root, names, b"")?;
    let bytes = packer.out.end().map_err(|error| write_failed(&error))?;
    Ok(Packed { bytes, entries: packer.entries })
}

struct Packer<'a, W: Write> {
    out: Writer<BufWriter<W>>,
    is_opaque: IsOpaque<'a>,
    implicit: HashSet<Vec<u8>>,
    /// The first name of every file that has several.
    links: HashMap<u64, Vec<u8>>,
    entries: u64,
}

impl<W: Write> Packer<'_, W> {
    fn directory(&mut self, dir: BorrowedFd<'_>, names: Vec<Vec<u8>>, at: &[u8]) -> Result<(), UnpackError> {
        for name in names {
            let path = join(at, &name);
            let fail = |error: Errno| read_failed(&path, &error.into());
            // Nothing changes a layer; what was listed is there.
            let stat = walk::stat(dir, &name).map_err(fail)?.ok_or_else(|| fail(Errno::ENOENT))?;
            match walk::kind(&stat) {
                SFlag::S_IFDIR => self.inner_directory(dir, &name, &path, &stat)?,
                _ if is_whiteout(&stat) => {
                    self.whiteout(&join(at, &[b".wh.", name.as_slice()].concat()))?;
                }
                _ if self.is_another_name(&path, &stat)? => {}
                SFlag::S_IFREG => self.file(dir, &name, &path, &stat)?,
                SFlag::S_IFLNK => {
                    let target = readlinkat(dir, os(&name)).map_err(fail)?;
                    let link = target.as_encoded_bytes();
                    self.entry(&Member { kind: b'2', path: &path, link, ..described(&stat) })?;
                }
                SFlag::S_IFIFO => self.entry(&Member { kind: b'6', path: &path, ..described(&stat) })?,
                // Unpacking makes no others.
                _ => {}
            }
        }
        Ok(())
    }

    fn inner_directory(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
        stat: &FileStat,
    ) -> Result<(), UnpackError> {
        let fail = |error: io::Error| read_failed(path, &error);
        let dir = beneath(parent, name, OFlag::O_RDONLY | OFlag::O_DIRECTORY).map_err(|e| fail(e.into()))?;
        let is_opaque = (self.is_opaque)(dir.as_fd()).map_err(fail)?;
        let names = names(dir.as_fd()).map_err(fail)?;
        let comes_by_itself = self.implicit.contains(path) && (is_opaque || !names.is_empty());
        if !comes_by_itself {
            let records = xattrs(dir.as_fd()).map_err(fail)?;
            let path = &[path, b"/"].concat();
            self.entry(&Member { kind: b'5', path, records, ..described(stat) })?;
        }
        if is_opaque {
            self.whiteout(&join(path, b".wh..wh..opq"))?;
        }
        self.directory(dir.as_fd(), names, path)
    }

    /// An empty file with a name that says what is hidden. Its time would be that of the unpacking.
    fn whiteout(&mut self, path: &[u8]) -> Result<(), UnpackError> {
        self.entry(&Member { kind: b'0', path, mode: 0o644, ..Member::default() })
    }

    fn is_another_name(&mut self, path: &[u8], stat: &FileStat) -> Result<bool, UnpackError> {
        if stat.st_nlink < 2 {
            return Ok(false);
        }
        match self.links.get(&stat.st_ino).cloned() {
            Some(first) => {
                self.entry(&Member { kind: b'1', path, link: &first, ..described(stat) })?;
                Ok(true)
            }
            None => {
                self.links.insert(stat.st_ino, path.to_vec());
                Ok(false)
            }
        }
    }

    fn file(
        &mut self,
        dir: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
        stat: &FileStat,
    ) -> Result<(), UnpackError> {
        let fail = |error: io::Error| read_failed(path, &error);
        let mut file = File::from(beneath(dir, name, OFlag::O_RDONLY).map_err(|errno| fail(errno.into()))?);
        let mut records = xattrs(file.as_fd()).map_err(fail)?;
        let size = stat.st_size.unsigned_abs();
        let stretches = stretches(&file, stat).map_err(|errno| fail(errno.into()))?;
        let Some(stretches) = stretches else {
            self.entry(&Member { kind: b'0', path, size, records, ..described(stat) })?;
            return self.copy(&mut file, path, 0, size).and_then(|()| self.pad(size));
        };
        let map = map(&stretches);
        let stored = map.len() as u64 + stretches.iter().map(|(_, len)| len).sum::<u64>();
        let word = |key: &str, value: &[u8]| (format!("GNU.sparse.{key}").into_bytes(), value.to_vec());
        records.extend([word("major", b"1"), word("minor", b"0"), word("name", path)]);
        records.push(word("realsize", size.to_string().as_bytes()));
        // What does not know of sparse files shall at least not take it for the file itself.
        let shown = [b"GNUSparseFile.0/", &name[..name.len().min(80)]].concat();
        self.entry(&Member { kind: b'0', path: &shown, size: stored, records, ..described(stat) })?;
        self.out.content(&map).map_err(|error| write_failed(&error))?;
        for (offset, len) in stretches {
            self.copy(&mut file, path, offset, len)?;
        }
        self.pad(stored)
    }

    fn copy(&mut self, file: &mut File, path: &[u8], offset: u64, len: u64) -> Result<(), UnpackError> {
        io::Seek::seek(file, io::SeekFrom::Start(offset)).map_err(|error| read_failed(path, &error))?;
        let mut buffer = vec![0; BUFFER_BYTES.min(usize::try_from(len).unwrap_or(BUFFER_BYTES))];
        let mut left = len;
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            file.read_exact(&mut buffer[..most]).map_err(|error| read_failed(path, &error))?;
            self.out.content(&buffer[..most]).map_err(|error| write_failed(&error))?;
            left -= most as u64;
        }
        Ok(())
    }

    fn entry(&mut self, member: &Member<'_>) -> Result<(), UnpackError> {
        self.entries += 1;
        self.out.member(member).map_err(|error| write_failed(&error))
    }

    fn pad(&mut self, size: u64) -> Result<(), UnpackError> {
        self.out.pad(size).map_err(|error| write_failed(&error))
    }
}

fn described(stat: &FileStat) -> Member<'static> {
    let nanos = u32::try_from(stat.st_mtime_nsec).unwrap_or_default();
    Member {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: (stat.st_mtime, nanos),
        ..Member::default()
    }
}

/// Where the file has data, if it has holes and its map is one that everybody reads. The last one ends where
/// the file does.
fn stretches(file: &File, stat: &FileStat) -> Result<Option<Vec<Stretch>>, Errno> {
    const BLOCK: i64 = 512;
    if stat.st_blocks.saturating_mul(BLOCK) >= stat.st_size {
        return Ok(None);
    }
    let (mut found, mut at) = (Vec::new(), 0);
    while at < stat.st_size && found.len() < MOST_STRETCHES {
        let start = match lseek(file, at, Whence::SeekData) {
            Err(Errno::ENXIO) => break,
            result => result?,
        };
        at = lseek(file, start, Whence::SeekHole)?;
        found.push((start.unsigned_abs(), (at - start).unsigned_abs()));
    }
    let size = stat.st_size.unsigned_abs();
    if found.len() == MOST_STRETCHES || found == [(0, size)] {
        return Ok(None);
    }
    if found.last().is_none_or(|(start, len)| start + len < size) {
        found.push((size, 0));
    }
    Ok(Some(found))
}

/// The map as version 1.0 has it: numbers, a line each, in whole blocks before the data.
fn map(stretches: &[Stretch]) -> Vec<u8> {
    let numbers = stretches.iter().flat_map(|(offset, len)| [*offset, *len]);
    let lines = std::iter::once(stretches.len() as u64).chain(numbers).map(|number| format!("{number}\n"));
    let mut text = lines.collect::<String>().into_bytes();
    text.resize(text.len().next_multiple_of(crate::header::BLOCK), 0);
    text
}

/// Attributes of users, as records of a PAX header.
fn xattrs(file: BorrowedFd<'_>) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let mut records = Vec::new();
    for name in sys::list_xattrs(file)? {
        let bytes = name.to_bytes();
        if bytes.starts_with(b"user.") && !bytes.starts_with(b"user.overlay.") {
            records.push(([b"SCHILY.xattr.", bytes].concat(), sys::get_xattr(file, &name)?));
        }
    }
    records.sort();
    Ok(records)
}

/// What a directory holds, in order.
fn names(dir: BorrowedFd<'_>) -> io::Result<Vec<Vec<u8>>> {
    let mut dir = Dir::from_fd(beneath(dir, b".", OFlag::O_RDONLY | OFlag::O_DIRECTORY)?)?;
    let mut names = Vec::new();
    for entry in dir.iter() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    names.sort();
    Ok(names)
}

fn join(at: &[u8], name: &[u8]) -> Vec<u8> {
    if at.is_empty() { name.to_vec() } else { [at, b"/", name].concat() }
}

fn read_failed(path: &[u8], error: &io::Error) -> UnpackError {
    UnpackError::io("read", path, error)
}

/// Whoever reads the archive has gone, or has no room for it.
fn write_failed(error: &io::Error) -> UnpackError {
    UnpackError::io("write", b"the archive", error)
}
