//! Programs that run to their end: our own binaries by hand, and tools that look at us from outside.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::place::programs;
use crate::scaled;

/// The longest that any program of the tests takes.
const LONGEST: Duration = Duration::from_secs(300);

/// The program under test.
pub fn sandglass() -> PathBuf {
    built("sandglass")
}

/// The program that it starts sandboxes with.
pub fn sandglass_launcher() -> PathBuf {
    built("sandglass-launcher")
}

fn built(name: &str) -> PathBuf {
    let path = programs().join(name);
    assert!(path.exists(), "{} is not there: run `cargo build` first", path.display());
    path
}

/// A tool that `cargo xtask test` installs; panics if it is missing.
pub fn tool(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"].map(PathBuf::from);
    let found = usual.into_iter().chain(std::env::split_paths(&path)).map(|folder| folder.join(name));
    let found = found.into_iter().find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("{name} is not installed: run `cargo xtask test`"))
}

/// A program that ran to its end, and what it said.
#[derive(Debug)]
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub took: Duration,
}

impl Finished {
    /// Runs the program with nothing on its standard input.
    #[track_caller]
    pub fn of(command: &mut Command) -> Self {
        Self::with_input(command, b"")
    }

    #[track_caller]
    pub fn with_input(command: &mut Command, input: &[u8]) -> Self {
        let started = Instant::now();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("start {command:?}: {error}"));
        let mut stdin = child.stdin.take().expect("stdin is a pipe");
        let output = std::thread::scope(|scope| {
            // A program that doesn't read it all is none of our business.
            scope.spawn(move || stdin.write_all(input));
            let pid = Pid::from_raw(child.id().cast_signed());
            let (done, waiting) = mpsc::sync_channel::<()>(0);
            // A child that never ends would hold the whole test run up.
            scope.spawn(move || {
                if waiting.recv_timeout(scaled(LONGEST)) == Err(mpsc::RecvTimeoutError::Timeout) {
                    let _ = kill(pid, Signal::SIGKILL);
                }
            });
            let output = child.wait_with_output().expect("wait for a child");
            drop(done);
            output
        });
        assert!(started.elapsed() < scaled(LONGEST), "{command:?} did not end");
        Self { status: output.status, stdout: output.stdout, stderr: output.stderr, took: started.elapsed() }
    }

    /// Runs a tool that is expected to succeed and returns what it printed.
    #[track_caller]
    pub fn output(program: &Path, args: &[&str]) -> String {
        let finished = Self::of(Command::new(program).args(args));
        assert!(finished.status.success(), "{} {args:?}: {}", program.display(), finished.stderr_text());
        finished.stdout_text()
    }

    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    pub fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub fn stderr_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}
