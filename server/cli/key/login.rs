//! `sandglass key login` and `logout`: what a principal has of its own at registries.

use std::io::Read;
use std::path::PathBuf;

use anyhow::{Context, bail, ensure};
use run::PrincipalName;

use crate::cli::flags::ConfigFlags;
use crate::keys::logins::{Auth, Auths, LoginFile, registry};
use crate::say::tell;

/// The longest password or token that is read.
const SECRET_BYTES_MAX: u64 = 64 * 1024;

#[derive(Debug, clap::Args)]
pub(super) struct Login {
    /// Whose it is: images that are pulled with it are for that principal alone
    principal: String,
    /// The registry: `ghcr.io`, `localhost:5000`, or `docker.io` for Docker Hub
    #[arg(required_unless_present = "docker_config_file", requires = "username")]
    registry: Option<String>,
    /// The name of the user there
    #[arg(long, requires = "registry", requires = "password_stdin")]
    username: Option<String>,
    /// Read the password or the access token from standard input
    #[arg(long)]
    password_stdin: bool,
    /// Take over all logins of a Docker configuration, such as one that a Secret brings
    #[arg(long = "from", value_name = "FILE", conflicts_with = "registry")]
    docker_config_file: Option<PathBuf>,
    #[command(flatten)]
    config: ConfigFlags<false>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Logout {
    /// Whose logins are taken back
    principal: String,
    /// The registry; without it, all of the principal's
    registry: Option<String>,
    #[command(flatten)]
    config: ConfigFlags<false>,
}

impl Login {
    pub(super) fn give(&self) -> anyhow::Result<()> {
        let data_dir = self.config.load()?.data_dir;
        let principal = PrincipalName::parse(&self.principal)?;
        let given = self.read()?;
        let names = given.names().collect::<Vec<_>>().join(", ");
        LoginFile::change(&data_dir, |file| {
            file.principals.entry(principal.clone()).or_default().auths.extend(given.auths);
            Ok(())
        })?;
        tell!("{principal} has a login of its own at {names}");
        Ok(())
    }

    fn read(&self) -> anyhow::Result<Auths> {
        if let Some(path) = &self.docker_config_file {
            let given = Auths::read(path)?;
            ensure!(!given.auths.is_empty(), "{} has no logins", path.display());
            return Ok(given);
        }
        let (Some(name), Some(user)) = (&self.registry, &self.username) else {
            bail!("name a registry and --username, or --from");
        };
        ensure!(!user.is_empty() && !user.contains(':'), "--username is {user:?}; it must have no colon");
        let mut secret = String::new();
        let read = std::io::stdin().take(SECRET_BYTES_MAX).read_to_string(&mut secret);
        read.context("read the password from standard input")?;
        let secret = secret.trim_end_matches(['\r', '\n']);
        ensure!(!secret.is_empty(), "standard input has no password");
        let auths = [(registry(name)?, Auth::password(user, secret))].into();
        Ok(Auths { auths })
    }
}

impl Logout {
    pub(super) fn take_back(&self) -> anyhow::Result<()> {
        let data_dir = self.config.load()?.data_dir;
        let principal = PrincipalName::parse(&self.principal)?;
        let name = self.registry.as_deref().map(registry).transpose()?;
        let count = LoginFile::change(&data_dir, |file| {
            let Some(held) = file.principals.get_mut(&principal) else { return Ok(0) };
            let before = held.auths.len();
            held.auths.retain(|held, _| {
                name.as_ref().is_some_and(|name| registry(held).ok().as_ref() != Some(name))
            });
            let count = before - held.auths.len();
            file.principals.retain(|_, held| !held.auths.is_empty());
            Ok(count)
        })?;
        ensure!(
            count > 0,
            "{principal} has no such login; `sandglass key list --json` shows those that there are"
        );
        tell!("{count} {} of {principal} taken back", if count == 1 { "login" } else { "logins" });
        Ok(())
    }
}
