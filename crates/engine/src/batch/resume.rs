//! What a server finds of batches that an earlier one has promised.

use std::sync::Arc;

use futures_util::future::join_all;
use run::{Outcome, Problem, Verdict};

use super::drive::Work;
use super::found_again::Finding;
use super::record::verdict_of_prepare;
use super::{Batch, BatchError, BatchEvent, BatchSpec, BatchState, Batches, Test, interrupted};
use crate::SubmitError;
use crate::execute::problem;
use crate::store::{BatchResult, FinishedBatch, StoreError, UnfinishedBatch};

const DIED: &str = "the server died before the batch had ended";

impl Batches {
    /// Goes on with what an earlier server has promised: what had not begun is queued again; of what had, the
    /// tests keep their results, and those without one are not run again.
    pub async fn resume(&self) -> Result<(), StoreError> {
        let mut ended = Vec::new();
        let all = self.inner.store.unfinished()?;
        let findings = self.find_again(&all).await;
        for unfinished in all {
            let finding = unfinished.ground.as_ref().and_then(|ground| findings.get(&ground.id).cloned());
            if unfinished.begun {
                ended.push(end(unfinished, &interrupted(DIED)));
            } else if let Err((unfinished, why)) = self.take_up(unfinished, finding) {
                ended.push(end(*unfinished, &why));
            }
        }
        let kept = ended.into_iter().map(async |(finished, unwritten): (FinishedBatch, Vec<usize>)| {
            self.inner.engine.inner.observer.batch_finished(finished.batch.verdict);
            let results = unwritten.into_iter().map(|number| finished.batch.result(Some(number))).collect();
            self.inner.store.kept(finished, results, true).await
        });
        join_all(kept).await.into_iter().collect()
    }

    /// A place for a batch that had one with an earlier server, which may have had other files and more room.
    fn take_up(
        &self,
        unfinished: UnfinishedBatch,
        finding: Option<Finding>,
    ) -> Result<(), (Box<UnfinishedBatch>, Problem)> {
        let seat = self.inner.engine.sit_again(&unfinished.spec.principal);
        let held = match self.hold(&unfinished.spec, seat) {
            Ok(held) => held,
            Err(error) => return Err((Box::new(unfinished), unable(&error))),
        };
        let UnfinishedBatch { batch, spec, .. } = unfinished;
        let live = self.enlist(batch, true);
        let work = Work { finding, ..self.work(&live, held) };
        self.inner.engine.inner.tasks.spawn(work.go(spec));
        Ok(())
    }
}

/// Why nothing of a batch was run that an earlier server could have run.
fn unable(error: &BatchError) -> Problem {
    match error {
        BatchError::Submit(SubmitError::NoSuchFile { .. }) => {
            let detail = format!("{error} any more since the server was restarted, and nothing was run");
            problem("file-not-found", format!("{detail}; upload it and send the batch again"))
        }
        BatchError::Submit(_) => interrupted(&error.to_string()),
        BatchError::Files(_) => problem("files-full", format!("{error}; since a restart there is less room")),
    }
}

/// The batch as it stands with the results that it has, and the tests that have none.
fn end(unfinished: UnfinishedBatch, why: &Problem) -> (FinishedBatch, Vec<usize>) {
    let UnfinishedBatch { mut batch, spec, results, .. } = unfinished;
    let mut events = vec![BatchEvent::State(batch.state)];
    for BatchResult { test, event, result } in results {
        batch.put(test, result);
        place(&mut events, event, test.map_or(BatchEvent::Prepared, BatchEvent::Tested));
    }
    let failed = batch.prepare.as_deref().map(verdict_of_prepare).filter(|v| *v != Verdict::Accepted);
    let stop_at = stops_at(&batch, &spec);
    let without: Vec<usize> =
        (0..batch.tests.len()).filter(|number| !batch.tests[*number].is_over()).collect();
    for number in &without {
        let verdict = match failed {
            Some(Verdict::CompileError) => Verdict::Skipped,
            Some(verdict) => verdict,
            None if *number > stop_at => Verdict::Skipped,
            None => {
                batch.problem = Some(why.clone());
                Verdict::InternalError
            }
        };
        batch.tests[*number].verdict = Some(verdict);
        events.push(BatchEvent::Tested(*number));
    }
    batch.end(failed);
    events.extend([BatchEvent::State(BatchState::Finished), BatchEvent::Result]);
    (FinishedBatch { batch: Arc::new(batch), events }, without)
}

/// Each event has the number under which it was told; what is between two that were written down was a change
/// of state.
fn place(events: &mut Vec<BatchEvent>, number: usize, event: BatchEvent) {
    let between = number.saturating_sub(events.len());
    events.extend(std::iter::repeat_n(BatchEvent::State(BatchState::Running), between));
    events.push(event);
}

/// The first test that has failed where that stops the batch.
fn stops_at(batch: &Batch, spec: &BatchSpec) -> usize {
    let well = Some(Outcome::Exited { code: 0 });
    let failed = |test: &Test| match (&test.verdict, &test.run) {
        (Some(verdict), _) => *verdict != Verdict::Accepted,
        (None, Some(run)) => run.outcome != well,
        (None, None) => false,
    };
    let first = batch.tests.iter().position(failed).filter(|_| spec.stop_on_failure);
    first.unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use run::{Command, RunSpec};

    use super::super::{Ground, TestSpec};
    use super::*;

    fn unfinished(tests: usize, stop_on_failure: bool) -> UnfinishedBatch {
        let run = RunSpec::new("x", Command::parse(Some("p".into()), Vec::new()).unwrap());
        let test = TestSpec {
            name: Some("n".into()),
            command: None,
            stdin: Default::default(),
            files: Vec::new(),
            limits: run.limits.clone(),
            outputs: None,
            expect: None,
        };
        let spec = BatchSpec {
            principal: Arc::clone(&run.principal),
            ground: Ground::Prepare(Box::new(run.clone())),
            run,
            tests: vec![test; tests],
            stop_on_failure,
            parallelism: None,
        };
        UnfinishedBatch { batch: spec.queued(), spec, ground: None, begun: true, results: Vec::new() }
    }

    fn result(test: usize, event: usize, verdict: Verdict) -> BatchResult {
        let result = Test { verdict: Some(verdict), ..Test::named(Some("n".into())) };
        BatchResult { test: Some(test), event, result }
    }

    fn verdicts(batch: &Batch) -> Vec<Verdict> {
        batch.tests.iter().map(|test| test.verdict.unwrap()).collect()
    }

    #[test]
    fn what_has_a_result_keeps_it_and_the_rest_is_interrupted() {
        use Verdict::{Accepted, InternalError, Skipped, WrongAnswer};
        for (stops, second, expected, whole) in [
            (false, Accepted, [InternalError, InternalError, Accepted, InternalError], InternalError),
            (false, WrongAnswer, [InternalError, InternalError, WrongAnswer, InternalError], InternalError),
            (true, WrongAnswer, [InternalError, InternalError, WrongAnswer, Skipped], InternalError),
        ] {
            let mut unfinished = unfinished(4, stops);
            unfinished.results = vec![result(2, 3, second)];
            let (finished, without) = end(unfinished, &interrupted("x"));
            assert_eq!(verdicts(&finished.batch), expected, "{stops} {second:?}");
            assert_eq!((finished.batch.verdict, without), (Some(whole), vec![0, 1, 3]));
            assert!(finished.batch.problem.is_some());
            // What was told under a number is told under it again.
            assert_eq!(finished.events[3], BatchEvent::Tested(2));
            assert_eq!(finished.events.last(), Some(&BatchEvent::Result));
        }
    }

    #[test]
    fn nothing_is_interrupted_where_every_test_had_ended() {
        let mut unfinished = unfinished(1, false);
        unfinished.results = vec![result(0, 1, Verdict::Accepted)];
        let (finished, without) = end(unfinished, &interrupted("x"));
        assert_eq!((finished.batch.verdict, without), (Some(Verdict::Accepted), Vec::new()));
        assert!(finished.batch.problem.is_none());
    }
}
