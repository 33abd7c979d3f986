//! A run's life as server-sent events. Each event's id says how far its reader has come, so that one who was
//! cut off goes on where it was. The stream makes an event only when the connection has room for it: a
//! reader who is slow costs nobody anything.

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use engine::{CancelOnDrop, Watcher};
use futures_util::stream;
use run::{OutputEncoding, Run, RunId, RunState, Stream};
use serde::Serialize;

use super::auth::About;
use super::pieces::{self, PIECE_BYTES, RunJson};
use super::problem::{self, BadValue, Document, Problem};
use super::query::{NoQuery, RunPath};
use super::{App, accept};
use crate::telemetry::Watching;

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// A connection on which nothing is said for longer looks dead to whatever stands in between.
const HEARTBEAT: Duration = Duration::from_secs(15);

/// Follows one run: its state, its outputs as they come, and in the end the whole run.
///
/// The events are `state`, `stdout`, `stderr` and `result`. A run that has finished is told from the beginning,
/// too. Each event has an id; with the last one in `Last-Event-ID` the stream goes on behind it, without a gap
/// and without repeating anything. Lines that begin with a colon come when nothing else does, every 15 seconds.
#[utoipa::path(get, path = "/runs/{id}/events", operation_id = "watch_run", tag = "runs",
    params(("id" = String, Path, format = Uuid, description = "The run's id"),
           ("Last-Event-ID" = Option<String>, Header, description = "The id of the last event that was seen",
            example = "3-6-0")),
    responses(
        (status = 200, description = "The events: `state` with a `RunStateEvent`, `stdout` and `stderr` each with an \
         `OutputEvent`, and `result` with a `Run`", body = ServerSentEvent, content_type = "text/event-stream",
         example = json!({"event": "stdout", "id": "3-6-0", "data": "{\"offset\":0,\"text\":\"hello\\n\"}"})),
        (status = 204, description = "The `result` was seen already: there is nothing more"),
        (status = 404, description = "There is no such run", body = Document,
         content_type = "application/problem+json"),
        (status = 422, description = "`Last-Event-ID` is none of this run's, or a parameter is unknown",
         body = Document, content_type = "application/problem+json")))]
pub async fn watch(
    State(app): State<Arc<App>>,
    RunPath(id): RunPath,
    headers: HeaderMap,
    _: NoQuery,
) -> Result<Response, Problem> {
    let watcher = app.engine.watch(id).await?.ok_or_else(|| problem::RUN_NOT_FOUND.problem())?;
    let seen = Seen::read(&headers, &watcher)?;
    if seen.told == Told::Result {
        // What makes a browser's EventSource stop asking.
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    Ok(Follower::new(&app, watcher, seen, None).reply())
}

/// The answer to who submitted a run and wants to see it go. Hanging up before the end drops `leaving`.
pub fn of_run(app: &App, watcher: Watcher, leaving: Option<CancelOnDrop>) -> Response {
    Follower::new(app, watcher, Seen::default(), leaving).reply()
}

/// One event of a stream, as its lines say.
#[derive(Debug, utoipa::ToSchema)]
#[expect(dead_code, reason = "it describes what is written by hand")]
pub struct ServerSentEvent {
    /// What kind of event it is.
    event: String,
    /// For `Last-Event-ID`, where a stream can be taken up again.
    #[schema(required = false)]
    id: String,
    /// JSON, as the description of the call says for each kind.
    data: String,
}

/// Whether the answer to this request is to be events.
#[derive(Clone, Copy, Debug)]
pub struct WantsEvents(pub bool);

impl<S: Sync> axum::extract::FromRequestParts<S> for WantsEvents {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut axum::http::request::Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self(accept::prefers_events(&parts.headers)))
    }
}

/// What of a run's course its reader has been told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Told {
    #[default]
    Nothing,
    Queued,
    Preparing,
    Running,
    Finished,
    Result,
}

impl From<RunState> for Told {
    fn from(state: RunState) -> Self {
        match state {
            RunState::Queued => Told::Queued,
            RunState::Preparing => Told::Preparing,
            RunState::Running => Told::Running,
            RunState::Finished => Told::Finished,
        }
    }
}

/// How far a reader has come; written, it is the id of the event that brought it there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    told: Told,
    stdout: u64,
    stderr: u64,
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}-{}", self.told as u8, self.stdout, self.stderr)
    }
}

impl FromStr for Seen {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        use Told::{Finished, Nothing, Preparing, Queued, Result, Running};
        let mut numbers = text.split('-').map(|word| word.parse::<u64>().map_err(drop));
        let mut number = || numbers.next().ok_or(())?;
        let (told, stdout, stderr) = (number()?, number()?, number()?);
        let known = [Nothing, Queued, Preparing, Running, Finished, Result];
        let told = usize::try_from(told).ok().and_then(|told| known.get(told).copied()).ok_or(())?;
        if numbers.next().is_some() { Err(()) } else { Ok(Self { told, stdout, stderr }) }
    }
}

impl Seen {
    fn read(headers: &HeaderMap, watcher: &Watcher) -> Result<Self, Problem> {
        let Some(value) = headers.get(LAST_EVENT_ID).filter(|value| !value.is_empty()) else {
            return Ok(Self::default());
        };
        let seen: Option<Self> = value.to_str().ok().and_then(|text| text.parse().ok());
        seen.filter(|seen| seen.can_be_of(watcher)).ok_or_else(|| {
            let detail = "must be the id of an event of this run; leave it out to begin at the beginning";
            Problem::invalid(vec![BadValue::parameter("Last-Event-ID", detail)])
        })
    }

    fn can_be_of(&self, watcher: &Watcher) -> bool {
        let state = watcher.run().state;
        let past = |stream| self.offset(stream) > watcher.extent(stream).bytes;
        let told = self.told <= Told::from(state) || state == RunState::Finished;
        told && !past(Stream::Stdout) && !past(Stream::Stderr)
    }

    fn offset(&self, stream: Stream) -> u64 {
        match stream {
            Stream::Stdout => self.stdout,
            Stream::Stderr => self.stderr,
        }
    }

    fn read_on(&mut self, stream: Stream, bytes: u64) {
        match stream {
            Stream::Stdout => self.stdout += bytes,
            Stream::Stderr => self.stderr += bytes,
        }
    }
}

/// What `state` says.
#[derive(Debug, Serialize, utoipa::ToSchema)]
#[schema(as = RunStateEvent)]
pub struct StateSaid {
    #[schema(value_type = String, format = Uuid)]
    id: RunId,
    state: RunState,
}

/// One reader of one run.
struct Follower {
    watcher: Watcher,
    seen: Seen,
    encoding: OutputEncoding,
    /// Where one output floods, the other gets its turn all the same.
    turn: Stream,
    /// The `result`, while it is being told.
    result: Option<RunJson>,
    leaving: Option<CancelOnDrop>,
    _watching: Watching,
}

/// What comes next.
enum Next {
    Event(String),
    Result(RunJson),
    /// The server stops; the run goes on with the next one.
    Over,
}

impl Follower {
    fn new(app: &App, watcher: Watcher, seen: Seen, leaving: Option<CancelOnDrop>) -> Self {
        let encoding = watcher.run().output_encoding;
        let turn = Stream::Stdout;
        Self { watcher, seen, encoding, turn, result: None, leaving, _watching: app.telemetry.watching() }
    }

    fn reply(self) -> Response {
        let about = About::Run(self.watcher.run().id);
        let lines = stream::unfold(self, async |mut follower| {
            let bytes = follower.next().await?;
            Some((Ok::<_, Infallible>(bytes), follower))
        });
        let headers = [
            (header::CONTENT_TYPE, HeaderValue::from_static(accept::EVENTS)),
            (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
            // For proxies that would collect an answer before they pass it on.
            (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
        ];
        (Extension(about), headers, Body::from_stream(lines)).into_response()
    }

    /// The next bytes of the stream; `None` at its end.
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(result) = &mut self.result {
            let more = result.next();
            if more.is_none() {
                self.result = None;
            }
            return Some(more.unwrap_or_else(|| "\n\n".to_owned()).into());
        }
        if self.seen.told == Told::Result {
            // Told to the end: whoever hangs up now has its answer.
            if let Some(leaving) = self.leaving.take() {
                leaving.disarm();
            }
            return None;
        }
        let (watcher, seen, encoding, turn) = (&self.watcher, &mut self.seen, self.encoding, &mut self.turn);
        let news = watcher.until(|watcher| news(watcher, seen, encoding, turn));
        let Ok(next) = tokio::time::timeout(HEARTBEAT, news).await else {
            return Some(Bytes::from_static(b": still here\n\n"));
        };
        match next {
            Next::Event(event) => Some(event.into()),
            Next::Result(json) => {
                self.result = Some(json);
                Some(format!("event: result\nid: {}\ndata: ", self.seen).into())
            }
            Next::Over => None,
        }
    }
}

/// The first thing that the reader has not been told yet, and notes that it now is.
fn news(watcher: &Watcher, seen: &mut Seen, encoding: OutputEncoding, turn: &mut Stream) -> Option<Next> {
    // Looked at before the outputs: of a run that has finished, these are then whole.
    let run = watcher.run();
    let state = Told::from(run.state);
    let result_follows = state == Told::Finished && seen.told > Told::Nothing;
    if state > seen.told && !result_follows {
        seen.told = state;
        return Some(Next::Event(event("state", seen, &StateSaid { id: run.id, state: run.state })));
    }
    if state >= Told::Running {
        let first = *turn;
        for stream in [first, other(first)] {
            let offset = seen.offset(stream);
            let piece = watcher.read(stream, offset, PIECE_BYTES);
            if let Some(said) = pieces::say(offset, piece, encoding) {
                seen.read_on(stream, said.bytes);
                *turn = other(stream);
                return Some(Next::Event(event(name(stream), seen, &said)));
            }
        }
    }
    if state == Told::Finished {
        return Some(result(watcher, &run, seen));
    }
    watcher.is_over().then_some(Next::Over)
}

fn result(watcher: &Watcher, run: &Run, seen: &mut Seen) -> Next {
    seen.told = Told::Result;
    match RunJson::new(watcher.clone()) {
        Some(json) => Next::Result(json),
        None => {
            tracing::error!(run.id = %run.id, "a run can't be written as JSON");
            Next::Event(event("result", seen, &StateSaid { id: run.id, state: run.state }))
        }
    }
}

/// JSON has no line breaks of its own: the data is one line.
fn event(name: &str, seen: &Seen, data: &impl Serialize) -> String {
    let data = serde_json::to_string(data).unwrap_or_default();
    format!("event: {name}\nid: {seen}\ndata: {data}\n\n")
}

fn name(stream: Stream) -> &'static str {
    match stream {
        Stream::Stdout => "stdout",
        Stream::Stderr => "stderr",
    }
}

fn other(stream: Stream) -> Stream {
    match stream {
        Stream::Stdout => Stream::Stderr,
        Stream::Stderr => Stream::Stdout,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_says_how_far_one_has_come() {
        for (text, expected) in [
            ("0-0-0", Some(Seen::default())),
            ("3-17-4", Some(Seen { told: Told::Running, stdout: 17, stderr: 4 })),
            ("5-0-18446744073709551615", Some(Seen { told: Told::Result, stdout: 0, stderr: u64::MAX })),
            ("6-0-0", None),
            ("3-17", None),
            ("3-17-4-1", None),
            ("3--4", None),
            ("", None),
            ("x", None),
        ] {
            assert_eq!(text.parse::<Seen>().ok(), expected, "{text}");
            if let Some(seen) = expected {
                assert_eq!(seen.to_string(), text);
            }
        }
    }
}
