//! Handing out the files that were asked for. The child that looks for them is the run's own user in the
//! run's own root, so it reaches nothing that the program itself could not have written out.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use super::confine::{self, Child, SETGID, SETUID};
use super::walk::Walk;
use crate::inside;
use crate::protocol::{LaunchOutputs, LaunchSpec, OUTPUTS_CPU_SECONDS, OUTPUTS_SECONDS};
use crate::step::Failure;

/// Who the run was, seen from outside.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ids {
    pub(crate) owner: u32,
    pub(crate) width: u32,
}

/// Returns when everything has been written to the pipe, or when that took too long.
pub(crate) fn collect(
    spec: &LaunchSpec,
    outputs: &LaunchOutputs,
    ids: Ids,
    root: &OwnedFd,
    pipe: OwnedFd,
    control: &OwnedFd,
) -> Result<(), Failure> {
    let child = Child::start([root.as_fd(), pipe.as_fd()], |[root, pipe]| {
        confine::enter(root.as_fd())?;
        become_run(spec, ids)?;
        confine::fence(OUTPUTS_CPU_SECONDS)?;
        Walk::new(root, File::from(pipe), outputs).run(&spec.workdir);
        Ok(())
    })?;
    // The server sees the end when the child has closed its end.
    drop(pipe);
    child.wait(control.as_fd(), Duration::from_secs(OUTPUTS_SECONDS))
}

/// As root of the run first, to look up who it ran as; a user who can't be found any more is its root.
fn become_run(spec: &LaunchSpec, ids: Ids) -> Result<(), Failure> {
    confine::become_user(ids.owner, ids.owner, SETUID | SETGID)?;
    let (uid, gid) = inside::identity(&spec.user, ids.width).map_or((0, 0), |who| (who.uid, who.gid));
    confine::become_user(ids.owner + uid, ids.owner + gid, 0)
}
