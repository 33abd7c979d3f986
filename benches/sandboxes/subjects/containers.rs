//! Container engines with a command line of their own.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use support::Docker;

use super::Subject;
use super::command::{Commands, bare, installed, version};
use crate::load::{Mode, Sample};
use crate::workbench::{PROGRAMS, Program, Workbench};

/// Podman takes a folder as it is, so there is no image to be made. It has a choice of runtimes, of which
/// crun, its own first one, does not work where control groups of both versions are mixed.
pub(crate) fn podman(workbench: &Workbench) -> Result<Commands> {
    let program = installed("podman")?;
    let with = |runtime| podman_with(&program, runtime, workbench);
    let first = with("crun");
    if first.try_out(&PROGRAMS[0]).is_ok() { Ok(first) } else { Ok(with("runc")) }
}

/// Limits that it would raise are set to what anybody may have.
fn podman_with(program: &Path, runtime: &'static str, workbench: &Workbench) -> Commands {
    let said = version(program);
    let what =
        format!("`podman --runtime {runtime} run --rm --network none --read-only --rootfs …` ({said})");
    let (program, root) = (program.to_owned(), workbench.root());
    let line = move |run: &Program| {
        let mut command = bare(&program);
        command.args([
            "--runtime",
            runtime,
            "--cgroup-manager=cgroupfs",
            "--events-backend=none",
            "run",
            "--rm",
        ]);
        command.args(["--network=none", "--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"]);
        command.args(["--read-only", "--rootfs"]).arg(&root).args(run.argv);
        command
    };
    Commands { name: "podman", what, line: Arc::new(line) }
}

/// Docker with an engine of its own, which goes with this.
pub(crate) struct Engine {
    commands: Commands,
    _engine: Arc<Docker>,
}

impl Engine {
    pub(crate) fn new(workbench: &Workbench) -> Result<Self> {
        const IMAGE: &str = "bench";
        let program = installed("dockerd").and_then(|_| installed("docker"))?;
        let engine = Arc::new(Docker::empty());
        let tar = workbench.tar();
        engine.docker(&["import", tar.to_str().context("a path is text")?, IMAGE]);
        let what = format!("`docker run --rm --network none` ({})", version(&program));
        let client = Arc::clone(&engine);
        let line = move |run: &Program| {
            let mut command = client.command();
            command.args(["run", "--rm", "--network=none", IMAGE]).args(run.argv);
            command
        };
        Ok(Self { commands: Commands { name: "docker", what, line: Arc::new(line) }, _engine: engine })
    }
}

impl Subject for Engine {
    fn name(&self) -> &'static str {
        self.commands.name()
    }

    fn what(&self) -> String {
        self.commands.what()
    }

    fn try_out(&self, program: &Program) -> Result<()> {
        self.commands.try_out(program)
    }

    fn measure(&self, program: &Program, mode: Mode) -> Result<Option<Sample>> {
        self.commands.measure(program, mode)
    }
}
