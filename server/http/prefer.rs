//! The `Prefer` header (RFC 7240): whether and how long a client wants to wait.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::Response;

const PREFER: HeaderName = HeaderName::from_static("prefer");
const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// What a client prefers. Preferences that make no sense are ignored, as the RFC asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Prefer {
    pub respond_async: bool,
    pub wait: Option<Duration>,
    /// `handling=strict`: rather refuse than let the wait be in vain.
    pub strict: bool,
}

impl Prefer {
    fn read(headers: &HeaderMap) -> Self {
        let mut prefer = Self::default();
        let lines = headers.get_all(PREFER).iter().filter_map(|line| line.to_str().ok());
        for word in lines.flat_map(|line| line.split(',')) {
            let word = word.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
            match word.split_once('=').map(|(name, value)| (name.trim(), value.trim().trim_matches('"'))) {
                None if word == "respond-async" => prefer.respond_async = true,
                Some(("wait", seconds)) if prefer.wait.is_none() => {
                    prefer.wait = seconds.parse().ok().map(Duration::from_secs);
                }
                Some(("handling", "strict")) => prefer.strict = true,
                _ => {}
            }
        }
        prefer
    }

    /// How long to wait at all: `None` is until the end.
    pub fn patience(self, most_s: u64) -> Option<Duration> {
        let most = Duration::from_secs(most_s);
        match (self.wait, self.respond_async) {
            (Some(wait), _) => Some(wait.min(most)),
            (None, true) => Some(Duration::ZERO),
            (None, false) => None,
        }
    }

    /// Says which preferences were honoured, and how far.
    pub fn applied(self, most_s: u64, mut reply: Response) -> Response {
        let wait = self.wait.map(|wait| format!("wait={}", wait.as_secs().min(most_s)));
        let asynchronous = self.respond_async.then(|| "respond-async".to_owned());
        let strict = (self.strict && wait.is_some()).then(|| "handling=strict".to_owned());
        let words: Vec<_> = asynchronous.into_iter().chain(wait).chain(strict).collect();
        if let Some(value) = HeaderValue::try_from(words.join(", ")).ok().filter(|value| !value.is_empty()) {
            reply.headers_mut().insert(PREFERENCE_APPLIED, value);
        }
        reply
    }
}

impl<S: Sync> FromRequestParts<S> for Prefer {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self::read(&parts.headers))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn preferences_are_read_as_the_rfc_writes_them() {
        let wait = |seconds| Some(Duration::from_secs(seconds));
        for (lines, respond_async, expected) in [
            (&[][..], false, None),
            (&["respond-async"], true, None),
            (&["Respond-Async, wait=5"], true, wait(5)),
            (&["respond-async", "wait=\"7\"; x=y"], true, wait(7)),
            (&["wait=0"], false, wait(0)),
            (&["wait=1, wait=2"], false, wait(1)),
            (&["wait=-1"], false, None),
            (&["wait=soon"], false, None),
            (&["return=minimal"], false, None),
        ] {
            let headers = lines.iter().map(|line| (PREFER, line.parse().unwrap())).collect();
            assert_eq!(
                Prefer::read(&headers),
                Prefer { respond_async, wait: expected, strict: false },
                "{lines:?}"
            );
        }
    }

    #[test]
    fn a_wait_that_must_not_be_in_vain_says_so() {
        let read = |line: &str| Prefer::read(&[(PREFER, line.parse().unwrap())].into_iter().collect());
        for (line, strict) in
            [("wait=5, handling=strict", true), ("handling=\"strict\"", true), ("handling=lenient", false)]
        {
            assert_eq!(read(line).strict, strict, "{line}");
        }
    }

    #[test]
    fn patience_has_an_end() {
        let prefer = Prefer { wait: Some(Duration::from_secs(u64::MAX)), ..Prefer::default() };
        assert_eq!(prefer.patience(600), Some(Duration::from_secs(600)));
        assert_eq!(Prefer { respond_async: true, ..Prefer::default() }.patience(600), Some(Duration::ZERO));
        assert_eq!(Prefer::default().patience(600), None);
    }
}
