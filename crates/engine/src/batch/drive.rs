//! The life of a batch: prepare, then the tests, as many at once as it may, and their results in whatever
//! order they come. All of it is one task; the work is done by the runs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use run::{Problem, Run, RunSpec, Verdict};
use sandbox::protocol::Freeze;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::begin::Begin;
use super::found_again::{self, Finding};
use super::judge::Tests;
use super::live::LiveBatch;
use super::record::verdict_of_prepare;
use super::room::PrepareRoom;
use super::{BatchEvent, BatchSpec, BatchState, Batches, Ground, Test};
use crate::admission::Seat;
use crate::execute::Gate;
use crate::files::Reservation;
use crate::live::RunHandle;
use crate::over::{Base, Freezing, FrozenLayer, Made, Standing};
use crate::store::{BatchResult, FinishedBatch};
use crate::{Leases, SubmitError};

/// How long a full queue is left alone by a batch that has other runs in it.
const PAUSE_MIN: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_secs(1);

pub(super) struct Work {
    pub(super) batches: Batches,
    pub(super) live: Arc<LiveBatch>,
    pub(super) seat: Option<Seat>,
    pub(super) leases: Leases,
    pub(super) room: Option<PrepareRoom>,
    /// Of a promised batch.
    pub(super) begin: Option<Arc<Begin>>,
    /// Where an earlier server has prepared what the tests stand on.
    pub(super) finding: Option<Finding>,
}

/// What the engine says to a run that is offered.
pub(super) enum Offer {
    Taken(RunHandle),
    /// Not yet; after so long it is worth offering it again.
    Later(Duration, Box<(RunSpec, Standing)>),
    Never(Verdict),
}

/// What became of the prepare command.
enum Ready {
    Over(Option<Arc<Base>>),
    /// No test can be run, and this is why.
    Not(Verdict),
}

/// Nothing of the batch has begun, and the next server will take it up.
#[derive(Debug)]
pub(super) struct Left;

/// What is known when the tests are over.
#[derive(Default)]
pub(super) struct Ending {
    /// Of the whole batch, where its tests don't say it.
    verdict: Option<Verdict>,
    problem: Option<Problem>,
    /// Tests whose results are not written yet.
    pub(super) unwritten: Vec<usize>,
    /// How much its runs have written, as far as it is kept.
    pub(super) kept_bytes: u64,
}

impl Work {
    pub(super) async fn go(mut self, spec: BatchSpec) {
        match self.carry_to_the_end(&spec).await {
            Err(Left) => self.live.park(),
            Ok(ending) => {
                // Who hears of the end may count on it: nothing is held any more.
                drop(spec);
                self.leases = Leases::default();
                self.finish(ending).await;
            }
        }
    }

    async fn carry_to_the_end(&mut self, spec: &BatchSpec) -> Result<Ending, Left> {
        let mut problem = None;
        let ready = match &spec.ground {
            Ground::Image => Ready::Over(None),
            Ground::Prepared(Some(prepared)) => Ready::Over(Some(Arc::clone(&prepared.base))),
            Ground::Prepared(None) => self.find_ground(&mut problem).await?,
            Ground::Prepare(run) => self.prepare(run).await?,
        };
        let seat = self.seat.take();
        let mut tests = Tests::new(self, spec, seat);
        let verdict = match ready {
            Ready::Over(base) => {
                tests.run(base).await?;
                None
            }
            Ready::Not(verdict) => {
                let compiled = verdict != Verdict::CompileError;
                tests.settle_all(if compiled { verdict } else { Verdict::Skipped });
                Some(verdict)
            }
        };
        let ending = tests.end().await;
        Ok(Ending { verdict, problem, ..ending })
    }

    /// Nobody is told how a promised batch ended who could be told otherwise after a restart.
    async fn finish(self, ending: Ending) {
        let Ending { verdict, problem, unwritten, kept_bytes } = ending;
        let mut batch = (*self.live.batch()).clone();
        batch.problem = problem;
        batch.end(verdict);
        let mut events = self.live.events();
        events.extend([BatchEvent::State(BatchState::Finished), BatchEvent::Result]);
        let finished = FinishedBatch { batch: Arc::new(batch), events };
        let verdict = finished.batch.verdict;
        let mut results: Vec<BatchResult> =
            unwritten.into_iter().map(|number| finished.batch.result(Some(number))).collect();
        if !self.live.promised {
            results.push(finished.batch.result(None));
        }
        let promised = self.live.promised;
        let mut kept = Some(self.batches.inner.store.kept(finished.clone(), results, promised));
        let mut written = true;
        if promised && let Some(kept) = kept.take() {
            // A store that is broken has said so itself.
            written = kept.await.is_ok();
        }
        self.live.end(finished);
        self.batches.inner.engine.inner.observer.batch_finished(verdict);
        if let Some(kept) = kept {
            written = kept.await.is_ok();
        }
        self.batches.shelf().finish(self.live.id(), kept_bytes, written, Instant::now());
    }

    /// Waits for what an earlier server has prepared.
    async fn find_ground(&mut self, problem: &mut Option<Problem>) -> Result<Ready, Left> {
        let finding = self.finding.take().unwrap_or_else(found_again::nothing_written);
        tokio::select! {
            found = finding => match found {
                Ok(prepared) => Ok(Ready::Over(Some(Arc::clone(&prepared.base)))),
                Err(why) => {
                    *problem = Some(found_again::lost(&why));
                    Ok(Ready::Not(Verdict::InternalError))
                }
            },
            () = self.live.cancel.cancelled() => Ok(Ready::Not(Verdict::Cancelled)),
            () = self.leaving() => Err(Left),
        }
    }

    /// Runs the command and keeps what it leaves behind.
    async fn prepare(&mut self, spec: &RunSpec) -> Result<Ready, Left> {
        let Some(room) = self.room.take().map(Arc::new) else {
            return Ok(Ready::Not(Verdict::InternalError));
        };
        let name = format!("frozen/{}", Uuid::now_v7().simple());
        let (says, hears) = oneshot::channel();
        let freeze = Freeze { layer: name.clone(), bytes_max: room.bytes() };
        let freezing = Freezing { freeze, room: Arc::clone(&room) as _, says };
        let standing = Standing { freeze: Some(freezing), ..Standing::default() };
        let seat = self.seat.take();
        let run = match self.start(spec.clone(), standing, seat).await? {
            Ok(handle) => self.end_of(handle).await?,
            Err(verdict) => return Ok(Ready::Not(verdict)),
        };
        let made = hears.await.ok();
        let verdict = verdict_of_prepare(&run);
        let why = match (&made, verdict) {
            (Some(made), Verdict::Accepted) => made.frozen.as_ref().err().cloned(),
            _ => None,
        };
        self.prepared(run, why).await;
        match (verdict, made.zip(room.hand_over())) {
            (Verdict::Accepted, Some((made, room))) => Ok(self.keep_prepared(spec, name, room, made)),
            (Verdict::Accepted, None) => Ok(Ready::Not(Verdict::InternalError)),
            (verdict, _) => Ok(Ready::Not(verdict)),
        }
    }

    /// Tells how the prepare command has ended.
    async fn prepared(&self, run: Arc<Run>, why_not: Option<String>) {
        if self.live.promised {
            let result = Test { run: Some(Arc::clone(&run)), ..Test::default() };
            let result = BatchResult { test: None, event: self.live.events().len(), result };
            let _ = self.batches.inner.store.result(self.live.id(), result).await;
        }
        self.live.happen(BatchEvent::Prepared, |batch| {
            batch.prepare = Some(run);
            batch.not_prepared = why_not;
            batch.state = BatchState::Running;
        });
    }

    fn keep_prepared(&self, spec: &RunSpec, name: String, mut room: Reservation, made: Made) -> Ready {
        let Ok(bytes) = made.frozen else { return Ready::Not(Verdict::CompileError) };
        room.shrink_to(bytes);
        let layer = FrozenLayer::new(name, room, &self.batches.inner.engine.inner);
        let base = Arc::new(Base { lease: made.lease, layer: Some(layer) });
        let shelf = &self.batches.inner.prepared;
        let prepared = shelf.keep(spec.principal.name.clone(), spec.image.clone(), Arc::clone(&base));
        let info = prepared.info();
        self.live.happen(BatchEvent::State(BatchState::Running), |batch| batch.prepared = Some(info));
        Ready::Over(Some(base))
    }

    /// Submits a run, which takes the batch's seat if it has one.
    pub(super) fn offer(
        &self,
        spec: RunSpec,
        standing: Standing,
        seat: &mut Option<Seat>,
    ) -> Result<Offer, Left> {
        if self.live.cancel.is_cancelled() {
            return Ok(Offer::Never(Verdict::Cancelled));
        }
        if self.leaves() {
            return Err(Left);
        }
        let gate = self.begin.as_ref().map(|begin| Arc::clone(begin) as Arc<dyn Gate>);
        let standing = Standing { gate, ..standing };
        let (error, refused) = match self.batches.inner.engine.submit_over(spec, standing, seat) {
            Ok(handle) => return Ok(Offer::Taken(handle)),
            Err(refused) => refused,
        };
        Ok(match error {
            SubmitError::RateLimited { retry_after } => Offer::Later(retry_after.max(PAUSE_MIN), refused),
            SubmitError::Busy { retry_after } | SubmitError::OverQuota { retry_after } => {
                Offer::Later(retry_after.clamp(PAUSE_MIN, PAUSE_MAX), refused)
            }
            SubmitError::Stopping => Offer::Never(Verdict::Cancelled),
            _ => Offer::Never(Verdict::InternalError),
        })
    }

    /// Submits until it is taken; the batch was, so it waits.
    async fn start(
        &self,
        spec: RunSpec,
        standing: Standing,
        mut seat: Option<Seat>,
    ) -> Result<Result<RunHandle, Verdict>, Left> {
        let mut offered = (spec, standing);
        loop {
            match self.offer(offered.0, offered.1, &mut seat)? {
                Offer::Taken(handle) => return Ok(Ok(handle)),
                Offer::Never(verdict) => return Ok(Err(verdict)),
                Offer::Later(pause, refused) => {
                    offered = *refused;
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = self.live.cancel.cancelled() => {}
                        () = self.leaving() => {}
                    }
                }
            }
        }
    }

    /// The run's end, unless the batch is left to the next server before it has begun.
    async fn end_of(&self, handle: RunHandle) -> Result<Arc<Run>, Left> {
        tokio::select! {
            run = end_of(handle.clone(), self.live.cancel.clone()) => Ok(run),
            () = self.leaving(), if self.may_leave() => {
                handle.cancel();
                handle.wait(None).await;
                Err(Left)
            }
        }
    }

    /// Ends when the batch is left to the next server.
    pub(super) async fn leaving(&self) {
        let inner = &self.batches.inner.engine.inner;
        tokio::select! {
            () = inner.draining.cancelled() => {}
            () = inner.lost.cancelled() => {}
        }
        if !self.leaves() {
            std::future::pending::<()>().await;
        }
    }

    /// Whether it is promised, and nothing of it has begun.
    pub(super) fn may_leave(&self) -> bool {
        self.begin.as_ref().is_some_and(|begin| !begin.has_begun())
    }

    fn leaves(&self) -> bool {
        let inner = &self.batches.inner.engine.inner;
        let ending = inner.draining.is_cancelled() || inner.lost.is_cancelled();
        let left = |begin: &Arc<Begin>| ending && !self.live.is_unwanted() && begin.close();
        self.begin.as_ref().is_some_and(left)
    }
}

/// The run's end; a cancelled batch cancels it.
pub(super) async fn end_of(handle: RunHandle, cancel: CancellationToken) -> Arc<Run> {
    tokio::select! {
        run = handle.wait(None) => run,
        () = cancel.cancelled() => {
            handle.cancel();
            handle.wait(None).await
        }
    }
}
