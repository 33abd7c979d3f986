//! Everybody who can start a program here, each in its own usual way.

pub(crate) mod floor_a;
pub(crate) mod sandglass;

mod floor_b;

mod bundle;
mod command;
mod containers;
mod go_judge;
mod http;
mod isolate;

use anyhow::Result;

use crate::load::{Mode, Sample};
use crate::workbench::{Program, Workbench};

pub(crate) trait Subject {
    fn name(&self) -> &'static str;

    /// What it does, as a row of the legend.
    fn what(&self) -> String;

    /// One run that nobody measures, with an error that says what went wrong.
    fn try_out(&self, program: &Program) -> Result<()>;

    /// `None` where it can't be asked in that mode.
    fn measure(&self, program: &Program, mode: Mode) -> Result<Option<Sample>>;
}

/// What was left out, and why.
pub(crate) type LeftOut = Vec<(String, String)>;

/// Those that are there.
pub(crate) fn all(workbench: &Workbench) -> (Vec<Box<dyn Subject>>, LeftOut) {
    let mut subjects: Vec<Box<dyn Subject>> = Vec::new();
    let mut left_out = LeftOut::new();
    let mut add = |name: &str, subject: Result<Box<dyn Subject>>| match subject {
        Ok(subject) => subjects.push(subject),
        Err(error) => left_out.push((name.into(), format!("{error:#}"))),
    };
    add("floor A", Ok(Box::new(floor_a::FloorA::new(workbench))));
    add("floor B", floor_b::FloorB::new(workbench).map(|subject| Box::new(subject) as _));
    add("Sandglass", sandglass::Sandglass::new(workbench).map(|subject| Box::new(subject) as _));
    add("bwrap", command::bwrap(workbench).map(|subject| Box::new(subject) as _));
    add("nsjail", command::nsjail(workbench).map(|subject| Box::new(subject) as _));
    add("isolate", isolate::Isolate::new(workbench).map(|subject| Box::new(subject) as _));
    add("go-judge", go_judge::GoJudge::new(workbench).map(|subject| Box::new(subject) as _));
    for runtime in ["runc", "crun"] {
        add(runtime, bundle::Bundles::new(runtime, workbench).map(|subject| Box::new(subject) as _));
    }
    add("podman", containers::podman(workbench).map(|subject| Box::new(subject) as _));
    add("docker", containers::Engine::new(workbench).map(|subject| Box::new(subject) as _));
    (subjects, left_out)
}
