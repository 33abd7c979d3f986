//! From root to nobody in particular: the server needs no privilege once its launcher is started.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use anyhow::Context;
use nix::unistd::{Gid, Uid, geteuid, setgroups, setresgid, setresuid};

use crate::config::Config;
use crate::keys;

/// Whom the server becomes where the machine has no user of that name. Nobody else has this number:
/// it is above what distributions hand out and below the ids of runs.
const FALLBACK_ID: u32 = 1_879_048_191;

/// A user to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
}

impl Identity {
    /// Whom to become: nobody where this process has become root of a namespace that it `entered`, and so
    /// is somebody without privilege outside, who alone can reach the data directory.
    pub fn to_become(user: &str, entered: bool) -> Option<Self> {
        if !geteuid().is_root() || entered {
            return None;
        }
        let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
        Some(find(&passwd, user).unwrap_or(Self { uid: FALLBACK_ID, gid: FALLBACK_ID }))
    }

    /// Becomes that user for good: no groups, no capabilities, no way back by any program.
    /// Must be called before this process has a second thread.
    fn assume(self) -> anyhow::Result<()> {
        let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        setgroups(&[]).context("give up groups")?;
        setresgid(gid, gid, gid).context("give up the group")?;
        setresuid(uid, uid, uid).context("give up being root")?;
        Ok(())
    }
}

/// Keeps nothing that was needed to start. Must be called before this process has a second thread.
pub fn give_up(identity: Option<Identity>) -> anyhow::Result<()> {
    identity.map_or(Ok(()), Identity::assume)?;
    // Those of a user namespace stay with its root until they are dropped.
    sandbox::drop_capabilities().context("give up capabilities")?;
    forbid_new_privileges()
}

/// No program that this process starts can gain privilege, whoever this process is.
pub fn forbid_new_privileges() -> anyhow::Result<()> {
    nix::sys::prctl::set_no_new_privs().context("forbid new privileges")
}

fn find(passwd: &str, user: &str) -> Option<Identity> {
    let line = passwd.lines().find(|line| line.split(':').next() == Some(user) && !user.is_empty())?;
    let mut fields = line.split(':').skip(2);
    let uid = fields.next()?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    // A user of that name who is root would make all of this pointless.
    (uid != 0).then_some(Identity { uid, gid })
}

/// Makes the folders of the data directory and gives the server those that are its own.
pub fn prepare_folders(config: &Config, server: Option<Identity>) -> anyhow::Result<()> {
    let _shown = keys::file::Shown::begin();
    let make = |path: &Path, mode: u32| {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(path)
            .with_context(|| format!("make {}", path.display()))
    };
    make(&config.data_dir, 0o755)?;
    make(&keys::file::folder(&config.data_dir), 0o750)?;
    if let Some(identity) = server {
        show(&keys::file::folder(&config.data_dir), identity)
            .with_context(|| format!("show the keys in {} to the server", config.data_dir.display()))?;
    }
    for dir in [config.records_dir(), config.files_dir(), config.runs_dir()] {
        make(&dir, 0o700)?;
        if let Some(identity) = server {
            give(&dir, identity).with_context(|| format!("give {} away", dir.display()))?;
        }
    }
    Ok(())
}

/// Gives a folder and what is in it to the server. Links are given, never followed.
fn give(path: &Path, to: Identity) -> std::io::Result<()> {
    let metadata = fs::symlink_metadata(path)?;
    if metadata.is_dir() {
        for entry in fs::read_dir(path)? {
            give(&entry?.path(), to)?;
        }
    }
    std::os::unix::fs::lchown(path, Some(to.uid), Some(to.gid))
}

/// Lets the server read what stays its owner's to write: hashes of keys.
fn show(folder: &Path, to: Identity) -> std::io::Result<()> {
    std::os::unix::fs::lchown(folder, None, Some(to.gid))?;
    show_to_group(folder, 0o050)?;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        std::os::unix::fs::lchown(entry.path(), None, Some(to.gid))?;
        if entry.file_type()?.is_file() && entry.file_name() != keys::file::LOCK {
            show_to_group(&entry.path(), 0o040)?;
        }
    }
    Ok(())
}

/// What somebody has put there may be hidden from all others.
fn show_to_group(path: &Path, bits: u32) -> std::io::Result<()> {
    let mode = fs::symlink_metadata(path)?.permissions().mode();
    if mode & bits == bits {
        Ok(())
    } else {
        fs::set_permissions(path, fs::Permissions::from_mode(mode | bits))
    }
}

/// The folder with Docker's credentials, as the server can read it: root's own is out of its reach,
/// so the file is copied beside the records, at every start anew.
pub fn docker_folder(config: &Config, server: Option<Identity>) -> anyhow::Result<Option<PathBuf>> {
    let original = Path::new(&config.docker_config);
    if config.docker_config.is_empty() || !original.is_file() {
        return Ok(None);
    }
    let Some(identity) = server else { return Ok(original.parent().map(Path::to_owned)) };
    let folder = config.data_dir.join("docker");
    let copy = || -> std::io::Result<()> {
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::DirBuilder::new().mode(0o700).create(&folder)?;
        let file = folder.join("config.json");
        fs::write(&file, fs::read(original)?)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o400))?;
        chown(&file, Some(identity.uid), Some(identity.gid))?;
        chown(&folder, Some(identity.uid), Some(identity.gid))
    };
    copy().with_context(|| format!("copy {} for the server", original.display()))?;
    Ok(Some(folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_and_root_is_not_one_of_them() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nsandglass:x:990:991::/:/sbin/nologin\nbroken:x\n";
        for (user, expected) in [
            ("sandglass", Some(Identity { uid: 990, gid: 991 })),
            ("root", None),
            ("broken", None),
            ("nobody", None),
            ("", None),
        ] {
            assert_eq!(find(passwd, user), expected, "{user}");
        }
    }
}
