//! How runs are written down: as JSON, in which fields can be added later, and read by who does not know them.

use jiff::Timestamp;
use run::{Run, RunSpec, Verdict};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::batches::{BatchPromise, BatchResult};
use super::{Finished, Key, Promise, Shape, StoreError};
use crate::batch::{Batch, BatchSpec, PreparedRecord, Test};

/// The version of everything in the file. A field that may be absent needs no new one.
pub(super) const FORMAT: u64 = 1;

/// A finished run without its outputs, which are kept beside it in pieces.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Head {
    pub run: Run,
    pub stdout: Shape,
    pub stderr: Shape,
    /// In microseconds since 1970.
    pub expires_us: i64,
}

impl Head {
    pub(super) fn expired(&self, now: Timestamp) -> bool {
        self.expires_us <= now.as_microsecond()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.stdout.bytes + self.stderr.bytes + inline_bytes(&self.run)
    }
}

impl From<Head> for Finished {
    fn from(head: Head) -> Self {
        let Head { mut run, stdout, stderr, .. } = head;
        (run.stdout.total, run.stderr.total) = (stdout.total, stderr.total);
        let loaded = stdout.bytes + stderr.bytes == 0;
        Finished { run: run.into(), stdout, stderr, loaded }
    }
}

/// Files that the run handed out, as far as they are in the run itself.
pub(super) fn inline_bytes(run: &Run) -> u64 {
    run.outputs.iter().map(|output| output.inline_bytes() as u64).sum()
}

/// A run that was promised, as it was then.
#[derive(Debug, Serialize)]
pub(super) struct Written<'a> {
    run: &'a Run,
    spec: &'a RunSpec,
    key: Option<&'a Key>,
}

impl<'a> From<&'a Promise> for Written<'a> {
    fn from(promise: &'a Promise) -> Self {
        Self { run: &promise.run, spec: &promise.spec, key: promise.key.as_ref() }
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct Read {
    pub run: Run,
    pub spec: RunSpec,
}

/// The place of the prepare command's run among the results of a batch, and of the batch's events.
pub(super) const PREPARE: u32 = u32::MAX;
pub(super) const EVENTS: u32 = u32::MAX - 1;

/// A finished batch without its results, which are kept beside it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct BatchHead {
    pub batch: Batch,
    pub tests: usize,
    pub tested: usize,
    pub bytes: u64,
    /// In microseconds since 1970.
    pub expires_us: i64,
}

impl BatchHead {
    pub(super) fn expired(&self, now: Timestamp) -> bool {
        self.expires_us <= now.as_microsecond()
    }
}

/// A batch that was promised, as it was then.
#[derive(Debug, Serialize)]
pub(super) struct WrittenBatch<'a> {
    batch: &'a Batch,
    spec: &'a BatchSpec,
    ground: Option<PreparedRecord>,
    key: Option<&'a Key>,
}

impl<'a> From<&'a BatchPromise> for WrittenBatch<'a> {
    fn from(promise: &'a BatchPromise) -> Self {
        let ground = PreparedRecord::of(&promise.spec.ground);
        Self { batch: &promise.batch, spec: &promise.spec, ground, key: promise.key.as_ref() }
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct ReadBatch {
    pub batch: Batch,
    pub spec: BatchSpec,
    #[serde(default)]
    pub ground: Option<PreparedRecord>,
}

/// One result of a batch. What its run wrote lies with the run.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct WrittenResult {
    pub event: usize,
    pub name: Option<String>,
    pub verdict: Option<Verdict>,
    pub run: Option<WrittenRun>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct WrittenRun {
    pub run: Run,
    pub stdout: Shape,
    pub stderr: Shape,
    /// Files that it handed out are with the run itself.
    pub outputs_apart: bool,
}

impl WrittenResult {
    pub(super) fn run_id(&self) -> Option<run::RunId> {
        self.run.as_ref().map(|written| written.run.id)
    }
}

impl From<&BatchResult> for WrittenResult {
    fn from(result: &BatchResult) -> Self {
        let Test { name, verdict, run } = &result.result;
        let run = run.as_ref().map(|run| WrittenRun::from(&**run));
        Self { event: result.event, name: name.clone(), verdict: *verdict, run }
    }
}

impl From<&Run> for WrittenRun {
    fn from(run: &Run) -> Self {
        let outputs_apart = inline_bytes(run) > 0;
        let mut bare = run.clone();
        if outputs_apart {
            bare.outputs = Default::default();
        }
        Self { run: bare, stdout: Shape::of(&run.stdout), stderr: Shape::of(&run.stderr), outputs_apart }
    }
}

/// Only whether there is a key: the rest of a promise may be large.
#[derive(Debug, Deserialize)]
pub(super) struct ReadKey {
    pub key: Option<Key>,
}

/// What a key stands for, and until when.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Claim {
    pub id: run::RunId,
    pub body: [u8; 32],
    pub expires_us: i64,
}

pub(super) fn write(value: &impl Serialize) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(value).map_err(|error| StoreError::new("write a run down", error))
}

pub(super) fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(bytes).map_err(|error| StoreError::new("read a run that was written down", error))
}
