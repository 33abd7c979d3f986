//! What the subcommands share that work without a server: a launcher of their own, the image store,
//! and a small runtime.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use image::Images;
use nix::fcntl::{Flock, FlockArg};
use sandbox::client::Launcher;

use crate::config::Config;
use crate::{posture, privilege, rootless, start};

/// How many runs of the command line may go at once before one has to wait for a store.
const STORES_MAX: usize = 16;

/// A launcher and the images that it keeps.
pub(super) struct Local {
    pub launcher: Arc<Launcher>,
    pub images: Images,
    pub runtime: tokio::runtime::Runtime,
}

impl Local {
    /// Starts everything. Must be called while this process has one thread.
    pub(super) fn start(config: &Config) -> anyhow::Result<Self> {
        rootless::enter()?;
        privilege::prepare_folders(config, None)?;
        let docker = privilege::docker_folder(config, None)?;
        let (launcher, hello) = posture::start_launcher(config)?;
        posture::check(&hello, &config.allow_degraded)?;
        privilege::forbid_new_privileges()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("start the runtime")?;
        let (logins, observer) = (Arc::new(image::NoLogins), Arc::new(image::NoObserver));
        let images = runtime.block_on(start::open_images(config, docker, logins, &launcher, observer))?;
        Ok(Self { launcher, images, runtime })
    }
}

/// A store has one owner at a time. Where it is taken by a server or by another run, the next one
/// beside it is used, which then has images of its own.
pub(super) fn free_store(config: Config) -> Config {
    let taken = |dir: &Path| {
        let Ok(file) = std::fs::File::open(dir.join("state/launcher.lock")) else { return false };
        Flock::lock(file, FlockArg::LockExclusiveNonblock).is_err()
    };
    let sibling = |number: usize| -> PathBuf {
        if number == 1 {
            config.data_dir.clone()
        } else {
            format!("{}-{number}", config.data_dir.display()).into()
        }
    };
    let data_dir =
        (1..=STORES_MAX).map(sibling).find(|dir| !taken(dir)).unwrap_or_else(|| config.data_dir.clone());
    Config { data_dir, ..config }
}
