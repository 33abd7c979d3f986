//! The engine: takes runs, gives each a task of its own in which it lives, and answers questions about them.
//! No lock is held while anything is waited for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::future::join_all;
use jiff::Timestamp;
use run::{
    ImageRef, Limits, Output, Principal, PrincipalName, Run, RunId, RunSpec, RunState, StoredFile, Timings,
};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use crate::admission::{Admission, Budget, Refused, Seat, Ticket, TooLarge};
use crate::drive::{drive, interrupted, unable};
use crate::files::Files;
use crate::live::{Live, RunHandle};
use crate::observer::{Observer, Rejection};
use crate::over::Standing;
use crate::store::{Key, Known, Promise, RunStore, StoreError, Unfinished};
use crate::{Images, Launcher, Leases, PoolCounts};

#[derive(Clone, Debug)]
pub struct Config {
    /// How many runs go at once.
    pub slots: usize,
    /// How many of one principal may wait for a slot.
    pub queue_capacity: usize,
    /// What all runs together may claim of the host.
    pub budget: Budget,
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
    #[error("the key stands for another request")]
    KeyReused,
    #[error("the run can't be written down")]
    Store,
}

/// What became of a run that was asked for under a key, or that is to outlive its client.
#[derive(Debug)]
pub enum Taken {
    New(RunHandle),
    /// The same was asked before.
    Known(RunId),
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

/// What a run holds from its submission on.
pub(crate) struct Admitted {
    pub(crate) ticket: Ticket,
    pub(crate) leases: Leases,
    pub(crate) standing: Standing,
}

/// Cheap to clone; all clones are the same engine.
#[derive(Clone, Debug)]
pub struct Engine {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) config: Config,
    pub(crate) images: Arc<dyn Images>,
    pub(crate) launcher: Arc<dyn Launcher>,
    pub(crate) observer: Arc<dyn Observer>,
    pub(crate) store: Arc<dyn RunStore>,
    admission: Arc<Admission>,
    runs: Mutex<Runs>,
    pub(crate) tasks: TaskTracker,
    pub(crate) draining: CancellationToken,
    /// What runs had its time, and is cancelled.
    pub(crate) out_of_time: CancellationToken,
    pub(crate) lost: CancellationToken,
}

#[derive(Default)]
pub(crate) struct Runs {
    pub(crate) live: HashMap<RunId, Arc<Live>>,
    pub(crate) running: usize,
    pub(crate) ending: usize,
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
        store: Arc<dyn RunStore>,
    ) -> Self {
        let inner = Arc::new(Inner {
            admission: Admission::new(config.slots, config.queue_capacity, config.budget.clone()),
            config,
            images,
            launcher,
            observer,
            store,
            runs: Mutex::default(),
            tasks: TaskTracker::new(),
            draining: CancellationToken::new(),
            out_of_time: CancellationToken::new(),
            lost: CancellationToken::new(),
        });
        tokio::spawn(watch_launcher(Arc::downgrade(&inner), Arc::clone(&inner.launcher), inner.lost.clone()));
        Self { inner }
    }

    /// Takes a run, or says why not. It goes on whatever becomes of the caller, but not beyond the server.
    pub fn submit(&self, spec: RunSpec) -> Result<RunHandle, SubmitError> {
        let admitted = self.admit(&spec, &self.inner.draining)?;
        Ok(self.begin(spec, admitted))
    }

    /// The same for a run of a batch, which goes on until the server's time is over, and gets back what was not
    /// taken. Nobody is told of that: the batch waits, and was turned away by nobody.
    pub(crate) fn submit_over(
        &self,
        spec: RunSpec,
        standing: Standing,
        seat: &mut Option<Seat>,
    ) -> Result<RunHandle, (SubmitError, Box<(RunSpec, Standing)>)> {
        let enter = || Ok(self.inner.admission.enter_from(&spec, seat)?);
        let admitted = match self.admit_by(&spec, &self.inner.out_of_time, enter) {
            Ok(admitted) => Admitted { standing, ..admitted },
            Err(error) => return Err((error, Box::new((spec, standing)))),
        };
        Ok(self.begin(spec, admitted))
    }

    fn begin(&self, spec: RunSpec, admitted: Admitted) -> RunHandle {
        let live = self.enlist(self.queued(&spec), &admitted.ticket, false);
        self.inner.tasks.spawn(drive(Arc::clone(&self.inner), Arc::clone(&live), spec, admitted));
        RunHandle { live }
    }

    /// A seat for a batch that has just come, or for one that was taken.
    pub(crate) fn sit(&self, who: &Principal, limits: &Limits) -> Result<Seat, SubmitError> {
        self.inner.admission.sit(who, limits).map_err(|refused| self.inner.turned_away(refused))
    }

    pub(crate) fn sit_again(&self, who: &Principal) -> Seat {
        self.inner.admission.sit_again(who)
    }

    /// Whether a run with these limits can ever start here.
    pub(crate) fn check(&self, limits: &Limits) -> Result<(), SubmitError> {
        self.inner.admission.check(limits).map_err(|refused| self.inner.turned_away(refused))
    }

    /// Takes a run that will come to its end even if the server does first: once this has answered, it is
    /// written down. Under a key that stands for the same request already, it is that run; ask [`Engine::known`]
    /// first, which needs no place for it.
    pub async fn promise(&self, spec: RunSpec, key: Option<Key>) -> Result<Taken, SubmitError> {
        let admitted = self.admit(&spec, &self.inner.draining)?;
        let live = self.enlist(self.queued(&spec), &admitted.ticket, true);
        let (answer, taken) = oneshot::channel();
        // A task of its own from here on: a client that goes away must not leave it half promised.
        self.inner.tasks.spawn(self.clone().write_and_drive(live, spec, key, admitted, answer));
        taken.await.unwrap_or(Err(SubmitError::Stopping))
    }

    /// The run that a key stands for already, if it is that of the same request.
    pub fn known(&self, key: Option<&Key>) -> Result<Option<RunId>, SubmitError> {
        let Some(key) = key else { return Ok(None) };
        match self.inner.store.known(key).map_err(not_written)? {
            None => Ok(None),
            Some(known) if known.same => Ok(Some(known.id)),
            Some(_) => Err(SubmitError::KeyReused),
        }
    }

    async fn write_and_drive(
        self,
        live: Arc<Live>,
        spec: RunSpec,
        key: Option<Key>,
        admitted: Admitted,
        answer: oneshot::Sender<Result<Taken, SubmitError>>,
    ) {
        let spec = Arc::new(spec);
        let promise = Promise { run: live.run(), spec: Arc::clone(&spec), key };
        let refused = match self.inner.store.promise(promise).await {
            Ok(None) => {
                let _ = answer.send(Ok(Taken::New(RunHandle { live: Arc::clone(&live) })));
                return drive(self.inner, live, Arc::unwrap_or_clone(spec), admitted).await;
            }
            // Somebody else was quicker with the same key.
            Ok(Some(known)) => taken(known),
            Err(error) => Err(not_written(error)),
        };
        self.inner.runs().live.remove(&live.id);
        let _ = answer.send(refused);
    }

    /// Goes on with what an earlier server has promised: what had not started waits for its slot again, what
    /// had started ends here.
    pub async fn resume(&self) -> Result<(), StoreError> {
        let mut ended = Vec::new();
        for Unfinished { run, spec, started_at } in self.inner.store.unfinished()? {
            if started_at.is_some() {
                ended.push(interrupted(Run { started_at, ..run }));
                continue;
            }
            match self.readmit(&spec) {
                Ok(admitted) => {
                    let live = self.enlist(run, &admitted.ticket, true);
                    self.inner.tasks.spawn(drive(Arc::clone(&self.inner), live, spec, admitted));
                }
                Err(reason) => ended.push(unable(run, reason)),
            }
        }
        let kept = ended.into_iter().map(async |run| {
            self.inner.observer.finished(&run, None);
            self.inner.store.kept(run).await
        });
        join_all(kept).await.into_iter().collect()
    }

    /// A place for a run that had one with an earlier server, which may have had other files and been larger.
    fn readmit(&self, spec: &RunSpec) -> Result<Admitted, String> {
        let leases = Leases::take(self.inner.config.files.as_ref(), spec);
        let leases = leases.map_err(|file| format!("there is no file {} any more", file.id))?;
        let ticket = self.inner.admission.enter_again(spec).map_err(|TooLarge { limit, asked, most }| {
            format!("{limit} is {asked}; since a restart the server has no more than {most}")
        })?;
        Ok(Admitted { ticket, leases, standing: Standing::default() })
    }

    /// Nothing comes in any more once `closed`.
    fn admit(&self, spec: &RunSpec, closed: &CancellationToken) -> Result<Admitted, SubmitError> {
        let inner = &self.inner;
        let enter = || inner.admission.enter(spec).map_err(|refused| inner.turned_away(refused));
        self.admit_by(spec, closed, enter)
    }

    fn admit_by(
        &self,
        spec: &RunSpec,
        closed: &CancellationToken,
        enter: impl FnOnce() -> Result<Ticket, SubmitError>,
    ) -> Result<Admitted, SubmitError> {
        let inner = &self.inner;
        if inner.lost.is_cancelled() {
            return Err(SubmitError::LauncherLost);
        }
        if closed.is_cancelled() {
            return Err(SubmitError::Stopping);
        }
        let leases = Leases::take(inner.config.files.as_ref(), spec)
            .map_err(|file| SubmitError::NoSuchFile { file })?;
        Ok(Admitted { ticket: enter()?, leases, standing: Standing::default() })
    }

    fn enlist(&self, run: Run, ticket: &Ticket, promised: bool) -> Arc<Live> {
        let place = ticket.place().clone();
        let queue_position = self.inner.admission.position(&place).map(|position| position as u64);
        let live = Live::new(Run { queue_position, ..run }, place, promised);
        self.inner.runs().live.insert(live.id, Arc::clone(&live));
        live
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

    /// Whether a run with these limits would start within that time, as far as anybody can tell.
    pub fn check_wait(&self, who: &Principal, limits: &Limits, within: Duration) -> Result<(), SubmitError> {
        match self.inner.admission.expected_wait(who, limits) {
            Some(expected) if expected > within => {
                self.inner.observer.rejected(Rejection::Deadline);
                Err(SubmitError::TooLate { expected })
            }
            _ => Ok(()),
        }
    }

    /// Everybody who has runs waiting for a slot, or batches none of whose runs has one, and how many.
    pub fn queued_by_principal(&self) -> Vec<(PrincipalName, usize)> {
        self.inner.admission.waiting_by()
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
            self.inner.out_of_time.cancel();
            for live in self.inner.runs().live.values() {
                live.cancel.cancel();
            }
            self.inner.tasks.wait().await;
        }
    }
}

fn taken(known: Known) -> Result<Taken, SubmitError> {
    if known.same { Ok(Taken::Known(known.id)) } else { Err(SubmitError::KeyReused) }
}

/// Said once, by the store itself, when it broke.
#[allow(clippy::needless_pass_by_value)] // for `map_err`
pub(crate) fn not_written(error: StoreError) -> SubmitError {
    tracing::debug!(cause = %error.source, "{error}");
    SubmitError::Store
}

impl From<Refused> for SubmitError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Full { retry_after, own: false } => Self::Busy { retry_after },
            Refused::Full { retry_after, own: true } => Self::OverQuota { retry_after },
            Refused::Rate { retry_after } => Self::RateLimited { retry_after },
            Refused::TooLarge(TooLarge { limit, asked, most }) => Self::TooLarge { limit, asked, most },
        }
    }
}

impl Inner {
    fn turned_away(&self, refused: Refused) -> SubmitError {
        self.observer.rejected(match &refused {
            Refused::Full { own: false, .. } => Rejection::QueueFull,
            Refused::Full { own: true, .. } => Rejection::Quota,
            Refused::Rate { .. } => Rejection::RateLimit,
            Refused::TooLarge(_) => Rejection::TooLarge,
        });
        refused.into()
    }

    /// The run as it stands, and where it stands now if it still waits.
    pub(crate) fn with_position(&self, live: &Live) -> Arc<Run> {
        let run = live.run();
        if run.state != RunState::Queued {
            return run;
        }
        let queue_position = self.admission.position(&live.place).map(|position| position as u64);
        Arc::new(Run { queue_position, ..Run::clone(&run) })
    }

    pub(crate) fn runs(&self) -> MutexGuard<'_, Runs> {
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
