//! Accepts connections and speaks HTTP/1.1 on them, with a bound on their number and on the time
//! that a client may take to say what it wants.

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use axum::Router;
use axum::http::{HeaderValue, header};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::Backlog;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::impatient::Impatient;
use crate::config::{Config, Listen};

/// How long connections that have had an answer may think about another request once the server stops.
const LINGER: Duration = Duration::from_secs(1);

/// The kernel takes no more than `net.core.somaxconn`, which is 4096 unless somebody has changed it.
const CONNECTIONS_WAITING: i32 = 4096;

/// What hyper reads before `layers::check_size` can refuse in words.
const HEAD_BYTES_MAX: usize = 64 * 1024;
const HEADERS_MAX: usize = 200;

/// A socket that is there before anything else is started.
#[derive(Debug)]
pub struct Listener {
    socket: Socket,
    /// A service manager made it and keeps it: who connects while this server stops waits for the next one.
    pub handed_over: bool,
}

#[derive(Debug)]
enum Socket {
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

    /// The address that was actually bound, in the form that clients use.
    pub fn address(&self) -> io::Result<String> {
        match &self.socket {
            Socket::Tcp(listener) => Ok(format!("http://{}", listener.local_addr()?)),
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

/// What bounds the connections.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub connections_max: usize,
    pub header_timeout: Duration,
    /// How long a client may take nothing of what it is sent.
    pub answer_timeout: Duration,
    /// How long connections may take to get their answers once the server stops.
    pub goodbye: Duration,
}

/// Either kind of socket, once the runtime watches it.
trait Accept: Sync {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    fn accept(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Accept for tokio::net::TcpListener {
    type Stream = tokio::net::TcpStream;

    async fn accept(&self) -> io::Result<Self::Stream> {
        let (stream, _) = Self::accept(self).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

impl Accept for tokio::net::UnixListener {
    type Stream = tokio::net::UnixStream;

    async fn accept(&self) -> io::Result<Self::Stream> {
        Self::accept(self).await.map(|(stream, _)| stream)
    }
}

/// Serves until `stop`, then lets open connections finish their replies.
pub async fn serve(
    listener: Listener,
    router: Router,
    bounds: Bounds,
    stop: CancellationToken,
) -> io::Result<()> {
    match listener.socket {
        Socket::Tcp(listener) => {
            accept_until(&tokio::net::TcpListener::from_std(listener)?, router, bounds, stop).await;
        }
        Socket::Unix(listener) => {
            accept_until(&tokio::net::UnixListener::from_std(listener)?, router, bounds, stop).await;
        }
    }
    Ok(())
}

async fn accept_until(listener: &impl Accept, router: Router, bounds: Bounds, stop: CancellationToken) {
    let room = Arc::new(Semaphore::new(bounds.connections_max));
    let graceful = GracefulShutdown::new();
    while let Some(next) = stop.run_until_cancelled(next(listener, &room)).await {
        match next {
            Ok((stream, place)) => talk(stream, place, router.clone(), bounds, &stop, &graceful),
            Err(error) => {
                // Out of descriptors, most likely: connections that end will give some back.
                tracing::warn!(%error, "could not accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    // Who has just connected, or is about to ask again, is heard: an answer now ends its connection. Only
    // who says nothing for that long is hung up on.
    let everybody = u32::try_from(bounds.connections_max).unwrap_or(u32::MAX);
    let _ = tokio::time::timeout(LINGER, room.acquire_many(everybody)).await;
    if tokio::time::timeout(bounds.goodbye, graceful.shutdown()).await.is_err() {
        tracing::warn!("some connections did not finish in time");
    }
}

/// The next connection, once there is room for one.
async fn next<A: Accept>(
    listener: &A,
    room: &Arc<Semaphore>,
) -> io::Result<(A::Stream, OwnedSemaphorePermit)> {
    let place = Arc::clone(room).acquire_owned().await.map_err(io::Error::other)?;
    listener.accept().await.map(|stream| (stream, place))
}

fn talk<S>(
    stream: S,
    place: OwnedSemaphorePermit,
    router: Router,
    bounds: Bounds,
    stop: &CancellationToken,
    graceful: &GracefulShutdown,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let stream = Impatient::new(stream, bounds.answer_timeout);
    let (inner, stop) = (TowerToHyperService::new(router), stop.clone());
    let service = service_fn(move |request| {
        let (answer, stop) = (inner.call(request), stop.clone());
        async move {
            let mut reply = answer.await?;
            if stop.is_cancelled() {
                reply.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, std::convert::Infallible>(reply)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(bounds.header_timeout)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let connection = graceful.watch(connection);
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection ended early");
        }
        drop(place);
    });
}
