//! What happens to a run's files when everything in it is dead: those that were asked for are handed out,
//! and a prepared run's are frozen into a layer.
//!
//! What the run has left is a stranger's work, so neither is done by a process that could do harm. Each is
//! a child of the keeper that has closed what it inherited, has no path to anything but what it works on,
//! has given up its privileges and may make few system calls; and each has a deadline.

mod collect;
mod confine;
mod copy;
mod freeze;
mod glob;
mod walk;

pub(crate) use collect::{Ids, collect};
pub(crate) use freeze::freeze;
