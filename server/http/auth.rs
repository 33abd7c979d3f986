//! Who is asking, and whether that one may: decided before a handler sees the request. A handler takes
//! the [`Caller`]; what belongs to somebody else does not exist for it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderMap, HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use engine::batch::BatchId;
use run::{FileId, Principal, PrincipalName, RunId, Scope};

use super::App;
use super::layers::RequestId;
use super::problem::{self, Problem};
use super::seats::Seated;
use crate::log;
use crate::telemetry::RefusedFor;

/// When it is worth trying again for whoever has as many requests open as it may.
const OPEN_PAUSE: Duration = Duration::from_secs(1);

/// Who knows who is asking. What it says holds at once: it must not wait for anything.
pub trait Authenticator: fmt::Debug + Send + Sync + 'static {
    /// Whether everybody is the one anonymous principal.
    fn is_open(&self) -> bool;

    /// `bearer` is what the request has shown.
    fn authenticate(&self, bearer: Option<&str>) -> Result<Caller, Refused>;

    /// Everybody who can have runs here, by name.
    fn principals(&self) -> Vec<PrincipalName>;
}

/// Who asks, by which key.
#[derive(Clone, Debug)]
pub struct Caller {
    pub principal: Arc<Principal>,
    /// The key's id: what may be written down of it.
    pub key: Option<Arc<str>>,
}

/// Why nobody knows who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    NoKey,
    BadKey,
    Expired,
}

impl Caller {
    pub fn anonymous() -> Self {
        Self { principal: Arc::clone(Principal::anonymous()), key: None }
    }

    /// Who may have images of its own. On a server without keys all images are everybody's.
    pub fn image_owner(&self) -> Option<&PrincipalName> {
        Some(&self.principal.name).filter(|name| !name.is_anonymous())
    }

    /// Whether what belongs to that principal is there for this caller.
    pub fn sees(&self, owner: &PrincipalName) -> bool {
        self.principal.sees(owner) || !walls::stands("own_runs")
    }
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        // A call that the layer let pass without asking must not act for anybody.
        parts.extensions.get::<Caller>().cloned().ok_or_else(|| problem::UNAUTHORIZED.problem())
    }
}

/// What a call needs. One that is not named here is for admins, until somebody decides otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    Nothing,
    One(Scope),
}

fn need(path: &str) -> Need {
    match path.split('/').nth(1).unwrap_or_default() {
        "healthz" | "readyz" | "openapi.json" | "docs" | "problems" => Need::Nothing,
        "runs" | "batches" | "files" => Need::One(Scope::Run),
        "images" => Need::One(Scope::Images),
        "info" | "metrics" => Need::One(Scope::Metrics),
        _ => Need::One(Scope::Admin),
    }
}

/// Whether this call can be refused for want of a key: for the document.
pub fn is_guarded(path: &str) -> bool {
    need(path) != Need::Nothing
}

/// Lets in who may come in, and says afterwards what they have changed.
pub async fn authenticate(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let Need::One(scope) = need(request.uri().path()) else { return next.run(request).await };
    let caller = match identify(&*app.keys, request.headers(), scope) {
        Ok(caller) => caller,
        Err(refusal) => {
            app.telemetry.not_let_in(refusal.problem.kind.name);
            return refusal.into_response();
        }
    };
    let name = &caller.principal.name;
    let seat = if name.is_anonymous() { None } else { Some(app.seats.take(name)) };
    if matches!(seat, Some(None)) {
        app.telemetry.request_refused(RefusedFor::Quota);
        let detail = "as many requests of this principal are open as one may have";
        return problem::QUOTA_EXCEEDED.detail(detail).retry_after(OPEN_PAUSE).into_response();
    }
    let record = caller.key.is_some().then(|| Audit::begin(&caller, &request)).flatten();
    request.extensions_mut().insert(caller);
    let reply = next.run(request).await;
    if let Some(record) = record {
        record.end(&reply);
    }
    match seat.flatten() {
        Some(seat) => reply.map(|body| Body::new(Seated::new(body, seat))),
        None => reply,
    }
}

fn identify(keys: &dyn Authenticator, headers: &HeaderMap, scope: Scope) -> Result<Caller, Refusal> {
    let caller = keys.authenticate(bearer(headers)).map_err(Refusal::unknown)?;
    if caller.principal.may(scope) { Ok(caller) } else { Err(Refusal::lacks(scope)) }
}

/// The token of `Authorization: Bearer …`. Two such headers are none: each reader would believe another.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut given = headers.get_all(header::AUTHORIZATION).iter();
    let (first, None) = (given.next()?, given.next()) else { return Some("") };
    let (scheme, token) = first.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// A problem, and the challenge that goes with it (RFC 6750).
#[derive(Debug)]
struct Refusal {
    problem: Problem,
    challenge: String,
}

impl Refusal {
    fn unknown(why: Refused) -> Self {
        let (detail, error) = match why {
            Refused::NoKey => ("send a key: `Authorization: Bearer sg_…`", ""),
            Refused::BadKey => ("the key is not known here, or was revoked", ", error=\"invalid_token\""),
            Refused::Expired => ("the key has expired", ", error=\"invalid_token\""),
        };
        let challenge = format!("Bearer realm=\"sandglass\"{error}");
        Self { problem: problem::UNAUTHORIZED.detail(detail), challenge }
    }

    fn lacks(scope: Scope) -> Self {
        let scope = scope.as_str();
        let detail = format!("the call needs the scope `{scope}`, which the key does not have");
        let challenge =
            format!("Bearer realm=\"sandglass\", error=\"insufficient_scope\", scope=\"{scope}\"");
        Self { problem: problem::INSUFFICIENT_SCOPE.detail(detail), challenge }
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let mut reply = self.problem.into_response();
        if let Ok(challenge) = HeaderValue::try_from(self.challenge) {
            reply.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
        }
        reply
    }
}

/// What a reply is about: for the audit.
#[derive(Clone, Copy, Debug)]
pub enum About {
    Run(RunId),
    Batch(BatchId),
    File(FileId),
}

/// The line about a call that may have changed something, or has taken everything away. It is written however the call ends.
struct Audit {
    caller: Caller,
    method: Method,
    /// With the query: that of a purge says so.
    path: String,
    request_id: String,
    status: Option<u16>,
    about: Option<About>,
}

impl Audit {
    fn begin(caller: &Caller, request: &Request) -> Option<Self> {
        let method = request.method();
        let changes = ![Method::GET, Method::HEAD, Method::OPTIONS].contains(method);
        // Whoever has a backup has everybody's programs and outputs.
        if !changes && request.uri().path() != "/backup" {
            return None;
        }
        Some(Self {
            caller: caller.clone(),
            method: method.clone(),
            path: log::path(request.uri().path_and_query().map_or("", PathAndQuery::as_str)).to_owned(),
            request_id: request.extensions().get::<RequestId>().map(|id| id.0.clone()).unwrap_or_default(),
            status: None,
            about: None,
        })
    }

    fn end(mut self, reply: &Response) {
        self.status = Some(reply.status().as_u16());
        let extensions = reply.extensions();
        let of_problem = || extensions.get::<Problem>()?.run_id.map(About::Run);
        self.about = extensions.get::<About>().copied().or_else(of_problem);
    }
}

impl Drop for Audit {
    fn drop(&mut self) {
        let (run, batch, file) = match self.about {
            Some(About::Run(id)) => (Some(id.to_string()), None, None),
            Some(About::Batch(id)) => (None, Some(id.to_string()), None),
            Some(About::File(id)) => (None, None, Some(id.to_string())),
            None => (None, None, None),
        };
        tracing::info!(
            target: log::AUDIT,
            principal = %self.caller.principal.name,
            key = self.caller.key.as_deref(),
            method = %self.method,
            path = %self.path,
            // Absent where the client went away before there was one.
            status = self.status,
            run.id = run,
            batch.id = batch,
            file = file,
            request.id = %self.request_id,
            "{} {} {}", self.caller.principal.name, self.method, self.path
        );
    }
}

#[cfg(test)]
mod tests {
    use run::Quota;

    use super::*;

    /// Knows one key, `good`, which has the scope `run`.
    #[derive(Debug)]
    struct OneKey;

    impl Authenticator for OneKey {
        fn is_open(&self) -> bool {
            false
        }

        fn authenticate(&self, bearer: Option<&str>) -> Result<Caller, Refused> {
            match bearer {
                None => Err(Refused::NoKey),
                Some("good") => {
                    let name = PrincipalName::parse("alice").unwrap();
                    let principal = Principal { name, scopes: [Scope::Run].into(), quota: Quota::default() };
                    Ok(Caller { principal: principal.into(), key: Some("1".into()) })
                }
                Some(_) => Err(Refused::BadKey),
            }
        }

        fn principals(&self) -> Vec<PrincipalName> {
            Vec::new()
        }
    }

    #[test]
    fn a_call_that_nobody_has_thought_of_is_for_admins() {
        for (path, expected) in [
            ("/healthz", Need::Nothing),
            ("/readyz", Need::Nothing),
            ("/openapi.json", Need::Nothing),
            ("/docs/index.html", Need::Nothing),
            ("/problems/not-found", Need::Nothing),
            ("/runs", Need::One(Scope::Run)),
            ("/runs/x/stdout", Need::One(Scope::Run)),
            ("/files/sha256:x", Need::One(Scope::Run)),
            ("/images/a/b", Need::One(Scope::Images)),
            ("/metrics", Need::One(Scope::Metrics)),
            ("/principals", Need::One(Scope::Admin)),
            ("/", Need::One(Scope::Admin)),
            ("//runs", Need::One(Scope::Admin)),
            ("/%72uns", Need::One(Scope::Admin)),
            ("/healthz2", Need::One(Scope::Admin)),
        ] {
            assert_eq!(need(path), expected, "{path}");
        }
    }

    #[test]
    fn the_challenge_says_what_is_missing() {
        for (lines, scope, expected) in [
            (&["Bearer good"][..], Scope::Run, None),
            (&["bearer  good"], Scope::Run, None),
            (&[], Scope::Run, Some((401, "Bearer realm=\"sandglass\""))),
            (&["Basic Z29vZA=="], Scope::Run, Some((401, "Bearer realm=\"sandglass\""))),
            (&["Bearer bad"], Scope::Run, Some((401, "Bearer realm=\"sandglass\", error=\"invalid_token\""))),
            (
                &["Bearer good", "Bearer bad"],
                Scope::Run,
                Some((401, "Bearer realm=\"sandglass\", error=\"invalid_token\"")),
            ),
            (
                &["Bearer good"],
                Scope::Images,
                Some((403, "Bearer realm=\"sandglass\", error=\"insufficient_scope\", scope=\"images\"")),
            ),
        ] {
            let headers = lines.iter().map(|line| (header::AUTHORIZATION, line.parse().unwrap())).collect();
            let refused = identify(&OneKey, &headers, scope).err();
            let seen =
                refused.as_ref().map(|refusal| (refusal.problem.kind.status, refusal.challenge.as_str()));
            assert_eq!(seen, expected, "{lines:?} {scope:?}");
        }
    }
}
