//! Answers that go on for as long as there is something to tell: server-sent events, and a word now and then
//! that says nothing, so that nobody in between takes the connection for a dead one.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures_util::{Stream, StreamExt, stream};
use serde::Serialize;

use super::accept;

/// A connection on which nothing is said for longer looks dead to whatever stands in between.
const HEARTBEAT: Duration = Duration::from_secs(15);
const STILL_HERE: &[u8] = b": still here\n\n";

/// One event, as it goes over the line.
pub(super) fn event(name: &str, data: &impl Serialize) -> Bytes {
    let data = serde_json::to_string(data).unwrap_or_else(|_| "null".into());
    format!("event: {name}\ndata: {data}\n\n").into()
}

/// The events, as they come.
pub(super) fn reply(events: impl Stream<Item = Bytes> + Send + 'static) -> Response {
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(accept::EVENTS)),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        // For proxies that would collect an answer before they pass it on.
        (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    (headers, Body::from_stream(alive(events).map(Ok::<_, Infallible>))).into_response()
}

/// The same with a word in every pause. What is waited for goes on meanwhile.
fn alive(events: impl Stream<Item = Bytes> + Send + 'static) -> impl Stream<Item = Bytes> + Send {
    stream::unfold(Box::pin(events), async |mut events| {
        match tokio::time::timeout(HEARTBEAT, events.next()).await {
            Err(_) => Some((Bytes::from_static(STILL_HERE), events)),
            Ok(event) => Some((event?, events)),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn in_a_pause_there_is_a_word_and_nothing_is_lost() {
        let slow = stream::iter([20, 0]).then(async |seconds| {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            event("x", &seconds)
        });
        let said: Vec<Bytes> = alive(slow).collect().await;
        assert_eq!(said, [STILL_HERE, b"event: x\ndata: 20\n\n", b"event: x\ndata: 0\n\n"]);
    }
}
