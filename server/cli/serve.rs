//! `sandglass serve`: flags → config → listener → launcher → drop privilege → runtime → serve → drain.

use std::process::ExitCode;

use anyhow::Context;

use super::flags::ConfigFlags;
use crate::http::listener::Listener;
use crate::privilege::Identity;
use crate::selftest::Canary;
use crate::{config, log, posture, privilege, rootless, say, start};

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Print the configuration that would be used, as TOML, and stop
    #[arg(long)]
    print_config: bool,
    #[command(flatten)]
    config: ConfigFlags<true>,
}

pub fn main(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let config = arguments.config.load()?;
    let again = arguments.config.clone();
    if arguments.print_config {
        say::all(toml::to_string(&config)?.as_bytes())?;
        return Ok(ExitCode::SUCCESS);
    }
    log::start(config.log_format, &config.log)?;
    config::raise_open_files();
    let listener = Listener::open(&config)?;

    // Everything that needs privilege, while this process has one thread.
    let entered = rootless::enter()?;
    let identity = Identity::to_become(&config.user, entered);
    if let Some(identity) = identity {
        listener.show(identity.gid).context("show the socket to the server's group")?;
    }
    privilege::prepare_folders(&config, identity)?;
    let docker = privilege::docker_folder(&config, identity)?;
    let (launcher, hello) = posture::start_launcher(&config)?;
    posture::check(&hello, &config.allow_degraded)?;
    for wall in posture::weaker(&hello) {
        tracing::warn!(wall = wall.name, "weaker than it could be: {}", wall.detail);
    }
    let canary = Canary::read(&config.launcher)?;
    privilege::give_up(identity)?;

    sandbox::share_one_heap();
    // The first of the threads.
    log::write_aside()?;
    let read = Box::new(move || again.load());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let end = runtime.block_on(start::serve(config, listener, launcher, hello, docker, canary, read))?;
    Ok(end.into())
}
