//! Floor A: the program started and waited for, with no walls at all. Nobody can be faster.
//!
//! The programs must be those of the tree, with the libraries of the tree: so this program starts itself
//! in a mount namespace of its own, makes the tree its root, and spawns from there.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use support::{Finished, tool};

use super::Subject;
use super::command::{Spawn, bare};
use crate::load::{self, Mode, Sample};
use crate::workbench::{Program, Workbench};

/// The word that says that this program is floor A.
pub(crate) const WORD: &str = "floor";

/// The tree itself stays as it is. Whoever is in it when it becomes the root is in the root.
const ENTER: &str = "mount -t tmpfs tmpfs \"$0/tmp\" && mount --bind /dev \"$0/dev\" && mount -t proc proc \"$0/proc\" && cd \"$0\" && exec \"$@\"";

pub(crate) struct FloorA {
    root: PathBuf,
}

impl FloorA {
    pub(crate) fn new(workbench: &Workbench) -> Self {
        Self { root: workbench.root() }
    }
}

impl Subject for FloorA {
    fn name(&self) -> &'static str {
        "floor A"
    }

    fn what(&self) -> String {
        "vfork, exec and wait (`posix_spawn`) of the same program, without any walls".into()
    }

    fn try_out(&self, program: &Program) -> Result<()> {
        self.measure(program, Mode::Paced { every_us: 0, runs: 1, time_ms: 60_000 }).map(drop)
    }

    fn measure(&self, program: &Program, mode: Mode) -> Result<Option<Sample>> {
        let mut command = Command::new(tool("unshare"));
        command.args(["--mount", "--propagation=private", "sh", "-c", ENTER]).arg(&self.root);
        command.arg(std::env::current_exe().context("find this program")?);
        command.arg(WORD).arg(&self.root).arg(serde_json::to_string(&mode)?).args(program.argv);
        let done = Finished::of(&mut command);
        ensure!(done.status.success(), "{}", done.stderr_text().trim());
        serde_json::from_slice(&done.stdout).context("read floor A's sample").map(Some)
    }
}

pub(crate) fn main(root: &Path, mode: &str, argv: &[&str]) -> Result<()> {
    let mode = serde_json::from_str(mode).context("read the mode")?;
    std::os::unix::fs::chroot(root).context("enter the tree")?;
    let (program, args) = argv.split_first().context("no program")?;
    let client = || {
        let (program, args) =
            ((*program).to_owned(), args.iter().map(ToString::to_string).collect::<Vec<_>>());
        let command = move || {
            let mut command = bare(&program);
            command.args(&args);
            command
        };
        Ok(Box::new(Spawn::new(command)?) as _)
    };
    println!("{}", serde_json::to_string(&load::drive(mode, client)?)?);
    Ok(())
}
