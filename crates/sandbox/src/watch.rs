//! One loop, a closed set of events: the command becomes the program, init reports or ends, the server
//! orders or is gone, a limit is reached. Deadlines are exact because nothing is polled that can be waited for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll, ppoll};
use nix::sys::eventfd::EventFd;
use nix::sys::time::TimeSpec;
use run::{Exit, KilledFor, Limits};

use crate::cgroup::{Account, RunGroup};
use crate::command::Said;
use crate::init::{End, Report};
use crate::protocol::Order;
use crate::{packet, sys};

/// How long building the inside of a sandbox may take.
pub(crate) const SETUP_PATIENCE: Duration = Duration::from_secs(10);

/// The least time between two looks at the processor time: the error that this adds to a limit.
const CPU_STEP: Duration = Duration::from_millis(1);

/// How long a program runs before its start is worth waking somebody for. Of one that ends sooner the start
/// is told together with the end.
const START_LOOK: Duration = Duration::from_millis(2);

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
    /// The command's process has ended before it became the program, without a word.
    pub(crate) on_its_way: bool,
}

/// What is left of a run that has ended.
pub(crate) enum Left {
    /// An init that nothing can come from any more, and that waits to be killed.
    Nothing,
    /// An init that has said its last word of its own accord: its exit follows at once, and ends the rest.
    Dying,
    Alive,
}

impl Ending {
    pub(crate) fn left(&self) -> Left {
        match (&self.report, self.killed_for) {
            (Some(Report::Ended(end)), None) if end.alone => Left::Nothing,
            (Some(Report::Ended(_)), None) => Left::Dying,
            _ => Left::Alive,
        }
    }
}

struct Watch<'a, F> {
    group: &'a RunGroup<'a>,
    limits: &'a Limits,
    ending: Ending,
    next_cpu_look: Option<Instant>,
    setup_deadline: Instant,
    /// Until then nobody asks whether the program has started: it may have ended by then.
    start_look: Instant,
    /// Whether the command's process has become the program.
    executed: bool,
    announced: bool,
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

/// Returns when the run has to end or has ended; the caller kills what is left. `before` is what the cgroup
/// had counted when the command was told.
pub(crate) fn watch<F: FnMut(Instant) -> io::Result<()>>(
    sources: &Sources<'_>,
    group: &RunGroup<'_>,
    limits: &Limits,
    before: Account,
    announce: F,
) -> io::Result<Ending> {
    let Sources { init, sync, launch, control, oom } = *sources;
    let now = Instant::now();
    let soonest = Duration::from_millis(limits.wall_time_ms.min(limits.cpu_time_ms));
    let mut watch = Watch {
        group,
        limits,
        ending: Ending { cpu_limit_us: limits.cpu_time_ms.saturating_mul(1000), before, ..Ending::default() },
        next_cpu_look: None,
        setup_deadline: now + SETUP_PATIENCE,
        start_look: now + START_LOOK.min(soonest),
        executed: false,
        announced: false,
        announce,
    };
    loop {
        let mut fds = vec![
            PollFd::new(sync.as_fd(), PollFlags::POLLIN),
            PollFd::new(control.as_fd(), PollFlags::POLLIN),
            PollFd::new(init.as_fd(), PollFlags::POLLIN),
        ];
        fds.extend(oom.map(|event| PollFd::new(event.as_fd(), PollFlags::POLLIN)));
        // Once the program has started, nobody holds the other end of `launch`: it would never be quiet.
        if !watch.executed && watch.start_look <= Instant::now() {
            fds.push(PollFd::new(launch.as_fd(), PollFlags::POLLIN));
        }
        let left = watch.next_deadline().saturating_duration_since(Instant::now());
        match ppoll(&mut fds, Some(TimeSpec::from(left)), None) {
            Err(Errno::EINTR) => continue,
            result => result?,
        };
        let ready = |index: usize| fds.get(index).and_then(PollFd::any).unwrap_or(false);
        let struck = oom.filter(|_| ready(3));
        watch.hear_start(launch)?;
        // The start and the report first: a command that ended before its limit was not killed for it.
        let done = watch.ending.report.is_some()
            || (ready(0) && watch.hear(sync.as_fd())?)
            || (ready(2) && watch.hear_the_rest(sync.as_fd())?)
            || (ready(1) && watch.obey(control.as_fd()))
            || struck.is_some_and(|oom| watch.wait_for_oom_kill(oom))
            || watch.limit_reached()?;
        if done {
            return Ok(watch.ending);
        }
        watch.announce();
    }
}

/// A moment that another process has named.
pub(crate) fn instant(monotonic_ns: u64) -> Instant {
    let now = Instant::now();
    now.checked_sub(sys::monotonic().saturating_sub(Duration::from_nanos(monotonic_ns))).unwrap_or(now)
}

impl<F: FnMut(Instant) -> io::Result<()>> Watch<'_, F> {
    fn next_deadline(&self) -> Instant {
        let limit = match (self.ending.wall_deadline, self.next_cpu_look) {
            (Some(wall), Some(cpu)) => wall.min(cpu),
            (wall, _) => wall.unwrap_or(self.setup_deadline),
        };
        let looks = !self.executed && Instant::now() < self.start_look;
        if looks { limit.min(self.start_look) } else { limit }
    }

    /// Everything that the command's process has said by now: when it became the program, or why it could
    /// not.
    fn hear_start(&mut self, launch: &OwnedFd) -> io::Result<()> {
        while !self.executed && self.ending.report.is_none() && is_readable(launch)? {
            match packet::receive::<Said>(launch.as_fd())? {
                Some((Said::Ready, _)) => {}
                Some((Said::Starting(start), _)) => self.begin(instant(start.at_ns), start.cpu_us),
                Some((Said::NotStarted(reason), _)) => {
                    (self.ending.started, self.ending.wall_deadline) = (None, None);
                    let exit = Exit::NotStarted { reason };
                    self.ending.report = Some(Report::Ended(End { exit, at_ns: 0, alone: false }));
                }
                Some((Said::Failed(failure), _)) => self.ending.report = Some(Report::Failed(failure)),
                None => {
                    self.executed = true;
                    // Killed on its way. Where that was a limit's doing, or somebody's wish, it is the end of a run like
                    // any other.
                    if self.ending.started.is_none() {
                        self.ending.on_its_way = true;
                        self.begin(Instant::now(), 0);
                    }
                }
            }
        }
        Ok(())
    }

    fn begin(&mut self, at: Instant, cpu_us: u64) {
        self.ending.started = Some(at);
        self.ending.before.cpu_us += cpu_us;
        // Next to nothing of it is spent outside the kernel.
        self.ending.before.system_us += cpu_us;
        self.ending.wall_deadline = Some(at + Duration::from_millis(self.limits.wall_time_ms));
        self.plan_cpu_look(0, at);
    }

    /// Tells that a program has started which is still running.
    fn announce(&mut self) {
        let Some(started) = self.ending.started.filter(|_| self.executed && !self.announced) else { return };
        self.announced = true;
        // The server may be gone; its closed socket is seen in the next turn.
        let _ = (self.announce)(started);
    }

    /// `true` when init has said its last word or is gone.
    fn hear(&mut self, sync: BorrowedFd<'_>) -> io::Result<bool> {
        self.ending.report = packet::receive::<Report>(sync)?.map(|(report, _)| report);
        Ok(true)
    }

    /// Init is dead, but what it said last may still be on its way: a short run's start and end arrive
    /// together. Its end of the socket is closed, so this can't wait.
    fn hear_the_rest(&mut self, sync: BorrowedFd<'_>) -> io::Result<bool> {
        if self.ending.report.is_none() { self.hear(sync) } else { Ok(true) }
    }

    fn obey(&mut self, control: BorrowedFd<'_>) -> bool {
        let reason = match packet::receive::<Order>(control) {
            Ok(Some((Order::Kill(reason), _))) => reason,
            Ok(Some((Order::Run | Order::Name | Order::Sync, _))) => return false,
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

fn is_readable(socket: &OwnedFd) -> io::Result<bool> {
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    Ok(poll(&mut fds, PollTimeout::ZERO)? > 0)
}
