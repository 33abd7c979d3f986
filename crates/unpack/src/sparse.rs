//! Where a sparse file has data. Four dialects say it in four ways; afterwards it is a list of
//! stretches, in order, that don't overlap and lie inside the file.

use crate::header::{BLOCK, number};
use crate::pax::{Records, decimal};

/// No honest file needs more.
const MOST_STRETCHES: usize = 64 * 1024;

/// A stretch of data: where it goes and how long it is.
pub(crate) type Stretch = (u64, u64);

#[derive(Debug, Default)]
pub(crate) struct Map(Vec<Stretch>);

impl Map {
    pub(crate) fn push(&mut self, offset: u64, len: u64) -> Result<(), &'static str> {
        if self.0.len() == MOST_STRETCHES {
            return Err("a sparse file has too many pieces");
        }
        self.0.push((offset, len));
        Ok(())
    }

    /// The stretches, once they are known to fit the file and the bytes that the archive has.
    pub(crate) fn checked(self, size: u64, stored: u64) -> Result<Vec<Stretch>, &'static str> {
        const BAD: &str = "a sparse file's map does not fit the file";
        let mut end = 0u64;
        let mut sum = 0u64;
        for (offset, len) in &self.0 {
            if *offset < end {
                return Err(BAD);
            }
            end = offset.checked_add(*len).filter(|end| *end <= size).ok_or(BAD)?;
            sum += len;
        }
        if sum == stored { Ok(self.0) } else { Err(BAD) }
    }

    /// The pairs in a block of GNU's old kind: four of them in a header, 21 in each that follows.
    /// Says whether another block follows.
    pub(crate) fn add_old_gnu(&mut self, block: &[u8; BLOCK], is_header: bool) -> Result<bool, &'static str> {
        let (start, pairs) = if is_header { (386, 4) } else { (0, 21) };
        for pair in block[start..start + pairs * 24].chunks_exact(24) {
            if pair[0] == 0 && pair[12] == 0 {
                break;
            }
            self.push(unsigned(&pair[..12])?, unsigned(&pair[12..])?)?;
        }
        Ok(block[start + pairs * 24] != 0)
    }

    /// The pairs in PAX records, as versions 0.0 and 0.1 have them.
    pub(crate) fn from_records(records: &Records) -> Result<Self, &'static str> {
        let mut map = Self::default();
        if let Some(list) = records.get("GNU.sparse.map") {
            let mut numbers = list.split(|byte| *byte == b',').map(decimal);
            while let Some(offset) = numbers.next() {
                map.push(offset?, numbers.next().ok_or("a sparse file's map is cut short")??)?;
            }
            return Ok(map);
        }
        let mut offset = None;
        for (key, value) in records.all() {
            match key {
                b"GNU.sparse.offset" => offset = Some(decimal(value)?),
                b"GNU.sparse.numbytes" => {
                    let offset = offset.take().ok_or("a sparse file's map is out of order")?;
                    map.push(offset, decimal(value)?)?;
                }
                _ => {}
            }
        }
        Ok(map)
    }
}

/// The number of bytes in a file of GNU's old sparse kind, holes included.
pub(crate) fn old_gnu_size(block: &[u8; BLOCK]) -> Result<u64, &'static str> {
    unsigned(&block[483..495])
}

fn unsigned(field: &[u8]) -> Result<u64, &'static str> {
    u64::try_from(number(field)?).map_err(|_| "a sparse file's map has a bad number")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_must_fit_its_file() {
        let checked = |pairs: &[Stretch], size, stored| Map(pairs.to_vec()).checked(size, stored).is_ok();
        assert!(checked(&[(0, 1), (5, 2)], 7, 3));
        assert!(checked(&[], 1 << 40, 0));
        assert!(!checked(&[(0, 1), (5, 2)], 6, 3));
        assert!(!checked(&[(0, 1), (5, 2)], 7, 4));
        assert!(!checked(&[(5, 2), (0, 1)], 7, 3));
        assert!(!checked(&[(0, 3), (2, 2)], 7, 5));
        assert!(!checked(&[(u64::MAX, 2)], u64::MAX, 2));
    }
}
