//! What SIGHUP changes: the configuration is read again, from the same file, environment and flags, and
//! what can be set anew without a restart is. Keys are read again elsewhere, in `keys`.

use std::sync::{Arc, PoisonError, RwLock};

use tokio::signal::unix::{Signal, SignalKind, signal};
use toml::{Table, Value};
use tower_http::cors::CorsLayer;

use crate::config::Config;
use crate::http::App;
use crate::http::create_run::Allowed;
use crate::http::layers::cors;
use crate::http::proxies::Proxies;
use crate::log;

/// Settings, and whole tables, that take effect at once; all others need a restart.
pub const AT_ONCE: [&str; 9] = [
    "allow_compat",
    "allow_registry",
    "allowed_hosts",
    "allowed_origins",
    "limits",
    "log",
    "maxima",
    "proxy_header",
    "trusted_proxies",
];

/// How the configuration is read; the same words give the same answer only while the file stays as it is.
pub type Read = Box<dyn Fn() -> anyhow::Result<Config> + Send + Sync>;

/// The settings that may change while the server runs. A request looks once and keeps what it saw.
#[derive(Debug)]
pub struct Live(RwLock<Arc<Settings>>);

#[derive(Debug)]
pub struct Settings {
    pub allowed: Allowed,
    pub allowed_hosts: Vec<String>,
    pub allowed_origins: Vec<String>,
    /// What browsers are told for those.
    pub cors: Option<CorsLayer>,
    pub proxies: Proxies,
}

impl From<&Config> for Settings {
    fn from(config: &Config) -> Self {
        Self {
            allowed: Allowed {
                defaults: config.limits.clone(),
                maxima: config.maxima.clone(),
                compat: config.allow_compat,
            },
            allowed_hosts: config.allowed_hosts.clone(),
            allowed_origins: config.allowed_origins.clone(),
            cors: cors(&config.allowed_origins),
            // Checked when it was read.
            proxies: config.proxies().unwrap_or_default(),
        }
    }
}

impl Live {
    pub fn new(config: &Config) -> Self {
        Self(RwLock::new(Arc::new(config.into())))
    }

    pub fn now(&self) -> Arc<Settings> {
        // Whoever writes only exchanges a pointer.
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn set(&self, settings: Settings) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(settings);
    }
}

/// From then on no SIGHUP is missed.
pub fn listen() -> std::io::Result<Signal> {
    signal(SignalKind::hangup())
}

/// For as long as the runtime lives.
pub async fn watch(mut told: Signal, app: Arc<App>, read: Read) {
    let mut current = app.config.clone();
    while told.recv().await.is_some() {
        match read().and_then(|new| fits(&app.config, new)) {
            Ok(new) => current = apply(&app, &current, new),
            Err(error) => {
                let error = format!("{error:#}");
                tracing::error!(error, "SIGHUP: the configuration can't be read; everything stays as it was");
            }
        }
    }
}

/// The budget stays as it was at the start; limits that are larger would have every run refused that does not say any.
fn fits(started: &Config, new: Config) -> anyhow::Result<Config> {
    let budget = (started.budget_cpus, started.budget_memory_bytes);
    anyhow::ensure!(
        new.limits.cpus <= budget.0 && new.limits.memory_bytes <= budget.1,
        "limits.cpus is {}, limits.memory_bytes {}; all runs together may have {} and {} until a restart \
         (budget_cpus, budget_memory_bytes)",
        new.limits.cpus,
        new.limits.memory_bytes,
        budget.0,
        budget.1
    );
    Ok(new)
}

/// Returns what is in force now.
fn apply(app: &App, current: &Config, new: Config) -> Config {
    let (changed, later) = compare(current, &new);
    app.settings.set((&new).into());
    app.images.allow_registries(&new.allow_registry);
    if let Err(error) = log::filter(&new.log) {
        tracing::error!(%error, "SIGHUP: the log's filter stays as it was");
    }
    tracing::info!(changed = changed.join(", "), "SIGHUP: read the configuration again");
    if !later.is_empty() {
        tracing::warn!(settings = later.join(", "), "SIGHUP: these settings change with a restart only");
    }
    let mut force = current.clone();
    force.allow_compat = new.allow_compat;
    force.allow_registry = new.allow_registry;
    (force.allowed_hosts, force.allowed_origins) = (new.allowed_hosts, new.allowed_origins);
    (force.trusted_proxies, force.proxy_header) = (new.trusted_proxies, new.proxy_header);
    (force.limits, force.maxima, force.log) = (new.limits, new.maxima, new.log);
    force
}

/// What is different: settings that change at once, and those that need a restart.
fn compare(current: &Config, new: &Config) -> (Vec<String>, Vec<String>) {
    let table = |config: &Config| Table::try_from(config).unwrap_or_default();
    let (current, new) = (table(current), table(new));
    let different = new.iter().filter(|(name, value)| current.get(*name) != Some(*value));
    different.map(|(name, _): (&String, &Value)| name.clone()).partition(|name| AT_ONCE.contains(&&**name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_at_once_is_told_from_what_needs_a_restart() {
        let current = Config::default();
        let mut new = Config { slots: current.slots + 1, log: "debug".into(), ..current.clone() };
        new.limits.wall_time_ms = 7;
        assert_eq!(compare(&current, &current), (Vec::new(), Vec::new()));
        let (mut changed, later) = compare(&current, &new);
        changed.sort();
        assert_eq!((changed, later), (vec!["limits".into(), "log".into()], vec!["slots".into()]));
    }

    #[test]
    fn every_name_is_one_of_a_setting() {
        let table = Table::try_from(Config::default()).unwrap();
        for name in AT_ONCE {
            assert!(table.contains_key(name), "{name}");
        }
    }
}
