//! A process that a test has started and that never outlives it.

use std::io::{BufRead, BufReader};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{scaled, within};

/// How long the last lines of a program may take after its end, where somebody else still holds its pipe.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// A running program, both of whose outputs are collected line by line.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: Arc<Log>,
    reader: Option<JoinHandle<()>>,
    patience: Duration,
}

#[derive(Debug, Default)]
struct Log {
    state: Mutex<State>,
    news: Condvar,
}

#[derive(Debug, Default)]
struct State {
    lines: Vec<String>,
    ended: bool,
}

impl Process {
    /// Starts the program in a process group of its own, so that a Ctrl-C at the tests leaves its end to us.
    #[track_caller]
    pub fn start(name: &str, mut command: Command) -> Self {
        let (output, ours) = std::io::pipe().expect("make a pipe");
        let again = ours.try_clone().expect("double a pipe");
        command.stdin(Stdio::null()).stdout(again).stderr(ours).process_group(0);
        let child = command.spawn().unwrap_or_else(|error| panic!("start {command:?}: {error}"));
        // Its ends of the pipe go with it, so that the pipe ends when the program does.
        drop(command);
        let log = Arc::new(Log::default());
        let writer = Arc::clone(&log);
        let reader = std::thread::spawn(move || {
            let mut lines = BufReader::new(output);
            let mut line = Vec::new();
            while lines.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
                writer.push(String::from_utf8_lossy(&line).trim_end().to_owned());
                line.clear();
            }
            writer.end();
        });
        Self { name: name.into(), child, log, reader: Some(reader), patience: Duration::from_secs(40) }
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a pid is small")
    }

    /// Everything that it has said so far.
    pub fn log(&self) -> String {
        self.log.lock().lines.join("\n")
    }

    /// Waits for a line for which `found` has an answer.
    #[track_caller]
    pub fn wait_for_line<T>(
        &self,
        what: &str,
        bound: Duration,
        mut found: impl FnMut(&str) -> Option<T>,
    ) -> T {
        let deadline = Instant::now() + scaled(bound);
        let mut seen = 0;
        let mut state = self.log.lock();
        loop {
            if let Some(answer) = state.lines[seen..].iter().find_map(|line| found(line)) {
                return answer;
            }
            seen = state.lines.len();
            let left = deadline.saturating_duration_since(Instant::now());
            if state.ended || left.is_zero() {
                let end = if state.ended { "it ended" } else { "it took too long" };
                let said = state.lines.join("\n");
                drop(state);
                panic!("{} never said {what}: {end}; it said:\n{said}", self.name);
            }
            state = self.log.news.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    pub fn signal(&self, signal: Signal) {
        // A process that is gone already is what whoever signals it wants.
        let _ = kill(Pid::from_raw(self.pid()), signal);
    }

    /// Its end, if it has come.
    pub fn try_wait(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("wait for a child")
    }

    /// Waits for its end, with a bound.
    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        let what = format!("the end of {}", self.name);
        let (patience, child) = (self.patience, &mut self.child);
        let status = within(patience, &what, || child.try_wait().expect("wait for a child"));
        self.log.wait_for_end(LAST_WORDS);
        status
    }

    /// Ends it as an operator would.
    #[track_caller]
    pub fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.wait()
    }

    /// Ends it as a power cut would.
    #[track_caller]
    pub fn kill9(&mut self) -> ExitStatus {
        self.signal(Signal::SIGKILL);
        self.wait()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let started = Instant::now();
        if self.try_wait().is_none() {
            self.signal(Signal::SIGTERM);
        }
        while self.try_wait().is_none() {
            if started.elapsed() > scaled(self.patience) {
                self.signal(Signal::SIGKILL);
                let _ = self.child.wait();
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        if std::thread::panicking() {
            let status = self.try_wait().unwrap_or_else(|| ExitStatus::from_raw(9));
            eprintln!("---- {} ({status}) said:\n{}\n----", self.name, self.log());
        }
        // Not joined: a grandchild that lives on would hold the pipe open, and the test with it.
        drop(self.reader.take());
    }
}

impl Log {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, line: String) {
        self.lock().lines.push(line);
        self.news.notify_all();
    }

    fn end(&self) {
        self.lock().ended = true;
        self.news.notify_all();
    }

    /// What a program said last comes through a pipe and so may come after its end. A child that outlives it may hold
    /// the pipe open for longer than anybody wants to wait.
    fn wait_for_end(&self, bound: Duration) {
        let _ = self.news.wait_timeout_while(self.lock(), bound, |state| !state.ended);
    }
}
