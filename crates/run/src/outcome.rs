//! How a run ended: the one place where "what the kernel saw" becomes "what the client is told".

use serde::{Deserialize, Serialize};

/// What became of the command itself, as the kernel reported it to the sandbox's init.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// It called `exit` with this code.
    Code(u8),
    /// This signal ended it.
    Signal(i32),
    /// It never ran: the program could not be started.
    NotStarted { reason: String },
    /// We never heard: init died before it could say (it was killed with everything else).
    Unknown,
}

/// Why the sandbox was ended from outside. The first reason counts; later ones are not recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KilledFor {
    WallTime,
    CpuTime,
    /// The server said that too much was written to an output.
    Output,
    /// A client or a shutdown asked for it.
    Cancel,
    /// The control socket closed: the server is gone and so is whoever would read this.
    ServerGone,
}

/// One of a run's two outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    Stdout,
    Stderr,
}

/// A step of the sandbox's set-up that failed, by name: our fault, never the program's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("sandbox set-up failed at {step}: {error}")]
pub struct SetupFailure {
    pub step: String,
    pub error: String,
}

/// Everything that is known when nothing of the run is alive any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    pub exit: Exit,
    pub killed_for: Option<KilledFor>,
    /// How often the kernel's OOM killer struck inside the run's cgroup.
    pub oom_kills: u64,
    /// The output that went past its cap, when crossing it is a reason to kill.
    pub output_exceeded: Option<Stream>,
}

/// How a run ended. A closed set; `name` is what clients and metrics see.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Exited { code: u8 },
    Signaled { signal: i32 },
    WallTimeLimit,
    CpuTimeLimit,
    MemoryLimit,
    OutputLimit { stream: Stream },
    Cancelled,
    ImageFailed { detail: String },
    StartFailed { reason: String },
    SandboxError { detail: String },
}

impl Outcome {
    /// Every name, in the order of the documentation.
    pub const NAMES: [&'static str; 10] = [
        "exited",
        "signaled",
        "wall_time_limit",
        "cpu_time_limit",
        "memory_limit",
        "output_limit",
        "cancelled",
        "image_failed",
        "start_failed",
        "sandbox_error",
    ];

    /// Memory first, because the kernel's own record of it can't be mistaken; then the first of our
    /// own kills; then an output past its cap (which may be known only after the command has ended);
    /// then what the kernel saw.
    pub fn judge(evidence: &Evidence) -> Outcome {
        if evidence.oom_kills > 0 {
            return Outcome::MemoryLimit;
        }
        match (evidence.killed_for, evidence.output_exceeded, &evidence.exit) {
            (Some(KilledFor::WallTime), _, _) => Outcome::WallTimeLimit,
            (Some(KilledFor::CpuTime), _, _) => Outcome::CpuTimeLimit,
            (Some(KilledFor::Output), stream, _) => {
                Outcome::OutputLimit { stream: stream.unwrap_or(Stream::Stdout) }
            }
            (Some(KilledFor::Cancel | KilledFor::ServerGone), _, _) => Outcome::Cancelled,
            (None, Some(stream), _) => Outcome::OutputLimit { stream },
            (None, None, Exit::Code(code)) => Outcome::Exited { code: *code },
            (None, None, Exit::Signal(signal)) => Outcome::Signaled { signal: *signal },
            (None, None, Exit::NotStarted { reason }) => Outcome::StartFailed { reason: reason.clone() },
            (None, None, Exit::Unknown) => {
                Outcome::SandboxError { detail: "init ended without saying how the command ended".into() }
            }
        }
    }

    pub fn name(&self) -> &'static str {
        match self {
            Outcome::Exited { .. } => "exited",
            Outcome::Signaled { .. } => "signaled",
            Outcome::WallTimeLimit => "wall_time_limit",
            Outcome::CpuTimeLimit => "cpu_time_limit",
            Outcome::MemoryLimit => "memory_limit",
            Outcome::OutputLimit { .. } => "output_limit",
            Outcome::Cancelled => "cancelled",
            Outcome::ImageFailed { .. } => "image_failed",
            Outcome::StartFailed { .. } => "start_failed",
            Outcome::SandboxError { .. } => "sandbox_error",
        }
    }

    pub fn exit_code(&self) -> Option<u8> {
        match self {
            Outcome::Exited { code } => Some(*code),
            _ => None,
        }
    }

    pub fn signal(&self) -> Option<i32> {
        match self {
            Outcome::Signaled { signal } => Some(*signal),
            _ => None,
        }
    }

    /// The outcome in words, with the limit that was in force as evidence.
    pub fn message(&self, limits: &crate::Limits) -> String {
        match self {
            Outcome::Exited { code } => format!("exited with code {code}"),
            Outcome::Signaled { signal } => format!("ended by {}", signal_name(*signal)),
            Outcome::WallTimeLimit => format!("killed after {} ms of wall time", limits.wall_time_ms),
            Outcome::CpuTimeLimit => format!("killed after {} ms of processor time", limits.cpu_time_ms),
            Outcome::MemoryLimit => {
                format!("the kernel's OOM killer struck at the memory limit of {} bytes", limits.memory_bytes)
            }
            Outcome::OutputLimit { stream: Stream::Stdout } => {
                format!("wrote more than {} bytes to stdout", limits.stdout_bytes)
            }
            Outcome::OutputLimit { stream: Stream::Stderr } => {
                format!("wrote more than {} bytes to stderr", limits.stderr_bytes)
            }
            Outcome::Cancelled => "cancelled before it ended".into(),
            Outcome::ImageFailed { detail } => detail.clone(),
            Outcome::StartFailed { reason } => reason.clone(),
            Outcome::SandboxError { detail } => detail.clone(),
        }
    }
}

/// The name by which people know a signal: `SIGSEGV`, `SIGRTMIN+3`.
pub fn signal_name(signal: i32) -> String {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE",
        "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ",
        "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    // 32 and 33 belong to the C library; SIGRTMIN, as programs see it, is 34.
    match signal {
        1..=31 => format!("SIG{}", NAMES[signal as usize - 1]),
        34 => "SIGRTMIN".into(),
        35..=64 => format!("SIGRTMIN+{}", signal - 34),
        _ => format!("signal {signal}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIGKILL: Exit = Exit::Signal(9);

    fn judge(exit: Exit, killed_for: Option<KilledFor>, oom_kills: u64, out: Option<Stream>) -> Outcome {
        Outcome::judge(&Evidence { exit, killed_for, oom_kills, output_exceeded: out })
    }

    #[test]
    fn without_a_kill_of_ours_the_kernel_is_believed() {
        for (exit, outcome) in [
            (Exit::Code(0), Outcome::Exited { code: 0 }),
            (Exit::Code(124), Outcome::Exited { code: 124 }),
            (Exit::Code(137), Outcome::Exited { code: 137 }),
            (Exit::Signal(9), Outcome::Signaled { signal: 9 }),
            (Exit::Signal(24), Outcome::Signaled { signal: 24 }),
            (Exit::NotStarted { reason: "x".into() }, Outcome::StartFailed { reason: "x".into() }),
        ] {
            assert_eq!(judge(exit.clone(), None, 0, None), outcome, "{exit:?}");
        }
        assert_eq!(judge(Exit::Unknown, None, 0, None).name(), "sandbox_error");
    }

    #[test]
    fn our_own_kill_is_never_reported_as_a_crash() {
        for (killed_for, name) in [
            (KilledFor::WallTime, "wall_time_limit"),
            (KilledFor::CpuTime, "cpu_time_limit"),
            (KilledFor::Output, "output_limit"),
            (KilledFor::Cancel, "cancelled"),
            (KilledFor::ServerGone, "cancelled"),
        ] {
            for exit in [SIGKILL, Exit::Code(0), Exit::Unknown] {
                assert_eq!(
                    judge(exit.clone(), Some(killed_for), 0, None).name(),
                    name,
                    "{killed_for:?} {exit:?}"
                );
            }
        }
    }

    #[test]
    fn memory_comes_before_everything_else() {
        for exit in [SIGKILL, Exit::Code(0), Exit::Code(137), Exit::Unknown] {
            for killed_for in [None, Some(KilledFor::WallTime), Some(KilledFor::Output)] {
                let outcome = judge(exit.clone(), killed_for, 1, Some(Stream::Stderr));
                assert_eq!(outcome, Outcome::MemoryLimit, "{exit:?} {killed_for:?}");
            }
        }
    }

    #[test]
    fn an_output_past_its_cap_counts_even_when_the_command_had_already_exited() {
        let outcome = judge(Exit::Code(0), None, 0, Some(Stream::Stderr));
        assert_eq!(outcome, Outcome::OutputLimit { stream: Stream::Stderr });
        let earlier = judge(SIGKILL, Some(KilledFor::WallTime), 0, Some(Stream::Stdout));
        assert_eq!(earlier, Outcome::WallTimeLimit);
    }

    #[test]
    fn signals_have_the_names_that_people_know() {
        for (number, name) in
            [(1, "SIGHUP"), (11, "SIGSEGV"), (31, "SIGSYS"), (34, "SIGRTMIN"), (64, "SIGRTMIN+30")]
        {
            assert_eq!(signal_name(number), name);
        }
    }
}
