//! `sandglass doctor`: what this machine offers, what is missing, what that costs and how to get it.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;

use engine::SandboxLauncher;
use sandbox::client::Launcher;
use sandbox::protocol::{Hello, WallState};

use super::flags::ConfigFlags;
use super::{advice, local};
use crate::say::{Unsaid, say};
use crate::selftest::{self, Canary};
use crate::{posture, privilege, rootless};

#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    config: ConfigFlags<false>,
}

/// Success if a server would start here with nothing missing.
pub fn main(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    // A running server owns its store; the one beside it is on the same file system and tells the same.
    let config = local::free_store(arguments.config.load()?);
    say!("version   {}", env!("CARGO_PKG_VERSION"))?;
    say!("data      {}", config.data_dir.display())?;
    say!("launcher  {}", config.launcher.display())?;
    let start = || -> anyhow::Result<(Arc<Launcher>, Hello)> {
        rootless::enter()?;
        privilege::prepare_folders(&config, None)?;
        posture::start_launcher(&config)
    };
    let (launcher, hello) = match start() {
        Ok(started) => started,
        Err(error) => {
            say!("\nno run can be started here: {error:#}")?;
            return Ok(ExitCode::FAILURE);
        }
    };
    show(&hello)?;
    advise(&hello)?;
    if let Err(error) = posture::check(&hello, &[]) {
        say!("\n{error:#}")?;
        return Ok(ExitCode::FAILURE);
    }
    // What stands from outside is a promise; from inside it is seen.
    if let Err(error) = Canary::read(&config.launcher).and_then(|canary| fly(canary, &hello, launcher)) {
        say!("\n{error:#}")?;
        return Ok(ExitCode::FAILURE);
    }
    let walls = match posture::weaker(&hello).count() {
        0 => "every wall stands".to_owned(),
        1 => "no wall is missing, one is weaker than it could be".to_owned(),
        weaker => format!("no wall is missing, {weaker} are weaker than they could be"),
    };
    say!(
        "\n{walls}; every limit can be enforced; a run that tried the walls from inside found them standing"
    )?;
    Ok(ExitCode::SUCCESS)
}

fn fly(canary: Canary, hello: &Hello, launcher: Arc<Launcher>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let launcher: Arc<dyn engine::Launcher> = Arc::new(SandboxLauncher::new(launcher)?);
        selftest::check(canary, hello, &launcher).await
    })
}

/// What could be better about the kernel, whether or not a wall depends on it.
fn advise(hello: &Hello) -> Result<(), Unsaid> {
    for line in advice::holes(&hello.kernel) {
        say!("hole    this kernel may have {line}")?;
    }
    for line in advice::settings() {
        say!("advice  {line}")?;
    }
    Ok(())
}

fn show(hello: &Hello) -> Result<(), Unsaid> {
    let (major, minor) = sandbox::MIN_KERNEL;
    say!("kernel    {} (at least {major}.{minor} is needed)", hello.kernel)?;
    say!("cgroups   {}", hello.cgroup)?;
    say!("ids       {} for each of {} runs at once\n", hello.id_width, hello.max_runs)?;
    let colour = std::io::stdout().is_terminal();
    for wall in &hello.walls {
        let (word, code) = match wall.state {
            WallState::Up => ("up", 32),
            WallState::Weaker => ("weaker", 33),
            WallState::Down => ("DOWN", 31),
        };
        let word = if colour { format!("\x1b[{code}m{word:6}\x1b[0m") } else { format!("{word:6}") };
        say!("{word}  {:14}  {}", wall.name, wall.detail)?;
    }
    for limit in &hello.not_enforced {
        say!("DOWN    {limit:14}  the limit can't be enforced on this machine")?;
    }
    Ok(())
}
