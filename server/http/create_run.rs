//! The body of `POST /runs`: read once into a [`RunSpec`], after which nobody checks it again.
//! First the types of all fields, then their values; each pass tells all that it finds.

use std::collections::BTreeMap;
use std::sync::Arc;

use run::{Limits, LimitsRequest, Maxima, OnOutputLimit, OutputEncoding, Principal, Profile, Pull, RunSpec};
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::checks::*;
use super::content::{FileRequest, Lookup, StdinRequest, text};
use super::fields::{self, Fields, child};
use super::problem::{BadValue, Problem};

pub const MAX_ARGS: usize = 4096;
pub const MAX_ENV: usize = 1024;
pub const MAX_FILES: usize = 1000;
pub const MAX_OUTPUTS: usize = 64;
pub const MAX_LABELS: usize = 32;

/// What a request is measured against.
#[derive(Clone, Debug)]
pub struct Allowed {
    pub defaults: Limits,
    pub maxima: Maxima,
    /// Whether `profile: compat` is.
    pub compat: bool,
}

impl Allowed {
    /// The same for somebody whose key allows less; `None` where it does not.
    fn to(&self, principal: &Principal) -> Option<Self> {
        let own = &principal.quota.maxima;
        if *own == LimitsRequest::default() {
            return None;
        }
        let maxima = self.maxima.capped_by(own);
        Some(Self { defaults: self.defaults.capped_by(&maxima), maxima, compat: self.compat })
    }
}

/// One command of one image, to be run in one fresh sandbox. `null` is the same as absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateRun {
    /// An OCI reference as Docker users write it, or `host` where the operator allows it.
    #[schema(min_length = 1, max_length = 512, example = "python:3.13-alpine")]
    image: String,
    /// The program; without a slash it is looked up in the run's `PATH`. Absent: the image's own command.
    #[schema(min_length = 1, max_length = 131_071, example = "python3")]
    cmd: Option<String>,
    #[schema(max_items = 4096)]
    args: Option<Vec<String>>,
    /// What the program reads. Absent is an empty input.
    stdin: Option<StdinRequest>,
    /// Merged per key over the image's own environment.
    env: Option<BTreeMap<String, String>>,
    /// Absolute; created if missing. Absent: the image's own.
    #[schema(max_length = 4095, pattern = "^/", example = "/work")]
    workdir: Option<String>,
    /// `uid`, `uid:gid`, `name` or `name:group`; numbers up to 65535. Absent: the image's own, else 0.
    #[schema(min_length = 1, max_length = 255, example = "65534:65534")]
    user: Option<String>,
    /// Written before the program starts.
    #[schema(max_items = 1000)]
    files: Option<Vec<FileRequest>>,
    /// Handed out when the program has ended, however it did: paths, or patterns with `*`, `?`, `[a-z]` and `**`;
    /// absolute, or relative to the working directory. `?` at the end: it may be missing. Finding and reading them may
    /// take 5 s of a processor, and 30 s in all; what was not found by then is told with the path `/` and an `error`.
    #[schema(max_items = 64, example = json!(["report.json", "plots/*.png", "maybe.txt?"]))]
    outputs: Option<Vec<String>>,
    /// Absent ones are the server's defaults; see `GET /info` for those and the maxima.
    limits: Option<LimitsRequest>,
    network: Option<Network>,
    profile: Option<Profile>,
    pull: Option<Pull>,
    on_output_limit: Option<OnOutputLimit>,
    /// Of two waiting runs the one with the higher number starts first.
    #[schema(minimum = -1000, maximum = 1000)]
    priority: Option<i64>,
    output_encoding: Option<OutputEncoding>,
    /// `true` (the default), or `false`: once the run has ended nothing of what it wrote is kept. Whoever waits for
    /// it or follows it has it all the same. Large outputs are files, which go with `DELETE /files/{id}` or in time.
    keep_output: Option<bool>,
    /// Words of the client's own, given back with the run.
    labels: Option<BTreeMap<String, String>>,
}

/// What the run can reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Network {
    /// Its own loopback, and nothing else.
    None,
}

impl CreateRun {
    /// The whole way from JSON to a valid spec.
    pub fn spec(
        body: Value,
        allowed: &Allowed,
        principal: &Arc<Principal>,
        lookup: Lookup<'_>,
    ) -> Result<RunSpec, Problem> {
        let request = Self::read(body).map_err(Problem::invalid)?;
        let own = allowed.to(principal);
        let spec = request.check(own.as_ref().unwrap_or(allowed), lookup).map_err(Problem::invalid)?;
        check_image_is_allowed(&spec.image, principal)?;
        Ok(RunSpec { principal: Arc::clone(principal), ..spec })
    }

    /// Types only: every field is there and is what it should be, or is named in the error.
    fn read(body: Value) -> Result<Self, Vec<BadValue>> {
        let mut bad = Vec::new();
        let mut request = Self::default();
        if let Some(mut fields) = Fields::open("", body, &mut bad) {
            request = Self::read_fields(&mut fields);
            fields.finish();
        }
        if bad.is_empty() { Ok(request) } else { Err(bad) }
    }

    fn read_fields(fields: &mut Fields<'_>) -> Self {
        let before = fields.complaints();
        let image = fields.text("image");
        if image.is_none() && fields.complaints() == before {
            fields.refuse("image", "is required");
        }
        Self {
            image: image.unwrap_or_default(),
            cmd: fields.text("cmd"),
            args: fields.list("args", MAX_ARGS, text),
            stdin: StdinRequest::read("stdin", fields),
            env: fields.texts("env", MAX_ENV).map(BTreeMap::from_iter),
            workdir: fields.text("workdir"),
            user: fields.text("user"),
            files: fields.list("files", MAX_FILES, FileRequest::read),
            outputs: fields.list("outputs", MAX_OUTPUTS, text),
            limits: read_limits(fields),
            network: fields.choice("network", &[("none", Network::None)]),
            profile: fields.choice("profile", &[("strict", Profile::Strict), ("compat", Profile::Compat)]),
            pull: fields.choice(
                "pull",
                &[("missing", Pull::Missing), ("always", Pull::Always), ("never", Pull::Never)],
            ),
            on_output_limit: fields.choice(
                "on_output_limit",
                &[("kill", OnOutputLimit::Kill), ("discard", OnOutputLimit::Discard)],
            ),
            priority: fields.integer("priority"),
            output_encoding: fields.choice(
                "output_encoding",
                &[("auto", OutputEncoding::Auto), ("base64", OutputEncoding::Base64)],
            ),
            keep_output: fields.boolean("keep_output"),
            labels: fields.texts("labels", MAX_LABELS).map(BTreeMap::from_iter),
        }
    }

    /// Values: everything that the types can't say.
    fn check(self, allowed: &Allowed, lookup: Lookup<'_>) -> Result<RunSpec, Vec<BadValue>> {
        let mut bad = Vec::new();
        let limits = self.limits.unwrap_or_default().resolve(&allowed.defaults, &allowed.maxima);
        let limits = limits.unwrap_or_else(|over| {
            bad.extend(
                over.iter().map(|limit| BadValue::at(child("/limits", limit.name), limit.to_string())),
            );
            allowed.defaults.clone()
        });
        check_image(&self.image, &mut bad);
        let env = self.env.unwrap_or_default();
        let workdir = self.workdir.inspect(|path| check_workdir(path, &mut bad));
        let user = self.user.inspect(|user| check_user(user, &mut bad));
        let labels = self.labels.unwrap_or_default();
        check_env(&env, &mut bad);
        check_labels(&labels, &mut bad);
        let files = check_files(self.files.unwrap_or_default(), &limits, lookup, &mut bad);
        let outputs = check_outputs(self.outputs.unwrap_or_default(), &mut bad);
        let priority = check_priority(self.priority.unwrap_or_default(), &mut bad);
        if self.profile == Some(Profile::Compat) && !allowed.compat {
            bad.push(BadValue::at(
                "/profile",
                "`compat` is not offered here; use `strict`, or ask the operator for --allow-compat",
            ));
        }
        let stdin = check_stdin("/stdin", self.stdin, lookup, &mut bad);
        let command = check_command(self.cmd, self.args.unwrap_or_default(), &mut bad);
        let Some(command) = command.filter(|_| bad.is_empty()) else { return Err(bad) };
        Ok(RunSpec {
            stdin,
            env,
            workdir,
            user,
            files,
            outputs,
            limits,
            profile: self.profile.unwrap_or_default(),
            pull: self.pull.unwrap_or_default(),
            on_output_limit: self.on_output_limit.unwrap_or_default(),
            output_encoding: self.output_encoding.unwrap_or_default(),
            keep_output: self.keep_output.unwrap_or(true),
            priority,
            labels,
            ..RunSpec::new(self.image, command)
        })
    }
}

// ---------------------------------------------------------------- types

/// Each limit by itself, so that each bad one is named.
fn read_limits(fields: &mut Fields<'_>) -> Option<LimitsRequest> {
    let value = fields.take("limits")?;
    let mut inner = fields.open_child("limits", value)?;
    let mut good = Map::new();
    for name in limit_names() {
        let Some(value) = inner.take(&name).map(fields::whole) else { continue };
        let alone = Value::Object(Map::from_iter([(name.clone(), value.clone())]));
        match serde_json::from_value::<LimitsRequest>(alone) {
            Ok(_) => {
                good.insert(name, value);
            }
            Err(_) if name == "cpus" => inner.refuse(&name, "must be a number greater than 0"),
            Err(_) => inner.refuse(&name, "must be a whole number greater than 0"),
        }
    }
    inner.finish();
    serde_json::from_value(Value::Object(good)).ok()
}

/// The names of all limits, from the type that holds them.
pub fn limit_names() -> Vec<String> {
    match serde_json::to_value(Limits::default()) {
        Ok(Value::Object(map)) => map.into_iter().map(|(name, _)| name).collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use run::{FileContent, OutputPattern, Stdin};
    use serde_json::json;
    use utoipa::PartialSchema;

    use super::*;

    fn read(body: Value) -> Result<RunSpec, Vec<String>> {
        let allowed = Allowed { defaults: Limits::default(), maxima: Maxima::default(), compat: false };
        CreateRun::spec(body, &allowed, Principal::anonymous(), &|_| None)
            .map_err(|problem| problem.errors.into_iter().filter_map(|bad| bad.pointer).collect())
    }

    #[test]
    fn a_full_request_becomes_a_spec() {
        let spec = read(json!({
            "image": "alpine", "cmd": "sh", "args": ["-c", "true"], "stdin": {"base64": "AP8="},
            "env": {"A": "b", "GONE": null}, "workdir": "/w", "user": "1:2",
            "files": [{"path": "a", "text": "x"}, {"path": "/b", "base64": "eQ==", "mode": "0755"}],
            "limits": {"wall_time_ms": 5, "processes": 7.0, "cpus": 0.5, "inodes": null},
            "outputs": ["o", "p?"], "network": "none", "profile": "strict", "pull": "never",
            "on_output_limit": "discard", "priority": -3, "output_encoding": "base64", "labels": {"k": "v"},
        }))
        .unwrap();
        assert_eq!(
            (spec.command.program(), spec.command.args()),
            (Some("sh"), &["-c".into(), "true".into()][..])
        );
        assert_eq!(spec.stdin, Stdin::Bytes(vec![0, 255]));
        assert_eq!(spec.env, [("A".to_owned(), "b".to_owned())].into());
        assert_eq!((spec.files[0].mode, spec.files[1].mode), (0o644, 0o755));
        assert_eq!(spec.files[1].content, FileContent::Bytes(b"y".to_vec()));
        assert_eq!(spec.outputs, ["o", "p?"].map(OutputPattern::parse));
        let limits = Limits { wall_time_ms: 5, processes: 7, cpus: 0.5, ..Limits::default() };
        assert_eq!((spec.limits, spec.priority, spec.pull), (limits, -3, Pull::Never));
        assert_eq!(
            (spec.on_output_limit, spec.output_encoding),
            (OnOutputLimit::Discard, OutputEncoding::Base64)
        );
    }

    #[test]
    fn what_is_null_is_absent() {
        let Value::Object(mut body) = json!({"image": "alpine"}) else { unreachable!() };
        let Ok(Value::Object(empty)) = serde_json::to_value(CreateRun::default()) else { unreachable!() };
        body.extend(empty.into_iter().filter(|(name, _)| name != "image"));
        assert_eq!(read(Value::Object(body)), read(json!({"image": "alpine"})));
    }

    #[test]
    fn every_bad_value_is_named_by_pointer() {
        for (body, pointers) in [
            (json!([]), &[""][..]),
            (json!({}), &["/image"]),
            (json!({"image": 1}), &["/image"]),
            (json!({"image": ""}), &["/image"]),
            (json!({"image": "a b"}), &["/image"]),
            (json!({"image": "a", "commands": 1, "a/b": 2}), &["/a~1b", "/commands"]),
            (json!({"image": "a", "cmd": ""}), &["/cmd"]),
            (json!({"image": "a", "args": ["a", 1, null]}), &["/args/1", "/args/2"]),
            (json!({"image": "a", "args": "x"}), &["/args"]),
            (json!({"image": "a", "args": ["a", "b\u{0}"]}), &["/args/1"]),
            (json!({"image": "a", "args": vec![""; MAX_ARGS + 1]}), &["/args"]),
            (json!({"image": "a", "stdin": 5}), &["/stdin"]),
            (json!({"image": "a", "stdin": {}}), &["/stdin"]),
            (json!({"image": "a", "stdin": {"base64": "!"}}), &["/stdin/base64"]),
            (json!({"image": "a", "stdin": {"file": "sha256:x"}}), &["/stdin/file"]),
            (json!({"image": "a", "env": {"A": 1}}), &["/env/A"]),
            (json!({"image": "a", "workdir": "x"}), &["/workdir"]),
            (json!({"image": "a", "user": 0}), &["/user"]),
            (json!({"image": "a", "files": [{"path": "a"}]}), &["/files/0"]),
            (json!({"image": "a", "files": [{"text": "a"}]}), &["/files/0/path"]),
            (
                json!({"image": "a", "files": [{"path": "a", "text": "", "mode": "04755"}]}),
                &["/files/0/mode"],
            ),
            (json!({"image": "a", "files": [{"path": "a", "text": "", "mode": "4755"}]}), &["/files/0/mode"]),
            (json!({"image": "a", "files": [{"path": "a", "file": "sha256:x"}]}), &["/files/0/file"]),
            (
                json!({"image": "a", "outputs": ["x", "", "?", "y/", "\u{0}", "/", "z?"]}),
                &["/outputs/1", "/outputs/2", "/outputs/3", "/outputs/4", "/outputs/5"],
            ),
            (
                json!({"image": "a", "limits": {"cpus": "1", "inodes": 1.5, "x": 1}}),
                &["/limits/cpus", "/limits/inodes", "/limits/x"],
            ),
            (
                json!({"image": "a", "limits": {"wall_time_ms": 0, "processes": 5000}}),
                &["/limits/wall_time_ms", "/limits/processes"],
            ),
            (json!({"image": "a", "limits": {"memory_bytes": -1}}), &["/limits/memory_bytes"]),
            (json!({"image": "a", "network": "host"}), &["/network"]),
            (json!({"image": "a", "profile": "compat"}), &["/profile"]),
            (json!({"image": "a", "pull": "Always"}), &["/pull"]),
            (json!({"image": "a", "priority": 1.5}), &["/priority"]),
            (json!({"image": "a", "priority": 1001}), &["/priority"]),
            (json!({"image": "a", "labels": {"a b": "c", "d": "\n"}}), &["/labels/a b", "/labels/d"]),
        ] {
            let shown: String = body.to_string().chars().take(80).collect();
            let mut found = read(body).unwrap_err();
            found.sort_by_key(|pointer| pointers.iter().position(|expected| expected == pointer));
            assert_eq!(found, pointers, "{shown}");
        }
    }

    #[test]
    fn the_schema_names_what_is_read_and_nothing_else() {
        let schema = serde_json::to_value(CreateRun::schema()).unwrap();
        let Ok(Value::Object(fields)) = serde_json::to_value(CreateRun::default()) else { unreachable!() };
        let mut names: Vec<_> = schema["properties"].as_object().unwrap().keys().collect();
        names.sort_unstable();
        let mut expected: Vec<_> = fields.keys().collect();
        expected.sort_unstable();
        assert_eq!(names, expected);
        assert_eq!(schema["additionalProperties"], false);
    }
}
