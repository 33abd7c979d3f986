//! Small files below a directory descriptor: how control files and in-jail files are read and
//! written without ever resolving a path from the root.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2};
use nix::sys::stat::Mode;

use crate::sys;

pub(crate) fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_RDONLY | OFlag::O_CLOEXEC;
    Ok(nix::fcntl::open(path, flags, Mode::empty())?)
}

/// Opens a directory below `dir` without following any symbolic link on the way.
pub(crate) fn open_dir_beneath(dir: impl AsFd, path: &str, flags: OFlag) -> io::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW | flags)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    Ok(openat2_again(dir, path.as_ref(), how)?)
}

/// With `..` in a path that must not leave its root the kernel gives up when anything on the machine is
/// renamed or mounted meanwhile; all it asks for is another try.
pub(crate) fn openat2_again(dir: impl AsFd, path: &Path, how: OpenHow) -> nix::Result<OwnedFd> {
    const TRIES: u32 = 10_000;
    let mut tried = 0;
    loop {
        match openat2(dir.as_fd(), path, how) {
            Err(Errno::EAGAIN) if tried < TRIES => tried += 1,
            result => return result,
        }
    }
}

pub(crate) fn write(dir: impl AsFd, name: &str, value: &str) -> io::Result<()> {
    let file = openat(dir, name, OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    // One write: control files take a value whole or not at all.
    let written = nix::unistd::write(&file, value.as_bytes())?;
    if written == value.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

pub(crate) fn read(dir: impl AsFd, name: &str) -> io::Result<String> {
    let file = openat(dir, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    let mut text = String::new();
    File::from(file).read_to_string(&mut text)?;
    Ok(text)
}

/// The number behind `key` in the text of a control file of `key value` lines.
pub(crate) fn find_key(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// Copies `len` bytes from `offset` on; a file that turns out shorter is an error. The kernel copies from
/// page to page where it can, so that the bytes don't pass through this process.
pub(crate) fn copy_range(from: &OwnedFd, mut offset: u64, len: u64, to: &mut File) -> io::Result<()> {
    let mut left = len;
    while left > 0 {
        let want = usize::try_from(left).unwrap_or(usize::MAX);
        match sys::send_file(to.as_fd(), from.as_fd(), offset, want) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(sent) => {
                offset += sent as u64;
                left -= sent as u64;
            }
            Err(Errno::EINTR) => {}
            Err(Errno::EINVAL | Errno::ENOSYS) => return copy_plainly(from, offset, left, to),
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// The same without the call that a jail doesn't have.
pub(crate) fn copy_plainly(from: &OwnedFd, mut offset: u64, mut left: u64, to: &mut File) -> io::Result<()> {
    let mut buffer = vec![0; 256 * 1024];
    while left > 0 {
        let want = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let at = i64::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
        let read = nix::sys::uio::pread(from, &mut buffer[..want], at)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        to.write_all(&buffer[..read])?;
        offset += read as u64;
        left -= read as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_found_whole_or_not_at_all() {
        let text = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n";
        assert_eq!(find_key(text, "oom_kill"), Some(3));
        assert_eq!(find_key(text, "oom"), None);
    }
}
