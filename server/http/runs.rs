//! Runs: the reason for everything else.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use engine::RunHandle;
use run::{Outcome, Run, RunId, RunState};
use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;

use super::auth::Caller;
use super::body::JsonBody;
use super::create_run::CreateRun;
use super::events::{self, WantsEvents};
use super::prefer::Prefer;
use super::problem::{self, Document, Problem};
use super::query::{Parameters, RunPath};
use super::reply::{self, OutcomeName, RunReply};
use super::{App, files};

const LIST_DEFAULT: usize = 50;
const LIST_MAX: usize = 500;

/// A page ends early where its runs' outputs are larger than this together: the reply holds a copy of them,
/// up to six times as long where every byte has to be escaped.
const PAGE_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Runs one command in a fresh sandbox and answers when it has ended.
///
/// Whatever the program did, a run that took place is `200`. With `Prefer: respond-async` the reply is
/// `202` at once, with `Prefer: wait=N` after at most that many seconds; `GET` the `Location` for the end.
/// With `Accept: text/event-stream` the reply is the events of `GET /runs/{id}/events`, as they come.
/// A client that goes away while it waits without such a preference cancels its run.
#[utoipa::path(post, path = "/runs", operation_id = "create_run", tag = "runs", request_body = CreateRun,
    params(("Prefer" = Option<String>, Header, description = "`respond-async`, or `wait=N` in seconds; with \
            `handling=strict` a run that would not start within N is refused")),
    responses(
        (status = 200, description = "The run took place; see `outcome`",
         content((RunReply = "application/json"), (String = "text/event-stream")),
         headers(("Server-Timing" = String, description = "Where the time went"))),
        (status = 202, description = "The run goes on; `GET` the `Location`", body = RunReply,
         headers(("Location" = String, description = "The run's path"))),
        (status = 422, description = "A value is bad, or the image does not exist or is not allowed",
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
    caller: Caller,
    prefer: Prefer,
    WantsEvents(events): WantsEvents,
    body: JsonBody,
) -> Result<Response, Problem> {
    let JsonBody { value, share } = body;
    let spec = CreateRun::spec(value, &app.allowed, &caller.principal, &files::lookup(&app, &caller))?;
    if let Some(wait) = prefer.wait.filter(|_| prefer.strict) {
        app.engine.check_wait(&spec.principal.name, wait)?;
    }
    let handle = app.engine.submit(spec)?;
    let most_s = app.config.wait_max_s;
    let patience = prefer.patience(most_s);
    if events {
        let leaving = patience.is_none().then(|| handle.cancel_on_drop());
        hold_to_the_end(&handle, share);
        return Ok(events::of_new_run(&app, handle.watch(), leaving));
    }
    let Some(patience) = patience else {
        let leaving = handle.cancel_on_drop();
        let run = handle.wait(None).await;
        leaving.disarm();
        return reply::finished(&run);
    };
    hold_to_the_end(&handle, share);
    let run = handle.wait(Some(patience)).await;
    let reply = if run.state == RunState::Finished && !patience.is_zero() {
        reply::finished(&run)?
    } else {
        accepted(&run)
    };
    Ok(prefer.applied(most_s, reply))
}

/// What a request holds in memory counts for as long as its run has not ended, whoever waits for it.
fn hold_to_the_end(handle: &RunHandle, share: Option<OwnedSemaphorePermit>) {
    let Some(share) = share else { return };
    let waiting = handle.clone();
    tokio::spawn(async move {
        waiting.wait(None).await;
        drop(share);
    });
}

fn accepted(run: &Run) -> Response {
    let mut reply = reply::run(StatusCode::ACCEPTED, run);
    if let Ok(location) = HeaderValue::try_from(format!("/runs/{}", run.id)) {
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
    query: Parameters,
) -> Result<Response, Problem> {
    query.finish()?;
    let Some(wait) = prefer.wait else { return show(app.engine.get(id)) };
    let prefer = Prefer { wait: Some(wait), ..Prefer::default() };
    let most_s = app.config.wait_max_s;
    show(app.engine.wait(id, prefer.patience(most_s)).await).map(|reply| prefer.applied(most_s, reply))
}

fn show(run: Option<Arc<Run>>) -> Result<Response, Problem> {
    run.map(|run| reply::run(StatusCode::OK, &run)).ok_or_else(|| problem::RUN_NOT_FOUND.problem())
}

/// Cancels a run and answers when every process of it is dead. One that has ended is left as it is.
#[utoipa::path(delete, path = "/runs/{id}", operation_id = "cancel_run", tag = "runs",
    params(("id" = String, Path, format = Uuid, description = "The run's id")),
    responses((status = 200, description = "The run, which has ended", body = RunReply),
              (status = 404, description = "There is no such run", body = Document,
               content_type = "application/problem+json")))]
pub async fn cancel(
    State(app): State<Arc<App>>,
    RunPath(id): RunPath,
    query: Parameters,
) -> Result<Response, Problem> {
    query.finish()?;
    show(app.engine.cancel(id).await)
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
            description = "50 if absent. A page has fewer runs where their outputs are large; `next_cursor` tells")),
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
    // One more than asked for tells whether there is another page.
    let mut runs =
        app.engine.list(limit + 1, |run| caller.principal.sees(&run.principal) && filter.matches(run));
    let most = limit.min(fitting(&runs));
    let next_cursor = (runs.len() > most).then(|| runs.truncate(most)).and_then(|()| runs.last());
    let next_cursor = next_cursor.map(|run| run.id.to_string());
    let runs = runs.iter().map(|run| RunReply::from(&**run)).collect();
    Ok(Json(RunListReply { runs, next_cursor }).into_response())
}

/// How many of these runs one page can hold: at least one, or there would be no way past it.
fn fitting(runs: &[Arc<Run>]) -> usize {
    let mut bytes = 0_usize;
    let fits = |run: &&Arc<Run>| {
        bytes += run.stdout.bytes.len() + run.stderr.bytes.len();
        bytes <= PAGE_BYTES_MAX
    };
    runs.iter().take_while(fits).count().max(1)
}

/// What `GET /runs` was asked to leave out.
#[derive(Debug, Default)]
struct Filter {
    state: Option<RunState>,
    outcome: Option<&'static str>,
    image: Option<String>,
    label: Option<(String, String)>,
    before: Option<RunId>,
}

impl Filter {
    fn read(query: &mut Parameters) -> Self {
        let states = [
            ("queued", RunState::Queued),
            ("preparing", RunState::Preparing),
            ("running", RunState::Running),
            ("finished", RunState::Finished),
        ];
        let label = query.take("label").and_then(|text| match text.split_once(':') {
            Some((key, value)) => Some((key.to_owned(), value.to_owned())),
            None => {
                query.refuse("label", "must be like key:value");
                None
            }
        });
        let before = query.take("cursor").and_then(|text| {
            let id = text.parse().ok().map(RunId);
            if id.is_none() {
                query.refuse("cursor", "must be the `next_cursor` of an earlier page");
            }
            id
        });
        Self {
            state: query.choice("state", &states),
            outcome: query.choice("outcome", &Outcome::NAMES.map(|name| (name, name))),
            image: query.take("image"),
            label,
            before,
        }
    }

    fn matches(&self, run: &Run) -> bool {
        let outcome = run.outcome.as_ref().map(Outcome::name);
        self.state.is_none_or(|state| run.state == state)
            && self.outcome.is_none_or(|wanted| outcome == Some(wanted))
            && self.image.as_ref().is_none_or(|image| run.image.reference == *image)
            && self.label.as_ref().is_none_or(|(key, value)| run.labels.get(key) == Some(value))
            && self.before.is_none_or(|before| run.id < before)
    }
}
