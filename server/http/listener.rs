//! The socket on which a server listens: one of its own, or one that a service manager holds for it.

use std::fs::Permissions;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, lchown};
use std::path::Path;

use anyhow::{Context, ensure};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::Backlog;

use crate::config::{Config, Listen};

/// The kernel takes no more than `net.core.somaxconn`, which is 4096 unless somebody has changed it.
const CONNECTIONS_WAITING: i32 = 4096;

/// A socket that is there before anything else is started.
#[derive(Debug)]
pub struct Listener {
    pub(super) socket: Socket,
    /// A service manager made it and keeps it: who connects while this server stops waits for the next one.
    pub handed_over: bool,
}

#[derive(Debug)]
pub(super) enum Socket {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener),
}

impl Listener {
    /// The socket that a service manager hands over, or one of our own. Must be called before this
    /// process has a second thread.
    pub fn open(config: &Config) -> anyhow::Result<Self> {
        match Socket::handed_over()? {
            Some(socket) => {
                if let Socket::Tcp(listener) = &socket {
                    config.may_listen_on(listener.local_addr()?)?;
                }
                Ok(Self { socket, handed_over: true })
            }
            None => Ok(Self { socket: Socket::bind(&config.listen_at()?)?, handed_over: false }),
        }
    }

    /// A socket of our own at this address.
    pub fn bind(address: SocketAddr) -> anyhow::Result<Self> {
        Ok(Self { socket: Socket::bind(&Listen::Tcp(address))?, handed_over: false })
    }

    /// Lets a group, and root, ask by a socket of our own that is a file. Of one that was handed over its maker decides.
    pub fn show(&self, gid: u32) -> io::Result<()> {
        let Socket::Unix(listener) = &self.socket else { return Ok(()) };
        let address = listener.local_addr()?;
        let Some(path) = address.as_pathname().filter(|_| !self.handed_over) else { return Ok(()) };
        lchown(path, None, Some(gid))?;
        std::fs::set_permissions(path, Permissions::from_mode(0o660))
    }

    /// The address that was actually bound, in the form that clients use.
    pub fn address(&self, tls: bool) -> io::Result<String> {
        let scheme = if tls { "https" } else { "http" };
        match &self.socket {
            Socket::Tcp(listener) => Ok(format!("{scheme}://{}", listener.local_addr()?)),
            Socket::Unix(listener) => {
                let address = listener.local_addr()?;
                Ok(format!("unix:{}", address.as_pathname().unwrap_or(Path::new("?")).display()))
            }
        }
    }
}

impl Socket {
    /// By the protocol of systemd: `LISTEN_FDS` sockets from descriptor 3 on, for the process `LISTEN_PID`.
    fn handed_over() -> anyhow::Result<Option<Self>> {
        let mut given = listenfd::ListenFd::from_env();
        if given.len() == 0 {
            return Ok(None);
        }
        ensure!(given.len() == 1, "{} sockets were handed over; there must be one", given.len());
        let socket = match given.take_tcp_listener(0) {
            Ok(listener) => listener.map(Self::Tcp),
            Err(_) => given
                .take_unix_listener(0)
                .context("the socket that was handed over is neither TCP nor Unix, or does not listen")?
                .map(Self::Unix),
        };
        let socket = socket.context("the socket that was handed over is gone")?;
        socket.prepare()?;
        Ok(Some(socket))
    }

    fn bind(listen: &Listen) -> anyhow::Result<Self> {
        let socket = match listen {
            Listen::Tcp(address) => {
                let listener = std::net::TcpListener::bind(address);
                Self::Tcp(listener.with_context(|| format!("listen on {address}"))?)
            }
            Listen::Unix(path) => {
                remove_stale(path).with_context(|| format!("listen on {}", path.display()))?;
                let listener = std::os::unix::net::UnixListener::bind(path);
                Self::Unix(listener.with_context(|| format!("listen on {}", path.display()))?)
            }
        };
        socket.widen()?;
        socket.prepare()?;
        Ok(socket)
    }

    /// The standard library lets 128 connections wait to be accepted. Of more at once, which a burst is,
    /// the kernel drops the first packet, and the client tries again a whole second later.
    fn widen(&self) -> io::Result<()> {
        let backlog = Backlog::new(CONNECTIONS_WAITING)?;
        match self {
            Self::Tcp(listener) => nix::sys::socket::listen(listener, backlog)?,
            Self::Unix(listener) => nix::sys::socket::listen(listener, backlog)?,
        }
        Ok(())
    }

    /// For the runtime, and for no program that this process starts.
    fn prepare(&self) -> io::Result<()> {
        let descriptor = match self {
            Self::Tcp(listener) => {
                listener.set_nonblocking(true)?;
                listener.as_fd()
            }
            Self::Unix(listener) => {
                listener.set_nonblocking(true)?;
                listener.as_fd()
            }
        };
        fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        Ok(())
    }
}

/// A socket file that nobody answers on any more is in the way; anything else is not ours to remove.
fn remove_stale(path: &Path) -> io::Result<()> {
    let Ok(metadata) = std::fs::symlink_metadata(path) else { return Ok(()) };
    if metadata.file_type().is_socket() && std::os::unix::net::UnixStream::connect(path).is_err() {
        std::fs::remove_file(path)?;
    }
    Ok(())
}
