//! Batches: what online judges do all day. One command prepares, many tests are run over what it has left.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use engine::batch::{
    Batch, BatchEvent, BatchHandle, BatchState, CancelBatchOnDrop, PreparedId, PreparedInfo, Test,
};
use futures_util::stream;
use jiff::Timestamp;
use run::Verdict;
use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;
use utoipa::ToSchema;

use super::auth::Caller;
use super::body::JsonBody;
use super::create_batch::{self, Around, CreateBatch};
use super::events::{ServerSentEvent, WantsEvents};
use super::prefer::Prefer;
use super::problem::{self, BadValue, Document, Problem};
use super::query::{Parameters, PathText};
use super::reply::{self, RunReply};
use super::{App, accept, files};

/// A connection on which nothing is said for longer looks dead to whatever stands in between.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// One batch, in whatever state. Fields that are not known yet are `null`.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Batch)]
pub struct BatchReply<'a> {
    #[schema(value_type = String, format = Uuid)]
    id: String,
    state: BatchStateName,
    /// Of the whole batch: the first of its tests that is not `accepted`. `null` where nothing was expected.
    verdict: Option<Verdict>,
    /// The prepare command's run.
    prepare: Option<RunReply<'a>>,
    /// In the order of the request.
    tests: Vec<TestReply<'a>>,
    /// What later batches can name in place of `prepare`.
    prepared: Option<PreparedReply>,
    /// Why nothing is prepared although the command ended well.
    #[serde(skip_serializing_if = "Option::is_none")]
    not_prepared: Option<&'a str>,
    #[schema(value_type = String, format = DateTime)]
    #[serde(serialize_with = "reply::time")]
    created_at: Timestamp,
    #[schema(value_type = Option<String>, format = DateTime)]
    #[serde(serialize_with = "reply::maybe_time")]
    finished_at: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = BatchState)]
pub enum BatchStateName {
    Preparing,
    Running,
    Finished,
}

/// One test of a batch.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Test)]
pub struct TestReply<'a> {
    name: Option<&'a str>,
    /// Where something was expected, and where the test has no result of its own.
    verdict: Option<Verdict>,
    /// The outputs of all runs together are kept up to 32 MiB; what is beyond that is compared, and then
    /// `stdout_truncated`.
    run: Option<RunReply<'a>>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Prepared)]
pub struct PreparedReply {
    #[schema(value_type = String, format = Uuid)]
    id: String,
    /// Where room is short, what was not used lately goes earlier; and all of it when the server stops.
    #[schema(value_type = String, format = DateTime)]
    #[serde(serialize_with = "reply::time")]
    expires_at: Timestamp,
}

impl From<BatchState> for BatchStateName {
    fn from(state: BatchState) -> Self {
        match state {
            BatchState::Preparing => Self::Preparing,
            BatchState::Running => Self::Running,
            BatchState::Finished => Self::Finished,
        }
    }
}

impl From<PreparedInfo> for PreparedReply {
    fn from(info: PreparedInfo) -> Self {
        Self { id: info.id.to_string(), expires_at: info.expires_at }
    }
}

impl<'a> From<&'a Test> for TestReply<'a> {
    fn from(test: &'a Test) -> Self {
        let run = test.run.as_deref().map(RunReply::from);
        Self { name: test.name.as_deref(), verdict: test.verdict, run }
    }
}

impl<'a> From<&'a Batch> for BatchReply<'a> {
    fn from(batch: &'a Batch) -> Self {
        Self {
            id: batch.id.to_string(),
            state: batch.state.into(),
            verdict: batch.verdict,
            prepare: batch.prepare.as_deref().map(RunReply::from),
            tests: batch.tests.iter().map(TestReply::from).collect(),
            prepared: batch.prepared.map(PreparedReply::from),
            not_prepared: batch.not_prepared.as_deref(),
            created_at: batch.created_at,
            finished_at: batch.finished_at,
        }
    }
}

/// Prepares once and runs every test over the result.
///
/// The file system that `prepare` leaves behind becomes a read-only layer under every test: nothing is compiled
/// twice, and no test sees what another has written. A `prepare` that did not end with code 0 is a
/// `compile_error`, and every test is `skipped`. Waiting, `Prefer` and events are as for a run.
#[utoipa::path(post, path = "/batches", operation_id = "create_batch", tag = "batches", request_body = CreateBatch,
    params(("Prefer" = Option<String>, Header, description = "`respond-async`, or `wait=N` in seconds")),
    responses(
        (status = 200, description = "The batch has finished; see its verdicts",
         content((BatchReply = "application/json"), (ServerSentEvent = "text/event-stream"))),
        (status = 202, description = "The batch goes on; `GET` the `Location`", body = BatchReply,
         headers(("Location" = String, description = "The batch's path"))),
        (status = 422, description = "A value is bad, or the image does not exist or is not allowed",
         body = Document, content_type = "application/problem+json"),
        (status = 500, description = "The sandbox failed: our fault", body = Document,
         content_type = "application/problem+json"),
        (status = 502, description = "The registry failed", body = Document, content_type = "application/problem+json"),
        (status = 503, description = "The server is stopping, or there is no room for what is prepared",
         body = Document, content_type = "application/problem+json"),
        (status = 504, description = "The pull took too long", body = Document,
         content_type = "application/problem+json")))]
pub async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    prefer: Prefer,
    WantsEvents(events): WantsEvents,
    body: JsonBody,
) -> Result<Response, Problem> {
    let JsonBody { value, share } = body;
    let handle = app.batches.submit(read(&app, &caller, value)?)?;
    let most_s = app.config.wait_max_s;
    let patience = prefer.patience(most_s);
    hold_to_the_end(&handle, share);
    if events {
        let leaving = patience.is_none().then(|| handle.cancel_on_drop());
        return Ok(follow(handle, 0, leaving));
    }
    let Some(patience) = patience else {
        let leaving = handle.cancel_on_drop();
        let batch = handle.wait(None).await;
        leaving.disarm();
        return finished(&batch);
    };
    let batch = handle.wait(Some(patience)).await;
    let reply = if batch.state == BatchState::Finished && !patience.is_zero() {
        finished(&batch)?
    } else {
        let mut reply = (StatusCode::ACCEPTED, Json(BatchReply::from(&*batch))).into_response();
        let location = HeaderValue::try_from(format!("/batches/{}", batch.id));
        reply.headers_mut().extend(location.ok().map(|path| (header::LOCATION, path)));
        reply
    };
    Ok(prefer.applied(most_s, reply))
}

fn read(app: &App, caller: &Caller, body: serde_json::Value) -> Result<engine::batch::BatchSpec, Problem> {
    let lookup = files::lookup(app, caller);
    let prepared = |id: &str| {
        let id: PreparedId = id.parse().ok()?;
        app.batches.prepared(id, &caller.principal.name)
    };
    let settings = app.settings.now();
    let around = Around {
        allowed: &settings.allowed,
        principal: &caller.principal,
        lookup: &lookup,
        prepared: &prepared,
    };
    create_batch::spec(body, around)
}

/// What a request holds in memory counts for as long as its batch has not ended.
fn hold_to_the_end(handle: &BatchHandle, share: Option<OwnedSemaphorePermit>) {
    let Some(share) = share else { return };
    let waiting = handle.clone();
    tokio::spawn(async move {
        waiting.wait(None).await;
        drop(share);
    });
}

/// What a client hears that waited for the end: the batch, or the problem if there is no verdict about any program.
fn finished(batch: &Batch) -> Result<Response, Problem> {
    match batch.problem() {
        None => Ok(Json(BatchReply::from(batch)).into_response()),
        Some((problem, run)) => Err(reply::about(problem, run)),
    }
}

/// Another's batch is none.
fn find(app: &App, caller: &Caller, id: &str) -> Result<BatchHandle, Problem> {
    let handle = id.parse().ok().and_then(|id| app.batches.get(id));
    let own = handle.filter(|handle| caller.sees(&handle.batch().principal));
    own.ok_or_else(|| problem::BATCH_NOT_FOUND.problem())
}

/// Shows one batch, in whatever state; with `Prefer: wait=N` as soon as it has ended, or after N seconds.
#[utoipa::path(get, path = "/batches/{id}", operation_id = "get_batch", tag = "batches",
    params(("id" = String, Path, format = Uuid, description = "The batch's id"),
           ("Prefer" = Option<String>, Header, description = "`wait=N` in seconds")),
    responses((status = 200, description = "The batch", body = BatchReply),
              (status = 404, description = "There is no such batch", body = Document,
               content_type = "application/problem+json")))]
pub async fn get(
    State(app): State<Arc<App>>,
    caller: Caller,
    PathText(id): PathText,
    prefer: Prefer,
    query: Parameters,
) -> Result<Response, Problem> {
    query.finish()?;
    let handle = find(&app, &caller, &id)?;
    let Some(wait) = prefer.wait else {
        return Ok(Json(BatchReply::from(&*handle.batch())).into_response());
    };
    let (prefer, most_s) =
        (Prefer { respond_async: false, wait: Some(wait), strict: false }, app.config.wait_max_s);
    let batch = handle.wait(prefer.patience(most_s)).await;
    Ok(prefer.applied(most_s, Json(BatchReply::from(&*batch)).into_response()))
}

/// Cancels a batch and answers when every process of it is dead. One that has ended is left as it is.
#[utoipa::path(delete, path = "/batches/{id}", operation_id = "cancel_batch", tag = "batches",
    params(("id" = String, Path, format = Uuid, description = "The batch's id")),
    responses((status = 200, description = "The batch, which has ended", body = BatchReply),
              (status = 404, description = "There is no such batch", body = Document,
               content_type = "application/problem+json")))]
pub async fn cancel(
    State(app): State<Arc<App>>,
    caller: Caller,
    PathText(id): PathText,
    query: Parameters,
) -> Result<Response, Problem> {
    query.finish()?;
    let batch = find(&app, &caller, &id)?.cancel().await;
    Ok(Json(BatchReply::from(&*batch)).into_response())
}

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
    query: Parameters,
) -> Result<Response, Problem> {
    query.finish()?;
    let handle = find(&app, &caller, &id)?;
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
fn follow(handle: BatchHandle, first: usize, leaving: Option<CancelBatchOnDrop>) -> Response {
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
    (headers, Body::from_stream(lines)).into_response()
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
