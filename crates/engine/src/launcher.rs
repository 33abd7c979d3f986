//! The door to sandboxes, and the real thing behind it: the client of the launcher process.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard};

use futures_util::future::BoxFuture;
use nix::fcntl::OFlag;
use run::{KilledFor, Limits};
use sandbox::client;
use sandbox::protocol::{Event, LaunchSpec, Order, Outline};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, Interest};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;

use crate::again;
use crate::pool::{Pool, PoolCounts};

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

    /// Removes a frozen layer.
    fn discard<'a>(&'a self, layer: &'a str) -> BoxFuture<'a, ()> {
        let _ = layer;
        Box::pin(async {})
    }

    /// Takes over a layer that was frozen under an earlier launcher; `false` where it is gone.
    fn adopt<'a>(&'a self, layer: &'a str) -> BoxFuture<'a, io::Result<bool>> {
        let _ = layer;
        Box::pin(async { Ok(false) })
    }

    /// Removes all layers of earlier launchers that were not taken over.
    fn discard_former(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }

    /// Ends when the launcher is dead, and with it every run.
    fn lost(&self) -> BoxFuture<'_, ()>;

    /// Makes up for a sandbox that was used, now that this is in nobody's way. Never blocks.
    fn refill(&self) {}

    fn pool(&self) -> PoolCounts {
        PoolCounts::default()
    }
}

/// The launcher process, with some sandboxes that it has prepared.
#[derive(Debug)]
pub struct SandboxLauncher {
    /// Before the client, which waits at its end until the launcher's last child is gone.
    pool: Arc<Mutex<Pool<OwnedFd>>>,
    client: Arc<client::Launcher>,
    /// For waiting: the client's own socket, under another number. It is no stream, but all that is used of one
    /// is when it is ready.
    socket: UnixStream,
    /// What is prepared while nobody knows what will come.
    blank: Outline,
}

impl SandboxLauncher {
    /// One that prepares nothing ahead. Must be called inside the runtime.
    pub fn new(client: Arc<client::Launcher>) -> io::Result<Self> {
        Self::with_pool(client, 0, Limits::default())
    }

    /// One that prepares at most `max` sandboxes ahead; `limits` are those that most runs have.
    pub fn with_pool(client: Arc<client::Launcher>, max: usize, limits: Limits) -> io::Result<Self> {
        let socket = UnixStream::from_std(client.socket().try_clone_to_owned()?.into())?;
        let blank = Outline::blank(limits);
        let launcher = Self { pool: Arc::new(Mutex::new(Pool::new(max))), client, socket, blank };
        launcher.refill();
        Ok(launcher)
    }

    fn pool(&self) -> MutexGuard<'_, Pool<OwnedFd>> {
        // Nothing that holds this lock can panic half way.
        let mut pool = self.pool.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        pool.heed_removals(self.client.removals());
        pool
    }

    /// Tells a sandbox what to run, and returns its control socket: a prepared one, or else a new one. A
    /// prepared one that has died in this very moment is passed over like one that had died before.
    async fn start(
        &self,
        spec: &LaunchSpec,
        stdio: [BorrowedFd<'_>; 3],
        files: &[BorrowedFd<'_>],
    ) -> io::Result<OwnedFd> {
        let taken = self.pool().take(spec, is_alive);
        if let Some(control) = taken
            && client::run(control.as_fd(), spec, stdio, files).is_ok()
        {
            return Ok(control);
        }
        let control = self.prepare(&Outline::of(spec)).await?;
        client::run(control.as_fd(), spec, stdio, files)?;
        Ok(control)
    }

    async fn prepare(&self, outline: &Outline) -> io::Result<OwnedFd> {
        let request = || self.client.prepare(outline);
        // Mostly there is room, and then nothing has to be waited for.
        match request() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => return result,
        }
        self.socket.async_io(Interest::WRITABLE, request).await
    }

    /// What the launcher says first. Waited for, because closing the socket would give the request up.
    async fn ask(&self, request: impl Fn() -> io::Result<OwnedFd>) -> io::Result<Option<Event>> {
        let socket = watched(self.socket.async_io(Interest::WRITABLE, request).await?)?;
        socket.async_io(Interest::READABLE, |socket: &OwnedFd| client::receive(socket.as_fd())).await
    }
}

fn removed(answer: io::Result<Option<Event>>) {
    match answer {
        Ok(Some(Event::Removed)) => {}
        // It goes at the next start.
        Err(error) => tracing::debug!(%error, "a frozen layer stays until the next start"),
        Ok(answer) => tracing::warn!(?answer, "a frozen layer could not be removed"),
    }
}

/// A keeper that could not prepare its sandbox, or was ended, has closed its end; one that has not says
/// at most that it is ready.
fn is_alive(control: &OwnedFd) -> bool {
    match client::receive(control.as_fd()) {
        Ok(Some(Event::Prepared)) => true,
        Ok(_) => false,
        Err(error) => error.kind() == io::ErrorKind::WouldBlock,
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
            let files: Vec<BorrowedFd<'_>> = launch.files.iter().map(AsFd::as_fd).collect();
            let stdio = [launch.stdin.as_fd(), out.as_fd(), err.as_fd()];
            let control = self.start(&launch.spec, stdio, &files).await.map_err(broken)?;
            let control = Keeper { socket: watched(control).map_err(broken)? };
            let control = again::for_one_run(control, &launch.spec, &self.pool);
            Ok(Launched { control, stdout: Box::new(stdout), stderr: Box::new(stderr) })
        })
    }

    fn discard<'a>(&'a self, layer: &'a str) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            removed(self.ask(|| self.client.remove(layer)).await);
        })
    }

    fn adopt<'a>(&'a self, layer: &'a str) -> BoxFuture<'a, io::Result<bool>> {
        Box::pin(async move {
            match self.ask(|| self.client.adopt(layer)).await? {
                Some(Event::Adopted { there }) => Ok(there),
                answer => Err(io::Error::other(format!("the launcher answered {answer:?}"))),
            }
        })
    }

    fn discard_former(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            removed(self.ask(|| self.client.remove_former()).await);
        })
    }

    fn lost(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            // After its hello the launcher never writes: readable means closed.
            let _ = self.socket.readable().await;
        })
    }

    fn refill(&self) {
        let mut pool = self.pool();
        while let Some(outline) = pool.missing(&self.blank) {
            // A launcher that is too busy to be asked has better things to do than to prepare.
            let Ok(control) = self.client.prepare(&outline) else { return };
            pool.add(outline, control);
        }
    }

    fn pool(&self) -> PoolCounts {
        self.pool().counts()
    }
}

/// Lets the runtime watch a keeper's socket for what is said, and for nothing else: that there is room again
/// for an order would wake the server in the moment in which the keeper reads it.
#[expect(
    deprecated,
    reason = "an `OwnedFd` stays open and the same, which its successor has callers promise"
)]
fn watched(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(socket, Interest::READABLE)
}

/// Our end doesn't block; the run's end must not know.
fn output_pipe() -> io::Result<(pipe::Receiver, OwnedFd)> {
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    Ok((pipe::Receiver::from_owned_fd(read)?, write))
}

pub(crate) struct Keeper {
    pub(crate) socket: AsyncFd<OwnedFd>,
}

impl Control for Keeper {
    fn next(&mut self) -> BoxFuture<'_, io::Result<Option<Event>>> {
        Box::pin(async {
            loop {
                let hear = |socket: &OwnedFd| client::receive(socket.as_fd());
                match self.socket.async_io(Interest::READABLE, hear).await {
                    // Told too late to matter: the run didn't wait for it.
                    Ok(Some(Event::Prepared)) => {}
                    event => return event,
                }
            }
        })
    }

    fn kill(&mut self, reason: KilledFor) {
        // A keeper that can't be told has closed its end, which is all that a kill could achieve.
        let _ = client::send(self.socket.get_ref().as_fd(), Order::Kill(reason));
    }
}
