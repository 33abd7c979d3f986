//! What the unpacker is asked for and what it says when it is done. Both travel as JSON through the
//! walls of the jail, so a report is bounded however large the layer was.

use serde::{Deserialize, Serialize};

use crate::UnpackError;

/// One layer to unpack. The compression is not said: the first bytes tell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Job {
    /// What the uncompressed stream must hash to: `sha256:…` or `sha512:…`.
    pub diff_id: String,
    #[serde(default)]
    pub limits: Limits,
    /// How far the unpacker steps back where processors are short, as `nice` has it.
    #[serde(default)]
    pub niceness: u8,
}

/// How much one layer may ask of the disk and of us.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Bytes of the uncompressed stream; the holes of sparse files count too.
    pub bytes: u64,
    pub entries: u64,
    /// Uncompressed bytes per compressed byte, checked after `ratio_free_bytes`.
    pub ratio: u64,
    pub ratio_free_bytes: u64,
    /// Names in a path.
    pub depth: usize,
    pub path_bytes: usize,
    pub name_bytes: usize,
    /// One PAX header, GNU long name or sparse map.
    pub metadata_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            bytes: 20 << 30,
            entries: 2_000_000,
            ratio: 200,
            ratio_free_bytes: 64 << 20,
            depth: 128,
            path_bytes: 4096,
            name_bytes: 255,
            metadata_bytes: 1 << 20,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

/// What was unpacked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub diff_id: String,
    pub compression: Compression,
    pub compressed_bytes: u64,
    /// Of the uncompressed stream.
    pub bytes: u64,
    /// Of the files written, holes not among them.
    pub file_bytes: u64,
    /// What the tree takes of the disk, in the blocks that most file systems have.
    pub disk_bytes: u64,
    pub entries: u64,
    pub whiteouts: u64,
    pub opaque_dirs: u64,
    /// The layer hides everything below it.
    pub root_opaque: bool,
    /// The layer says what the root looks like.
    #[serde(default)]
    pub root_described: bool,
    /// Device nodes and entries of unknown kinds, none of which a sandbox needs.
    pub skipped: u64,
    /// Extended attributes that an image has no business to set.
    pub dropped_xattrs: u64,
    /// Files whose owner's id does not exist here and that belong to nobody now.
    pub squashed_owners: u64,
    /// Directories that the layer needs but does not describe. A lower layer may know better what
    /// they look like.
    pub implicit_dirs: Vec<String>,
    /// Directories that the layer describes and that are not `0755` of root.
    pub special_dirs: Vec<DirMeta>,
    /// Whether one of the two lists was cut short.
    pub dirs_cut: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirMeta {
    pub path: String,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: i64,
}

/// Reads what [`jailed`](crate::jailed) wrote.
pub fn read_result(text: &str) -> Result<Result<Report, UnpackError>, serde_json::Error> {
    serde_json::from_str(text)
}
