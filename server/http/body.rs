//! Reads a request's body within its limits: size, time, and what all bodies may hold together.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::problem::{self, Problem};
use super::query::NoQuery;
use super::{App, json};

/// Bodies up to this size need no share of the memory for bodies: their number is bounded by that of the
/// connections. Else a few clients who announce much and send little would keep everybody waiting.
const SMALL_BYTES: usize = 64 * 1024;

/// A body that is JSON, of a call without a query, with the share of memory that it holds until it is dropped. A small one has none.
#[derive(Debug)]
pub struct JsonBody {
    pub value: Value,
    pub share: Option<OwnedSemaphorePermit>,
}

/// How much may be read, and in what time.
#[derive(Debug)]
pub struct BodyLimits {
    pub bytes_max: usize,
    pub time_max: Duration,
    /// One permit is one byte of memory for bodies.
    pub memory: Arc<Semaphore>,
}

impl FromRequest<Arc<App>> for JsonBody {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, Problem> {
        // A call says what it wants in one place.
        NoQuery::check(request.uri())?;
        check_type(request.headers())?;
        let limits = &app.bodies;
        let declared = content_length(request.headers());
        let most = declared.unwrap_or(limits.bytes_max);
        if most > limits.bytes_max {
            return Err(too_large(limits));
        }
        let reading = read(request, most, limits);
        let (bytes, mut share) =
            timeout(limits.time_max, reading).await.map_err(|_| problem::BODY_TIMEOUT.problem())??;
        if let Some(share) = &mut share {
            // What was set aside and not needed goes back.
            drop(share.split(share.num_permits().saturating_sub(bytes.len())));
        }
        Ok(Self { value: json::parse(&bytes)?, share })
    }
}

async fn read(
    request: Request,
    most: usize,
    limits: &BodyLimits,
) -> Result<(Vec<u8>, Option<OwnedSemaphorePermit>), Problem> {
    let mut body = Limited::new(request.into_body(), most);
    let mut bytes = Vec::new();
    let mut share = None;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            if error.is::<LengthLimitError>() {
                too_large(limits)
            } else {
                problem::NOT_JSON.detail("the body ended before it was complete")
            }
        })?;
        let Some(data) = frame.data_ref() else { continue };
        if share.is_none() && bytes.len() + data.len() > SMALL_BYTES {
            // All of it at once: bodies that each wait for the rest of their share would wait for ever.
            let permits = u32::try_from(most).unwrap_or(u32::MAX);
            let taken = Arc::clone(&limits.memory).acquire_many_owned(permits).await;
            share = Some(taken.map_err(|_| problem::DRAINING.problem())?);
        }
        bytes.extend_from_slice(data);
    }
    Ok((bytes, share))
}

fn too_large(limits: &BodyLimits) -> Problem {
    problem::BODY_TOO_LARGE.detail(format!("the body may have at most {} bytes", limits.bytes_max))
}

fn content_length(headers: &HeaderMap) -> Option<usize> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// JSON, nothing, or what curl says when it is not told: all are read as JSON.
fn check_type(headers: &HeaderMap) -> Result<(), Problem> {
    let encoding = headers.get(header::CONTENT_ENCODING).map(|value| value.to_str().unwrap_or("?"));
    if encoding.is_some_and(|encoding| !encoding.eq_ignore_ascii_case("identity")) {
        return Err(problem::UNSUPPORTED_MEDIA_TYPE.detail("send the body without `Content-Encoding`"));
    }
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return Ok(()) };
    let text = value.to_str().unwrap_or_default();
    let media = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let json = media == "application/json" || (media.starts_with("application/") && media.ends_with("+json"));
    if json || media == "application/x-www-form-urlencoded" {
        return Ok(());
    }
    Err(problem::UNSUPPORTED_MEDIA_TYPE.problem())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_says_that_it_is_not_json_is_refused() {
        for (media, ok) in [
            (None, true),
            (Some("application/json"), true),
            (Some("Application/JSON; charset=utf-8"), true),
            (Some("application/merge-patch+json"), true),
            (Some("application/x-www-form-urlencoded"), true),
            (Some("text/plain"), false),
            (Some("multipart/form-data; boundary=x"), false),
            (Some("application/xml"), false),
            (Some(""), false),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(media) = media {
                headers.insert(header::CONTENT_TYPE, media.parse().unwrap());
            }
            assert_eq!(check_type(&headers).is_ok(), ok, "{media:?}");
        }
    }

    #[test]
    fn a_compressed_body_is_refused() {
        for (encoding, ok) in [("identity", true), ("gzip", false)] {
            let headers = HeaderMap::from_iter([(header::CONTENT_ENCODING, encoding.parse().unwrap())]);
            assert_eq!(check_type(&headers).is_ok(), ok, "{encoding}");
        }
    }
}
