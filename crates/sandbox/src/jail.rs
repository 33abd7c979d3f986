//! Unpacking one layer where it can do no harm: the compressed bytes of a stranger are inflated and
//! parsed by a process that has the new layer's directory as its root, no network, no other process,
//! three capabilities in a user namespace of its own, and a short list of system calls.
//!
//! What the jail can't do itself, marking a directory opaque for the overlay, it asks for by
//! handing out the directory's descriptor.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::stat::{Mode, SFlag, fstat, umask};
use nix::unistd::{Gid, Pid, Uid, fchdir, setgroups, setresgid, setresuid};
use serde::{Deserialize, Serialize};

use crate::init::{NEW_ROOT, replace_root};
use crate::keeper::Ground;
use crate::launcher::UnpackFn;
use crate::protocol::{Event, Order};
use crate::step::{At, Failure};
use crate::{dir, fence, packet, rootfs, seccomp, store, sys};

/// What says of a directory of a layer that it hides those below it.
pub(crate) fn opaque_name() -> &'static CStr {
    if rootfs::own_user_namespace() { USER_OPAQUE } else { OPAQUE }
}

const OPAQUE: &CStr = c"trusted.overlay.opaque";
/// The same for an overlay in a user namespace, where nobody may set the other.
const USER_OPAQUE: &CStr = c"user.overlay.opaque";

/// CHOWN, DAC_OVERRIDE and FOWNER: what it takes to write files as an image has them.
const CAPABILITIES: u64 = 1 << 0 | 1 << 1 | 1 << 3;

/// Where a jail's own descriptors begin.
const FIRST: i32 = 3;

/// No jail needs more: a zstd window of 128 MiB is the largest thing it holds.
const ADDRESS_SPACE_BYTES: u64 = 1 << 30;

/// Jail → its keeper.
#[derive(Debug, Serialize, Deserialize)]
enum Word {
    /// With the directory's descriptor.
    Opaque,
    Done(String),
    Failed(run::SetupFailure),
}

/// Unpacks, waits for the order to commit, commits. Returns the exit code for the launcher.
pub(crate) fn main(
    ground: &Ground,
    control: &OwnedFd,
    input: OwnedFd,
    layer: &str,
    job: &str,
    unpack: UnpackFn,
) -> i32 {
    let name = format!("{}-{layer}", std::process::id());
    let control = control.as_fd();
    match unpack_and_commit(ground, control, input, layer, &name, job, unpack) {
        Ok(()) => {
            let _ = packet::send(control, &Event::Committed, &[]);
        }
        Err(failure) => {
            // Half a layer is worth nothing; if even this fails the next start removes it.
            let _ = store::abort(&name);
            let _ = packet::send(control, &Event::Failed(failure.into()), &[]);
        }
    }
    0
}

fn unpack_and_commit(
    ground: &Ground,
    control: BorrowedFd<'_>,
    input: OwnedFd,
    layer: &str,
    name: &str,
    job: &str,
    unpack: UnpackFn,
) -> Result<(), Failure> {
    store::check_name(layer)?;
    let tree = store::begin(&ground.layers, name).at("make layer directory")?;
    let (ours, theirs) = packet::pair().at("make jail socket")?;
    let network = if walls::stands("jail_network") { libc::CLONE_NEWNET } else { 0 };
    let namespaces = libc::CLONE_NEWUSER
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | network;
    let Some((pid, pidfd)) = sys::clone3(namespaces as u64, None).at("clone jail")? else {
        inside(&theirs, &input, job, unpack)
    };
    // The server must see when the jail has stopped reading.
    drop((theirs, input));
    let report = release(pid, &ours, &tree).and_then(|()| serve(&ours, &pidfd, control, &tree));
    let _ = sys::pidfd_kill(pidfd.as_fd());
    while let Err(Errno::EINTR) = sys::wait(Some(pid), true) {}
    packet::send(control, &Event::Unpacked { report: report? }, &[]).at("report layer")?;
    match packet::receive::<Order>(control).at("wait for commit")? {
        Some((Order::Commit, _)) => store::commit(&ground.layers, name, layer).at("commit layer"),
        _ => Err(Failure::new("wait for commit", "the layer was not wanted")),
    }
}

/// Maps every id to itself, so that files get the owners that the image says, and hands over the root.
fn release(pid: Pid, sync: &OwnedFd, tree: &OwnedFd) -> Result<(), Failure> {
    let process = dir::open_dir(format!("/proc/{pid}").as_ref()).at("open jail's proc")?;
    for name in ["uid_map", "gid_map"] {
        let all = dir::read(&process, "../self/uid_map").ok().and_then(|map| identity_map(&map));
        dir::write(&process, name, &all.unwrap_or_else(|| "0 0 4294967295".into()))
            .at("map ids of the jail")?;
    }
    let root = sys::open_tree(tree.as_fd(), c"").at("clone layer directory")?;
    sys::mount_set(root.as_fd(), sys::MOUNT_ATTR_NOSUID | sys::MOUNT_ATTR_NODEV, None)
        .at("restrict layer directory")?;
    packet::send(sync.as_fd(), &(), &[root.as_fd()]).at("release jail")
}

/// The same ids inside as outside, as far as there are any outside.
fn identity_map(own: &str) -> Option<String> {
    let lines: Option<Vec<String>> = own
        .lines()
        .map(|line| {
            let mut fields = line.split_whitespace();
            let (inside, _outside, len) = (fields.next()?, fields.next()?, fields.next()?);
            Some(format!("{inside} {inside} {len}\n"))
        })
        .collect();
    lines.map(|lines| lines.concat()).filter(|map| !map.is_empty())
}

/// Serves the jail until it is done; the server's closing of the control socket ends it.
fn serve(sync: &OwnedFd, jail: &OwnedFd, control: BorrowedFd<'_>, tree: &OwnedFd) -> Result<String, Failure> {
    loop {
        let mut fds = [
            PollFd::new(sync.as_fd(), PollFlags::POLLIN),
            PollFd::new(control, PollFlags::POLLIN),
            PollFd::new(jail.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Err(Errno::EINTR) => continue,
            result => result.at("wait for jail")?,
        };
        if fds[0].any() == Some(true) {
            match packet::receive::<Word>(sync.as_fd()).at("hear jail")? {
                Some((Word::Opaque, fds)) => {
                    let marked = fds.first().is_some_and(|fd| mark_opaque(fd, tree).is_ok());
                    packet::send(sync.as_fd(), &marked, &[]).at("answer jail")?;
                }
                Some((Word::Done(report), _)) => return Ok(report),
                Some((Word::Failed(failure), _)) => {
                    return Err(Failure::new(
                        "inside the jail",
                        format!("{}: {}", failure.step, failure.error),
                    ));
                }
                None => return Err(Failure::new("unpack layer", "the jail ended without a report")),
            }
        } else if fds[1].any() == Some(true) {
            return Err(Failure::new("unpack layer", "nobody wants the layer any more"));
        } else if fds[2].any() == Some(true) {
            return Err(Failure::new(
                "unpack layer",
                "the jail was killed, which happens when it breaks its rules",
            ));
        }
    }
}

/// The jail can only hand out directories that it can open, which are the layer's own.
pub(crate) fn mark_opaque(directory: &OwnedFd, tree: &OwnedFd) -> io::Result<()> {
    let (found, own) = (fstat(directory)?, fstat(tree)?);
    let is_dir = SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR;
    if !is_dir || found.st_dev != own.st_dev {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(sys::set_xattr(directory.as_fd(), opaque_name(), b"y")?)
}

fn inside(sync: &OwnedFd, input: &OwnedFd, job: &str, unpack: UnpackFn) -> ! {
    // What else the keeper has open, the whole store among it, is nothing for a stranger's archive.
    let kept =
        sys::keep_descriptors(FIRST, &[sync.as_fd(), input.as_fd()], walls::stands("jail_descriptors"));
    if let Ok([sync, input]) = kept.map_or_else(|_| Err(Vec::new()), <[OwnedFd; 2]>::try_from) {
        let word = match enter(sync.as_fd()) {
            Err(failure) => Word::Failed(failure.into()),
            Ok(root) => {
                let mut mark = |directory: BorrowedFd<'_>| ask_opaque(sync.as_fd(), directory);
                Word::Done(unpack(File::from(input), root, job, &mut mark))
            }
        };
        let _ = packet::send(sync.as_fd(), &word, &[]);
    }
    // Nothing is dropped: most descriptors are closed already.
    std::process::exit(0);
}

fn ask_opaque(sync: BorrowedFd<'_>, directory: BorrowedFd<'_>) -> io::Result<()> {
    packet::send(sync, &Word::Opaque, &[directory])?;
    match packet::receive::<bool>(sync)? {
        Some((true, _)) => Ok(()),
        _ => Err(io::Error::other("the directory could not be marked opaque")),
    }
}

fn enter(sync: BorrowedFd<'_>) -> Result<OwnedFd, Failure> {
    let (_, fds) = packet::receive::<()>(sync).at("wait for release")?.ok_or_else(abandoned)?;
    let tree = fds.into_iter().next().ok_or_else(abandoned)?;
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    setresgid(gid, gid, gid).at("become root of the jail")?;
    setgroups(&[]).at("become root of the jail")?;
    setresuid(uid, uid, uid).at("become root of the jail")?;
    sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as u64, 0).at("die with the keeper")?;
    sys::prctl(libc::PR_SET_DUMPABLE, 0, 0).at("forbid inspection")?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).at("make mounts private")?;
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let point = nix::fcntl::open(NEW_ROOT, flags, Mode::empty()).at("open root's mount point")?;
    sys::move_mount(tree.as_fd(), point.as_fd()).at("attach layer directory")?;
    fchdir(&tree).at("enter layer directory")?;
    if walls::stands("jail_root") {
        replace_root()?;
    }
    umask(Mode::empty());
    setrlimit(Resource::RLIMIT_CORE, 1, 1).at("set resource limits")?;
    setrlimit(Resource::RLIMIT_AS, ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES).at("set resource limits")?;
    let root = dir::open_dir(".".as_ref()).at("open layer directory")?;
    nix::sys::prctl::set_no_new_privs().at("set no_new_privs")?;
    if walls::stands("jail_landlock") {
        fence::put_up(&[root.as_fd()], fence::for_the_jail())?;
    }
    if walls::stands("jail_capabilities") {
        sys::set_capabilities(CAPABILITIES).at("drop capabilities")?;
    }
    if walls::stands("jail_filter") {
        sys::seccomp(&seccomp::jail_filter()).at("install jail filter")?;
    }
    Ok(root)
}

fn abandoned() -> Failure {
    Failure::new("wait for release", "the jail's keeper is gone")
}
