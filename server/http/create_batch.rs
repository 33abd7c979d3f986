//! The body of `POST /batches`: read once into a [`BatchSpec`]. What a batch and a run have in common is
//! read by the same code; here it is put together, and what is wrong is told where the client wrote it.

use std::collections::BTreeMap;
use std::sync::Arc;

use engine::batch::{BatchSpec, Expect, Ground, Prepared, TestSpec};
use run::{Compare, LimitsRequest, OutputEncoding, Principal, Profile, Pull, RunSpec};
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::checks::check_stdin;
use super::content::{FileRequest, Lookup, StdinRequest};
use super::create_run::{Allowed, CreateRun, Network};
use super::fields::{Fields, kind};
use super::problem::{self, BadValue, Problem};

pub const MAX_TESTS: usize = 5000;
const MAX_NAME_CHARS: usize = 200;
const MAX_PARALLELISM: i64 = 1024;

/// One command that prepares, and many runs over what it has left, each compared with what is expected. `null` is
/// the same as absent.
#[derive(Clone, Debug, Default, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "image": "gcc", "workdir": "/work", "files": [{"path": "main.c", "text": "int main(){return 0;}"}],
    "prepare": {"cmd": "gcc", "args": ["-O2", "-o", "main", "main.c"]},
    "run": {"cmd": "/work/main", "limits": {"cpu_time_ms": 1000}},
    "tests": [{"name": "1", "stdin": "1 2\n", "expect": {"stdout": "3\n", "compare": "tokens"}}]
}))]
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
    /// The first test that fails, in the order of the list, is the last that counts; later ones are `skipped`.
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
    /// Without it there is no verdict, only the run.
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
        parts.stop_on_failure = flag(fields, "stop_on_failure");
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
        let prepared = self.prepared.take().and_then(|id| self.find_prepared(&id, around, &mut bad));
        let mut reader = Reader { around, common: &self.common, bad };
        let ground = match (self.prepare, prepared) {
            (Some(command), _) => {
                let files = self.files.take();
                reader
                    .run("/prepare", command, files, &["cmd", "args"])?
                    .map(|run| Ground::Prepare(Box::new(run)))
            }
            (None, Some(prepared)) => Some(Ground::Prepared(prepared)),
            (None, None) => Some(Ground::Image),
        };
        let run = reader.run("/run", self.run.clone(), self.files, &["cmd", "args"])?;
        let mut tests = Vec::with_capacity(self.tests.len());
        for (number, test) in self.tests.into_iter().enumerate() {
            tests.extend(reader.test(&format!("/tests/{number}"), test, &self.run)?);
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
            _ => Err(Problem::invalid(reader.bad)),
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
    let taken = ["cmd", "args", "limits"].map(|name| inner.take(name).map(|value| (name.to_owned(), value)));
    inner.finish();
    Some(taken.into_iter().flatten().collect())
}

fn flag(fields: &mut Fields<'_>, name: &str) -> bool {
    match fields.take(name) {
        None => false,
        Some(Value::Bool(flag)) => flag,
        Some(other) => {
            fields.refuse(name, format!("must be a boolean, not {}", kind(&other)));
            false
        }
    }
}

struct Reader<'a> {
    around: Around<'a>,
    common: &'a Map<String, Value>,
    bad: Vec<BadValue>,
}

impl Reader<'_> {
    /// A run of these parts. What is wrong with one of `own` stands `at` that place, anything else where the
    /// batch has it.
    fn run(
        &mut self,
        at: &str,
        mut part: Map<String, Value>,
        files: Option<Value>,
        own: &[&str],
    ) -> Result<Option<RunSpec>, Problem> {
        let own_limits = part.remove("limits");
        let mut request = self.common.clone();
        request.extend(part);
        request.extend(files.map(|files| ("files".to_owned(), files)));
        let mut limit_names = Vec::new();
        match own_limits {
            None => {}
            Some(Value::Object(limits)) => {
                limit_names.extend(limits.keys().map(|name| format!("/limits/{name}")));
                let common = request.entry("limits").or_insert_with(|| Value::Object(Map::new()));
                // Where the batch's own are of the wrong type, that will be told.
                if let Value::Object(common) = common {
                    common.extend(limits);
                }
            }
            Some(other) => {
                let detail = format!("must be an object, not {}", kind(&other));
                self.bad.push(BadValue::at(format!("{at}/limits"), detail));
            }
        }
        let Around { allowed, principal, lookup, .. } = self.around;
        match CreateRun::spec(Value::Object(request), allowed, principal, lookup) {
            Ok(spec) => Ok(Some(spec)),
            Err(problem) if problem.kind == &problem::INVALID_REQUEST => {
                for error in problem.errors {
                    let pointer = error.pointer.unwrap_or_default();
                    let is_own = own.iter().any(|name| {
                        pointer.strip_prefix('/').and_then(|rest| rest.split('/').next()) == Some(*name)
                    });
                    let moved = is_own || limit_names.contains(&pointer);
                    let pointer = if moved { format!("{at}{pointer}") } else { pointer };
                    let error = BadValue::at(pointer, error.detail);
                    if !self.bad.contains(&error) {
                        self.bad.push(error);
                    }
                }
                Ok(None)
            }
            Err(problem) => Err(problem),
        }
    }

    fn test(&mut self, at: &str, test: Value, run: &Map<String, Value>) -> Result<Option<TestSpec>, Problem> {
        let Some(mut fields) = Fields::open(at, test, &mut self.bad) else { return Ok(None) };
        let name = fields.text("name");
        if name.as_ref().is_some_and(|name| name.chars().count() > MAX_NAME_CHARS) {
            fields.refuse("name", format!("must have at most {MAX_NAME_CHARS} characters"));
        }
        let expect = read_expect(&mut fields);
        let files = fields.take("files");
        let mut part = run.clone();
        let args = fields.take("args");
        let has_args = args.is_some();
        let mut own = vec!["stdin", "files"];
        if let Some(args) = args {
            part.insert("args".into(), args);
            own.push("args");
        }
        part.extend(fields.take("stdin").map(|stdin| ("stdin".to_owned(), stdin)));
        let limits = fields.take("limits");
        fields.finish();
        let common = part.remove("limits");
        let limits = match (common, limits) {
            (Some(Value::Object(mut common)), Some(Value::Object(own))) => {
                common.extend(own);
                Some(Value::Object(common))
            }
            (common, own) => own.or(common),
        };
        part.extend(limits.map(|limits| ("limits".to_owned(), limits)));
        let spec = self.run(at, part, files, &own)?;
        let lookup = self.around.lookup;
        let expect = expect.map(|(stdout, compare)| {
            let stdout = check_stdin(&format!("{at}/expect/stdout"), Some(stdout), lookup, &mut self.bad);
            Expect { stdout, compare }
        });
        Ok(spec.map(|spec| TestSpec {
            name,
            command: has_args.then_some(spec.command),
            stdin: spec.stdin,
            files: spec.files,
            limits: spec.limits,
            expect,
        }))
    }
}

fn read_expect(fields: &mut Fields<'_>) -> Option<(StdinRequest, Compare)> {
    let value = fields.take("expect")?;
    let mut inner = fields.open_child("expect", value)?;
    let before = inner.complaints();
    let stdout = StdinRequest::read("stdout", &mut inner);
    if stdout.is_none() && inner.complaints() == before {
        inner.refuse("stdout", "is required");
    }
    let choices = [("exact", Compare::Exact), ("lines", Compare::Lines), ("tokens", Compare::Tokens)];
    let compare = inner.choice("compare", &choices).unwrap_or_default();
    inner.finish();
    stdout.map(|stdout| (stdout, compare))
}

#[cfg(test)]
mod tests {
    use run::{Limits, Maxima, Stdin};
    use serde_json::json;
    use utoipa::PartialSchema;

    use super::*;

    fn read(body: Value) -> Result<BatchSpec, Vec<String>> {
        let allowed = Allowed { defaults: Limits::default(), maxima: Maxima::default(), compat: false };
        let principal = Arc::clone(Principal::anonymous());
        let around =
            Around { allowed: &allowed, principal: &principal, lookup: &|_| None, prepared: &|_| None };
        spec(body, around)
            .map_err(|problem| problem.errors.into_iter().filter_map(|bad| bad.pointer).collect())
    }

    #[test]
    fn what_the_runs_have_in_common_is_said_once() {
        let spec = read(json!({
            "image": "gcc", "env": {"A": "b"}, "workdir": "/w", "files": [{"path": "m.c", "text": "x"}],
            "limits": {"processes": 7, "wall_time_ms": 1}, "prepare": {"cmd": "gcc", "limits": {"wall_time_ms": 2}},
            "run": {"cmd": "./a", "args": ["1"], "limits": {"wall_time_ms": 3}}, "stop_on_failure": true,
            "tests": [
                {"name": "one", "stdin": "i", "expect": {"stdout": "o", "compare": "tokens"}},
                {"args": ["2"], "limits": {"wall_time_ms": 4}, "files": [{"path": "t", "text": "y"}]},
            ], "parallelism": 3,
        }))
        .unwrap();
        let Ground::Prepare(prepare) = &spec.ground else { panic!("{:?}", spec.ground) };
        assert_eq!((prepare.files.len(), spec.run.files.len()), (1, 0));
        let limits = |limits: &Limits| (limits.processes, limits.wall_time_ms);
        assert_eq!((limits(&prepare.limits), limits(&spec.run.limits)), ((7, 2), (7, 3)));
        let tests = &spec.tests;
        assert_eq!((limits(&tests[0].limits), limits(&tests[1].limits)), ((7, 3), (7, 4)));
        assert_eq!((tests[0].command.is_some(), &tests[0].stdin), (false, &Stdin::Bytes(b"i".to_vec())));
        assert_eq!(tests[1].command.as_ref().map(|command| command.args()), Some(&["2".to_owned()][..]));
        assert_eq!((tests[0].expect.as_ref().unwrap().compare, tests[1].files.len()), (Compare::Tokens, 1));
        assert_eq!((spec.stop_on_failure, spec.parallelism), (true, Some(3)));
        // Without a prepare command every test gets the files.
        let spec = read(json!({"image": "a", "files": [{"path": "x", "text": "y"}], "tests": [{}]})).unwrap();
        assert_eq!(spec.run.files.len(), 1);
    }

    #[test]
    fn every_bad_value_is_named_where_it_was_written() {
        for (body, pointers) in [
            (json!({"image": "a"}), &["/tests"][..]),
            (json!({"tests": []}), &["/image"]),
            (json!({"image": "a", "tests": {}}), &["/tests"]),
            (json!({"image": "a", "tests": [], "cmd": "x"}), &["/cmd"]),
            (json!({"image": "a", "tests": [1]}), &["/tests/0"]),
            (json!({"image": "a", "tests": [], "prepare": {"cmd": ""}}), &["/prepare/cmd"]),
            (json!({"image": "a", "tests": [], "prepare": {"stdin": ""}}), &["/prepare/stdin"]),
            (json!({"image": "a", "tests": [], "run": {"args": 1}}), &["/run/args"]),
            (json!({"image": "a", "tests": [], "run": {"limits": 1}}), &["/run/limits"]),
            (json!({"image": "a", "tests": [], "limits": {"cpus": 0}}), &["/limits/cpus"]),
            (json!({"image": "a", "tests": [], "run": {"limits": {"cpus": 0}}}), &["/run/limits/cpus"]),
            (json!({"image": "a", "tests": [{"limits": {"x": 1}}]}), &["/tests/0/limits/x"]),
            (json!({"image": "a", "tests": [{}, {"stdin": 1}]}), &["/tests/1/stdin"]),
            (json!({"image": "a", "tests": [{"stdin": {"file": "sha256:x"}}]}), &["/tests/0/stdin/file"]),
            (json!({"image": "a", "tests": [{"args": ["\u{0}"]}]}), &["/tests/0/args/0"]),
            (
                json!({"image": "a", "tests": [{"files": [{"path": ""}]}]}),
                &["/tests/0/files/0/path", "/tests/0/files/0"],
            ),
            (json!({"image": "a", "tests": [{"expect": {}}]}), &["/tests/0/expect/stdout"]),
            (
                json!({"image": "a", "tests": [{"expect": {"stdout": {"file": "x"}}}]}),
                &["/tests/0/expect/stdout/file"],
            ),
            (
                json!({"image": "a", "tests": [{"expect": {"stdout": "", "compare": "x"}}]}),
                &["/tests/0/expect/compare"],
            ),
            (json!({"image": "a", "tests": [{"name": "x".repeat(201)}]}), &["/tests/0/name"]),
            (json!({"image": "a", "tests": [], "prepared": "x"}), &["/prepared"]),
            (json!({"image": "a", "tests": [], "prepared": "x", "prepare": {}}), &["/prepared"]),
            (json!({"image": "a", "tests": [], "parallelism": 0}), &["/parallelism"]),
            (json!({"image": "a", "tests": [], "stop_on_failure": 1}), &["/stop_on_failure"]),
            (json!({"image": "a", "tests": vec![json!({}); MAX_TESTS + 1]}), &["/tests"]),
        ] {
            let shown: String = body.to_string().chars().take(80).collect();
            assert_eq!(read(body).unwrap_err(), pointers, "{shown}");
        }
    }

    #[test]
    fn the_schema_names_what_is_read() {
        let schema = serde_json::to_value(CreateBatch::schema()).unwrap();
        for name in schema["properties"].as_object().unwrap().keys() {
            let unknown = read(json!({"image": "a", "tests": [], name: [[]]}))
                .map_or_else(|bad| bad.iter().any(|at| at.starts_with(&format!("/{name}"))), |_| false);
            assert!(unknown, "{name} is not looked at");
        }
        assert_eq!(schema["additionalProperties"], false);
    }
}
