//! The tests of a batch: started in their order, ended in whatever order, judged and told.

use std::fs::File;
use std::future::Future;
use std::io::{BufReader, Read};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::{FuturesOrdered, FuturesUnordered};
use run::{Compare, Outcome, Output, OutputContent, Run, RunOutput, RunSpec, Stdin, Verdict};

use super::drive::{Ending, Left, Offer, Work, end_of};
use super::{BatchEvent, BatchSpec, Expect, Test, TestSpec};
use crate::Leases;
use crate::admission::Seat;
use crate::live::RunHandle;
use crate::over::{Base, Standing};
use crate::store::BatchResult;

/// The outputs of all runs of a batch that are kept with it. Beyond that they are compared and forgotten.
const OUTPUT_BYTES_KEPT: u64 = 32 * 1024 * 1024;

/// An expected output that is longer is read as it is compared.
const HELD_BYTES_MAX: u64 = 1024 * 1024;
const PIECE_BYTES: usize = 64 * 1024;

/// What is said in place of a file that would be beyond it.
const WITH_THE_RUN: &str = "the batch has more outputs than are kept with it; this one is with its run";

/// One test on its way.
type Running = Pin<Box<dyn Future<Output = (usize, Arc<Run>)> + Send>>;

/// A result that is told as soon as it is written; and whether it was.
type Telling = Pin<Box<dyn Future<Output = (usize, Test, bool)> + Send>>;

pub(super) struct Tests<'a> {
    work: &'a Work,
    spec: &'a BatchSpec,
    /// The first test that failed where that stops the batch: none behind it counts.
    stop_at: usize,
    /// While none of its runs has a place or a slot.
    seat: Option<Seat>,
    /// The next test, which has to wait.
    refused: Option<Box<(RunSpec, Standing)>>,
    handles: Vec<Option<RunHandle>>,
    judged: Vec<bool>,
    running: FuturesUnordered<Running>,
    telling: FuturesOrdered<Telling>,
    /// The number of the next event.
    event: usize,
    ending: Ending,
}

impl<'a> Tests<'a> {
    pub(super) fn new(work: &'a Work, spec: &'a BatchSpec, seat: Option<Seat>) -> Self {
        let tests = spec.tests.len();
        Self {
            work,
            spec,
            stop_at: usize::MAX,
            seat,
            refused: None,
            handles: vec![None; tests],
            judged: vec![false; tests],
            running: FuturesUnordered::new(),
            telling: FuturesOrdered::new(),
            event: work.live.events().len(),
            ending: Ending::default(),
        }
    }

    pub(super) async fn run(&mut self, base: Option<Arc<Base>>) -> Result<(), Left> {
        let slots = self.work.batches.inner.engine.inner.config.slots;
        let at_once = self.spec.parallelism.unwrap_or(slots).clamp(1, slots);
        let mut next = 0;
        loop {
            // Until then nothing more is taken, as with a rate that is used up.
            let mut pause = None;
            while pause.is_none()
                && self.running.len() < at_once
                && next < self.spec.tests.len()
                && next <= self.stop_at
            {
                match self.begin(next, base.as_ref()) {
                    Ok(later) => pause = later,
                    Err(Left) => return self.leave().await,
                }
                next += usize::from(pause.is_none());
            }
            if self.running.is_empty() && pause.is_none() {
                break;
            }
            let work = self.work;
            tokio::select! {
                Some((number, run)) = self.running.next() => {
                    self.handles[number] = None;
                    self.judge(number, run).await;
                }
                Some((number, result, written)) = self.telling.next() => self.told(number, result, written),
                () = after(pause) => {}
                () = work.live.cancel.cancelled(), if pause.is_some() => {}
                () = work.leaving(), if work.may_leave() => return self.leave().await,
            }
        }
        for number in next..self.spec.tests.len() {
            self.settle(number, Verdict::Skipped);
        }
        Ok(())
    }

    /// Waits until everything is told.
    pub(super) async fn end(mut self) -> Ending {
        while let Some((number, result, written)) = self.telling.next().await {
            self.told(number, result, written);
        }
        self.ending
    }

    /// None of its programs has started, and none will.
    async fn leave(&mut self) -> Result<(), Left> {
        self.handles.iter().flatten().for_each(RunHandle::cancel);
        while self.running.next().await.is_some() {}
        Err(Left)
    }

    /// Starts a test, or says how long that has to wait.
    fn begin(&mut self, number: usize, base: Option<&Arc<Base>>) -> Result<Option<Duration>, Left> {
        if self.running.is_empty() && self.seat.is_none() {
            // It waits its turn like any other, and is not crowded out by those that came later.
            self.seat = Some(self.work.batches.inner.engine.sit_again(&self.spec.principal));
        }
        let (run, standing) = self.refused.take().map_or_else(
            || {
                let standing = Standing { base: base.cloned(), ..Standing::default() };
                (self.spec.tests[number].run(&self.spec.run), standing)
            },
            |refused| *refused,
        );
        match self.work.offer(run, standing, &mut self.seat)? {
            Offer::Taken(handle) => {
                self.handles[number] = Some(handle.clone());
                let cancel = self.work.live.cancel.clone();
                self.running.push(Box::pin(async move { (number, end_of(handle, cancel).await) }));
            }
            Offer::Later(pause, refused) => {
                self.refused = Some(refused);
                return Ok(Some(pause));
            }
            Offer::Never(verdict) => self.settle(number, verdict),
        }
        Ok(None)
    }

    /// Compares what the test has written, and stops those behind it if it was the first to fail.
    async fn judge(&mut self, number: usize, run: Arc<Run>) {
        if number > self.stop_at {
            return self.settle(number, Verdict::Skipped);
        }
        let test = &self.spec.tests[number];
        let verdict = verdict(&run, test, &self.work.leases).await;
        let stops = self.spec.stop_on_failure && verdict != Verdict::Accepted;
        // What stops the others says why.
        let is_shown = test.expect.is_some() || stops || verdict == Verdict::Cancelled;
        let shown = is_shown.then_some(verdict);
        let run = self.keep(run);
        self.judged[number] = true;
        self.tell(number, shown, Some(run));
        if stops {
            self.stop_at = number;
            for handle in self.handles[number + 1..].iter().flatten() {
                handle.cancel();
            }
            let ended = (number + 1..self.judged.len()).filter(|number| self.judged[*number]);
            ended.collect::<Vec<_>>().into_iter().for_each(|number| self.settle(number, Verdict::Skipped));
        }
    }

    /// The run as the batch remembers it: without its outputs once there are too many of them.
    fn keep(&mut self, run: Arc<Run>) -> Arc<Run> {
        let handed_out: usize = run.outputs.iter().map(RunOutput::inline_bytes).sum();
        let bytes = (run.stdout.bytes.len() + run.stderr.bytes.len() + handed_out) as u64;
        if self.ending.kept_bytes + bytes <= OUTPUT_BYTES_KEPT {
            self.ending.kept_bytes += bytes;
            return run;
        }
        let cut = |output: &Output| Output { bytes: Arc::default(), total: output.total };
        let (stdout, stderr) = (cut(&run.stdout), cut(&run.stderr));
        let outputs = run.outputs.iter().map(|output| match output.content {
            OutputContent::Bytes(_) => {
                let content = OutputContent::Refused(WITH_THE_RUN.into());
                RunOutput { path: output.path.clone(), content }
            }
            OutputContent::Stored { .. } | OutputContent::Refused(_) => output.clone(),
        });
        let outputs = Arc::new(outputs.collect());
        Arc::new(Run { stdout, stderr, outputs, ..(*run).clone() })
    }

    /// A test without a result.
    fn settle(&mut self, number: usize, verdict: Verdict) {
        self.tell(number, Some(verdict), None);
    }

    pub(super) fn settle_all(&mut self, verdict: Verdict) {
        (0..self.spec.tests.len()).for_each(|number| self.settle(number, verdict));
    }

    /// Tells a result; that of a promised batch once it is written, and in the order in which it was.
    fn tell(&mut self, number: usize, verdict: Option<Verdict>, run: Option<Arc<Run>>) {
        let result = Test { name: self.spec.tests[number].name.clone(), verdict, run };
        if !self.work.live.promised {
            return self.told(number, result, false);
        }
        let event = self.event;
        self.event += 1;
        let written = BatchResult { test: Some(number), event, result: result.clone() };
        let written = self.work.batches.inner.store.result(self.work.live.id(), written);
        self.telling.push_back(Box::pin(async move { (number, result, written.await.is_ok()) }));
    }

    fn told(&mut self, number: usize, result: Test, written: bool) {
        self.work.live.happen(BatchEvent::Tested(number), |batch| batch.put(Some(number), result));
        if !written {
            self.ending.unwritten.push(number);
        }
    }
}

/// Never, where there is no time.
async fn after(time: Option<Duration>) {
    match time {
        Some(time) => tokio::time::sleep(time).await,
        None => std::future::pending().await,
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
    let lease = match &expect.stdout {
        Stdin::Empty => return Ok(Some(compare.is_same(&written, b""))),
        Stdin::Bytes(bytes) => return Ok(Some(compare.is_same(&written, bytes))),
        Stdin::Stored(stored) => leases.get(stored)?,
    };
    let (file, held) = (lease.open()?, lease.len() <= HELD_BYTES_MAX);
    let comparing = tokio::task::spawn_blocking(move || is_same(compare, &written, file, held).map(Some));
    comparing.await.map_err(std::io::Error::other)?
}

/// A file can be longer than the memory; what was written never is.
fn is_same(compare: Compare, written: &[u8], mut expected: File, held: bool) -> std::io::Result<bool> {
    if held {
        let mut bytes = Vec::new();
        expected.read_to_end(&mut bytes)?;
        return Ok(compare.is_same(written, &bytes));
    }
    let mut failed = None;
    let bytes = BufReader::with_capacity(PIECE_BYTES, expected).bytes();
    let bytes = bytes.map_while(|byte| byte.map_err(|error| failed = Some(error)).ok());
    let same = compare.is_same_as(written, bytes);
    failed.map_or(Ok(same), Err)
}
