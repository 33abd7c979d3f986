//! Inside the run's own root: looking up the user, making the working directory, laying files in.
//!
//! All of it happens after pivot_root, as root of the run's user namespace, so a path that the image
//! or the request names can reach nothing but the run itself. Magic links of `/proc` are refused:
//! they would lead to descriptors of init.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag};
use nix::sys::stat::{Mode, SFlag, fchmod, fstat, fstatat, mkdirat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, unlinkat};

use crate::dir;
use crate::passwd::{self, Identity};
use crate::protocol::{LaunchFile, LaunchSpec};

/// Opens a path of the run. Symbolic links of the image are followed, inside the run's root.
fn open(path: &Path, flags: OFlag, mode: Mode) -> nix::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC)
        .mode(mode)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let root = nix::fcntl::open("/", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    dir::openat2_again(&root, path, how)
}

/// A regular file of at most [`passwd::MAX_BYTES`]; anything else reads as empty.
fn read_small(path: &str) -> String {
    // Without O_NONBLOCK a FIFO in the image would hold us here.
    let Ok(fd) = open(path.as_ref(), OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY, Mode::empty())
    else {
        return String::new();
    };
    let regular = fstat(&fd)
        .is_ok_and(|stat| SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG);
    let mut bytes = Vec::new();
    if regular {
        let _ = File::from(fd).take(passwd::MAX_BYTES).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

pub(crate) fn identity(user: &str, id_width: u32) -> Result<Identity, String> {
    passwd::resolve(user, &read_small("/etc/passwd"), &read_small("/etc/group"), id_width)
}

/// Images leave `/etc/hosts` to the runtime; without it `localhost` has no address.
pub(crate) fn name_localhost() {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW;
    if let Ok(file) = open("/etc/hosts".as_ref(), flags, Mode::from_bits_truncate(0o644)) {
        let _ = nix::unistd::write(&file, b"127.0.0.1 localhost\n::1 localhost\n");
    }
}

/// The directory named `name` in the root, whatever the image had there before.
pub(crate) fn mount_point(name: &str) -> io::Result<OwnedFd> {
    let root = nix::fcntl::open("/", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?;
    let kind = fstatat(&root, name, nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW)
        .map(|stat| SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT);
    match kind {
        Ok(SFlag::S_IFDIR) => {}
        Ok(_) => {
            unlinkat(&root, name, UnlinkatFlags::NoRemoveDir)?;
            mkdirat(&root, name, Mode::from_bits_truncate(0o755))?;
        }
        Err(Errno::ENOENT) => mkdirat(&root, name, Mode::from_bits_truncate(0o755))?,
        Err(errno) => return Err(errno.into()),
    }
    dir::open_dir_beneath(&root, name, OFlag::O_PATH)
}

/// `/tmp` is there and everybody may write to it.
pub(crate) fn make_tmp() -> io::Result<()> {
    mount_point("tmp")?;
    let tmp = open("/tmp".as_ref(), OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW, Mode::empty())?;
    let sticky = Mode::from_bits_truncate(0o1777);
    if fstat(&tmp)?.st_mode & 0o7777 != sticky.bits() {
        fchmod(&tmp, sticky)?;
    }
    Ok(())
}

/// Makes the directory and its missing parents; what is made belongs to the user.
fn make_dirs(path: &Path, who: &Identity) -> io::Result<OwnedFd> {
    let open_dir = |path: &Path| open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY, Mode::empty());
    match open_dir(path) {
        Err(Errno::ENOENT) => {}
        result => return Ok(result?),
    }
    let mut at = PathBuf::from("/");
    let mut parent = open_dir(&at)?;
    for component in path.components() {
        match component {
            Component::Normal(name) => at.push(name),
            Component::ParentDir => {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "the path contains `..`"));
            }
            _ => continue,
        }
        parent = match open_dir(&at) {
            Err(Errno::ENOENT) => {
                mkdirat(&parent, at.file_name().unwrap_or_default(), Mode::from_bits_truncate(0o755))?;
                let made = open_dir(&at)?;
                fchown(&made, Some(Uid::from_raw(who.uid)), Some(Gid::from_raw(who.gid)))?;
                made
            }
            result => result?,
        };
    }
    Ok(parent)
}

pub(crate) fn make_workdir(workdir: &str, who: &Identity) -> Result<(), String> {
    make_dirs(workdir.as_ref(), who)
        .map(drop)
        .map_err(|error| format!("can't use the working directory {workdir:?}: {error}"))
}

/// Writes the request's files, in order, so that a later one replaces an earlier one.
pub(crate) fn lay_files(spec: &LaunchSpec, contents: &[OwnedFd], who: &Identity) -> Result<(), String> {
    for file in &spec.files {
        lay_file(&spec.workdir, file, contents, who)
            .map_err(|error| format!("can't write the file {:?}: {error}", file.path))?;
    }
    Ok(())
}

fn lay_file(workdir: &str, file: &LaunchFile, contents: &[OwnedFd], who: &Identity) -> io::Result<()> {
    let missing = |what| io::Error::new(io::ErrorKind::InvalidInput, what);
    let content = contents.get(file.descriptor).ok_or_else(|| missing("its content is missing"))?;
    let path = Path::new("/").join(workdir).join(&file.path);
    let name = path.file_name().ok_or_else(|| missing("it has no name"))?.to_owned();
    let parent = make_dirs(path.parent().unwrap_or(Path::new("/")), who)?;
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let create = || nix::fcntl::openat(&parent, name.as_os_str(), flags, Mode::from_bits_truncate(0o600));
    let fd = match create() {
        Err(Errno::EEXIST) => {
            unlinkat(&parent, name.as_os_str(), UnlinkatFlags::NoRemoveDir)?;
            create()?
        }
        result => result?,
    };
    let mut target = File::from(fd);
    dir::copy_range(content, file.offset, file.len, &mut target)?;
    fchown(target.as_fd(), Some(Uid::from_raw(who.uid)), Some(Gid::from_raw(who.gid)))?;
    Ok(fchmod(target.as_fd(), Mode::from_bits_truncate(file.mode & 0o777))?)
}
