//! Talking to registries: one request with its redirects and its token, repeated where that helps.
//! Bodies of strangers are bounded, and where a URL leads is decided by `rules` every time.

use std::collections::HashMap;
use std::error::Error;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use reqwest::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE, LOCATION, RANGE};
use reqwest::{Client, ClientBuilder, Method, Response, StatusCode, Url, redirect};

use crate::credentials::{Credential, Keeper};
use crate::mirrors::{FromMirror, Mirrors};
use crate::reference::Reference;
use crate::retry::{Backoff, Failure, retry_after};
use crate::rules::{NotPublic, PublicOnly, Reach, Rules};
use crate::token::{self, Challenge, Grants};
use crate::{Config, ImageError, Observer};

const MOST_REDIRECTS: usize = 5;
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
const MOST_TOKEN_BYTES: u64 = 1 << 20;

/// Registries as whoever has these credentials sees them. What one is granted is no other's.
pub(crate) struct Registries {
    pub(crate) rules: Arc<Rules>,
    clients: Arc<Clients>,
    credentials: Keeper,
    grants: Grants,
    /// Registries that want to be left alone, and until when.
    held: Mutex<HashMap<String, Instant>>,
    mirrors: Mirrors,
    observer: Arc<dyn Observer>,
}

/// One thing that is wanted from one registry.
#[derive(Clone, Debug)]
pub(crate) struct Ask<'a> {
    pub(crate) image: &'a Reference,
    pub(crate) method: Method,
    /// Below the repository: `manifests/latest`.
    pub(crate) path: String,
    pub(crate) accept: Option<&'static str>,
    pub(crate) from_byte: u64,
}

impl Registries {
    pub(crate) fn new(config: &Config, observer: Arc<dyn Observer>) -> Self {
        // Fails where the process has a provider already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Self {
            rules: Arc::new(Rules::new(config)),
            clients: Arc::new(Clients::new(config.idle_timeout)),
            credentials: Keeper::Docker(config.docker_config.clone()),
            grants: Grants::default(),
            held: Mutex::default(),
            mirrors: Mirrors::new(config.mirrors.clone()),
            observer,
        }
    }

    /// The same registries for whoever has a login of its own at one of them. Mirrors are not asked: they
    /// don't know who may have what.
    pub(crate) fn of(&self, registry: &str, credential: Credential) -> Self {
        Self {
            rules: Arc::clone(&self.rules),
            clients: Arc::clone(&self.clients),
            credentials: Keeper::Own { registry: registry.into(), credential },
            grants: Grants::default(),
            held: Mutex::default(),
            mirrors: Mirrors::new(Vec::new()),
            observer: Arc::clone(&self.observer),
        }
    }

    /// Repeats what `attempt` does until it succeeds or is hopeless.
    pub(crate) async fn retrying<T, F: Future<Output = Result<T, Failure>> + Send>(
        &self,
        registry: &str,
        mut attempt: impl FnMut() -> F + Send,
    ) -> Result<T, ImageError> {
        let mut backoff = Backoff::default();
        loop {
            match attempt().await {
                Ok(value) => return Ok(value),
                Err(failure) => self.pause(registry, &mut backoff, failure).await?,
            }
        }
    }

    /// Waits before the next attempt, or says that there is none.
    pub(crate) async fn pause(
        &self,
        registry: &str,
        backoff: &mut Backoff,
        failure: Failure,
    ) -> Result<(), ImageError> {
        let (pause, reason) = backoff.after(failure)?;
        self.observer.retried(reason);
        tracing::debug!(registry, reason, pause_ms = pause.as_millis() as u64, "asking the registry again");
        if reason == "rate_limit" {
            self.held.lock().expect("no holder panics").insert(registry.into(), Instant::now() + pause);
        }
        tokio::time::sleep(pause).await;
        Ok(())
    }

    /// One attempt, at each mirror and then at the registry. What comes back has succeeded.
    pub(crate) async fn send(&self, ask: &Ask<'_>) -> Result<Response, Failure> {
        for place in self.mirrors.of(ask.image) {
            match self.send_to(&Ask { image: &place, ..ask.clone() }).await {
                Ok(mut response) => {
                    response.extensions_mut().insert(FromMirror(place.registry));
                    return Ok(response);
                }
                Err(Failure::Passing { after, reason, .. }) => {
                    self.observer.retried(reason);
                    self.mirrors.rest(&place.registry, after);
                }
                // It does not have it, or not for us; another one may.
                Err(Failure::Final(_)) => {}
            }
        }
        self.send_to(ask).await
    }

    /// Whoever sent this has not kept what it promised: where there are others, they are asked next.
    pub(crate) fn let_down(&self, response: &Response) {
        if let Some(mirror) = FromMirror::of(response) {
            self.rest(&mirror);
        }
    }

    pub(crate) fn rest(&self, FromMirror(host): &FromMirror) {
        self.mirrors.rest(host, None);
    }

    async fn send_to(&self, ask: &Ask<'_>) -> Result<Response, Failure> {
        let Reference { registry, repository, .. } = ask.image;
        self.wait_while_held(registry).await;
        let endpoint = self.rules.endpoint(registry)?;
        let url = endpoint
            .join(&format!("{repository}/{}", ask.path))
            .map_err(|error| failed(ask.image, &error.to_string()))?;
        let shown = self.grants.get(registry, repository);
        let response = self.follow(ask, url.clone()).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return self.judge(ask, response);
        }
        self.grants.forget(registry, repository, shown.as_ref());
        let challenge = Challenge::find(response.headers());
        self.authenticate(ask.image, &endpoint, challenge).await?;
        let response = self.follow(ask, url).await?;
        self.judge(ask, response)
    }

    async fn follow(&self, ask: &Ask<'_>, mut url: Url) -> Result<Response, Failure> {
        let registry = &ask.image.registry;
        let home = url.origin();
        for _ in 0..=MOST_REDIRECTS {
            let mut request = self.client(&url, registry)?.request(ask.method.clone(), url.clone());
            request = request.header(ACCEPT_ENCODING, "identity");
            if let Some(accept) = ask.accept {
                request = request.header(ACCEPT, accept);
            }
            if ask.from_byte > 0 {
                request = request.header(RANGE, format!("bytes={}-", ask.from_byte));
            }
            // Whoever the registry sends us to is not shown what was meant for the registry.
            if let Some(grant) = self
                .grants
                .get(registry, &ask.image.repository)
                .filter(|_| url.origin() == home || !walls::stands("token_stays_home"))
            {
                request = grant.on(request);
            }
            let response = request.send().await.map_err(|error| self.broken(ask.image, &error))?;
            let is_redirect = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
            let Some(location) = response.headers().get(LOCATION).filter(|_| is_redirect) else {
                return Ok(response);
            };
            let location = location.to_str().ok().and_then(|location| url.join(location).ok());
            let next = location.ok_or_else(|| failed(ask.image, "it redirects to what is no URL"))?;
            if url.scheme() == "https" && next.scheme() != "https" {
                return Err(self.rules.local(registry, "it redirects from https to plain http").into());
            }
            url = next;
        }
        Err(failed(ask.image, "it redirects too often").into())
    }

    fn client(&self, url: &Url, registry: &str) -> Result<&Client, ImageError> {
        Ok(match self.rules.check(url, registry)? {
            Reach::Public => self.clients.public(),
            Reach::Anywhere if url.scheme() == "http" => self.clients.plain(),
            Reach::Anywhere => self.clients.anywhere(),
        })
    }

    async fn authenticate(
        &self,
        image: &Reference,
        endpoint: &Url,
        challenge: Option<Challenge>,
    ) -> Result<(), Failure> {
        let Reference { registry, repository, .. } = image;
        let credential = self.credentials.find(registry).await;
        let (grant, life) = match challenge {
            None => return Err(refused(image, "it does not say how to log in").into()),
            Some(Challenge::Basic) => {
                let grant = credential.as_ref().and_then(token::basic);
                let grant = grant
                    .ok_or_else(|| refused(image, "it wants a password, and `docker login` has left none"))?;
                (grant, Duration::from_secs(3600))
            }
            Some(Challenge::Bearer { realm, service }) => {
                let realm = Url::parse(&realm).map_err(|_| failed(image, "its token server is no URL"))?;
                if credential.is_some()
                    && !token::is_own_token_server(&realm, endpoint)
                    && walls::stands("own_token_server")
                {
                    let reason =
                        format!("its token server {} is not its own", realm.host_str().unwrap_or_default());
                    return Err(refused(image, &reason).into());
                }
                let body = self.fetch_token(image, realm, service.as_deref(), credential.as_ref()).await?;
                token::read_answer(&body)
                    .ok_or_else(|| failed(image, "its token server's answer has no token"))?
            }
        };
        self.grants.put(registry, repository, grant, life);
        Ok(())
    }

    async fn fetch_token(
        &self,
        image: &Reference,
        mut realm: Url,
        service: Option<&str>,
        credential: Option<&Credential>,
    ) -> Result<Vec<u8>, Failure> {
        let client = self.client(&realm, &image.registry)?;
        let pairs = token::query(service, &image.repository);
        let request = match credential {
            Some(Credential::Refresh(refresh)) => client
                .post(realm)
                .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(token::refresh_form(&pairs, refresh)),
            other => {
                realm.query_pairs_mut().extend_pairs(&pairs);
                let request = client.get(realm);
                match other.and_then(token::basic) {
                    Some(grant) => grant.on(request),
                    None => request,
                }
            }
        };
        let response = request.send().await.map_err(|error| self.broken(image, &error))?;
        match response.status() {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Err(refused(image, "its token server refuses the login").into())
            }
            status if !status.is_success() => {
                Err(passing_or_final(image, status, retry_after(response.headers())))
            }
            _ => self.read(image, response, MOST_TOKEN_BYTES, "bytes in a token").await,
        }
    }

    /// A whole body, no longer than `limit`.
    pub(crate) async fn read(
        &self,
        image: &Reference,
        mut response: Response,
        limit: u64,
        what: &str,
    ) -> Result<Vec<u8>, Failure> {
        let too_large = || ImageError::TooLarge { reference: image.to_string(), what: what.into(), limit };
        if response.content_length().is_some_and(|len| len > limit) {
            return Err(too_large().into());
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|error| self.broken(image, &error))? {
            if body.len() as u64 + chunk.len() as u64 > limit {
                return Err(too_large().into());
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    fn judge(&self, ask: &Ask<'_>, response: Response) -> Result<Response, Failure> {
        let image = ask.image;
        match response.status() {
            status if status.is_success() => Ok(response),
            StatusCode::NOT_FOUND => Err(ImageError::NotFound { reference: image.to_string() }.into()),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Err(refused(image, "it is private, or there is no such image").into())
            }
            status => Err(passing_or_final(image, status, retry_after(response.headers()))),
        }
    }

    async fn wait_while_held(&self, registry: &str) {
        let until = self.held.lock().expect("no holder panics").get(registry).copied();
        if let Some(until) = until {
            tokio::time::sleep_until(until.into()).await;
        }
    }

    /// What a failed connection or a broken body means.
    pub(crate) fn broken(&self, image: &Reference, error: &reqwest::Error) -> Failure {
        let chain =
            || std::iter::successors(Some(error as &(dyn Error + 'static)), |error| (*error).source());
        if let Some(not_public) = chain().find_map(|error| error.downcast_ref::<NotPublic>()) {
            return self.rules.local(&image.registry, &not_public.to_string()).into();
        }
        let reason = match error {
            error if error.is_timeout() => "timeout",
            error if error.is_connect() => "connect",
            _ => "broken",
        };
        // The URL may hold a signature; the last cause is what people need.
        let cause = chain().last().map(ToString::to_string).unwrap_or_default();
        Failure::Passing { reason, after: None, error: failed(image, &format!("{reason}: {cause}")) }
    }
}

/// What connects to registries. Each is made when it is first needed: reading the certificates that a machine trusts
/// takes a hundredth of a second.
struct Clients {
    idle_timeout: Duration,
    public: OnceLock<Client>,
    anywhere: OnceLock<Client>,
    plain: OnceLock<Client>,
}

impl Clients {
    fn new(idle_timeout: Duration) -> Self {
        Self { idle_timeout, public: OnceLock::new(), anywhere: OnceLock::new(), plain: OnceLock::new() }
    }

    /// For registries that anybody can name.
    fn public(&self) -> &Client {
        self.public.get_or_init(|| self.trusting(|builder| builder.dns_resolver(PublicOnly)))
    }

    /// For those that the operator has named.
    fn anywhere(&self) -> &Client {
        self.anywhere.get_or_init(|| self.trusting(|builder| builder))
    }

    /// For those without https.
    fn plain(&self) -> &Client {
        self.plain.get_or_init(|| self.trusting_nobody(|builder| builder))
    }

    fn builder(&self) -> ClientBuilder {
        Client::builder()
            .redirect(redirect::Policy::none())
            .no_proxy()
            .referer(false)
            .connect_timeout(CONNECT_PATIENCE)
            .read_timeout(self.idle_timeout)
            .user_agent(concat!("sandglass/", env!("CARGO_PKG_VERSION")))
    }

    fn trusting(&self, with: impl Fn(ClientBuilder) -> ClientBuilder) -> Client {
        with(self.builder()).build().unwrap_or_else(|error| {
            tracing::warn!(
                %error, "this machine trusts no certificates; only registries without https can be asked"
            );
            self.trusting_nobody(with)
        })
    }

    fn trusting_nobody(&self, with: impl Fn(ClientBuilder) -> ClientBuilder) -> Client {
        let builder = with(self.builder()).tls_certs_only([]);
        builder.build().expect("without certificates there is nothing to fail")
    }
}

pub(crate) fn failed(image: &Reference, reason: &str) -> ImageError {
    ImageError::Registry { registry: image.registry.clone(), reason: reason.into() }
}

fn refused(image: &Reference, reason: &str) -> ImageError {
    ImageError::Unauthorized {
        registry: image.registry.clone(),
        reference: image.to_string(),
        reason: reason.into(),
    }
}

fn passing_or_final(image: &Reference, status: StatusCode, after: Option<Duration>) -> Failure {
    let error = failed(image, &format!("it answers {status}"));
    match status.as_u16() {
        429 => {
            let error = ImageError::RateLimited { registry: image.registry.clone(), retry_after: after };
            Failure::Passing { reason: "rate_limit", after, error }
        }
        408 | 500 | 502 | 503 | 504 | 522 => Failure::Passing { reason: "server_error", after, error },
        _ => Failure::Final(error),
    }
}
