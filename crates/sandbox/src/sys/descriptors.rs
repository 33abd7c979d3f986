//! Descriptors: closed, moved, sent, and what is read and written by them.

use std::ffi::{CStr, CString};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

use super::{Result, owned};

/// Closes every descriptor at or above `first`.
pub(crate) fn close_from(first: RawFd) -> Result<()> {
    let first = libc::c_uint::try_from(first).map_err(|_| Errno::EBADF)?;
    // SAFETY: close_range touches no memory. An `OwnedFd` still alive above `first` would later close
    // a number that it no longer owns; callers are about to exec or exit without running destructors.
    let result = unsafe { libc::close_range(first, libc::c_uint::MAX, 0) };
    Errno::result(result).map(drop)
}

/// In a forked child that ends by `exit`: puts these at `first` and the numbers after it and closes all
/// others above, unless `close` says that they stay, which only tests of tests want.
pub(crate) fn keep_descriptors(
    first: RawFd,
    descriptors: &[BorrowedFd<'_>],
    close: bool,
) -> Result<Vec<OwnedFd>> {
    let above = first + descriptors.len() as RawFd;
    // Out of each other's way first. What is not dropped here is closed below.
    let mut aside = Vec::with_capacity(descriptors.len());
    for fd in descriptors {
        aside.push(nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(above))?);
    }
    if !close {
        // SAFETY: these were just made, and nobody else in this process owns them.
        return Ok(aside.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).collect());
    }
    for (number, from) in (first..).zip(aside) {
        // SAFETY: dup3 touches no memory. Owners that this process still has above `first` are never
        // dropped in it, as said above.
        Errno::result(unsafe { libc::dup3(from, number, libc::O_CLOEXEC) })?;
    }
    close_from(above)?;
    // SAFETY: these numbers were just filled with descriptors that nobody else in this process owns.
    Ok((first..above).map(|number| unsafe { OwnedFd::from_raw_fd(number) }).collect())
}

/// Makes `fd` the descriptor `number`, which a following exec then keeps.
pub(crate) fn place(fd: BorrowedFd<'_>, number: RawFd) -> Result<()> {
    if fd.as_raw_fd() == number {
        // dup2 would do nothing then, and leave it to be closed by exec.
        let kept = nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty());
        return nix::fcntl::fcntl(fd, kept).map(drop);
    }
    // SAFETY: dup2 touches no memory; the callers replace numbers that they know to be unowned.
    Errno::result(unsafe { libc::dup2(fd.as_raw_fd(), number) }).map(drop)
}

/// Writes to a descriptor that is known by number only. Short messages to a pipe are written whole.
pub(crate) fn write_to(number: RawFd, bytes: &[u8]) -> Result<usize> {
    // SAFETY: the callers know the number to be open until the process ends.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    nix::unistd::write(fd, bytes)
}

/// Closes a descriptor whose owner is never dropped in this process: in a child that ends by `exit` what stays
/// the parent's, or the other way round.
pub(crate) fn close_for_good(fd: BorrowedFd<'_>) {
    // SAFETY: close takes a number. The owner is never dropped in this process, as said above.
    unsafe { libc::close(fd.as_raw_fd()) };
}

pub(crate) fn close_on_exec(number: RawFd) -> Result<()> {
    // SAFETY: fcntl with F_SETFD takes numbers only.
    Errno::result(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) }).map(drop)
}

/// Sends one packet with descriptors.
pub(crate) fn send_packet(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &rights[..0] } else { &rights[..] };
    let flags = MsgFlags::MSG_NOSIGNAL;
    let sent = sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(bytes)], control, flags, None)?;
    if sent == bytes.len() { Ok(()) } else { Err(Errno::EMSGSIZE) }
}

/// Receives one packet with at most [`crate::protocol::MAX_FILES`] and a few descriptors.
/// No bytes mean that the other side has closed.
pub(crate) fn receive_packet(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<(usize, Vec<OwnedFd>)> {
    let mut space = nix::cmsg_space!([RawFd; 253]);
    let mut parts = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    let mut fds = Vec::new();
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = part {
            // SAFETY: the kernel has just installed these descriptors for us alone.
            fds.extend(received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    if message.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) {
        return Err(Errno::EMSGSIZE);
    }
    Ok((message.bytes, fds))
}

/// Copies from the file `from` to `to` inside the kernel; returns how much.
pub(crate) fn send_file(
    to: BorrowedFd<'_>,
    from: BorrowedFd<'_>,
    offset: u64,
    count: usize,
) -> Result<usize> {
    let mut offset = libc::off_t::try_from(offset).map_err(|_| Errno::EINVAL)?;
    // SAFETY: `offset` outlives the call; nothing else in memory is touched.
    let sent = unsafe { libc::sendfile(to.as_raw_fd(), from.as_raw_fd(), &raw mut offset, count) };
    Errno::result(sent).map(|sent| sent as usize)
}

pub(crate) fn memfd(name: &str, flags: u32) -> Result<OwnedFd> {
    let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
    // SAFETY: `name` outlives the call.
    owned(libc::c_long::from(unsafe { libc::memfd_create(name.as_ptr(), flags) }))
}

pub(crate) fn set_xattr(fd: BorrowedFd<'_>, name: &CStr, value: &[u8]) -> Result<()> {
    let (data, len) = (value.as_ptr().cast(), value.len());
    // SAFETY: name and value outlive the call, and the length is the value's.
    let result = unsafe { libc::fsetxattr(fd.as_raw_fd(), name.as_ptr(), data, len, 0) };
    Errno::result(result).map(drop)
}

/// A short attribute of an open file; `None` where it has no such one.
pub(crate) fn get_xattr(fd: BorrowedFd<'_>, name: &CStr) -> Option<Vec<u8>> {
    let mut value = [0u8; 64];
    let data = value.as_mut_ptr().cast();
    // SAFETY: the name and the buffer outlive the call, and the length is the buffer's.
    let read = unsafe { libc::fgetxattr(fd.as_raw_fd(), name.as_ptr(), data, value.len()) };
    let read = Errno::result(read).ok()? as usize;
    Some(value[..read].to_vec())
}

pub(crate) fn read_xattr(path: &CStr, name: &CStr) -> Result<Vec<u8>> {
    let mut value = [0u8; 64];
    let data = value.as_mut_ptr().cast();
    // SAFETY: both strings and the buffer outlive the call, and the length is the buffer's.
    let read = unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), data, value.len()) };
    let read = Errno::result(read)? as usize;
    Ok(value[..read].to_vec())
}
