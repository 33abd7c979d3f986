//! Unpacking one layer where it can do no harm: the compressed bytes of a stranger are inflated and
//! parsed by a process that has the new layer's directory as its root, no network, no other process,
//! three capabilities in a user namespace of its own, and a short list of system calls.
//!
//! What the jail can't do itself, marking a directory opaque for the overlay, it asks for by
//! handing out the directory's descriptor. Making an archive of a layer again is done in the same jail, which
//! then sees the layer read-only and asks in the same way which directories are marked.

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
use crate::launcher::{PackFn, UnpackFn};
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

/// What a jail is for.
#[derive(Clone, Copy)]
enum Work {
    Unpack(UnpackFn),
    Pack(PackFn),
}

impl Work {
    /// What the jail's tree may not be used for.
    fn restrictions(self) -> u64 {
        let always = sys::MOUNT_ATTR_NOSUID | sys::MOUNT_ATTR_NODEV;
        match self {
            Self::Unpack(_) => always,
            Self::Pack(_) => always | sys::MOUNT_ATTR_RDONLY,
        }
    }

    /// Does it, inside.
    fn done(self, sync: &OwnedFd, stream: File, root: OwnedFd, job: &str) -> String {
        match self {
            Self::Unpack(unpack) => unpack(stream, root, job, &mut |dir| match ask(sync, dir)? {
                true => Ok(()),
                false => Err(io::Error::other("the directory could not be marked opaque")),
            }),
            Self::Pack(pack) => pack(stream, root.as_fd(), job, &mut |dir| ask(sync, dir)),
        }
    }

    /// Answers what the jail asks about one of its directories.
    fn opaque(self, directory: &OwnedFd, tree: &OwnedFd) -> bool {
        match self {
            Self::Unpack(_) => mark_opaque(directory, tree).is_ok(),
            Self::Pack(_) => {
                sys::get_xattr(directory.as_fd(), opaque_name()).is_some_and(|value| value == b"y")
            }
        }
    }
}

/// Jail → its keeper.
#[derive(Debug, Serialize, Deserialize)]
enum Word {
    /// With the directory's descriptor: mark it, or say whether it is marked.
    Opaque,
    Done(String),
    Failed(run::SetupFailure),
}

/// Unpacks, waits for the order to keep the layer, keeps it for as long as somebody asks for more. Returns the exit
/// code for the launcher.
pub(crate) fn unpack(
    ground: &Ground,
    control: &OwnedFd,
    input: OwnedFd,
    layer: &str,
    job: &str,
    unpack: UnpackFn,
) -> i32 {
    let name = format!("{}-{layer}", std::process::id());
    let control = control.as_fd();
    // One of its own, opened before anything is written: the kernel tells of what it could not write once to each.
    let layers = dir::open_dir_beneath(&ground.layers, ".", OFlag::O_RDONLY).at("open layers");
    let kept = layers.and_then(|layers| {
        unpack_layer(ground, control, input, layer, &name, job, unpack)
            .and_then(|()| keep(ground, &layers, control, &name, layer))
    });
    if let Err(failure) = kept {
        // Half a layer is worth nothing; if even this fails the next start removes it. One that has its name is
        // here no more.
        let _ = store::abort(&name);
        let _ = packet::send(control, &Event::Failed(failure.into()), &[]);
    }
    0
}

fn unpack_layer(
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
    let report = in_jail(control, input, &tree, job, Work::Unpack(unpack))?;
    packet::send(control, &Event::Unpacked { report }, &[]).at("report layer")
}

/// Makes an archive of a layer. Returns the exit code for the launcher.
pub(crate) fn pack(
    ground: &Ground,
    control: &OwnedFd,
    output: OwnedFd,
    layer: &str,
    job: &str,
    pack: PackFn,
) -> i32 {
    let packed = store::check_name(layer).and_then(|()| {
        let tree = dir::open_dir_beneath(&ground.layers, layer, OFlag::empty()).at("open layer")?;
        in_jail(control.as_fd(), output, &tree, job, Work::Pack(pack))
    });
    let event =
        packed.map_or_else(|failure| Event::Failed(failure.into()), |report| Event::Packed { report });
    let _ = packet::send(control.as_fd(), &event, &[]);
    0
}

/// Has the work done in a jail, and returns what it reports.
fn in_jail(
    control: BorrowedFd<'_>,
    stream: OwnedFd,
    tree: &OwnedFd,
    job: &str,
    work: Work,
) -> Result<String, Failure> {
    let (ours, theirs) = packet::pair().at("make jail socket")?;
    let network = if walls::stands("jail_network") { libc::CLONE_NEWNET } else { 0 };
    let namespaces = libc::CLONE_NEWUSER
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | network;
    let Some((pid, pidfd)) = sys::clone3(namespaces as u64, None).at("clone jail")? else {
        inside(&theirs, &stream, job, work)
    };
    // The server must see when the jail has stopped reading.
    drop((theirs, stream));
    let answer = |directory: &OwnedFd| work.opaque(directory, tree);
    let report = release(pid, &ours, tree, work).and_then(|()| serve(&ours, &pidfd, control, &answer));
    let _ = sys::pidfd_kill(pidfd.as_fd());
    while let Err(Errno::EINTR) = sys::wait(Some(pid), true) {}
    report
}

/// Waits for whoever decides about the layer. Layers of one image wait for each other, and one of them
/// is asked to sync for all, once they have their names.
fn keep(
    ground: &Ground,
    layers: &OwnedFd,
    control: BorrowedFd<'_>,
    name: &str,
    layer: &str,
) -> Result<(), Failure> {
    let Some((Order::Name, _)) = packet::receive::<Order>(control).at("wait for a name")? else {
        return Err(Failure::new("wait for a name", "the layer was not wanted"));
    };
    store::name(&ground.layers, name, layer).at("name layer")?;
    packet::send(control, &Event::Named, &[]).at("report layer")?;
    while let Some((Order::Sync, _)) = packet::receive::<Order>(control).at("wait for orders")? {
        nix::unistd::syncfs(layers).at("sync layers")?;
        packet::send(control, &Event::Synced, &[]).at("report layers")?;
    }
    Ok(())
}

/// Maps every id to itself, so that files get the owners that the image says, and hands over the root.
fn release(pid: Pid, sync: &OwnedFd, tree: &OwnedFd, work: Work) -> Result<(), Failure> {
    let process = dir::open_dir(format!("/proc/{pid}").as_ref()).at("open jail's proc")?;
    for name in ["uid_map", "gid_map"] {
        let all = dir::read(&process, "../self/uid_map").ok().and_then(|map| identity_map(&map));
        dir::write(&process, name, &all.unwrap_or_else(|| "0 0 4294967295".into()))
            .at("map ids of the jail")?;
    }
    let root = sys::open_tree(tree.as_fd(), c"").at("clone layer directory")?;
    sys::mount_set(root.as_fd(), work.restrictions(), None).at("restrict layer directory")?;
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
fn serve(
    sync: &OwnedFd,
    jail: &OwnedFd,
    control: BorrowedFd<'_>,
    opaque: &dyn Fn(&OwnedFd) -> bool,
) -> Result<String, Failure> {
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
                    packet::send(sync.as_fd(), &fds.first().is_some_and(opaque), &[]).at("answer jail")?;
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

fn inside(sync: &OwnedFd, stream: &OwnedFd, job: &str, work: Work) -> ! {
    // What else the keeper has open, the whole store among it, is nothing for a stranger's archive.
    let kept =
        sys::keep_descriptors(FIRST, &[sync.as_fd(), stream.as_fd()], walls::stands("jail_descriptors"));
    if let Ok([sync, stream]) = kept.map_or_else(|_| Err(Vec::new()), <[OwnedFd; 2]>::try_from) {
        let word = match enter(sync.as_fd()) {
            Err(failure) => Word::Failed(failure.into()),
            Ok(root) => Word::Done(work.done(&sync, File::from(stream), root, job)),
        };
        let _ = packet::send(sync.as_fd(), &word, &[]);
    }
    // Nothing is dropped: most descriptors are closed already.
    std::process::exit(0);
}

fn ask(sync: &OwnedFd, directory: BorrowedFd<'_>) -> io::Result<bool> {
    packet::send(sync.as_fd(), &Word::Opaque, &[directory])?;
    Ok(packet::receive::<bool>(sync.as_fd())?.is_some_and(|(answer, _)| answer))
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
