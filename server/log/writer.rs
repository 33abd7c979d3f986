//! Takes lines to standard error without making anybody wait for whoever reads it. Who logs puts a line into a buffer
//! with a bound, and a thread of its own writes. A reader who stalls costs lines, which are counted, and never a run.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc::PIPE_BUF;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing::{Level, Metadata};

/// How much waits for the reader before plain lines are dropped.
const ROOM_BYTES: usize = 1 << 20;

/// The same for lines of the audit and for warnings: plain ones leave them as much again.
const ROOM_MOST_BYTES: usize = 2 * ROOM_BYTES;

/// A buffer that has grown beyond this is given back when it is empty.
const KEPT_BYTES: usize = 64 << 10;

/// The target of lines about calls that may have changed something.
pub const AUDIT: &str = "audit";

/// What was not written because nobody read it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    pub audit: u64,
    pub other: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Audit,
    /// A warning, an error, or what is said without any level.
    Urgent,
    Plain,
}

impl Kind {
    fn of(metadata: &Metadata<'_>) -> Self {
        match *metadata.level() {
            _ if metadata.target() == AUDIT => Self::Audit,
            Level::ERROR | Level::WARN => Self::Urgent,
            _ => Self::Plain,
        }
    }
}

#[derive(Debug, Default)]
struct Buffer {
    bytes: Vec<u8>,
    lines: Lost,
}

impl Buffer {
    /// `false` where there is no room for it.
    fn take(&mut self, line: &[u8], kind: Kind) -> bool {
        let room = if kind == Kind::Plain { ROOM_BYTES } else { ROOM_MOST_BYTES };
        if self.bytes.len() + line.len() > room {
            return false;
        }
        self.bytes.extend_from_slice(line);
        self.lines.add(kind);
        true
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(KEPT_BYTES);
        self.lines = Lost::default();
    }
}

impl Lost {
    fn add(&mut self, kind: Kind) {
        match kind {
            Kind::Audit => self.audit += 1,
            Kind::Urgent | Kind::Plain => self.other += 1,
        }
    }
}

#[derive(Debug)]
struct State {
    /// Until there is a thread that writes, who logs does.
    started: bool,
    buffer: Buffer,
    /// The thread has nothing to do and must be woken.
    sleeps: bool,
    /// Somebody wants to know when everything is written.
    awaited: bool,
}

#[derive(Debug)]
struct Out {
    state: Mutex<State>,
    news: Condvar,
    written: Condvar,
    lost: [AtomicU64; 2],
}

static OUT: Out = Out {
    state: Mutex::new(State {
        started: false,
        buffer: Buffer { bytes: Vec::new(), lines: Lost { audit: 0, other: 0 } },
        sleeps: false,
        awaited: false,
    }),
    news: Condvar::new(),
    written: Condvar::new(),
    lost: [AtomicU64::new(0), AtomicU64::new(0)],
};

/// Begins to write from a thread. Before that this process may have to have no second one.
pub(super) fn start() -> io::Result<()> {
    OUT.lock().started = true;
    let started = std::thread::Builder::new().name("log".into()).spawn(|| OUT.write_for_ever());
    if started.is_err() {
        OUT.lock().started = false;
    }
    started.map(drop)
}

/// Takes something that was not logged, one or more whole lines.
pub fn take(text: &[u8]) {
    OUT.take(text, Kind::Urgent);
}

/// Waits until everything is written, but not for longer than that.
pub(super) fn flush(patience: Duration) {
    OUT.flush(patience);
}

pub fn lost() -> Lost {
    let [audit, other] = &OUT.lost;
    Lost { audit: audit.load(Ordering::Relaxed), other: other.load(Ordering::Relaxed) }
}

impl Out {
    fn take(&self, line: &[u8], kind: Kind) {
        let mut state = self.lock();
        if !state.started {
            drop(state);
            // What nobody reads is lost.
            let _ = write_all(line);
            return;
        }
        let taken = state.buffer.take(line, kind);
        let sleeps = std::mem::take(&mut state.sleeps);
        drop(state);
        if !taken {
            let mut lost = Lost::default();
            lost.add(kind);
            self.count(lost);
        }
        if sleeps {
            self.news.notify_one();
        }
    }

    fn write_for_ever(&self) {
        let mut buffer = Buffer::default();
        let mut told = Lost::default();
        // The last line that was written has its end.
        let mut whole = true;
        loop {
            self.wait_for_lines(&mut buffer);
            if write_lines(&buffer.bytes, &mut whole).is_err() {
                self.count(buffer.lines);
            } else {
                tell_of_lost(&mut told);
            }
            buffer.clear();
        }
    }

    /// Exchanges an empty buffer for one that is not. Until the next call that one counts as not written.
    fn wait_for_lines(&self, buffer: &mut Buffer) {
        let mut state = self.lock();
        while state.buffer.bytes.is_empty() {
            state.sleeps = true;
            if std::mem::take(&mut state.awaited) {
                self.written.notify_all();
            }
            state = self.news.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.sleeps = false;
        std::mem::swap(&mut state.buffer, buffer);
    }

    fn flush(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        let mut state = self.lock();
        while state.started && !(state.sleeps && state.buffer.bytes.is_empty()) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            state.awaited = true;
            state = self.written.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn count(&self, lost: Lost) {
        let [audit, other] = &self.lost;
        audit.fetch_add(lost.audit, Ordering::Relaxed);
        other.fetch_add(lost.other, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic under this lock leaves the buffer whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says, now that lines are read again, how many were not.
fn tell_of_lost(told: &mut Lost) {
    let now = lost();
    if now == *told {
        return;
    }
    let (audit, lines) = (now.audit - told.audit, now.audit + now.other - told.audit - told.other);
    *told = now;
    tracing::warn!(lines, audit, "lines of the log were lost: its reader did not take them in time");
}

/// Writes lines, as many at once as nobody else's can come between.
fn write_lines(text: &[u8], whole: &mut bool) -> io::Result<()> {
    let mut left = text;
    if !*whole {
        write_all(b"\n")?;
        *whole = true;
    }
    while !left.is_empty() {
        let (piece, rest) = left.split_at(piece_of(left));
        *whole = false;
        write_all(piece)?;
        *whole = true;
        left = rest;
    }
    Ok(())
}

/// How many bytes are the first lines that a pipe takes in one piece; one line that is longer goes alone.
fn piece_of(text: &[u8]) -> usize {
    if text.len() <= PIPE_BUF {
        return text.len();
    }
    let end = |bytes: &[u8]| bytes.iter().rposition(|byte| *byte == b'\n').map(|at| at + 1);
    let first = || text.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
    end(&text[..PIPE_BUF]).or_else(first).unwrap_or(text.len())
}

/// Not by the standard library's handle, whose lock would be held for as long as the reader stalls.
fn write_all(mut text: &[u8]) -> io::Result<()> {
    let stderr = io::stderr();
    while !text.is_empty() {
        match nix::unistd::write(&stderr, text) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => text = &text[written..],
            Err(Errno::EINTR) => {}
            // Whoever gave it to us has made it so for somebody else.
            Err(Errno::EAGAIN) => {
                let mut fds = [PollFd::new(std::os::fd::AsFd::as_fd(&stderr), PollFlags::POLLOUT)];
                let _ = poll(&mut fds, PollTimeout::NONE);
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Makes a writer for each line that is logged.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lines;

/// Takes one line, which is written to it whole.
#[derive(Debug)]
pub(super) struct Line(Kind);

impl<'a> tracing_subscriber::fmt::MakeWriter<'a> for Lines {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line(Kind::Urgent)
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Line {
        Line(Kind::of(metadata))
    }
}

impl Write for Line {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        OUT.take(line, self.0);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_lines_leave_room_for_those_that_matter() {
        let mut buffer = Buffer::default();
        let line = vec![b'x'; ROOM_BYTES / 4];
        let kinds = [Kind::Plain, Kind::Audit, Kind::Plain, Kind::Urgent, Kind::Audit];
        let taken = kinds.map(|kind| (0..3).filter(|_| buffer.take(&line, kind)).count());
        assert_eq!(taken, [3, 3, 0, 2, 0]);
        assert_eq!(buffer.lines, Lost { audit: 3, other: 5 });
    }

    #[test]
    fn lines_are_written_in_pieces_that_end_where_a_line_does() {
        let line = |length: usize| format!("{}\n", "x".repeat(length - 1));
        let short = line(100);
        assert_eq!(piece_of(short.repeat(3).as_bytes()), 300);
        assert_eq!(piece_of(short.repeat(100).as_bytes()), PIPE_BUF / 100 * 100);
        assert_eq!(piece_of((line(PIPE_BUF + 10) + &short).as_bytes()), PIPE_BUF + 10);
        assert_eq!(piece_of((short + &line(PIPE_BUF)).as_bytes()), 100);
    }
}
