//! Runs: the reason for everything else.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use engine::{Found, Key, RunHandle, Taken};
use run::{Run, RunId, RunState};
use serde::Serialize;

use super::auth::Caller;
use super::body::{JsonBody, Share};
use super::create_run::CreateRun;
use super::events::{self, ServerSentEvent, WantsEvents};
use super::filter::Filter;
use super::idempotency::IdempotencyKey;
use super::prefer::Prefer;
use super::problem::{self, Document, Problem};
use super::query::{NoQuery, Parameters, RunPath};
use super::reply::{self, OutcomeName, RunReply};
use super::{App, files};
use crate::traces::Place;

const LIST_DEFAULT: usize = 50;
const LIST_MAX: usize = 500;

const STAYS_QUEUED: &str = "the server is being stopped before the run has started; it stays queued and starts when \
                            the server is back: ask again with the same key";
const KEY_OUTLIVES_RUN: &str = "the run that was made under this key has been forgotten, and is not made again; use \
                                another key";

/// A page ends early where its runs' outputs are larger than this together: the reply holds a copy of them,
/// up to six times as long where every byte has to be escaped.
const PAGE_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// Runs one command in a fresh sandbox and answers when it has ended.
///
/// Whatever the program did, a run that took place is `200`. With `Prefer: respond-async` the reply is
/// `202` at once, with `Prefer: wait=N` after at most that many seconds; `GET` the `Location` for the end.
/// With `Accept: text/event-stream` the reply is the events of `GET /runs/{id}/events`, as they come.
/// A client that goes away while it waits without such a preference or a key cancels its run.
#[utoipa::path(post, path = "/runs", operation_id = "create_run", tag = "runs", request_body = CreateRun,
    params(("Prefer" = Option<String>, Header, description = "`respond-async`, or `wait=N` in seconds; with \
            `handling=strict` a run that would not start within N is refused"),
           ("Idempotency-Key" = Option<String>, Header, max_length = 255,
            description = "The client's own name for this request, good for 24 hours: the same request under the same \
                           key is the same run, whether it still goes or has ended, also after a restart")),
    responses(
        (status = 200, description = "The run took place; see `outcome`",
         content((RunReply = "application/json"), (ServerSentEvent = "text/event-stream")),
         headers(("Server-Timing" = String, description = "Where the time went"))),
        (status = 202, description = "The run goes on; `GET` the `Location`", body = RunReply,
         headers(("Location" = String, description = "The run's path"))),
        (status = 404, description = "The run of this key has been forgotten", body = Document,
         content_type = "application/problem+json"),
        (status = 422, description = "A value is bad, the image does not exist or is not allowed, or the key stands for \
         another request",
         body = Document, content_type = "application/problem+json"),
        (status = 429, description = "The queue is full, or the key allows no more", body = Document, content_type = "application/problem+json",
         headers(("Retry-After" = u64, description = "Seconds"))),
        (status = 500, description = "The sandbox failed: our fault", body = Document,
         content_type = "application/problem+json"),
        (status = 502, description = "The registry failed", body = Document, content_type = "application/problem+json"),
        (status = 503, description = "The server is stopping, or its disk is full", body = Document,
         content_type = "application/problem+json"),
        (status = 504, description = "The pull took too long", body = Document,
         content_type = "application/problem+json")))]
pub async fn create(
    State(app): State<Arc<App>>,
    Extension(place): Extension<Option<Place>>,
    caller: Caller,
    prefer: Prefer,
    WantsEvents(events): WantsEvents,
    key: IdempotencyKey,
    body: JsonBody,
) -> Result<Response, Problem> {
    let JsonBody { value, share } = body;
    let key = key.of(caller.principal.name.as_str(), &value);
    let patience = prefer.patience(app.config.wait_max_s);
    // Whoever may come back for the run is promised it; a client that just waits takes it along when it goes.
    let promised = patience.is_some() || key.is_some();
    let taken = match app.engine.known(key.as_ref())? {
        // Whatever it named then, it is not asked for now: files may have gone, and maxima have changed.
        Some(id) => Taken::Known(id),
        None => take(&app, &caller, value, prefer, promised.then_some(key)).await?,
    };
    let handle = match taken {
        Taken::New(handle) => handle,
        Taken::Known(id) => match app.engine.live(id) {
            Some(handle) => handle,
            None => return again(&app, id, events, prefer).await,
        },
    };
    app.traces.follow(&handle, place);
    hold_to_the_end(&handle, share);
    let leaving = (!promised).then(|| handle.cancel_on_drop());
    if events {
        return Ok(events::of_run(&app, handle.watch(), leaving));
    }
    let run = handle.wait(patience).await;
    if let Some(leaving) = leaving {
        leaving.disarm();
    }
    answer(&app, &run.into(), prefer)
}

/// Takes what nobody has asked for before. Where it is promised, `promised` has its key, if there is one.
async fn take(
    app: &App,
    caller: &Caller,
    body: serde_json::Value,
    prefer: Prefer,
    promised: Option<Option<Key>>,
) -> Result<Taken, Problem> {
    let settings = app.settings.now();
    let spec = CreateRun::spec(body, &settings.allowed, &caller.principal, &files::lookup(app, caller))?;
    if let Some(wait) = prefer.wait.filter(|_| prefer.strict) {
        app.engine.check_wait(&spec.principal, &spec.limits, wait)?;
    }
    Ok(match promised {
        None => Taken::New(app.engine.submit(spec)?),
        Some(key) => app.engine.promise(spec, key).await?,
    })
}

/// The answer about a run that was waited for as long as the client wanted.
fn answer(app: &App, found: &Found, prefer: Prefer) -> Result<Response, Problem> {
    let (most_s, run) = (app.config.wait_max_s, found.run());
    let reply = match prefer.patience(most_s) {
        Some(patience) if patience.is_zero() => accepted(found),
        _ if run.state == RunState::Finished => reply::finished(found)?,
        Some(_) => accepted(found),
        None => return Err(problem::DRAINING.detail(STAYS_QUEUED).about_run(run.id)),
    };
    Ok(prefer.applied(most_s, reply))
}

/// The answer about a run that was asked for before, and has ended.
async fn again(app: &App, id: RunId, events: bool, prefer: Prefer) -> Result<Response, Problem> {
    let forgotten = || problem::RUN_NOT_FOUND.detail(KEY_OUTLIVES_RUN).about_run(id);
    if events {
        let watcher = app.engine.watch(id).await?.ok_or_else(forgotten)?;
        return Ok(events::of_run(app, watcher, None));
    }
    let found = app.engine.find(id).await?.ok_or_else(forgotten)?;
    answer(app, &found, prefer)
}

/// What a request holds in memory counts for as long as its run has not ended, whoever waits for it.
fn hold_to_the_end(handle: &RunHandle, share: Option<Share>) {
    // A small body has none, and no task has to be made for it.
    let Some(share) = share else { return };
    let waiting = handle.clone();
    tokio::spawn(async move {
        waiting.wait(None).await;
        drop(share);
    });
}

fn accepted(found: &Found) -> Response {
    let mut reply = reply::run(StatusCode::ACCEPTED, found);
    if let Ok(location) = HeaderValue::try_from(format!("/runs/{}", found.run().id)) {
        reply.headers_mut().insert(header::LOCATION, location);
    }
    reply
}

/// Shows one run, in whatever state; with `Prefer: wait=N` as soon as it has ended, or after N seconds.
#[utoipa::path(get, path = "/runs/{id}", operation_id = "get_run", tag = "runs",
    params(("id" = String, Path, format = Uuid, description = "The run's id"),
           ("Prefer" = Option<String>, Header, description = "`wait=N` in seconds")),
    responses((status = 200, description = "The run", body = RunReply),
              (status = 404, description = "There is no such run", body = Document,
               content_type = "application/problem+json")))]
pub async fn get(
    State(app): State<Arc<App>>,
    RunPath(id): RunPath,
    prefer: Prefer,
    _: NoQuery,
) -> Result<Response, Problem> {
    let Some(wait) = prefer.wait else { return show(app.engine.find(id).await?.as_ref()) };
    let prefer = Prefer { wait: Some(wait), ..Prefer::default() };
    let most_s = app.config.wait_max_s;
    let found = match app.engine.live(id) {
        Some(handle) => Some(handle.wait(prefer.patience(most_s)).await.into()),
        None => app.engine.find(id).await?,
    };
    show(found.as_ref()).map(|reply| prefer.applied(most_s, reply))
}

fn show(found: Option<&Found>) -> Result<Response, Problem> {
    found.map(|found| reply::run(StatusCode::OK, found)).ok_or_else(|| problem::RUN_NOT_FOUND.problem())
}

/// Cancels a run and answers when every process of it is dead. One that has ended is left as it is, or, with
/// `purge=true`, is forgotten with all that it wrote, but for large outputs, which are files: `DELETE /files/{id}`.
#[utoipa::path(delete, path = "/runs/{id}", operation_id = "cancel_run", tag = "runs",
    params(("id" = String, Path, format = Uuid, description = "The run's id"),
           ("purge" = Option<bool>, Query, description = "Forget the run once it has ended")),
    responses((status = 200, description = "The run, which has ended", body = RunReply),
              (status = 404, description = "There is no such run", body = Document,
               content_type = "application/problem+json"),
              (status = 422, description = "A parameter is bad", body = Document,
               content_type = "application/problem+json"),
              (status = 503, description = "Runs can't be forgotten just now", body = Document,
               content_type = "application/problem+json")))]
pub async fn cancel(
    State(app): State<Arc<App>>,
    RunPath(id): RunPath,
    mut query: Parameters,
) -> Result<Response, Problem> {
    let purge = query.purge();
    query.finish()?;
    let run = app.engine.cancel(id).await?;
    // A run that is left to the next server has not ended.
    if purge && run.as_ref().is_some_and(|run| run.state == RunState::Finished) {
        app.engine.forget(id).await?;
    }
    show(run.map(Found::from).as_ref())
}

/// Some of the server's runs, the newest first.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = RunList)]
pub struct RunListReply<'a> {
    runs: Vec<RunReply<'a>>,
    /// Where the next page begins: give it back as `cursor`. `null` where there is none.
    next_cursor: Option<String>,
}

/// Lists runs, the newest first: one's own, or an admin everybody's.
#[utoipa::path(get, path = "/runs", operation_id = "list_runs", tag = "runs",
    params(("state" = Option<RunState>, Query, description = "Only runs in this state"),
           ("outcome" = Option<OutcomeName>, Query, description = "Only runs that ended so"),
           ("image" = Option<String>, Query, description = "Only runs of this image"),
           ("label" = Option<String>, Query, description = "Only runs with this label, as `key:value`"),
           ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before"),
           ("limit" = Option<usize>, Query, minimum = 1, maximum = 500,
            description = "50 if absent. A page has fewer runs where their outputs are large or few of many match; \
                           `next_cursor` tells whether there are more")),
    responses((status = 200, description = "Runs", body = RunListReply),
              (status = 422, description = "A parameter is bad", body = Document,
               content_type = "application/problem+json")))]
pub async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    mut query: Parameters,
) -> Result<Response, Problem> {
    let limit = query.number("limit", 1..=LIST_MAX, LIST_DEFAULT);
    let filter = Filter::read(&mut query);
    query.finish()?;
    let before = filter.before();
    let matches = move |run: &Run| caller.sees(&run.principal) && filter.matches(run);
    let found = app.engine.list(before, limit, PAGE_BYTES_MAX, matches).await?;
    let next_cursor = found.until.map(|run| run.to_string());
    let runs = found.runs.iter().map(|run| RunReply::from(&**run)).collect();
    Ok(Json(RunListReply { runs, next_cursor }).into_response())
}
