//! A folder that becomes an archive: every file with a mode that is said, and with one time.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

#[derive(Debug)]
pub(super) struct Tree {
    root: PathBuf,
    epoch: u64,
}

impl Tree {
    pub(super) fn new(root: &Path, epoch: u64) -> Result<Self> {
        super::remake(root)?;
        Ok(Self { root: root.to_owned(), epoch })
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Copies a file to `to`, below the root.
    pub(super) fn add(&self, from: &Path, to: &str, mode: u32) -> Result<()> {
        let bytes = fs::read(from).with_context(|| format!("read {}", from.display()))?;
        self.write(to, &bytes, mode)
    }

    pub(super) fn write(&self, to: &str, bytes: &[u8], mode: u32) -> Result<()> {
        let path = self.root.join(to);
        let folder = path.parent().context("a file is in a folder")?;
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        // Whatever whoever makes the release lets others see of their own files.
        for folder in folder.ancestors().take_while(|folder| folder.starts_with(&self.root)) {
            fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).context("set a folder's mode")?;
        }
        fs::write(&path, bytes).with_context(|| format!("write {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).context("set a file's mode")
    }

    /// Copies a folder's files, and those of its folders; scripts stay programs.
    pub(super) fn add_all(&self, from: &Path, to: &str) -> Result<()> {
        for entry in fs::read_dir(from).with_context(|| format!("list {}", from.display()))? {
            let path = entry?.path();
            let below = Path::new(to).join(super::file_name(&path)).display().to_string();
            if path.is_dir() {
                self.add_all(&path, &below)?;
            } else {
                let mode = if path.extension().is_some_and(|end| end == "sh") { 0o755 } else { 0o644 };
                self.add(&path, &below, mode)?;
            }
        }
        Ok(())
    }

    /// Packs it in an order of its own, and removes it.
    pub(super) fn pack(self, archive: &Path) -> Result<()> {
        let (above, name) =
            (self.root.parent().context("a folder is in a folder")?, super::file_name(&self.root));
        let mut tar = Command::new("tar");
        tar.args(["--create", "--sort=name", "--format=ustar", "--owner=0", "--group=0", "--numeric-owner"]);
        tar.arg(format!("--mtime=@{}", self.epoch))
            .args(["--mode=go-w", "--directory"])
            .arg(above)
            .arg(&name);
        let mut tar = tar.stdout(Stdio::piped()).spawn().context("start tar")?;
        let packed = tar.stdout.take().context("tar has no output")?;
        let out = fs::File::create(archive).with_context(|| format!("make {}", archive.display()))?;
        // Without the name and the time that gzip would write down.
        let gzip =
            Command::new("gzip").args(["-9n"]).stdin(packed).stdout(out).status().context("start gzip")?;
        let tar = tar.wait().context("wait for tar")?;
        ensure!(tar.success() && gzip.success(), "could not pack {}", archive.display());
        fs::remove_dir_all(&self.root).with_context(|| format!("remove {}", self.root.display()))
    }
}
