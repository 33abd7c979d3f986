//! One header block. `tar` knows where the fields of each dialect are; what the numbers mean is
//! decided here, because a blank field is zero and a time may lie before 1970.

use tar::Header;

pub(crate) const BLOCK: usize = 512;

/// The fields of a header block, before any extension has its say.
#[derive(Debug)]
pub(crate) struct Raw {
    pub(crate) kind: u8,
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) mode: u32,
    pub(crate) uid: i64,
    pub(crate) gid: i64,
    pub(crate) size: i64,
    pub(crate) mtime: i64,
}

impl Raw {
    pub(crate) fn parse(block: &[u8; BLOCK]) -> Result<Self, &'static str> {
        let header = Header::from_byte_slice(block);
        let fields = header.as_old();
        check_sum(block, number(&fields.cksum)?)?;
        Ok(Self {
            kind: fields.linkflag[0],
            path: header.path_bytes().into_owned(),
            link: until_nul(&fields.linkname).to_vec(),
            mode: (number(&fields.mode)? & 0o7777) as u32,
            uid: number(&fields.uid)?,
            gid: number(&fields.gid)?,
            size: number(&fields.size)?,
            mtime: number(&fields.mtime)?,
        })
    }

    /// A sparse file of GNU's old kind has no path prefix, but a map in its place.
    pub(crate) fn is_gnu(block: &[u8; BLOCK]) -> bool {
        Header::from_byte_slice(block).as_gnu().is_some()
    }
}

/// The sum was once taken over signed bytes, so either is right.
fn check_sum(block: &[u8; BLOCK], sum: i64) -> Result<(), &'static str> {
    let mut block = *block;
    block[148..156].fill(b' ');
    let unsigned: i32 = block.iter().map(|byte| i32::from(*byte)).sum();
    let signed = || block.iter().map(|byte| i32::from(*byte as i8)).sum::<i32>();
    let is_right = sum == i64::from(unsigned) || sum == i64::from(signed());
    if is_right { Ok(()) } else { Err("a header has a wrong checksum") }
}

/// Octal digits between blanks, or base 256 where the first bit is set.
pub(crate) fn number(field: &[u8]) -> Result<i64, &'static str> {
    match field.first() {
        Some(first) if first & 0x80 != 0 => base256(field),
        _ => octal(field),
    }
}

fn octal(field: &[u8]) -> Result<i64, &'static str> {
    let text = until_nul(field).trim_ascii();
    text.iter()
        .try_fold(0i64, |number, digit| match digit {
            b'0'..=b'7' => number.checked_mul(8).map(|number| number + i64::from(digit - b'0')),
            _ => None,
        })
        .ok_or("a header has a bad number")
}

fn base256(field: &[u8]) -> Result<i64, &'static str> {
    let negative = field[0] & 0x40 != 0;
    let first = if negative { field[0] } else { field[0] & 0x7f };
    let start: i64 = if negative { -1 } else { 0 };
    let bytes = std::iter::once(first).chain(field[1..].iter().copied());
    bytes
        .enumerate()
        .try_fold(start, |number, (at, byte)| {
            // The sign already fills what stands before the first byte.
            let number = if at == 0 && negative { -1i64 } else { number };
            number.checked_mul(256).map(|shifted| shifted | i64::from(byte))
        })
        .ok_or("a header has a number that is too large")
}

pub(crate) fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_base_256() {
        for (field, expected) in [
            (&b"0000644\0"[..], 0o644),
            (b"     12 ", 0o12),
            (b"\0\0\0\0\0\0\0\0", 0),
            (b"        ", 0),
            (b"77777777777\0", 0o77777777777),
            (&[0x80, 0, 0, 0, 0, 0, 1, 0], 256),
            (&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe], -2),
            (&[0x80, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], i64::MAX),
        ] {
            assert_eq!(number(field), Ok(expected), "{field:?}");
        }
        for bad in [&b"8"[..], b"-1", b"0x1", &[0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0], &[0xbf; 12]] {
            assert!(number(bad).is_err(), "{bad:?}");
        }
    }
}
