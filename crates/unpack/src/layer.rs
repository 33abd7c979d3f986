//! One pass over one layer: bytes in, files out, and at the end the proof that these were the right
//! bytes.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::unistd::{Whence, ftruncate, lseek};

use crate::UnpackError;
use crate::archive::{Archive, Entry, Kind};
use crate::early::Early;
use crate::job::{DirMeta, Job, Report};
use crate::looks::Meta;
use crate::path::{Marker, Path};
use crate::second::{SMALL_BYTES, Second, Small};
use crate::sparse::Stretch;
use crate::stream::Stream;
use crate::sys;
use crate::tree::{Counts, Tree};

/// What a file system gives out at once.
const BLOCK_BYTES: u64 = 4096;

/// Unpacks one layer below `root`. What `mark_opaque` gets is a directory of the layer.
pub fn layer(
    input: impl Read,
    root: OwnedFd,
    job: &Job,
    mark_opaque: &mut dyn FnMut(BorrowedFd<'_>) -> io::Result<()>,
) -> Result<Report, UnpackError> {
    with(Stream::new(input, job)?, root, job, Second::default(), mark_opaque)
}

/// The same, decoded by a thread of its own once so many bytes have come out of it.
pub fn layer_ahead(
    input: impl Read + Send + 'static,
    root: OwnedFd,
    job: &Job,
    worth: u64,
    mark_opaque: &mut dyn FnMut(BorrowedFd<'_>) -> io::Result<()>,
) -> Result<Report, UnpackError> {
    with(Stream::mobile(input, job, worth)?, root, job, Second::default(), mark_opaque)
}

/// The same, with as many hands as somebody wants.
pub(crate) fn with(
    stream: Stream<'_>,
    root: OwnedFd,
    job: &Job,
    second: Second,
    mark_opaque: &mut dyn FnMut(BorrowedFd<'_>) -> io::Result<()>,
) -> Result<Report, UnpackError> {
    let archive = Archive::new(stream, job.limits.clone());
    let tree = Tree::new(root, job.limits.clone(), second, mark_opaque);
    Unpacker { archive, tree, job, entries: 0, skipped: 0, logical: 0 }.run()
}

struct Unpacker<'a> {
    archive: Archive<'a>,
    tree: Tree<'a>,
    job: &'a Job,
    entries: u64,
    skipped: u64,
    /// Bytes of files, the holes among them.
    logical: u64,
}

impl Unpacker<'_> {
    fn run(mut self) -> Result<Report, UnpackError> {
        let read = self.entries();
        // What the second hand could not do comes first: it was before whatever could not be read.
        self.tree.finish_files()?;
        read?;
        self.tree.finish()?;
        self.report()
    }

    fn entries(&mut self) -> Result<(), UnpackError> {
        while let Some(entry) = self.archive.next()? {
            self.entries += 1;
            if self.entries > self.job.limits.entries && walls::stands("layer_entries") {
                return Err(UnpackError::too_large("entries", self.job.limits.entries));
            }
            self.entry(entry)?;
        }
        Ok(())
    }

    fn entry(&mut self, entry: Entry) -> Result<(), UnpackError> {
        let limits = &self.job.limits;
        let path = Path::parse(&entry.path, limits)?;
        if self.marker(&path)? {
            return Ok(());
        }
        match &entry.kind {
            Kind::File { size, stretches: None } if *size <= SMALL_BYTES => {
                let size = *size;
                self.small(path, entry, size)
            }
            Kind::File { size, stretches } => self.file(&path, &entry, *size, stretches.as_deref()),
            Kind::Dir => self.tree.directory(&path, &entry),
            Kind::Symlink(target) => self.tree.symlink(&path, target, &entry),
            Kind::Hardlink(target) => self.tree.hardlink(&path, &Path::parse(target, limits)?),
            Kind::Fifo => self.tree.fifo(&path, &entry),
            Kind::Other => {
                self.skipped += 1;
                Ok(())
            }
        }
    }

    /// Whether the entry only says something about the layers below, which is then done.
    fn marker(&mut self, path: &Path) -> Result<bool, UnpackError> {
        let Some((parent, name)) = path.split() else { return Ok(false) };
        let parse = |name| Marker::parse(name).map_err(|reason| UnpackError::entry(&path.join(), reason));
        for name in parent.names() {
            match parse(name)? {
                None => {}
                Some(Marker::Ignored) => return Ok(true),
                Some(_) => return Err(UnpackError::entry(&path.join(), "it lies below a whiteout")),
            }
        }
        match parse(name)? {
            None => return Ok(false),
            Some(Marker::Whiteout(name)) => self.tree.whiteout(&parent, name)?,
            Some(Marker::Opaque) => self.tree.opaque_dir(&parent)?,
            Some(Marker::Ignored) => {}
        }
        Ok(true)
    }

    fn file(
        &mut self,
        path: &Path,
        entry: &Entry,
        size: u64,
        stretches: Option<&[Stretch]>,
    ) -> Result<(), UnpackError> {
        self.count(size)?;
        let mut file = File::from(self.tree.file(path, Meta::of(entry).mode())?);
        let whole = [(0, size)];
        for (offset, len) in stretches.unwrap_or(&whole) {
            self.stretch(&mut file, path, *offset, *len)?;
            self.tree.counts.disk_bytes += len.div_ceil(BLOCK_BYTES).saturating_mul(BLOCK_BYTES);
        }
        let fail = |error: nix::Error| UnpackError::io("write", &path.join(), &error.into());
        if stretches.is_some() {
            let size = i64::try_from(size).map_err(|_| fail(nix::Error::EFBIG))?;
            ftruncate(&file, size).map_err(fail)?;
        }
        self.tree.close(&file.into(), path, entry)
    }

    fn small(&mut self, path: Path, entry: Entry, size: u64) -> Result<(), UnpackError> {
        self.count(size)?;
        let (directory, is_free) = self.tree.spot(&path)?;
        let (meta, content) = (Meta::of(&entry), self.content(size)?);
        self.tree.small(Small { directory, path, content, meta, xattrs: entry.xattrs }, is_free)
    }

    fn count(&mut self, size: u64) -> Result<(), UnpackError> {
        self.logical = self.logical.saturating_add(size);
        if self.logical > self.job.limits.bytes && walls::stands("layer_holes") {
            return Err(UnpackError::too_large("bytes", self.job.limits.bytes));
        }
        Ok(())
    }

    /// The whole of a small file.
    fn content(&mut self, size: u64) -> Result<Vec<u8>, UnpackError> {
        let mut content = vec![0; usize::try_from(size).unwrap_or(0)];
        let mut filled = 0;
        while filled < content.len() {
            filled += self.archive.read(&mut content[filled..])?;
        }
        self.tree.counts.file_bytes += size;
        self.tree.counts.disk_bytes += size.div_ceil(BLOCK_BYTES) * BLOCK_BYTES;
        Ok(content)
    }

    fn stretch(&mut self, file: &mut File, path: &Path, offset: u64, len: u64) -> Result<(), UnpackError> {
        let fail = |error: io::Error| UnpackError::io("write", &path.join(), &error);
        if offset > 0 {
            let offset = i64::try_from(offset).map_err(|_| fail(nix::Error::EFBIG.into()))?;
            lseek(&*file, offset, Whence::SeekSet).map_err(|errno| fail(errno.into()))?;
        }
        let (mut written, mut early) = (0, Early::with(len));
        while written < len {
            let piece = self.archive.piece(len - written)?;
            file.write_all(piece).map_err(fail)?;
            written += piece.len() as u64;
            self.tree.counts.file_bytes += piece.len() as u64;
            if let Some((from, bytes)) = early.after(written) {
                sys::begin_to_write(file.as_fd(), offset + from, bytes);
            }
        }
        Ok(())
    }

    fn report(self) -> Result<Report, UnpackError> {
        let (compression, tree) = (self.archive.stream().compression(), self.tree);
        let (compressed_bytes, bytes, diff_id) = self.archive.finish()?;
        if diff_id != self.job.diff_id && walls::stands("diff_id") {
            return Err(UnpackError::DiffId { expected: self.job.diff_id.clone(), found: diff_id });
        }
        let Counts { file_bytes, disk_bytes, whiteouts, opaque_dirs, root_opaque } = tree.counts;
        let root_described = tree.dirs.iter().any(|(path, meta)| path.names().is_empty() && meta.is_some());
        let mut dirs = DirLists::default();
        tree.dirs.iter().for_each(|(path, meta)| dirs.add(path, meta.as_ref()));
        Ok(Report {
            diff_id,
            compression,
            compressed_bytes,
            bytes,
            file_bytes,
            disk_bytes: disk_bytes + tree.dirs.len() as u64 * BLOCK_BYTES,
            entries: self.entries,
            whiteouts,
            opaque_dirs,
            root_opaque,
            root_described,
            skipped: self.skipped,
            dropped_xattrs: tree.lost.xattrs,
            squashed_owners: tree.lost.owners,
            implicit_dirs: dirs.implicit,
            special_dirs: dirs.special,
            dirs_cut: dirs.cut,
        })
    }
}

/// The lists of a report, kept short enough for the packet that carries it.
#[derive(Default)]
struct DirLists {
    implicit: Vec<String>,
    special: Vec<DirMeta>,
    bytes: usize,
    cut: bool,
}

impl DirLists {
    const MOST_BYTES: usize = 32 * 1024;
    /// JSON around one directory.
    const AROUND: usize = 80;

    fn add(&mut self, path: &Path, meta: Option<&Meta>) {
        if path.names().is_empty()
            || meta.is_some_and(|meta| (meta.mode, meta.uid, meta.gid) == (0o755, 0, 0))
        {
            return;
        }
        let Ok(path) = String::from_utf8(path.join()) else {
            self.cut = true;
            return;
        };
        // Every character may need an escape, and the escape one of its own.
        let escaped = path.chars().map(|c| {
            if c.is_control() {
                7
            } else if matches!(c, '"' | '\\') {
                4
            } else {
                c.len_utf8()
            }
        });
        let bytes = escaped.sum::<usize>() + Self::AROUND;
        if self.bytes + bytes > Self::MOST_BYTES {
            self.cut = true;
            return;
        }
        self.bytes += bytes;
        match meta {
            None => self.implicit.push(path),
            Some(meta) => {
                let Meta { mode, uid, gid, mtime } = *meta;
                self.special.push(DirMeta { path, mode, uid, gid, mtime: mtime.0 });
            }
        }
    }
}
