//! Why a layer was not unpacked. Every error is plain data, because it leaves the jail as JSON.

use std::io;

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case", tag = "code")]
pub enum UnpackError {
    #[error("the job can't be read: {reason}")]
    BadJob { reason: String },
    #[error("the compressed stream is broken: {reason}")]
    Compression { reason: String },
    #[error("the archive is broken at byte {offset}: {reason}")]
    Archive { offset: u64, reason: String },
    #[error("the archive has bytes behind its end")]
    TrailingGarbage,
    #[error("entry {path}: {reason}")]
    BadEntry { path: String, reason: String },
    #[error("the hard link {path} leads to {target}, which is not in this layer")]
    LinkTarget { path: String, target: String },
    #[error("the layer has more {what} than the limit of {limit}")]
    TooLarge { what: String, limit: u64 },
    #[error("the layer unpacks to {found}, but its image says {expected}")]
    DiffId { expected: String, found: String },
    #[error("there is no space left for the layer")]
    NoSpace,
    #[error("{doing} {path}: {reason}")]
    Io { doing: String, path: String, errno: i32, reason: String },
    #[error("read the layer: {reason}")]
    Input { reason: String },
}

impl UnpackError {
    /// A stable word for logs and metrics.
    pub fn code(&self) -> &'static str {
        match self {
            Self::BadJob { .. } => "bad_job",
            Self::Compression { .. } => "compression",
            Self::Archive { .. } => "archive",
            Self::TrailingGarbage => "trailing_garbage",
            Self::BadEntry { .. } => "bad_entry",
            Self::LinkTarget { .. } => "link_target",
            Self::TooLarge { .. } => "too_large",
            Self::DiffId { .. } => "diff_id",
            Self::NoSpace => "no_space",
            Self::Io { .. } => "io",
            Self::Input { .. } => "input",
        }
    }

    pub(crate) fn too_large(what: &str, limit: u64) -> Self {
        Self::TooLarge { what: what.into(), limit }
    }

    pub(crate) fn entry(path: &[u8], reason: impl Into<String>) -> Self {
        Self::BadEntry { path: show(path), reason: reason.into() }
    }

    pub(crate) fn io(doing: &str, path: &[u8], error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(nix::libc::ENOSPC | nix::libc::EDQUOT) => Self::NoSpace,
            errno => Self::Io {
                doing: doing.into(),
                path: show(path),
                errno: errno.unwrap_or(0),
                reason: error.to_string(),
            },
        }
    }
}

/// A path for people: valid UTF-8, no control characters, and short enough for any message.
pub(crate) fn show(path: &[u8]) -> String {
    const MOST: usize = 200;
    let cut = &path[..path.len().min(MOST)];
    let mut text: String =
        String::from_utf8_lossy(cut).chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    if cut.len() < path.len() {
        text.push('…');
    }
    text
}
