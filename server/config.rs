//! Everything that an operator can set, with every default visible. Built once, in layers:
//! the defaults, then the file, then `SANDGLASS_…` in the environment, then flags of the same names.

mod machine;
mod names;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use run::{Limits, Maxima};
use serde::{Deserialize, Serialize};
use toml::Table;

use crate::http::proxies::Proxies;
use crate::traces::Collector;

use crate::image_settings::ImageSettings;
use crate::{keys, log};

pub use machine::raise_open_files;
use machine::{
    beside_this_program, default_bodies_bytes, default_data_dir, default_docker_config, default_limits,
    host_cpus, memory_bytes, open_files_max, processors,
};
pub use names::{environment_name, leaves, read_value, set, words};
use names::{from_environment, merge};

macro_rules! config {
    ($($(#[doc = $doc:literal])+ $name:ident: $type:ty = $default:expr;)*) => {
        /// The whole configuration. A name that is not here is refused, so that a typo is found.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct Config {
            $($(#[doc = $doc])+ pub $name: $type,)*
            /// What a run may use when its request does not say.
            pub limits: Limits,
            /// The most that a request may ask for.
            pub maxima: Maxima,
            /// How images are kept.
            pub images: ImageSettings,
        }

        impl Default for Config {
            fn default() -> Self {
                let (limits, maxima) = default_limits();
                Self { $($name: $default,)* limits, maxima, images: ImageSettings::default() }
            }
        }

        /// Every setting outside of tables, with its words.
        pub const SETTINGS: &[(&str, &str)] = &[$((stringify!($name), concat!($($doc),+)),)*];
    };
}

config! {
    /// Where to listen: an address with a port (0 picks a free one), or `unix:/path`
    listen: String = "127.0.0.1:8080".into();
    /// Where to serve `/metrics`, `/info`, `/healthz` and `/readyz` apart, to whoever reaches that address, such as 127.0.0.1:9090; empty: not apart
    metrics_listen: String = String::new();
    /// Where images are kept
    data_dir: PathBuf = default_data_dir();
    /// The program that starts sandboxes
    launcher: PathBuf = beside_this_program("sandglass-launcher");
    /// The cgroup under which runs get theirs; empty: found by itself
    cgroup_parent: String = String::new();
    /// The user that the server becomes when it is started as root; a fixed number if there is none
    user: String = "sandglass".into();
    /// How many runs go at once
    slots: usize = processors();
    /// How many sandboxes are prepared ahead of need at most, as runs ask for them; 0: none
    prepared_max: usize = 2 + 2 * processors();
    /// Give each run a core of its own, or as many as it asks for processors, so that times can be compared
    pin_cpus: bool = false;
    /// How many runs of one principal may wait for a slot; a batch none of whose runs has a place or a slot counts as one
    queue_capacity: usize = 1024;
    /// How many processors all runs together may ask for; 0: the machine's, or what `slots` runs get by default
    budget_cpus: f64 = 0.0;
    /// How much memory all runs together may ask for; 0: 3/4 of the machine's, or what `slots` runs get by default
    budget_memory_bytes: u64 = 0;
    /// How many finished runs are remembered, also by the next server
    kept_runs: usize = 10_000;
    /// How many finished batches are remembered, also by the next server
    kept_batches: usize = 1_000;
    /// How much output of finished runs is remembered, in bytes
    kept_bytes: u64 = 256 * 1024 * 1024;
    /// How long a finished run or batch is remembered, in seconds
    kept_for_s: u64 = 3600;
    /// How much uploaded files and what batches have prepared may take on disk, in bytes
    files_bytes_max: u64 = 4 * 1024 * 1024 * 1024;
    /// The largest uploaded file, in bytes
    file_bytes_max: u64 = 1024 * 1024 * 1024;
    /// How long an uploaded file is kept at most, in seconds; those used longest ago go earlier, whoever sent them, where `files_bytes_max` is reached
    files_kept_for_s: u64 = 24 * 3600;
    /// How long running runs may go on once the server is told to stop, in milliseconds
    drain_deadline_ms: u64 = 30_000;
    /// The largest body of a request, in bytes
    body_bytes_max: usize = 32 * 1024 * 1024;
    /// How much all large bodies may hold together, in bytes; by default an eighth of the memory, 256 MiB at most
    bodies_bytes_max: usize = default_bodies_bytes();
    /// How long a client may take to send a body, in milliseconds
    body_timeout_ms: u64 = 30_000;
    /// How long a client may take to send the headers, in milliseconds
    header_timeout_ms: u64 = 10_000;
    /// How long a client may take nothing of its answer, in milliseconds
    answer_timeout_ms: u64 = 60_000;
    /// How many connections are open at once
    connections_max: usize = 4096;
    /// The longest that a request may ask to wait with `Prefer: wait=N`, in seconds
    wait_max_s: u64 = 600;
    /// A file with the certificate for TLS, in PEM, and those that signed it behind it; empty: plain HTTP
    tls_cert: String = String::new();
    /// A file with the certificate's private key, in PEM; the server reads it as the user that it becomes
    tls_key: String = String::new();
    /// Proxies that say whose requests they pass on: networks, addresses, or `unix` for the socket's file
    trusted_proxies: Vec<String> = Vec::new();
    /// Where they say it: `X-Forwarded-For` or `Forwarded`
    proxy_header: String = "X-Forwarded-For".into();
    /// Names other than `localhost` under which clients may reach the server
    allowed_hosts: Vec<String> = Vec::new();
    /// Origins of web pages that may use the server, such as `https://example.org`
    allowed_origins: Vec<String> = Vec::new();
    /// Offer `image: host`: this machine's own `/usr`, read-only
    allow_host_image: bool = false;
    /// Let requests say `profile: compat`: more of /proc, and seven capabilities over the run's own ids
    allow_compat: bool = false;
    /// Listen on an address that others can reach, although there are no keys and anybody may then run code here
    allow_open_network: bool = false;
    /// Walls and limits that may be missing; the server refuses to start without the others
    allow_degraded: Vec<String> = Vec::new();
    /// Registries that are spoken to without TLS, as `host:port`
    insecure_registry: Vec<String> = Vec::new();
    /// Registries on private addresses that may be spoken to, as `host:port`
    private_registry: Vec<String> = Vec::new();
    /// The only registries or repositories that may be pulled from; empty: any
    allow_registry: Vec<String> = Vec::new();
    /// Docker's file with registry credentials; empty: none
    docker_config: String = default_docker_config();
    /// How long one pull may take, in milliseconds
    pull_timeout_ms: u64 = 600_000;
    /// `json`, `text`, or `auto`: text in a terminal
    log_format: LogFormat = LogFormat::Auto;
    /// What is logged: `error`, `warn`, `info`, `debug`, or a list such as `info,engine=debug`
    log: String = "info".into();
    /// A collector for traces, by OTLP over HTTP, such as http://127.0.0.1:4318/v1/traces; empty: none
    traces_to: String = String::new();
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    Auto,
    Json,
    Text,
}

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl Config {
    /// Defaults < file < environment < flags; then everything is checked against everything.
    pub fn load(
        file: Option<&Path>,
        env: &dyn Fn(&str) -> Option<String>,
        flags: &Table,
    ) -> anyhow::Result<Self> {
        let mut table = Table::try_from(Config::default()).context("write down the defaults")?;
        if let Some(path) = file {
            let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
            // Read alone first: its errors then name the line.
            toml::from_str::<Config>(&text).with_context(|| format!("read {}", path.display()))?;
            merge(&mut table, toml::from_str(&text)?);
        }
        merge(&mut table, from_environment(env)?);
        merge(&mut table, flags.clone());
        let mut config: Config = table.try_into().context("read the configuration")?;
        config.settle_budget();
        config.check()?;
        Ok(config)
    }

    /// As many runs as there are slots always fit, as long as they ask for nothing.
    fn settle_budget(&mut self) {
        if self.budget_cpus == 0.0 {
            self.budget_cpus = host_cpus().max(self.slots as f64 * self.limits.cpus);
        }
        if self.budget_memory_bytes == 0 {
            let of_slots = (self.slots as u64).saturating_mul(self.limits.memory_bytes);
            self.budget_memory_bytes = of_slots.max(memory_bytes().unwrap_or_default() / 4 * 3);
        }
    }

    fn check(&self) -> anyhow::Result<()> {
        self.listen_at()?;
        ensure!(
            self.budget_cpus >= self.limits.cpus && self.budget_memory_bytes >= self.limits.memory_bytes,
            "budget_cpus and budget_memory_bytes must be at least what one run gets: limits.cpus is {}, \
             limits.memory_bytes {}",
            self.limits.cpus,
            self.limits.memory_bytes
        );
        self.metrics_at()?;
        self.tls_files()?;
        self.proxies()?;
        Collector::parse(&self.traces_to)?;
        log::check(&self.log).with_context(|| format!("log is {:?}", self.log))?;
        for (name, number) in [
            ("slots", self.slots),
            ("kept_runs", self.kept_runs),
            ("kept_batches", self.kept_batches),
            ("body_bytes_max", self.body_bytes_max),
            ("connections_max", self.connections_max),
        ] {
            ensure!(number > 0, "{name} must be more than 0");
        }
        ensure!(
            self.prepared_max <= 10_000,
            "prepared_max is {}; it must be at most 10000",
            self.prepared_max
        );
        ensure!(self.slots <= 100_000, "slots is {}; it must be at most 100000", self.slots);
        ensure!(
            self.body_bytes_max <= self.bodies_bytes_max && self.bodies_bytes_max <= u32::MAX as usize,
            "bodies_bytes_max must be at least body_bytes_max and less than 4 GiB"
        );
        ensure!(
            self.file_bytes_max <= self.files_bytes_max,
            "files_bytes_max must be at least file_bytes_max, or the largest file would find no room"
        );
        ensure!(
            self.maxima.open_files <= open_files_max(),
            "maxima.open_files is {}, but this process may open no more than {} itself; raise its own limit \
             (LimitNOFILE of a service, ulimit -n in a shell)",
            self.maxima.open_files,
            open_files_max()
        );
        self.images.check()?;
        let cores = self.cores();
        ensure!(
            !self.pin_cpus || self.slots <= cores.len(),
            "slots is {}, but with pin_cpus each needs a core of its own, and there are {}",
            self.slots,
            cores.len()
        );
        let request = run::LimitsRequest::default();
        if let Err(bad) = request.resolve(&self.limits, &self.maxima) {
            let words: Vec<_> = bad.iter().map(|bad| format!("limits.{bad}")).collect();
            bail!("{}", words.join("; "));
        }
        Ok(())
    }

    pub fn listen_at(&self) -> anyhow::Result<Listen> {
        if let Some(path) = self.listen.strip_prefix("unix:") {
            ensure!(path.starts_with('/'), "listen is {:?}; the path must begin with /", self.listen);
            return Ok(Listen::Unix(path.into()));
        }
        let numeric = self.listen.replace("localhost:", "127.0.0.1:");
        let address: SocketAddr = numeric.parse().with_context(|| {
            format!("listen is {:?}; it must be like 127.0.0.1:8080 or unix:/path", self.listen)
        })?;
        self.may_listen_on(address)?;
        Ok(Listen::Tcp(address))
    }

    /// Where `/metrics` is served apart. Nobody can run code there, so any address will do.
    pub fn metrics_at(&self) -> anyhow::Result<Option<SocketAddr>> {
        if self.metrics_listen.is_empty() {
            return Ok(None);
        }
        let address = self.metrics_listen.parse().with_context(|| {
            format!("metrics_listen is {:?}; it must be like 127.0.0.1:9090", self.metrics_listen)
        })?;
        Ok(Some(address))
    }

    /// Where the certificate and its key are, if TLS is spoken.
    pub fn tls_files(&self) -> anyhow::Result<Option<(PathBuf, PathBuf)>> {
        let (certificate, key) = (&self.tls_cert, &self.tls_key);
        ensure!(
            certificate.is_empty() == key.is_empty(),
            "tls_cert is {certificate:?} and tls_key is {key:?}; TLS needs both"
        );
        Ok((!key.is_empty()).then(|| (certificate.into(), key.into())))
    }

    pub fn proxies(&self) -> anyhow::Result<Proxies> {
        Proxies::parse(&self.trusted_proxies, &self.proxy_header)
    }

    /// Whether anything keeps strangers from running code if the server listens there.
    pub fn may_listen_on(&self, address: SocketAddr) -> anyhow::Result<()> {
        ensure!(
            address.ip().is_loopback() || self.allow_open_network || keys::file::exists(&self.data_dir),
            "{address} can be reached by others and there are no keys: anybody could run code here; make a key with \
             `sandglass key create`, listen on 127.0.0.1, or say --allow-open-network if something else keeps \
             strangers out"
        );
        Ok(())
    }

    /// The cores that runs get for their own; none where they share all of them.
    pub fn cores(&self) -> Vec<usize> {
        use nix::sched::{CpuSet, sched_getaffinity};
        let ours = sched_getaffinity(nix::unistd::Pid::from_raw(0));
        let Some(ours) = ours.ok().filter(|_| self.pin_cpus) else { return Vec::new() };
        (0..CpuSet::count()).filter(|core| ours.is_set(*core).unwrap_or(false)).collect()
    }

    /// Where unpacked layers live; only the launcher can look inside.
    pub fn layers_dir(&self) -> PathBuf {
        self.data_dir.join("layers")
    }

    /// Where the server writes down which images it has.
    pub fn records_dir(&self) -> PathBuf {
        self.data_dir.join("records")
    }

    /// Where uploaded files are.
    pub fn files_dir(&self) -> PathBuf {
        self.data_dir.join("files")
    }

    /// Where the server remembers runs.
    pub fn runs_dir(&self) -> PathBuf {
        self.data_dir.join("runs")
    }

    pub fn runs_file(&self) -> PathBuf {
        self.runs_dir().join("runs.redb")
    }

    pub fn drain_deadline(&self) -> Duration {
        Duration::from_millis(self.drain_deadline_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(file: &str, env: &[(&str, &str)], flags: &str) -> anyhow::Result<Config> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("sandglass.toml");
        std::fs::write(&path, file)?;
        let env = |name: &str| env.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Config::load(Some(&path), &env, &toml::from_str(flags)?)
    }

    #[test]
    fn flags_win_over_the_environment_and_that_over_the_file() {
        let file = "slots = 1\nqueue_capacity = 1\nkept_runs = 1\n[limits]\nprocesses = 7";
        let env = [("SANDGLASS_SLOTS", "2"), ("SANDGLASS_KEPT_RUNS", "2"), ("SANDGLASS_LIMITS_CPUS", "0.5")];
        let config = load(file, &env, "slots = 3").unwrap();
        assert_eq!((config.slots, config.kept_runs, config.queue_capacity), (3, 2, 1));
        assert_eq!((config.limits.processes, config.limits.cpus), (7, 0.5));
        assert_eq!(config.limits.wall_time_ms, Limits::default().wall_time_ms);
    }

    #[test]
    fn a_mistake_is_refused_by_name() {
        for (file, env, flags, words) in [
            ("slot = 1", &[][..], "", "unknown field `slot`"),
            ("[limits]\nmemory = 1", &[], "", "unknown field `memory`"),
            ("slots = 'two'", &[], "", "invalid type"),
            ("", &[("SANDGLASS_SLOTS", "two")], "", "SANDGLASS_SLOTS is \"two\""),
            ("", &[("SANDGLASS_ALLOW_HOST_IMAGE", "maybe")], "", "must be true or false"),
            ("", &[], "slots = 0", "slots must be more than 0"),
            ("", &[], "listen = 'here'", "listen is \"here\""),
            ("", &[], "pin_cpus = true\nslots = 5000", "each needs a core of its own"),
            ("", &[], "metrics_listen = 'here'", "metrics_listen is \"here\""),
            ("", &[], "log = 'engine=loud'", "log is \"engine=loud\""),
            ("", &[], "budget_cpus = 0.5", "budget_cpus and budget_memory_bytes"),
            ("", &[], "listen = '0.0.0.0:80'", "--allow-open-network"),
            ("[limits]\nwall_time_ms = 400000", &[], "", "limits.wall_time_ms is 400000"),
        ] {
            let error = format!("{:#}", load(file, env, flags).unwrap_err());
            assert!(error.contains(words), "{file} {flags}: {error}");
        }
    }

    #[test]
    fn addresses_are_read_as_people_write_them() {
        for (text, listen) in [
            ("127.0.0.1:0", Listen::Tcp("127.0.0.1:0".parse().unwrap())),
            ("localhost:80", Listen::Tcp("127.0.0.1:80".parse().unwrap())),
            ("[::1]:80", Listen::Tcp("[::1]:80".parse().unwrap())),
            ("unix:/run/s.sock", Listen::Unix("/run/s.sock".into())),
        ] {
            let config = Config { listen: text.into(), ..Config::default() };
            assert_eq!(config.listen_at().unwrap(), listen, "{text}");
        }
        let open = Config { listen: "0.0.0.0:80".into(), allow_open_network: true, ..Config::default() };
        assert!(open.listen_at().is_ok());
    }

    #[test]
    fn keys_let_others_reach_the_server() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config { listen: "0.0.0.0:80".into(), data_dir: dir.path().into(), ..Config::default() };
        assert!(config.listen_at().is_err());
        keys::KeyFile::change(dir.path(), |_| Ok(())).unwrap();
        assert!(config.listen_at().is_ok());
    }

    #[test]
    fn every_setting_has_its_words_and_every_default_can_be_written_down() {
        let leaves = leaves();
        let mut names: Vec<_> =
            leaves.iter().map(|(leaf, _)| leaf.as_str()).filter(|l| !l.contains('.')).collect();
        let mut settings: Vec<_> = SETTINGS.iter().map(|(name, _)| *name).collect();
        names.sort_unstable();
        settings.sort_unstable();
        assert_eq!(names, settings);
        assert!(
            leaves
                .iter()
                .filter(|(leaf, _)| leaf.starts_with("images."))
                .all(|(leaf, _)| words(leaf).len() > 30)
        );
        let text = toml::to_string(&Config::default()).unwrap();
        assert_eq!(toml::from_str::<Config>(&text).unwrap(), Config::default());
    }

    #[test]
    fn lists_are_written_with_commas() {
        let env = [("SANDGLASS_INSECURE_REGISTRY", "a:1, b:2"), ("SANDGLASS_ALLOW_HOST_IMAGE", "1")];
        let config = load("", &env, "").unwrap();
        assert_eq!(config.insecure_registry, ["a:1", "b:2"]);
        assert!(config.allow_host_image);
    }
}
