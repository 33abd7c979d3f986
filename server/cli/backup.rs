//! `sandglass backup` and `sandglass restore`: what can't be had again, out of a data directory and into another.

use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, ensure};
use engine::RunStore;

use super::flags::ConfigFlags;
use crate::backup::{Backup, restore};
use crate::config::Config;
use crate::say::{Unsaid, tell};
use crate::{keys, start};

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The archive to write, or `-` for the standard output
    to: PathBuf,
    #[command(flatten)]
    config: ConfigFlags<false>,
}

#[derive(Debug, clap::Args)]
pub struct RestoreArguments {
    /// The archive to read, or `-` for the standard input
    from: PathBuf,
    #[command(flatten)]
    config: ConfigFlags<false>,
}

/// Of a server that does not run: one that does has the file of runs to itself, and answers `GET /backup`.
pub fn main(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let config = arguments.config.load()?;
    let backup = backup(&config)?;
    if arguments.to.as_os_str() == "-" {
        backup.write(&mut std::io::stdout().lock()).map_err(Unsaid::from).context("write the backup")?;
        return Ok(ExitCode::SUCCESS);
    }
    let written = write(backup, &arguments.to);
    written.with_context(|| format!("write {}", arguments.to.display()))?;
    Ok(ExitCode::SUCCESS)
}

fn backup(config: &Config) -> anyhow::Result<Backup> {
    // Opening it would make one.
    let there = config.runs_file().is_file();
    ensure!(there, "there is no {}: no server has used this data directory", config.runs_file().display());
    let runs = start::open_runs(config).context(
        "a server that runs makes its backup itself: ask it for `GET /backup`, with a key for admins",
    )?;
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    Backup::of(&config.data_dir, runtime.block_on(runs.copy())?)
}

/// Whole or not at all, and never over another.
fn write(backup: Backup, to: &Path) -> std::io::Result<()> {
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(to)?;
    let written = backup.write(&mut file).and_then(|()| file.sync_all());
    if written.is_err() {
        let _ = fs::remove_file(to);
    }
    written
}

pub fn restore_main(arguments: &RestoreArguments) -> anyhow::Result<ExitCode> {
    let config = arguments.config.load()?;
    let restored = if arguments.from.as_os_str() == "-" {
        restore::restore(&config, std::io::stdin().lock())?
    } else {
        let file = File::open(&arguments.from);
        restore::restore(&config, file.with_context(|| format!("read {}", arguments.from.display()))?)?
    };
    for path in &restored {
        tell!("restored {}", path.display());
    }
    if !restored.contains(&keys::file::path(&config.data_dir)) {
        tell!("the backup has no keys: whoever reaches a server on this data directory may run code");
    }
    Ok(ExitCode::SUCCESS)
}
