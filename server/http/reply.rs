//! A run as clients see it. The outputs stay in the run's own memory and are written into the JSON
//! from there: the body is the only copy that is made of them. Of large ones none is made: the body is written
//! while it is taken.

use std::collections::BTreeMap;
use std::time::Duration;
use std::{fmt, io};

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::display::Base64Display;
use base64::prelude::BASE64_STANDARD;
use engine::{Found, Shape, Watcher};
use futures_util::stream;
use jiff::Timestamp;
use run::{
    Encoding, FileId, ImageRef, LimitHit, Limits, OutputContent, OutputEncoding, Run, RunId, RunOutput,
    RunState, Timings, Usage,
};
use serde::{Serialize, Serializer};
use utoipa::ToSchema;

use super::auth::About;
use super::pieces::RunJson;
use super::problem::Problem;

/// One run, in whatever state. Fields that are not known yet are `null`.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Run)]
pub struct RunReply<'a> {
    #[schema(value_type = String, format = Uuid, example = "0193a5b0-5f3e-7c43-9d0a-8f3b1c2d4e5f")]
    id: RunId,
    state: RunState,
    /// While it waits for a slot: how many starts it takes until its own, if nobody else comes.
    #[serde(skip_serializing_if = "Option::is_none")]
    queue_position: Option<u64>,
    /// How it ended: one of a closed set. `null` until `state` is `finished`.
    #[schema(value_type = Option<OutcomeName>)]
    outcome: Option<&'static str>,
    /// Set when `outcome` is `exited`.
    exit_code: Option<u8>,
    /// Set when `outcome` is `signaled`.
    #[schema(example = "SIGSEGV")]
    signal: Option<String>,
    /// The outcome in words, with the evidence.
    message: Option<String>,
    /// Set when `outcome` is `image_failed` or `sandbox_error`: there is no verdict about the program.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<&'a run::Problem>,
    #[schema(value_type = String)]
    stdout: Text<'a>,
    stdout_encoding: Encoding,
    /// Bytes returned.
    stdout_bytes: usize,
    /// Bytes written, as far as they were seen.
    stdout_total_bytes: u64,
    stdout_truncated: bool,
    #[schema(value_type = String)]
    stderr: Text<'a>,
    stderr_encoding: Encoding,
    stderr_bytes: usize,
    stderr_total_bytes: u64,
    stderr_truncated: bool,
    /// Files that were asked for, or why they were not handed out.
    outputs: Vec<OutputReply<'a>>,
    /// What was asked for and is not there, unless it was optional.
    outputs_missing: &'a [String],
    usage: Option<&'a Usage>,
    /// The limits that were in force.
    limits: &'a Limits,
    /// Limits that were touched without ending the run.
    limit_hits: &'a [LimitHit],
    /// Limits that this host can't enforce.
    not_enforced: &'a [String],
    image: &'a ImageRef,
    timings: &'a Timings,
    #[schema(value_type = String, format = DateTime)]
    #[serde(serialize_with = "time")]
    created_at: Timestamp,
    #[schema(value_type = Option<String>, format = DateTime)]
    #[serde(serialize_with = "maybe_time")]
    started_at: Option<Timestamp>,
    #[schema(value_type = Option<String>, format = DateTime)]
    #[serde(serialize_with = "maybe_time")]
    finished_at: Option<Timestamp>,
    labels: &'a BTreeMap<String, String>,
}

/// A file that the run has left behind: up to 64 KiB as `text`, or as `base64` where it is not UTF-8; larger, or
/// beyond 1 MiB in all, as the id of a `file`; else an `error`.
#[derive(Debug, Default, Serialize, ToSchema)]
#[schema(as = RunOutput, example = json!({"path": "report.json", "size_bytes": 2, "text": "{}"}))]
pub struct OutputReply<'a> {
    /// As it was asked for: relative to the working directory, or absolute.
    path: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    size_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    text: Option<Text<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, content_encoding = "base64")]
    base64: Option<Text<'a>>,
    /// For `GET /files/{id}`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    file: Option<FileId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
}

impl<'a> OutputReply<'a> {
    fn new(output: &'a RunOutput, encoding: OutputEncoding) -> Self {
        let path = output.path.as_str();
        match &output.content {
            OutputContent::Refused(error) => Self { path, error: Some(error), ..Self::default() },
            OutputContent::Stored { id, size_bytes } => {
                Self { path, size_bytes: Some(*size_bytes), file: Some(*id), ..Self::default() }
            }
            OutputContent::Bytes(bytes) => {
                let content = Text::new(bytes, encoding);
                let (text, base64) = match content.encoding() {
                    Encoding::Utf8 => (Some(content), None),
                    Encoding::Base64 => (None, Some(content)),
                };
                Self { path, size_bytes: Some(bytes.len() as u64), text, base64, ..Self::default() }
            }
        }
    }
}

/// How a run ended.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = Outcome)]
pub enum OutcomeName {
    /// The command ended by itself.
    Exited,
    /// A signal that we did not send ended it.
    Signaled,
    /// Killed after its wall time.
    WallTimeLimit,
    /// Killed after its processor time.
    CpuTimeLimit,
    /// The kernel's OOM killer struck inside the run.
    MemoryLimit,
    /// It wrote more than an output may hold.
    OutputLimit,
    /// By a client, by a shutdown, or because the waiting client went away.
    Cancelled,
    /// The image could not be had; see `problem`.
    ImageFailed,
    /// The program could not be started.
    StartFailed,
    /// Our fault; see `problem`.
    SandboxError,
}

impl<'a> RunReply<'a> {
    /// With nothing in its outputs but all that is said about them.
    pub fn without_outputs(run: &'a Run, [stdout, stderr]: [Shape; 2]) -> Self {
        let encoding = |shape: Shape| match run.output_encoding {
            OutputEncoding::Auto => shape.encoding,
            OutputEncoding::Base64 => Encoding::Base64,
        };
        Self {
            stdout: Text::Utf8(""),
            stdout_encoding: encoding(stdout),
            stdout_bytes: stdout.bytes as usize,
            stdout_total_bytes: stdout.total,
            stdout_truncated: stdout.total > stdout.bytes,
            stderr: Text::Utf8(""),
            stderr_encoding: encoding(stderr),
            stderr_bytes: stderr.bytes as usize,
            stderr_total_bytes: stderr.total,
            stderr_truncated: stderr.total > stderr.bytes,
            ..Self::from(run)
        }
    }

    pub fn encodings(&self) -> [Encoding; 2] {
        [self.stdout_encoding, self.stderr_encoding]
    }
}

impl<'a> From<&'a Run> for RunReply<'a> {
    fn from(run: &'a Run) -> Self {
        let stdout = Text::new(&run.stdout.bytes, run.output_encoding);
        let stderr = Text::new(&run.stderr.bytes, run.output_encoding);
        let outcome = run.outcome.as_ref();
        Self {
            id: run.id,
            state: run.state,
            queue_position: run.queue_position,
            outcome: outcome.map(run::Outcome::name),
            exit_code: outcome.and_then(run::Outcome::exit_code),
            signal: outcome.and_then(run::Outcome::signal).map(run::signal_name),
            message: outcome.map(|outcome| outcome.message(&run.limits)),
            problem: run.problem.as_ref(),
            stdout_encoding: stdout.encoding(),
            stdout,
            stdout_bytes: run.stdout.bytes.len(),
            stdout_total_bytes: run.stdout.total,
            stdout_truncated: run.stdout.truncated(),
            stderr_encoding: stderr.encoding(),
            stderr,
            stderr_bytes: run.stderr.bytes.len(),
            stderr_total_bytes: run.stderr.total,
            stderr_truncated: run.stderr.truncated(),
            outputs: run.outputs.iter().map(|output| OutputReply::new(output, run.output_encoding)).collect(),
            outputs_missing: &run.outputs_missing,
            usage: run.usage.as_ref(),
            limits: &run.limits,
            limit_hits: &run.limit_hits,
            not_enforced: &run.not_enforced,
            image: &run.image,
            timings: &run.timings,
            created_at: run.created_at,
            started_at: run.started_at,
            finished_at: run.finished_at,
            labels: &run.labels,
        }
    }
}

/// An output in the form in which JSON can carry it.
#[derive(Debug)]
enum Text<'a> {
    Utf8(&'a str),
    Base64(&'a [u8]),
}

impl<'a> Text<'a> {
    fn new(bytes: &'a [u8], encoding: OutputEncoding) -> Self {
        match (encoding, std::str::from_utf8(bytes)) {
            (OutputEncoding::Auto, Ok(text)) => Text::Utf8(text),
            (OutputEncoding::Auto, Err(_)) | (OutputEncoding::Base64, _) => Text::Base64(bytes),
        }
    }

    fn encoding(&self) -> Encoding {
        match self {
            Text::Utf8(_) => Encoding::Utf8,
            Text::Base64(_) => Encoding::Base64,
        }
    }
}

impl Serialize for Text<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Text::Utf8(text) => serializer.serialize_str(text),
            Text::Base64(bytes) => serializer.collect_str(&Base64Display::new(bytes, &BASE64_STANDARD)),
        }
    }
}

pub fn time<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{time:.6}"))
}

pub fn maybe_time<S: Serializer>(time: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(known) => self::time(known, serializer),
        None => serializer.serialize_none(),
    }
}

/// The reply that shows one run.
pub fn run(status: StatusCode, found: &Found) -> Response {
    let run = &*found.run();
    let body = match found {
        Found::Whole(run) => whole(run),
        Found::Large(watcher) => bit_by_bit(watcher),
    };
    let body = match body {
        Ok(body) => body,
        Err(detail) => return super::problem::INTERNAL_ERROR.detail(detail).into_response(),
    };
    let mut reply = (status, [(header::CONTENT_TYPE, "application/json")], body).into_response();
    reply.extensions_mut().insert(About::Run(run.id));
    if let Some(timings) = server_timing(&run.timings) {
        reply.headers_mut().insert("server-timing", timings);
    }
    reply
}

fn whole(run: &Run) -> Result<Body, String> {
    let mut body = Vec::with_capacity(2048 + run.stdout.bytes.len() + run.stderr.bytes.len());
    serde_json::to_writer(&mut body, &RunReply::from(run)).map_err(|error| error.to_string())?;
    Ok(body.into())
}

fn bit_by_bit(watcher: &Watcher) -> Result<Body, String> {
    let mut json = RunJson::new(watcher.clone()).ok_or("a run can't be written as JSON")?;
    let pieces = std::iter::from_fn(move || {
        // Who is sent less than there was must not take it for all.
        if json.is_cut() {
            return Some(Err(io::Error::other("the run was forgotten meanwhile")));
        }
        json.next().map(Ok)
    });
    Ok(Body::from_stream(stream::iter(pieces)))
}

/// What a client hears that waited for the end: the run, or the problem if there is no verdict about the program.
pub fn finished(found: &Found) -> Result<Response, Problem> {
    let run = found.run();
    match &run.problem {
        None => Ok(self::run(StatusCode::OK, found)),
        Some(problem) => Err(about(problem, Some(run.id))),
    }
}

pub(super) fn about(problem: &run::Problem, id: Option<RunId>) -> Problem {
    let name = problem.problem_type.strip_prefix("/problems/").unwrap_or(&problem.problem_type);
    let kind = super::problem::Kind::named(name).unwrap_or(&super::problem::SANDBOX_FAILED);
    let said = kind.detail(problem.detail.clone());
    let said = match id {
        Some(id) => said.about_run(id),
        None => said,
    };
    match problem.retry_after_ms {
        Some(pause) => said.retry_after(Duration::from_millis(pause)),
        None => said,
    }
}

fn server_timing(timings: &Timings) -> Option<HeaderValue> {
    struct Entries<'a>(&'a Timings);
    impl fmt::Display for Entries<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            let Timings { queue_ms, image_ms, setup_ms, run_ms, teardown_ms: _ } = self.0;
            let entries = [("queue", queue_ms), ("image", image_ms), ("setup", setup_ms), ("run", run_ms)];
            let known = entries.iter().filter_map(|(name, ms)| ms.map(|ms| (name, ms)));
            for (i, (name, ms)) in known.enumerate() {
                write!(f, "{}{name};dur={ms:.3}", if i == 0 { "" } else { ", " })?;
            }
            Ok(())
        }
    }
    let entries = Entries(timings).to_string();
    HeaderValue::try_from(entries).ok().filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use run::{Outcome, Output};

    use std::sync::Arc;

    use super::*;

    fn sample() -> Run {
        Run {
            id: RunId(uuid::Uuid::nil()),
            principal: Default::default(),
            state: RunState::Finished,
            queue_position: None,
            outcome: Some(Outcome::Signaled { signal: 11 }),
            problem: None,
            stdout: Output { bytes: b"a\"\n".to_vec().into(), total: 3 },
            stderr: Output { bytes: vec![0xff, 0].into(), total: 9 },
            outputs: Arc::new(vec![
                RunOutput { path: "a".into(), content: OutputContent::Bytes(b"x".to_vec()) },
                RunOutput { path: "b".into(), content: OutputContent::Bytes(vec![255]) },
                RunOutput { path: "c".into(), content: OutputContent::Refused("is a folder".into()) },
            ]),
            outputs_missing: vec!["d".into()],
            usage: Some(Usage { wall_time_ms: 12.345, ..Usage::default() }),
            limits: Limits::default(),
            limit_hits: vec![LimitHit::FileSize],
            not_enforced: Vec::new(),
            image: ImageRef { reference: "docker.io/library/alpine:latest".into(), digest: None },
            timings: Timings { queue_ms: Some(0.1), run_ms: Some(12.0), ..Timings::default() },
            created_at: "2026-11-23T10:00:00.5Z".parse().unwrap(),
            started_at: None,
            finished_at: None,
            output_encoding: OutputEncoding::Auto,
            labels: BTreeMap::new(),
        }
    }

    #[test]
    fn a_run_is_shown_with_every_field_of_the_contract() {
        let json = serde_json::to_value(RunReply::from(&sample())).unwrap();
        for (field, value) in [
            ("outcome", serde_json::json!("signaled")),
            ("exit_code", serde_json::Value::Null),
            ("signal", serde_json::json!("SIGSEGV")),
            ("message", serde_json::json!("ended by SIGSEGV")),
            ("stdout", serde_json::json!("a\"\n")),
            (
                "outputs",
                serde_json::json!([
                    {"path": "a", "size_bytes": 1, "text": "x"},
                    {"path": "b", "size_bytes": 1, "base64": "/w=="},
                    {"path": "c", "error": "is a folder"},
                ]),
            ),
            ("outputs_missing", serde_json::json!(["d"])),
            ("stdout_encoding", serde_json::json!("utf-8")),
            ("stdout_truncated", serde_json::json!(false)),
            ("stderr", serde_json::json!("/wA=")),
            ("stderr_encoding", serde_json::json!("base64")),
            ("stderr_bytes", serde_json::json!(2)),
            ("stderr_truncated", serde_json::json!(true)),
            ("limit_hits", serde_json::json!(["file_size"])),
            ("created_at", serde_json::json!("2026-11-23T10:00:00.500000Z")),
        ] {
            assert_eq!(json[field], value, "{field}");
        }
    }

    #[test]
    fn base64_can_be_asked_for() {
        let run = Run { output_encoding: OutputEncoding::Base64, ..sample() };
        let json = serde_json::to_value(RunReply::from(&run)).unwrap();
        assert_eq!((&json["stdout"], &json["stdout_encoding"]), (&"YSIK".into(), &"base64".into()));
    }

    #[test]
    fn every_outcome_is_in_the_schema() {
        use utoipa::PartialSchema;
        let schema = serde_json::to_value(OutcomeName::schema()).unwrap();
        let names: Vec<_> =
            schema["enum"].as_array().unwrap().iter().filter_map(|name| name.as_str()).collect();
        assert_eq!(names, Outcome::NAMES);
    }

    #[test]
    fn the_timing_header_has_what_is_known() {
        assert_eq!(server_timing(&sample().timings).unwrap(), "queue;dur=0.100, run;dur=12.000");
        assert_eq!(server_timing(&Timings::default()), None);
    }
}
