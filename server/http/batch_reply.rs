//! A batch as clients see it.

use std::collections::BTreeMap;

use engine::batch::{Batch, BatchState, Listed, PreparedInfo, Test};
use jiff::Timestamp;
use run::Verdict;
use serde::Serialize;
use utoipa::ToSchema;

use super::reply::{self, RunReply};

/// One batch, in whatever state. Fields that are not known yet are `null`.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Batch)]
pub struct BatchReply<'a> {
    #[schema(value_type = String, format = Uuid)]
    id: String,
    state: BatchStateName,
    /// As it was asked for.
    image: &'a str,
    /// Of the whole batch: the first of its tests that is not `accepted`. `null` where nothing was expected.
    verdict: Option<Verdict>,
    /// Why tests have no result of their own, where that is the server's fault.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<&'a run::Problem>,
    /// The prepare command's run.
    prepare: Option<RunReply<'a>>,
    /// In the order of the request.
    tests: Vec<TestReply<'a>>,
    /// What later batches can name in place of `prepare`.
    prepared: Option<PreparedReply>,
    /// Why nothing is prepared although the command ended well.
    #[serde(skip_serializing_if = "Option::is_none")]
    not_prepared: Option<&'a str>,
    #[schema(value_type = String, format = DateTime)]
    #[serde(serialize_with = "reply::time")]
    created_at: Timestamp,
    #[schema(value_type = Option<String>, format = DateTime)]
    #[serde(serialize_with = "reply::maybe_time")]
    finished_at: Option<Timestamp>,
    labels: &'a BTreeMap<String, String>,
}

/// One batch without its tests.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ListedBatch)]
pub struct ListedReply<'a> {
    #[schema(value_type = String, format = Uuid)]
    id: String,
    state: BatchStateName,
    image: &'a str,
    verdict: Option<Verdict>,
    /// How many it has.
    tests: usize,
    /// How many of them have ended, or will never be run.
    tested: usize,
    #[schema(value_type = String, format = DateTime)]
    #[serde(serialize_with = "reply::time")]
    created_at: Timestamp,
    #[schema(value_type = Option<String>, format = DateTime)]
    #[serde(serialize_with = "reply::maybe_time")]
    finished_at: Option<Timestamp>,
    labels: &'a BTreeMap<String, String>,
}

/// Some of the server's batches, the newest first.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = BatchList)]
pub struct BatchListReply<'a> {
    pub batches: Vec<ListedReply<'a>>,
    /// Where the next page begins: give it back as `cursor`. `null` where there is none.
    pub next_cursor: Option<String>,
}

#[derive(Clone, Copy, Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = BatchState)]
pub enum BatchStateName {
    Preparing,
    Running,
    Finished,
}

/// One test of a batch.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Test)]
pub struct TestReply<'a> {
    name: Option<&'a str>,
    /// Where something was expected, and where the test has no result of its own.
    verdict: Option<Verdict>,
    /// The outputs of all runs together are kept up to 32 MiB; what is beyond that is compared, and then
    /// `stdout_truncated`. It has `error` where files were handed out; those are with the run itself.
    run: Option<RunReply<'a>>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Prepared)]
pub struct PreparedReply {
    #[schema(value_type = String, format = Uuid)]
    id: String,
    /// Where room is short, what was not used lately goes earlier; and all of it when the server stops.
    #[schema(value_type = String, format = DateTime)]
    #[serde(serialize_with = "reply::time")]
    expires_at: Timestamp,
}

impl From<BatchState> for BatchStateName {
    fn from(state: BatchState) -> Self {
        match state {
            BatchState::Preparing => Self::Preparing,
            BatchState::Running => Self::Running,
            BatchState::Finished => Self::Finished,
        }
    }
}

impl From<PreparedInfo> for PreparedReply {
    fn from(info: PreparedInfo) -> Self {
        Self { id: info.id.to_string(), expires_at: info.expires_at }
    }
}

impl<'a> From<&'a Test> for TestReply<'a> {
    fn from(test: &'a Test) -> Self {
        let run = test.run.as_deref().map(RunReply::from);
        Self { name: test.name.as_deref(), verdict: test.verdict, run }
    }
}

impl<'a> From<&'a Batch> for BatchReply<'a> {
    fn from(batch: &'a Batch) -> Self {
        Self {
            id: batch.id.to_string(),
            state: batch.state.into(),
            image: &batch.image,
            verdict: batch.verdict,
            problem: batch.problem.as_ref(),
            prepare: batch.prepare.as_deref().map(RunReply::from),
            tests: batch.tests.iter().map(TestReply::from).collect(),
            prepared: batch.prepared.map(PreparedReply::from),
            not_prepared: batch.not_prepared.as_deref(),
            created_at: batch.created_at,
            finished_at: batch.finished_at,
            labels: &batch.labels,
        }
    }
}

impl<'a> From<&'a Listed> for ListedReply<'a> {
    fn from(listed: &'a Listed) -> Self {
        let Listed { batch, tests, tested } = listed;
        Self {
            id: batch.id.to_string(),
            state: batch.state.into(),
            image: &batch.image,
            verdict: batch.verdict,
            tests: *tests,
            tested: *tested,
            created_at: batch.created_at,
            finished_at: batch.finished_at,
            labels: &batch.labels,
        }
    }
}
