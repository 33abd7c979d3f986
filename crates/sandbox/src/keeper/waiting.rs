//! What a keeper does until it is told what to run: it hears its init, the command's process, and the server.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;

use super::{Told, read_spec};
use crate::cgroup::Account;
use crate::command::Said;
use crate::init::Report;
use crate::prepare::{Init, Outer};
use crate::protocol::{Event, Order};
use crate::step::{At, Failure};
use crate::watch::SETUP_PATIENCE;
use crate::{packet, rehearsal};

/// Until the server says what to run, or has no use for the sandbox any more. Also what the sandbox had
/// used of the processor when it was ready, if it has been by then.
pub(super) fn wait_for_run(
    outer: &Outer<'_>,
    init: &Init,
    control: &OwnedFd,
    began: Instant,
) -> Result<Option<(Told, Option<Account>)>, Failure> {
    // Init is building meanwhile.
    let _ = rehearsal::read_spec(outer.outline);
    rehearsal::write_report();
    let mut ready = None;
    let mut deadline = Some(began + SETUP_PATIENCE);
    // A sandbox whose layers nobody knows yet is as ready as it can be.
    if outer.outline.rootfs.is_none() {
        deadline = None;
        let _ = packet::send(control.as_fd(), &Event::Prepared, &[]);
    }
    loop {
        match wait(outer, init, Some(control), deadline)? {
            Woken::Order => {
                // A run that has been waiting for its sandbox has waited since that was begun.
                let arrived = if deadline.is_some() { began } else { Instant::now() };
                return Ok(receive_run(control, arrived)?.map(|told| (told, ready)));
            }
            Woken::Ready(account) => {
                (deadline, ready) = (None, Some(account));
                // The server may be gone; its closed socket is seen in the next turn.
                let _ = packet::send(control.as_fd(), &Event::Prepared, &[]);
            }
        }
    }
}

/// What there is to be done before anything runs.
enum Woken {
    /// The server has said something.
    Order,
    /// The command's process waits to be told. The sandbox used this much of the processor until then,
    /// and uses nothing while it waits.
    Ready(Account),
}

fn wait(
    outer: &Outer<'_>,
    init: &Init,
    control: Option<&OwnedFd>,
    deadline: Option<Instant>,
) -> Result<Woken, Failure> {
    loop {
        let sources = [Some(&init.launch), Some(&init.sync), control];
        let sources = sources.into_iter().flatten();
        let mut fds: Vec<_> = sources.map(|source| PollFd::new(source.as_fd(), PollFlags::POLLIN)).collect();
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        match ppoll(&mut fds, left.map(TimeSpec::from), None) {
            Err(Errno::EINTR) => continue,
            Ok(0) => return Err(Failure::new("prepare the sandbox", "it took longer than 10 s")),
            result => result.at("wait for a run")?,
        };
        let ready = |index: usize| fds.get(index).and_then(PollFd::any).unwrap_or(false);
        if ready(2) {
            return Ok(Woken::Order);
        }
        if ready(0) {
            hear_ready(init)?;
            return Ok(Woken::Ready(outer.group.cpu()));
        }
        return Err(match packet::receive::<Report>(init.sync.as_fd()).at("hear init")? {
            Some((Report::Failed(failure), _)) => Failure::new("inside the sandbox", failure.to_string()),
            Some((Report::Ended(_), _)) | None => Failure::new("prepare the sandbox", "its init has ended"),
        });
    }
}

pub(super) fn wait_until_ready(outer: &Outer<'_>, init: &Init) -> Result<Account, Failure> {
    let deadline = Some(Instant::now() + SETUP_PATIENCE);
    loop {
        if let Woken::Ready(account) = wait(outer, init, None, deadline)? {
            return Ok(account);
        }
    }
}

/// Init's own failure comes on another socket, and closes this one.
fn hear_ready(init: &Init) -> Result<(), Failure> {
    match packet::receive::<Said>(init.launch.as_fd()).at("hear the command's process")? {
        Some((Said::Ready, _)) => Ok(()),
        Some((Said::Failed(failure), _)) => Err(Failure::new("inside the sandbox", failure.to_string())),
        Some((Said::Starting(_) | Said::NotStarted(_), _)) => {
            Err(Failure::new("prepare the sandbox", "the command's process did not wait"))
        }
        None => Err(match packet::receive::<Report>(init.sync.as_fd()).at("hear init")? {
            Some((Report::Failed(failure), _)) => Failure::new("inside the sandbox", failure.to_string()),
            Some((Report::Ended(_), _)) | None => {
                Failure::new("prepare the sandbox", "the command's process has ended")
            }
        }),
    }
}

fn receive_run(control: &OwnedFd, arrived: Instant) -> Result<Option<Told>, Failure> {
    match packet::receive::<Order>(control.as_fd()) {
        Ok(Some((Order::Run, mut fds))) if fds.len() >= 4 => {
            let spec = read_spec(&fds[0]).at("read spec")?;
            let outputs = spec.outputs.as_ref().and_then(|_| fds.pop());
            Ok(Some(Told { spec, fds, outputs, arrived }))
        }
        Ok(Some((Order::Run, _))) => Err(Failure::new("read request", "a descriptor is missing")),
        Ok(Some((Order::Kill(_) | Order::Name | Order::Sync, _)) | None) | Err(_) => Ok(None),
    }
}
