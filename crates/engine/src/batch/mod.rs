//! Batches: one command prepares, and many runs are made over what it has left and compared with what was
//! expected of them. A batch holds no slot; each of its runs asks for one like any other.

mod drive;
mod live;
mod prepared;
mod shelf;

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use run::{
    Command, Compare, FileSpec, Limits, Principal, PrincipalName, Run, RunSpec, Stdin, StoredFile, Verdict,
};
use uuid::Uuid;

use crate::files::FilesError;
use crate::{Engine, Leases, SubmitError};

pub use live::{BatchEvent, BatchHandle, CancelBatchOnDrop};
pub use prepared::{Prepared, PreparedId};

use live::LiveBatch;
use prepared::Shelf as PreparedShelf;
use shelf::Shelf;

/// How many finished batches are remembered.
const KEPT: usize = 1000;

#[derive(Clone, Debug)]
pub struct BatchConfig {
    pub kept_bytes: u64,
    pub kept_for: Duration,
    /// How long what a batch has prepared is kept for others.
    pub prepared_kept_for: Duration,
    /// Of all that is prepared together.
    pub prepared_bytes_max: u64,
}

/// A batch's name. Time-ordered, like those of runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
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

/// One valid request for a batch.
#[derive(Clone, Debug)]
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
#[derive(Clone, Debug)]
pub enum Ground {
    /// The image alone.
    Image,
    /// What this command leaves behind.
    Prepare(Box<RunSpec>),
    /// What an earlier batch has prepared.
    Prepared(Arc<Prepared>),
}

/// Where one test differs from the others.
#[derive(Clone, Debug)]
pub struct TestSpec {
    pub name: Option<String>,
    /// Where it is not the one that all have.
    pub command: Option<Command>,
    pub stdin: Stdin,
    pub files: Vec<FileSpec>,
    pub limits: Limits,
    pub expect: Option<Expect>,
}

#[derive(Clone, Debug)]
pub struct Expect {
    pub stdout: Stdin,
    pub compare: Compare,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchState {
    Preparing,
    Running,
    Finished,
}

/// One batch, in whatever state.
#[derive(Clone, Debug)]
pub struct Batch {
    pub id: BatchId,
    pub principal: PrincipalName,
    pub state: BatchState,
    /// Of the whole batch, when it has finished: the first of its tests that is not `accepted`.
    pub verdict: Option<Verdict>,
    pub prepare: Option<Arc<Run>>,
    pub tests: Vec<Test>,
    pub prepared: Option<PreparedInfo>,
    /// Why there is nothing prepared although the command ended well.
    pub not_prepared: Option<String>,
    pub created_at: Timestamp,
    pub finished_at: Option<Timestamp>,
}

#[derive(Clone, Debug)]
pub struct Test {
    pub name: Option<String>,
    /// Where something was expected, and where the test was not run to its end.
    pub verdict: Option<Verdict>,
    pub run: Option<Arc<Run>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PreparedInfo {
    pub id: PreparedId,
    pub expires_at: Timestamp,
}

/// Why a batch was not taken.
#[derive(Debug, thiserror::Error)]
pub enum BatchError {
    #[error(transparent)]
    Submit(#[from] SubmitError),
    #[error(transparent)]
    Files(#[from] FilesError),
}

/// Cheap to clone; all clones are the same.
#[derive(Clone, Debug)]
pub struct Batches {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    engine: Engine,
    prepared: PreparedShelf,
    shelf: Mutex<Shelf>,
}

impl Batches {
    pub fn new(engine: Engine, config: &BatchConfig) -> Self {
        let prepared = PreparedShelf::new(config.prepared_bytes_max, config.prepared_kept_for);
        let shelf = Mutex::new(Shelf::new(KEPT, config.kept_bytes, config.kept_for));
        Self { inner: Arc::new(Inner { engine, prepared, shelf }) }
    }

    /// Takes a batch, or says why not. It goes on whatever becomes of the caller.
    pub fn submit(&self, spec: BatchSpec) -> Result<BatchHandle, BatchError> {
        let engine = &self.inner.engine;
        if engine.launcher_is_lost() {
            return Err(SubmitError::LauncherLost.into());
        }
        if engine.is_draining() {
            return Err(SubmitError::Stopping.into());
        }
        spec.limits().try_for_each(|limits| engine.check(limits))?;
        // Every file is held from now on, so that none is missing when its test's turn comes.
        let leases = Leases::take_all(engine.inner.config.files.as_ref(), spec.stored_files())
            .map_err(|file| SubmitError::NoSuchFile { file })?;
        let room = match &spec.ground {
            Ground::Prepare(run) => Some(self.inner.prepared.room(engine.inner.config.files.as_ref(), run)?),
            Ground::Image | Ground::Prepared(_) => None,
        };
        let live = LiveBatch::new(spec.queued());
        self.shelf().begin(Arc::clone(&live));
        let work = drive::Work { batches: self.clone(), live: Arc::clone(&live), leases, room };
        tokio::spawn(work.go(spec));
        Ok(BatchHandle { live })
    }

    pub fn get(&self, id: BatchId) -> Option<BatchHandle> {
        self.shelf().get(id, Instant::now()).map(|live| BatchHandle { live })
    }

    /// What an earlier batch of this principal has prepared.
    pub fn prepared(&self, id: PreparedId, principal: &PrincipalName) -> Option<Arc<Prepared>> {
        self.inner.prepared.get(id, principal)
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        // A panic under this lock leaves the maps whole.
        self.inner.shelf.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl BatchSpec {
    fn stored_files(&self) -> impl Iterator<Item = &StoredFile> {
        let prepare = match &self.ground {
            Ground::Prepare(run) => Some(run.stored_files()),
            Ground::Image | Ground::Prepared(_) => None,
        };
        let tests = self.tests.iter().flat_map(TestSpec::stored_files);
        prepare.into_iter().flatten().chain(self.run.stored_files()).chain(tests)
    }

    fn limits(&self) -> impl Iterator<Item = &Limits> {
        let prepare = match &self.ground {
            Ground::Prepare(run) => Some(&run.limits),
            Ground::Image | Ground::Prepared(_) => None,
        };
        prepare.into_iter().chain(self.tests.iter().map(|test| &test.limits))
    }

    fn queued(&self) -> Batch {
        let test = |test: &TestSpec| Test { name: test.name.clone(), verdict: None, run: None };
        Batch {
            id: BatchId(Uuid::now_v7()),
            principal: self.principal.name.clone(),
            state: match self.ground {
                Ground::Prepare(_) => BatchState::Preparing,
                Ground::Image | Ground::Prepared(_) => BatchState::Running,
            },
            verdict: None,
            prepare: None,
            tests: self.tests.iter().map(test).collect(),
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
    fn run(&self, common: &RunSpec) -> RunSpec {
        let mut run = common.clone();
        if let Some(command) = &self.command {
            run.command = command.clone();
        }
        run.stdin = self.stdin.clone();
        run.files.extend(self.files.iter().cloned());
        run.limits = self.limits.clone();
        run
    }
}

fn stored(stdin: &Stdin) -> Option<&StoredFile> {
    match stdin {
        Stdin::Stored(stored) => Some(stored),
        Stdin::Empty | Stdin::Bytes(_) => None,
    }
}

impl Batch {
    /// The problem because of which there is no verdict about any program, if there is one.
    pub fn problem(&self) -> Option<(&run::Problem, run::RunId)> {
        let failed = |test: &Test| test.run.as_ref().is_some_and(|run| run.problem.is_some());
        let run = match &self.prepare {
            Some(prepare) => Some(prepare),
            None if self.tests.iter().all(failed) => self.tests.first().and_then(|test| test.run.as_ref()),
            None => None,
        };
        run.and_then(|run| run.problem.as_ref().map(|problem| (problem, run.id)))
    }
}
