//! What the types of a request can't say: one function for each kind of value, pure, each telling
//! everything that it finds.

use std::collections::BTreeMap;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use run::{Command, FileContent, FileId, FileSpec, Limits, OutputPattern, Principal, Stdin};

use super::content::{FileRequest, Lookup, StdinBytes, StdinFile, StdinRequest, StoredLength};
use super::fields::child;
use super::laid::Laid;
use super::problem::{self, BadValue, Problem};

const MAX_IMAGE_BYTES: usize = 512;
const MAX_PATH_BYTES: usize = 4095;
const MAX_NAME_BYTES: usize = 255;
const MAX_ID: u64 = 65_535;
const PRIORITIES: std::ops::RangeInclusive<i64> = -1000..=1000;

pub(super) fn check_priority(priority: i64, bad: &mut Vec<BadValue>) -> i32 {
    if !PRIORITIES.contains(&priority) {
        bad.push(BadValue::at("/priority", "must be from -1000 to 1000"));
    }
    i32::try_from(priority).unwrap_or_default()
}

pub(super) fn check_image(image: &str, bad: &mut Vec<BadValue>) {
    if image.is_empty() || image.len() > MAX_IMAGE_BYTES {
        bad.push(BadValue::at("/image", format!("must have 1 to {MAX_IMAGE_BYTES} bytes")));
    } else if image.chars().any(|c| c.is_whitespace() || c.is_control()) {
        bad.push(BadValue::at("/image", "must not contain spaces or control characters"));
    } else if let Err(error) = image::Images::check_reference(image) {
        bad.push(BadValue::at("/image", error.to_string()));
    }
}

/// An image that is not on the list of the caller's key is refused like one that the operator does not allow.
pub(super) fn check_image_is_allowed(image: &str, principal: &Principal) -> Result<(), Problem> {
    if principal.quota.images.is_empty() {
        return Ok(());
    }
    let full = image::Images::full_name(image)?;
    if principal.may_use_image(&full) {
        return Ok(());
    }
    let allowed: Vec<_> = principal.quota.images.iter().map(|pattern| pattern.0.as_str()).collect();
    let detail = format!("{full} is not among the images of this key: {}", allowed.join(", "));
    Err(problem::IMAGE_NOT_ALLOWED.detail(detail))
}

pub(super) fn check_command(
    cmd: Option<String>,
    args: Vec<String>,
    bad: &mut Vec<BadValue>,
) -> Option<Command> {
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

pub(super) fn check_env(env: &BTreeMap<String, String>, bad: &mut Vec<BadValue>) {
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

pub(super) fn check_workdir(path: &str, bad: &mut Vec<BadValue>) {
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

pub(super) fn check_outputs(outputs: Vec<String>, bad: &mut Vec<BadValue>) -> Vec<OutputPattern> {
    let parse = |(i, text): (usize, String)| {
        let wanted = OutputPattern::parse(&text);
        let detail = bad_path(&wanted.pattern).or_else(|| {
            let folder = matches!(wanted.pattern.rsplit('/').next(), Some("" | "." | ".."));
            folder.then_some("names a folder; name the files in it, as with `*`")
        });
        if let Some(detail) = detail {
            bad.push(BadValue::at(format!("/outputs/{i}"), detail));
        }
        wanted
    };
    outputs.into_iter().enumerate().map(parse).collect()
}

pub(super) fn check_user(user: &str, bad: &mut Vec<BadValue>) {
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

pub(super) fn check_labels(labels: &BTreeMap<String, String>, bad: &mut Vec<BadValue>) {
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

pub(super) fn check_stdin(
    at: &str,
    stdin: Option<StdinRequest>,
    lookup: Lookup<'_>,
    bad: &mut Vec<BadValue>,
) -> Stdin {
    match stdin {
        None => Stdin::Empty,
        Some(StdinRequest::Text(text)) => Stdin::Bytes(text.into_bytes()),
        Some(StdinRequest::Bytes(StdinBytes { base64 })) => {
            Stdin::Bytes(decode(&format!("{at}/base64"), &base64, bad).unwrap_or_default())
        }
        Some(StdinRequest::File(StdinFile { file })) => {
            check_stored(&format!("{at}/file"), &file, lookup, bad)
                .map_or(Stdin::Empty, |found| Stdin::Stored(found.file))
        }
    }
}

fn decode(at: &str, base64: &str, bad: &mut Vec<BadValue>) -> Option<Vec<u8>> {
    BASE64_STANDARD
        .decode(base64)
        .map_err(|error| bad.push(BadValue::at(at, format!("is not padded standard base64: {error}"))))
        .ok()
}

/// Files must fit into the run's own limits.
pub(super) fn check_files(
    requests: Vec<FileRequest>,
    limits: &Limits,
    lookup: Lookup<'_>,
    bad: &mut Vec<BadValue>,
) -> Vec<FileSpec> {
    let mut laid = Laid::default();
    let mut files = Vec::with_capacity(requests.len());
    for (i, request) in requests.into_iter().enumerate() {
        if let Some((file, len)) = check_file(&format!("/files/{i}"), request, lookup, bad) {
            laid.add(&file, len);
            files.push(file);
        }
    }
    bad.extend(laid.check("/files", limits));
    files
}

/// The file of that id, if the client has uploaded one.
pub(super) fn check_stored(
    at: &str,
    id: &str,
    lookup: Lookup<'_>,
    bad: &mut Vec<BadValue>,
) -> Option<StoredLength> {
    let found = id.parse::<FileId>().map_err(|error| error.to_string()).and_then(|id| {
        lookup(&id).ok_or_else(|| "there is no such file; upload it with `POST /files`".to_owned())
    });
    found.map_err(|detail| bad.push(BadValue::at(at, detail))).ok()
}

fn check_file(
    at: &str,
    request: FileRequest,
    lookup: Lookup<'_>,
    bad: &mut Vec<BadValue>,
) -> Option<(FileSpec, u64)> {
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
    let bytes = |bytes: Vec<u8>| (bytes.len() as u64, FileContent::Bytes(bytes));
    let content = match (request.text, request.base64, request.file) {
        (Some(text), None, None) => Some(bytes(text.into_bytes())),
        (None, Some(base64), None) => decode(&format!("{at}/base64"), &base64, bad).map(bytes),
        (None, None, Some(id)) => check_stored(&format!("{at}/file"), &id, lookup, bad)
            .map(|found| (found.len, FileContent::Stored(found.file))),
        _ => {
            bad.push(BadValue::at(at, "must have exactly one of `text`, `base64` and `file`"));
            None
        }
    };
    let (len, content) = content?;
    (bad.len() == before).then_some((FileSpec { path: request.path, mode: mode?, content }, len))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints(check: impl FnOnce(&mut Vec<BadValue>)) -> Vec<String> {
        let mut bad = Vec::new();
        check(&mut bad);
        bad.into_iter().filter_map(|bad| bad.pointer).collect()
    }

    #[test]
    fn users_are_names_or_ids_of_a_run() {
        for (user, good) in [
            ("0", true),
            ("65535:65535", true),
            ("nobody", true),
            ("nobody:nogroup", true),
            ("www-data:33", true),
            ("65536", false),
            ("0:65536", false),
            ("99999999999999999999999", false),
            ("", false),
            (":", false),
            ("a:", false),
            ("a:b:c", false),
            ("a b", false),
            ("a\0", false),
        ] {
            assert_eq!(complaints(|bad| check_user(user, bad)).is_empty(), good, "{user:?}");
        }
    }

    #[test]
    fn a_variable_that_no_program_can_receive_is_named() {
        let long = "x".repeat(run::MAX_WORD_BYTES);
        for (key, value, pointer) in [
            ("A", "b=c", None),
            ("A", "", None),
            ("", "x", Some("/env/")),
            ("A=B", "x", Some("/env/A=B")),
            ("A/B~", "\0", Some("/env/A~1B~0")),
            ("A", &long, Some("/env/A")),
        ] {
            let env = [(key.to_owned(), value.to_owned())].into();
            assert_eq!(complaints(|bad| check_env(&env, bad)).first().map(String::as_str), pointer, "{key}");
        }
    }

    #[test]
    fn files_must_fit_into_the_limits_of_the_run() {
        let file = |path: &str, bytes: usize| FileRequest::text(path, "x".repeat(bytes));
        let limits = Limits { disk_bytes: 8192, inodes: 4, ..Limits::default() };
        for (files, pointers) in [
            (vec![file("a", 4096), file("b", 1)], &[][..]),
            (vec![file("a", 4096), file("b", 4097)], &["/files"]),
            (vec![file("a/b/c/d", 0)], &[]),
            (vec![file("a/b/c/d/e", 0)], &["/files"]),
            (vec![file("", 0)], &["/files/0/path"]),
            (vec![file("a/", 0)], &["/files/0/path"]),
            (vec![file("..", 0)], &["/files/0/path"]),
            (vec![file("../a", 0)], &[]),
        ] {
            let found = complaints(|bad| drop(check_files(files.clone(), &limits, &|_| None, bad)));
            assert_eq!(found, pointers, "{files:?}");
        }
    }
}
