//! The engine: takes runs, carries each through its life in a task of its own, and answers questions
//! about them. No lock is held while anything is waited for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use run::{ImageRef, Outcome, Output, PrincipalName, Run, RunId, RunSpec, RunState, StoredFile, Timings};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::admission::{Admission, Budget, Refused, Slot, Ticket, TooLarge};
use crate::execute::{Executed, Stdin, Step, execute, ms};
use crate::files::Files;
use crate::launcher::Control;
use crate::live::{Live, RunHandle};
use crate::observer::{Observer, Rejection};
use crate::store::{FinishedRuns, Keep};
use crate::watcher::Watcher;
use crate::{Context, Images, Launcher, Leases, PoolCounts};
use sandbox::protocol::Event;

/// How long a slot waits for the traces of its run to go.
const TEARDOWN_PATIENCE: Duration = Duration::from_secs(6);

#[derive(Clone, Debug)]
pub struct Config {
    /// How many runs go at once.
    pub slots: usize,
    /// How many of one principal may wait for a slot.
    pub queue_capacity: usize,
    /// What all runs together may claim of the host.
    pub budget: Budget,
    pub kept_runs: usize,
    /// Of the outputs of finished runs.
    pub kept_bytes: u64,
    pub kept_for: Duration,
    /// Limits that this host can't enforce, as every run says.
    pub not_enforced: Vec<String>,
    /// Where uploaded files are, if there are any.
    pub files: Option<Files>,
}

/// Why a run was not taken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    #[error("every slot is busy and the queue is full")]
    Busy { retry_after: Duration },
    #[error("as many runs of this principal wait as may")]
    OverQuota { retry_after: Duration },
    #[error("this principal asks for more runs per minute than it may")]
    RateLimited { retry_after: Duration },
    #[error("{limit} is {asked}; all runs together may have {most}")]
    TooLarge { limit: &'static str, asked: String, most: String },
    #[error("the run would not start for about {} s", expected.as_secs())]
    TooLate { expected: Duration },
    #[error("the server is stopping")]
    Stopping,
    #[error("the launcher is gone")]
    LauncherLost,
    #[error("there is no file {}", file.id)]
    NoSuchFile { file: StoredFile },
}

/// How busy the engine is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Counts {
    pub slots: usize,
    pub busy: usize,
    pub queued: usize,
    pub queue_capacity: usize,
    pub oldest_wait: Duration,
    /// Sandboxes in which a program runs.
    pub running: usize,
    /// Sandboxes whose run has ended and whose traces are being removed.
    pub ending: usize,
    /// Sandboxes that wait for a run.
    pub pool: PoolCounts,
}

/// Cheap to clone; all clones are the same engine.
#[derive(Clone, Debug)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    images: Arc<dyn Images>,
    launcher: Arc<dyn Launcher>,
    observer: Arc<dyn Observer>,
    admission: Arc<Admission>,
    runs: Mutex<Runs>,
    tasks: TaskTracker,
    draining: CancellationToken,
    lost: CancellationToken,
}

struct Runs {
    live: HashMap<RunId, Arc<Live>>,
    finished: FinishedRuns,
    running: usize,
    ending: usize,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Engine {
    /// Must be called inside the runtime.
    pub fn new(
        config: Config,
        images: Arc<dyn Images>,
        launcher: Arc<dyn Launcher>,
        observer: Arc<dyn Observer>,
    ) -> Self {
        let keep = Keep { runs: config.kept_runs, bytes: config.kept_bytes, time: config.kept_for };
        let inner = Arc::new(Inner {
            admission: Admission::new(config.slots, config.queue_capacity, config.budget.clone()),
            config,
            images,
            launcher,
            observer,
            runs: Mutex::new(Runs {
                live: HashMap::new(),
                finished: FinishedRuns::new(keep),
                running: 0,
                ending: 0,
            }),
            tasks: TaskTracker::new(),
            draining: CancellationToken::new(),
            lost: CancellationToken::new(),
        });
        tokio::spawn(watch_launcher(Arc::downgrade(&inner), Arc::clone(&inner.launcher), inner.lost.clone()));
        Self { inner }
    }

    /// Takes a run, or says why not. It goes on whatever becomes of the caller.
    pub fn submit(&self, spec: RunSpec) -> Result<RunHandle, SubmitError> {
        let inner = &self.inner;
        if inner.lost.is_cancelled() {
            return Err(SubmitError::LauncherLost);
        }
        if inner.draining.is_cancelled() {
            return Err(SubmitError::Stopping);
        }
        let leases = Leases::take(inner.config.files.as_ref(), &spec)
            .map_err(|file| SubmitError::NoSuchFile { file })?;
        let ticket = inner.admission.enter(&spec).map_err(|refused| inner.turned_away(refused))?;
        let place = ticket.place().clone();
        let queue_position = inner.admission.position(&place).map(|position| position as u64);
        let live = Live::new(Run { queue_position, ..self.queued(&spec) }, place);
        inner.runs().live.insert(live.id, Arc::clone(&live));
        inner.tasks.spawn(drive(Arc::clone(inner), Arc::clone(&live), spec, leases, ticket));
        Ok(RunHandle { live })
    }

    fn queued(&self, spec: &RunSpec) -> Run {
        Run {
            id: RunId(Uuid::now_v7()),
            principal: spec.principal.name.clone(),
            state: RunState::Queued,
            queue_position: None,
            outcome: None,
            problem: None,
            stdout: Output::default(),
            stderr: Output::default(),
            outputs: Arc::default(),
            outputs_missing: Vec::new(),
            usage: None,
            limits: spec.limits.clone(),
            limit_hits: Vec::new(),
            not_enforced: self.inner.config.not_enforced.clone(),
            image: ImageRef { reference: spec.image.clone(), digest: None },
            timings: Timings::default(),
            created_at: Timestamp::now(),
            started_at: None,
            finished_at: None,
            output_encoding: spec.output_encoding,
            labels: spec.labels.clone(),
        }
    }

    /// The run as it stands.
    pub fn get(&self, id: RunId) -> Option<Arc<Run>> {
        let runs = self.inner.runs();
        match runs.live.get(&id) {
            Some(live) => {
                let live = Arc::clone(live);
                drop(runs);
                Some(self.inner.with_position(&live))
            }
            None => runs.finished.get(id),
        }
    }

    /// Whether a run would start within that time, as far as anybody can tell.
    pub fn check_wait(&self, principal: &PrincipalName, within: Duration) -> Result<(), SubmitError> {
        match self.inner.admission.expected_wait(principal) {
            Some(expected) if expected > within => {
                self.inner.observer.rejected(Rejection::Deadline);
                Err(SubmitError::TooLate { expected })
            }
            _ => Ok(()),
        }
    }

    /// Everybody who has runs waiting for a slot, and how many.
    pub fn queued_by_principal(&self) -> Vec<(PrincipalName, usize)> {
        self.inner.admission.queued_by()
    }

    /// The run when it has finished, or as it stands when the time is over. No time means no end.
    pub async fn wait(&self, id: RunId, time: Option<Duration>) -> Option<Arc<Run>> {
        let live = self.inner.runs().live.get(&id).cloned();
        match live {
            Some(live) => Some(RunHandle { live }.wait(time).await),
            None => self.get(id),
        }
    }

    /// Cancels the run if it hasn't ended; answers when every process of it is dead.
    pub async fn cancel(&self, id: RunId) -> Option<Arc<Run>> {
        if let Some(live) = self.inner.runs().live.get(&id) {
            live.cancel.cancel();
        }
        self.wait(id, None).await
    }

    /// Forgets a finished run.
    pub fn forget(&self, id: RunId) {
        self.inner.runs().finished.remove(id);
    }

    /// Runs, the newest first, as far as `wanted` takes them.
    pub fn list(&self, limit: usize, wanted: impl Fn(&Run) -> bool) -> Vec<Arc<Run>> {
        let runs = self.inner.runs();
        let mut all: Vec<Arc<Run>> = runs.live.values().map(|live| live.run()).collect();
        all.sort_unstable_by_key(|run| std::cmp::Reverse(run.id));
        let mut found = merge(all, runs.finished.newest().cloned());
        found.retain(|run| wanted(run));
        found.truncate(limit);
        found
    }

    /// Follows a run, in whatever state.
    pub fn watch(&self, id: RunId) -> Option<Watcher> {
        let runs = self.inner.runs();
        match runs.live.get(&id) {
            Some(live) => Some(Watcher::live(Arc::clone(live))),
            None => runs.finished.get(id).map(Watcher::finished),
        }
    }

    pub fn counts(&self) -> Counts {
        let occupancy = self.inner.admission.occupancy();
        let pool = self.inner.launcher.pool();
        let runs = self.inner.runs();
        Counts {
            slots: self.inner.config.slots,
            busy: occupancy.busy,
            queued: occupancy.queued,
            queue_capacity: self.inner.config.queue_capacity,
            oldest_wait: occupancy.oldest.unwrap_or_default(),
            running: runs.running,
            ending: runs.ending,
            pool,
        }
    }

    pub fn is_draining(&self) -> bool {
        self.inner.draining.is_cancelled()
    }

    pub fn launcher_is_lost(&self) -> bool {
        self.inner.lost.is_cancelled()
    }

    /// Ends when the launcher has died. Then nothing can run any more.
    pub async fn launcher_lost(&self) {
        self.inner.lost.cancelled().await;
    }

    /// Takes no more runs, waits for those that it has, and cancels what is left after `deadline`.
    pub async fn drain(&self, deadline: Duration) {
        self.inner.draining.cancel();
        self.inner.tasks.close();
        if tokio::time::timeout(deadline, self.inner.tasks.wait()).await.is_err() {
            for live in self.inner.runs().live.values() {
                live.cancel.cancel();
            }
            self.inner.tasks.wait().await;
        }
    }
}

/// The newest first from two lists that are so already.
fn merge(live: Vec<Arc<Run>>, finished: impl Iterator<Item = Arc<Run>>) -> Vec<Arc<Run>> {
    let mut all: Vec<Arc<Run>> = live.into_iter().chain(finished).collect();
    all.sort_unstable_by_key(|run| std::cmp::Reverse(run.id));
    all.dedup_by_key(|run| run.id);
    all
}

impl Inner {
    fn turned_away(&self, refused: Refused) -> SubmitError {
        let (reason, error) = match refused {
            Refused::Full { retry_after, own: false } => {
                (Rejection::QueueFull, SubmitError::Busy { retry_after })
            }
            Refused::Full { retry_after, own: true } => {
                (Rejection::Quota, SubmitError::OverQuota { retry_after })
            }
            Refused::Rate { retry_after } => (Rejection::RateLimit, SubmitError::RateLimited { retry_after }),
            Refused::TooLarge(TooLarge { limit, asked, most }) => {
                (Rejection::TooLarge, SubmitError::TooLarge { limit, asked, most })
            }
        };
        self.observer.rejected(reason);
        error
    }

    /// The run as it stands, and where it stands now if it still waits.
    fn with_position(&self, live: &Live) -> Arc<Run> {
        let run = live.run();
        if run.state != RunState::Queued {
            return run;
        }
        let queue_position = self.admission.position(&live.place).map(|position| position as u64);
        Arc::new(Run { queue_position, ..Run::clone(&run) })
    }

    fn runs(&self) -> MutexGuard<'_, Runs> {
        // A panic under this lock leaves the maps whole.
        self.runs.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// When the launcher dies, its keepers live on with their runs, until they are told to end.
async fn watch_launcher(inner: std::sync::Weak<Inner>, launcher: Arc<dyn Launcher>, lost: CancellationToken) {
    launcher.lost().await;
    lost.cancel();
    if let Some(inner) = inner.upgrade() {
        tracing::error!("the launcher is gone");
        for live in inner.runs().live.values() {
            live.cancel.cancel();
        }
    }
}

/// The life of one run: queued → preparing → running → finished, and then the slot's.
async fn drive(inner: Arc<Inner>, live: Arc<Live>, spec: RunSpec, leases: Leases, mut ticket: Ticket) {
    let entered = Instant::now();
    let slot = tokio::select! {
        biased;
        () = live.cancel.cancelled() => None,
        slot = ticket.slot() => Some(slot),
    };
    drop(ticket);
    let waited = entered.elapsed();
    live.update(|run| run.timings.queue_ms = Some(ms(waited)));
    let Some(slot) = slot else {
        let executed = Executed::cancelled();
        let lost = inner.lost.is_cancelled();
        return finish(&inner, &live, if lost { executed.interrupted() } else { executed });
    };
    inner.observer.dequeued(waited);
    live.update(|run| (run.state, run.queue_position) = (RunState::Preparing, None));
    let context = Context {
        images: &*inner.images,
        launcher: &*inner.launcher,
        observer: &*inner.observer,
        leases: &leases,
        files: inner.config.files.as_ref(),
    };
    let mut on_step = |step: Step<'_>| follow(&inner, &live, step);
    let mut executed = execute(context, &spec, Stdin::OfSpec, &live.cancel, &mut on_step).await;
    let control = executed.control.take();
    if executed.started_at.is_some() {
        inner.runs().running -= 1;
    }
    if inner.lost.is_cancelled() && executed.outcome == Outcome::Cancelled {
        executed = executed.interrupted();
    }
    finish(&inner, &live, executed);
    tear_down(&inner, &live, control, slot).await;
}

fn follow(inner: &Inner, live: &Live, step: Step<'_>) {
    match step {
        Step::Image(image) => live.update(|run| run.image = image.clone()),
        Step::Started => {
            inner.runs().running += 1;
            live.update(|run| (run.state, run.started_at) = (RunState::Running, Some(Timestamp::now())));
        }
        Step::Outputs { stdout, stderr } => live.writes_to(stdout, stderr),
        Step::Wrote => live.wrote(),
    }
}

fn finish(inner: &Inner, live: &Live, executed: Executed) {
    let Executed {
        outcome,
        problem,
        image,
        stdout,
        stderr,
        outputs,
        outputs_missing,
        usage,
        limit_hits,
        timings,
        started_at,
        overshoot,
        control: _,
    } = executed;
    live.update(|run| {
        run.state = RunState::Finished;
        run.queue_position = None;
        run.outcome = Some(outcome);
        run.problem = problem;
        run.image = image.unwrap_or_else(|| run.image.clone());
        (run.stdout, run.stderr) = (stdout, stderr);
        (run.outputs, run.outputs_missing) = (Arc::new(outputs), outputs_missing);
        (run.usage, run.limit_hits) = (usage, limit_hits);
        run.timings = Timings { queue_ms: run.timings.queue_ms, ..timings };
        run.started_at = started_at;
        run.finished_at = Some(Timestamp::now());
    });
    let run = live.run();
    inner.observer.finished(&run, overshoot);
    {
        let mut runs = inner.runs();
        runs.live.remove(&live.id);
        runs.finished.insert(run, Instant::now());
    }
}

/// The answer is out; the slot is free only when nothing of the run is left.
async fn tear_down(inner: &Inner, live: &Live, control: Option<Box<dyn Control>>, slot: Slot) {
    let Some(mut control) = control else { return drop(slot) };
    inner.runs().ending += 1;
    let began = Instant::now();
    let gone = tokio::time::timeout(TEARDOWN_PATIENCE, async {
        loop {
            match control.next().await {
                Ok(Some(Event::TornDown { clean, .. })) => return clean,
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return false,
            }
        }
    });
    let clean = gone.await.unwrap_or(false);
    let took = began.elapsed();
    inner.runs().ending -= 1;
    inner.launcher.refill();
    inner.observer.torn_down(took, clean);
    remember_teardown(inner, live.id, took);
    drop(slot);
}

fn remember_teardown(inner: &Inner, id: RunId, took: Duration) {
    let mut runs = inner.runs();
    if let Some(mut run) = runs.finished.get(id) {
        // The outputs are shared, not copied, when somebody is reading the run just now.
        Arc::make_mut(&mut run).timings.teardown_ms = Some(ms(took));
        runs.finished.replace(run);
    }
}

#[cfg(test)]
pub(crate) mod tests_support {
    use super::*;

    /// A finished run that wrote this many bytes.
    pub(crate) fn finished_run(bytes: usize) -> Arc<Run> {
        Arc::new(Run {
            id: RunId(Uuid::now_v7()),
            principal: Default::default(),
            state: RunState::Finished,
            queue_position: None,
            outcome: Some(Outcome::Exited { code: 0 }),
            problem: None,
            stdout: Output { bytes: vec![0; bytes].into(), total: bytes as u64 },
            stderr: Output::default(),
            outputs: Arc::default(),
            outputs_missing: Vec::new(),
            usage: None,
            limits: run::Limits::default(),
            limit_hits: Vec::new(),
            not_enforced: Vec::new(),
            image: ImageRef { reference: "x".into(), digest: None },
            timings: Timings::default(),
            created_at: Timestamp::now(),
            started_at: None,
            finished_at: None,
            output_encoding: run::OutputEncoding::Auto,
            labels: Default::default(),
        })
    }
}
