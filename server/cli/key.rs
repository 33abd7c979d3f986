//! `sandglass key`: makes keys, lists them and takes them back. A running server sees it within a second.

mod login;

use std::collections::BTreeSet;
use std::path::Path;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail, ensure};
use clap::Subcommand;
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};
use run::{ImagePattern, LimitsRequest, PrincipalName, Quota, Scope};
use serde_json::{Map, Value, json};

use super::flags::ConfigFlags;
use crate::http::create_run::limit_names;
use crate::keys::logins::{Auths, LoginFile};
use crate::keys::{KeyFile, KeyRecord, Ledger, Secret, file};
use crate::say::{say, tell};

#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a key and print it: once, since only its hash is kept
    Create(Create),
    /// List the keys, and what their principals have used
    List(List),
    /// Take a key back
    Revoke(Revoke),
    /// Give a principal a login of its own at a registry
    Login(login::Login),
    /// Take a principal's logins back
    Logout(login::Logout),
    /// Take over the keys of another `keys.json`, such as one that a Secret brings
    Import(Import),
}

#[derive(Debug, clap::Args)]
struct Import {
    /// A file that `sandglass key create` has written on some machine; it holds hashes only
    file: PathBuf,
    #[command(flatten)]
    config: ConfigFlags<false>,
}

#[derive(Debug, clap::Args)]
struct Create {
    /// Whose it is: runs belong to that name, whichever of its keys asked for them
    principal: String,
    /// What it may do: run, images, metrics, admin
    #[arg(long, value_delimiter = ',', default_value = "run")]
    scope: Vec<String>,
    /// When it ends to be good: `30d`, `12h`, or a moment such as `2027-01-01T00:00:00Z`
    #[arg(long)]
    expires: Option<String>,
    /// The most runs of the principal at once
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    concurrency: Option<u32>,
    /// The most runs of the principal that wait for a slot
    #[arg(long)]
    queued: Option<u32>,
    /// The most runs that are taken per minute; a sixth of them may come at once
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    runs_per_minute: Option<u32>,
    /// The most of one limit, as in `--limit memory_bytes=1073741824`
    #[arg(long, value_name = "NAME=MOST")]
    limit: Vec<String>,
    /// The only images: a repository, one tag or digest of it, `docker.io/library/*`, or `host`
    #[arg(long, value_name = "IMAGE")]
    allow_image: Vec<String>,
    #[command(flatten)]
    config: ConfigFlags<false>,
}

#[derive(Debug, clap::Args)]
struct List {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    config: ConfigFlags<false>,
}

#[derive(Debug, clap::Args)]
struct Revoke {
    /// The key's id, as `key list` shows it, or the key itself
    #[arg(required_unless_present = "principal")]
    id: Option<String>,
    /// Every key of this principal
    #[arg(long, conflicts_with = "id")]
    principal: Option<String>,
    #[command(flatten)]
    config: ConfigFlags<false>,
}

pub fn main(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    match &arguments.command {
        Command::Create(create) => create.make()?,
        Command::List(list) => list.show()?,
        Command::Revoke(revoke) => revoke.revoke()?,
        Command::Login(login) => login.give()?,
        Command::Logout(logout) => logout.take_back()?,
        Command::Import(import) => import.take_over()?,
    }
    Ok(ExitCode::SUCCESS)
}

impl Create {
    fn make(&self) -> anyhow::Result<()> {
        let data_dir = self.config.load()?.data_dir;
        let (record, secret) = self.record(Timestamp::now())?;
        let (id, name) = (record.id.clone(), record.principal.clone());
        KeyFile::change(&data_dir, |file| {
            file.keys.push(record);
            Ok(())
        })?;
        tell!("key {id} of {name}; it is not shown again:");
        Ok(say!("{}", secret.reveal())?)
    }

    fn record(&self, now: Timestamp) -> anyhow::Result<(KeyRecord, Secret)> {
        let secret = Secret::random().context("read /dev/urandom")?;
        let record = KeyRecord {
            id: secret.id.clone(),
            principal: PrincipalName::parse(&self.principal)?,
            hash: secret.hash().to_string(),
            scopes: self.scope.iter().map(|name| scope(name)).collect::<anyhow::Result<BTreeSet<_>>>()?,
            quota: Quota {
                maxima: maxima(&self.limit)?,
                concurrency: self.concurrency,
                queued: self.queued,
                runs_per_minute: self.runs_per_minute,
                images: self.allow_image.iter().map(|text| pattern(text)).collect::<anyhow::Result<_>>()?,
            },
            created_at: now,
            expires_at: self.expires.as_deref().map(|text| moment(text, now)).transpose()?,
            revoked_at: None,
        };
        Ok((record, secret))
    }
}

fn scope(name: &str) -> anyhow::Result<Scope> {
    Scope::named(name).with_context(|| {
        format!("--scope is {name:?}; it must be {}", Scope::ALL.map(Scope::as_str).join(", "))
    })
}

/// A span from now, or a moment itself; either must be in the future.
fn moment(text: &str, now: Timestamp) -> anyhow::Result<Timestamp> {
    let wrong = || format!("--expires is {text:?}; it must be like 30d, 12h or 2027-01-01T00:00:00Z");
    let end = match text.parse::<Timestamp>() {
        Ok(end) => end,
        Err(_) => {
            let span: Span = text.parse().with_context(wrong)?;
            now.to_zoned_datetime(TimeZone::UTC).checked_add(span).with_context(wrong)?.timestamp()
        }
    };
    ensure!(end > now, "--expires is {text:?}, which has passed");
    Ok(end)
}

fn maxima(limits: &[String]) -> anyhow::Result<LimitsRequest> {
    let mut table = Map::new();
    for text in limits {
        let (name, most) =
            text.split_once('=').with_context(|| format!("--limit is {text:?}; write NAME=MOST"))?;
        let names = limit_names();
        ensure!(
            names.iter().any(|known| known == name),
            "--limit {name}: the limits are {}",
            names.join(", ")
        );
        let number: Value = serde_json::from_str(most)
            .ok()
            .filter(Value::is_number)
            .with_context(|| format!("--limit {name} is {most:?}; it must be a number"))?;
        ensure!(number.as_f64() > Some(0.0), "--limit {name} is {most}; it must be more than 0");
        let alone = Map::from_iter([(name.to_owned(), number.clone())]);
        serde_json::from_value::<LimitsRequest>(Value::Object(alone))
            .with_context(|| format!("--limit {name} is {most}"))?;
        table.insert(name.into(), number);
    }
    Ok(serde_json::from_value(Value::Object(table))?)
}

/// Written as Docker users write it, kept in full: `python` is every tag of `docker.io/library/python`.
fn pattern(text: &str) -> anyhow::Result<ImagePattern> {
    if let Some(folder) = text.strip_suffix("/*") {
        let registry = folder.split('/').next().unwrap_or_default();
        ensure!(
            registry.contains(['.', ':']) || registry == "localhost",
            "--allow-image is {text:?}; begin with the registry, as in docker.io/library/*"
        );
        return Ok(ImagePattern(text.to_owned()));
    }
    let full = image::Images::full_name(text).with_context(|| format!("--allow-image is {text:?}"))?;
    let names_a_version = text.rsplit('/').next().is_some_and(|last| last.contains([':', '@']));
    let bare = if names_a_version { &full } else { full.trim_end_matches(":latest") };
    Ok(ImagePattern(bare.to_owned()))
}

impl Import {
    /// What the file says of a key is what holds: also that it was taken back. Other keys stay.
    fn take_over(&self) -> anyhow::Result<()> {
        let data_dir = self.config.load()?.data_dir;
        let given = KeyFile::read(&self.file)?.with_context(|| format!("no file {}", self.file.display()))?;
        let count = given.keys.len();
        KeyFile::change(&data_dir, |file| {
            file.keys.retain(|key| !given.keys.iter().any(|other| other.id == key.id));
            file.keys.extend(given.keys);
            Ok(())
        })?;
        tell!("{count} keys taken over from {}", self.file.display());
        Ok(())
    }
}

impl List {
    fn show(&self) -> anyhow::Result<()> {
        let data_dir = self.config.load()?.data_dir;
        let keys = KeyFile::read(&file::path(&data_dir))?.unwrap_or_default().keys;
        let ledger = Ledger::open(&data_dir);
        let logins = LoginFile::of(&data_dir)?;
        let now = Timestamp::now();
        if self.json {
            let keys: Vec<_> = keys.iter().map(|key| shown(key, &ledger, &logins, now)).collect();
            return Ok(say!("{}", serde_json::to_string_pretty(&json!({ "keys": keys }))?)?);
        }
        say!(
            "{:12}  {:16}  {:8}  {:20}  {:20}  {:20}  {:>9}  SCOPES",
            "ID",
            "PRINCIPAL",
            "STATE",
            "CREATED",
            "EXPIRES",
            "LAST USE",
            "RUNS"
        )?;
        for key in &keys {
            let time = |at: Option<Timestamp>| {
                at.map_or("never".to_owned(), |at| at.strftime("%Y-%m-%d %H:%M:%SZ").to_string())
            };
            let scopes: Vec<_> = key.scopes.iter().map(|scope| scope.as_str()).collect();
            say!(
                "{:12}  {:16}  {:8}  {:20}  {:20}  {:20}  {:>9}  {}",
                key.id,
                key.principal.as_str(),
                key.state(now),
                time(Some(key.created_at)),
                time(key.expires_at),
                time(ledger.last_use(&key.id)),
                ledger.totals(&key.principal).runs,
                scopes.join(",")
            )?;
        }
        Ok(())
    }
}

/// All that is known of a key but its hash.
fn shown(key: &KeyRecord, ledger: &Ledger, logins: &LoginFile, now: Timestamp) -> Value {
    let registries: Vec<_> =
        logins.principals.get(&key.principal).into_iter().flat_map(Auths::names).collect();
    json!({
        "id": key.id, "principal": key.principal, "state": key.state(now), "scopes": key.scopes,
        "quota": key.quota, "created_at": key.created_at, "expires_at": key.expires_at,
        "revoked_at": key.revoked_at, "last_use_at": ledger.last_use(&key.id),
        "principal_registries": registries, "principal_usage": ledger.totals(&key.principal),
    })
}

impl Revoke {
    fn revoke(&self) -> anyhow::Result<()> {
        let data_dir = self.config.load()?.data_dir;
        let count = take_back(&data_dir, self.id.as_deref(), self.principal.as_deref())?;
        tell!("{count} {} taken back", if count == 1 { "key" } else { "keys" });
        Ok(())
    }
}

fn take_back(data_dir: &Path, id: Option<&str>, principal: Option<&str>) -> anyhow::Result<usize> {
    ensure!(file::exists(data_dir), "there are no keys in {}", data_dir.display());
    // Whoever finds a key that leaked has the whole of it.
    let id = id.map(|id| Secret::parse(id).map_or_else(|| id.to_owned(), |secret| secret.id));
    KeyFile::change(data_dir, |file| {
        let asked = |key: &&mut KeyRecord| {
            id.as_deref().map_or(Some(key.principal.as_str()) == principal, |id| key.id == id)
        };
        let mut found = 0;
        let mut taken = 0;
        for key in file.keys.iter_mut().filter(asked) {
            found += 1;
            taken += usize::from(key.revoked_at.is_none());
            key.revoked_at.get_or_insert_with(Timestamp::now);
        }
        if found == 0 {
            bail!("there is no such key; `sandglass key list` shows those that there are");
        }
        Ok(taken)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_written_as_docker_users_write_them() {
        for (text, kept) in [
            ("python", Some("docker.io/library/python")),
            ("python:3.13", Some("docker.io/library/python:3.13")),
            ("python:latest", Some("docker.io/library/python:latest")),
            ("localhost:5000/x", Some("localhost:5000/x")),
            ("docker.io/library/*", Some("docker.io/library/*")),
            ("localhost:5000/*", Some("localhost:5000/*")),
            ("host", Some("host")),
            ("library/*", None),
            ("/*", None),
            ("*", None),
            ("A B", None),
        ] {
            assert_eq!(pattern(text).ok().map(|pattern| pattern.0).as_deref(), kept, "{text}");
        }
    }

    #[test]
    fn a_key_ends_at_a_moment_or_after_a_while_and_never_in_the_past() {
        let now: Timestamp = "2026-11-26T10:00:00Z".parse().unwrap();
        for (text, end) in [
            ("30d", Some("2026-12-26T10:00:00Z")),
            ("12h", Some("2026-11-26T22:00:00Z")),
            ("2027-01-01T00:00:00Z", Some("2027-01-01T00:00:00Z")),
            ("2026-01-01T00:00:00Z", None),
            ("-1h", None),
            ("soon", None),
            ("", None),
        ] {
            let expected = end.map(|end| end.parse::<Timestamp>().unwrap());
            assert_eq!(moment(text, now).ok(), expected, "{text}");
        }
    }

    #[test]
    fn maxima_are_limits_that_there_are() {
        let words = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>();
        let good = maxima(&words(&["cpus=0.5", "memory_bytes=1048576"])).unwrap();
        assert_eq!((good.cpus, good.memory_bytes), (Some(0.5), Some(1 << 20)));
        for bad in ["memory=1", "cpus", "cpus=0", "cpus=many", "processes=1.5", "processes=-1"] {
            assert!(maxima(&words(&[bad])).is_err(), "{bad}");
        }
    }
}
