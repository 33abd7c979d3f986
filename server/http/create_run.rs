//! The body of `POST /runs`: read once into a [`RunSpec`], after which nobody checks it again.
//! First the types of all fields, then their values; each pass tells all that it finds.

use std::collections::BTreeMap;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use run::{
    Command, FileContent, FileSpec, Limits, LimitsRequest, Maxima, OnOutputLimit, OutputEncoding, Profile,
    Pull, RunSpec, Stdin,
};
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::fields::{self, Fields, child};
use super::problem::{BadValue, Problem};

pub const MAX_ARGS: usize = 4096;
pub const MAX_ENV: usize = 1024;
pub const MAX_FILES: usize = 1000;
pub const MAX_LABELS: usize = 32;
pub const MAX_IMAGE_BYTES: usize = 512;
const MAX_PATH_BYTES: usize = 4095;
const MAX_NAME_BYTES: usize = 255;
const MAX_ID: u64 = 65_535;
const PRIORITIES: std::ops::RangeInclusive<i64> = -1000..=1000;
const PAGE_BYTES: u64 = 4096;

/// What a request is measured against.
#[derive(Clone, Debug)]
pub struct Allowed {
    pub defaults: Limits,
    pub maxima: Maxima,
}

/// One command of one image, to be run in one fresh sandbox. `null` is the same as absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"image": "alpine", "cmd": "echo", "args": ["hello"]}))]
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
    /// Words of the client's own, given back with the run.
    labels: Option<BTreeMap<String, String>>,
}

/// Text, or bytes as base64.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[serde(untagged)]
#[schema(as = Stdin)]
pub enum StdinRequest {
    Text(String),
    Bytes(StdinBytes),
}

#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StdinBytes {
    /// Standard alphabet, padded (RFC 4648, section 4).
    #[schema(content_encoding = "base64", example = "aGVsbG8K")]
    base64: String,
}

/// One file that is written before the program starts. Exactly one of `text` and `base64`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = File, example = json!({"path": "in.txt", "text": "hello", "mode": "0644"}))]
pub struct FileRequest {
    /// Absolute, or relative to the working directory. Parents are created.
    #[schema(min_length = 1, max_length = 4095, example = "data/in.txt")]
    path: String,
    text: Option<String>,
    /// Standard alphabet, padded (RFC 4648, section 4).
    #[schema(content_encoding = "base64")]
    base64: Option<String>,
    /// Permissions in octal; `0644` if absent.
    #[schema(pattern = "^0?[0-7]{3}$", example = "0644")]
    mode: Option<String>,
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
    pub fn spec(body: Value, allowed: &Allowed) -> Result<RunSpec, Problem> {
        Self::read(body).and_then(|request| request.check(allowed)).map_err(Problem::invalid)
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
        if fields.list("outputs", MAX_FILES, |_, _, _| Some(())).is_some_and(|outputs| !outputs.is_empty()) {
            fields.refuse("outputs", "is not offered yet by this version; write to stdout instead");
        }
        Self {
            image: image.unwrap_or_default(),
            cmd: fields.text("cmd"),
            args: fields.list("args", MAX_ARGS, text),
            stdin: read_stdin(fields),
            env: fields.texts("env", MAX_ENV).map(BTreeMap::from_iter),
            workdir: fields.text("workdir"),
            user: fields.text("user"),
            files: fields.list("files", MAX_FILES, FileRequest::read),
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
            labels: fields.texts("labels", MAX_LABELS).map(BTreeMap::from_iter),
        }
    }

    /// Values: everything that the types can't say.
    fn check(self, allowed: &Allowed) -> Result<RunSpec, Vec<BadValue>> {
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
        let files = check_files(self.files.unwrap_or_default(), &limits, &mut bad);
        let priority = self.priority.unwrap_or_default();
        if !PRIORITIES.contains(&priority) {
            bad.push(BadValue::at("/priority", "must be from -1000 to 1000"));
        }
        if self.profile == Some(Profile::Compat) {
            bad.push(BadValue::at("/profile", "`compat` is not offered yet by this version; use `strict`"));
        }
        let stdin = check_stdin(self.stdin, &mut bad);
        let command = check_command(self.cmd, self.args.unwrap_or_default(), &mut bad);
        let Some(command) = command.filter(|_| bad.is_empty()) else { return Err(bad) };
        Ok(RunSpec {
            stdin,
            env,
            workdir,
            user,
            files,
            limits,
            profile: self.profile.unwrap_or_default(),
            pull: self.pull.unwrap_or_default(),
            on_output_limit: self.on_output_limit.unwrap_or_default(),
            output_encoding: self.output_encoding.unwrap_or_default(),
            priority: priority as i32,
            labels,
            ..RunSpec::new(self.image, command)
        })
    }
}

// ---------------------------------------------------------------- types

fn text(at: String, value: Value, bad: &mut Vec<BadValue>) -> Option<String> {
    match value {
        Value::String(text) => Some(text),
        other => {
            bad.push(BadValue::at(at, format!("must be a string, not {}", fields::kind(&other))));
            None
        }
    }
}

fn read_stdin(fields: &mut Fields<'_>) -> Option<StdinRequest> {
    match fields.take("stdin")? {
        Value::String(text) => Some(StdinRequest::Text(text)),
        value @ Value::Object(_) => {
            let mut inner = fields.open_child("stdin", value)?;
            let before = inner.complaints();
            if inner.take("file").is_some() {
                inner.refuse("file", "is not offered yet by this version; use `base64`");
            }
            let base64 = inner.text("base64");
            if base64.is_none() && inner.complaints() == before {
                inner.refuse("base64", "is required");
            }
            inner.finish();
            base64.map(|base64| StdinRequest::Bytes(StdinBytes { base64 }))
        }
        other => {
            let kind = fields::kind(&other);
            fields.refuse("stdin", format!("must be a string or an object with `base64`, not {kind}"));
            None
        }
    }
}

impl FileRequest {
    fn read(at: String, value: Value, bad: &mut Vec<BadValue>) -> Option<Self> {
        let mut fields = Fields::open(at, value, bad)?;
        let before = fields.complaints();
        let path = fields.text("path");
        if path.is_none() && fields.complaints() == before {
            fields.refuse("path", "is required");
        }
        if fields.take("file").is_some() {
            fields.refuse("file", "is not offered yet by this version; use `text` or `base64`");
        }
        let file = Self {
            path: path.unwrap_or_default(),
            text: fields.text("text"),
            base64: fields.text("base64"),
            mode: fields.text("mode"),
        };
        fields.finish();
        Some(file)
    }
}

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

// ---------------------------------------------------------------- values

pub fn check_image(image: &str, bad: &mut Vec<BadValue>) {
    if image.is_empty() || image.len() > MAX_IMAGE_BYTES {
        bad.push(BadValue::at("/image", format!("must have 1 to {MAX_IMAGE_BYTES} bytes")));
    } else if image.chars().any(|c| c.is_whitespace() || c.is_control()) {
        bad.push(BadValue::at("/image", "must not contain spaces or control characters"));
    }
}

fn check_command(cmd: Option<String>, args: Vec<String>, bad: &mut Vec<BadValue>) -> Option<Command> {
    let words = |program: Option<&String>, args: &[String]| Command::parse(program.cloned(), args.to_vec());
    // Alone first, so that the word at fault is named and not only the list.
    if let Some(Err(error)) = cmd.as_ref().map(|cmd| words(Some(cmd), &[])) {
        bad.push(BadValue::at("/cmd", error.to_string()));
        return None;
    }
    let nul = args.iter().position(|arg| arg.contains('\0') || arg.len() > run::MAX_WORD_BYTES);
    match Command::parse(cmd, args) {
        Ok(command) => Some(command),
        Err(error) => {
            let at = nul.map_or("/args".to_owned(), |i| format!("/args/{i}"));
            bad.push(BadValue::at(at, error.to_string()));
            None
        }
    }
}

fn check_env(env: &BTreeMap<String, String>, bad: &mut Vec<BadValue>) {
    for (key, value) in env {
        if key.is_empty() || key.contains(['=', '\0']) {
            bad.push(BadValue::at(child("/env", key), "a name must not be empty nor contain `=` or NUL"));
        } else if value.contains('\0') {
            bad.push(BadValue::at(child("/env", key), "must not contain NUL"));
        } else if key.len() + value.len() + 1 > run::MAX_WORD_BYTES {
            let detail = format!("name and value must have at most {} bytes", run::MAX_WORD_BYTES - 1);
            bad.push(BadValue::at(child("/env", key), detail));
        }
    }
    let bytes: usize = env.iter().map(|(key, value)| key.len() + value.len() + 2).sum();
    if bytes > run::MAX_WORDS_BYTES {
        let detail = format!("has {bytes} bytes; at most {} can be passed", run::MAX_WORDS_BYTES);
        bad.push(BadValue::at("/env", detail));
    }
}

fn check_workdir(path: &str, bad: &mut Vec<BadValue>) {
    if !path.starts_with('/') {
        bad.push(BadValue::at("/workdir", "must begin with `/`"));
    } else if let Some(detail) = bad_path(path) {
        bad.push(BadValue::at("/workdir", detail));
    }
}

fn bad_path(path: &str) -> Option<&'static str> {
    if path.is_empty() || path.len() > MAX_PATH_BYTES {
        Some("must have 1 to 4095 bytes")
    } else if path.contains('\0') {
        Some("must not contain NUL")
    } else if path.split('/').any(|name| name.len() > MAX_NAME_BYTES) {
        Some("has a part of more than 255 bytes")
    } else {
        None
    }
}

fn check_user(user: &str, bad: &mut Vec<BadValue>) {
    let parts: Vec<_> = user.split(':').collect();
    let odd = |part: &&str| part.is_empty() || part.chars().any(|c| c.is_whitespace() || c.is_control());
    if user.len() > MAX_NAME_BYTES || parts.len() > 2 || parts.iter().any(odd) {
        bad.push(BadValue::at("/user", "must be `user` or `user:group`, each a name or a number"));
        return;
    }
    let numeric = |part: &&&str| part.bytes().all(|b| b.is_ascii_digit());
    for part in parts.iter().filter(numeric) {
        if part.parse::<u64>().map_or(true, |id| id > MAX_ID) {
            bad.push(BadValue::at("/user", format!("{part} is over {MAX_ID}, the largest id of a run")));
        }
    }
}

fn check_labels(labels: &BTreeMap<String, String>, bad: &mut Vec<BadValue>) {
    for (key, value) in labels {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._/-".contains(c);
        if key.is_empty() || key.len() > 64 || !key.chars().all(plain) {
            let detail = "a label's name must have 1 to 64 letters, digits and `.` `_` `/` `-`";
            bad.push(BadValue::at(child("/labels", key), detail));
        } else if value.len() > 256 || value.chars().any(char::is_control) {
            let detail = "must have at most 256 bytes and no control characters";
            bad.push(BadValue::at(child("/labels", key), detail));
        }
    }
}

fn check_stdin(stdin: Option<StdinRequest>, bad: &mut Vec<BadValue>) -> Stdin {
    match stdin {
        None => Stdin::Empty,
        Some(StdinRequest::Text(text)) => Stdin::Bytes(text.into_bytes()),
        Some(StdinRequest::Bytes(StdinBytes { base64 })) => {
            Stdin::Bytes(decode("/stdin/base64", &base64, bad).unwrap_or_default())
        }
    }
}

fn decode(at: &str, base64: &str, bad: &mut Vec<BadValue>) -> Option<Vec<u8>> {
    BASE64_STANDARD
        .decode(base64)
        .map_err(|error| bad.push(BadValue::at(at, format!("is not padded standard base64: {error}"))))
        .ok()
}

/// Files must fit into the run's own limits, or the set-up would fail later and less clearly.
fn check_files(requests: Vec<FileRequest>, limits: &Limits, bad: &mut Vec<BadValue>) -> Vec<FileSpec> {
    let (mut bytes, mut inodes) = (0, 0);
    let mut files = Vec::with_capacity(requests.len());
    for (i, request) in requests.into_iter().enumerate() {
        inodes += request.path.split('/').filter(|name| !name.is_empty()).count() as u64;
        if let Some(file) = check_file(&format!("/files/{i}"), request, bad) {
            let FileContent::Bytes(content) = &file.content else { continue };
            bytes += (content.len() as u64).next_multiple_of(PAGE_BYTES);
            files.push(file);
        }
    }
    for (name, most) in [("disk_bytes", limits.disk_bytes), ("memory_bytes", limits.memory_bytes)] {
        if bytes > most {
            let detail = format!("hold {bytes} bytes together (whole pages); the limit `{name}` is {most}");
            bad.push(BadValue::at("/files", detail));
        }
    }
    if inodes > limits.inodes {
        let detail = format!("may need {inodes} files and folders; the limit `inodes` is {}", limits.inodes);
        bad.push(BadValue::at("/files", detail));
    }
    files
}

fn check_file(at: &str, request: FileRequest, bad: &mut Vec<BadValue>) -> Option<FileSpec> {
    let before = bad.len();
    if let Some(detail) = bad_path(&request.path) {
        bad.push(BadValue::at(format!("{at}/path"), detail));
    } else if matches!(request.path.rsplit('/').next(), Some("" | "." | "..")) {
        bad.push(BadValue::at(format!("{at}/path"), "names a folder; a file needs a name of its own"));
    }
    let octal =
        |text: &&String| matches!(text.len(), 3 | 4) && text.bytes().all(|b| (b'0'..=b'7').contains(&b));
    let mode = match &request.mode {
        None => Some(0o644),
        Some(text) => Some(text)
            .filter(octal)
            .and_then(|text| u32::from_str_radix(text, 8).ok())
            .filter(|mode| *mode <= 0o777),
    };
    if mode.is_none() {
        bad.push(BadValue::at(format!("{at}/mode"), "must be permissions in octal from `0000` to `0777`"));
    }
    let content = match (request.text, request.base64) {
        (Some(text), None) => Some(text.into_bytes()),
        (None, Some(base64)) => decode(&format!("{at}/base64"), &base64, bad),
        _ => {
            bad.push(BadValue::at(at, "must have exactly one of `text` and `base64`"));
            None
        }
    };
    let content = FileContent::Bytes(content?);
    (bad.len() == before).then_some(FileSpec { path: request.path, mode: mode?, content })
}
