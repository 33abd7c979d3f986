//! Trees on their way out. A name is taken away by a rename, at once; the tree behind it is deleted
//! afterwards and without haste, so that no run waits while thousands of files go.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::dir;
use crate::step::{At, Failure};
use crate::store::TRASH;

/// How many files go before there is a pause as long as their going has taken.
const FILES_AT_ONCE: u32 = 64;

/// Deletes what is called that in the trash.
pub(crate) fn delete(store: &OwnedFd, name: &str) -> Result<(), Failure> {
    let trash = dir::open_dir_beneath(store, TRASH, OFlag::empty()).at("open trash")?;
    Pace::new().remove(trash.as_fd(), name.as_bytes()).at("delete layer")
}

/// Deletes all that is in the trash now, which an earlier life has left there.
pub(crate) fn empty(store: &OwnedFd) -> Result<(), Failure> {
    let trash = dir::open_dir_beneath(store, TRASH, OFlag::empty()).at("open trash")?;
    let mut pace = Pace::new();
    for name in entries(trash.as_fd()).at("read trash")? {
        pace.remove(trash.as_fd(), &name).at("delete leftovers")?;
    }
    Ok(())
}

/// Works half of the time.
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

    fn rest(&mut self) {
        self.done += 1;
        if self.done >= FILES_AT_ONCE {
            std::thread::sleep(self.begun.elapsed());
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
        let fd = dir::open_dir(store.path()).unwrap();
        delete(&fd, "d").unwrap();
        delete(&fd, "d").unwrap();
        assert!(!trash.join("d").exists() && trash.join("a").exists());
        empty(&fd).unwrap();
        assert_eq!(entries(dir::open_dir(&trash).unwrap().as_fd()).unwrap(), Vec::<Vec<u8>>::new());
        assert_eq!(fs::read_to_string(kept.join("file")).unwrap(), "x");
    }
}
