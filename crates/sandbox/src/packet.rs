//! One JSON value per packet, with descriptors beside it where they are needed.

use std::cell::RefCell;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socketpair, sockopt};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::protocol::MAX_PACKET_BYTES;
use crate::sys;

/// A connected pair on which packets keep their boundaries and a closed end is seen.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (left, right) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    for end in [&left, &right] {
        setsockopt(end, sockopt::SndBuf, &(4 * MAX_PACKET_BYTES))?;
    }
    Ok((left, right))
}

pub(crate) fn send(socket: BorrowedFd<'_>, value: &impl Serialize, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = serde_json::to_vec(value)?;
    if bytes.len() > MAX_PACKET_BYTES {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "packet is too long"));
    }
    loop {
        match sys::send_packet(socket, &bytes, fds) {
            Err(Errno::EINTR) => {}
            result => return Ok(result?),
        }
    }
}

thread_local! {
    /// What packets are received into, always the same: room for the longest, made anew for each, costs a
    /// short run more than reading what is in it.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The next packet; `None` when the other side has closed.
pub(crate) fn receive<T: DeserializeOwned>(socket: BorrowedFd<'_>) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    // Taken and put back: a process that shared this memory and was killed in here has not put it back.
    let mut buffer = BUFFER.take();
    if buffer.is_empty() {
        buffer = vec![0; MAX_PACKET_BYTES];
    }
    let received = receive_into(&mut buffer, socket);
    BUFFER.set(buffer);
    received
}

fn receive_into<T: DeserializeOwned>(
    buffer: &mut [u8],
    socket: BorrowedFd<'_>,
) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let (len, fds) = loop {
        match sys::receive_packet(socket, buffer) {
            // A reset says, once, that the other side has closed with packets of ours unread. What it had
            // sent before is still here and comes first; after that comes the end.
            Err(Errno::EINTR | Errno::ECONNRESET) => {}
            result => break result?,
        }
    };
    if len == 0 {
        return Ok(None);
    }
    Ok(Some((serde_json::from_slice(&buffer[..len])?, fds)))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn what_was_sent_before_the_end_is_heard_although_ours_was_never_read() {
        let (ours, theirs) = pair().unwrap();
        send(ours.as_fd(), &"an order that comes too late", &[]).unwrap();
        for word in ["finished", "torn down"] {
            send(theirs.as_fd(), &word, &[]).unwrap();
        }
        drop(theirs);
        let hear = || receive::<String>(ours.as_fd()).unwrap().map(|(word, _)| word);
        assert_eq!([hear(), hear(), hear()], [Some("finished".into()), Some("torn down".into()), None]);
    }
}
