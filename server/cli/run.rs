//! `sandglass run`: one command of one image, here and now. The outputs go through as they come, and
//! the exit code is the program's, or says what became of it.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use engine::{Context, Executed, Leases, NoObserver, Over, SandboxLauncher, Step, execute};
use futures_util::future::BoxFuture;
use image::{ImageError, Images, Lease};
use run::{Outcome, PrincipalName, Profile, Pull, RunSpec};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::flags::ConfigFlags;
use super::local::{self, Local};
use super::passthrough::Passthrough;
use super::pull::Show;
use super::{pull, run_spec, stdin};
use crate::say::tell;

/// Our own fault, as `docker run` and `timeout` say it.
pub(super) const OUR_FAULT: u8 = 125;
const TIME_LIMIT: u8 = 124;
const MEMORY_LIMIT: u8 = 137;
const CANNOT_EXECUTE: u8 = 126;
const NOT_FOUND: u8 = 127;
const SIGNALED: u8 = 128;

#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Let the program read this command's standard input
    #[arg(short, long)]
    pub(super) interactive: bool,
    /// Set a variable; without a value it is taken from here
    #[arg(short, long, value_name = "KEY[=VALUE]")]
    pub(super) env: Vec<String>,
    /// The working directory inside, created if missing
    #[arg(short, long, value_name = "DIR")]
    pub(super) workdir: Option<String>,
    /// The user inside, such as 1000, 1000:1000 or a name
    #[arg(short, long)]
    pub(super) user: Option<String>,
    /// Copy a file or a folder of this machine into the sandbox before the start
    #[arg(long, value_name = "HOST:INSIDE")]
    pub(super) copy: Vec<String>,
    /// The most memory, such as 512m or 2g
    #[arg(long, value_name = "SIZE", value_parser = run_spec::parse_size)]
    pub(super) memory: Option<u64>,
    /// The most time that the program may take
    #[arg(long, value_name = "SECONDS", value_parser = run_spec::parse_seconds)]
    pub(super) timeout: Option<u64>,
    /// How high the walls are: `compat` for programs that change their user or read more of /proc
    #[arg(long, default_value = "strict", value_parser = run_spec::parse_profile)]
    pub(super) profile: Profile,
    /// When the registry is asked
    #[arg(long, default_value = "missing", value_parser = run_spec::parse_pull)]
    pub(super) pull: Pull,
    /// Show no progress of a pull
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    config: ConfigFlags<false>,
    /// The image, as Docker users write it
    pub(super) image: String,
    /// The command and its arguments; without them the image's own
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(super) command: Vec<String>,
}

pub fn main(arguments: &Arguments) -> ExitCode {
    match run(arguments) {
        Ok((outcome, spec)) => {
            if let Some(reason) = reason(&outcome, &spec) {
                tell!("sandglass: {reason}");
            }
            ExitCode::from(code(&outcome))
        }
        Err(error) => {
            tell!("sandglass: {error:#}");
            ExitCode::from(OUR_FAULT)
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<(Outcome, RunSpec)> {
    let config = local::free_store(arguments.config.load()?);
    let spec = run_spec::from_arguments(arguments, &config)?;
    let local = Local::start(&config)?;
    let executed = local.runtime.block_on(carry(arguments, &spec, &local))?;
    // What the run left behind is removed before the launcher ends; a second command finds it gone.
    local.runtime.block_on(tear_down(executed.control));
    Ok((executed.outcome, spec))
}

async fn carry(arguments: &Arguments, spec: &RunSpec, local: &Local) -> anyhow::Result<Executed> {
    let launcher =
        Passthrough::new(SandboxLauncher::new(Arc::clone(&local.launcher)).context("use the launcher")?);
    let images = Shown { images: local.images.clone(), show: Show::quiet(arguments.quiet) };
    let context = Context {
        images: &images,
        launcher: &launcher,
        observer: &NoObserver,
        cores: &[],
        leases: &Leases::default(),
        files: None,
        gate: None,
        over: Over::default(),
    };
    let stdin = if arguments.interactive { stdin::piped()? } else { engine::Stdin::OfSpec };
    let cancel = CancellationToken::new();
    let watching = cancel_on_signals(cancel.clone())?;
    let executed = execute(context, spec, stdin, &cancel, &mut |_: Step<'_>| {}).await;
    watching.abort();
    Ok(executed)
}

/// Images whose pulls somebody may be watching.
struct Shown {
    images: Images,
    show: Show,
}

impl engine::Images for Shown {
    fn acquire<'a>(
        &'a self,
        _: &'a PrincipalName,
        reference: &'a str,
        policy: Pull,
    ) -> BoxFuture<'a, Result<Lease, ImageError>> {
        Box::pin(pull::acquire(&self.images, reference, policy, &self.show))
    }
}

fn cancel_on_signals(cancel: CancellationToken) -> anyhow::Result<tokio::task::JoinHandle<()>> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        cancel.cancel();
    }))
}

async fn tear_down(control: Option<Box<dyn engine::Control>>) {
    let Some(mut control) = control else { return };
    while let Ok(Some(event)) = control.next().await {
        if matches!(event, sandbox::protocol::Event::TornDown { .. }) {
            return;
        }
    }
}

/// One line per outcome, no wildcard.
fn code(outcome: &Outcome) -> u8 {
    match outcome {
        Outcome::Exited { code } => *code,
        Outcome::Signaled { signal } => SIGNALED.saturating_add(u8::try_from(*signal).unwrap_or(u8::MAX)),
        Outcome::WallTimeLimit | Outcome::CpuTimeLimit => TIME_LIMIT,
        Outcome::MemoryLimit => MEMORY_LIMIT,
        // Somebody pressed Ctrl-C, as for any other program.
        Outcome::Cancelled => SIGNALED + 2,
        Outcome::StartFailed { reason } if is_not_found(reason) => NOT_FOUND,
        Outcome::StartFailed { .. } => CANNOT_EXECUTE,
        Outcome::OutputLimit { .. } | Outcome::ImageFailed { .. } | Outcome::SandboxError { .. } => OUR_FAULT,
    }
}

fn is_not_found(reason: &str) -> bool {
    [": no such file", ": no such program in PATH"].iter().any(|words| reason.ends_with(words))
}

/// What a shell's user needs to hear beside the code.
fn reason(outcome: &Outcome, spec: &RunSpec) -> Option<String> {
    match outcome {
        Outcome::Exited { .. } => None,
        other => Some(other.message(&spec.limits)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_has_the_code_that_shells_expect() {
        let start_failed = |reason: &str| Outcome::StartFailed { reason: reason.into() };
        for (outcome, expected) in [
            (Outcome::Exited { code: 7 }, 7),
            (Outcome::Signaled { signal: 11 }, 139),
            (Outcome::Signaled { signal: 64 }, 192),
            (Outcome::WallTimeLimit, 124),
            (Outcome::CpuTimeLimit, 124),
            (Outcome::MemoryLimit, 137),
            (Outcome::Cancelled, 130),
            (Outcome::ImageFailed { detail: String::new() }, 125),
            (Outcome::SandboxError { detail: String::new() }, 125),
            (start_failed("can't start \"nope\": no such program in PATH"), 127),
            (start_failed("can't start \"/nope\": no such file"), 127),
            (start_failed("can't start \"/etc\": it is not an executable file"), 126),
        ] {
            assert_eq!(code(&outcome), expected, "{outcome:?}");
        }
    }
}
