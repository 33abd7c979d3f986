//! A batch as it is kept and shown: its state, its verdict, and what became of each test.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use jiff::Timestamp;
use run::{Outcome, PrincipalName, Problem, Run, RunId, Verdict};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::PreparedId;
use crate::store::BatchResult;

/// A batch's name. Time-ordered, like those of runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BatchId(pub Uuid);

impl fmt::Display for BatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for BatchId {
    type Err = uuid::Error;

    fn from_str(text: &str) -> Result<Self, uuid::Error> {
        text.parse().map(Self)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BatchState {
    /// It waits for its first slot, or the prepare command runs.
    Preparing,
    Running,
    Finished,
}

/// One batch, in whatever state. Written down it has no runs: they are kept beside it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Batch {
    pub id: BatchId,
    pub principal: PrincipalName,
    /// As it was asked for.
    pub image: String,
    pub labels: BTreeMap<String, String>,
    pub state: BatchState,
    /// Of the whole batch, when it has finished: the first of its tests that is not `accepted`.
    pub verdict: Option<Verdict>,
    /// Why some of its tests have no result, where that is nobody's wish.
    pub problem: Option<Problem>,
    #[serde(skip)]
    pub prepare: Option<Arc<Run>>,
    #[serde(skip)]
    pub tests: Vec<Test>,
    pub prepared: Option<PreparedInfo>,
    /// Why there is nothing prepared although the command ended well.
    pub not_prepared: Option<String>,
    pub created_at: Timestamp,
    pub finished_at: Option<Timestamp>,
}

#[derive(Clone, Debug, Default)]
pub struct Test {
    pub name: Option<String>,
    /// Where something was expected, and where the test was not run to its end.
    pub verdict: Option<Verdict>,
    pub run: Option<Arc<Run>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PreparedInfo {
    pub id: PreparedId,
    pub expires_at: Timestamp,
}

/// A batch as lists show it: without its tests, but with their number.
#[derive(Clone, Debug)]
pub struct Listed {
    pub batch: Batch,
    pub tests: usize,
    /// How many of them have their result.
    pub tested: usize,
}

/// What happens to a batch, in its order. An event's number is its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BatchEvent {
    State(BatchState),
    /// The prepare command has ended.
    Prepared,
    /// The test of that number has ended, or will never be run.
    Tested(usize),
    /// There is nothing more.
    Result,
}

impl Test {
    pub(crate) fn named(name: Option<String>) -> Self {
        Self { name, ..Self::default() }
    }

    pub fn is_over(&self) -> bool {
        self.verdict.is_some() || self.run.is_some()
    }
}

impl Batch {
    /// The problem because of which there is no verdict about any program, if there is one.
    pub fn no_verdict(&self) -> Option<(&Problem, Option<RunId>)> {
        let failed = |test: &Test| test.run.as_ref().is_some_and(|run| run.problem.is_some());
        let run = match &self.prepare {
            Some(prepare) => Some(prepare),
            None if self.tests.iter().all(failed) => self.tests.first().and_then(|test| test.run.as_ref()),
            None => None,
        };
        let of_run = run.and_then(|run| run.problem.as_ref().map(|problem| (problem, Some(run.id))));
        let nothing_ran = || self.tests.iter().all(|test| test.run.is_none());
        of_run.or_else(|| self.problem.as_ref().filter(|_| nothing_ran()).map(|problem| (problem, None)))
    }

    /// Its runs, the one that prepared first.
    pub fn runs(&self) -> impl Iterator<Item = &Arc<Run>> {
        self.prepare.iter().chain(self.tests.iter().filter_map(|test| test.run.as_ref()))
    }

    /// Puts a result in its place: of a test, or of the prepare command.
    pub(crate) fn put(&mut self, test: Option<usize>, result: Test) {
        match test {
            None => self.prepare = result.run,
            Some(number) => {
                if let Some(place) = self.tests.get_mut(number) {
                    *place = result;
                }
            }
        }
    }

    /// A result as it is written down when the batch has ended: its events tell by themselves where it belongs.
    pub(crate) fn result(&self, test: Option<usize>) -> BatchResult {
        let result = match test {
            None => Test { run: self.prepare.clone(), ..Test::default() },
            Some(number) => self.tests.get(number).cloned().unwrap_or_default(),
        };
        BatchResult { test, event: 0, result }
    }

    pub(crate) fn listed(&self) -> Listed {
        let bare = Batch {
            principal: self.principal.clone(),
            image: self.image.clone(),
            labels: self.labels.clone(),
            problem: self.problem.clone(),
            not_prepared: self.not_prepared.clone(),
            prepare: None,
            tests: Vec::new(),
            ..*self
        };
        let tested = self.tests.iter().filter(|test| test.is_over()).count();
        Listed { batch: bare, tests: self.tests.len(), tested }
    }

    /// Ends it: the first verdict that is not `accepted`, in the order of the tests, is its own, unless one is
    /// given; nothing where nothing was expected.
    pub(crate) fn end(&mut self, verdict: Option<Verdict>) {
        let mut verdicts = self.tests.iter().filter_map(|test| test.verdict).peekable();
        let of_tests = verdicts
            .peek()
            .is_some()
            .then(|| verdicts.find(|verdict| *verdict != Verdict::Accepted).unwrap_or(Verdict::Accepted));
        self.verdict = verdict.or(of_tests);
        self.state = BatchState::Finished;
        self.finished_at = Some(Timestamp::now());
    }
}

/// What a prepare command's run means for the tests; `accepted` where they can go.
pub(crate) fn verdict_of_prepare(run: &Run) -> Verdict {
    match Verdict::of(run.outcome.as_ref().unwrap_or(&Outcome::Cancelled), false, || None) {
        verdict @ (Verdict::Accepted | Verdict::Cancelled | Verdict::InternalError) => verdict,
        _ => Verdict::CompileError,
    }
}
