//! Those that are a program which one starts for each run, and whose end is the run's end.

use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use support::Finished;

use super::Subject;
use crate::load::{self, Client, Mode, Sample};
use crate::workbench::{PATH, PROGRAMS, Program, Workbench};

/// The command line for one run of a program.
type Line = Arc<dyn Fn(&Program) -> Command + Send + Sync>;

pub(crate) struct Commands {
    pub(crate) name: &'static str,
    pub(crate) what: String,
    pub(crate) line: Line,
}

impl Subject for Commands {
    fn name(&self) -> &'static str {
        self.name
    }

    fn what(&self) -> String {
        self.what.clone()
    }

    fn try_out(&self, program: &Program) -> Result<()> {
        let done = Finished::of(&mut (self.line)(program));
        ensure!(done.status.success(), "{}: {}", done.status, done.stderr_text().trim());
        Ok(())
    }

    fn measure(&self, program: &Program, mode: Mode) -> Result<Option<Sample>> {
        let argv = program.argv;
        let client = || {
            let line = Arc::clone(&self.line);
            let program = Program { name: program.name, what: program.what, argv };
            Ok(Box::new(Spawn::new(move || line(&program))?) as _)
        };
        load::drive(mode, client).map(Some)
    }
}

/// Starts a program and waits for its end.
pub(crate) struct Spawn<F> {
    command: F,
    null: File,
}

impl<F: Fn() -> Command> Spawn<F> {
    pub(crate) fn new(command: F) -> Result<Self> {
        let null = File::options().read(true).write(true).open("/dev/null").context("open /dev/null")?;
        Ok(Self { command, null })
    }
}

impl<F: Fn() -> Command + Send> Client for Spawn<F> {
    fn run(&mut self) -> Result<()> {
        let null = || self.null.try_clone().map(Stdio::from);
        let mut command = (self.command)();
        let status = command.stdin(null()?).stdout(null()?).stderr(null()?).status();
        let status = status.with_context(|| format!("start {command:?}"))?;
        ensure!(status.success(), "{command:?}: {status}");
        Ok(())
    }
}

/// A program that is in one of the usual places, or why it can't be measured.
pub(crate) fn installed(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/bin", "/usr/sbin"].map(PathBuf::from).into_iter();
    let mut found = usual.chain(std::env::split_paths(&path)).map(|folder| folder.join(name));
    found.find(|path| path.is_file()).with_context(|| format!("{name} is not installed"))
}

/// The first line of what it says about its version.
pub(crate) fn version(program: &Path) -> String {
    let said = Finished::of(Command::new(program).arg("--version")).stdout_text();
    said.lines().next().unwrap_or_default().to_owned()
}

/// A command with nothing of this environment but where programs are.
pub(crate) fn bare(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    let (name, value) = PATH.split_once('=').unwrap_or_default();
    command.env_clear().env(name, value);
    command
}

pub(crate) fn bwrap(workbench: &Workbench) -> Result<Commands> {
    let (program, root) = (installed("bwrap")?, workbench.root());
    let what = format!(
        "`bwrap --unshare-all --die-with-parent --ro-bind … / --proc /proc --dev /dev --tmpfs /tmp` ({}); no limits",
        version(&program)
    );
    let line = move |run: &Program| {
        let mut command = bare(&program);
        command.args(["--unshare-all", "--die-with-parent", "--ro-bind"]).arg(&root).arg("/");
        command.args(["--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp", "--"]).args(run.argv);
        command
    };
    Ok(Commands { name: "bwrap", what, line: Arc::new(line) })
}

/// In its user namespace a `/proc` is mounted, which not every machine allows.
pub(crate) fn nsjail(workbench: &Workbench) -> Result<Commands> {
    let program = installed("nsjail")?;
    let first = nsjail_with(&program, workbench, &[]);
    if first.try_out(&PROGRAMS[0]).is_ok() {
        Ok(first)
    } else {
        Ok(nsjail_with(&program, workbench, &["--disable_proc"]))
    }
}

/// Programs that it starts are to be as important as everybody's, and to have as many files, and as large ones, as a
/// compiler needs.
fn nsjail_with(program: &Path, workbench: &Workbench, more: &'static [&'static str]) -> Commands {
    let words = more.iter().map(|word| format!(" {word}")).collect::<String>();
    let what = format!(
        "`nsjail -Mo --chroot … --user 99999 --group 99999 --tmpfsmount /tmp{words}`; limits of each process, no \
         control groups"
    );
    let (program, root) = (program.to_owned(), workbench.root());
    let line = move |run: &Program| {
        let mut command = bare(&program);
        command.args(["-Mo", "--really_quiet", "--chroot"]).arg(&root);
        command.args(["--user", "99999", "--group", "99999", "--tmpfsmount", "/tmp", "--env", PATH]);
        command.args(["--nice_level", "0", "--rlimit_as", "4096", "--rlimit_fsize", "64"]);
        command.args(["--rlimit_nofile", "256"]).args(more).arg("--").args(run.argv);
        command
    };
    Commands { name: "nsjail", what, line: Arc::new(line) }
}
