//! What every request passes on its way in and every reply on its way out, in order.

use std::any::Any;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use tower::{Layer, ServiceBuilder, ServiceExt};
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::cors::CorsLayer;
use tracing::Instrument;
use uuid::Uuid;

use super::auth;
use super::problem::{self, Problem};
use super::serve::Peer;
use super::{App, accept};
use crate::log;
use crate::telemetry::RefusedFor;
use crate::traces::Place;

pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const MAX_HEAD_BYTES: usize = 32 * 1024;
const MAX_HEADERS: usize = 100;

/// The layers, outermost first.
pub fn apply(router: Router, app: &Arc<App>) -> Router {
    let layers = ServiceBuilder::new()
        .layer(from_fn(name_request))
        .layer(from_fn_with_state(Arc::clone(app), trace))
        .layer(from_fn_with_state(Arc::clone(app), measure))
        .layer(from_fn_with_state(Arc::clone(app), write_problems))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn(check_size))
        .layer(from_fn_with_state(Arc::clone(app), check_caller))
        .layer(from_fn_with_state(Arc::clone(app), allow_origins))
        .layer(from_fn_with_state(Arc::clone(app), auth::authenticate))
        .layer(from_fn(check_accept));
    router.layer(layers)
}

/// The name under which a request is found in the log: the client's, if it is sane, else ours.
#[derive(Clone, Debug)]
pub struct RequestId(pub String);

async fn name_request(mut request: Request, next: Next) -> Response {
    let sane = |text: &&str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        (1..=128).contains(&text.len()) && text.chars().all(plain)
    };
    let given = request.headers().get(REQUEST_ID).and_then(|value| value.to_str().ok()).filter(sane);
    let id = given.map_or_else(|| Uuid::now_v7().to_string(), str::to_owned);
    request.extensions_mut().insert(RequestId(id.clone()));
    let mut reply = next.run(request).await;
    if let Ok(value) = HeaderValue::try_from(id) {
        reply.headers_mut().insert(REQUEST_ID, value);
    }
    reply
}

fn request_id(request: &Request) -> String {
    request.extensions().get::<RequestId>().map(|id| id.0.clone()).unwrap_or_default()
}

/// A span around everything that the request causes; `traceparent` is kept so that lines can be joined.
async fn trace(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let parent = request.headers().get(TRACEPARENT).and_then(|value| value.to_str().ok());
    let place = if app.traces.are_on() { Place::below(parent, Uuid::now_v7()) } else { None };
    let parent = parent.unwrap_or_default();
    let traced = parent.len() <= 64 && parent.chars().all(|c| c.is_ascii_hexdigit() || c == '-');
    let peer = request.extensions().get::<Peer>();
    let client = peer.map(|peer| app.settings.now().proxies.client(*peer, request.headers()));
    let span = tracing::info_span!(
        "request",
        id = %request_id(&request),
        client = client.map(display),
        method = %request.method(),
        path = %log::path(request.uri().path()),
        traceparent = traced.then_some(parent).filter(|parent| !parent.is_empty()),
    );
    request.extensions_mut().insert(place);
    let mut reply = next.run(request).instrument(span).await;
    if let Some(value) = place.and_then(|place| HeaderValue::try_from(place.traceparent()).ok()) {
        reply.headers_mut().insert(TRACEPARENT, value);
    }
    reply
}

/// Counts the request by its route's template, also when the client goes away before the reply.
async fn measure(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    struct Measured<'a> {
        app: &'a App,
        route: String,
        method: Method,
        status: Option<u16>,
        from: Instant,
    }
    impl Drop for Measured<'_> {
        fn drop(&mut self) {
            self.app.telemetry.request_answered(&self.route, &self.method, self.status, self.from.elapsed());
        }
    }
    let route =
        request.extensions().get::<MatchedPath>().map_or("other", MatchedPath::as_str).replace("{*", "{");
    let method = request.method().clone();
    let mut measured = Measured { app: &app, route, method, status: None, from: Instant::now() };
    let reply = next.run(request).await;
    measured.status = Some(reply.status().as_u16());
    reply
}

/// Handlers answer with a [`Problem`]; here it becomes a document that bears the request's id.
async fn write_problems(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let id = request_id(&request);
    let mut reply = next.run(request).await;
    let Some(problem) = reply.extensions_mut().remove::<Problem>() else { return reply };
    if problem.kind.status >= 500 {
        tracing::warn!(problem = problem.kind.name, detail = %problem.detail, "answered with a problem");
    }
    if let Some(reason) = refused_for(problem.kind) {
        app.telemetry.request_refused(reason);
    }
    let mut document = problem.into_reply(&id);
    for (name, value) in reply.headers() {
        if name != header::CONTENT_LENGTH && name != header::CONTENT_TYPE {
            document.headers_mut().insert(name.clone(), value.clone());
        }
    }
    document
}

/// Which refusals operators see by reason; those of the engine are counted where they happen.
fn refused_for(kind: &problem::Kind) -> Option<RefusedFor> {
    (kind.status == 413).then_some(RefusedFor::TooLarge)
}

#[allow(clippy::needless_pass_by_value)] // the layer's signature
fn panicked(panic: Box<dyn Any + Send>) -> Response {
    let text =
        panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    tracing::error!(panic = text.unwrap_or("not a text"), "a handler panicked");
    problem::INTERNAL_ERROR.problem().into_response()
}

async fn check_size(request: Request, next: Next) -> Response {
    let headers = request.headers();
    let sum: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    let address = request.uri().path_and_query().map_or(0, |path| path.as_str().len());
    if sum + address > MAX_HEAD_BYTES || headers.len() > MAX_HEADERS {
        return problem::HEADERS_TOO_LARGE.problem().into_response();
    }
    next.run(request).await
}

/// Keeps other web pages from running code here through somebody's browser.
async fn check_caller(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let named = request.uri().authority().map(Authority::as_str);
    let settings = app.settings.now();
    match caller_problem(named, request.headers(), &settings.allowed_hosts, &settings.allowed_origins) {
        Some(problem) => problem.into_response(),
        None => next.run(request).await,
    }
}

/// `named` is the host in the request line, where there is one: it then counts, and the header does not.
fn caller_problem(
    named: Option<&str>,
    headers: &HeaderMap,
    hosts: &[String],
    origins: &[String],
) -> Option<Problem> {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    // HTTP/1.0 has none; a browser always sends one. Of two, each reader would believe another.
    let host = named.or_else(|| text(header::HOST));
    let ambiguous = headers.get_all(header::HOST).iter().count() > 1;
    if ambiguous || host.is_some_and(|host| !known_host(host, hosts)) {
        let detail =
            "the server does not answer to the name in `Host`; an operator can list it in `allowed_hosts`";
        return Some(problem::UNKNOWN_HOST.detail(detail));
    }
    let allowed = |origin: &str| origins.iter().any(|allowed| allowed == origin);
    match text(header::ORIGIN) {
        Some(origin) if allowed(origin) => None,
        Some(origin) if host.is_some_and(|host| same_origin(origin, host)) => None,
        Some(_) => Some(problem::FOREIGN_ORIGIN.problem()),
        None if text(SEC_FETCH_SITE) == Some("cross-site") => Some(problem::FOREIGN_ORIGIN.problem()),
        None => None,
    }
}

/// A page can point a name of its own at this address, but neither a number nor `localhost`.
fn known_host(host: &str, hosts: &[String]) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    let name = name.trim_end_matches('.').to_ascii_lowercase();
    bare.parse::<IpAddr>().is_ok()
        || name == "localhost"
        || hosts.iter().any(|known| known.eq_ignore_ascii_case(&name))
}

fn same_origin(origin: &str, host: &str) -> bool {
    let name = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    name.is_some_and(|name| name.eq_ignore_ascii_case(host))
}

/// Tells browsers which pages may read the answers, as long as there are any.
async fn allow_origins(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    match &app.settings.now().cors {
        Some(cors) => cors.layer(next).oneshot(request).await.into_response(),
        None => next.run(request).await,
    }
}

pub fn cors(origins: &[String]) -> Option<CorsLayer> {
    if origins.is_empty() {
        return None;
    }
    let allowed: Vec<_> = origins.iter().filter_map(|origin| HeaderValue::try_from(origin).ok()).collect();
    let layer = CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([Method::GET, Method::POST, Method::PUT, Method::DELETE])
        .allow_headers([
            header::CONTENT_TYPE,
            header::AUTHORIZATION,
            header::RANGE,
            HeaderName::from_static("prefer"),
            HeaderName::from_static("idempotency-key"),
            HeaderName::from_static("last-event-id"),
            TRACEPARENT,
            REQUEST_ID,
        ])
        .expose_headers([
            header::LOCATION,
            HeaderName::from_static("preference-applied"),
            header::RETRY_AFTER,
            header::WWW_AUTHENTICATE,
            header::CONTENT_RANGE,
            REQUEST_ID,
            HeaderName::from_static("server-timing"),
        ]);
    Some(layer)
}

/// Who can't read the answer is told before anything is run.
async fn check_accept(request: Request, next: Next) -> Response {
    if !accept::acceptable(request.method(), request.uri().path(), request.headers()) {
        return problem::NOT_ACCEPTABLE.problem().into_response();
    }
    next.run(request).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        lines.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    #[test]
    fn a_web_page_of_somebody_else_is_refused() {
        let hosts = ["sandglass".to_owned()];
        let origins = ["https://good.example".to_owned()];
        for (lines, expected) in [
            (&[][..], None),
            (&[("host", "localhost:8080")], None),
            (&[("host", "LOCALHOST")], None),
            (&[("host", "127.0.0.1:1")], None),
            (&[("host", "[::1]:1")], None),
            (&[("host", "10.0.0.7")], None),
            (&[("host", "sandglass:8080")], None),
            (&[("host", "evil.example")], Some("unknown-host")),
            (&[("host", "127.0.0.1.evil.example:8080")], Some("unknown-host")),
            (&[("host", "localhost.evil.example")], Some("unknown-host")),
            (&[("host", "localhost:8080"), ("origin", "http://localhost:8080")], None),
            (&[("host", "localhost:8080"), ("origin", "http://localhost:3000")], Some("foreign-origin")),
            (&[("host", "localhost:8080"), ("origin", "null")], Some("foreign-origin")),
            (&[("host", "localhost:8080"), ("origin", "https://good.example")], None),
            (&[("host", "localhost:8080"), ("origin", "https://evil.example")], Some("foreign-origin")),
            (&[("host", "localhost"), ("sec-fetch-site", "cross-site")], Some("foreign-origin")),
            (&[("host", "localhost"), ("sec-fetch-site", "same-origin")], None),
            (&[("host", "localhost"), ("sec-fetch-site", "none")], None),
        ] {
            let problem = caller_problem(None, &headers(lines), &hosts, &origins);
            assert_eq!(problem.map(|problem| problem.kind.name), expected, "{lines:?}");
        }
    }

    #[test]
    fn a_request_names_its_host_once() {
        let mut twice = headers(&[("host", "localhost")]);
        twice.append(header::HOST, HeaderValue::from_static("localhost"));
        let once = headers(&[("host", "localhost")]);
        for (named, headers, ok) in [
            (None, &once, true),
            (None, &twice, false),
            (Some("127.0.0.1:80"), &once, true),
            (Some("evil.example"), &once, false),
            (Some("localhost@evil.example"), &once, false),
        ] {
            let problem = caller_problem(named, headers, &[], &[]);
            assert_eq!(problem.is_none(), ok, "{named:?} {headers:?}");
        }
    }
}
