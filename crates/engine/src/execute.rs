//! One run, start to finish. Every run in the system goes through these lines.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use image::ImageError;
use jiff::Timestamp;
use run::{
    Evidence, ImageRef, KilledFor, LimitHit, OnOutputLimit, Outcome, Output, Problem, RunOutput, RunSpec,
    Stream, Timings, Usage,
};
use sandbox::protocol::{Began, Event, Finished};
use tokio::net::unix::pipe;
use tokio_util::sync::CancellationToken;

use crate::files::Files;
use crate::launcher::{Control, Launch, LaunchError, Launched};
use crate::observer::{Observer, Startup};
use crate::output::{Collector, Kept};
use crate::outputs::{self, Collected};
use crate::over::{self, Made};
use crate::{Images, Launcher, Leases, Over, plan, stdin};

/// After the last process is dead its outputs end at once; this bounds what should not happen.
const DRAIN_PATIENCE: Duration = Duration::from_secs(2);

/// The rooms that a run goes through.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    pub images: &'a dyn Images,
    pub launcher: &'a dyn Launcher,
    pub observer: &'a dyn Observer,
    /// The processors that are the run's own; empty: it shares all of them.
    pub cores: &'a [usize],
    /// The uploaded files that the run reads.
    pub leases: &'a Leases,
    /// Where outputs go that are too large for the reply.
    pub files: Option<&'a Files>,
    pub over: Over<'a>,
    /// Asked before a program is started, where there is something to be done first.
    pub gate: Option<&'a dyn Gate>,
}

/// What comes before the start of a program.
pub trait Gate: Send + Sync {
    /// Lets the run start, or says why it must not.
    fn pass(&self) -> BoxFuture<'_, Result<(), String>>;

    /// Whether the run is left to the next server, and nobody is to hear of it here.
    fn is_closed(&self) -> bool {
        false
    }
}

impl std::fmt::Debug for Context<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").finish_non_exhaustive()
    }
}

/// What the command reads: what the spec says, or a descriptor of the caller's.
#[derive(Debug)]
pub enum Stdin {
    OfSpec,
    Descriptor(OwnedFd),
}

/// What happens on the way, as it happens.
#[derive(Clone, Copy, Debug)]
pub enum Step<'a> {
    /// The image is there; the sandbox is being built.
    Image(&'a ImageRef),
    /// The program was started at this time.
    Started(Timestamp),
    /// The run is with the launcher; this is what will be kept of what it writes.
    Outputs { stdout: &'a Arc<Kept>, stderr: &'a Arc<Kept> },
    /// One of them has grown.
    Wrote,
}

/// How it went.
pub struct Executed {
    pub outcome: Outcome,
    pub problem: Option<Problem>,
    pub image: Option<ImageRef>,
    pub stdout: Output,
    pub stderr: Output,
    pub outputs: Vec<RunOutput>,
    pub outputs_missing: Vec<String>,
    pub(crate) made: Option<Made>,
    pub usage: Option<Usage>,
    pub limit_hits: Vec<LimitHit>,
    pub timings: Timings,
    pub started_at: Option<Timestamp>,
    pub overshoot: Option<(KilledFor, Duration)>,
    /// The keeper, while it removes what the run has left.
    pub control: Option<Box<dyn Control>>,
}

impl std::fmt::Debug for Executed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Executed").field("outcome", &self.outcome).finish_non_exhaustive()
    }
}

impl Executed {
    pub(crate) fn without_a_run(outcome: Outcome) -> Self {
        Self {
            outcome,
            problem: None,
            image: None,
            stdout: Output::default(),
            stderr: Output::default(),
            outputs: Vec::new(),
            outputs_missing: Vec::new(),
            made: None,
            usage: None,
            limit_hits: Vec::new(),
            timings: Timings::default(),
            started_at: None,
            overshoot: None,
            control: None,
        }
    }

    /// Takes what the run has left behind; who cancels now only does without it.
    async fn collect(&mut self, collecting: impl Future<Output = Collected>, cancel: &CancellationToken) {
        let collected = tokio::select! {
            collected = collecting => collected,
            () = cancel.cancelled() => return,
        };
        (self.outputs, self.outputs_missing) = (collected.outputs, collected.missing);
    }

    async fn hear_frozen(&mut self, lease: &image::Lease) {
        let Some(control) = &mut self.control else { return };
        let frozen = over::hear_frozen(&mut **control).await;
        // An output past its cap is known here alone; its run did not end well either.
        let well = self.outcome == Outcome::Exited { code: 0 };
        let frozen = if well { frozen } else { frozen.and(Err("the run did not end well".into())) };
        self.made = Some(Made { lease: lease.clone(), frozen });
    }

    pub(crate) fn cancelled() -> Self {
        Self::without_a_run(Outcome::Cancelled)
    }

    fn sandbox_error(detail: String) -> Self {
        Self::not_run(problem("sandbox-failed", detail))
    }

    /// Nothing was run, and the program has no part in why.
    pub(crate) fn not_run(problem: Problem) -> Self {
        let outcome = Outcome::SandboxError { detail: problem.detail.clone() };
        Self { problem: Some(problem), ..Self::without_a_run(outcome) }
    }

    /// Something of ours died. What we then cancelled was not cancelled by anybody's wish.
    pub(crate) fn interrupted(self, who: &str) -> Self {
        let detail = format!("the {who} died before the run had ended");
        let problem = problem("interrupted", &detail);
        Self { outcome: Outcome::SandboxError { detail }, problem: Some(problem), ..self }
    }
}

/// Gets the image, builds the sandbox, reads the outputs, judges.
pub async fn execute(
    context: Context<'_>,
    spec: &RunSpec,
    stdin: Stdin,
    cancel: &CancellationToken,
    on_step: &mut (dyn FnMut(Step<'_>) + Send),
) -> Executed {
    let asked = Instant::now();
    let lease = match context.over.base {
        Some(base) => Ok(base.lease.clone()),
        None => tokio::select! {
            lease = context.images.acquire(&spec.principal.name, &spec.image, spec.pull) => lease,
            () = cancel.cancelled() => return Executed::cancelled(),
        },
    };
    let lease = match lease {
        Ok(lease) => lease,
        Err(error) => return image_failed(&error),
    };
    let image_took = asked.elapsed();
    let image = ImageRef { reference: lease.reference.clone(), digest: lease.digest.clone() };
    on_step(Step::Image(&image));
    let mut executed = match pass_and_launch(context, spec, &lease, stdin).await {
        Ok((launched, outputs)) => {
            let run = Running {
                spec,
                observer: context.observer,
                cancel,
                launched_at: Instant::now(),
                image_took,
                fetched: lease.fetched,
                started: None,
                start_was_told: false,
            };
            let mut executed = run.carry_to_the_end(launched, on_step).await;
            if let Some(from) = outputs {
                executed.collect(outputs::receive(from, spec, context.files), cancel).await;
            }
            if context.over.freeze.is_some() && executed.usage.is_some() {
                executed.hear_frozen(&lease).await;
            }
            executed
        }
        Err(executed) => executed,
    };
    executed.image = Some(image);
    executed.timings.image_ms = Some(ms(image_took));
    executed
} // `lease` is dropped here: now the layers may be collected.

async fn pass_and_launch(
    context: Context<'_>,
    spec: &RunSpec,
    lease: &image::Lease,
    stdin: Stdin,
) -> Result<(Launched, Option<pipe::Receiver>), Executed> {
    if let Some(gate) = context.gate {
        gate.pass().await.map_err(Executed::sandbox_error)?;
    }
    launch(context, spec, lease, stdin).await
}

async fn launch(
    context: Context<'_>,
    spec: &RunSpec,
    lease: &image::Lease,
    stdin: Stdin,
) -> Result<(Launched, Option<pipe::Receiver>), Executed> {
    let internal = |what: &str, error: std::io::Error| Executed::sandbox_error(format!("{what}: {error}"));
    let (files, mut descriptors) =
        plan::files(&spec.files, context.leases).map_err(|error| internal("hold the files", error))?;
    let asked = outputs::asked(&spec.outputs, context.files);
    let pipe = asked.as_ref().map(|_| outputs::pipe()).transpose();
    let pipe = pipe.map_err(|error| internal("make a pipe for outputs", error))?;
    let outputs = pipe.map(|(ours, theirs)| {
        descriptors.push(theirs);
        ours
    });
    let mut launch_spec = plan::launch_spec(spec, lease, files, asked, context.over)
        .map_err(|reason| Executed::without_a_run(Outcome::StartFailed { reason }))?;
    launch_spec.cores = context.cores.to_vec();
    let stdin = match (stdin, &spec.stdin) {
        (Stdin::Descriptor(descriptor), _) => Ok(descriptor),
        (Stdin::OfSpec, wanted) => stdin::descriptor(wanted, context.leases),
    };
    let stdin = stdin.map_err(|error| internal("hold stdin", error))?;
    let launch = Launch { spec: launch_spec, stdin, files: descriptors };
    let launched = context.launcher.launch(launch).await;
    launched.map(|launched| (launched, outputs)).map_err(|error| match error {
        LaunchError::Lost => Executed::sandbox_error(error.to_string()),
        LaunchError::Send { ref source } => Executed::sandbox_error(format!("{error}: {source}")),
    })
}

struct Running<'a> {
    spec: &'a RunSpec,
    observer: &'a dyn Observer,
    cancel: &'a CancellationToken,
    launched_at: Instant,
    image_took: Duration,
    fetched: bool,
    started: Option<(Timestamp, Duration)>,
    start_was_told: bool,
}

/// What the keeper said last.
enum Last {
    Finished(Box<Finished>),
    Failed(String),
}

impl Running<'_> {
    /// Reads both outputs and the keeper at once, until all three have said everything.
    async fn carry_to_the_end(
        mut self,
        launched: Launched,
        on_step: &mut (dyn FnMut(Step<'_>) + Send),
    ) -> Executed {
        let Launched { mut control, stdout, stderr } = launched;
        let limits = &self.spec.limits;
        let mut stdout = Collector::new(stdout, limits.stdout_bytes);
        let mut stderr = Collector::new(stderr, limits.stderr_bytes);
        on_step(Step::Outputs { stdout: stdout.kept(), stderr: stderr.kept() });
        let kills = self.spec.on_output_limit == OnOutputLimit::Kill;
        let (mut last, mut exceeded, mut cancelled) = (None, None, false);
        let drained = tokio::time::sleep(Duration::MAX);
        tokio::pin!(drained);
        while last.is_none() || !(stdout.ended() && stderr.ended()) {
            let mut note = |collector: &Collector, grown| {
                if grown {
                    // Who writes has started, whether we have been told yet or not.
                    if !std::mem::replace(&mut self.start_was_told, true) {
                        on_step(Step::Started(Timestamp::now()));
                    }
                    on_step(Step::Wrote);
                }
                collector.exceeded() && exceeded.is_none()
            };
            let crossed = tokio::select! {
                grown = stdout.read(), if !stdout.ended() => note(&stdout, grown).then_some(Stream::Stdout),
                grown = stderr.read(), if !stderr.ended() => note(&stderr, grown).then_some(Stream::Stderr),
                event = control.next(), if last.is_none() => {
                    last = self.hear(event, on_step);
                    if last.is_some() {
                        drained.as_mut().reset(tokio::time::Instant::now() + DRAIN_PATIENCE);
                    }
                    None
                }
                () = self.cancel.cancelled(), if !cancelled && last.is_none() => {
                    cancelled = true;
                    control.kill(KilledFor::Cancel);
                    None
                }
                () = &mut drained, if last.is_some() => break,
            };
            if let Some(stream) = crossed.filter(|_| kills) {
                exceeded = Some(stream);
                if last.is_none() {
                    control.kill(KilledFor::Output);
                }
            }
        }
        let mut executed = match last {
            Some(Last::Finished(finished)) => self.judge(*finished, exceeded),
            Some(Last::Failed(detail)) => Executed::sandbox_error(detail),
            None => Executed::sandbox_error("the run's keeper ended without a word".into()),
        };
        executed.stdout = stdout.into_output();
        executed.stderr = stderr.into_output();
        executed.control = Some(control);
        executed
    }

    /// `Some` when the run is over.
    fn hear(
        &mut self,
        event: std::io::Result<Option<Event>>,
        on_step: &mut (dyn FnMut(Step<'_>) + Send),
    ) -> Option<Last> {
        match event {
            Ok(Some(Event::Started(began))) => {
                self.begin(began, on_step);
                None
            }
            Ok(Some(Event::Finished(finished))) => {
                if let Some(began) = finished.began.filter(|_| self.started.is_none()) {
                    self.begin(began, on_step);
                }
                Some(Last::Finished(finished))
            }
            Ok(Some(Event::Failed(failure))) => Some(Last::Failed(failure.to_string())),
            Ok(Some(other)) => Some(Last::Failed(format!("the keeper said {other:?}"))),
            Ok(None) => Some(Last::Failed("the run's keeper ended without a word".into())),
            Err(error) => Some(Last::Failed(format!("the run's keeper can't be heard: {error}"))),
        }
    }

    fn begin(&mut self, began: Began, on_step: &mut (dyn FnMut(Step<'_>) + Send)) {
        let [setup, ago] = [began.setup_us, began.ago_us].map(Duration::from_micros);
        let at = Timestamp::now().checked_sub(ago).unwrap_or_else(|_| Timestamp::now());
        self.started = Some((at, setup));
        let exec = self.launched_at.elapsed().saturating_sub(setup + ago);
        self.observer.started(Startup { image: self.image_took, setup, exec, fetched: self.fetched });
        if !std::mem::replace(&mut self.start_was_told, true) {
            on_step(Step::Started(at));
        }
    }

    fn judge(&self, finished: Finished, output_exceeded: Option<Stream>) -> Executed {
        let evidence = Evidence {
            exit: finished.exit,
            killed_for: finished.killed_for,
            oom_kills: finished.oom_kills,
            output_exceeded,
        };
        let overshoot = finished.killed_for.zip(finished.overshoot_us.map(Duration::from_micros));
        let setup = self.started.map_or_else(|| self.launched_at.elapsed(), |(_, setup)| setup);
        let outcome = Outcome::judge(&evidence);
        let failed = match &outcome {
            Outcome::SandboxError { detail } => Executed::sandbox_error(detail.clone()),
            _ => Executed::without_a_run(outcome),
        };
        Executed {
            timings: Timings {
                setup_ms: Some(ms(setup)),
                run_ms: Some(finished.usage.wall_time_ms),
                ..Timings::default()
            },
            usage: Some(finished.usage),
            limit_hits: finished.limit_hits,
            started_at: self.started.map(|(at, _)| at),
            overshoot,
            ..failed
        }
    }
}

pub(crate) fn problem(name: &str, detail: impl Into<String>) -> Problem {
    Problem { problem_type: format!("/problems/{name}"), detail: detail.into(), retry_after_ms: None }
}

fn image_failed(error: &ImageError) -> Executed {
    let detail = chain(error);
    let retry_after_ms = match error {
        ImageError::RateLimited { retry_after, .. } => retry_after.map(|pause| pause.as_millis() as u64),
        _ => None,
    };
    let problem = Problem { retry_after_ms, ..problem(problem_name(error), &detail) };
    Executed { problem: Some(problem), ..Executed::without_a_run(Outcome::ImageFailed { detail }) }
}

/// Which problem an image's error is. One line per error, no wildcard: a new one must not compile
/// until somebody has decided.
pub fn problem_name(error: &ImageError) -> &'static str {
    use unpack::UnpackError;
    match error {
        ImageError::BadReference { .. } => "invalid-request",
        ImageError::NotAllowed { .. } => "image-not-allowed",
        ImageError::NotFound { .. } => "image-not-found",
        ImageError::Unauthorized { .. } => "image-unauthorized",
        ImageError::RateLimited { .. } => "registry-rate-limited",
        ImageError::Registry { .. } => "registry-failed",
        ImageError::BadLayer { source, .. } => match **source {
            UnpackError::NoSpace => "store-full",
            UnpackError::TooLarge { .. } => "image-too-large",
            UnpackError::Io { .. } | UnpackError::BadJob { .. } => "store-failed",
            UnpackError::Compression { .. }
            | UnpackError::Archive { .. }
            | UnpackError::TrailingGarbage
            | UnpackError::BadEntry { .. }
            | UnpackError::LinkTarget { .. }
            | UnpackError::DiffId { .. }
            | UnpackError::Input { .. } => "bad-image",
        },
        ImageError::NoSpace { .. } | ImageError::NoInodes { .. } => "store-full",
        ImageError::BadImage { .. } => "bad-image",
        ImageError::Platform { .. } => "image-platform",
        ImageError::TooLarge { .. } => "image-too-large",
        ImageError::NotPresent { .. } => "image-not-present",
        ImageError::Timeout { .. } => "pull-timeout",
        ImageError::Cancelled { .. } => "draining",
        ImageError::Store { .. } => "store-failed",
    }
}

/// The whole story of an error, except where it would tell a client about files of ours.
fn chain(error: &ImageError) -> String {
    let mut text = error.to_string();
    if matches!(error, ImageError::Store { .. }) {
        return text;
    }
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

pub(crate) fn ms(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}
