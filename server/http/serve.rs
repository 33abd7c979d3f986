//! Accepts connections, with a bound on their number, and lets them end in order.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::conversation::Conversation;
use super::listener::{Listener, Socket};
use crate::tls::Tls;

/// How long connections that have had an answer may think about another request once the server stops.
const LINGER: Duration = Duration::from_secs(1);

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

/// Who is at the other end of a connection: a client, or a proxy that speaks for others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    Ip(IpAddr),
    /// Somebody on this machine who may open the socket's file.
    Unix,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Unix => f.write_str("unix"),
        }
    }
}

/// Either kind of socket, once the runtime watches it.
trait Accept: Sync {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    fn accept(&self) -> impl Future<Output = io::Result<(Self::Stream, Peer)>> + Send;
}

impl Accept for tokio::net::TcpListener {
    type Stream = tokio::net::TcpStream;

    async fn accept(&self) -> io::Result<(Self::Stream, Peer)> {
        let (stream, address) = Self::accept(self).await?;
        stream.set_nodelay(true)?;
        // A client of version 4 on a socket for both is the same client.
        Ok((stream, Peer::Ip(address.ip().to_canonical())))
    }
}

impl Accept for tokio::net::UnixListener {
    type Stream = tokio::net::UnixStream;

    async fn accept(&self) -> io::Result<(Self::Stream, Peer)> {
        Self::accept(self).await.map(|(stream, _)| (stream, Peer::Unix))
    }
}

/// Serves until `stop`, then lets open connections finish their replies.
pub async fn serve(
    listener: Listener,
    router: Router,
    bounds: Bounds,
    tls: Option<Arc<Tls>>,
    stop: CancellationToken,
) -> io::Result<()> {
    let talk = Conversation::new(router, bounds, tls, stop);
    match listener.socket {
        Socket::Tcp(listener) => accept_until(&tokio::net::TcpListener::from_std(listener)?, talk).await,
        Socket::Unix(listener) => accept_until(&tokio::net::UnixListener::from_std(listener)?, talk).await,
    }
    Ok(())
}

async fn accept_until(listener: &impl Accept, talk: Conversation) {
    let bounds = talk.bounds;
    let room = Arc::new(Semaphore::new(bounds.connections_max));
    while let Some(next) = talk.stop.run_until_cancelled(next(listener, &room)).await {
        match next {
            Ok((stream, peer, place)) => {
                let talk = talk.clone();
                tokio::spawn(async move {
                    talk.with(stream, peer).await;
                    drop(place);
                });
            }
            Err(error) => {
                // Out of descriptors, most likely: connections that end will give some back.
                tracing::warn!(%error, "could not accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    // Who has just connected, or is about to ask again, is heard: an answer now ends its connection. Only
    // who says nothing for that long is hung up on.
    let everybody = || room.acquire_many(u32::try_from(bounds.connections_max).unwrap_or(u32::MAX));
    let _ = tokio::time::timeout(LINGER, everybody()).await;
    talk.last_call.cancel();
    if tokio::time::timeout(bounds.goodbye, everybody()).await.is_err() {
        tracing::warn!("some connections did not finish in time");
    }
}

/// The next connection, once there is room for one.
async fn next<A: Accept>(
    listener: &A,
    room: &Arc<Semaphore>,
) -> io::Result<(A::Stream, Peer, OwnedSemaphorePermit)> {
    let place = Arc::clone(room).acquire_owned().await.map_err(io::Error::other)?;
    listener.accept().await.map(|(stream, peer)| (stream, peer, place))
}
