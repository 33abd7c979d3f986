//! Finding and making directories below the layer's root. Every step is relative to a descriptor and
//! refuses links; a link of the layer itself is followed here, by hand, with the root as its ceiling.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat};
use nix::libc;
use nix::sys::stat::{FileStat, Mode, SFlag, fstat, fstatat, mkdirat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::UnpackError;
use crate::job::Limits;
use crate::names::Names;
use crate::path::Path;

/// As many links as the kernel follows in one path.
const MOST_LINKS: usize = 40;
const MOST_CACHED: usize = 256;

/// What the walker had to make on its way.
#[derive(Debug)]
pub(crate) enum Made {
    /// A directory that no entry has described so far.
    Dir(Path),
    /// The same, where this layer hides what lower layers have there.
    OpaqueDir(Path),
}

pub(crate) struct Walker {
    root: OwnedFd,
    limits: Limits,
    names: Names,
    /// Directories that were opened lately, by the path that led there. Creating files changes none
    /// of them; removing a directory or a link may, and empties it.
    cache: HashMap<Path, Handle>,
}

/// An open directory, to make something in.
pub(crate) struct Folder {
    fd: OwnedFd,
    inode: u64,
    /// Where it is, however links led to it.
    place: Path,
}

impl Folder {
    /// Where something of that name in it is.
    pub(crate) fn place_of(&self, name: &[u8]) -> Path {
        Path::of(self.place.names().iter().cloned().chain([name.to_vec()]).collect())
    }
}

impl AsFd for Folder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

pub(crate) type Handle = Arc<Folder>;

impl Walker {
    pub(crate) fn new(root: OwnedFd, limits: Limits) -> Self {
        Self { root, limits, names: Names::default(), cache: HashMap::new() }
    }

    pub(crate) fn forget(&mut self) {
        self.cache.clear();
    }

    /// Takes a name that something is about to be made under. Whether nothing ever was.
    pub(crate) fn take(&mut self, directory: &Handle, name: &[u8]) -> bool {
        self.names.take(directory.inode, name)
    }

    /// Opens a directory if it is there, however links of the layer lead to it.
    pub(crate) fn find(&mut self, path: &Path) -> Result<Option<Handle>, UnpackError> {
        let found = self.walk(path, None)?;
        found.map(|(found, place)| self.keep(path, found, place)).transpose()
    }

    /// Opens a directory and makes what is missing on the way.
    pub(crate) fn make(&mut self, path: &Path, made: &mut Vec<Made>) -> Result<Handle, UnpackError> {
        let found = self.walk(path, Some(made))?;
        let (found, place) =
            found.ok_or_else(|| UnpackError::entry(&path.join(), "its directory can't be made"))?;
        self.keep(path, found, place)
    }

    /// Opens a directory to which directories alone lead, if they are all there. Nothing that is made by somebody
    /// else meanwhile, where nothing was, makes a difference.
    pub(crate) fn open(&mut self, path: &Path) -> Result<Option<Handle>, UnpackError> {
        if let Some(found) = self.cache.get(path) {
            return Ok(Some(Handle::clone(found)));
        }
        match self.open_plainly(path) {
            Ok(found) => self.keep(path, found, path.clone()).map(Some),
            // What links have led to may have a longer path than the kernel takes at once.
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::ENAMETOOLONG) => Ok(None),
            Err(errno) => Err(UnpackError::io("open directory", &path.join(), &errno.into())),
        }
    }

    fn keep(&mut self, path: &Path, fd: OwnedFd, place: Path) -> Result<Handle, UnpackError> {
        let inode =
            fstat(&fd).map_err(|errno| UnpackError::io("look at", &path.join(), &errno.into()))?.st_ino;
        if self.cache.len() >= MOST_CACHED {
            self.cache.clear();
        }
        let found = Handle::new(Folder { fd, inode, place });
        self.cache.insert(path.clone(), Handle::clone(&found));
        Ok(found)
    }

    /// Where no link is on the way, the kernel does it in one call.
    fn open_plainly(&self, path: &Path) -> nix::Result<OwnedFd> {
        let joined = if path.names().is_empty() { b".".to_vec() } else { path.join() };
        beneath(self.root.as_fd(), &joined, OFlag::O_PATH | OFlag::O_DIRECTORY)
    }

    fn walk(
        &mut self,
        path: &Path,
        mut made: Option<&mut Vec<Made>>,
    ) -> Result<Option<(OwnedFd, Path)>, UnpackError> {
        let Self { root, limits, names, .. } = self;
        let fail = |doing, error: Errno| UnpackError::io(doing, &path.join(), &error.into());
        let mut ahead: Vec<Vec<u8>> = path.names().iter().rev().cloned().collect();
        let mut behind: Vec<(Vec<u8>, OwnedFd)> = Vec::new();
        let mut links = 0;
        while let Some(name) = ahead.pop() {
            let here = behind.last().map_or(root.as_fd(), |(_, fd)| fd.as_fd());
            match name.as_slice() {
                b"" | b"." => continue,
                b".." => {
                    behind.pop();
                    continue;
                }
                _ => {}
            }
            let stat = stat(here, &name).map_err(|errno| fail("look at", errno))?;
            match stat.as_ref().map(kind) {
                Some(SFlag::S_IFDIR) => {}
                Some(SFlag::S_IFLNK) => {
                    links += 1;
                    if links > MOST_LINKS {
                        return Err(UnpackError::entry(&path.join(), "too many symbolic links lead there"));
                    }
                    let target =
                        readlinkat(here, os(&name)).map_err(|errno| fail("read link", errno))?.into_vec();
                    if target.starts_with(b"/") {
                        behind.clear();
                    }
                    ahead.extend(target.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec));
                    continue;
                }
                found => {
                    let Some(made) = made.as_deref_mut() else { return Ok(None) };
                    let hidden = stat.as_ref().is_some_and(is_whiteout);
                    if found.is_some() && !hidden {
                        return Err(UnpackError::entry(&path.join(), "its directory is a file"));
                    }
                    if hidden {
                        unlink(here, &name).map_err(|errno| fail("remove", errno))?;
                    }
                    mkdirat(here, os(&name), Mode::from_bits_truncate(0o755))
                        .map_err(|errno| fail("make directory", errno))?;
                    let inode = fstat(here).map_err(|errno| fail("look at", errno))?.st_ino;
                    names.take(inode, &name);
                    let place = behind.iter().map(|(name, _)| name.as_slice()).chain([name.as_slice()]);
                    let place = place.collect::<Vec<_>>().join(&b'/');
                    let place = Path::parse(&place, limits)?;
                    made.push(if hidden { Made::OpaqueDir(place) } else { Made::Dir(place) });
                }
            }
            if behind.len() == limits.depth {
                return Err(UnpackError::too_large("names in a path", limits.depth as u64));
            }
            let next = beneath(here, &name, OFlag::O_PATH | OFlag::O_DIRECTORY)
                .map_err(|errno| fail("open directory", errno))?;
            behind.push((name, next));
        }
        let (names, mut opened): (Vec<_>, Vec<_>) = behind.into_iter().unzip();
        let found = match opened.pop() {
            Some(found) => found,
            None => beneath(root.as_fd(), b".", OFlag::O_PATH | OFlag::O_DIRECTORY)
                .map_err(|errno| fail("open directory", errno))?,
        };
        Ok(Some((found, Path::of(names))))
    }
}

/// Opens below `dir`, through no link of any kind.
pub(crate) fn beneath(dir: BorrowedFd<'_>, path: &[u8], flags: OFlag) -> nix::Result<OwnedFd> {
    let resolve =
        ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let mut how = OpenHow::new().flags(flags | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC).resolve(resolve);
    if !walls::stands("links") {
        how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC);
    }
    loop {
        match openat2(dir, os(path), how) {
            // The kernel could not be sure that nothing moved meanwhile.
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            result => return result,
        }
    }
}

/// Makes an empty file where nothing is.
pub(crate) fn create(dir: &Folder, name: &[u8], mode: Mode) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(dir, os(name), flags, mode)
}

pub(crate) fn stat(dir: BorrowedFd<'_>, name: &[u8]) -> nix::Result<Option<FileStat>> {
    match fstatat(dir, os(name), AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::ENOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

pub(crate) fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT
}

/// An overlay takes a character device 0:0 for "there is nothing here".
pub(crate) fn is_whiteout(stat: &FileStat) -> bool {
    kind(stat) == SFlag::S_IFCHR && stat.st_rdev == 0
}

pub(crate) fn unlink(dir: BorrowedFd<'_>, name: &[u8]) -> nix::Result<()> {
    unlinkat(dir, os(name), UnlinkatFlags::NoRemoveDir)
}

/// Removes a directory with all that is in it. The tree is no deeper than the limit on depth.
pub(crate) fn remove_tree(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut inner = Dir::from_fd(openat(dir, os(name), flags, Mode::empty())?)?;
    let names: Vec<_> = inner
        .iter()
        .map(|entry| entry.map(|entry| entry.file_name().to_owned()))
        .collect::<Result<_, _>>()?;
    for child in names.iter().map(|name| name.to_bytes()).filter(|name| !matches!(*name, b"." | b"..")) {
        match unlink(inner.as_fd(), child) {
            Err(Errno::EISDIR) => remove_tree(inner.as_fd(), child)?,
            result => result?,
        }
    }
    Ok(unlinkat(dir, os(name), UnlinkatFlags::RemoveDir)?)
}

pub(crate) fn os(bytes: &[u8]) -> &OsStr {
    OsStr::from_bytes(bytes)
}

pub(crate) const WHITEOUT: libc::dev_t = 0;
