//! The members of an archive, one after the other. Blocks are read here and not by `tar`'s own
//! iterator, because a member's size may stand in a PAX record and a sparse file's map behind its
//! header: whoever misses either takes a file's content for headers.

use std::io::Read;

use crate::UnpackError;
use crate::header::{BLOCK, Raw, until_nul};
use crate::job::Limits;
use crate::pax::{self, Records};
use crate::sparse::{self, Map, Stretch};
use crate::stream::{Stream, from_read};

const XATTR: &[u8] = b"SCHILY.xattr.";

#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) path: Vec<u8>,
    pub(crate) kind: Kind,
    /// The lower twelve bits.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: (i64, u32),
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

#[derive(Debug)]
pub(crate) enum Kind {
    /// `size` counts the holes; `stretches` is set where there are any.
    File {
        size: u64,
        stretches: Option<Vec<Stretch>>,
    },
    Dir,
    Symlink(Vec<u8>),
    Hardlink(Vec<u8>),
    Fifo,
    /// Something that no sandbox needs.
    Other,
}

pub(crate) struct Archive<'a> {
    stream: Stream<'a>,
    limits: Limits,
    /// Of the current member: content not yet read, and what fills its last block.
    left: u64,
    padding: u64,
}

/// What extension headers have said about the member that follows them.
#[derive(Default)]
struct Extensions {
    records: Records,
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    bytes: u64,
}

impl<'a> Archive<'a> {
    pub(crate) fn new(stream: Stream<'a>, limits: Limits) -> Self {
        Self { stream, limits, left: 0, padding: 0 }
    }

    pub(crate) fn stream(&self) -> &Stream<'a> {
        &self.stream
    }

    /// The next member, or nothing at the end of the archive.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, UnpackError> {
        let mut extensions = Extensions::default();
        loop {
            self.skip()?;
            let Some(block) = self.header()? else {
                return if extensions.bytes == 0 {
                    Ok(None)
                } else {
                    Err(self.broken("its last header describes nothing"))
                };
            };
            let raw = Raw::parse(&block).map_err(|reason| self.broken(reason))?;
            match raw.kind {
                b'x' | b'g' | b'L' | b'K' => self.extend(&mut extensions, &raw)?,
                _ => return self.member(&block, raw, extensions).map(Some),
            }
        }
    }

    /// Content of the current member, in order; nothing at its end.
    pub(crate) fn read(&mut self, buf: &mut [u8]) -> Result<usize, UnpackError> {
        let piece = self.piece(buf.len() as u64)?;
        buf[..piece.len()].copy_from_slice(piece);
        Ok(piece.len())
    }

    /// The same, where it stands, and as much as there is at once.
    pub(crate) fn piece(&mut self, most: u64) -> Result<&[u8], UnpackError> {
        let most = usize::try_from(self.left.min(most)).unwrap_or(usize::MAX);
        if most == 0 {
            return Ok(&[]);
        }
        let offset = self.stream.position();
        match self.stream.piece(most) {
            Ok([]) => Err(UnpackError::Archive { offset, reason: "it ends in the middle of a file".into() }),
            Ok(piece) => {
                self.left -= piece.len() as u64;
                Ok(piece)
            }
            Err(error) => Err(from_read(error)),
        }
    }

    /// Reads what is left of the stream, which has to be padding. Says how many bytes there were,
    /// compressed and not, and what they hashed to.
    pub(crate) fn finish(mut self) -> Result<(u64, u64, String), UnpackError> {
        let mut buf = vec![0; 64 * 1024];
        loop {
            match self.stream.read(&mut buf).map_err(from_read)? {
                0 => {
                    return Ok((
                        self.stream.compressed_bytes(),
                        self.stream.position(),
                        self.stream.digest(),
                    ));
                }
                read if buf[..read].iter().any(|byte| *byte != 0) => {
                    return Err(UnpackError::TrailingGarbage);
                }
                _ => {}
            }
        }
    }

    fn extend(&mut self, extensions: &mut Extensions, raw: &Raw) -> Result<(), UnpackError> {
        let size = u64::try_from(raw.size).map_err(|_| self.broken("a header has a negative size"))?;
        extensions.bytes = extensions.bytes.saturating_add(size.max(1));
        if extensions.bytes > self.limits.metadata_bytes {
            return Err(UnpackError::too_large(
                "bytes of metadata for one entry",
                self.limits.metadata_bytes,
            ));
        }
        self.left = size;
        self.padding = padding(size);
        let mut data = vec![0; size as usize];
        self.read_exact(&mut data)?;
        match raw.kind {
            b'x' => extensions.records.add(&data).map_err(|reason| self.broken(reason))?,
            b'L' => extensions.path = Some(until_nul(&data).to_vec()),
            b'K' => extensions.link = Some(until_nul(&data).to_vec()),
            // Nobody heeds what a global header says about files; it holds a commit id, usually.
            _ => {}
        }
        Ok(())
    }

    fn member(
        &mut self,
        block: &[u8; BLOCK],
        raw: Raw,
        extensions: Extensions,
    ) -> Result<Entry, UnpackError> {
        let Extensions { records, path, link, .. } = extensions;
        let broken =
            |reason| UnpackError::Archive { offset: self.stream.position(), reason: String::from(reason) };
        let mtime = records.get("mtime").map(pax::time).transpose().map_err(broken)?;
        let pax_path = records.text("path").map_err(broken)?.map(<[u8]>::to_vec);
        let pax_link = records.text("linkpath").map_err(broken)?.map(<[u8]>::to_vec);
        let mut entry = Entry {
            path: pax_path.or(path).unwrap_or(raw.path),
            kind: Kind::Other,
            mode: raw.mode,
            uid: id(&records, "uid", raw.uid).map_err(broken)?,
            gid: id(&records, "gid", raw.gid).map_err(broken)?,
            mtime: mtime.unwrap_or((raw.mtime, 0)),
            xattrs: records
                .all()
                .filter_map(|(key, value)| Some((key.strip_prefix(XATTR)?.to_vec(), value.to_vec())))
                .collect(),
        };
        let size = match records.number("size").map_err(broken)? {
            Some(size) => size,
            None => u64::try_from(raw.size).map_err(|_| broken("a header has a negative size"))?,
        };
        let link = pax_link.or(link).unwrap_or(raw.link);
        entry.kind = self.kind(block, raw.kind, &records, &mut entry.path, link, size)?;
        Ok(entry)
    }

    fn kind(
        &mut self,
        block: &[u8; BLOCK],
        kind: u8,
        records: &Records,
        path: &mut Vec<u8>,
        link: Vec<u8>,
        size: u64,
    ) -> Result<Kind, UnpackError> {
        // Only these have content, whatever the header says about a size.
        let has_content = !matches!(kind, b'1'..=b'6');
        if has_content && size > self.limits.bytes && walls::stands("layer_bytes") {
            return Err(UnpackError::too_large("bytes", self.limits.bytes));
        }
        self.left = if has_content { size } else { 0 };
        self.padding = padding(self.left);
        match kind {
            0 | b'0' | b'7' if path.ends_with(b"/") && size == 0 => Ok(Kind::Dir),
            0 | b'0' | b'7' if path.ends_with(b"/") => {
                Err(UnpackError::entry(path, "it is a directory with content"))
            }
            0 | b'0' | b'7' => self.regular(records, path, size),
            b'S' if Raw::is_gnu(block) => self.old_gnu_sparse(block, size),
            b'1' => Ok(Kind::Hardlink(link)),
            b'2' => Ok(Kind::Symlink(link)),
            b'5' => Ok(Kind::Dir),
            b'6' => Ok(Kind::Fifo),
            _ => Ok(Kind::Other),
        }
    }

    fn regular(&mut self, records: &Records, path: &mut Vec<u8>, stored: u64) -> Result<Kind, UnpackError> {
        let broken = |reason| UnpackError::Archive { offset: 0, reason: String::from(reason) };
        let version = (records.get("GNU.sparse.major"), records.get("GNU.sparse.minor"));
        let is_sparse = records.all().any(|(key, _)| key.starts_with(b"GNU.sparse."));
        if !is_sparse {
            return Ok(Kind::File { size: stored, stretches: None });
        }
        if let Some(name) = records.text("GNU.sparse.name").map_err(broken)? {
            *path = name.to_vec();
        }
        let size = match records.number("GNU.sparse.realsize").map_err(broken)? {
            Some(size) => Some(size),
            None => records.number("GNU.sparse.size").map_err(broken)?,
        };
        let size = size.ok_or_else(|| self.broken("a sparse file has no size"))?;
        let map = match version {
            (Some(b"1"), Some(b"0")) => self.map_in_content()?,
            (None, None) => Map::from_records(records).map_err(|reason| self.broken(reason))?,
            (Some(b"0"), _) => Map::from_records(records).map_err(|reason| self.broken(reason))?,
            _ => return Err(self.broken("a sparse file is of a version that is not known")),
        };
        self.sparse(size, map)
    }

    fn old_gnu_sparse(&mut self, block: &[u8; BLOCK], stored: u64) -> Result<Kind, UnpackError> {
        let mut map = Map::default();
        let size = sparse::old_gnu_size(block).map_err(|reason| self.broken(reason))?;
        let mut more = map.add_old_gnu(block, true).map_err(|reason| self.broken(reason))?;
        while more {
            let mut block = [0; BLOCK];
            self.left = BLOCK as u64;
            self.read_exact(&mut block)?;
            more = map.add_old_gnu(&block, false).map_err(|reason| self.broken(reason))?;
        }
        self.left = stored;
        self.sparse(size, map)
    }

    fn sparse(&self, size: u64, map: Map) -> Result<Kind, UnpackError> {
        let stretches = map.checked(size, self.left).map_err(|reason| self.broken(reason))?;
        Ok(Kind::File { size, stretches: Some(stretches) })
    }

    /// Version 1.0: decimal numbers, a line each, in whole blocks before the data.
    fn map_in_content(&mut self) -> Result<Map, UnpackError> {
        let mut lines = Lines { archive: self, block: [0; BLOCK], at: BLOCK, taken: 0 };
        let count = lines.number()?;
        let mut map = Map::default();
        for _ in 0..count {
            let (offset, len) = (lines.number()?, lines.number()?);
            map.push(offset, len).map_err(|reason| lines.archive.broken(reason))?;
        }
        Ok(map)
    }

    fn read_exact(&mut self, mut buf: &mut [u8]) -> Result<(), UnpackError> {
        while !buf.is_empty() {
            let read = self.read(buf)?;
            if read == 0 {
                return Err(self.broken("a sparse file's map is cut short"));
            }
            buf = &mut buf[read..];
        }
        Ok(())
    }

    /// Leaves the current member behind.
    fn skip(&mut self) -> Result<(), UnpackError> {
        self.left += std::mem::take(&mut self.padding);
        while self.left > 0 {
            self.piece(u64::MAX)?;
        }
        Ok(())
    }

    /// The next header block. Two blocks of zeros end the archive; so does the end of the stream.
    fn header(&mut self) -> Result<Option<[u8; BLOCK]>, UnpackError> {
        let Some(block) = self.block()? else { return Ok(None) };
        if block != [0; BLOCK] {
            return Ok(Some(block));
        }
        match self.block()? {
            Some(block) if block != [0; BLOCK] => {
                Err(self.broken("a block of zeros stands between its members"))
            }
            _ => Ok(None),
        }
    }

    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, UnpackError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.stream.read(&mut block[filled..]).map_err(from_read)? {
                0 if filled == 0 => return Ok(None),
                0 => return Err(self.broken("it ends in the middle of a header")),
                read => filled += read,
            }
        }
        Ok(Some(block))
    }

    fn broken(&self, reason: &str) -> UnpackError {
        UnpackError::Archive { offset: self.stream.position(), reason: reason.into() }
    }
}

/// The lines of a version 1.0 map.
struct Lines<'a, 'b> {
    archive: &'a mut Archive<'b>,
    block: [u8; BLOCK],
    at: usize,
    taken: u64,
}

impl Lines<'_, '_> {
    fn number(&mut self) -> Result<u64, UnpackError> {
        let mut digits = Vec::new();
        loop {
            match self.byte()? {
                b'\n' => return pax::decimal(&digits).map_err(|reason| self.archive.broken(reason)),
                digit if digits.len() < 20 => digits.push(digit),
                _ => return Err(self.archive.broken("a sparse file's map has a bad number")),
            }
        }
    }

    fn byte(&mut self) -> Result<u8, UnpackError> {
        if self.at == BLOCK {
            let mut block = [0; BLOCK];
            self.taken += BLOCK as u64;
            if self.taken > self.archive.limits.metadata_bytes {
                return Err(UnpackError::too_large(
                    "bytes of metadata for one entry",
                    self.archive.limits.metadata_bytes,
                ));
            }
            self.archive.read_exact(&mut block)?;
            self.block = block;
            self.at = 0;
        }
        self.at += 1;
        Ok(self.block[self.at - 1])
    }
}

fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

fn id(records: &Records, key: &str, raw: i64) -> Result<u32, &'static str> {
    let id = records.number(key)?.map_or(Ok(raw), i64::try_from).map_err(|_| "an owner's id is too large")?;
    // The highest id means "don't change" to the kernel.
    u32::try_from(id).ok().filter(|id| *id != u32::MAX).ok_or("an owner's id is out of range")
}
