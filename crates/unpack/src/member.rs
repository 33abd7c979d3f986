//! Writing the members of an archive: a header block, before it a PAX header for whatever does not fit, and
//! behind it the content in whole blocks. What the fields mean is the business of whoever fills them in.

use std::io::{self, Write};

use tar::Header;

use crate::header::BLOCK;

/// The largest numbers that the octal fields of a header hold.
const MOST_ID: u32 = 0o7_777_777;
const MOST_SIZE: u64 = 0o77_777_777_777;
const NAME_BYTES: usize = 100;

/// One member, apart from its content.
#[derive(Clone, Debug, Default)]
pub(crate) struct Member<'a> {
    pub(crate) kind: u8,
    pub(crate) path: &'a [u8],
    pub(crate) link: &'a [u8],
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: (i64, u32),
    /// Of the content as it stands in the archive.
    pub(crate) size: u64,
    /// What only a PAX header can say.
    pub(crate) records: Vec<(Vec<u8>, Vec<u8>)>,
}

pub(crate) struct Writer<W> {
    to: W,
    pub(crate) bytes: u64,
}

impl<W: Write> Writer<W> {
    pub(crate) fn new(to: W) -> Self {
        Self { to, bytes: 0 }
    }

    pub(crate) fn member(&mut self, member: &Member<'_>) -> io::Result<()> {
        let records = records(member);
        if !records.is_empty() {
            let text: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
            let header =
                Member { kind: b'x', path: b"PaxHeader", size: text.len() as u64, ..Member::default() };
            self.content(block(&header).as_bytes())?;
            self.content(&text)?;
            self.pad(header.size)?;
        }
        self.content(block(member).as_bytes())
    }

    pub(crate) fn content(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.bytes += bytes.len() as u64;
        self.to.write_all(bytes)
    }

    /// Fills the last block of a content of that length.
    pub(crate) fn pad(&mut self, len: u64) -> io::Result<()> {
        let missing = len.wrapping_neg() % BLOCK as u64;
        self.content(&[0; BLOCK][..usize::try_from(missing).unwrap_or_default()])
    }

    /// Two blocks of zeros, and everything goes out.
    pub(crate) fn end(mut self) -> io::Result<u64> {
        self.content(&[0; 2 * BLOCK])?;
        self.to.flush()?;
        Ok(self.bytes)
    }
}

/// A header block says as much as it can; what it can't say stands in `records`.
fn block(member: &Member<'_>) -> Header {
    let mut header = Header::new_ustar();
    let fields = header.as_old_mut();
    let cut = |text: &[u8]| text.len().min(NAME_BYTES);
    fields.name[..cut(member.path)].copy_from_slice(&member.path[..cut(member.path)]);
    fields.linkname[..cut(member.link)].copy_from_slice(&member.link[..cut(member.link)]);
    fields.linkflag[0] = member.kind;
    header.set_mode(member.mode);
    header.set_uid(member.uid.min(MOST_ID).into());
    header.set_gid(member.gid.min(MOST_ID).into());
    header.set_mtime(u64::try_from(member.mtime.0).unwrap_or_default().min(MOST_SIZE));
    header.set_size(member.size.min(MOST_SIZE));
    header.set_cksum();
    header
}

fn records(member: &Member<'_>) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut records = member.records.clone();
    let mut add = |key: &str, value: Vec<u8>| {
        // A sparse file's own name and size have words of their own, which stand already.
        if !records.iter().any(|(known, _)| known == key.as_bytes()) {
            records.push((key.into(), value));
        }
    };
    if member.path.len() > NAME_BYTES {
        add("path", member.path.to_vec());
    }
    if member.link.len() > NAME_BYTES {
        add("linkpath", member.link.to_vec());
    }
    if member.size > MOST_SIZE {
        add("size", member.size.to_string().into());
    }
    if member.uid > MOST_ID {
        add("uid", member.uid.to_string().into());
    }
    if member.gid > MOST_ID {
        add("gid", member.gid.to_string().into());
    }
    let (seconds, nanos) = member.mtime;
    if nanos != 0 || !(0..=MOST_SIZE.cast_signed()).contains(&seconds) {
        add("mtime", time(member.mtime).into());
    }
    records
}

/// The other way of [`crate::pax::time`].
fn time((seconds, nanos): (i64, u32)) -> String {
    match (seconds, nanos) {
        (seconds, 0) => seconds.to_string(),
        (0.., nanos) => format!("{seconds}.{nanos:09}"),
        (_, nanos) => format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanos),
    }
}

/// `length key=value\n`, and the length counts itself.
fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while len != rest + len.to_string().len() {
        len = rest + len.to_string().len();
    }
    [len.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::pax::{self, Records};

    proptest! {
        #[test]
        fn what_is_written_is_read_again(
            key in "[a-z.]{1,20}", value in proptest::collection::vec(any::<u8>(), 1..200),
            seconds in -10_000_000_000_i64..10_000_000_000, nanos in 0_u32..1_000_000_000,
        ) {
            let mut records = Records::default();
            records.add(&record(key.as_bytes(), &value)).unwrap();
            prop_assert_eq!(records.get(&key), Some(value.as_slice()));
            prop_assert_eq!(pax::time(time((seconds, nanos)).as_bytes()), Ok((seconds, nanos)));
        }
    }
}
