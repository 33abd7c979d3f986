//! What a run is asked to be, once it has been checked.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{BadCommand, Command, Limits, Principal, StoredFile};

/// One valid request to run one command.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunSpec {
    /// Who asked for it, and alone may see it.
    pub principal: Arc<Principal>,
    /// The image as the client wrote it, or `host`.
    pub image: String,
    pub command: Command,
    pub stdin: Stdin,
    /// Merged per key over the image's own.
    pub env: BTreeMap<String, String>,
    pub workdir: Option<String>,
    pub user: Option<String>,
    pub files: Vec<FileSpec>,
    /// Files that are handed out when the run is over.
    pub outputs: Vec<OutputPattern>,
    pub limits: Limits,
    pub profile: Profile,
    pub pull: Pull,
    pub on_output_limit: OnOutputLimit,
    pub output_encoding: OutputEncoding,
    /// Whether what it wrote stays once it has ended.
    pub keep_output: bool,
    pub priority: i32,
    pub labels: BTreeMap<String, String>,
}

impl RunSpec {
    /// A run with every default: what the command line and the tests start from.
    pub fn new(image: impl Into<String>, command: Command) -> Self {
        Self {
            principal: Arc::clone(Principal::anonymous()),
            image: image.into(),
            command,
            stdin: Stdin::Empty,
            env: BTreeMap::new(),
            workdir: None,
            user: None,
            files: Vec::new(),
            outputs: Vec::new(),
            limits: Limits::default(),
            profile: Profile::default(),
            pull: Pull::default(),
            on_output_limit: OnOutputLimit::default(),
            output_encoding: OutputEncoding::default(),
            keep_output: true,
            priority: 0,
            labels: BTreeMap::new(),
        }
    }

    /// The uploaded files that this run reads.
    pub fn stored_files(&self) -> impl Iterator<Item = &StoredFile> {
        let laid_in = self.files.iter().filter_map(|file| match &file.content {
            FileContent::Stored(stored) => Some(stored),
            FileContent::Bytes(_) | FileContent::Local(_) => None,
        });
        let read = match &self.stdin {
            Stdin::Stored(stored) => Some(stored),
            Stdin::Empty | Stdin::Bytes(_) => None,
        };
        laid_in.chain(read)
    }

    /// Checks environment entries: a key is not empty and has neither `=` nor NUL.
    pub fn check_env(env: &BTreeMap<String, String>) -> Result<(), BadCommand> {
        for (key, value) in env {
            if key.is_empty() || key.contains('=') {
                return Err(BadCommand::Empty);
            }
            crate::command::check_words([key.as_str(), value.as_str()].into_iter())?;
        }
        Ok(())
    }
}

/// What the command reads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stdin {
    #[default]
    Empty,
    Bytes(#[serde(with = "crate::bytes")] Vec<u8>),
    Stored(StoredFile),
}

/// A file that is laid into the sandbox before the command starts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSpec {
    /// Absolute, or relative to the working directory.
    pub path: String,
    pub mode: u32,
    pub content: FileContent,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileContent {
    Bytes(#[serde(with = "crate::bytes")] Vec<u8>),
    Stored(StoredFile),
    /// A file of the machine on which the command line runs; never reachable over HTTP.
    Local(std::path::PathBuf),
}

/// A path or a pattern of paths; absolute, or relative to the working directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutputPattern {
    pub pattern: String,
    /// Nobody misses it.
    pub optional: bool,
}

impl OutputPattern {
    /// `?` at the end says that there may be nothing of that name.
    pub fn parse(text: &str) -> Self {
        match text.strip_suffix('?') {
            Some(pattern) => Self { pattern: pattern.into(), optional: true },
            None => Self { pattern: text.into(), optional: false },
        }
    }
}

/// How high the walls are. `strict`: no capability, only the run's own processes under `/proc`, no
/// `splice`. `compat`, where the operator allows it: root may change owners and users of what is the
/// run's own, `/proc` has what tools like `free` and `top` read, interfaces can be listed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Profile {
    #[default]
    Strict,
    Compat,
}

/// When the registry is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Pull {
    #[default]
    Missing,
    Always,
    Never,
}

/// What happens when an output goes past its cap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum OnOutputLimit {
    #[default]
    Kill,
    Discard,
}

/// How output bytes are put into JSON.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum OutputEncoding {
    #[default]
    Auto,
    Base64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_is_the_same_after_it_was_written_down() {
        let command = Command::parse(Some("sh".into()), vec!["-c".into(), "x".into()]).unwrap();
        let spec = RunSpec {
            stdin: Stdin::Bytes(vec![0, 255, b'a']),
            files: vec![FileSpec {
                path: "a".into(),
                mode: 0o755,
                content: FileContent::Bytes(vec![0xff; 5]),
            }],
            user: Some("1:1".into()),
            ..RunSpec::new("x", command)
        };
        let text = serde_json::to_string(&spec).unwrap();
        assert!(text.contains("\"AP9h\""), "{text}");
        assert_eq!(serde_json::from_str::<RunSpec>(&text).unwrap(), spec);
    }
}
