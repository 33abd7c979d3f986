//! Trees on their way out. A name is taken away by a rename, at once; the tree behind it is deleted
//! afterwards and without haste, so that no run waits while thousands of files go.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, PosixFadviseAdvice, openat, posix_fadvise};
use nix::sys::stat::{FileStat, Mode, SFlag, fstatat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::dir;
use crate::step::{At, Failure};
use crate::store::TRASH;
use crate::sys;

/// How many files go before there is a pause, and after what time there is one however few they were.
const FILES_AT_ONCE: u32 = 64;
const AT_ONCE: Duration = Duration::from_millis(2);
/// How much longer a pause is than the work was.
const PAUSES: u32 = 3;

/// How far whoever deletes steps back where processors are short, as `nice` has it. Not all the way: what it holds of
/// the file system's journal meanwhile others wait for.
const NICENESS: u8 = 10;

/// A large file is taken out of memory by such pieces before it goes. The kernel would do all of it in one go.
const PIECE_BYTES: i64 = 8 << 20;

/// Deletes what is called that in the trash.
pub(crate) fn delete(store: &OwnedFd, name: &str) -> Result<(), Failure> {
    sys::step_back(NICENESS);
    let trash = dir::open_dir_beneath(store, TRASH, OFlag::empty()).at("open trash")?;
    Pace::new().remove(trash.as_fd(), name.as_bytes()).at("delete layer")
}

/// Deletes all that is in the trash now, which an earlier life has left there.
pub(crate) fn empty(store: &OwnedFd) -> Result<(), Failure> {
    sys::step_back(NICENESS);
    let trash = dir::open_dir_beneath(store, TRASH, OFlag::empty()).at("open trash")?;
    let mut pace = Pace::new();
    for name in entries(trash.as_fd()).at("read trash")? {
        pace.remove(trash.as_fd(), &name).at("delete leftovers")?;
    }
    Ok(())
}

/// Works a quarter of the time.
struct Pace {
    done: u32,
    begun: Instant,
}

impl Pace {
    fn new() -> Self {
        Self { done: 0, begun: Instant::now() }
    }

    /// Removes whatever has that name. By descriptors, and never following a link, so nothing in the
    /// tree can lead it elsewhere. What somebody else has removed meanwhile is gone, which is as good.
    fn remove(&mut self, parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
        self.forget_content(parent, name);
        match unlinkat(parent, name, UnlinkatFlags::NoRemoveDir) {
            Err(Errno::EISDIR | Errno::EPERM) => {}
            Ok(()) | Err(Errno::ENOENT) => {
                self.rest();
                return Ok(());
            }
            Err(errno) => return Err(errno.into()),
        }
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let directory = match openat(parent, name, flags, Mode::empty()) {
            Err(Errno::ENOENT) => return Ok(()),
            result => result?,
        };
        for entry in entries(directory.as_fd())? {
            self.remove(directory.as_fd(), &entry)?;
        }
        match unlinkat(parent, name, UnlinkatFlags::RemoveDir) {
            Err(Errno::ENOENT) => {}
            result => result?,
        }
        self.rest();
        Ok(())
    }

    /// Nobody who still has the file open loses anything but time.
    fn forget_content(&mut self, parent: BorrowedFd<'_>, name: &[u8]) {
        let is_large = |stat: &FileStat| {
            SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG
                && stat.st_size > PIECE_BYTES
        };
        let stat = fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW);
        let Some(stat) = stat.ok().filter(is_large) else { return };
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let Ok(file) = openat(parent, name, flags, Mode::empty()) else { return };
        let mut from = 0;
        while from < stat.st_size {
            let advice = PosixFadviseAdvice::POSIX_FADV_DONTNEED;
            if posix_fadvise(&file, from, PIECE_BYTES, advice).is_err() {
                return;
            }
            from += PIECE_BYTES;
            self.rest();
        }
    }

    fn rest(&mut self) {
        self.done += 1;
        let worked = self.begun.elapsed();
        if self.done >= FILES_AT_ONCE || worked >= AT_ONCE {
            std::thread::sleep(worked * PAUSES);
            *self = Self::new();
        }
    }
}

/// What a directory holds, but for itself and its parent.
fn entries(directory: BorrowedFd<'_>) -> io::Result<Vec<Vec<u8>>> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut found = Vec::new();
    for entry in Dir::openat(directory, ".", flags, Mode::empty())?.iter() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            found.push(name.to_vec());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_trash_is_emptied_and_nothing_beside_it() {
        let store = tempfile::tempdir().unwrap();
        let (kept, trash) = (store.path().join("kept"), store.path().join("trash"));
        fs::create_dir_all(&kept).unwrap();
        fs::write(kept.join("file"), "x").unwrap();
        fs::create_dir_all(trash.join("a/b/c")).unwrap();
        fs::create_dir_all(trash.join("d")).unwrap();
        std::os::unix::fs::symlink(&kept, trash.join("a/b/door")).unwrap();
        (0..200).for_each(|at| fs::write(trash.join(format!("a/b/c/{at}")), "x").unwrap());
        fs::write(trash.join("a/large"), vec![b'x'; 20 << 20]).unwrap();
        let fd = dir::open_dir(store.path()).unwrap();
        delete(&fd, "d").unwrap();
        delete(&fd, "d").unwrap();
        assert!(!trash.join("d").exists() && trash.join("a").exists());
        empty(&fd).unwrap();
        assert_eq!(entries(dir::open_dir(&trash).unwrap().as_fd()).unwrap(), Vec::<Vec<u8>>::new());
        assert_eq!(fs::read_to_string(kept.join("file")).unwrap(), "x");
    }
}
