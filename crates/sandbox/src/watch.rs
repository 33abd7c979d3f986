//! One loop, a closed set of events: the command becomes the program, init reports or ends, the server
//! orders or is gone, a limit is reached. Deadlines are exact because nothing is polled that can be waited for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::eventfd::EventFd;
use nix::sys::time::TimeSpec;
use run::{Exit, KilledFor, Limits};

use crate::cgroup::{Account, RunGroup};
use crate::command::Said;
use crate::init::Report;
use crate::packet;
use crate::protocol::Order;

/// How long building the inside of a sandbox may take.
pub(crate) const SETUP_PATIENCE: Duration = Duration::from_secs(10);

/// The least time between two looks at the processor time: the error that this adds to a limit.
const CPU_STEP: Duration = Duration::from_millis(1);

/// What was seen, before anybody is reaped.
#[derive(Debug, Default)]
pub(crate) struct Ending {
    pub(crate) report: Option<Report>,
    pub(crate) killed_for: Option<KilledFor>,
    pub(crate) started: Option<Instant>,
    pub(crate) wall_deadline: Option<Instant>,
    /// What the cgroup had counted when the program started: our own work before that is not the run's.
    pub(crate) before: Account,
    pub(crate) cpu_limit_us: u64,
}

impl Ending {
    /// Whether init has said its last word of its own accord: its exit follows at once.
    pub(crate) fn init_ends_by_itself(&self) -> bool {
        self.killed_for.is_none() && matches!(self.report, Some(Report::Ended(_)))
    }
}

struct Watch<'a, F> {
    group: &'a RunGroup<'a>,
    limits: &'a Limits,
    ending: Ending,
    next_cpu_look: Option<Instant>,
    setup_deadline: Instant,
    announce: F,
}

/// Everything that can wake the keeper.
#[derive(Debug)]
pub(crate) struct Sources<'a> {
    pub(crate) init: &'a OwnedFd,
    pub(crate) sync: &'a OwnedFd,
    pub(crate) launch: &'a OwnedFd,
    pub(crate) control: &'a OwnedFd,
    pub(crate) oom: Option<&'a EventFd>,
}

/// Returns when the run has to end or has ended; the caller kills what is left.
pub(crate) fn watch<F: FnMut() -> io::Result<()>>(
    sources: &Sources<'_>,
    group: &RunGroup<'_>,
    limits: &Limits,
    announce: F,
) -> io::Result<Ending> {
    let Sources { init, sync, launch, control, oom } = *sources;
    let mut watch = Watch {
        group,
        limits,
        ending: Ending { cpu_limit_us: limits.cpu_time_ms.saturating_mul(1000), ..Ending::default() },
        next_cpu_look: None,
        setup_deadline: Instant::now() + SETUP_PATIENCE,
        announce,
    };
    loop {
        // Once the program has started, nobody holds the other end of `launch`: it would never be quiet.
        let started = watch.ending.started.is_some();
        let mut fds = vec![
            PollFd::new(sync.as_fd(), PollFlags::POLLIN),
            PollFd::new(control.as_fd(), PollFlags::POLLIN),
            PollFd::new(init.as_fd(), PollFlags::POLLIN),
        ];
        if !started {
            fds.push(PollFd::new(launch.as_fd(), PollFlags::POLLIN));
        }
        fds.extend(oom.map(|event| PollFd::new(event.as_fd(), PollFlags::POLLIN)));
        let left = watch.next_deadline().saturating_duration_since(Instant::now());
        match ppoll(&mut fds, Some(TimeSpec::from(left)), None) {
            Err(Errno::EINTR) => continue,
            result => result?,
        };
        let ready = |index: usize| fds.get(index).and_then(PollFd::any).unwrap_or(false);
        let struck = ready(if started { 3 } else { 4 });
        // The start and the report first: a command that ended before its limit was not killed for it.
        let done = (!started && ready(3) && watch.hear_start(launch.as_fd())?)
            || (ready(0) && watch.hear(sync.as_fd())?)
            || (ready(2) && watch.hear_the_rest(sync.as_fd())?)
            || (ready(1) && watch.obey(control.as_fd()))
            || (struck && oom.is_some_and(|oom| watch.wait_for_oom_kill(oom)))
            || watch.limit_reached()?;
        if done {
            return Ok(watch.ending);
        }
    }
}

impl<F: FnMut() -> io::Result<()>> Watch<'_, F> {
    fn next_deadline(&self) -> Instant {
        match (self.ending.wall_deadline, self.next_cpu_look) {
            (Some(wall), Some(cpu)) => wall.min(cpu),
            (wall, _) => wall.unwrap_or(self.setup_deadline),
        }
    }

    /// `true` when the command's process could not become the program.
    fn hear_start(&mut self, launch: BorrowedFd<'_>) -> io::Result<bool> {
        self.ending.report = match packet::receive::<Said>(launch)? {
            Some((Said::NotStarted(reason), _)) => Some(Report::Ended(Exit::NotStarted { reason })),
            Some((Said::Failed(failure), _)) => Some(Report::Failed(failure)),
            None => {
                let now = Instant::now();
                self.ending.started = Some(now);
                self.ending.before = self.group.cpu();
                self.ending.wall_deadline = Some(now + Duration::from_millis(self.limits.wall_time_ms));
                self.plan_cpu_look(0, now);
                // The server may be gone; its closed socket is seen in the next turn.
                let _ = (self.announce)();
                None
            }
        };
        Ok(self.ending.report.is_some())
    }

    /// `true` when init has said its last word or is gone.
    fn hear(&mut self, sync: BorrowedFd<'_>) -> io::Result<bool> {
        match packet::receive::<Report>(sync)? {
            Some((Report::Ready, _)) => Ok(false),
            Some((report, _)) => {
                self.ending.report = Some(report);
                Ok(true)
            }
            None => Ok(true),
        }
    }

    /// Init is dead, but what it said last may still be on its way: a short run's start and end arrive
    /// together. Its end of the socket is closed, so this can't wait.
    fn hear_the_rest(&mut self, sync: BorrowedFd<'_>) -> io::Result<bool> {
        while self.ending.report.is_none() && !self.hear(sync)? {}
        Ok(true)
    }

    fn obey(&mut self, control: BorrowedFd<'_>) -> bool {
        let reason = match packet::receive::<Order>(control) {
            Ok(Some((Order::Kill(reason), _))) => reason,
            Ok(Some((Order::Run | Order::Commit, _))) => return false,
            Ok(None) | Err(_) => KilledFor::ServerGone,
        };
        self.ending.killed_for = Some(reason);
        true
    }

    /// The event comes before the kill is counted, and the count is what the verdict is made of.
    fn wait_for_oom_kill(&self, oom: &EventFd) -> bool {
        // Read, so that it can be waited for again; it never blocks.
        let _ = oom.read();
        let deadline = Instant::now() + Duration::from_millis(50);
        while Instant::now() < deadline {
            if self.group.oom_kills() > 0 {
                return true;
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        false
    }

    fn limit_reached(&mut self) -> io::Result<bool> {
        let now = Instant::now();
        let Some(wall_deadline) = self.ending.wall_deadline else {
            return if now < self.setup_deadline {
                Ok(false)
            } else {
                Err(io::Error::new(io::ErrorKind::TimedOut, "building the sandbox took longer than 10 s"))
            };
        };
        if self.next_cpu_look.is_some_and(|look| look <= now) {
            let used = self.group.cpu_us().saturating_sub(self.ending.before.cpu_us);
            if used >= self.ending.cpu_limit_us {
                self.ending.killed_for = Some(KilledFor::CpuTime);
                return Ok(true);
            }
            self.plan_cpu_look(used, now);
        }
        if wall_deadline <= now {
            self.ending.killed_for = Some(KilledFor::WallTime);
            return Ok(true);
        }
        Ok(false)
    }

    /// The earliest moment at which the rest can be used up, if every processor works on it.
    fn plan_cpu_look(&mut self, used_us: u64, now: Instant) {
        let at_once = (crate::cgroup::online_cpus() as u64).min(self.limits.processes).max(1);
        let left = Duration::from_micros(self.ending.cpu_limit_us.saturating_sub(used_us) / at_once);
        self.next_cpu_look = now.checked_add(left.max(CPU_STEP));
    }
}
