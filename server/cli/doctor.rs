//! `sandglass doctor`: what this machine offers, what is missing, what that costs and how to get it.

use std::io::IsTerminal;
use std::process::ExitCode;

use sandbox::protocol::{Hello, WallState};

use super::flags::ConfigFlags;
use super::local;
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
    println!("version   {}", env!("CARGO_PKG_VERSION"));
    println!("data      {}", config.data_dir.display());
    println!("launcher  {}", config.launcher.display());
    let start = || -> anyhow::Result<Hello> {
        rootless::enter()?;
        privilege::prepare_folders(&config, None)?;
        Ok(posture::start_launcher(&config)?.1)
    };
    let hello = match start() {
        Ok(hello) => hello,
        Err(error) => {
            println!("\nno run can be started here: {error:#}");
            return Ok(ExitCode::FAILURE);
        }
    };
    show(&hello);
    if let Err(error) = posture::check(&hello, &[]) {
        println!("\n{error:#}");
        return Ok(ExitCode::FAILURE);
    }
    let walls = match posture::weaker(&hello).count() {
        0 => "every wall stands".to_owned(),
        1 => "no wall is missing, one is weaker than it could be".to_owned(),
        weaker => format!("no wall is missing, {weaker} are weaker than they could be"),
    };
    println!("\n{walls}; every limit can be enforced");
    Ok(ExitCode::SUCCESS)
}

fn show(hello: &Hello) {
    let (major, minor) = sandbox::MIN_KERNEL;
    println!("kernel    {} (at least {major}.{minor} is needed)", hello.kernel);
    println!("cgroups   {}", hello.cgroup);
    println!("ids       {} for each of {} runs at once\n", hello.id_width, hello.max_runs);
    let colour = std::io::stdout().is_terminal();
    for wall in &hello.walls {
        let (word, code) = match wall.state {
            WallState::Up => ("up", 32),
            WallState::Weaker => ("weaker", 33),
            WallState::Down => ("DOWN", 31),
        };
        let word = if colour { format!("\x1b[{code}m{word:6}\x1b[0m") } else { format!("{word:6}") };
        println!("{word}  {:14}  {}", wall.name, wall.detail);
    }
    for limit in &hello.not_enforced {
        println!("DOWN    {limit:14}  the limit can't be enforced on this machine");
    }
}
