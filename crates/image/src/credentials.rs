//! How to log in to a registry: what `docker login` has left behind for the server, or what the operator has
//! given one principal. Asking the former may start a helper program, so that happens on a thread of its own
//! and not for long.

use std::fmt;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::time::Duration;

use docker_credential::{CredentialRetrievalError, DockerCredential};

const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    Password {
        user: String,
        password: String,
    },
    /// Is exchanged for an access token.
    Refresh(String),
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credential(…)")
    }
}

/// Where a registry's credential comes from.
#[derive(Debug)]
pub(crate) enum Keeper {
    /// The folder with `config.json` of `docker login`; without it every pull is anonymous.
    Docker(Option<PathBuf>),
    /// One principal's own, for one registry and for no other host.
    Own { registry: String, credential: Credential },
}

impl Keeper {
    pub(crate) async fn find(&self, wanted: &str) -> Option<Credential> {
        match self {
            Self::Docker(folder) => find(folder.as_deref(), wanted).await,
            Self::Own { registry, credential } => (registry == wanted).then(|| credential.clone()),
        }
    }
}

/// The credential for a registry, if `docker login` knows one. A broken helper is logged, and the
/// registry asked without: it may not mind.
async fn find(folder: Option<&Path>, registry: &str) -> Option<Credential> {
    let folder = folder?.to_owned();
    let names = match registry {
        "docker.io" => vec!["https://index.docker.io/v1/".to_owned(), "docker.io".into()],
        name => vec![name.to_owned(), format!("https://{name}")],
    };
    let look = tokio::task::spawn_blocking(move || names.iter().find_map(|name| look_up(&folder, name)));
    match tokio::time::timeout(PATIENCE, look).await {
        Ok(found) => found.ok().flatten(),
        Err(_) => {
            tracing::warn!(registry, "the credential helper takes too long; asking without credentials");
            None
        }
    }
}

fn look_up(folder: &Path, name: &str) -> Option<Credential> {
    let file = File::open(folder.join("config.json")).ok()?;
    match docker_credential::get_credential_from_reader(BufReader::new(file), name) {
        Ok(DockerCredential::UsernamePassword(user, password)) if user == "<token>" => {
            Some(Credential::Refresh(password))
        }
        Ok(DockerCredential::UsernamePassword(user, password)) => {
            Some(Credential::Password { user, password })
        }
        Ok(DockerCredential::IdentityToken(token)) => Some(Credential::Refresh(token)),
        Err(CredentialRetrievalError::NoCredentialConfigured | CredentialRetrievalError::ConfigNotFound) => {
            None
        }
        // A helper that knows nothing says so by failing; its words may hold secrets.
        Err(CredentialRetrievalError::HelperFailure { helper, .. }) => {
            tracing::debug!(helper, name, "the credential helper has nothing");
            None
        }
        Err(error) => {
            tracing::warn!(%error, name, "can't read docker's credentials");
            None
        }
    }
}
