//! Docker Hub, as far as whoever pulls from it can tell: a registry that wants tokens, a token server of the
//! same domain, and another host that has the blobs. All three are one listener on an address of loopback, on
//! the port that names without one mean, and are told apart by the name that they were asked under.

use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine;

use crate::liar::Asked;
use crate::registry::{PASSWORD, USER};
use crate::{Builder, Daemon, Liar, Lie, Registry, Value, json};

pub const REGISTRY: &str = "registry-1.docker.io";
pub const AUTH: &str = "auth.docker.io";
pub const CDN: &str = "production.cloudflare.docker.com";

/// How many requests the first token is good for. Those that come after it hold: layers are pulled at the same
/// time, and each would otherwise use up what another has just been given.
const FIRST_TOKEN_USES: usize = 3;

/// One request, with the name of the host that it went to.
#[derive(Clone, Debug)]
pub struct Asking {
    pub host: String,
    pub method: String,
    pub path: String,
    /// What it showed of itself.
    pub authorization: String,
}

/// A running hub.
#[derive(Debug)]
pub struct Hub {
    address: String,
    asked: Arc<Mutex<Vec<Asking>>>,
    _liar: Liar,
}

/// What a token server remembers.
#[derive(Default)]
struct Tokens {
    given: usize,
    first_used: usize,
    has_said_wait: bool,
}

impl Tokens {
    fn holds(&mut self, authorization: &str) -> bool {
        let number =
            authorization.strip_prefix("Bearer token-").and_then(|number| number.parse::<usize>().ok());
        self.first_used += usize::from(number == Some(1));
        number
            .is_some_and(|number| number <= self.given && (number > 1 || self.first_used <= FIRST_TOKEN_USES))
    }
}

impl Hub {
    /// In front of a registry that has the images, `library/` and all. Once it says that it is asked too often.
    pub fn before(registry: &Registry) -> Self {
        // Tests run beside each other, and loopback has addresses for all of them.
        let pid = std::process::id();
        let address = format!("127.{}.{}.77", 64 + (pid >> 8) % 64, pid % 256);
        let asked: Arc<Mutex<Vec<Asking>>> = Arc::default();
        let (seen, tokens) = (Arc::clone(&asked), Mutex::new(Tokens::default()));
        let liar = Liar::start_at(&format!("{address}:80"), registry, |_| {
            Box::new(move |asked: &Asked<'_>| {
                let [host, method, path, authorization] =
                    [asked.host, asked.method, asked.path, asked.authorization].map(str::to_owned);
                let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                seen.push(Asking { host, method, path, authorization });
                answer(asked, &mut tokens.lock().unwrap_or_else(PoisonError::into_inner))
            })
        });
        Self { address, asked, _liar: liar }
    }

    /// A daemon for which this is Docker Hub.
    pub fn daemon(&self) -> Builder {
        let names = [REGISTRY, AUTH, CDN];
        let plain = ["docker.io"].iter().chain(&names).copied().collect::<Vec<_>>().join(",");
        Daemon::builder().with_hosts(&self.address, &names).flag("--insecure-registry", plain)
    }

    /// What `docker login` leaves behind.
    pub fn docker_config() -> Value {
        json!({ "auths": { "https://index.docker.io/v1/": { "auth": login() } } })
    }

    pub fn asked(&self) -> Vec<Asking> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn login() -> String {
    base64::prelude::BASE64_STANDARD.encode(format!("{USER}:{PASSWORD}"))
}

fn answer(asked: &Asked<'_>, tokens: &mut Tokens) -> Lie {
    let header = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    match asked.host {
        AUTH if asked.authorization == format!("Basic {}", login()) => {
            tokens.given += 1;
            let token = format!("token-{}", tokens.given);
            let body = json!({ "token": token, "access_token": token, "expires_in": 300 });
            Lie::Say(200, vec![header("Content-Type", "application/json")], body.to_string().into())
        }
        // Whoever signs its URLs takes nothing else beside the signature.
        CDN if asked.authorization.is_empty() && asked.path.ends_with("?signature=secret") => Lie::Truth,
        REGISTRY if !tokens.holds(asked.authorization) => {
            let realm = format!("Bearer realm=\"http://{AUTH}/token\",service=\"registry.docker.io\"");
            Lie::Say(401, vec![header("WWW-Authenticate", &realm)], b"{}".to_vec())
        }
        REGISTRY => {
            let limits =
                vec![header("RateLimit-Limit", "100;w=21600"), header("RateLimit-Remaining", "99;w=21600")];
            if asked.path.contains("/blobs/") {
                let place = format!("http://{CDN}{}?signature=secret", asked.path);
                return Lie::Say(307, vec![header("Location", &place)], Vec::new());
            }
            if !std::mem::replace(&mut tokens.has_said_wait, true) {
                let wait = vec![header("Retry-After", "1"), header("RateLimit-Remaining", "0;w=21600")];
                return Lie::Say(429, wait, br#"{"errors": [{"code": "TOOMANYREQUESTS"}]}"#.to_vec());
            }
            Lie::TruthWith(limits)
        }
        _ => Lie::Say(400, Vec::new(), Vec::new()),
    }
}
