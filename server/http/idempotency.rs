//! The `Idempotency-Key` header: a client's own name for a request, so that it can ask again without running
//! twice.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName};
use engine::Key;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::problem::{BadValue, Problem};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const MOST_BYTES: usize = 255;

/// The key, if there is one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyKey(Option<String>);

impl IdempotencyKey {
    fn read(headers: &HeaderMap) -> Result<Self, Problem> {
        let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
        let Some(value) = values.next() else { return Ok(Self(None)) };
        let text = value.to_str().ok().filter(|text| (1..=MOST_BYTES).contains(&text.len()));
        match text.filter(|_| values.next().is_none()) {
            Some(text) => Ok(Self(Some(text.to_owned()))),
            None => {
                let detail = format!("must be one key of 1 to {MOST_BYTES} printable ASCII characters");
                Err(Problem::invalid(vec![BadValue::parameter("Idempotency-Key", detail)]))
            }
        }
    }

    /// The key for this request. What the body says counts, not how it is spaced or in which order.
    pub fn of(self, owner: &str, body: &Value) -> Option<Key> {
        self.over("", owner, body)
    }

    /// The same for a request for a batch, which is never the same as one for a run.
    pub fn of_batch(self, owner: &str, body: &Value) -> Option<Key> {
        self.over("batch ", owner, body)
    }

    fn over(self, prefix: &str, owner: &str, body: &Value) -> Option<Key> {
        let name = self.0?;
        let owner = if walls::stands("own_keys") { owner } else { "" };
        let mut canonical = prefix.as_bytes().to_vec();
        serde_json::to_writer(&mut canonical, body).ok()?;
        Some(Key { owner: owner.to_owned(), name, body: Sha256::digest(canonical).into() })
    }
}

impl<S: Sync> FromRequestParts<S> for IdempotencyKey {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Self::read(&parts.headers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_one_word_of_a_sane_length() {
        let long = "x".repeat(MOST_BYTES + 1);
        for (lines, good) in [
            (&[][..], true),
            (&["8e03978e-40d5-43dd-bc93-6894a57f9324"], true),
            (&["\"quoted\""], true),
            (&["two words"], true),
            (&[""], false),
            (&["a", "b"], false),
            (&["\u{e4}"], false),
            (&[long.as_str()], false),
        ] {
            let headers = lines.iter().map(|line| (IDEMPOTENCY_KEY, line.parse().unwrap())).collect();
            assert_eq!(IdempotencyKey::read(&headers).is_ok(), good, "{lines:?}");
        }
    }

    #[test]
    fn the_same_body_is_the_same_however_it_is_written() {
        let key = |body: &str| {
            let body = super::super::json::parse(body.as_bytes()).unwrap();
            IdempotencyKey(Some("k".into())).of("", &body).unwrap()
        };
        assert_eq!(key(r#"{"a": 1, "b": [2]}"#), key(r#"{"b":[2],"a":1}"#));
        assert_ne!(key(r#"{"a": 1}"#), key(r#"{"a": 2}"#));
        let body = super::super::json::parse(b"{}").unwrap();
        assert_ne!(Some(key("{}")), IdempotencyKey(Some("k".into())).of_batch("", &body));
    }
}
