//! Every error that a client can meet, as an RFC 9457 problem document. The list of kinds is closed:
//! `openapi/problems.md` shows all of them and `GET /problems/{name}` explains each.

use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use run::RunId;
use serde::Serialize;
use utoipa::ToSchema;

pub const MEDIA_TYPE: &str = "application/problem+json";

macro_rules! kinds {
    ($($kind:ident = $name:literal, $status:literal, $title:literal, $about:literal;)*) => {
        $(pub const $kind: Kind = Kind { name: $name, status: $status, title: $title, about: $about };)*
        /// Every kind, in the order of the documentation.
        pub const ALL: &[&Kind] = &[$(&$kind),*];
    };
}

kinds! {
    NOT_JSON = "not-json", 400, "The body is not JSON",
        "The body could not be read as one JSON value. Duplicate keys, a byte order mark, more than 32 levels \
         of nesting and anything after the value count as not JSON.";
    UNAUTHORIZED = "unauthorized", 401, "A key is needed",
        "The server has keys, and the request shows none that is good. Send `Authorization: Bearer KEY`; an operator \
         makes keys with `sandglass key create`.";
    INSUFFICIENT_SCOPE = "insufficient-scope", 403, "The key does not allow that",
        "The key is good, but lacks the scope that the call needs. An operator can make another with \
         `sandglass key create --scope`.";
    FOREIGN_ORIGIN = "foreign-origin", 403, "Requests from other web pages are refused",
        "A browser sent the request for a page of another origin, which may not run code here. An operator can \
         allow an origin with `allowed_origins`.";
    UNKNOWN_HOST = "unknown-host", 403, "The server does not answer to that name",
        "The `Host` header is neither an IP address, nor `localhost`, nor a name that the operator listed in \
         `allowed_hosts`. This keeps web pages from reaching the server by a name of their own.";
    NOT_FOUND = "not-found", 404, "There is nothing at that path",
        "No call has that path. `GET /openapi.json` lists every call.";
    RUN_NOT_FOUND = "run-not-found", 404, "There is no such run",
        "No run has that id, or it ended so long ago that it has been forgotten.";
    BATCH_NOT_FOUND = "batch-not-found", 404, "There is no such batch",
        "No batch of yours has that id, or it ended so long ago that it has been forgotten.";
    FILE_NOT_FOUND = "file-not-found", 404, "There is no such file",
        "You have uploaded no file of that id, or it has been dropped since; upload it again.";
    IMAGE_NOT_STORED = "image-not-stored", 404, "The image is not in the store",
        "The server has no such image. `POST /images` pulls one; `GET /images` lists those that are there.";
    METHOD_NOT_ALLOWED = "method-not-allowed", 405, "The path does not offer that method",
        "The `Allow` header of the reply lists the methods that the path offers.";
    NOT_ACCEPTABLE = "not-acceptable", 406, "The reply is in no form that the request accepts",
        "Replies are `application/json`, and `text/event-stream` where a run is followed. Name the one you can read \
         in `Accept`, or send no such header.";
    BODY_TIMEOUT = "body-timeout", 408, "The body did not arrive in time",
        "The client must send the whole body within `body_timeout_ms`.";
    BODY_TOO_LARGE = "body-too-large", 413, "The body is too large",
        "The body is larger than `body_bytes_max` allows.";
    UNSUPPORTED_MEDIA_TYPE = "unsupported-media-type", 415, "The body must be JSON",
        "Send `Content-Type: application/json`. An absent type and curl's default are read as JSON too.";
    NOT_A_FORM = "not-a-form", 400, "The body is not a file",
        "The body broke off, or it says that it is a form and is none with exactly one part.";
    RANGE_NOT_SATISFIABLE = "range-not-satisfiable", 416, "The output has no such bytes",
        "The `Range` begins behind the last byte that the run has written. While it goes there may be more later.";
    INVALID_REQUEST = "invalid-request", 422, "The request has values that can't be accepted",
        "Each entry of `errors` names one value, by JSON pointer or by parameter, and says what is allowed.";
    KEY_REUSED = "idempotency-key-reused", 422, "The key stands for another request",
        "Another body was sent under the same `Idempotency-Key` within the last 24 hours. Send that body again for that \
         run, or use another key for another run.";
    IMAGE_NOT_FOUND = "image-not-found", 422, "The image does not exist",
        "The registry has no image of that name, tag or digest, or hides it without credentials.";
    IMAGE_NOT_ALLOWED = "image-not-allowed", 422, "The image is not allowed here",
        "The operator of this server does not allow the image or its registry.";
    IMAGE_NOT_PRESENT = "image-not-present", 422, "The image is not in the store, and must not be pulled",
        "The request says `pull: never`. Pull the image first with `POST /images`, or allow the pull.";
    IMAGE_UNAUTHORIZED = "image-unauthorized", 422, "The registry wants other credentials",
        "The registry refused the server's credentials for this image, or it has none.";
    BAD_IMAGE = "bad-image", 422, "The image is broken",
        "The image's manifest, configuration or a layer is not what its digest or the OCI specification says.";
    IMAGE_PLATFORM = "image-platform", 422, "The image is not for this machine",
        "The image has no variant for this machine's operating system and processor.";
    IMAGE_TOO_LARGE = "image-too-large", 422, "The image is too large",
        "The image or a layer of it is larger than the server accepts.";
    HEADERS_TOO_LARGE = "headers-too-large", 431, "The headers are too large",
        "A request may have 32 KiB of address and headers, and 100 headers.";
    QUEUE_FULL = "queue-full", 429, "The queue is full",
        "Every slot is busy and as many runs wait as the server lets wait, batches none of whose runs has a slot among \
         them. Try again after `retry_after_ms`.";
    FILES_FAILED = "files-failed", 500, "The store of files failed",
        "A file could not be written or read. This is the server's fault, not the file's.";
    QUOTA_EXCEEDED = "quota-exceeded", 429, "Too many runs of this principal wait",
        "As many runs of the key's principal wait for a slot as the key allows, batches none of whose runs has a slot \
         among them. Try again after `retry_after_ms`.";
    RATE_LIMITED = "rate-limited", 429, "Too many runs in a short time",
        "The key allows so many runs per minute, of which a sixth may come at once. Try again after `retry_after_ms`.";
    WAIT_TOO_LONG = "wait-too-long", 429, "The run would not start within the time to wait",
        "The request says `Prefer: wait=N, handling=strict`, and at the rate at which slots come back lately the run, or \
         the batch's first, would still be waiting then. Nothing was taken. Without `handling=strict` it would be.";
    SANDBOX_FAILED = "sandbox-failed", 500, "The sandbox failed",
        "The sandbox could not be set up or was lost. This is the server's fault, not the program's; `detail` \
         names the step.";
    STORE_FAILED = "store-failed", 500, "The image store failed",
        "The image could not be written down or unpacked. This is the server's fault, not the image's.";
    INTERRUPTED = "interrupted", 500, "The server stopped while the run was going",
        "The server or its launcher died before the run ended, and the run died with it. Of a batch, tests that have \
         a result keep it.";
    PREPARED_LOST = "prepared-lost", 500, "What the batch stands on is gone",
        "The batch waited over something `prepared` when its server ended, and the next one could not find that again: \
         the machine was restarted, say, or the image below is gone. No test of it was run. Send it again with `prepare`.";
    INTERNAL_ERROR = "internal-error", 500, "The server has a bug",
        "Something that should not happen did. The server's log has more under the request id in `instance`.";
    REGISTRY_FAILED = "registry-failed", 502, "The registry failed",
        "The registry could not be reached or answered with an error.";
    REGISTRY_RATE_LIMITED = "registry-rate-limited", 502, "The registry limits our pulls",
        "The registry asks for a pause. Try again after `retry_after_ms`, or give the server credentials.";
    DRAINING = "draining", 503, "The server is stopping",
        "The server is being stopped and takes no more work. Send the request to another one, or later.";
    LAUNCHER_LOST = "launcher-lost", 503, "The server lost its launcher",
        "The process that starts sandboxes has died. The server is about to stop and be started again.";
    STORE_FULL = "store-full", 503, "The image store's disk is full",
        "There is no room for the image. Drop images with `DELETE /images/{reference}`, or make room.";
    FILES_FULL = "files-full", 503, "There is no room for the file",
        "The store of files is full of what runs use just now. Try again later, or ask the operator for more room. Of \
         a batch: there can never be as much room as its `prepare` may leave behind beside the batch's own files, or it has waited for that, and in \
         ten minutes nothing was given back, or not enough while it kept others waiting; less `disk_bytes` need less.";
    RUN_STORE_FAILED = "run-store-failed", 503, "Runs can't be written down",
        "The file in which the server remembers runs can't be written or read just now; its log says why. Runs for \
         which the client waits still take place; send others to another server, or later.";
    PULL_TIMEOUT = "pull-timeout", 504, "The pull took too long",
        "The image did not arrive within the server's pull deadline. What has arrived is not lost; try again.";
}

/// One entry of the list above.
#[derive(Debug, PartialEq, Eq)]
pub struct Kind {
    pub name: &'static str,
    pub status: u16,
    pub title: &'static str,
    pub about: &'static str,
}

impl Kind {
    /// The problem's `type`: where it explains itself.
    pub fn path(&self) -> String {
        format!("/problems/{}", self.name)
    }

    pub fn named(name: &str) -> Option<&'static Kind> {
        ALL.iter().copied().find(|kind| kind.name == name)
    }

    /// A problem of this kind with words for the person who must act on it.
    pub fn detail(&'static self, detail: impl Into<String>) -> Problem {
        Problem { kind: self, detail: detail.into(), errors: Vec::new(), retry_after: None, run_id: None }
    }

    /// A problem of this kind about which there is nothing more to say.
    pub fn problem(&'static self) -> Problem {
        self.detail(self.about)
    }
}

/// One problem, on its way to a client. [`document`](Problem::document) gives it its request id.
#[derive(Clone, Debug)]
pub struct Problem {
    pub kind: &'static Kind,
    pub detail: String,
    pub errors: Vec<BadValue>,
    pub retry_after: Option<Duration>,
    pub run_id: Option<RunId>,
}

/// One value that can't be accepted: where it stands and what would be.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, ToSchema)]
pub struct BadValue {
    /// Where in the body it stands, as a JSON pointer (RFC 6901).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pointer: Option<String>,
    /// Which part of the path, query or headers it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parameter: Option<String>,
    pub detail: String,
}

impl BadValue {
    pub fn at(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { pointer: Some(pointer.into()), parameter: None, detail: detail.into() }
    }

    pub fn parameter(name: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { pointer: None, parameter: Some(name.into()), detail: detail.into() }
    }

    fn place(&self) -> &str {
        self.pointer.as_deref().or(self.parameter.as_deref()).unwrap_or_default()
    }
}

/// An error, as RFC 9457 writes it (`application/problem+json`).
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Problem)]
pub struct Document {
    /// A stable path that explains this kind of problem, such as `/problems/image-not-found`.
    #[serde(rename = "type")]
    #[schema(pattern = "^/problems/[a-z-]+$", example = "/problems/invalid-request")]
    problem_type: String,
    title: &'static str,
    /// The HTTP status.
    #[schema(minimum = 400, maximum = 599)]
    status: u16,
    /// What to do about it.
    detail: String,
    /// The request's id: look for it in the server's log.
    instance: String,
    /// Every value that can't be accepted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schema(required = false)]
    errors: Vec<BadValue>,
    /// When it is worth trying again.
    #[serde(skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
    /// The run that this is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = Uuid)]
    run_id: Option<RunId>,
}

impl Problem {
    /// Every bad value of one request, told at once.
    pub fn invalid(errors: Vec<BadValue>) -> Self {
        let mut detail =
            errors.iter().take(3).map(|e| format!("{}: {}", e.place(), e.detail)).collect::<Vec<_>>();
        if errors.len() > 3 {
            detail.push(format!("and {} more", errors.len() - 3));
        }
        Problem { errors, ..INVALID_REQUEST.detail(detail.join("; ")) }
    }

    pub fn retry_after(self, pause: Duration) -> Self {
        Problem { retry_after: Some(pause), ..self }
    }

    pub fn about_run(self, id: RunId) -> Self {
        Problem { run_id: Some(id), ..self }
    }

    pub fn document(&self, request_id: &str) -> Document {
        Document {
            problem_type: self.kind.path(),
            title: self.kind.title,
            status: self.kind.status,
            detail: self.detail.clone(),
            instance: request_id.to_owned(),
            errors: self.errors.clone(),
            retry_after_ms: self.retry_after.map(|pause| pause.as_millis() as u64),
            run_id: self.run_id,
        }
    }

    /// The whole reply, when the request's id is known.
    pub fn into_reply(self, request_id: &str) -> Response {
        let body = serde_json::to_vec(&self.document(request_id)).unwrap_or_default();
        let mut reply = (self.status(), [(header::CONTENT_TYPE, MEDIA_TYPE)], body).into_response();
        if let Some(pause) = self.retry_after {
            // Whole seconds, rounded up: a client that comes back earlier would be refused again.
            let seconds = pause.as_millis().div_ceil(1000).max(1) as u64;
            reply.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        reply
    }

    pub fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.kind.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

/// The handler's half of a reply: the layer that knows the request's id writes the document.
impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut reply = self.status().into_response();
        reply.extensions_mut().insert(self);
        reply
    }
}

/// `openapi/problems.md`, as it must be.
pub fn list() -> String {
    let mut page = String::from(
        "# Problems\n\nEvery error is `application/problem+json` (RFC 9457). `type` is one of these paths; `GET` it \
         and it explains itself. This page is generated by `sandglass openapi --problems`.\n\n\
         | type | status | means |\n|---|---|---|\n",
    );
    for kind in ALL {
        page += &format!("| `{}` | {} | **{}.** {} |\n", kind.path(), kind.status, kind.title, kind.about);
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_list_is_the_list() {
        assert_eq!(include_str!("../../openapi/problems.md"), list(), "run `sandglass openapi --problems`");
    }

    #[test]
    fn names_are_unique_and_statuses_are_errors() {
        for kind in ALL {
            assert!((400..600).contains(&kind.status), "{}", kind.name);
            assert_eq!(ALL.iter().filter(|other| other.name == kind.name).count(), 1, "{}", kind.name);
            assert_eq!(Kind::named(kind.name), Some(*kind));
        }
    }

    #[test]
    fn many_bad_values_are_all_told() {
        let problem =
            Problem::invalid((0..5).map(|i| BadValue::at(format!("/args/{i}"), "is long")).collect());
        assert_eq!(problem.detail, "/args/0: is long; /args/1: is long; /args/2: is long; and 2 more");
        assert_eq!(problem.document("r").errors.len(), 5);
    }

    #[test]
    fn a_pause_is_told_in_whole_seconds_rounded_up() {
        for (pause_ms, seconds) in [(1, "1"), (1000, "1"), (1001, "2")] {
            let reply = QUEUE_FULL.problem().retry_after(Duration::from_millis(pause_ms)).into_reply("r");
            assert_eq!(reply.headers()[header::RETRY_AFTER], seconds);
        }
    }
}
