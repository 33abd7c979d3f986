//! Where things are and where tests put theirs.

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// `target/`, whatever it is called here: the folder above the profile's in which this test was built.
pub fn target() -> PathBuf {
    let folder = programs();
    let marker = |folder: &&Path| folder.join("CACHEDIR.TAG").exists();
    // With a named target there is one folder between, which cargo marks as well: the outermost counts.
    folder.ancestors().filter(marker).last().unwrap_or(&folder).to_owned()
}

/// The top of the repository.
pub fn repository() -> PathBuf {
    let support = Path::new(env!("CARGO_MANIFEST_DIR"));
    support.ancestors().nth(2).expect("this crate is two folders below the repository").to_owned()
}

/// Where cargo has put the programs that belong to this test: beside its `deps`.
pub(crate) fn programs() -> PathBuf {
    let this = std::env::current_exe().expect("find this program");
    let folder = this.parent().expect("this program is in a folder");
    let beside =
        if folder.ends_with("deps") { folder.parent().expect("deps is in a folder") } else { folder };
    beside.to_owned()
}

/// A folder of a test's own that others may pass through, because the server is not root. It goes with this value.
#[derive(Debug)]
pub struct Folder(tempfile::TempDir);

impl Folder {
    pub fn new() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("sandglass-test-")
            .permissions(Permissions::from_mode(0o755))
            .tempdir()
            .expect("make a folder");
        Self(folder)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// The folder's path with something behind it.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path().join(name)
    }
}

impl Default for Folder {
    fn default() -> Self {
        Self::new()
    }
}

/// What the files below a folder take of the disk, those with several names counted once.
pub fn disk_bytes(folder: &Path) -> u64 {
    fn add(path: &Path, seen: &mut BTreeMap<u64, u64>) {
        let Ok(stat) = path.symlink_metadata() else { return };
        seen.insert(stat.ino(), stat.blocks() * 512);
        if stat.is_dir() {
            let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
            entries.for_each(|entry| add(&entry.path(), seen));
        }
    }
    let mut seen = BTreeMap::new();
    add(folder, &mut seen);
    seen.values().sum()
}

/// When each file below a folder was last written or replaced, by its path.
pub fn stamps(folder: &Path) -> BTreeMap<PathBuf, (u64, i64, i64)> {
    fn add(path: &Path, found: &mut BTreeMap<PathBuf, (u64, i64, i64)>) {
        for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
            let Ok(stat) = entry.metadata() else { continue };
            if stat.is_dir() {
                add(&entry.path(), found);
            } else {
                found.insert(entry.path(), (stat.ino(), stat.mtime(), stat.mtime_nsec()));
            }
        }
    }
    let mut found = BTreeMap::new();
    add(folder, &mut found);
    found
}
