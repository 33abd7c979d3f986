//! Tells a service manager how the server is, by the protocol of systemd: words on the datagram socket
//! that `NOTIFY_SOCKET` names. Where nobody asked for it, nothing is said.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// It listens and has tested itself.
pub fn ready() {
    tell("READY=1\nSTATUS=takes work");
}

/// It takes no more work; its end may take so long, whatever `TimeoutStopSec=` says.
pub fn stopping(most: Duration) {
    tell(&format!("STOPPING=1\nSTATUS=lets runs end\nEXTEND_TIMEOUT_USEC={}", most.as_micros()));
}

fn tell(words: &str) {
    let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = send(&name, words) {
        tracing::warn!(%error, "the service manager can't be told");
    }
}

fn send(name: &OsStr, words: &str) -> io::Result<()> {
    let address = match name.as_bytes() {
        // A name that is no file.
        [b'@', rest @ ..] => SocketAddr::from_abstract_name(rest)?,
        _ => SocketAddr::from_pathname(name)?,
    };
    UnixDatagram::unbound()?.send_to_addr(words.as_bytes(), &address).map(drop)
}
