//! The life of a batch: prepare, then the tests, as many at once as it may, and their results in whatever
//! order they come. All of it is one task; the work is done by the runs.

use std::future::Future;
use std::io::Read;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use jiff::Timestamp;
use run::{Outcome, Output, Run, RunSpec, Stdin, Verdict};
use sandbox::protocol::Freeze;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::live::{BatchEvent, LiveBatch};
use super::{Batch, BatchSpec, BatchState, Batches, Expect, Ground, TestSpec};
use crate::files::Reservation;
use crate::live::RunHandle;
use crate::over::{Base, FrozenLayer, Standing};
use crate::{Leases, SubmitError};

/// The outputs of all runs of a batch that are kept with it. Beyond that they are compared and forgotten.
const OUTPUT_BYTES_KEPT: u64 = 32 * 1024 * 1024;

/// How long a full queue is left alone.
const PAUSE_MIN: Duration = Duration::from_millis(5);
const PAUSE_MAX: Duration = Duration::from_secs(1);

pub(super) struct Work {
    pub(super) batches: Batches,
    pub(super) live: Arc<LiveBatch>,
    pub(super) leases: Leases,
    pub(super) room: Option<Reservation>,
}

/// What became of the prepare command.
enum Ready {
    Over(Option<Arc<Base>>),
    /// No test can be run, and this is why.
    Not(Verdict),
}

/// One test on its way.
type Running = Pin<Box<dyn Future<Output = (usize, Arc<Run>)> + Send>>;

impl Work {
    pub(super) async fn go(mut self, spec: BatchSpec) {
        let ready = match &spec.ground {
            Ground::Image => Ready::Over(None),
            Ground::Prepared(prepared) => Ready::Over(Some(Arc::clone(&prepared.base))),
            Ground::Prepare(run) => self.prepare(run).await,
        };
        let mut tests = Tests::new(&self, &spec);
        let broken = match ready {
            Ready::Over(base) => {
                tests.run(base).await;
                None
            }
            Ready::Not(verdict) => {
                let compiled = verdict != Verdict::CompileError;
                tests.settle_all(if compiled { verdict } else { Verdict::Skipped });
                Some(verdict)
            }
        };
        let kept = tests.kept;
        // Who hears of the end may count on it: nothing is held any more.
        drop(spec);
        self.leases = Leases::default();
        self.live.happen(BatchEvent::State(BatchState::Finished), |batch| {
            batch.verdict = broken.or_else(|| verdict_of(batch));
            batch.finished_at = Some(Timestamp::now());
            batch.state = BatchState::Finished;
        });
        self.live.happen(BatchEvent::Result, |_| {});
        let batch = self.live.batch();
        self.batches.inner.engine.inner.observer.batch_finished(batch.verdict);
        self.batches.shelf().finish(self.live.id(), kept, Instant::now());
    }

    /// Runs the command and keeps what it leaves behind.
    async fn prepare(&mut self, spec: &RunSpec) -> Ready {
        let engine = &self.batches.inner.engine;
        let Some(mut room) = self.room.take() else { return Ready::Not(Verdict::InternalError) };
        let name = format!("frozen/{}", Uuid::now_v7().simple());
        let (says, hears) = oneshot::channel();
        let freeze = Freeze { layer: name.clone(), bytes_max: room.bytes() };
        let standing = Standing { base: None, freeze: Some((freeze, says)) };
        let run = match self.start(spec.clone(), standing).await {
            Ok(handle) => end_of(handle, self.live.cancel.clone()).await,
            Err(verdict) => return Ready::Not(verdict),
        };
        let made = hears.await.ok();
        let verdict = Verdict::of(run.outcome.as_ref().unwrap_or(&Outcome::Cancelled), false, || None);
        let why = match (&made, verdict) {
            (Some(made), Verdict::Accepted) => made.frozen.as_ref().err().cloned(),
            _ => None,
        };
        self.live.happen(BatchEvent::Prepared, |batch| {
            batch.prepare = Some(run);
            batch.not_prepared = why;
            batch.state = BatchState::Running;
        });
        match (verdict, made) {
            (Verdict::Accepted, Some(made)) => {
                let Ok(bytes) = made.frozen else { return Ready::Not(Verdict::CompileError) };
                room.shrink_to(bytes);
                let layer = FrozenLayer::new(name, room, Arc::clone(&engine.inner.launcher));
                let base = Arc::new(Base { lease: made.lease, layer: Some(layer) });
                let shelf = &self.batches.inner.prepared;
                let principal = spec.principal.name.clone();
                let prepared = shelf.keep(principal, spec.image.clone(), Arc::clone(&base));
                let info = prepared.info();
                self.live.happen(BatchEvent::State(BatchState::Running), |batch| batch.prepared = Some(info));
                Ready::Over(Some(base))
            }
            (Verdict::Cancelled | Verdict::InternalError, _) | (Verdict::Accepted, None) => {
                Ready::Not(if verdict == Verdict::Cancelled {
                    Verdict::Cancelled
                } else {
                    Verdict::InternalError
                })
            }
            _ => Ready::Not(Verdict::CompileError),
        }
    }

    /// Submits until there is room in the queue; the batch was taken, so it waits.
    async fn start(&self, spec: RunSpec, standing: Standing) -> Result<RunHandle, Verdict> {
        let engine = &self.batches.inner.engine;
        let Standing { base, mut freeze } = standing;
        loop {
            if self.live.cancel.is_cancelled() {
                return Err(Verdict::Cancelled);
            }
            let standing = Standing { base: base.clone(), freeze: freeze.take() };
            match engine.submit_over(spec.clone(), standing) {
                Ok(handle) => return Ok(handle),
                Err((
                    SubmitError::Busy { retry_after }
                    | SubmitError::OverQuota { retry_after }
                    | SubmitError::RateLimited { retry_after },
                    standing,
                )) => {
                    freeze = standing.freeze;
                    let pause = retry_after.clamp(PAUSE_MIN, PAUSE_MAX);
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = self.live.cancel.cancelled() => {}
                    }
                }
                Err((SubmitError::Stopping, _)) => return Err(Verdict::Cancelled),
                Err(_) => return Err(Verdict::InternalError),
            }
        }
    }
}

/// The run's end; a cancelled batch cancels it.
async fn end_of(handle: RunHandle, cancel: CancellationToken) -> Arc<Run> {
    tokio::select! {
        run = handle.wait(None) => run,
        () = cancel.cancelled() => {
            handle.cancel();
            handle.wait(None).await
        }
    }
}

/// The first verdict that is not `accepted`, in the order of the tests; nothing where nothing was expected.
fn verdict_of(batch: &Batch) -> Option<Verdict> {
    let mut verdicts = batch.tests.iter().filter_map(|test| test.verdict);
    let first = verdicts.next()?;
    if first != Verdict::Accepted {
        return Some(first);
    }
    Some(verdicts.find(|verdict| *verdict != Verdict::Accepted).unwrap_or(Verdict::Accepted))
}

struct Tests<'a> {
    work: &'a Work,
    spec: &'a BatchSpec,
    /// The first test that failed where that stops the batch: none behind it counts.
    stop_at: usize,
    handles: Vec<Option<RunHandle>>,
    kept: u64,
}

impl<'a> Tests<'a> {
    fn new(work: &'a Work, spec: &'a BatchSpec) -> Self {
        let handles = vec![None; spec.tests.len()];
        Self { work, spec, stop_at: usize::MAX, handles, kept: 0 }
    }

    async fn run(&mut self, base: Option<Arc<Base>>) {
        let slots = self.work.batches.inner.engine.inner.config.slots;
        let at_once = self.spec.parallelism.unwrap_or(slots).clamp(1, slots);
        let mut running: FuturesUnordered<Running> = FuturesUnordered::new();
        let mut next = 0;
        loop {
            while running.len() < at_once && next < self.spec.tests.len() && next <= self.stop_at {
                match self.begin(next, base.clone()).await {
                    Ok(test) => running.push(test),
                    Err(verdict) => self.settle(next, verdict),
                }
                next += 1;
            }
            let Some((number, run)) = running.next().await else { break };
            self.handles[number] = None;
            self.judge(number, run).await;
        }
        for number in next..self.spec.tests.len() {
            self.settle(number, Verdict::Skipped);
        }
    }

    async fn begin(&mut self, number: usize, base: Option<Arc<Base>>) -> Result<Running, Verdict> {
        let run = self.spec.tests[number].run(&self.spec.run);
        let handle = self.work.start(run, Standing { base, freeze: None }).await?;
        self.handles[number] = Some(handle.clone());
        let cancel = self.work.live.cancel.clone();
        Ok(Box::pin(async move { (number, end_of(handle, cancel).await) }))
    }

    /// Compares what the test has written, and stops those behind it if it was the first to fail.
    async fn judge(&mut self, number: usize, run: Arc<Run>) {
        if number > self.stop_at {
            return self.settle(number, Verdict::Skipped);
        }
        let test = &self.spec.tests[number];
        let verdict = verdict(&run, test, &self.work.leases).await;
        let shown = (test.expect.is_some() || verdict == Verdict::Cancelled).then_some(verdict);
        let run = self.keep(run);
        self.work.live.happen(BatchEvent::Tested(number), |batch| {
            let test = &mut batch.tests[number];
            (test.verdict, test.run) = (shown, Some(run));
        });
        if self.spec.stop_on_failure && verdict != Verdict::Accepted {
            self.stop_at = number;
            for handle in self.handles[number + 1..].iter().flatten() {
                handle.cancel();
            }
            let ended: Vec<usize> = {
                let batch = self.work.live.batch();
                (number + 1..batch.tests.len()).filter(|number| batch.tests[*number].run.is_some()).collect()
            };
            ended.into_iter().for_each(|number| self.settle(number, Verdict::Skipped));
        }
    }

    /// The run as the batch remembers it: without its outputs once there are too many of them.
    fn keep(&mut self, run: Arc<Run>) -> Arc<Run> {
        let bytes = (run.stdout.bytes.len() + run.stderr.bytes.len()) as u64;
        if self.kept + bytes <= OUTPUT_BYTES_KEPT {
            self.kept += bytes;
            return run;
        }
        let cut = |output: &Output| Output { bytes: Arc::default(), total: output.total };
        let (stdout, stderr) = (cut(&run.stdout), cut(&run.stderr));
        Arc::new(Run { stdout, stderr, ..(*run).clone() })
    }

    /// A test without a result.
    fn settle(&self, number: usize, verdict: Verdict) {
        self.work.live.happen(BatchEvent::Tested(number), |batch| {
            let test = &mut batch.tests[number];
            (test.verdict, test.run) = (Some(verdict), None);
        });
    }

    fn settle_all(&self, verdict: Verdict) {
        (0..self.spec.tests.len()).for_each(|number| self.settle(number, verdict));
    }
}

async fn verdict(run: &Arc<Run>, test: &TestSpec, leases: &Leases) -> Verdict {
    let outcome = run.outcome.clone().unwrap_or(Outcome::Cancelled);
    let right = match &test.expect {
        Some(expect) if outcome == (Outcome::Exited { code: 0 }) => is_right(run, expect, leases).await,
        Some(_) | None => Ok(None),
    };
    match right {
        Ok(right) => Verdict::of(&outcome, run.stdout.truncated(), || right),
        Err(error) => {
            tracing::error!(%error, "an expected output can't be read");
            Verdict::InternalError
        }
    }
}

async fn is_right(run: &Arc<Run>, expect: &Expect, leases: &Leases) -> std::io::Result<Option<bool>> {
    let (written, compare) = (Arc::clone(&run.stdout.bytes), expect.compare);
    let mut file = match &expect.stdout {
        Stdin::Empty => return Ok(Some(compare.is_same(&written, b""))),
        Stdin::Bytes(bytes) => return Ok(Some(compare.is_same(&written, bytes))),
        Stdin::Stored(stored) => leases.get(stored)?.open()?,
    };
    let comparing = tokio::task::spawn_blocking(move || {
        let mut expected = Vec::new();
        file.read_to_end(&mut expected)?;
        Ok(Some(compare.is_same(&written, &expected)))
    });
    comparing.await.map_err(std::io::Error::other)?
}
