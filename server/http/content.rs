//! Bytes in a request: what a program reads and the files that are laid in, as text, as base64 or by the
//! id of an uploaded file.

use run::{FileId, StoredFile};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::fields::{self, Fields};
use super::problem::BadValue;

/// An uploaded file, and how long it is.
#[derive(Clone, Debug)]
pub struct StoredLength {
    pub file: StoredFile,
    pub len: u64,
}

/// The client's uploaded file of that id, if there is one.
pub type Lookup<'a> = &'a dyn Fn(&FileId) -> Option<StoredLength>;

/// Text, bytes as base64, or an uploaded file.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[serde(untagged)]
#[schema(as = Stdin)]
pub enum StdinRequest {
    Text(String),
    Bytes(StdinBytes),
    File(StdinFile),
}

#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StdinBytes {
    /// Standard alphabet, padded (RFC 4648, section 4).
    #[schema(content_encoding = "base64", example = "aGVsbG8K")]
    pub(super) base64: String,
}

#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StdinFile {
    /// The id of an uploaded file. One of more than 1 MiB comes through a pipe, which can't be rewound.
    #[schema(
        pattern = "^sha256:[0-9a-f]{64}$",
        example = "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    )]
    pub(super) file: String,
}

/// One file that is written before the program starts. Exactly one of `text`, `base64` and `file`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = File, example = json!({"path": "in.txt", "text": "hello", "mode": "0644"}))]
pub struct FileRequest {
    /// Absolute, or relative to the working directory. Parents are created.
    #[schema(min_length = 1, max_length = 4095, example = "data/in.txt")]
    pub(super) path: String,
    pub(super) text: Option<String>,
    /// Standard alphabet, padded (RFC 4648, section 4).
    #[schema(content_encoding = "base64")]
    pub(super) base64: Option<String>,
    /// The id of an uploaded file.
    #[schema(pattern = "^sha256:[0-9a-f]{64}$")]
    pub(super) file: Option<String>,
    /// Permissions in octal; `0644` if absent.
    #[schema(pattern = "^0?[0-7]{3}$", example = "0644")]
    pub(super) mode: Option<String>,
}

impl StdinRequest {
    pub(super) fn read(name: &str, fields: &mut Fields<'_>) -> Option<Self> {
        match fields.take(name)? {
            Value::String(text) => Some(Self::Text(text)),
            value @ Value::Object(_) => {
                let mut inner = fields.open_child(name, value)?;
                let before = inner.complaints();
                let (base64, file) = (inner.text("base64"), inner.text("file"));
                let complained = inner.complaints() > before;
                inner.finish();
                match (base64, file) {
                    (Some(base64), None) => Some(Self::Bytes(StdinBytes { base64 })),
                    (None, Some(file)) => Some(Self::File(StdinFile { file })),
                    _ if complained => None,
                    _ => {
                        fields.refuse(name, "must have exactly one of `base64` and `file`");
                        None
                    }
                }
            }
            other => {
                let kind = fields::kind(&other);
                fields.refuse(
                    name,
                    format!("must be a string or an object with `base64` or `file`, not {kind}"),
                );
                None
            }
        }
    }
}

impl FileRequest {
    pub(super) fn read(at: String, value: Value, bad: &mut Vec<BadValue>) -> Option<Self> {
        let mut fields = Fields::open(at, value, bad)?;
        let before = fields.complaints();
        let path = fields.text("path");
        if path.is_none() && fields.complaints() == before {
            fields.refuse("path", "is required");
        }
        let file = Self {
            path: path.unwrap_or_default(),
            text: fields.text("text"),
            base64: fields.text("base64"),
            file: fields.text("file"),
            mode: fields.text("mode"),
        };
        fields.finish();
        Some(file)
    }

    #[cfg(test)]
    pub(super) fn text(path: &str, text: String) -> Self {
        Self { path: path.into(), text: Some(text), ..Self::default() }
    }
}

/// A string of a list.
pub(super) fn text(at: String, value: Value, bad: &mut Vec<BadValue>) -> Option<String> {
    match value {
        Value::String(text) => Some(text),
        other => {
            bad.push(BadValue::at(at, format!("must be a string, not {}", fields::kind(&other))));
            None
        }
    }
}
