//! What can't be had again, in one file: who may ask (hashes of keys), what each has used, and what was promised and
//! remembered of runs. The file is a plain tar archive; this says what is in it, and writes it piece by piece.

pub mod restore;

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};

use crate::keys::{self, Ledger};

/// Of the archive. What is in it has versions of its own.
const FORMAT: u32 = 1;

const ABOUT: &str = "sandglass.json";
const KEYS: &str = "keys/keys.json";
const USED: &str = "records/principals.json";
const RUNS: &str = "runs/runs.redb";
/// In the form of `sha256sum`, of everything before it. It is the last: without it an archive is not whole.
const SUMS: &str = "SHA256SUMS";

/// A block of an archive.
const BLOCK_BYTES: usize = 512;

/// How much of the file of runs is read at once.
const PIECE_BYTES: usize = 256 * 1024;

#[derive(Debug, Serialize, Deserialize)]
struct About {
    format: u32,
    version: String,
}

/// An archive to be: the pieces of its bytes, one after the other.
#[derive(Debug)]
pub struct Backup {
    /// Everything before the file of runs.
    head: Option<Vec<u8>>,
    runs: File,
    runs_bytes: u64,
    /// How much of it is still to be read.
    left: u64,
    sum: Sha256,
    /// What is known of the last entry.
    sums: Option<String>,
}

impl Backup {
    /// `runs` is a copy of the file of runs that nobody writes to.
    pub fn of(data_dir: &Path, runs: File) -> anyhow::Result<Self> {
        let about = About { format: FORMAT, version: env!("CARGO_PKG_VERSION").into() };
        let (mut head, mut sums) = (Vec::new(), String::new());
        let mut add = |name: &str, bytes: &[u8]| {
            sums += &line(name, Sha256::digest(bytes).as_slice());
            append(&mut head, name, bytes)
        };
        add(ABOUT, &serde_json::to_vec(&about)?)?;
        for (name, path) in [(KEYS, keys::file::path(data_dir)), (USED, Ledger::path(data_dir))] {
            match fs::read(&path) {
                Ok(bytes) => add(name, &bytes)?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
            }
        }
        let runs_bytes = runs.metadata().context("look at the copy of the runs")?.len();
        head.extend_from_slice(header(RUNS, runs_bytes)?.as_bytes());
        Ok(Self {
            head: Some(head),
            runs,
            runs_bytes,
            left: runs_bytes,
            sum: Sha256::new(),
            sums: Some(sums),
        })
    }

    /// How long the whole archive is.
    pub fn bytes(&self) -> u64 {
        let sums = self.sums.as_ref().map_or(0, String::len) + line(RUNS, &[0; 32]).len();
        let head = self.head.as_ref().map_or(0, Vec::len);
        let small = head + BLOCK_BYTES + sums.next_multiple_of(BLOCK_BYTES) + 2 * BLOCK_BYTES;
        small as u64 + self.runs_bytes.next_multiple_of(BLOCK_BYTES as u64)
    }

    pub fn write(self, to: &mut impl Write) -> io::Result<()> {
        for piece in self {
            to.write_all(&piece?)?;
        }
        to.flush()
    }

    fn piece(&mut self) -> io::Result<Vec<u8>> {
        let mut piece = vec![0; self.left.min(PIECE_BYTES as u64) as usize];
        self.runs.read_exact(&mut piece)?;
        self.left -= piece.len() as u64;
        self.sum.update(&piece);
        Ok(piece)
    }

    /// What stands behind the file of runs.
    fn tail(&self, mut sums: String) -> io::Result<Vec<u8>> {
        sums += &line(RUNS, self.sum.clone().finalize().as_slice());
        let padding = self.runs_bytes.next_multiple_of(BLOCK_BYTES as u64) - self.runs_bytes;
        let mut tail = vec![0; padding as usize];
        let mut last = Vec::new();
        append(&mut last, SUMS, sums.as_bytes())?;
        tail.append(&mut last);
        tail.extend_from_slice(&[0; 2 * BLOCK_BYTES]);
        Ok(tail)
    }
}

impl Iterator for Backup {
    type Item = io::Result<Vec<u8>>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(head) = self.head.take() {
            return Some(Ok(head));
        }
        if self.left > 0 {
            return Some(self.piece());
        }
        let sums = self.sums.take()?;
        Some(self.tail(sums))
    }
}

/// As `sha256sum` writes it.
fn line(name: &str, sum: &[u8]) -> String {
    let hex: String = sum.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{hex}  {name}\n")
}

fn header(name: &str, bytes: u64) -> io::Result<Header> {
    let mut header = Header::new_ustar();
    header.set_path(name)?;
    header.set_size(bytes);
    header.set_mode(0o600);
    header.set_entry_type(EntryType::Regular);
    header.set_cksum();
    Ok(header)
}

fn append(archive: &mut Vec<u8>, name: &str, bytes: &[u8]) -> io::Result<()> {
    archive.extend_from_slice(header(name, bytes.len() as u64)?.as_bytes());
    archive.extend_from_slice(bytes);
    archive.resize(archive.len() + bytes.len().next_multiple_of(BLOCK_BYTES) - bytes.len(), 0);
    Ok(())
}

/// Where an entry of an archive belongs, and how the folder is made if there is none.
struct Place {
    name: &'static str,
    path: PathBuf,
    folder_mode: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_as_long_as_it_says_whatever_is_in_it() {
        for length in [0, 1, 511, 512, 513, PIECE_BYTES - 1, PIECE_BYTES, 2 * PIECE_BYTES + 7] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("runs");
            fs::write(&path, vec![7; length]).unwrap();
            for with_keys in [false, true] {
                if with_keys {
                    fs::create_dir(dir.path().join("keys")).unwrap();
                    fs::write(dir.path().join(KEYS), b"{}").unwrap();
                }
                let backup = Backup::of(dir.path(), File::open(&path).unwrap()).unwrap();
                let (said, mut archive) = (backup.bytes(), Vec::new());
                backup.write(&mut archive).unwrap();
                assert_eq!(archive.len() as u64, said, "{length} {with_keys}");
            }
        }
    }
}
