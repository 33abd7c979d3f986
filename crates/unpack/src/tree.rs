//! Writing the tree. Every rule about what replaces what, who owns it and what an image may not
//! bring along stands here; how a path is found stands in `walk`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag};
use nix::sys::stat::{FileStat, Mode, SFlag, UtimensatFlags, mkdirat, mknodat, utimensat};
use nix::unistd::{fchownat, linkat, symlinkat};

use crate::UnpackError;
use crate::archive::Entry;
use crate::job::Limits;
use crate::looks::{Lost, Meta, set_xattrs};
use crate::path::Path;
use crate::second::{Second, Small};
use crate::walk::{self, Handle, Made, Walker, beneath, is_whiteout, os};

/// Marks a directory of the layer, as only the privileged side can.
pub(crate) type MarkOpaque<'a> = &'a mut dyn FnMut(BorrowedFd<'_>) -> io::Result<()>;

/// The names of directories that may be remembered, in bytes.
const MOST_DIR_BYTES: u64 = 64 << 20;

#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) file_bytes: u64,
    pub(crate) disk_bytes: u64,
    pub(crate) whiteouts: u64,
    pub(crate) opaque_dirs: u64,
    pub(crate) root_opaque: bool,
}

pub(crate) struct Tree<'a> {
    walker: Walker,
    second: Second,
    mark_opaque: MarkOpaque<'a>,
    /// Every directory that is there, by where it is, with what its last entry said or nothing if it had none.
    pub(crate) dirs: BTreeMap<Path, Option<Meta>>,
    dir_bytes: u64,
    pub(crate) counts: Counts,
    pub(crate) lost: Lost,
}

impl<'a> Tree<'a> {
    pub(crate) fn new(root: OwnedFd, limits: Limits, second: Second, mark_opaque: MarkOpaque<'a>) -> Self {
        Self {
            walker: Walker::new(root, limits),
            second,
            mark_opaque,
            dirs: BTreeMap::new(),
            dir_bytes: 0,
            counts: Counts::default(),
            lost: Lost::default(),
        }
    }

    pub(crate) fn directory(&mut self, path: &Path, entry: &Entry) -> Result<(), UnpackError> {
        let fail = |doing, error: io::Error| UnpackError::io(doing, &path.join(), &error);
        if let Some((parent, name)) = path.split() {
            let parent = self.parent(&parent)?;
            self.take(&parent, name)?;
            let existing = walk::stat(parent.as_fd(), name).map_err(|errno| fail("look at", errno.into()))?;
            let is_dir = existing.as_ref().is_some_and(|stat| walk::kind(stat) == SFlag::S_IFDIR);
            if !is_dir {
                self.clear(&parent, name, existing.as_ref()).map_err(|error| fail("replace", error))?;
                mkdirat(&*parent, os(name), Mode::S_IRWXU)
                    .map_err(|errno| fail("make directory", errno.into()))?;
            }
            let dir = open_dir(parent.as_fd(), name).map_err(|errno| fail("open directory", errno.into()))?;
            // A whiteout, or what hid the name as one does and may have taken the place of one.
            if existing.is_some() && !is_dir {
                self.opaque(dir.as_fd()).map_err(|error| fail("hide what is below", error))?;
            }
            set_xattrs(dir.as_fd(), &entry.xattrs, &mut self.lost);
            return self.remember(parent.place_of(name), Some(Meta::of(entry)));
        }
        self.remember(path.clone(), Some(Meta::of(entry)))
    }

    /// Makes an empty file for the caller to write and [`Tree::close`]. Mostly nothing is in its place, and making
    /// it says so.
    pub(crate) fn file(&mut self, path: &Path, mode: Mode) -> Result<OwnedFd, UnpackError> {
        let fail = |errno: Errno| UnpackError::io("create", &path.join(), &errno.into());
        let (parent, name) = path.split().ok_or_else(|| root_must_be_a_directory(path))?;
        let parent = self.parent(&parent)?;
        self.take(&parent, name)?;
        match walk::create(&parent, name, mode) {
            Err(Errno::EEXIST) => {
                let (parent, name) = self.place(path)?;
                walk::create(&parent, &name, mode).map_err(fail)
            }
            result => result.map_err(fail),
        }
    }

    /// Where a file is to be made, and whether nothing has been in its place.
    pub(crate) fn spot(&mut self, path: &Path) -> Result<(Handle, bool), UnpackError> {
        let (parent, name) = path.split().ok_or_else(|| root_must_be_a_directory(path))?;
        let directory = self.parent(&parent)?;
        let is_free = self.walker.take(&directory, name);
        Ok((directory, is_free))
    }

    /// Makes the whole of a small file, by whichever hand if nothing has been in its place.
    pub(crate) fn small(&mut self, small: Small, is_free: bool) -> Result<(), UnpackError> {
        if is_free {
            return self.second.make(small);
        }
        let mut file = File::from(self.file(&small.path, small.meta.mode())?);
        small.fill(&mut file, &mut self.lost)
    }

    pub(crate) fn close(&mut self, file: &OwnedFd, path: &Path, entry: &Entry) -> Result<(), UnpackError> {
        set_xattrs(file.as_fd(), &entry.xattrs, &mut self.lost);
        let described = Meta::of(entry).give_to(file.as_fd(), &mut self.lost);
        described.map_err(|error| UnpackError::io("describe", &path.join(), &error))
    }

    pub(crate) fn fifo(&mut self, path: &Path, entry: &Entry) -> Result<(), UnpackError> {
        let fail = |doing, errno: Errno| UnpackError::io(doing, &path.join(), &errno.into());
        let (parent, name) = self.place(path)?;
        mknodat(&*parent, os(&name), SFlag::S_IFIFO, Mode::S_IRUSR, 0)
            .map_err(|errno| fail("create", errno))?;
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK;
        let fifo = beneath(parent.as_fd(), &name, flags).map_err(|errno| fail("open", errno))?;
        self.close(&fifo, path, entry)
    }

    pub(crate) fn symlink(&mut self, path: &Path, target: &[u8], entry: &Entry) -> Result<(), UnpackError> {
        if target.is_empty() || target.contains(&0) || target.len() >= 4096 {
            return Err(UnpackError::entry(&path.join(), "its target is empty, too long or has a NUL"));
        }
        let fail = |doing, errno: Errno| UnpackError::io(doing, &path.join(), &errno.into());
        let (parent, name) = self.place(path)?;
        symlinkat(os(target), &*parent, os(&name)).map_err(|errno| fail("create", errno))?;
        let meta = Meta::of(entry);
        let own =
            |uid, gid| fchownat(&*parent, os(&name), Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW);
        self.lost.owners += meta.own(own).map_err(|errno| fail("describe", errno))?;
        utimensat(&*parent, os(&name), &meta.time(), &meta.time(), UtimensatFlags::NoFollowSymlink)
            .map_err(|errno| fail("describe", errno))
    }

    /// A second name for something that this layer has. What it looks like is the target's business.
    pub(crate) fn hardlink(&mut self, path: &Path, target: &Path) -> Result<(), UnpackError> {
        let missing = || UnpackError::LinkTarget {
            path: crate::error::show(&path.join()),
            target: crate::error::show(&target.join()),
        };
        let fail = |doing, errno: Errno| UnpackError::io(doing, &path.join(), &errno.into());
        let (target_parent, target_name) = target.split().ok_or_else(missing)?;
        // What it leads to may be on its way.
        self.second.wait()?;
        let target_parent = self.find(&target_parent)?.ok_or_else(missing)?;
        let found = walk::stat(target_parent.as_fd(), target_name).map_err(|errno| fail("look at", errno))?;
        let found = found.filter(|stat| !is_whiteout(stat)).ok_or_else(missing)?;
        if walk::kind(&found) == SFlag::S_IFDIR {
            return Err(UnpackError::entry(&path.join(), "it is a hard link to a directory"));
        }
        let (parent, name) = path.split().ok_or_else(|| root_must_be_a_directory(path))?;
        let parent = self.parent(&parent)?;
        self.take(&parent, name)?;
        let existing = walk::stat(parent.as_fd(), name).map_err(|errno| fail("look at", errno))?;
        if existing.is_some_and(|stat| (stat.st_dev, stat.st_ino) == (found.st_dev, found.st_ino)) {
            return Ok(());
        }
        self.clear(&parent, name, existing.as_ref())
            .map_err(|error| UnpackError::io("replace", &path.join(), &error))?;
        match linkat(&*target_parent, os(target_name), &*parent, os(name), AtFlags::empty()) {
            // It was in the directory whose place the link takes.
            Err(Errno::ENOENT) => Err(missing()),
            result => result.map_err(|errno| fail("link", errno)),
        }
    }

    /// Hides a name of the lower layers. What this layer itself has there stays, whatever the order.
    pub(crate) fn whiteout(&mut self, parent: &Path, name: &[u8]) -> Result<(), UnpackError> {
        let fail = |doing, error: io::Error| UnpackError::io(doing, name, &error);
        let parent = self.parent(parent)?;
        self.take(&parent, name)?;
        let existing = walk::stat(parent.as_fd(), name).map_err(|errno| fail("look at", errno.into()))?;
        match existing.as_ref().map(walk::kind) {
            None => {
                mknodat(&*parent, os(name), SFlag::S_IFCHR, Mode::empty(), walk::WHITEOUT)
                    .map_err(|errno| fail("hide", errno.into()))?;
            }
            Some(SFlag::S_IFDIR) => {
                let dir =
                    open_dir(parent.as_fd(), name).map_err(|errno| fail("open directory", errno.into()))?;
                self.opaque(dir.as_fd()).map_err(|error| fail("hide what is below", error))?;
            }
            Some(_) => {}
        }
        self.counts.whiteouts += 1;
        Ok(())
    }

    /// Hides all that lower layers have in a directory.
    pub(crate) fn opaque_dir(&mut self, path: &Path) -> Result<(), UnpackError> {
        let fail = |error: io::Error| UnpackError::io("hide what is below", &path.join(), &error);
        // An overlay does not heed the mark on a layer's root: whoever stacks the layers must.
        if path.names().is_empty() {
            self.counts.root_opaque = true;
            return Ok(());
        }
        let dir = self.parent(path)?;
        let dir = beneath(dir.as_fd(), b".", OFlag::O_RDONLY | OFlag::O_DIRECTORY)
            .map_err(|errno| fail(errno.into()))?;
        self.opaque(dir.as_fd()).map_err(fail)
    }

    /// Returns when every file is there.
    pub(crate) fn finish_files(&mut self) -> Result<(), UnpackError> {
        let lost = self.second.finish()?;
        self.lost.owners += lost.owners;
        self.lost.xattrs += lost.xattrs;
        Ok(())
    }

    /// Describes the directories, the deepest first: until now entries could change their times.
    pub(crate) fn finish(&mut self) -> Result<(), UnpackError> {
        let dirs = std::mem::take(&mut self.dirs);
        for (path, meta) in dirs.iter().rev() {
            let Some(meta) = meta else { continue };
            let fail = |error: io::Error| UnpackError::io("describe", &path.join(), &error);
            let dir = match path.split() {
                None => self
                    .find(path)?
                    .map(|root| beneath(root.as_fd(), b".", OFlag::O_RDONLY | OFlag::O_DIRECTORY)),
                Some((parent, name)) => self.find(&parent)?.map(|parent| open_dir(parent.as_fd(), name)),
            };
            match dir {
                // A later entry took its place.
                None | Some(Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP)) => {}
                Some(Err(errno)) => return Err(fail(errno.into())),
                Some(Ok(dir)) => meta.give_to(dir.as_fd(), &mut self.lost).map_err(fail)?,
            }
        }
        self.dirs = dirs;
        Ok(())
    }

    /// The directory in which `path` is to be made, with nothing in its place.
    fn place(&mut self, path: &Path) -> Result<(Handle, Vec<u8>), UnpackError> {
        let (parent, name) = path.split().ok_or_else(|| root_must_be_a_directory(path))?;
        let parent = self.parent(&parent)?;
        self.take(&parent, name)?;
        let fail = |error: io::Error| UnpackError::io("replace", &path.join(), &error);
        let existing = walk::stat(parent.as_fd(), name).map_err(|errno| fail(errno.into()))?;
        self.clear(&parent, name, existing.as_ref()).map_err(fail)?;
        Ok((parent, name.to_vec()))
    }

    /// Whatever is under the name, or is on its way there, is there now.
    fn take(&mut self, directory: &Handle, name: &[u8]) -> Result<(), UnpackError> {
        if self.walker.take(directory, name) { Ok(()) } else { self.second.wait() }
    }

    /// As long as nothing is on its way.
    fn find(&mut self, path: &Path) -> Result<Option<Handle>, UnpackError> {
        if let Some(found) = self.walker.open(path)? {
            return Ok(Some(found));
        }
        self.walker.find(path)
    }

    fn parent(&mut self, path: &Path) -> Result<Handle, UnpackError> {
        if let Some(found) = self.walker.open(path)? {
            return Ok(found);
        }
        // What is not there may be on its way.
        self.second.wait()?;
        let mut made = Vec::new();
        let parent = self.walker.make(path, &mut made)?;
        for made in made {
            let (path, hides) = match made {
                Made::Dir(path) => (path, false),
                Made::OpaqueDir(path) => (path, true),
            };
            if hides {
                self.opaque_dir(&path)?;
            }
            self.remember(path, None)?;
        }
        Ok(parent)
    }

    fn clear(&mut self, parent: &Handle, name: &[u8], existing: Option<&FileStat>) -> io::Result<()> {
        match existing.map(walk::kind) {
            None => Ok(()),
            Some(SFlag::S_IFDIR) => {
                self.walker.forget();
                self.forget(&parent.place_of(name));
                walk::remove_tree(parent.as_fd(), name)
            }
            Some(_) => {
                self.walker.forget();
                Ok(walk::unlink(parent.as_fd(), name)?)
            }
        }
    }

    fn opaque(&mut self, dir: BorrowedFd<'_>) -> io::Result<()> {
        self.counts.opaque_dirs += 1;
        (self.mark_opaque)(dir)
    }

    /// Another directory that comes to be there, or below it, is none of those.
    fn forget(&mut self, gone: &Path) {
        let all = self.dirs.range(gone.clone()..).map(|(path, _)| path);
        let gone: Vec<_> = all.take_while(|path| path.names().starts_with(gone.names())).cloned().collect();
        for path in gone {
            self.dir_bytes -= bytes_of(&path);
            self.dirs.remove(&path);
        }
    }

    fn remember(&mut self, path: Path, meta: Option<Meta>) -> Result<(), UnpackError> {
        if !self.dirs.contains_key(&path) {
            self.dir_bytes += bytes_of(&path);
            if self.dir_bytes > MOST_DIR_BYTES {
                return Err(UnpackError::too_large("bytes of directory names", MOST_DIR_BYTES));
            }
        }
        let known = self.dirs.entry(path).or_default();
        if meta.is_some() {
            *known = meta;
        }
        Ok(())
    }
}

/// What it takes to remember a directory.
fn bytes_of(path: &Path) -> u64 {
    path.join().len() as u64 + 64
}

fn root_must_be_a_directory(path: &Path) -> UnpackError {
    UnpackError::entry(&[b"/".as_slice(), &path.join()].concat(), "the root must stay a directory")
}

fn open_dir(parent: BorrowedFd<'_>, name: &[u8]) -> nix::Result<OwnedFd> {
    beneath(parent, name, OFlag::O_RDONLY | OFlag::O_DIRECTORY)
}
