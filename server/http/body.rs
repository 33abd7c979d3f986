//! Reads a request's body within its limits: size, time, and what all bodies may hold together.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use run::PrincipalName;
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::auth::Caller;
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
    pub share: Option<Share>,
}

/// How much may be read, and in what time.
#[derive(Debug)]
pub struct BodyLimits {
    pub bytes_max: usize,
    pub time_max: Duration,
    pub memory: BodyMemory,
}

/// What all bodies may hold together, a permit for each byte, and what those of one principal may: room for one body of
/// anybody else is left, however many large runs a principal has waiting.
#[derive(Debug)]
pub struct BodyMemory {
    all: Arc<Semaphore>,
    each_max: usize,
    each: Mutex<HashMap<PrincipalName, Weak<Semaphore>>>,
}

/// What one body holds, until it is dropped.
#[derive(Debug)]
pub struct Share {
    own: OwnedSemaphorePermit,
    all: OwnedSemaphorePermit,
}

impl Share {
    fn keep(&mut self, bytes: usize) {
        for permits in [&mut self.own, &mut self.all] {
            drop(permits.split(permits.num_permits().saturating_sub(bytes)));
        }
    }
}

impl BodyMemory {
    pub fn new(bytes_max: usize, body_bytes_max: usize) -> Self {
        let each_max = bytes_max.saturating_sub(body_bytes_max).max(body_bytes_max);
        Self { all: Arc::new(Semaphore::new(bytes_max)), each_max, each: Mutex::default() }
    }

    /// That of whoever asks. On a server without keys everybody is the same.
    fn of(&self, caller: Option<&Caller>) -> Arc<Semaphore> {
        let name = caller.map(|caller| &caller.principal.name).filter(|name| !name.is_anonymous());
        let Some(name) = name else { return Self::unbounded() };
        let mut each = self.each.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = each.get(name).and_then(Weak::upgrade) {
            return known;
        }
        each.retain(|_, known| known.strong_count() > 0);
        let new = Arc::new(Semaphore::new(self.each_max));
        each.insert(name.clone(), Arc::downgrade(&new));
        new
    }

    fn unbounded() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(Semaphore::MAX_PERMITS))
    }
}

/// For whom or what a body waits that is not there in time.
#[derive(Clone, Copy)]
enum WaitsFor {
    Client,
    Itself,
    Others,
}

fn too_late(waits_for: u8) -> Problem {
    const PAUSE: Duration = Duration::from_secs(1);
    if waits_for == WaitsFor::Itself as u8 {
        let detail = "the large requests of this principal, whose runs have not ended, hold all the memory that it may have";
        problem::QUOTA_EXCEEDED.detail(detail).retry_after(PAUSE)
    } else if waits_for == WaitsFor::Others as u8 {
        let detail = "large requests, whose runs have not ended, hold all the memory that there is for them";
        problem::QUEUE_FULL.detail(detail).retry_after(PAUSE)
    } else {
        problem::BODY_TIMEOUT.problem()
    }
}

impl FromRequest<Arc<App>> for JsonBody {
    type Rejection = Problem;

    async fn from_request(request: Request, app: &Arc<App>) -> Result<Self, Problem> {
        // A call says what it wants in one place.
        NoQuery::check(request.uri())?;
        check_type(request.headers())?;
        let limits = &app.bodies;
        let of = limits.memory.of(request.extensions().get::<Caller>());
        let waits_for = AtomicU8::new(WaitsFor::Client as u8);
        let declared = content_length(request.headers());
        let most = declared.unwrap_or(limits.bytes_max);
        if most > limits.bytes_max {
            return Err(too_large(limits));
        }
        let reading = read(request, most, limits, of, &waits_for);
        let (bytes, mut share) = timeout(limits.time_max, reading)
            .await
            .map_err(|_| too_late(waits_for.load(Ordering::Relaxed)))??;
        if let Some(share) = &mut share {
            // What was set aside and not needed goes back.
            share.keep(bytes.len());
        }
        Ok(Self { value: json::parse(&bytes)?, share })
    }
}

async fn read(
    request: Request,
    most: usize,
    limits: &BodyLimits,
    of: Arc<Semaphore>,
    waits_for: &AtomicU8,
) -> Result<(Vec<u8>, Option<Share>), Problem> {
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
            waits_for.store(WaitsFor::Itself as u8, Ordering::Relaxed);
            let own = Arc::clone(&of).acquire_many_owned(permits).await;
            waits_for.store(WaitsFor::Others as u8, Ordering::Relaxed);
            let all = Arc::clone(&limits.memory.all).acquire_many_owned(permits).await;
            waits_for.store(WaitsFor::Client as u8, Ordering::Relaxed);
            let own = own.map_err(|_| problem::DRAINING.problem())?;
            share = Some(Share { own, all: all.map_err(|_| problem::DRAINING.problem())? });
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
