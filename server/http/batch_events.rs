//! A batch as it goes: one event for each thing that happens to it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use engine::batch::{BatchEvent, BatchHandle, CancelBatchOnDrop};
use futures_util::stream;
use serde::Serialize;
use utoipa::ToSchema;

use super::auth::{About, Caller};
use super::batch_reply::{BatchReply, BatchStateName, TestReply};
use super::batches::find;
use super::events::ServerSentEvent;
use super::problem::{BadValue, Document, Problem};
use super::query::{NoQuery, PathText};
use super::reply::RunReply;
use super::{App, accept};

/// A connection on which nothing is said for longer looks dead to whatever stands in between.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// Follows one batch: `state`, `prepare` with its run, `test` for each result as it comes, and in the end `result`.
///
/// Each event has a number as its id; with the last one in `Last-Event-ID` the stream goes on behind it. Lines that
/// begin with a colon come when nothing else does, every 15 seconds.
#[utoipa::path(get, path = "/batches/{id}/events", operation_id = "watch_batch", tag = "batches",
    params(("id" = String, Path, format = Uuid, description = "The batch's id"),
           ("Last-Event-ID" = Option<String>, Header, description = "The id of the last event that was seen",
            example = "3")),
    responses(
        (status = 200, description = "The events: `state` with a `BatchStateEvent`, `prepare` with a `Run`, `test` with \
         a `TestEvent`, `result` with a `Batch`", body = ServerSentEvent, content_type = "text/event-stream"),
        (status = 404, description = "There is no such batch", body = Document,
         content_type = "application/problem+json"),
        (status = 422, description = "`Last-Event-ID` is none of this batch's", body = Document,
         content_type = "application/problem+json")))]
pub async fn watch(
    State(app): State<Arc<App>>,
    caller: Caller,
    PathText(id): PathText,
    headers: HeaderMap,
    _: NoQuery,
) -> Result<Response, Problem> {
    let handle = find(&app, &caller, &id).await?;
    let next = match headers.get("last-event-id").filter(|value| !value.is_empty()) {
        None => 0,
        Some(value) => {
            let seen = value.to_str().ok().and_then(|text| text.parse::<usize>().ok());
            seen.filter(|seen| *seen < handle.events()).map(|seen| seen + 1).ok_or_else(|| {
                let detail =
                    "must be the id of an event of this batch; leave it out to begin at the beginning";
                Problem::invalid(vec![BadValue::parameter("Last-Event-ID", detail)])
            })?
        }
    };
    Ok(follow(handle, next, None))
}

/// What `state` says.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = BatchStateEvent)]
pub struct BatchStateSaid {
    #[schema(value_type = String, format = Uuid)]
    id: String,
    state: BatchStateName,
}

/// What `test` says.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = TestEvent)]
pub struct TestSaid<'a> {
    /// Its place in the request's list.
    number: usize,
    #[serde(flatten)]
    test: TestReply<'a>,
}

/// Made only when the connection has room for it. Hanging up before the end drops `leaving`.
pub(super) fn follow(handle: BatchHandle, first: usize, leaving: Option<CancelBatchOnDrop>) -> Response {
    let about = About::Batch(handle.id());
    let lines =
        stream::unfold(
            (handle, first, leaving),
            async |(handle, number, leaving)| match tokio::time::timeout(HEARTBEAT, handle.event(number))
                .await
            {
                Err(_) => Some((
                    Ok::<_, Infallible>(Bytes::from_static(b": still here\n\n")),
                    (handle, number, leaving),
                )),
                Ok(Some(event)) => {
                    let text = say(&handle, number, event);
                    Some((Ok(Bytes::from(text)), (handle, number + 1, leaving)))
                }
                Ok(None) => {
                    leaving.into_iter().for_each(CancelBatchOnDrop::disarm);
                    None
                }
            },
        );
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static(accept::EVENTS)),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        // For proxies that would collect an answer before they pass it on.
        (header::HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    (Extension(about), headers, Body::from_stream(lines)).into_response()
}

fn say(handle: &BatchHandle, number: usize, event: BatchEvent) -> String {
    let batch = handle.batch();
    let (name, data) = match event {
        BatchEvent::State(state) => {
            let said = BatchStateSaid { id: batch.id.to_string(), state: state.into() };
            ("state", serde_json::to_string(&said))
        }
        BatchEvent::Prepared => {
            ("prepare", serde_json::to_string(&batch.prepare.as_deref().map(RunReply::from)))
        }
        BatchEvent::Tested(place) => {
            let said = batch.tests.get(place).map(|test| TestSaid { number: place, test: test.into() });
            ("test", serde_json::to_string(&said))
        }
        BatchEvent::Result => ("result", serde_json::to_string(&BatchReply::from(&*batch))),
    };
    format!("event: {name}\nid: {number}\ndata: {}\n\n", data.unwrap_or_default())
}
