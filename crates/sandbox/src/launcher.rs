//! The launcher: the small process that holds all privilege. It is started before the server has a
//! second thread, leaves the host's file tree for an almost empty one, and from then on only forks:
//! a keeper for each run, a jail for each layer.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::ExitCode;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;

use crate::keeper::{self, Ground, Job};
use crate::protocol::{Event, Request};
use crate::setup::{self, Options};
use crate::step::{At, Failure};
use crate::sys::{self, Fork};
use crate::{jail, packet, store, trash};

/// Unpacks one layer: the compressed bytes, the directory to fill, what to do as JSON, and how to
/// mark a directory opaque; returns what happened as JSON of at most 48 KiB.
pub type UnpackFn = fn(
    input: File,
    root: OwnedFd,
    job: &str,
    mark_opaque: &mut dyn FnMut(BorrowedFd<'_>) -> io::Result<()>,
) -> String;

/// Makes an archive of one layer: where it goes, the directory, what to do as JSON, and how to see
/// whether a directory is marked opaque.
pub type PackFn = fn(
    output: File,
    root: BorrowedFd<'_>,
    job: &str,
    is_opaque: &mut dyn FnMut(BorrowedFd<'_>) -> io::Result<bool>,
) -> String;

/// What is done with layers in a jail, by those who know how.
#[derive(Clone, Copy, Debug)]
pub struct Jailed {
    pub unpack: UnpackFn,
    pub pack: PackFn,
}

/// `sandglass-launcher serve JSON`, with the server's socket as standard input, or
/// `sandglass-launcher run SPEC.json [LAYERS]`, which executes one spec by hand, or
/// `sandglass-launcher time SPEC.json LAYERS RUNS SPAWNERS [EVERY_US]`, which does that over and over, or
/// `sandglass-launcher mount SPEC.json LAYERS TIMES`, which only puts its root together.
pub fn main(jailed: Jailed) -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    let words: Vec<&str> = args.iter().skip(1).map(String::as_str).collect();
    match words[..] {
        ["serve", options] => serve(options, jailed),
        ["run", spec] => crate::by_hand::run(spec, None),
        ["run", spec, layers] => crate::by_hand::run(spec, Some(layers)),
        ["time", spec, layers, ref plan @ ..] => crate::bare_loop::time(spec, layers, plan),
        ["mount", spec, layers, times] => crate::bare_mount::mount(spec, layers, times),
        ["canary"] => crate::canary::main(None),
        ["canary", word] => crate::canary::main(Some(word)),
        _ => {
            eprintln!(
                "usage: sandglass-launcher run SPEC.json [LAYERS]\n       sandglass-launcher time SPEC.json LAYERS \
                 RUNS SPAWNERS [EVERY_US]\n       sandglass-launcher mount SPEC.json LAYERS TIMES\n(`serve` is \
                 started by sandglass itself)"
            );
            ExitCode::from(2)
        }
    }
}

fn serve(options: &str, jailed: Jailed) -> ExitCode {
    // Whatever the server was started with is none of ours, and less so any run's.
    let _ = sys::close_from(3);
    let socket = match take_stdin() {
        Ok(socket) => socket,
        Err(error) => {
            complain(&Failure::new("take the server's socket", error.to_string()));
            return ExitCode::FAILURE;
        }
    };
    let set_up = serde_json::from_str::<Options>(options)
        .map_err(|error| Failure::new("read options", error.to_string()))
        .and_then(|options| setup::set_up(&options));
    match set_up {
        Err(failure) => {
            let _ = packet::send(socket.as_fd(), &Err::<(), _>(run::SetupFailure::from(failure)), &[]);
            ExitCode::FAILURE
        }
        Ok((ground, hello, state)) => {
            let slots = BTreeSet::from_iter(0..hello.max_runs);
            let (children, deleting) = (HashMap::new(), BTreeSet::new());
            let mut launcher = Launcher { ground, socket, jailed, slots, children, deleting };
            let result = launcher.greet(&hello).and_then(|()| {
                launcher.empty_trash();
                launcher.run()
            });
            launcher.wait_for_children();
            launcher.ground.cgroups.remove_made();
            state.forget();
            if let Err(failure) = result {
                complain(&failure);
                return ExitCode::FAILURE;
            }
            ExitCode::SUCCESS
        }
    }
}

/// Says what went wrong, if anybody reads it: who has gone is no reason to end in the middle of something.
fn complain(failure: &Failure) {
    let stderr = io::stderr();
    // Nor if somebody holds it and doesn't read: the server waits for our end.
    let mut fds = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
    if matches!(poll(&mut fds, PollTimeout::from(1000u16)), Ok(ready) if ready > 0) {
        let _ = stderr.lock().write_all(format!("sandglass-launcher: {failure}\n").as_bytes());
    }
}

/// The server's socket, out of the place where every child would inherit it: a keeper or an init that
/// held it would hide the launcher's death from the server.
fn take_stdin() -> io::Result<OwnedFd> {
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    let null = File::open("/dev/null")?;
    sys::place(null.as_fd(), 0)?;
    Ok(socket)
}

struct Launcher {
    ground: Ground,
    socket: OwnedFd,
    jailed: Jailed,
    /// Slots whose ids nobody uses. A slot that was not left clean never comes back.
    slots: BTreeSet<u32>,
    children: HashMap<Pid, Option<u32>>,
    /// Those of them that only delete what nobody needs any more.
    deleting: BTreeSet<Pid>,
}

impl Launcher {
    fn greet(&self, hello: &crate::protocol::Hello) -> Result<(), Failure> {
        packet::send(self.socket.as_fd(), &Ok::<_, run::SetupFailure>(hello), &[]).at("greet server")
    }

    /// Until the server closes its socket, which is also what its death looks like.
    fn run(&mut self) -> Result<(), Failure> {
        let signals = child_signals().at("watch children")?;
        loop {
            let mut fds = [
                PollFd::new(self.socket.as_fd(), PollFlags::POLLIN),
                PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, PollTimeout::NONE) {
                Err(Errno::EINTR) => continue,
                result => result.at("wait for requests")?,
            };
            let (request, child) = (fds[0].any() == Some(true), fds[1].any() == Some(true));
            if child {
                while let Ok(Some(_)) = signals.read_signal() {}
                self.reap();
            }
            if request && !self.take(&signals)? {
                return Ok(());
            }
        }
    }

    /// `false` when the server is gone.
    fn take(&mut self, signals: &SignalFd) -> Result<bool, Failure> {
        let (request, fds) = match packet::receive::<Request>(self.socket.as_fd()) {
            Ok(Some(packet)) => packet,
            Ok(None) => return Ok(false),
            // A server that sends nonsense is broken, and its runs with it.
            Err(error) => return Err(error).at("read request"),
        };
        let mut fds = fds.into_iter();
        let Some(control) = fds.next() else { return Ok(true) };
        let slot = if matches!(request, Request::Prepare(_)) { self.slots.pop_first() } else { None };
        match sys::fork() {
            Ok(Fork::Parent(pid)) => {
                self.children.insert(pid, slot);
                if matches!(request, Request::Remove { .. } | Request::RemoveFormer) {
                    self.deleting.insert(pid);
                }
            }
            Ok(Fork::Child) => {
                // These two stay the launcher's alone: the server must see its end when it dies.
                sys::close_for_good(signals.as_fd());
                sys::close_for_good(self.socket.as_fd());
                std::process::exit(self.serve_child(request, slot, control, fds));
            }
            Err(errno) => {
                self.slots.extend(slot);
                let failure = Failure::new("fork keeper", errno.desc());
                let _ = packet::send(control.as_fd(), &Event::Failed(failure.into()), &[]);
            }
        }
        Ok(true)
    }

    fn serve_child(
        &self,
        request: Request,
        slot: Option<u32>,
        control: OwnedFd,
        mut fds: impl Iterator<Item = OwnedFd>,
    ) -> i32 {
        let answer = |event: &Event| {
            let _ = packet::send(control.as_fd(), event, &[]);
        };
        match request {
            Request::Prepare(outline) => {
                let Some(slot) = slot else {
                    answer(&Event::Failed(
                        Failure::new("take a slot", "every range of ids is in use").into(),
                    ));
                    return 0;
                };
                keeper::main(&self.ground, &Job { slot, control, outline: *outline })
            }
            Request::Unpack { layer, job } => {
                let Some(input) = fds.next() else {
                    answer(&Event::Failed(Failure::new("read request", "a descriptor is missing").into()));
                    return 0;
                };
                jail::unpack(&self.ground, &control, input, &layer, &job, self.jailed.unpack)
            }
            Request::Pack { layer, job } => {
                let Some(output) = fds.next() else {
                    answer(&Event::Failed(Failure::new("read request", "a descriptor is missing").into()));
                    return 0;
                };
                jail::pack(&self.ground, &control, output, &layer, &job, self.jailed.pack)
            }
            Request::Remove { layer } => self.delete(store::discard(&self.ground.layers, &layer), answer),
            Request::RemoveFormer => self.delete(store::discard_former(&self.ground.layers), answer),
            Request::Adopt { layer } => {
                let adopted = store::adopt(&self.ground.layers, &layer);
                answer(
                    &adopted.map_or_else(
                        |failure| Event::Failed(failure.into()),
                        |there| Event::Adopted { there },
                    ),
                );
                0
            }
        }
    }

    /// Deletes what was moved to the trash.
    fn delete(&self, discarded: Result<String, Failure>, answer: impl Fn(&Event)) -> i32 {
        let name = match discarded {
            Ok(name) => name,
            Err(failure) => {
                answer(&Event::Failed(failure.into()));
                return 0;
            }
        };
        answer(&Event::Removed);
        let deleted = trash::delete(&self.ground.layers, &name);
        answer(&deleted.map_or_else(|failure| Event::Failed(failure.into()), |()| Event::Deleted));
        0
    }

    /// What an earlier life left half done or half deleted goes while the work goes on.
    fn empty_trash(&mut self) {
        match sys::fork() {
            Ok(Fork::Parent(pid)) => {
                self.children.insert(pid, None);
                self.deleting.insert(pid);
            }
            Ok(Fork::Child) => {
                sys::close_for_good(self.socket.as_fd());
                if let Err(failure) = trash::empty(&self.ground.layers) {
                    complain(&failure);
                }
                std::process::exit(0);
            }
            Err(_) => {}
        }
    }

    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = sys::wait(None, false) {
            self.deleting.remove(&pid);
            if let Some(Some(slot)) = self.children.remove(&pid)
                && status == 0
            {
                self.slots.insert(slot);
            }
        }
    }

    /// The server is gone and so are its control sockets: every child ends by itself.
    fn wait_for_children(&mut self) {
        // The next start goes on with the trash; nobody shall wait for it now.
        for pid in &self.deleting {
            let _ = nix::sys::signal::kill(*pid, Signal::SIGKILL);
        }
        while !self.children.is_empty() {
            match sys::wait(None, true) {
                Ok(Some((pid, _))) => drop(self.children.remove(&pid)),
                Err(Errno::EINTR) => {}
                _ => return,
            }
        }
    }
}

/// The server decides when to end; a Ctrl-C in the terminal reaches us too and must not.
fn child_signals() -> nix::Result<SignalFd> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT] {
        signals.add(signal);
    }
    signals.thread_block()?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)
}
