//! A backup that is put into a data directory. An archive comes from elsewhere: only names that a backup has are
//! taken, each once and as a plain file, and nothing is in its place before all of it has been read and looked at.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use sha2::{Digest, Sha256};

use super::{ABOUT, About, FORMAT, KEYS, Place, RUNS, SUMS, USED, line};
use crate::config::Config;
use crate::keys::{self, KeyFile, Ledger};

/// Nobody's description of a backup, and no list of sums, is longer.
const SMALL_BYTES_MAX: u64 = 4096;

/// A file beside the place where it is to be; gone with this value.
struct Beside {
    path: PathBuf,
    place: PathBuf,
}

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Says what is where now. Nobody can make keys meanwhile, and what a server makes that starts meanwhile stays.
pub fn restore(config: &Config, from: impl Read) -> anyhow::Result<Vec<PathBuf>> {
    let places = places(config);
    keys::file::locked(&config.data_dir, |_| {
        for place in &places {
            ensure!(
                fs::symlink_metadata(&place.path).is_err(),
                "{} is there already; a backup is restored into a data directory without keys and runs",
                place.path.display()
            );
        }
        let besides = unpack(from, &places)?;
        check(config, &besides)?;
        put(&besides)?;
        Ok(besides.iter().map(|beside| beside.place.clone()).collect())
    })
}

/// In the order in which they are put there: a server that finds runs finds the keys as well.
fn places(config: &Config) -> [Place; 3] {
    [
        Place { name: KEYS, path: keys::file::path(&config.data_dir), folder_mode: 0o750 },
        Place { name: USED, path: Ledger::path(&config.data_dir), folder_mode: 0o700 },
        Place { name: RUNS, path: config.runs_file(), folder_mode: 0o700 },
    ]
}

/// Writes what an archive has beside the places where it is to be.
fn unpack(from: impl Read, places: &[Place; 3]) -> anyhow::Result<Vec<Beside>> {
    const READ: &str = "read the backup";
    let mut archive = tar::Archive::new(from);
    let mut entries = archive.entries().context(READ)?;
    let mut first = entries.next().context("the backup is empty")?.context(READ)?;
    ensure!(
        first.path()?.as_os_str() == ABOUT && first.header().entry_type().is_file(),
        "this is no backup of sandglass: it does not begin with {ABOUT}"
    );
    let about = small(&mut first, ABOUT)?;
    check_format(&about)?;
    let mut sums = line(ABOUT, Sha256::digest(&about).as_slice());
    let mut besides: Vec<Beside> = Vec::new();
    let mut whole = false;
    for entry in entries {
        let mut entry = entry.context(READ)?;
        let name = entry.path()?.display().to_string();
        ensure!(!whole, "the backup has {name:?} behind its end");
        ensure!(entry.header().entry_type().is_file(), "the backup has {name:?}, which is no plain file");
        if name == SUMS {
            compare(&sums, &small(&mut entry, SUMS)?)?;
            whole = true;
            continue;
        }
        let Some(place) = places.iter().find(|place| place.name == name) else {
            bail!("the backup has {name:?}, which is no part of one");
        };
        ensure!(besides.iter().all(|beside| beside.place != place.path), "the backup has {name:?} twice");
        let (beside, sum) = write(&mut entry, place)?;
        besides.push(beside);
        sums += &line(place.name, &sum);
    }
    ensure!(whole, "the backup is cut off: it ends without {SUMS}");
    besides.sort_by_key(|beside| places.iter().position(|place| place.path == beside.place));
    Ok(besides)
}

fn check_format(about: &[u8]) -> anyhow::Result<()> {
    let about: About =
        serde_json::from_slice(about).with_context(|| format!("read {ABOUT} of the backup"))?;
    ensure!(
        about.format == FORMAT,
        "the backup has format {}, and this version knows {FORMAT}; version {} has written it",
        about.format,
        about.version
    );
    Ok(())
}

fn small(entry: &mut tar::Entry<'_, impl Read>, name: &str) -> anyhow::Result<Vec<u8>> {
    let length = entry.size();
    ensure!(length <= SMALL_BYTES_MAX, "{name} of the backup is too large to be one of ours");
    let mut bytes = Vec::new();
    entry.read_to_end(&mut bytes).with_context(|| format!("read {name} of the backup"))?;
    ensure!(bytes.len() as u64 == length, "the backup is cut off within {name}");
    Ok(bytes)
}

/// What was read against what was written.
fn compare(read: &str, written: &[u8]) -> anyhow::Result<()> {
    let written = String::from_utf8_lossy(written);
    let damaged = read.lines().find(|line| !written.lines().any(|other| other == *line));
    let name = |line: &str| line.split_whitespace().next_back().unwrap_or_default().to_owned();
    if let Some(line) = damaged {
        bail!("the backup is damaged: {} is not what its sum in {SUMS} says", name(line));
    }
    ensure!(*read == *written, "the backup lacks something that its {SUMS} names");
    Ok(())
}

fn write(entry: &mut tar::Entry<'_, impl Read>, place: &Place) -> anyhow::Result<(Beside, Vec<u8>)> {
    let beside = Beside { path: place.path.with_extension("restored"), place: place.path.clone() };
    let writing = || format!("write {}", beside.path.display());
    if let Some(folder) = place.path.parent() {
        let made = DirBuilder::new().recursive(true).mode(place.folder_mode).create(folder);
        made.with_context(writing)?;
    }
    // What an earlier one has left that was killed. A link of that name is not followed.
    let _ = fs::remove_file(&beside.path);
    let file = File::options().write(true).create_new(true).mode(0o640).open(&beside.path);
    let mut file = file.with_context(writing)?;
    let (mut sum, mut left) = (Sha256::new(), entry.size());
    let mut piece = vec![0; super::PIECE_BYTES];
    while left > 0 {
        let read = entry.read(&mut piece).context("read the backup")?;
        ensure!(read > 0, "the backup is cut off within {}", place.name);
        sum.update(&piece[..read]);
        io::Write::write_all(&mut file, &piece[..read]).with_context(writing)?;
        left -= read as u64;
    }
    file.sync_all().with_context(writing)?;
    Ok((beside, sum.finalize().to_vec()))
}

/// Keys that can be read, and runs of a format that this version knows.
fn check(config: &Config, besides: &[Beside]) -> anyhow::Result<()> {
    let runs = besides.iter().find(|beside| beside.place == config.runs_file());
    let runs = runs.context("the backup has no runs")?;
    crate::start::open_runs_at(config, &runs.path).context("read the runs of the backup")?;
    let keys = besides.iter().find(|beside| beside.place == keys::file::path(&config.data_dir));
    keys.map_or(Ok(()), |keys| KeyFile::read(&keys.path).map(drop).context("read the keys of the backup"))
}

/// Gives each its name, in the order of the places, unless somebody has it by now; then none gets its.
fn put(besides: &[Beside]) -> anyhow::Result<()> {
    for (done, beside) in besides.iter().enumerate() {
        let linked = fs::hard_link(&beside.path, &beside.place).and_then(|()| sync_folder(&beside.place));
        if let Err(error) = linked {
            let others = &besides[..done];
            others.iter().for_each(|other| drop(fs::remove_file(&other.place)));
            return Err(error).with_context(|| format!("write {}", beside.place.display()));
        }
    }
    Ok(())
}

fn sync_folder(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_must_be_what_was_written() {
        let sums = |names: &[&str]| names.iter().map(|name| line(name, &[1])).collect::<String>();
        let (a, ab) = (sums(&["a"]), sums(&["a", "b"]));
        for (read, written, words) in [
            (&ab, ab.clone(), None),
            (&ab, a.clone(), Some("b is not what its sum")),
            (&a, ab.clone(), Some("lacks something")),
            (&a, line("a", &[2]), Some("a is not what its sum")),
            (&a, String::new(), Some("a is not what its sum")),
        ] {
            let said = compare(read, written.as_bytes()).err().map(|error| error.to_string());
            assert_eq!(words.is_some(), said.is_some(), "{said:?}");
            assert!(said.unwrap_or_default().contains(words.unwrap_or_default()));
        }
    }
}
