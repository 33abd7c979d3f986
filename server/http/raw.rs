//! One output of one run as the bytes that it is, or a range of them; while the run goes, as far as they are.

use std::convert::Infallible;
use std::ops::Range;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use engine::{Extent, Watcher};
use futures_util::stream;
use run::Stream;

use super::App;
use super::pieces::PIECE_BYTES;
use super::problem::{self, Document, Problem};
use super::query::{NoQuery, RunPath};

/// The call for one of the two outputs.
macro_rules! output {
    ($name:ident, $path:literal, $operation:literal, $stream:expr, $what:literal) => {
        #[doc = $what]
        ///
        /// While the run goes, these are the bytes so far. `Range` asks for a part of them.
        #[utoipa::path(get, path = $path, operation_id = $operation, tag = "runs",
            params(("id" = String, Path, format = Uuid, description = "The run's id"),
                   ("Range" = Option<String>, Header, description = "One range of bytes", example = "bytes=0-99")),
            responses((status = 200, description = "The bytes", body = Vec<u8>,
                       content_type = "application/octet-stream"),
                      (status = 206, description = "The range that was asked for", body = Vec<u8>,
                       content_type = "application/octet-stream",
                       headers(("Content-Range" = String, description = "Which bytes they are; `*` as the whole \
                                                                       length while the run goes"))),
                      (status = 404, description = "There is no such run", body = Document,
                       content_type = "application/problem+json"),
                      (status = 416, description = "The output has no such bytes, or has not had them yet",
                       body = Document, content_type = "application/problem+json")))]
        pub async fn $name(
            app: State<Arc<App>>,
            path: RunPath,
            method: Method,
            headers: HeaderMap,
            _: NoQuery,
        ) -> Result<Response, Problem> {
            show(&app, path, $stream, &method, &headers).await
        }
    };
}

output!(
    stdout,
    "/runs/{id}/stdout",
    "get_stdout",
    Stream::Stdout,
    "Gives the bytes that a run wrote to its standard output, as far as they were kept."
);
output!(
    stderr,
    "/runs/{id}/stderr",
    "get_stderr",
    Stream::Stderr,
    "Gives the bytes that a run wrote to its standard error, as far as they were kept."
);

async fn show(
    app: &App,
    RunPath(id): RunPath,
    stream: Stream,
    method: &Method,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    let watcher = app.engine.watch(id).await?.ok_or_else(|| problem::RUN_NOT_FOUND.problem())?;
    let extent = watcher.extent(stream);
    // A range is for GET alone, and without a validator nobody can say `If-Range`.
    let ranged = method == Method::GET && !headers.contains_key(header::IF_RANGE);
    let asked = headers.get(header::RANGE).filter(|_| ranged).and_then(|value| value.to_str().ok());
    match asked.map_or(Asked::Everything, |text| Asked::read(text, extent.bytes)) {
        Asked::Everything => Ok(bytes(StatusCode::OK, &watcher, stream, 0..extent.bytes)),
        Asked::Part(range) => {
            let told = format!("bytes {}-{}/{}", range.start, range.end - 1, length(extent));
            let mut reply = bytes(StatusCode::PARTIAL_CONTENT, &watcher, stream, range);
            tell(&mut reply, header::CONTENT_RANGE, &told);
            Ok(reply)
        }
        Asked::Nothing => {
            let detail = format!("the output has {} bytes; ask for a range within them", extent.bytes);
            let mut reply = problem::RANGE_NOT_SATISFIABLE.detail(detail).about_run(id).into_response();
            tell(&mut reply, header::CONTENT_RANGE, &format!("bytes */{}", extent.bytes));
            Ok(reply)
        }
    }
}

/// The whole length, which nobody knows while it grows.
fn length(extent: Extent) -> String {
    if extent.whole { extent.bytes.to_string() } else { "*".into() }
}

fn bytes(status: StatusCode, watcher: &Watcher, stream: Stream, range: Range<u64>) -> Response {
    let length = range.end - range.start;
    let (watcher, mut rest) = (watcher.clone(), range);
    let pieces = std::iter::from_fn(move || {
        let most = usize::try_from(rest.end - rest.start).unwrap_or(usize::MAX).min(PIECE_BYTES);
        // Kept bytes stay, so a piece is empty only at the end.
        let piece = Bytes::from(watcher.read(stream, rest.start, most).bytes);
        rest.start += piece.len() as u64;
        (!piece.is_empty()).then_some(Ok::<_, Infallible>(piece))
    });
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream")),
        (header::CONTENT_LENGTH, HeaderValue::from(length)),
        (header::ACCEPT_RANGES, HeaderValue::from_static("bytes")),
        // A program's output is nothing that a browser should make a page of.
        (HeaderName::from_static("x-content-type-options"), HeaderValue::from_static("nosniff")),
    ];
    (status, headers, Body::from_stream(stream::iter(pieces))).into_response()
}

fn tell(reply: &mut Response, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::try_from(value) {
        reply.headers_mut().insert(name, value);
    }
}

/// Which bytes a `Range` header asks for (RFC 9110, section 14).
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    /// All, also where the header is one that nobody has to understand.
    Everything,
    Part(Range<u64>),
    /// None that are there.
    Nothing,
}

impl Asked {
    fn read(header: &str, length: u64) -> Self {
        let range = header.trim().strip_prefix("bytes=").filter(|ranges| !ranges.contains(','));
        let Some((first, last)) = range.and_then(|range| range.trim().split_once('-')) else {
            return Asked::Everything;
        };
        let number = |text: &str| match text.bytes().all(|byte| byte.is_ascii_digit()) {
            true => text.parse::<u64>().ok(),
            false => None,
        };
        let range = match (number(first), number(last)) {
            (None, Some(0)) if first.is_empty() => return Asked::Nothing,
            (None, Some(tail)) if first.is_empty() => length.saturating_sub(tail)..length,
            (Some(first), None) if last.is_empty() => first..length,
            (Some(first), Some(last)) if first <= last => first..length.min(last.saturating_add(1)),
            _ => return Asked::Everything,
        };
        if range.is_empty() { Asked::Nothing } else { Asked::Part(range) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_range_is_understood_and_everything_else_means_all() {
        for (header, length, expected) in [
            ("bytes=0-0", 10, Asked::Part(0..1)),
            ("bytes=2-4", 10, Asked::Part(2..5)),
            ("bytes=2-", 10, Asked::Part(2..10)),
            ("bytes=2-99", 10, Asked::Part(2..10)),
            ("bytes=-3", 10, Asked::Part(7..10)),
            ("bytes=-30", 10, Asked::Part(0..10)),
            ("bytes=9-9", 10, Asked::Part(9..10)),
            ("bytes=10-", 10, Asked::Nothing),
            ("bytes=10-11", 10, Asked::Nothing),
            ("bytes=-0", 10, Asked::Nothing),
            ("bytes=0-", 0, Asked::Nothing),
            ("bytes=-5", 0, Asked::Nothing),
            ("bytes=0-18446744073709551615", 10, Asked::Part(0..10)),
            ("bytes=4-2", 10, Asked::Everything),
            ("bytes=0-1,3-4", 10, Asked::Everything),
            ("bytes=", 10, Asked::Everything),
            ("bytes=-", 10, Asked::Everything),
            ("bytes=+1-2", 10, Asked::Everything),
            ("lines=0-1", 10, Asked::Everything),
            ("nonsense", 10, Asked::Everything),
        ] {
            assert_eq!(Asked::read(header, length), expected, "{header} of {length}");
        }
    }
}
