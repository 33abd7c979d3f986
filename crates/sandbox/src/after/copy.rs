//! One tree into another, by descriptors and single names only: no link of it is ever followed.

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{
    FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, fstat, fstatat, futimens,
    mkdirat, mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, LinkatFlags, Uid, Whence, fchown, fchownat, ftruncate, linkat, lseek, symlinkat};

use super::collect::Ids;
use super::freeze::Word;
use crate::{dir, packet};

/// Deeper trees are refused: each level holds descriptors.
const DEPTH_MAX: usize = 200;

/// What a name costs beside its content.
const ENTRY_BYTES: u64 = 4096;

/// Why a tree can't be copied, in words for whoever prepared it.
#[derive(Debug)]
pub(super) struct CopyError(pub(super) String);

impl From<io::Error> for CopyError {
    fn from(error: io::Error) -> Self {
        Self(error.to_string())
    }
}

impl From<Errno> for CopyError {
    fn from(errno: Errno) -> Self {
        Self(errno.desc().to_owned())
    }
}

pub(super) struct Copy<'a> {
    sync: &'a OwnedFd,
    root: &'a OwnedFd,
    ids: Ids,
    bytes: u64,
    bytes_max: u64,
    /// Where files with more than one name were copied to.
    linked: HashMap<u64, PathBuf>,
}

impl<'a> Copy<'a> {
    pub(super) fn new(sync: &'a OwnedFd, root: &'a OwnedFd, ids: Ids, bytes_max: u64) -> Self {
        Self { sync, root, ids, bytes: 0, bytes_max, linked: HashMap::new() }
    }

    /// Copies everything; returns about how much the copy takes.
    pub(super) fn run(mut self, from: &OwnedFd) -> Result<u64, CopyError> {
        let root = self.root;
        self.dir(from, root, Path::new(""), 0)?;
        Ok(self.bytes)
    }

    fn dir(&mut self, from: &OwnedFd, to: &OwnedFd, at: &Path, depth: usize) -> Result<(), CopyError> {
        if depth > DEPTH_MAX && walls::stands("frozen_depth") {
            return Err(CopyError(format!("folders lie more than {DEPTH_MAX} deep in each other")));
        }
        let mut entries = Dir::from_fd(from.try_clone()?)?;
        for entry in entries.iter() {
            let entry = entry?;
            let name = entry.file_name();
            if name != c"." && name != c".." {
                self.entry(from, to, name, at, depth)?;
            }
        }
        let stat = fstat(from)?;
        let (uid, gid) = self.owner(&stat);
        fchown(to, uid, gid)?;
        fchmod(to, mode(&stat))?;
        packet::send(self.sync.as_fd(), &Word::Directory, &[from.as_fd(), to.as_fd()])?;
        match packet::receive::<bool>(self.sync.as_fd())? {
            Some((true, _)) => Ok(futimens(to, &accessed(&stat), &modified(&stat))?),
            _ => Err(CopyError("a folder could not be marked".into())),
        }
    }

    fn entry(
        &mut self,
        from: &OwnedFd,
        to: &OwnedFd,
        name: &CStr,
        at: &Path,
        depth: usize,
    ) -> Result<(), CopyError> {
        self.count(ENTRY_BYTES)?;
        let stat = fstatat(from, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        let at = at.join(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(name.to_bytes()));
        let kind = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
        let (uid, gid) = self.owner(&stat);
        match kind {
            SFlag::S_IFREG => return self.file(from, to, name, &stat, at),
            SFlag::S_IFDIR => {
                let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                mkdirat(to, name, Mode::S_IRWXU)?;
                let inner = openat(from, name, flags, Mode::empty())?;
                let copy = openat(to, name, flags, Mode::empty())?;
                return self.dir(&inner, &copy, &at, depth + 1);
            }
            SFlag::S_IFLNK => symlinkat(readlinkat(from, name)?.as_os_str(), to, name)?,
            // How an overlay says that a name of a lower layer is gone.
            SFlag::S_IFCHR if stat.st_rdev == 0 => mknodat(to, name, SFlag::S_IFCHR, Mode::empty(), 0)?,
            SFlag::S_IFIFO => {
                mknodat(to, name, SFlag::S_IFIFO, Mode::empty(), 0)?;
                fchmodat(to, name, mode(&stat), FchmodatFlags::FollowSymlink)?;
            }
            // A socket without its program is nothing, and devices can't be made inside.
            _ => return Ok(()),
        }
        fchownat(to, name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        Ok(utimensat(to, name, &accessed(&stat), &modified(&stat), UtimensatFlags::NoFollowSymlink)?)
    }

    fn file(
        &mut self,
        from: &OwnedFd,
        to: &OwnedFd,
        name: &CStr,
        stat: &FileStat,
        at: PathBuf,
    ) -> Result<(), CopyError> {
        if stat.st_nlink > 1 {
            // A name too long to be linked to is copied once more.
            let linked = self.linked.get(&stat.st_ino);
            if linked.is_some_and(|first| {
                linkat(self.root, first.as_path(), to, name, LinkatFlags::empty()).is_ok()
            }) {
                return Ok(());
            }
            self.linked.insert(stat.st_ino, at);
        }
        let read = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let write = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let from = openat(from, name, read, Mode::empty())?;
        let mut copy = File::from(openat(to, name, write, Mode::S_IRUSR)?);
        self.content(&from, &mut copy, stat.st_size)?;
        let (uid, gid) = self.owner(stat);
        fchown(&copy, uid, gid)?;
        fchmod(&copy, mode(stat))?;
        Ok(futimens(&copy, &accessed(stat), &modified(stat))?)
    }

    /// Holes stay holes: a file may be longer than all that its run could write.
    fn content(&mut self, from: &OwnedFd, to: &mut File, size: i64) -> Result<(), CopyError> {
        let mut at = 0;
        while at < size {
            let begin = match lseek(from, at, Whence::SeekData) {
                Err(Errno::ENXIO) => break,
                result => result?,
            };
            let end = lseek(from, begin, Whence::SeekHole)?;
            let len = (end - begin) as u64;
            self.count(len)?;
            lseek(&*to, begin, Whence::SeekSet)?;
            dir::copy_plainly(from, begin as u64, len, to)?;
            at = end;
        }
        Ok(ftruncate(&*to, size)?)
    }

    fn count(&mut self, bytes: u64) -> Result<(), CopyError> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > self.bytes_max && walls::stands("frozen_bytes") {
            return Err(CopyError(format!("it takes more than {} bytes", self.bytes_max)));
        }
        Ok(())
    }

    /// As the image's layers have it; what is not the run's own is root's.
    fn owner(&self, stat: &FileStat) -> (Option<Uid>, Option<Gid>) {
        let Ids { owner, width } = self.ids;
        let inside = |id: u32| id.checked_sub(owner).filter(|id| *id < width).unwrap_or(0);
        let own = |id: u32| if walls::stands("frozen_owners") { inside(id) } else { id };
        (Some(Uid::from_raw(own(stat.st_uid))), Some(Gid::from_raw(own(stat.st_gid))))
    }
}

/// Nobody becomes somebody else by a file that a run has made.
fn mode(stat: &FileStat) -> Mode {
    let kept = if walls::stands("frozen_bits") { 0o1777 } else { 0o7777 };
    Mode::from_bits_truncate(stat.st_mode) & Mode::from_bits_truncate(kept)
}

fn accessed(stat: &FileStat) -> TimeSpec {
    TimeSpec::new(stat.st_atime, stat.st_atime_nsec)
}

fn modified(stat: &FileStat) -> TimeSpec {
    TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec)
}
