//! A tar that lies when told to, and the folder it is unpacked into.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use unpack::{Job, Limits, Report, UnpackError};

/// Archives, block by block.
#[derive(Clone, Default)]
pub(crate) struct Tar {
    pub(crate) bytes: Vec<u8>,
    mode: Option<u32>,
    owner: (u64, u64),
    mtime: u64,
}

impl Tar {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// For the next entry.
    pub(crate) fn mode(mut self, mode: u32) -> Self {
        self.mode = Some(mode);
        self
    }

    /// For all that follow.
    pub(crate) fn owner(mut self, uid: u64, gid: u64) -> Self {
        self.owner = (uid, gid);
        self
    }

    /// For all that follow.
    pub(crate) fn mtime(mut self, mtime: u64) -> Self {
        self.mtime = mtime;
        self
    }

    pub(crate) fn file(self, path: &str, content: impl AsRef<[u8]>) -> Self {
        self.entry(b'0', path, "", content.as_ref())
    }

    pub(crate) fn dir(self, path: &str) -> Self {
        self.entry(b'5', path, "", b"")
    }

    pub(crate) fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(b'2', path, target, b"")
    }

    pub(crate) fn hardlink(self, path: &str, target: &str) -> Self {
        self.entry(b'1', path, target, b"")
    }

    pub(crate) fn entry(self, kind: u8, path: &str, link: &str, content: &[u8]) -> Self {
        let size = content.len() as u64;
        self.header(kind, path, link, size).raw(content).pad()
    }

    /// A header that claims a size of its own.
    pub(crate) fn header(mut self, kind: u8, path: &str, link: &str, size: u64) -> Self {
        let mut header = tar::Header::new_gnu();
        let fields = header.as_old_mut();
        fields.name[..path.len()].copy_from_slice(path.as_bytes());
        fields.linkname[..link.len()].copy_from_slice(link.as_bytes());
        fields.linkflag[0] = kind;
        header.set_mode(self.mode.take().unwrap_or(if kind == b'5' { 0o755 } else { 0o644 }));
        header.set_uid(self.owner.0);
        header.set_gid(self.owner.1);
        header.set_mtime(self.mtime);
        header.set_size(size);
        header.set_cksum();
        self.raw(header.as_bytes())
    }

    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        let data: Vec<u8> = records.iter().flat_map(|(key, value)| pax_record(key, value)).collect();
        self.entry(b'x', "PaxHeaders/x", "", &data)
    }

    pub(crate) fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    pub(crate) fn pad(mut self) -> Self {
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn end(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 1024, 0);
        self.bytes
    }

    pub(crate) fn unpack(self) -> Outcome {
        unpack(&self.end())
    }
}

fn pax_record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while len != rest + len.to_string().len() {
        len = rest + len.to_string().len();
    }
    [format!("{len} {key}=").as_bytes(), value, b"\n"].concat()
}

/// What became of a layer, and a stranger's file beside it that must stay as it is.
pub(crate) struct Outcome {
    pub(crate) result: Result<Report, UnpackError>,
    pub(crate) opaque: Vec<String>,
    folder: tempfile::TempDir,
}

impl Outcome {
    pub(crate) fn root(&self) -> PathBuf {
        self.folder.path().join("layer")
    }

    pub(crate) fn report(&self) -> &Report {
        self.result.as_ref().unwrap()
    }

    pub(crate) fn error(&self) -> &UnpackError {
        self.result.as_ref().unwrap_err()
    }

    pub(crate) fn read(&self, path: &str) -> String {
        fs::read_to_string(self.root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    pub(crate) fn stat(&self, path: &str) -> fs::Metadata {
        fs::symlink_metadata(self.root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
    }

    pub(crate) fn is_whiteout(&self, path: &str) -> bool {
        let stat = self.stat(path);
        stat.file_type().is_char_device() && stat.rdev() == 0
    }

    /// Every path with what is there: `dir`, `file CONTENT`, `link TARGET`, `whiteout`, `fifo`.
    pub(crate) fn tree(&self) -> BTreeMap<String, String> {
        let mut tree = BTreeMap::new();
        describe(&self.root(), "", &mut tree);
        tree
    }

    /// The attacker's aim in every breakout: this file's content, mode or owner.
    pub(crate) fn assert_outside_unchanged(&self) {
        let outside = self.folder.path().join("outside");
        assert_eq!(fs::read_to_string(outside.join("secret")).unwrap(), "secret");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
        let stat = fs::metadata(outside.join("secret")).unwrap();
        assert_eq!(
            (stat.mode() & 0o7777, stat.uid(), stat.nlink(), stat.mtime()),
            (0o600, 0, 1, 1_000_000_000)
        );
        assert_eq!(fs::metadata(&outside).unwrap().mode() & 0o7777, 0o700);
        let names: Vec<_> =
            fs::read_dir(self.folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "{names:?}");
    }
}

pub(crate) fn describe(root: &Path, inside: &str, tree: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(root.join(inside)).unwrap() {
        let entry = entry.unwrap();
        let name = String::from_utf8_lossy(entry.file_name().as_bytes()).into_owned();
        let path = if inside.is_empty() { name } else { format!("{inside}/{name}") };
        let kind = entry.file_type().unwrap();
        let text = if kind.is_dir() {
            describe(root, &path, tree);
            "dir".into()
        } else if kind.is_symlink() {
            format!("link {}", fs::read_link(entry.path()).unwrap().display())
        } else if kind.is_file() {
            format!("file {}", String::from_utf8_lossy(&fs::read(entry.path()).unwrap()))
        } else if kind.is_fifo() {
            "fifo".into()
        } else {
            "whiteout".into()
        };
        tree.insert(path, text);
    }
}

pub(crate) fn unpack(archive: &[u8]) -> Outcome {
    unpack_with(archive, &diff_id(archive), Limits::default())
}

pub(crate) fn unpack_with(input: &[u8], diff_id: &str, limits: Limits) -> Outcome {
    unpack_from(&io::Cursor::new(input.to_vec()), diff_id, limits)
}

/// As it is, and then decoded by another thread, which may change nothing.
pub(crate) fn unpack_from(
    input: &(impl Read + Clone + Send + 'static),
    diff_id: &str,
    limits: Limits,
) -> Outcome {
    let (alone, ahead) = (input.clone(), input.clone());
    let alone = unpack_by(diff_id, limits.clone(), |root, job, mark| unpack::layer(alone, root, job, mark));
    let ahead = unpack_by(diff_id, limits, |root, job, mark| unpack::layer_ahead(ahead, root, job, 0, mark));
    assert_eq!(ahead.result, alone.result);
    assert_eq!(ahead.opaque, alone.opaque);
    ahead
}

pub(crate) type Mark<'a> = &'a mut dyn FnMut(BorrowedFd<'_>) -> io::Result<()>;

pub(crate) fn unpack_by(
    diff_id: &str,
    limits: Limits,
    unpack: impl FnOnce(OwnedFd, &Job, Mark<'_>) -> Result<Report, UnpackError>,
) -> Outcome {
    let folder = tempfile::tempdir().unwrap();
    let (root, outside) = (folder.path().join("layer"), folder.path().join("outside"));
    fs::create_dir(&root).unwrap();
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "secret").unwrap();
    lock(&outside);
    let mut opaque = Vec::new();
    let mut mark = |dir: BorrowedFd<'_>| -> io::Result<()> {
        let path = fs::read_link(format!("/proc/self/fd/{}", dir.as_raw_fd()))?;
        opaque.push(path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned());
        Ok(())
    };
    let job = Job { diff_id: diff_id.into(), limits, niceness: 0 };
    let result = unpack(File::open(&root).unwrap().into(), &job, &mut mark);
    Outcome { result, opaque, folder }
}

fn lock(outside: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let secret = outside.join("secret");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(outside, fs::Permissions::from_mode(0o700)).unwrap();
    let then = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    File::options().write(true).open(&secret).unwrap().set_modified(then).unwrap();
}

pub(crate) fn diff_id(archive: &[u8]) -> String {
    let hash = Sha256::digest(archive);
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(bytes, 3).unwrap()
}

/// Whether the test can run; says so where it can't.
pub(crate) fn is_root(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED {test}: unpacking needs root");
    }
    root
}

/// A test that needs root.
macro_rules! as_root {
    () => {
        if !crate::support::is_root(std::thread::current().name().unwrap_or("a test")) {
            return;
        }
    };
}
pub(crate) use as_root;
