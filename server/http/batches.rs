//! Batches: what online judges do all day. One command prepares, many tests are run over what it has left.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use engine::batch::{Batch, BatchHandle, BatchId, BatchSpec, BatchState, PreparedId, TakenBatch};
use run::Verdict;

use super::auth::{About, Caller};
use super::batch_events;
use super::batch_reply::{BatchListReply, BatchReply, BatchStateName, ListedReply};
use super::body::{JsonBody, Share};
use super::create_batch::{self, Around, CreateBatch};
use super::events::{ServerSentEvent, WantsEvents};
use super::filter::BatchFilter;
use super::idempotency::IdempotencyKey;
use super::prefer::Prefer;
use super::problem::{self, Document, Problem};
use super::query::{NoQuery, Parameters, PathText};
use super::{App, files, reply};

const LIST_DEFAULT: usize = 50;
const LIST_MAX: usize = 500;

const STAYS_QUEUED: &str = "the server is being stopped before the batch has begun; it stays queued and begins when \
                            the server is back: ask again with the same key";
const KEY_OUTLIVES_BATCH: &str = "the batch that was made under this key has been forgotten, and is not made again; \
                                  use another key";

/// Prepares once and runs every test over the result.
///
/// The file system that `prepare` leaves behind becomes a read-only layer under every test: nothing is compiled
/// twice, and no test sees what another has written. Room for all that it may leave behind (`disk_bytes`, and 4 KiB
/// for each of `inodes`) is taken when it starts; while there is none, the batch waits its turn. A `prepare` that did
/// not end with code 0 is a `compile_error`, and every test is `skipped`. Waiting, `Prefer`, keys and events are as
/// for a run, and so is the queue: a batch none of whose runs has a place in it or a slot counts as one that waits. A
/// batch that was promised (by `Prefer` or under a key) survives the server: one that had not begun is begun by the
/// next one; of one that had, tests with a result keep it, the others are `internal_error`, and `problem` says why.
#[utoipa::path(post, path = "/batches", operation_id = "create_batch", tag = "batches", request_body = CreateBatch,
    params(("Prefer" = Option<String>, Header, description = "`respond-async`, or `wait=N` in seconds; with \
            `handling=strict` a batch whose first run would not start within N is refused"),
           ("Idempotency-Key" = Option<String>, Header, max_length = 255,
            description = "The client's own name for this request, good for 24 hours: the same request under the same \
                           key is the same batch, whether it still goes or has ended, also after a restart")),
    responses(
        (status = 200, description = "The batch has finished; see its verdicts",
         content((BatchReply = "application/json"), (ServerSentEvent = "text/event-stream"))),
        (status = 202, description = "The batch goes on; `GET` the `Location`", body = BatchReply,
         headers(("Location" = String, description = "The batch's path"))),
        (status = 404, description = "The batch of this key has been forgotten", body = Document,
         content_type = "application/problem+json"),
        (status = 422, description = "A value is bad, the image does not exist or is not allowed, or the key stands for \
         another request",
         body = Document, content_type = "application/problem+json"),
        (status = 429, description = "The queue is full, or as many wait as the key allows", body = Document,
         content_type = "application/problem+json", headers(("Retry-After" = u64, description = "Seconds"))),
        (status = 500, description = "The sandbox failed: our fault", body = Document,
         content_type = "application/problem+json"),
        (status = 502, description = "The registry failed", body = Document, content_type = "application/problem+json"),
        (status = 503, description = "The server is stopping, or could never have room for what is prepared",
         body = Document, content_type = "application/problem+json"),
        (status = 504, description = "The pull took too long", body = Document,
         content_type = "application/problem+json")))]
pub async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    prefer: Prefer,
    WantsEvents(events): WantsEvents,
    key: IdempotencyKey,
    body: JsonBody,
) -> Result<Response, Problem> {
    let JsonBody { value, share } = body;
    let key = key.of_batch(caller.principal.name.as_str(), &value);
    let patience = prefer.patience(app.config.wait_max_s);
    // Whoever may come back for the batch is promised it; a client that just waits takes it along when it goes.
    let promised = patience.is_some() || key.is_some();
    let taken = match app.batches.known(key.as_ref())? {
        // Whatever it named then, it is not asked for now: files may have gone, and what was prepared, too.
        Some(id) => TakenBatch::Known(id),
        None => {
            let spec = read(&app, &caller, value)?;
            if let Some(wait) = prefer.wait.filter(|_| prefer.strict) {
                app.batches.check_wait(&spec, wait)?;
            }
            match promised {
                false => TakenBatch::New(app.batches.submit(spec)?),
                true => app.batches.promise(spec, key).await?,
            }
        }
    };
    let handle = match taken {
        TakenBatch::New(handle) => handle,
        TakenBatch::Known(id) => {
            let known = app.batches.get(id).await?;
            known.ok_or_else(|| problem::BATCH_NOT_FOUND.detail(KEY_OUTLIVES_BATCH))?
        }
    };
    hold_to_the_end(&handle, share);
    let leaving = (!promised).then(|| handle.cancel_on_drop());
    if events {
        return Ok(batch_events::follow(handle, 0, leaving));
    }
    let batch = handle.wait(patience).await;
    if let Some(leaving) = leaving {
        leaving.disarm();
    }
    answer(&app, &batch, prefer)
}

/// The answer about a batch that was waited for as long as the client wanted.
fn answer(app: &App, batch: &Batch, prefer: Prefer) -> Result<Response, Problem> {
    let most_s = app.config.wait_max_s;
    let reply = match prefer.patience(most_s) {
        Some(patience) if patience.is_zero() => accepted(batch),
        _ if batch.state == BatchState::Finished => finished(batch)?,
        Some(_) => accepted(batch),
        None => return Err(problem::DRAINING.detail(STAYS_QUEUED)),
    };
    Ok(prefer.applied(most_s, reply))
}

fn accepted(batch: &Batch) -> Response {
    let mut reply = reply_of(StatusCode::ACCEPTED, batch);
    let location = HeaderValue::try_from(format!("/batches/{}", batch.id));
    reply.headers_mut().extend(location.ok().map(|path| (header::LOCATION, path)));
    reply
}

/// What a client hears that waited for the end: the batch, or the problem if there is no verdict about any program.
fn finished(batch: &Batch) -> Result<Response, Problem> {
    match batch.no_verdict() {
        None => Ok(show(batch)),
        Some((problem, run)) => Err(reply::about(problem, run)),
    }
}

fn read(app: &App, caller: &Caller, body: serde_json::Value) -> Result<BatchSpec, Problem> {
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
fn hold_to_the_end(handle: &BatchHandle, share: Option<Share>) {
    let Some(share) = share else { return };
    let waiting = handle.clone();
    tokio::spawn(async move {
        waiting.wait(None).await;
        drop(share);
    });
}

/// Another's batch is none.
pub(super) async fn find(app: &App, caller: &Caller, id: &str) -> Result<BatchHandle, Problem> {
    let handle = match id.parse::<BatchId>() {
        Ok(id) => app.batches.get(id).await?,
        Err(_) => None,
    };
    let own = handle.filter(|handle| caller.sees(&handle.batch().principal));
    own.ok_or_else(|| problem::BATCH_NOT_FOUND.problem())
}

fn show(batch: &Batch) -> Response {
    reply_of(StatusCode::OK, batch)
}

fn reply_of(status: StatusCode, batch: &Batch) -> Response {
    let mut reply = (status, Json(BatchReply::from(batch))).into_response();
    reply.extensions_mut().insert(About::Batch(batch.id));
    reply
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
    _: NoQuery,
) -> Result<Response, Problem> {
    let handle = find(&app, &caller, &id).await?;
    let Some(wait) = prefer.wait else { return Ok(show(&handle.batch())) };
    let (prefer, most_s) = (Prefer { wait: Some(wait), ..Prefer::default() }, app.config.wait_max_s);
    let batch = handle.wait(prefer.patience(most_s)).await;
    Ok(prefer.applied(most_s, show(&batch)))
}

/// Cancels a batch and answers when every process of it is dead. One that has ended is left as it is, or, with
/// `purge=true`, is forgotten with all its runs and what they wrote, but for large outputs, which are files:
/// `DELETE /files/{id}`.
#[utoipa::path(delete, path = "/batches/{id}", operation_id = "cancel_batch", tag = "batches",
    params(("id" = String, Path, format = Uuid, description = "The batch's id"),
           ("purge" = Option<bool>, Query, description = "Forget the batch and its runs once it has ended")),
    responses((status = 200, description = "The batch, which has ended", body = BatchReply),
              (status = 404, description = "There is no such batch", body = Document,
               content_type = "application/problem+json"),
              (status = 422, description = "A parameter is bad", body = Document,
               content_type = "application/problem+json"),
              (status = 503, description = "Batches can't be forgotten just now", body = Document,
               content_type = "application/problem+json")))]
pub async fn cancel(
    State(app): State<Arc<App>>,
    caller: Caller,
    PathText(id): PathText,
    mut query: Parameters,
) -> Result<Response, Problem> {
    let purge = query.purge();
    query.finish()?;
    let batch = find(&app, &caller, &id).await?.cancel().await;
    // A batch that is left to the next server has not ended.
    if purge && batch.state == BatchState::Finished {
        app.batches.forget(batch.id).await?;
    }
    Ok(show(&batch))
}

/// Lists batches without their tests, the newest first: one's own, or an admin everybody's.
#[utoipa::path(get, path = "/batches", operation_id = "list_batches", tag = "batches",
    params(("state" = Option<BatchStateName>, Query, description = "Only batches in this state"),
           ("verdict" = Option<Verdict>, Query, description = "Only batches with this verdict"),
           ("image" = Option<String>, Query, description = "Only batches of this image"),
           ("label" = Option<String>, Query, description = "Only batches with this label, as `key:value`"),
           ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before"),
           ("limit" = Option<usize>, Query, minimum = 1, maximum = 500,
            description = "50 if absent. A page has fewer batches where few of many match; `next_cursor` tells whether \
                           there are more")),
    responses((status = 200, description = "Batches", body = BatchListReply),
              (status = 422, description = "A parameter is bad", body = Document,
               content_type = "application/problem+json")))]
pub async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    mut query: Parameters,
) -> Result<Response, Problem> {
    let limit = query.number("limit", 1..=LIST_MAX, LIST_DEFAULT);
    let filter = BatchFilter::read(&mut query);
    query.finish()?;
    let before = filter.before();
    let matches = move |batch: &Batch| caller.sees(&batch.principal) && filter.matches(batch);
    let found = app.batches.list(before, limit, matches).await?;
    let next_cursor = found.until.map(|batch| batch.to_string());
    let batches = found.batches.iter().map(ListedReply::from).collect();
    Ok(Json(BatchListReply { batches, next_cursor }).into_response())
}
