//! The body of `POST /batches`: read once into a [`BatchSpec`]. What a batch and a run have in common is
//! read by the same code; here it is put together, and what is wrong is told where the client wrote it.

mod reader;

use std::collections::BTreeMap;
use std::sync::Arc;

use engine::batch::{BatchSpec, Ground, Prepared};
use run::{Compare, LimitsRequest, OutputEncoding, Principal, Profile, Pull};
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::content::{FileRequest, Lookup, StdinRequest};
use super::create_run::{Allowed, Network};
use super::fields::Fields;
use super::laid::Laid;
use super::problem::{BadValue, Problem};

use reader::Reader;

pub const MAX_TESTS: usize = 5000;
const MAX_PARALLELISM: i64 = 1024;

/// One command that prepares, and many runs over what it has left, each compared with what is expected. `null` is
/// the same as absent.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateBatch {
    /// As for a run. May be left out with `prepared`, which has one.
    #[schema(min_length = 1, max_length = 512, example = "gcc:14")]
    pub image: Option<String>,
    /// Laid in before `prepare`, or before each test where there is none.
    #[schema(max_items = 1000)]
    pub files: Option<Vec<FileRequest>>,
    pub env: Option<BTreeMap<String, String>>,
    #[schema(max_length = 4095, pattern = "^/", example = "/work")]
    pub workdir: Option<String>,
    #[schema(min_length = 1, max_length = 255)]
    pub user: Option<String>,
    /// Of all runs; those of `prepare`, `run` and a test come before these.
    pub limits: Option<LimitsRequest>,
    pub network: Option<Network>,
    pub profile: Option<Profile>,
    pub pull: Option<Pull>,
    #[schema(minimum = -1000, maximum = 1000)]
    pub priority: Option<i64>,
    pub output_encoding: Option<OutputEncoding>,
    pub labels: Option<BTreeMap<String, String>>,
    /// Run once; what it leaves behind is a read-only layer under every test.
    pub prepare: Option<BatchCommand>,
    /// What an earlier batch has prepared, in place of `prepare`.
    #[schema(format = Uuid)]
    pub prepared: Option<String>,
    /// The command of every test.
    pub run: Option<BatchCommand>,
    #[schema(max_items = 5000)]
    pub tests: Vec<TestRequest>,
    /// The first test that fails, in the order of the list, is the last that counts; later ones are `skipped`. It has
    /// its verdict also without `expect`, where only what did not end with code 0 fails.
    pub stop_on_failure: Option<bool>,
    /// How many tests go at once. As many as the server has slots if absent, and never more.
    #[schema(minimum = 1, maximum = 1024)]
    pub parallelism: Option<i64>,
}

/// A command of a batch.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BatchCommand {
    #[schema(min_length = 1, max_length = 131_071, example = "gcc")]
    pub cmd: Option<String>,
    #[schema(max_items = 4096)]
    pub args: Option<Vec<String>>,
    pub limits: Option<LimitsRequest>,
    /// Files that are handed out when it has ended, as for a run.
    #[schema(max_items = 64)]
    pub outputs: Option<Vec<String>>,
}

/// Where one test differs from the others.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = TestRequest)]
pub struct TestRequest {
    #[schema(max_length = 200)]
    pub name: Option<String>,
    pub stdin: Option<StdinRequest>,
    /// In place of those of `run`.
    #[schema(max_items = 4096)]
    pub args: Option<Vec<String>>,
    #[schema(max_items = 1000)]
    pub files: Option<Vec<FileRequest>>,
    pub limits: Option<LimitsRequest>,
    /// In place of those of `run`.
    #[schema(max_items = 64)]
    pub outputs: Option<Vec<String>>,
    /// Without it there is no verdict, only the run; but for the one because of which `stop_on_failure` skips others.
    pub expect: Option<ExpectRequest>,
}

/// What a test should write.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExpectRequest {
    pub stdout: StdinRequest,
    /// `lines` if absent.
    pub compare: Option<Compare>,
}

impl std::fmt::Debug for Around<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Around").field("principal", &self.principal.name).finish_non_exhaustive()
    }
}

/// What the requests of a batch's runs have in common.
const COMMON: [&str; 11] = [
    "image",
    "env",
    "workdir",
    "user",
    "network",
    "profile",
    "pull",
    "priority",
    "output_encoding",
    "labels",
    "limits",
];

/// What a command of a batch has for itself, beside limits.
const OWN: [&str; 3] = ["cmd", "args", "outputs"];

/// What a request is measured against, and what it may name.
#[derive(Clone, Copy)]
pub struct Around<'a> {
    pub allowed: &'a Allowed,
    pub principal: &'a Arc<Principal>,
    pub lookup: Lookup<'a>,
    pub prepared: &'a dyn Fn(&str) -> Option<Arc<Prepared>>,
}

/// The parts of one request, in the form in which the requests of runs are put together of them.
#[derive(Default)]
struct Parts {
    common: Map<String, Value>,
    files: Option<Value>,
    prepare: Option<Map<String, Value>>,
    prepared: Option<String>,
    run: Map<String, Value>,
    tests: Vec<Value>,
    stop_on_failure: bool,
    parallelism: Option<i64>,
}

/// The whole way from JSON to a valid spec.
pub fn spec(body: Value, around: Around<'_>) -> Result<BatchSpec, Problem> {
    let mut bad = Vec::new();
    let parts = Fields::open("", body, &mut bad).map(|mut fields| {
        let parts = Parts::read(&mut fields);
        fields.finish();
        parts
    });
    let Some(parts) = parts.filter(|_| bad.is_empty()) else { return Err(Problem::invalid(bad)) };
    parts.check(around)
}

impl Parts {
    fn read(fields: &mut Fields<'_>) -> Self {
        let mut parts = Self::default();
        for name in COMMON {
            parts.common.extend(fields.take(name).map(|value| (name.to_owned(), value)));
        }
        parts.files = fields.take("files");
        parts.prepare = command(fields, "prepare");
        parts.prepared = fields.text("prepared");
        parts.run = command(fields, "run").unwrap_or_default();
        parts.stop_on_failure = fields.boolean("stop_on_failure").unwrap_or_default();
        parts.parallelism = fields.integer("parallelism");
        let before = fields.complaints();
        match fields.list("tests", MAX_TESTS, |_, test, _| Some(test)) {
            Some(tests) => parts.tests = tests,
            None if fields.complaints() == before => fields.refuse("tests", "is required"),
            None => {}
        }
        if parts.prepare.is_some() && parts.prepared.is_some() {
            fields.refuse("prepared", "stands in place of `prepare`; leave one of them out");
        }
        if parts.parallelism.is_some_and(|number| !(1..=MAX_PARALLELISM).contains(&number)) {
            fields.refuse("parallelism", format!("must be from 1 to {MAX_PARALLELISM}"));
        }
        parts
    }

    fn check(mut self, around: Around<'_>) -> Result<BatchSpec, Problem> {
        let mut bad = Vec::new();
        let names_no_image = self.prepared.is_some() && !self.common.contains_key("image");
        let prepared = self.prepared.take().and_then(|id| self.find_prepared(&id, around, &mut bad));
        let mut reader = Reader::new(around, &self.common, bad);
        let ground = match (self.prepare, prepared) {
            (Some(command), _) => {
                let files = self.files.take();
                reader.run("/prepare", command, files, &OWN)?.map(|run| Ground::Prepare(Box::new(run)))
            }
            (None, Some(prepared)) => Some(Ground::Prepared(Some(prepared))),
            (None, None) => Some(Ground::Image),
        };
        let run = reader.run("/run", self.run.clone(), self.files, &OWN)?;
        // What is wrong with what all have in common has been told, and is not told of each test again.
        let (names, of_run) = match &run {
            Some(_) => (&["image", "limits"][..], self.run),
            None => (&["image"][..], Map::new()),
        };
        let common = self.common.iter().filter(|(name, _)| names.contains(&name.as_str()));
        let common = common.map(|(name, value)| (name.clone(), value.clone())).collect();
        reader.common = &common;
        let laid = run.as_ref().map(|run| Laid::of(&run.files, around.lookup)).unwrap_or_default();
        let mut tests = Vec::with_capacity(self.tests.len());
        for (number, test) in self.tests.into_iter().enumerate() {
            tests.extend(reader.test(&format!("/tests/{number}"), test, &of_run, &laid)?);
        }
        match (ground, run) {
            (Some(ground), Some(run)) if reader.bad.is_empty() => Ok(BatchSpec {
                principal: Arc::clone(around.principal),
                ground,
                run,
                tests,
                stop_on_failure: self.stop_on_failure,
                parallelism: self.parallelism.and_then(|number| usize::try_from(number).ok()),
            }),
            _ => {
                let mut bad = reader.bad;
                // It would be that of what is prepared.
                bad.retain(|bad| !(names_no_image && bad.pointer.as_deref() == Some("/image")));
                Err(Problem::invalid(bad))
            }
        }
    }

    /// Its image is the batch's, too.
    fn find_prepared(
        &mut self,
        id: &str,
        around: Around<'_>,
        bad: &mut Vec<BadValue>,
    ) -> Option<Arc<Prepared>> {
        let Some(prepared) = (around.prepared)(id) else {
            let detail = "nothing of yours is prepared under this id any more; send `prepare` again";
            bad.push(BadValue::at("/prepared", detail));
            return None;
        };
        let image = self.common.entry("image").or_insert_with(|| prepared.image().into());
        if image.as_str() != Some(prepared.image()) {
            let detail = format!("was prepared is over {}; leave the image out", prepared.image());
            bad.push(BadValue::at("/image", format!("what {detail}")));
        }
        Some(prepared)
    }
}

fn command(fields: &mut Fields<'_>, name: &str) -> Option<Map<String, Value>> {
    let value = fields.take(name)?;
    let mut inner = fields.open_child(name, value)?;
    let names = OWN.into_iter().chain(["limits"]);
    let taken = names.filter_map(|name| inner.take(name).map(|value| (name.to_owned(), value))).collect();
    inner.finish();
    Some(taken)
}

#[cfg(test)]
mod tests;
