//! From a listener and a launcher to a server that answers, and from a signal to its orderly end.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use engine::batch::{BatchConfig, Batches};
use engine::files::{Files, FilesConfig};
use engine::{EmbeddedStore, Engine, Keep, SandboxLauncher};
use image::Images;
use sandbox::client::Launcher;
use sandbox::protocol::Hello;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::ahead;
use crate::config::Config;
use crate::drain::{self, GOODBYE, Serving, StopSignal};
use crate::http::listener::Listener;
use crate::http::serve::{self, Bounds};
use crate::http::{App, body, docs, router, seats};
use crate::keys::{KeyRing, Ledger, LoginBook};
use crate::layers::LauncherLayers;
use crate::leaks::{Groups, Mounts};
use crate::notify;
use crate::reload::{self, Live};
use crate::say::tell;
use crate::selftest::{self, Canary};
use crate::telemetry::Telemetry;
use crate::tls::Tls;
use crate::traces::{Collector, Traces};

/// How long a client's key stands for its run.
const KEYS_STAND_FOR: Duration = Duration::from_secs(24 * 60 * 60);

/// How much longer than its drain a server may take until it has ended: for those who are slow to take their answers, and
/// for what it writes down.
const LAST_ANSWERS: Duration = Duration::from_secs(15);

/// How a server ended that had started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It was told to stop.
    Stopped,
    /// Its launcher died. A service manager starts both again.
    LauncherLost,
}

impl From<End> for std::process::ExitCode {
    fn from(end: End) -> Self {
        match end {
            End::Stopped => Self::SUCCESS,
            End::LauncherLost => Self::from(70),
        }
    }
}

/// Serves until a signal, then drains: nothing new is taken, what runs gets its deadline, and
/// whoever waits for a reply still gets it.
pub async fn serve(
    config: Config,
    listener: Listener,
    launcher: Arc<Launcher>,
    hello: Hello,
    docker: Option<PathBuf>,
    canary: Canary,
    read: reload::Read,
) -> anyhow::Result<End> {
    // Before anything takes its time: the first process of a container would not hear a signal for which nobody listens.
    let (mut stop, told) = (StopSignal::listen()?, reload::listen()?);
    let apart = config.metrics_at()?.map(Listener::bind).transpose()?;
    let ledger = Arc::new(Ledger::open(&config.data_dir));
    let telemetry = Arc::new(Telemetry::new(config.slots, config.queue_capacity, Arc::clone(&ledger)));
    // Before any run is taken up again.
    let tls = Tls::open(&config, Arc::clone(&telemetry))?;
    let app = assemble(config, launcher, hello, docker, canary, ledger, telemetry).await?;
    watch_certificate(tls.clone());
    let (address, handed_over) = (listener.address(tls.is_some())?, listener.handed_over);
    let bounds = Bounds {
        connections_max: app.config.connections_max,
        header_timeout: Duration::from_millis(app.config.header_timeout_ms),
        answer_timeout: Duration::from_millis(app.config.answer_timeout_ms),
        goodbye: if handed_over { app.config.drain_deadline() + GOODBYE } else { GOODBYE },
    };
    tokio::spawn(reload::watch(told, Arc::clone(&app), read));
    let closing = CancellationToken::new();
    let task = tokio::spawn(serve::serve(listener, router::service(&app), bounds, tls, closing.clone()));
    let mut serving = Serving { closing, task };
    tracing::info!(version = env!("CARGO_PKG_VERSION"), slots = app.config.slots, "listening on {address}");
    tell!("listening on {address}");
    let watched = CancellationToken::new();
    if let Some(apart) = apart {
        tell!("metrics on {}", apart.address(false)?);
        tokio::spawn(serve::serve(apart, router::watching(&app), bounds, None, watched.clone()));
    }
    let ahead = tokio::spawn(ahead::pull(app.images.clone(), app.config.images.ahead.clone()));
    notify::ready();

    let end = tokio::select! {
        name = stop.received() => {
            tracing::info!(deadline_ms = app.config.drain_deadline_ms, "{name}: taking no more work");
            End::Stopped
        }
        () = app.engine.launcher_lost() => {
            tracing::error!("the launcher died and its runs with it; stopping");
            End::LauncherLost
        }
    };
    notify::stopping(app.config.drain_deadline() + LAST_ANSWERS);
    let told_twice = match end {
        End::Stopped if handed_over => {
            drain::silently(&app.engine, &mut serving, &mut stop, app.config.drain_deadline()).await
        }
        End::Stopped => drain::telling(&app.engine, &serving, &mut stop, app.config.drain_deadline()).await,
        End::LauncherLost => drain::telling(&app.engine, &serving, &mut stop, Duration::ZERO).await,
    };
    ahead.abort();
    // Whoever comes anew waits for the next server: a client that is slow to take its answer does not keep that from
    // starting when there is nothing left to drain.
    if told_twice || end == End::LauncherLost {
        drain::hurried(serving).await.context("serve")?;
    } else {
        serving.task.await.context("serve")??;
    }
    watched.cancel();
    app.images.close().await;
    app.ledger.write().await;
    app.engine.close().await;
    tracing::info!("stopped");
    Ok(end)
}

async fn assemble(
    config: Config,
    launcher: Arc<Launcher>,
    hello: Hello,
    docker: Option<PathBuf>,
    canary: Canary,
    ledger: Arc<Ledger>,
    telemetry: Arc<Telemetry>,
) -> anyhow::Result<Arc<App>> {
    let keys = Arc::new(KeyRing::open(&config.data_dir, Arc::clone(&ledger))?);
    let logins = Arc::new(LoginBook::open(&config.data_dir)?);
    let document = docs::document();
    telemetry
        .expect_routes(docs::calls(&document).iter().map(|(path, method)| (path.as_str(), method.as_str())));
    let (observer, known) = (Arc::clone(&telemetry), Arc::clone(&logins));
    let images = open_images(&config, docker, known, &launcher, observer).await?;
    let files = open_files(&config)?;
    let settings = engine::Config {
        slots: config.slots,
        queue_capacity: config.queue_capacity,
        budget: engine::Budget {
            cpus: config.budget_cpus,
            memory_bytes: config.budget_memory_bytes,
            cores: config.cores(),
        },
        not_enforced: hello.not_enforced.clone(),
        files: Some(files.clone()),
    };
    let (groups, mounts) = (Groups::of_launcher(launcher.pid()), Mounts::of_launcher(launcher.pid()));
    telemetry.orphans_reaped(hello.orphans);
    let launcher = SandboxLauncher::with_pool(launcher, config.prepared_max, config.limits.clone());
    let launcher: Arc<dyn engine::Launcher> = Arc::new(launcher.context("use the launcher")?);
    selftest::check(canary, &hello, &launcher).await?;
    launcher.refill();
    watch_keys(&keys, logins, &ledger);
    let store = Arc::new(open_runs(&config)?);
    let batch_store = Arc::clone(&store) as _;
    let engine =
        Engine::new(settings, Arc::new(images.clone()), launcher, Arc::clone(&telemetry) as _, store);
    engine.resume().await.context("go on with the runs of the server before")?;
    let batches = Batches::new(engine.clone(), batch_store, &batch_config(&config));
    batches.resume().await.context("go on with the batches of the server before")?;
    Ok(Arc::new(App {
        batches,
        settings: Live::new(&config),
        traces: Traces::to(Collector::parse(&config.traces_to)?),
        bodies: body::BodyLimits {
            bytes_max: config.body_bytes_max,
            time_max: Duration::from_millis(config.body_timeout_ms),
            memory: body::BodyMemory::new(config.bodies_bytes_max, config.body_bytes_max),
        },
        seats: Arc::new(seats::Seats::of(config.connections_max)),
        openapi: serde_json::to_vec(&document)?.into(),
        backups: Arc::new(Semaphore::new(1)),
        config,
        engine,
        images,
        files,
        keys,
        ledger,
        hello,
        telemetry,
        groups,
        mounts,
    }))
}

/// What is prepared may take half of the room that files have.
fn batch_config(config: &Config) -> BatchConfig {
    BatchConfig {
        kept: config.kept_batches,
        kept_bytes: config.kept_bytes,
        kept_for: Duration::from_secs(config.kept_for_s),
        prepared_kept_for: Duration::from_secs(config.files_kept_for_s),
        prepared_bytes_max: config.files_bytes_max / 2,
    }
}

fn open_files(config: &Config) -> anyhow::Result<Files> {
    let dir = config.files_dir();
    let settings = FilesConfig {
        dir: dir.clone(),
        bytes_max: config.files_bytes_max,
        file_bytes_max: config.file_bytes_max,
        keep_for: Duration::from_secs(config.files_kept_for_s),
    };
    Files::open(settings).with_context(|| format!("open the uploaded files in {}", dir.display()))
}

/// For as long as the runtime lives: the certificate is exchanged when it is renewed.
fn watch_certificate(tls: Option<Arc<Tls>>) {
    let Some(tls) = tls else { return };
    tokio::spawn(async move {
        if let Err(error) = tls.watch().await {
            tracing::error!(%error, "can't hear SIGHUP; a new certificate is not seen until a restart");
        }
    });
}

/// For as long as the runtime lives: the file with the keys is looked at, and what was used written down.
fn watch_keys(keys: &Arc<KeyRing>, logins: Arc<LoginBook>, ledger: &Arc<Ledger>) {
    let (keys, ledger) = (Arc::clone(keys), Arc::clone(ledger));
    tokio::spawn(async move {
        if let Err(error) = keys.watch(&logins).await {
            tracing::error!(%error, "can't hear SIGHUP; changes of the keys are not seen until a restart");
        }
    });
    tokio::spawn(async move { ledger.keep().await });
}

/// The runs that were promised, and those that have ended.
pub fn open_runs(config: &Config) -> anyhow::Result<EmbeddedStore> {
    open_runs_at(config, &config.runs_file())
}

/// Those of a file that is elsewhere.
pub fn open_runs_at(config: &Config, path: &Path) -> anyhow::Result<EmbeddedStore> {
    let keep = Keep {
        runs: config.kept_runs,
        bytes: config.kept_bytes,
        batches: config.kept_batches,
        time: Duration::from_secs(config.kept_for_s),
        keys: KEYS_STAND_FOR,
    };
    EmbeddedStore::open(path, keep).with_context(|| format!("open {}", path.display()))
}

/// The image store over the launcher's verbs.
pub async fn open_images(
    config: &Config,
    docker: Option<PathBuf>,
    logins: Arc<dyn image::Logins>,
    launcher: &Arc<Launcher>,
    observer: Arc<dyn image::Observer>,
) -> anyhow::Result<Images> {
    let allowed = Some(config.allow_registry.clone()).filter(|registries| !registries.is_empty());
    let settings = image::Config {
        insecure_registries: config.insecure_registry.clone(),
        private_registries: config.private_registry.clone(),
        allowed_registries: allowed,
        docker_config: docker,
        logins,
        access_life: Duration::from_secs(config.images.access_life_s),
        host_image: config.allow_host_image,
        pull_timeout: Duration::from_millis(config.pull_timeout_ms),
        idle_timeout: Duration::from_millis(config.images.idle_timeout_ms),
        mirrors: config.images.mirrors()?,
        tag_life: config.images.tag_life(),
        pinned: config.images.ahead.clone(),
        budget: config.images.budget(&config.data_dir),
        ..image::Config::new(config.records_dir())
    };
    let layers = Arc::new(LauncherLayers::new(Arc::clone(launcher), config.data_dir.clone()));
    Images::open(settings, layers, observer).await.context("open the image store")
}
