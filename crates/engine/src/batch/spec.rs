//! One valid request for a batch: what its runs have in common, and where each differs.

use std::sync::Arc;

use jiff::Timestamp;
use run::{Command, Compare, FileSpec, Limits, OutputPattern, Principal, RunSpec, Stdin, StoredFile};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{Batch, BatchId, BatchState, Prepared, Test};

/// One valid request for a batch.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BatchSpec {
    pub principal: Arc<Principal>,
    pub ground: Ground,
    /// What all tests have in common.
    pub run: RunSpec,
    pub tests: Vec<TestSpec>,
    pub stop_on_failure: bool,
    /// How many tests go at once; as many as there are slots if absent.
    pub parallelism: Option<usize>,
}

/// What the tests stand on.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ground {
    /// The image alone.
    Image,
    /// What this command leaves behind.
    Prepare(Box<RunSpec>),
    /// What an earlier batch has prepared. The next server finds nothing here, and looks for it.
    Prepared(#[serde(skip)] Option<Arc<Prepared>>),
}

/// Where one test differs from the others.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TestSpec {
    pub name: Option<String>,
    /// Where it is not the one that all have.
    pub command: Option<Command>,
    pub stdin: Stdin,
    pub files: Vec<FileSpec>,
    pub limits: Limits,
    /// Where they are not those that all have.
    pub outputs: Option<Vec<OutputPattern>>,
    pub expect: Option<Expect>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Expect {
    pub stdout: Stdin,
    pub compare: Compare,
}

impl BatchSpec {
    /// The run that makes what the tests stand on.
    pub(super) fn prepare(&self) -> Option<&RunSpec> {
        match &self.ground {
            Ground::Prepare(run) => Some(run),
            Ground::Image | Ground::Prepared(_) => None,
        }
    }

    pub(super) fn stored_files(&self) -> impl Iterator<Item = &StoredFile> {
        let common = self.prepare().into_iter().chain([&self.run]).flat_map(RunSpec::stored_files);
        common.chain(self.tests.iter().flat_map(TestSpec::stored_files))
    }

    pub(super) fn limits(&self) -> impl Iterator<Item = &Limits> {
        let prepare = self.prepare().map(|run| &run.limits);
        prepare.into_iter().chain(self.tests.iter().map(|test| &test.limits))
    }

    /// Of the run that comes first.
    pub(super) fn first_limits(&self) -> &Limits {
        self.limits().next().unwrap_or(&self.run.limits)
    }

    pub(super) fn queued(&self) -> Batch {
        Batch {
            id: BatchId(Uuid::now_v7()),
            principal: self.principal.name.clone(),
            state: match self.ground {
                Ground::Prepare(_) => BatchState::Preparing,
                Ground::Image | Ground::Prepared(_) => BatchState::Running,
            },
            image: self.run.image.clone(),
            labels: self.run.labels.clone(),
            verdict: None,
            problem: None,
            prepare: None,
            tests: self.tests.iter().map(|test| Test::named(test.name.clone())).collect(),
            prepared: None,
            not_prepared: None,
            created_at: Timestamp::now(),
            finished_at: None,
        }
    }
}

impl TestSpec {
    fn stored_files(&self) -> impl Iterator<Item = &StoredFile> {
        let laid_in = self.files.iter().filter_map(|file| match &file.content {
            run::FileContent::Stored(stored) => Some(stored),
            run::FileContent::Bytes(_) | run::FileContent::Local(_) => None,
        });
        let read = stored(&self.stdin);
        let expected = self.expect.as_ref().and_then(|expect| stored(&expect.stdout));
        laid_in.chain(read).chain(expected)
    }

    /// The run that this test is.
    pub(super) fn run(&self, common: &RunSpec) -> RunSpec {
        let mut run = common.clone();
        if let Some(command) = &self.command {
            run.command = command.clone();
        }
        run.stdin = self.stdin.clone();
        run.files.extend(self.files.iter().cloned());
        run.limits = self.limits.clone();
        if let Some(outputs) = &self.outputs {
            run.outputs = outputs.clone();
        }
        run
    }
}

fn stored(stdin: &Stdin) -> Option<&StoredFile> {
    match stdin {
        Stdin::Stored(stored) => Some(stored),
        Stdin::Empty | Stdin::Bytes(_) => None,
    }
}
