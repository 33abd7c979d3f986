//! What a build of the tests' tests does where the wall is down that gives each run a sandbox of its own.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use super::{Over, report, run_one};
use crate::packet;
use crate::prepare::{Init, Outer};
use crate::protocol::Event;
use crate::step::{At, Failure};

/// One run after the other, for as long as the server comes again, in what the first has left.
pub(super) fn use_again(
    outer: &Outer<'_>,
    (mut over, mut init): (Over, Init),
    control: &OwnedFd,
) -> Result<Option<(Over, Init)>, Failure> {
    while !walls::stands("sandbox_once") && over.alone {
        over.held.clear();
        report(control, &over.finished);
        let _ = packet::send(control.as_fd(), &Event::TornDown { teardown_us: 0, clean: true }, &[]);
        let (ours, theirs) = packet::pair().at("make launch socket")?;
        packet::send(init.sync.as_fd(), &(), &[theirs.as_fd()]).at("tell init of another run")?;
        drop(theirs);
        init.launch = ours;
        match run_one(outer, &init, over.inner, control, Instant::now()) {
            Ok(Some(next)) => over = next,
            nobody_or_failure => {
                outer.end(&init);
                return nobody_or_failure.map(|_| None);
            }
        }
    }
    Ok(Some((over, init)))
}
