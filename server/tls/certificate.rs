//! A certificate and its key, read from two files. What is wrong with them is said in words that name the
//! setting and the file.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, anyhow, bail, ensure};
use jiff::Timestamp;
use rustls::crypto::ring;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use rustls::{Error, InconsistentKeys};
use x509_cert::der::Decode;
use x509_cert::time::Time;

use super::day;

/// What is shown to clients, and for how long it is good.
#[derive(Debug)]
pub(super) struct Certificate {
    pub key: Arc<CertifiedKey>,
    from: Timestamp,
    pub until: Timestamp,
}

impl Certificate {
    pub(super) fn read(chain: &Path, key: &Path) -> anyhow::Result<Self> {
        let (chain_text, key_text) = (read("tls_cert", chain)?, read("tls_key", key)?);
        Self::parse(&chain_text, &key_text).map_err(|wrong| match wrong {
            Wrong::Chain(error) => error.context(format!("tls_cert {}", chain.display())),
            Wrong::Key(error) => error.context(format!("tls_key {}", key.display())),
            Wrong::Together => {
                anyhow!(
                    "the key in tls_key {} is not that of the first certificate in tls_cert {}",
                    key.display(),
                    chain.display()
                )
            }
        })
    }

    fn parse(chain: &[u8], key: &[u8]) -> Result<Self, Wrong> {
        let chain = parse_chain(chain).map_err(Wrong::Chain)?;
        let (from, until) = good_for(&chain[0]).map_err(Wrong::Chain)?;
        let key = parse_key(key).map_err(Wrong::Key)?;
        match CertifiedKey::from_der(chain, key, &ring::default_provider()) {
            Ok(key) => Ok(Self { key: Arc::new(key), from, until }),
            Err(Error::InconsistentKeys(InconsistentKeys::KeyMismatch)) => Err(Wrong::Together),
            Err(Error::InvalidCertificate(why)) => {
                Err(Wrong::Chain(anyhow!(Error::InvalidCertificate(why)).context("can't be used")))
            }
            Err(error) => Err(Wrong::Key(anyhow!(error).context("can't be used"))),
        }
    }

    /// A certificate that is not good today is served all the same: who renews it late has a server.
    pub(super) fn say(&self, what: &str) {
        let now = Timestamp::now();
        let (from, until) = (day(self.from), day(self.until));
        if self.until <= now {
            tracing::warn!(until, "the certificate has expired: clients will refuse it");
        } else if self.from > now {
            tracing::warn!(from, "the certificate is not good yet: clients will refuse it");
        }
        tracing::info!(from, until, "{what}");
    }
}

#[derive(Debug)]
enum Wrong {
    Chain(anyhow::Error),
    Key(anyhow::Error),
    Together,
}

fn read(setting: &str, path: &Path) -> anyhow::Result<Vec<u8>> {
    fs::read(path).with_context(|| {
        format!(
            "read {setting} {} as the user that the server has become, who reads it again at SIGHUP",
            path.display()
        )
    })
}

fn parse_chain(text: &[u8]) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let chain = CertificateDer::pem_slice_iter(text).collect::<Result<Vec<_>, _>>();
    let chain = chain.context("is not PEM")?;
    ensure!(!chain.is_empty(), "holds no certificate in PEM (`-----BEGIN CERTIFICATE-----`)");
    Ok(chain)
}

fn parse_key(text: &[u8]) -> anyhow::Result<PrivateKeyDer<'static>> {
    match PrivateKeyDer::from_pem_slice(text) {
        Ok(key) => Ok(key),
        Err(pem::Error::NoItemsFound) if String::from_utf8_lossy(text).contains("ENCRYPTED") => {
            bail!("is encrypted, and a server can't be asked for its password")
        }
        Err(pem::Error::NoItemsFound) => {
            bail!("holds no private key in PEM (`-----BEGIN PRIVATE KEY-----`)")
        }
        Err(error) => Err(error).context("is not PEM"),
    }
}

fn good_for(certificate: &CertificateDer<'_>) -> anyhow::Result<(Timestamp, Timestamp)> {
    let parsed = x509_cert::Certificate::from_der(certificate).context("holds what is no certificate")?;
    let validity = parsed.tbs_certificate().validity();
    let at = |time: &Time| {
        let seconds = i64::try_from(time.to_unix_duration().as_secs())?;
        Timestamp::from_second(seconds).map_err(anyhow::Error::from)
    };
    Ok((at(&validity.not_before)?, at(&validity.not_after)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_certificate_and_what_is_no_key_is_told_apart() {
        let junk = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let cut = b"-----BEGIN CERTIFICATE-----\nAAAA\n";
        for (chain, words) in [
            (&b""[..], "holds no certificate in PEM"),
            (b"nonsense", "holds no certificate in PEM"),
            (cut, "is not PEM"),
            (junk, "holds what is no certificate"),
        ] {
            let Err(Wrong::Chain(error)) = Certificate::parse(chain, b"") else { panic!("{words}") };
            assert!(format!("{error:#}").starts_with(words), "{error:#}");
        }
        for (key, words) in [
            (&b""[..], "holds no private key in PEM"),
            (
                b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
                "is encrypted",
            ),
            (b"-----BEGIN PRIVATE KEY-----\nAAAA\n", "is not PEM"),
        ] {
            assert!(format!("{:#}", parse_key(key).unwrap_err()).starts_with(words), "{words}");
        }
    }
}
