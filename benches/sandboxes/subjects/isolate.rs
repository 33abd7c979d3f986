//! isolate, which counts a run's sandbox as a box: one is made, the program runs in it, and it is removed again.
//! Without `--cg`, which wants control groups of version 2 and a service of its own: then processor time and memory are
//! limits of each process, and there is no limit on all of them together.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Result, ensure};
use support::Finished;

use super::Subject;
use super::command::{Spawn, bare, installed, version};
use crate::load::{self, Client, Mode, Sample};
use crate::workbench::{PATH, Program, Workbench};

/// How many boxes its configuration has if nobody changes it.
const BOXES: u32 = 1000;

pub(crate) struct Isolate {
    what: String,
    lines: Arc<Lines>,
    /// Clients come and go, and there are never as many at once as there are boxes.
    clients: AtomicU32,
}

impl Isolate {
    pub(crate) fn new(workbench: &Workbench) -> Result<Self> {
        let program = installed("isolate")?;
        let what = format!(
            "`isolate --init`, `isolate --run` and `isolate --cleanup` ({}): a fresh box for each run, without `--cg`; \
             its limits of time and processes",
            version(&program)
        );
        let lines = Arc::new(Lines { program, root: workbench.root() });
        Ok(Self { what, lines, clients: AtomicU32::new(0) })
    }

    /// The commands of one run, each to be waited for.
    fn steps(&self, program: &Program) -> [impl Fn() -> Command + Send + use<>; 3] {
        let number = self.clients.fetch_add(1, Ordering::Relaxed) % BOXES;
        let argv = program.argv;
        [Step::Init, Step::Run, Step::Cleanup].map(|step| {
            let lines = Arc::clone(&self.lines);
            move || lines.line(number, step, argv)
        })
    }
}

impl Subject for Isolate {
    fn name(&self) -> &'static str {
        "isolate"
    }

    fn what(&self) -> String {
        self.what.clone()
    }

    fn try_out(&self, program: &Program) -> Result<()> {
        for step in self.steps(program) {
            let done = Finished::of(&mut step());
            ensure!(done.status.success(), "{}: {}", done.status, done.stderr_text().trim());
        }
        Ok(())
    }

    fn measure(&self, program: &Program, mode: Mode) -> Result<Option<Sample>> {
        let client = || {
            let steps = self.steps(program).map(Spawn::new).into_iter().collect::<Result<Vec<_>>>()?;
            Ok(Box::new(Steps(steps)) as _)
        };
        load::drive(mode, client).map(Some)
    }
}

/// What one client does for each run, one after the other.
struct Steps<F>(Vec<Spawn<F>>);

impl<F: Fn() -> Command + Send> Client for Steps<F> {
    fn run(&mut self) -> Result<()> {
        self.0.iter_mut().try_for_each(Client::run)
    }
}

#[derive(Clone, Copy)]
enum Step {
    Init,
    Run,
    Cleanup,
}

struct Lines {
    program: PathBuf,
    root: PathBuf,
}

impl Lines {
    fn line(&self, number: u32, step: Step, argv: &[&str]) -> Command {
        let mut command = bare(&self.program);
        command.arg(format!("--box-id={number}"));
        match step {
            Step::Init => command.arg("--init"),
            Step::Cleanup => command.arg("--cleanup"),
            Step::Run => {
                command.args(["--processes=64", "--time=60", "--wall-time=60"]).arg(format!("--env={PATH}"));
                command.args(seen(&self.root)).arg("--run").arg("--").args(argv)
            }
        };
        command
    }
}

/// What it shows by itself of this machine, it is to show of the tree.
fn seen(root: &Path) -> impl Iterator<Item = String> {
    ["bin", "lib", "lib64", "usr"]
        .into_iter()
        .map(|name| (name, root.join(name)))
        .filter(|(_, outside)| outside.exists())
        .map(|(name, outside)| format!("--dir={name}={}", outside.display()))
}
