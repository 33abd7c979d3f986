//! Making a layer of what a prepared run has written. A child copies the run's writable layer into the
//! store, with the ids that the image's layers have; what it can't do without full privilege, reading and
//! setting the mark of an opaque directory, it asks for by handing out both directories.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use run::Exit;
use serde::{Deserialize, Serialize};

use super::collect::Ids;
use super::confine::{self, Child};
use super::copy::{Copy, CopyError};
use crate::init::NEW_ROOT;
use crate::keeper::Ground;
use crate::protocol::{Event, Finished, Freeze};
use crate::step::{At, Failure};
use crate::{dir, jail, packet, store, sys};

const PATIENCE: Duration = Duration::from_secs(60);

/// Of a processor: what is to be frozen is bounded in bytes, of which a name costs some.
const CPU_SECONDS: u64 = 30;

/// CHOWN, DAC_OVERRIDE and FOWNER: what it takes to read anybody's files and to write them as they are.
const CAPABILITIES: u64 = 1 << 0 | 1 << 1 | 1 << 3;

/// Child → keeper.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Word {
    /// With the directory and its copy: is it opaque?
    Directory,
    Done {
        bytes: u64,
    },
    Refused(String),
}

/// The event that tells what became of it. A run that did not end well is not worth keeping.
pub(crate) fn freeze(
    ground: &Ground,
    finished: &Finished,
    freeze: &Freeze,
    ids: Ids,
    scratch: &OwnedFd,
    control: &OwnedFd,
) -> Event {
    let ended_well =
        finished.exit == Exit::Code(0) && finished.killed_for.is_none() && finished.oom_kills == 0;
    if !ended_well {
        return Event::NotFrozen { reason: "the run did not exit with code 0".into() };
    }
    let name = format!("{}-frozen", std::process::id());
    match copy(ground, freeze, ids, scratch, control, &name) {
        Ok(bytes) => Event::Frozen { bytes },
        Err(failure) => {
            // If even this fails the next start removes it.
            let _ = store::abort(&name);
            Event::NotFrozen { reason: failure.to_string() }
        }
    }
}

fn copy(
    ground: &Ground,
    freeze: &Freeze,
    ids: Ids,
    scratch: &OwnedFd,
    control: &OwnedFd,
    name: &str,
) -> Result<u64, Failure> {
    store::check_name(&freeze.layer)?;
    let upper = dir::open_dir_beneath(scratch, "upper", OFlag::empty()).at("open upper directory")?;
    let tree = store::begin(&ground.layers, name).at("make layer directory")?;
    let empty = dir::open_dir(NEW_ROOT.as_ref()).at("open an empty directory")?;
    let (ours, theirs) = packet::pair().at("make helper's socket")?;
    let descriptors = [theirs.as_fd(), upper.as_fd(), tree.as_fd(), empty.as_fd()];
    let child = Child::start(descriptors, |[sync, upper, tree, empty]| {
        confine::enter(empty.as_fd())?;
        drop(empty);
        confine::become_user(0, 0, CAPABILITIES)?;
        confine::fence(CPU_SECONDS)?;
        let word = match Copy::new(&sync, &tree, ids, freeze.bytes_max).run(&upper) {
            Ok(bytes) => Word::Done { bytes },
            Err(CopyError(reason)) => Word::Refused(reason),
        };
        packet::send(sync.as_fd(), &word, &[]).at("report to keeper")
    })?;
    drop(theirs);
    let bytes = serve(&child, &ours, &tree, control)?;
    drop(child);
    store::keep_frozen(&ground.layers, name, &freeze.layer).at("keep layer")?;
    Ok(bytes)
}

/// Answers the child until it is done, dead, too slow, or not wanted any more.
fn serve(child: &Child, sync: &OwnedFd, tree: &OwnedFd, control: &OwnedFd) -> Result<u64, Failure> {
    let deadline = std::time::Instant::now() + PATIENCE;
    loop {
        let left = deadline.saturating_duration_since(std::time::Instant::now());
        if left.is_zero() {
            return Err(Failure::new("freeze the run", "it took too long"));
        }
        let mut fds = [
            PollFd::new(sync.as_fd(), PollFlags::POLLIN),
            PollFd::new(child.pidfd(), PollFlags::POLLIN),
            PollFd::new(control.as_fd(), PollFlags::empty()),
        ];
        match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
            Err(Errno::EINTR) => continue,
            result => result.at("wait for a helper")?,
        };
        if fds[0].any() == Some(true) {
            match packet::receive::<Word>(sync.as_fd()).at("hear a helper")? {
                Some((Word::Directory, fds)) => {
                    let answered = same_mark(&fds, tree).is_ok();
                    packet::send(sync.as_fd(), &answered, &[]).at("answer a helper")?;
                }
                Some((Word::Done { bytes }, _)) => return Ok(bytes),
                Some((Word::Refused(reason), _)) => return Err(Failure::new("freeze the run", reason)),
                None => return Err(Failure::new("freeze the run", "the helper ended without a word")),
            }
        } else if fds[1].any() == Some(true) {
            return Err(Failure::new("freeze the run", "the helper was killed"));
        } else if fds[2].any() == Some(true) {
            return Err(Failure::new("freeze the run", "nobody wants it any more"));
        }
    }
}

/// What hides lower directories goes on hiding them. The copy must be one of the layer's own directories.
fn same_mark(pair: &[OwnedFd], tree: &OwnedFd) -> std::io::Result<()> {
    let [from, to] = pair else { return Err(std::io::ErrorKind::InvalidInput.into()) };
    match sys::get_xattr(from.as_fd(), jail::opaque_name()) {
        Some(value) if value == b"y" => jail::mark_opaque(to, tree),
        _ => Ok(()),
    }
}
