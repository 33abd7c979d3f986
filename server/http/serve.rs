//! Accepts connections and speaks HTTP/1.1 on them, with a bound on their number and on the time
//! that a client may take to say what it wants.

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::impatient::Impatient;
use crate::config::Listen;

/// How long connections may take to finish what they are saying once the server stops.
const GOODBYE: Duration = Duration::from_secs(5);

/// What hyper reads before `layers::check_size` can refuse in words.
const HEAD_BYTES_MAX: usize = 64 * 1024;
const HEADERS_MAX: usize = 200;

/// A socket that is bound before anything else is started.
#[derive(Debug)]
pub enum Listener {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener),
}

impl Listener {
    pub fn bind(listen: &Listen) -> anyhow::Result<Self> {
        let listener = match listen {
            Listen::Tcp(address) => {
                let listener =
                    std::net::TcpListener::bind(address).with_context(|| format!("listen on {address}"))?;
                listener.set_nonblocking(true)?;
                Self::Tcp(listener)
            }
            Listen::Unix(path) => {
                remove_stale(path).with_context(|| format!("listen on {}", path.display()))?;
                let listener = std::os::unix::net::UnixListener::bind(path)
                    .with_context(|| format!("listen on {}", path.display()))?;
                listener.set_nonblocking(true)?;
                Self::Unix(listener)
            }
        };
        Ok(listener)
    }

    /// The address that was actually bound, in the form that clients use.
    pub fn address(&self) -> io::Result<String> {
        match self {
            Self::Tcp(listener) => Ok(format!("http://{}", listener.local_addr()?)),
            Self::Unix(listener) => {
                let address = listener.local_addr()?;
                Ok(format!("unix:{}", address.as_pathname().unwrap_or(Path::new("?")).display()))
            }
        }
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
    match listener {
        Listener::Tcp(listener) => {
            accept_until(&tokio::net::TcpListener::from_std(listener)?, router, bounds, stop).await;
        }
        Listener::Unix(listener) => {
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
            Ok((stream, place)) => talk(stream, place, router.clone(), bounds, &graceful),
            Err(error) => {
                // Out of descriptors, most likely: connections that end will give some back.
                tracing::warn!(%error, "could not accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    if tokio::time::timeout(GOODBYE, graceful.shutdown()).await.is_err() {
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
    graceful: &GracefulShutdown,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let stream = Impatient::new(stream, bounds.answer_timeout);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(bounds.header_timeout)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let connection = graceful.watch(connection);
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection ended early");
        }
        drop(place);
    });
}
