//! HTTP/2 on one connection, with the bounds that HTTP/1.1 has by its nature: one client may have many
//! requests here, but all clients together no more than there may be connections.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use h2::Reason;
use hyper::server::conn::http2;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};

use super::pieces::Pieces;
use super::streams::{Streams, Taking};
use super::{Conversation, HEAD_BYTES_MAX};
use crate::http::serve::Peer;

/// How many requests one connection may have at once.
const STREAMS_MAX: u32 = 64;

/// How many requests a client may take back before the server has looked at them.
const RESET_UNSEEN_MAX: usize = 20;

/// What a client may send of bodies before the server has read them: of one request, and of all of a connection.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 512 * 1024;

/// What is taken from an answer before the client has taken it.
const SEND_BYTES_MAX: usize = 64 * 1024;

/// How long a client without a request may take to agree to the end of its connection.
const LAST_WORDS: Duration = Duration::from_secs(5);

impl Conversation {
    pub(super) async fn speak_http2<S>(&self, stream: S, peer: Peer) -> anyhow::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let streams = Streams::new(self.bounds.answer_timeout);
        let (inner, requests) = (TowerToHyperService::new(self.router.clone()), Arc::clone(&self.requests));
        let service = service_fn(move |mut request: hyper::Request<_>| {
            request.extensions_mut().insert(peer);
            let place = Arc::clone(&requests).try_acquire_owned();
            let answer = place.map(|place| (inner.call(request), place));
            async move {
                // By these words a client knows that nothing was done, and may ask again.
                let (answer, place) = answer.map_err(|_| h2::Error::from(Reason::REFUSED_STREAM))?;
                let Ok(reply) = answer.await;
                Ok::<_, h2::Error>(reply.map(|body| Pieces::new(body, Taking::of_this_stream(), place)))
            }
        });
        let connection = http2::Builder::new(streams.clone())
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .max_pending_accept_reset_streams(RESET_UNSEEN_MAX)
            .max_header_list_size(HEAD_BYTES_MAX as u32)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_send_buf_size(SEND_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = pin!(connection);
        // A client without a request is hung up on as early as one that does not say what it wants.
        let idle = self.bounds.header_timeout;
        tokio::select! {
            ended = connection.as_mut() => return Ok(ended?),
            () = streams.quiet(idle) => {}
            () = self.stop.cancelled() => {}
        }
        connection.as_mut().graceful_shutdown();
        tokio::select! {
            ended = connection => Ok(ended?),
            () = streams.quiet(idle + LAST_WORDS) => bail!("the client said nothing more"),
        }
    }
}
