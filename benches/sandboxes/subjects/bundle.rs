//! Runtimes that take an OCI bundle: a folder with a `config.json`, here as the runtime itself proposes it.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, ensure};
use support::{Finished, Folder, Value, json};

use super::Subject;
use super::command::{Commands, bare, installed, version};
use crate::load::{Mode, Sample};
use crate::workbench::{PROGRAMS, Program, Workbench};

pub(crate) struct Bundles {
    commands: Commands,
    /// Holds the bundles and the runtime's own state.
    _folder: Folder,
}

impl Bundles {
    pub(crate) fn new(runtime: &'static str, workbench: &Workbench) -> Result<Self> {
        let program = installed(runtime)?;
        let folder = Folder::new();
        for run in &PROGRAMS {
            write(&program, &folder.join(run.name), workbench, run)?;
        }
        let what =
            format!("`{runtime} run` of a bundle as `{runtime} spec` proposes it ({})", version(&program));
        let (place, number) = (folder.path().to_owned(), AtomicU64::new(0));
        let line = move |run: &Program| {
            let mut command = bare(&program);
            let id = format!("bench-{}-{}", std::process::id(), number.fetch_add(1, Ordering::Relaxed));
            command
                .arg("--root")
                .arg(place.join("state"))
                .args(["run", "--bundle"])
                .arg(place.join(run.name));
            command.arg(id);
            command
        };
        Ok(Self { commands: Commands { name: runtime, what, line: Arc::new(line) }, _folder: folder })
    }
}

fn write(runtime: &Path, bundle: &Path, workbench: &Workbench, run: &Program) -> Result<()> {
    fs::create_dir_all(bundle).context("make a bundle")?;
    let done = Finished::of(Command::new(runtime).arg("spec").current_dir(bundle));
    ensure!(done.status.success(), "spec: {}", done.stderr_text().trim());
    let path = bundle.join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).context("read config.json")?)?;
    config["process"]["terminal"] = json!(false);
    config["process"]["args"] = json!(run.argv);
    config["root"] = json!({ "path": workbench.root(), "readonly": true });
    let tmp =
        json!({ "destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev"] });
    config["mounts"].as_array_mut().context("config.json has no mounts")?.push(tmp);
    fs::write(path, config.to_string()).context("write config.json")
}

impl Subject for Bundles {
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
