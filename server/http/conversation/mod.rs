//! One connection from its first byte to its last: TLS where there is a certificate, then HTTP/1.1 or
//! HTTP/2, each with a bound on the time that a client may take to say what it wants and to take its answer.

mod eager;
mod http2;
mod impatient;
mod pieces;
mod rewound;
mod streams;

use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::http::{HeaderValue, header};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use self::eager::eagerly;
use self::impatient::Impatient;
use self::rewound::Rewound;
use super::serve::{Bounds, Peer};
use crate::tls::Tls;

/// What hyper reads before `layers::check_size` can refuse in words.
const HEAD_BYTES_MAX: usize = 64 * 1024;
const HEADERS_MAX: usize = 200;

/// What all connections of one listener have in common.
#[derive(Clone, Debug)]
pub(super) struct Conversation {
    router: Router,
    pub bounds: Bounds,
    tls: Option<Arc<Tls>>,
    /// Answers from then on end their connections.
    pub stop: CancellationToken,
    /// Connections without a request end now.
    pub last_call: CancellationToken,
    /// Requests of HTTP/2, of which one connection has many: as many as there may be connections.
    requests: Arc<Semaphore>,
}

impl Conversation {
    pub(super) fn new(
        router: Router,
        bounds: Bounds,
        tls: Option<Arc<Tls>>,
        stop: CancellationToken,
    ) -> Self {
        let requests = Arc::new(Semaphore::new(bounds.connections_max));
        Self { router, bounds, tls, stop, last_call: CancellationToken::new(), requests }
    }

    pub(super) async fn with<S>(self, stream: S, peer: Peer)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        // Below TLS, which would take what the client does not, and then wait for it unwatched.
        let stream = Impatient::new(stream, self.bounds.answer_timeout);
        let ended = match &self.tls {
            None => eagerly(self.speak(stream, peer)).await,
            // Apart, as HTTP/2 is: thousands of silent connections shall not each hold room for either.
            Some(tls) => Box::pin(self.speak_behind(tls, stream, peer)).await,
        };
        if let Err(error) = ended {
            tracing::debug!(error = format!("{error:#}"), "a connection ended early");
        }
    }

    async fn speak_behind<S>(&self, tls: &Tls, stream: S, peer: Peer) -> anyhow::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        match tls.greet(stream, self.bounds.header_timeout).await {
            Some((stream, true)) => self.speak_http2(stream, peer).await,
            Some((stream, false)) => self.speak(stream, peer).await,
            None => Ok(()),
        }
    }

    /// HTTP/1.1, unless the client begins with the words that begin HTTP/2.
    async fn speak<S>(&self, stream: S, peer: Peer) -> anyhow::Result<()>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (inner, stop) = (TowerToHyperService::new(self.router.clone()), self.stop.clone());
        let service = service_fn(move |mut request: hyper::Request<_>| {
            request.extensions_mut().insert(peer);
            let (answer, stop) = (inner.call(request), stop.clone());
            async move {
                let mut reply = answer.await?;
                if stop.is_cancelled() {
                    reply.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(reply)
            }
        });
        let mut connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.bounds.header_timeout)
            .max_headers(HEADERS_MAX)
            .max_buf_size(HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(stream), service);
        let ended = tokio::select! {
            ended = &mut connection => ended,
            () = self.last_call.cancelled() => {
                Pin::new(&mut connection).graceful_shutdown();
                (&mut connection).await
            }
        };
        match ended {
            Err(error) if error.is_parse_version_h2() => {
                let parts = connection.into_parts();
                let stream = Rewound::new(parts.read_buf, parts.io.into_inner());
                Box::pin(self.speak_http2(stream, peer)).await
            }
            ended => Ok(ended?),
        }
    }
}
