//! What a registry wants to see before it answers: tokens from its token server, or a password.
//! Tokens are kept for as long as they hold, by registry and repository.

use std::collections::HashMap;
use std::fmt;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use http_auth::parser::ChallengeParser;
use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};
use reqwest::{RequestBuilder, Url};
use serde::Deserialize;

use crate::credentials::Credential;

/// What tokens hold for when nothing is said.
const DEFAULT_LIFE: Duration = Duration::from_secs(60);
/// A token that ends this soon is not used any more.
const SKEW: Duration = Duration::from_secs(10);

/// Goes with a request.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Grant {
    Bearer(String),
    Basic { user: String, password: String },
}

impl fmt::Debug for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Grant(…)")
    }
}

impl Grant {
    pub(crate) fn on(&self, request: RequestBuilder) -> RequestBuilder {
        match self {
            Self::Bearer(token) => request.bearer_auth(token),
            Self::Basic { user, password } => request.basic_auth(user, Some(password)),
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Grants(Mutex<HashMap<(String, String), (Grant, Instant)>>);

impl Grants {
    pub(crate) fn get(&self, registry: &str, repository: &str) -> Option<Grant> {
        let mut grants = self.0.lock().expect("no holder panics");
        grants.retain(|_, (_, until)| *until > Instant::now());
        grants.get(&(registry.to_owned(), repository.to_owned())).map(|(grant, _)| grant.clone())
    }

    pub(crate) fn put(&self, registry: &str, repository: &str, grant: Grant, life: Duration) {
        let until = Instant::now() + life.saturating_sub(SKEW);
        let key = (registry.to_owned(), repository.to_owned());
        self.0.lock().expect("no holder panics").insert(key, (grant, until));
    }

    /// One that was refused. What another request has been given since then stays.
    pub(crate) fn forget(&self, registry: &str, repository: &str, refused: Option<&Grant>) {
        let (mut grants, key) =
            (self.0.lock().expect("no holder panics"), (registry.to_owned(), repository.to_owned()));
        if grants.get(&key).map(|(grant, _)| grant) == refused {
            grants.remove(&key);
        }
    }
}

/// What a 401 asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    Bearer { realm: String, service: Option<String> },
    Basic,
}

impl Challenge {
    /// The one that can be met: a token server before a password.
    pub(crate) fn find(headers: &HeaderMap) -> Option<Self> {
        let mut basic = None;
        for header in headers.get_all(WWW_AUTHENTICATE) {
            for challenge in ChallengeParser::new(header.to_str().ok()?).flatten() {
                let get = |name: &str| {
                    let found = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
                    found.map(|(_, value)| value.to_unescaped())
                };
                if challenge.scheme.eq_ignore_ascii_case("bearer")
                    && let Some(realm) = get("realm")
                {
                    return Some(Self::Bearer { realm, service: get("service") });
                }
                if challenge.scheme.eq_ignore_ascii_case("basic") {
                    basic = Some(Self::Basic);
                }
            }
        }
        basic
    }
}

/// The pairs that a token server is sent.
pub(crate) fn query(service: Option<&str>, repository: &str) -> Vec<(&'static str, String)> {
    let service = service.map(|service| ("service", service.to_owned()));
    service.into_iter().chain([("scope", format!("repository:{repository}:pull"))]).collect()
}

/// The body by which a refresh token is turned into an access token.
pub(crate) fn refresh_form(pairs: &[(&'static str, String)], refresh: &str) -> String {
    let mut url = Url::parse("https://form.invalid/").expect("it is a URL");
    let fixed = [("grant_type", "refresh_token"), ("client_id", "sandglass"), ("refresh_token", refresh)];
    url.query_pairs_mut().extend_pairs(fixed).extend_pairs(pairs);
    url.query().unwrap_or_default().to_owned()
}

#[derive(Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

pub(crate) fn read_answer(body: &[u8]) -> Option<(Grant, Duration)> {
    let answer: Answer = serde_json::from_slice(body).ok()?;
    let token = answer.token.or(answer.access_token).filter(|token| !token.is_empty())?;
    // A day is long enough, and no sum with it overflows.
    let life =
        answer.expires_in.map_or(DEFAULT_LIFE, |seconds| Duration::from_secs(seconds.clamp(60, 86_400)));
    Some((Grant::Bearer(token), life))
}

/// Whether a password for a registry may be shown to this token server: to its own only, which for
/// public ones means the same domain.
pub(crate) fn is_own_token_server(realm: &Url, endpoint: &Url) -> bool {
    let (Some(realm), Some(endpoint)) = (realm.host_str(), endpoint.host_str()) else { return false };
    let domain = |host: &str| {
        let labels: Vec<_> = host.rsplitn(3, '.').take(2).map(str::to_owned).collect();
        (labels.len() == 2 && labels[0].bytes().any(|byte| byte.is_ascii_alphabetic())).then_some(labels)
    };
    realm == endpoint || domain(realm).is_some_and(|found| domain(endpoint) == Some(found))
}

/// Not to be logged, whoever asks.
pub(crate) fn basic(credential: &Credential) -> Option<Grant> {
    match credential {
        Credential::Password { user, password } => {
            Some(Grant::Basic { user: user.clone(), password: password.clone() })
        }
        Credential::Refresh(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn challenge(headers: &[&str]) -> Option<Challenge> {
        let mut map = HeaderMap::new();
        for header in headers {
            map.append(WWW_AUTHENTICATE, header.parse().unwrap());
        }
        Challenge::find(&map)
    }

    /// Layers are downloaded side by side, and all of them hear at once that their token holds no more.
    #[test]
    fn a_token_that_another_request_has_just_got_is_not_forgotten() {
        let (grants, [old, new]) =
            (Grants::default(), ["old", "new"].map(|token| Grant::Bearer(token.into())));
        grants.put("r", "x", old.clone(), DEFAULT_LIFE);
        grants.forget("r", "x", Some(&old));
        assert_eq!(grants.get("r", "x"), None);
        grants.put("r", "x", new.clone(), DEFAULT_LIFE);
        grants.forget("r", "x", Some(&old));
        grants.forget("r", "x", None);
        assert_eq!(grants.get("r", "x"), Some(new));
    }

    #[test]
    fn a_token_server_goes_before_a_password() {
        let bearer = r#"Bearer realm="https://auth.example/token?x=1",service="registry.example",scope="repository:a:pull""#;
        let expected = Challenge::Bearer {
            realm: "https://auth.example/token?x=1".into(),
            service: Some("registry.example".into()),
        };
        assert_eq!(challenge(&["Basic realm=\"x\"", bearer]).unwrap(), expected);
        assert_eq!(challenge(&[&format!("basic realm=\"x\", {bearer}")]).unwrap(), expected);
        assert_eq!(challenge(&["Basic realm=\"x\""]), Some(Challenge::Basic));
        assert_eq!(challenge(&["Bearer", "Negotiate", "?"]), None);
    }

    #[test]
    fn passwords_go_to_a_registry_s_own_token_server_only() {
        let own = |realm, endpoint| {
            is_own_token_server(&Url::parse(realm).unwrap(), &Url::parse(endpoint).unwrap())
        };
        assert!(own("https://auth.docker.io/token", "https://registry-1.docker.io/v2/"));
        assert!(own("https://ghcr.io/token", "https://ghcr.io/v2/"));
        assert!(own("https://10.0.0.1/token", "https://10.0.0.1:5000/v2/"));
        assert!(!own("https://evil.example/token", "https://ghcr.io/v2/"));
        assert!(!own("https://10.1.0.1/token", "https://10.2.0.1/v2/"));
    }

    #[test]
    fn answers_and_forms_are_plain() {
        assert_eq!(
            read_answer(br#"{"access_token":"t","expires_in":300}"#).unwrap().1,
            Duration::from_secs(300)
        );
        assert_eq!(read_answer(br#"{"token":"t"}"#).unwrap().1, DEFAULT_LIFE);
        assert!(
            read_answer(br#"{"token":""}"#).is_none()
                && read_answer(b"{}").is_none()
                && read_answer(b"x").is_none()
        );
        let form = refresh_form(&query(Some("a&b"), "r"), "s=t");
        assert!(
            form.contains("refresh_token=s%3Dt")
                && form.contains("service=a%26b")
                && form.contains("scope=repository%3Ar%3Apull")
        );
    }
}
