//! A run as it is kept and shown: its state, what it wrote, what it used.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{FileId, Limits, Outcome, PrincipalName};

/// A run's name. Time-ordered (UUIDv7), so it is also the sort key of every list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunId(pub Uuid);

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// `queued → preparing → running → finished`, never back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    Queued,
    Preparing,
    Running,
    Finished,
}

/// What one output held. `bytes` never has more than the cap; `total` counts what was written as
/// far as it was seen. The bytes are shared, so that a run can be copied without them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    pub bytes: Arc<Vec<u8>>,
    pub total: u64,
}

impl Output {
    pub fn truncated(&self) -> bool {
        self.total > self.bytes.len() as u64
    }
}

/// A file that a run has left behind, or why it was not handed out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunOutput {
    pub path: String,
    pub content: OutputContent,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputContent {
    Bytes(#[serde(with = "crate::bytes")] Vec<u8>),
    /// Too large for the reply, so it lies with the uploaded files.
    Stored {
        id: FileId,
        size_bytes: u64,
    },
    Refused(String),
}

impl RunOutput {
    /// How much of it is in the run itself.
    pub fn inline_bytes(&self) -> usize {
        match &self.content {
            OutputContent::Bytes(bytes) => bytes.len(),
            OutputContent::Stored { .. } | OutputContent::Refused(_) => 0,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub enum Encoding {
    #[serde(rename = "utf-8")]
    Utf8,
    #[serde(rename = "base64")]
    Base64,
}

/// What a run consumed. Same names as the limits; milliseconds with microsecond precision.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Usage {
    /// From the start of the program to the end of its last process.
    pub wall_time_ms: f64,
    /// Processor time of all processes of the run, from its cgroup.
    pub cpu_time_ms: f64,
    pub user_time_ms: f64,
    pub system_time_ms: f64,
    /// The most memory charged at once; absent where the host can't tell.
    pub memory_peak_bytes: Option<u64>,
    /// The most processes and threads alive at once, our init not among them; absent where the host can't tell.
    pub processes_peak: Option<u64>,
}

/// Where the time of a run went, in milliseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct Timings {
    pub queue_ms: Option<f64>,
    pub image_ms: Option<f64>,
    pub setup_ms: Option<f64>,
    pub run_ms: Option<f64>,
    /// Known only after the answer: mounts and cgroups are removed behind it.
    pub teardown_ms: Option<f64>,
}

/// A limit that was touched without ending the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum LimitHit {
    Processes,
    Disk,
    Inodes,
    FileSize,
    OpenFiles,
}

/// The image that was run, by the name it was asked for and the digest it had.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct ImageRef {
    pub reference: String,
    /// Absent for `host`.
    pub digest: Option<String>,
}

/// Which problem document explains a run that has no verdict about the program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema), schema(as = RunProblem))]
pub struct Problem {
    /// A stable path such as `/problems/image-not-found`.
    #[serde(rename = "type")]
    pub problem_type: String,
    pub detail: String,
    /// When it is worth another try, where somebody has said so.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub retry_after_ms: Option<u64>,
}

/// One run, in whatever state. The server turns it into JSON; the outputs stay bytes until then. Written
/// down it has none: they are kept beside it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Run {
    pub id: RunId,
    /// Whose it is.
    pub principal: PrincipalName,
    pub state: RunState,
    /// How many turns it takes until it starts, its own among them, while it waits for a slot.
    pub queue_position: Option<u64>,
    /// Set when `state` is `Finished`, and only then.
    pub outcome: Option<Outcome>,
    pub problem: Option<Problem>,
    #[serde(skip)]
    pub stdout: Output,
    #[serde(skip)]
    pub stderr: Output,
    /// Shared, so that a run can be copied without them.
    pub outputs: Arc<Vec<RunOutput>>,
    /// Patterns that nothing was like, as they were asked for.
    pub outputs_missing: Vec<String>,
    pub usage: Option<Usage>,
    pub limits: Limits,
    pub limit_hits: Vec<LimitHit>,
    pub not_enforced: Vec<String>,
    pub image: ImageRef,
    pub timings: Timings,
    pub created_at: Timestamp,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
    pub output_encoding: crate::OutputEncoding,
    pub labels: BTreeMap<String, String>,
}
