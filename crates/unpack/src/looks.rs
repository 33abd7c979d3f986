//! What a file looks like besides its content: owner, mode, times and attributes.

use std::ffi::CString;
use std::io;
use std::os::fd::BorrowedFd;

use nix::errno::Errno;
use nix::sys::stat::{Mode, fchmod, fstat, futimens};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown};

use crate::archive::Entry;
use crate::sys;

/// Who an owner becomes that has no name in this user namespace.
const NOBODY: u32 = 65534;

const MODE_BITS: u32 = 0o7777;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: (i64, u32),
}

impl Meta {
    /// The bits that change who a program runs as are not an image's to give.
    pub(crate) fn of(entry: &Entry) -> Self {
        let allowed = if walls::stands("special_bits") { 0o1777 } else { 0o7777 };
        Self { mode: entry.mode & allowed, uid: entry.uid, gid: entry.gid, mtime: entry.mtime }
    }

    pub(crate) fn mode(&self) -> Mode {
        Mode::from_bits_truncate(self.mode)
    }

    pub(crate) fn time(&self) -> TimeSpec {
        let (seconds, nanos) = self.mtime;
        TimeSpec::new(seconds, nanos.into())
    }

    /// The owner goes before the mode, which it may change, and the time goes last. A file that was made with its
    /// mode mostly has it still, and asking costs less than setting.
    pub(crate) fn give_to(&self, file: BorrowedFd<'_>, lost: &mut Lost) -> io::Result<()> {
        lost.owners += self.own(|uid, gid| fchown(file, Some(uid), Some(gid)))?;
        if fstat(file)?.st_mode & MODE_BITS != self.mode {
            fchmod(file, self.mode())?;
        }
        Ok(futimens(file, &self.time(), &self.time())?)
    }

    /// Hands a file over, and says how many owners had to be replaced by nobody.
    pub(crate) fn own(&self, chown: impl Fn(Uid, Gid) -> nix::Result<()>) -> nix::Result<u64> {
        if (self.uid, self.gid) == (0, 0) {
            return Ok(0);
        }
        match chown(Uid::from_raw(self.uid), Gid::from_raw(self.gid)) {
            Err(Errno::EINVAL) => chown(Uid::from_raw(NOBODY), Gid::from_raw(NOBODY)).map(|()| 1),
            result => result.map(|()| 0),
        }
    }
}

/// What files could not be given.
#[derive(Debug, Default)]
pub(crate) struct Lost {
    pub(crate) owners: u64,
    pub(crate) xattrs: u64,
}

/// Only attributes of users; those of the overlay would let an image rewrite the layers below.
pub(crate) fn set_xattrs(file: BorrowedFd<'_>, xattrs: &[(Vec<u8>, Vec<u8>)], lost: &mut Lost) {
    for (name, value) in xattrs {
        let users = name.starts_with(b"user.") && !name.starts_with(b"user.overlay.");
        let welcome = users || !walls::stands("attributes");
        let name = CString::new(name.as_slice()).ok().filter(|_| welcome);
        // A file system without room for attributes is no reason to do without the image.
        if name.is_none_or(|name| sys::set_xattr(file, &name, value).is_err()) {
            lost.xattrs += 1;
        }
    }
}
