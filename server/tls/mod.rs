//! TLS of the server's own: the handshake, bounded in time, and a certificate that can be exchanged while
//! connections go on.

mod certificate;

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::Context;
use jiff::Timestamp;
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::signal::unix::{SignalKind, signal};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use self::certificate::Certificate;
use crate::config::Config;
use crate::telemetry::{Handshake, Telemetry};

const HTTP2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";

/// How often the files are looked at: who renews certificates need not know how to send a signal.
const LOOK_EVERY: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub struct Tls {
    files: (PathBuf, PathBuf),
    acceptor: Acceptor,
    now: Arc<Now>,
    telemetry: Arc<Telemetry>,
}

/// rustls' own says nothing of itself.
struct Acceptor(TlsAcceptor);

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Acceptor")
    }
}

/// The certificate that is shown to the next client.
#[derive(Debug)]
struct Now(RwLock<Arc<Certificate>>);

impl Now {
    fn get(&self) -> Arc<Certificate> {
        // Whoever writes only exchanges a pointer.
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn set(&self, certificate: Certificate) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(certificate);
    }
}

impl ResolvesServerCert for Now {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.get().key))
    }
}

impl Tls {
    /// What the configuration says; `None` where it says nothing of TLS. Must be called as the user that
    /// reads the files again later: who can't is told now, and not on the day of the renewal.
    pub fn open(config: &Config, telemetry: Arc<Telemetry>) -> anyhow::Result<Option<Arc<Self>>> {
        let Some(files) = config.tls_files()? else { return Ok(None) };
        let certificate = Certificate::read(&files.0, &files.1)?;
        telemetry.certificate_is_good_until(certificate.until);
        certificate.say("serving with this certificate");
        let now = Arc::new(Now(RwLock::new(Arc::new(certificate))));
        let mut settings = ServerConfig::builder_with_provider(ring::default_provider().into())
            .with_safe_default_protocol_versions()
            .context("set up TLS")?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&now) as _);
        settings.alpn_protocols = vec![HTTP2.to_vec(), HTTP1.to_vec()];
        let acceptor = Acceptor(TlsAcceptor::from(Arc::new(settings)));
        Ok(Some(Arc::new(Self { files, acceptor, now, telemetry })))
    }

    /// The handshake, and whether the client wants HTTP/2. A client that takes longer is hung up on.
    pub async fn greet<S>(&self, stream: S, most: Duration) -> Option<(TlsStream<S>, bool)>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        match tokio::time::timeout(most, self.acceptor.0.accept(stream)).await {
            Ok(Ok(stream)) => {
                self.telemetry.shook_hands(Handshake::Ok, None);
                let http2 = stream.get_ref().1.alpn_protocol() == Some(HTTP2);
                Some((stream, http2))
            }
            Ok(Err(error)) => {
                self.telemetry.shook_hands(Handshake::Failed, Some(&error));
                None
            }
            Err(_) => {
                self.telemetry.shook_hands(Handshake::Timeout, None);
                None
            }
        }
    }

    /// Reads the files again, for as long as the runtime lives: at SIGHUP, and by itself when they have
    /// changed. Connections go on under the certificate with which they began.
    pub async fn watch(&self) -> std::io::Result<()> {
        let mut told = signal(SignalKind::hangup())?;
        let mut refused = None;
        loop {
            let said = tokio::select! {
                _ = told.recv() => true,
                () = tokio::time::sleep(LOOK_EVERY) => false,
            };
            let read = Certificate::read(&self.files.0, &self.files.1);
            refused = self.take(read, said, refused.as_ref());
        }
    }

    /// Returns what was wrong, so that it is said once and not every minute.
    fn take(
        &self,
        read: anyhow::Result<Certificate>,
        said: bool,
        refused: Option<&String>,
    ) -> Option<String> {
        match read {
            Ok(new) if said || new.key.cert != self.now.get().key.cert => {
                self.telemetry.certificate_is_good_until(new.until);
                new.say("serving with this certificate from now on");
                self.now.set(new);
                None
            }
            Ok(_) => None,
            Err(error) => {
                let error = format!("{error:#}");
                if said || refused != Some(&error) {
                    tracing::error!(error, "the certificate stays as it was");
                }
                Some(error)
            }
        }
    }
}

/// How a time is told to operators.
fn day(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
