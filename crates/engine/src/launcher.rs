//! The door to sandboxes, and the real thing behind it: the client of the launcher process.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use futures_util::future::BoxFuture;
use nix::fcntl::OFlag;
use run::KilledFor;
use sandbox::client;
use sandbox::protocol::{Event, LaunchSpec, Order};
use tokio::io::{AsyncRead, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;

/// What a run needs beside its spec.
#[derive(Debug)]
pub struct Launch {
    pub spec: LaunchSpec,
    pub stdin: OwnedFd,
    pub files: Vec<OwnedFd>,
}

/// A run under way. Dropping the control ends it.
pub struct Launched {
    pub control: Box<dyn Control>,
    pub stdout: Box<dyn AsyncRead + Send + Unpin>,
    pub stderr: Box<dyn AsyncRead + Send + Unpin>,
}

impl fmt::Debug for Launched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Launched").finish_non_exhaustive()
    }
}

/// The conversation with the keeper of one run.
pub trait Control: Send {
    /// The next event; `None` when the keeper has closed. Dropping the future loses nothing.
    fn next(&mut self) -> BoxFuture<'_, io::Result<Option<Event>>>;

    /// Asks for the run's end. A run that has ended already is not disturbed.
    fn kill(&mut self, reason: KilledFor);
}

#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    #[error("the launcher is gone")]
    Lost,
    #[error("can't hand the run to the launcher")]
    Send { source: io::Error },
}

pub trait Launcher: Send + Sync + 'static {
    fn launch(&self, launch: Launch) -> BoxFuture<'_, Result<Launched, LaunchError>>;

    /// Ends when the launcher is dead, and with it every run.
    fn lost(&self) -> BoxFuture<'_, ()>;
}

/// The launcher process.
#[derive(Debug)]
pub struct SandboxLauncher {
    client: Arc<client::Launcher>,
    /// For waiting: the client's own socket, under another number.
    socket: UnixStream,
}

impl SandboxLauncher {
    /// Must be called inside the runtime.
    pub fn new(client: Arc<client::Launcher>) -> io::Result<Self> {
        let socket = watched(client.socket().try_clone_to_owned()?)?;
        Ok(Self { client, socket })
    }

    async fn send(&self, launch: &Launch, out: BorrowedFd<'_>, err: BorrowedFd<'_>) -> io::Result<OwnedFd> {
        let files: Vec<BorrowedFd<'_>> = launch.files.iter().map(AsFd::as_fd).collect();
        let request = || self.client.run(&launch.spec, [launch.stdin.as_fd(), out, err], &files);
        // Mostly there is room, and then nothing has to be waited for.
        match request() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => return result,
        }
        self.socket.async_io(Interest::WRITABLE, request).await
    }
}

impl Launcher for SandboxLauncher {
    fn launch(&self, launch: Launch) -> BoxFuture<'_, Result<Launched, LaunchError>> {
        Box::pin(async move {
            let broken = |source: io::Error| match source.raw_os_error() {
                Some(nix::libc::EPIPE | nix::libc::ECONNRESET | nix::libc::ENOTCONN) => LaunchError::Lost,
                _ => LaunchError::Send { source },
            };
            let (stdout, out) = output_pipe().map_err(broken)?;
            let (stderr, err) = output_pipe().map_err(broken)?;
            let control = self.send(&launch, out.as_fd(), err.as_fd()).await.map_err(broken)?;
            let control = Keeper { socket: watched(control).map_err(broken)? };
            Ok(Launched { control: Box::new(control), stdout: Box::new(stdout), stderr: Box::new(stderr) })
        })
    }

    fn lost(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            // After its hello the launcher never writes: readable means closed.
            let _ = self.socket.readable().await;
        })
    }
}

/// Lets the runtime watch a packet socket. It is no stream, but all that is used of one is when it
/// is ready.
fn watched(socket: OwnedFd) -> io::Result<UnixStream> {
    UnixStream::from_std(socket.into())
}

/// Our end doesn't block; the run's end must not know.
fn output_pipe() -> io::Result<(pipe::Receiver, OwnedFd)> {
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    Ok((pipe::Receiver::from_owned_fd(read)?, write))
}

struct Keeper {
    socket: UnixStream,
}

impl Control for Keeper {
    fn next(&mut self) -> BoxFuture<'_, io::Result<Option<Event>>> {
        Box::pin(self.socket.async_io(Interest::READABLE, || client::receive(self.socket.as_fd())))
    }

    fn kill(&mut self, reason: KilledFor) {
        // A keeper that can't be told has closed its end, which is all that a kill could achieve.
        let _ = client::send(self.socket.as_fd(), Order::Kill(reason));
    }
}
