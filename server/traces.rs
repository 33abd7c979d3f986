//! One trace for each run: a span for the whole and one for each phase, sent as OTLP over HTTP to a
//! collector nearby. Nothing waits for it: what the collector can't take is dropped and counted in the log.
//! Names, times and outcomes are sent; what a request carries, and what its program wrote, never is.

use std::time::Duration;

use anyhow::{Context, ensure};
use axum::http::Uri;
use engine::RunHandle;
use jiff::Timestamp;
use run::{Outcome, Run};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// How many finished runs may wait to be sent, and how many go at once.
const WAITING_MAX: usize = 4096;
const AT_ONCE: usize = 256;

/// How long the first of them waits for others.
const GATHER: Duration = Duration::from_millis(500);

/// How long the collector may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where in whose trace something happens: W3C's `traceparent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub trace: u128,
    /// The span of whoever asked, if they said.
    pub parent: Option<u64>,
    pub span: u64,
}

impl Place {
    /// `None` where the caller says that this trace is not recorded.
    pub fn below(traceparent: Option<&str>, fresh: uuid::Uuid) -> Option<Self> {
        let own = (fresh.as_u64_pair().1 | 1, fresh.as_u128());
        match traceparent.and_then(parse) {
            Some((_, _, false)) => None,
            Some((trace, parent, true)) => Some(Self { trace, parent: Some(parent), span: own.0 }),
            None => Some(Self { trace: own.1, parent: None, span: own.0 }),
        }
    }

    /// As the reply carries it on.
    pub fn traceparent(self) -> String {
        format!("00-{:032x}-{:016x}-01", self.trace, self.span)
    }
}

/// Trace, span, and whether it is recorded. What is not exactly so counts as absent.
fn parse(text: &str) -> Option<(u128, u64, bool)> {
    let parts: Vec<&str> = text.split('-').collect();
    let [version, trace, span, flags] = parts[..] else { return None };
    let hex = |text: &str, length| {
        text.len() == length && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    };
    if version != "00" || !hex(trace, 32) || !hex(span, 16) || !hex(flags, 2) {
        return None;
    }
    let (trace, span) = (u128::from_str_radix(trace, 16).ok()?, u64::from_str_radix(span, 16).ok()?);
    (trace != 0 && span != 0).then_some((trace, span, u8::from_str_radix(flags, 16).ok()? & 1 == 1))
}

/// Where traces go; nowhere unless an operator says so.
#[derive(Debug, Default)]
pub struct Traces {
    sender: Option<mpsc::Sender<Value>>,
}

/// A collector's address, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collector {
    authority: String,
    path: String,
}

impl Collector {
    /// `http://127.0.0.1:4318/v1/traces`; nothing where the setting is empty.
    pub fn parse(text: &str) -> anyhow::Result<Option<Self>> {
        if text.is_empty() {
            return Ok(None);
        }
        let wrong = || format!("traces_to is {text:?}; it must be like http://127.0.0.1:4318/v1/traces");
        let uri: Uri = text.parse().with_context(wrong)?;
        ensure!(uri.scheme_str() == Some("http") && uri.port_u16().is_some(), wrong());
        let authority = uri.authority().with_context(wrong)?.to_string();
        Ok(Some(Self { authority, path: uri.path().to_owned() }))
    }
}

impl Traces {
    /// Must be called inside the runtime.
    pub fn to(collector: Option<Collector>) -> Self {
        let Some(collector) = collector else { return Self::default() };
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        tokio::spawn(send_all(collector, receiver));
        Self { sender: Some(sender) }
    }

    pub fn are_on(&self) -> bool {
        self.sender.is_some()
    }

    /// Sends the run's spans when it has finished.
    pub fn follow(&self, handle: &RunHandle, place: Option<Place>) {
        let (Some(sender), Some(place)) = (self.sender.clone(), place) else { return };
        let handle = handle.clone();
        tokio::spawn(async move {
            let run = handle.wait(None).await;
            for span in spans(&run, place) {
                if sender.try_send(span).is_err() {
                    return tracing::debug!("the collector is too slow: the spans of a run are dropped");
                }
            }
        });
    }
}

/// The whole run, and its phases one after the other.
fn spans(run: &Run, place: Place) -> Vec<Value> {
    let begin = run.created_at;
    let end = run.finished_at.unwrap_or(begin);
    let outcome = run.outcome.as_ref().map_or("sandbox_error", Outcome::name);
    let failed = outcome == "sandbox_error";
    let mut whole = span("run", place, place.span, place.parent, (begin, end));
    whole["kind"] = json!(2);
    whole["status"] = json!({ "code": if failed { 2 } else { 1 } });
    whole["attributes"] = json!([
        { "key": "sandglass.run.id", "value": { "stringValue": run.id.to_string() } },
        { "key": "sandglass.outcome", "value": { "stringValue": outcome } },
    ]);
    let phases = [
        ("queue", run.timings.queue_ms),
        ("image", run.timings.image_ms),
        ("setup", run.timings.setup_ms),
        ("program", run.timings.run_ms),
    ];
    let (mut all, mut at) = (vec![whole], begin);
    for (number, (name, took_ms)) in phases.into_iter().enumerate() {
        let Some(took_ms) = took_ms else { continue };
        let until = at.checked_add(Duration::from_secs_f64(took_ms.max(0.0) / 1e3)).unwrap_or(at);
        let id = place.span ^ (number as u64 + 1).rotate_right(8);
        all.push(span(name, place, id, Some(place.span), (at, until)));
        at = until;
    }
    all
}

fn span(
    name: &str,
    place: Place,
    id: u64,
    parent: Option<u64>,
    (from, until): (Timestamp, Timestamp),
) -> Value {
    json!({
        "traceId": format!("{:032x}", place.trace),
        "spanId": format!("{id:016x}"),
        "parentSpanId": parent.map(|parent| format!("{parent:016x}")).unwrap_or_default(),
        "name": name,
        "kind": 1,
        "startTimeUnixNano": from.as_nanosecond().to_string(),
        "endTimeUnixNano": until.as_nanosecond().to_string(),
    })
}

async fn send_all(collector: Collector, mut receiver: mpsc::Receiver<Value>) {
    let mut spans = Vec::new();
    let mut lost = 0;
    while receiver.recv_many(&mut spans, AT_ONCE).await > 0 {
        // A little later there are more of them, and one request does for all.
        tokio::time::sleep(GATHER).await;
        while let Ok(span) = receiver.try_recv() {
            spans.push(span);
        }
        let count = spans.len();
        let sent = timeout(PATIENCE, post(&collector, &document(&spans))).await;
        spans.clear();
        match sent.context("the collector took too long").flatten() {
            Ok(()) => lost = 0,
            // Once, and not for every run while a collector is down.
            Err(error) if lost == 0 => {
                let error = format!("{error:#}");
                tracing::warn!(error, spans = count, "traces can't be sent and are dropped");
                lost = count;
            }
            Err(_) => lost += count,
        }
    }
}

fn document(spans: &[Value]) -> Value {
    let text = |key: &str, value: &str| json!({ "key": key, "value": { "stringValue": value } });
    json!({ "resourceSpans": [{
        "resource": { "attributes": [
            text("service.name", "sandglass"),
            text("service.version", env!("CARGO_PKG_VERSION")),
        ] },
        "scopeSpans": [{ "scope": { "name": "sandglass" }, "spans": spans }],
    }] })
}

async fn post(collector: &Collector, document: &Value) -> anyhow::Result<()> {
    let Collector { authority, path } = collector;
    let stream = TcpStream::connect(authority).await.with_context(|| format!("connect to {authority}"))?;
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
    let talking = tokio::spawn(connection);
    let request = hyper::Request::post(path)
        .header("host", authority)
        .header("content-type", "application/json")
        .body(document.to_string())?;
    let answer = sender.send_request(request).await;
    talking.abort();
    let status = answer?.status();
    ensure!(status.is_success(), "the collector answered with {status}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_is_taken_whole_or_not_at_all() {
        let fresh = uuid::Uuid::from_u128(7);
        let own = Some(Place { trace: 7, parent: None, span: 7 });
        let good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let theirs = Place {
            trace: 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c,
            parent: Some(0xb7ad_6b71_6920_3331),
            span: 7,
        };
        for (text, place) in [
            (Some(good), Some(theirs)),
            (Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"), None),
            (Some("00-00000000000000000000000000000000-b7ad6b7169203331-01"), own),
            (Some("01-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"), own),
            (Some("00-0AF7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"), own),
            (Some("x"), own),
            (None, own),
        ] {
            assert_eq!(Place::below(text, fresh), place, "{text:?}");
        }
        assert_eq!(theirs.traceparent(), "00-0af7651916cd43dd8448eb211c80319c-0000000000000007-01");
    }

    #[test]
    fn a_collector_is_an_address_with_a_port() {
        assert_eq!(Collector::parse("").unwrap(), None);
        assert!(Collector::parse("http://127.0.0.1:4318/v1/traces").unwrap().is_some());
        for wrong in ["127.0.0.1:4318", "https://x:1/", "http://x/v1/traces", "x"] {
            let error = format!("{:#}", Collector::parse(wrong).unwrap_err());
            assert!(error.contains("traces_to is"), "{error}");
        }
    }
}
