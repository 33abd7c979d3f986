//! The keeper of one run: a child of the launcher that prepares a sandbox, waits to be told what runs in
//! it, watches until everything is dead, reports, and removes what it made.
//!
//! It is the only one that decides why a run was killed. Whatever happens to the server, the control
//! socket closes, and that ends the run.

#[cfg(feature = "removable-walls")]
mod again;
mod finish;
mod waiting;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::stat::{SFlag, fstat};
use nix::unistd::{Gid, Uid, fchown};

use self::finish::finish;
use self::waiting::{wait_for_run, wait_until_ready};
use crate::cgroup::{Account, Cgroups};
use crate::host::HostImage;
use crate::init::OldRoot;
use crate::prepare::{Init, Inner, Outer};
use crate::protocol::{Began, Event, Finished, LaunchSpec, Outline};
use crate::rootfs::LayerMode;
use crate::step::{At, Failure};
use crate::watch::{self, Left, Sources};
use crate::{after, packet, sys};

/// What every keeper inherits from the launcher.
#[derive(Debug)]
pub(crate) struct Ground {
    pub(crate) cgroups: Cgroups,
    pub(crate) layers: OwnedFd,
    pub(crate) devices: OwnedFd,
    pub(crate) host: Option<HostImage>,
    pub(crate) layer_mode: LayerMode,
    pub(crate) map_ids: bool,
    pub(crate) old_root: OldRoot,
    pub(crate) id_base: u32,
    pub(crate) id_width: u32,
    pub(crate) capabilities: u64,
}

/// One request for a sandbox.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) slot: u32,
    pub(crate) control: OwnedFd,
    pub(crate) outline: Outline,
}

/// What a sandbox is told to run.
struct Told {
    spec: LaunchSpec,
    /// The spec's own file, the three standard streams, and the files' contents.
    fds: Vec<OwnedFd>,
    /// The pipe for the files that are wanted of it.
    outputs: Option<OwnedFd>,
    /// When its way to the start began.
    arrived: Instant,
}

/// How long what was made may take to go away before it is reported as left behind.
const TEARDOWN_PATIENCE: Duration = Duration::from_secs(5);

/// What a keeper is called, for whoever looks at the machine's processes: one that has no run yet is
/// there on purpose.
const PREPARED: &std::ffi::CStr = c"prepared";
const KEEPER: &std::ffi::CStr = c"keeper";

/// Runs one job to its end; the returned code tells the launcher whether the slot is clean.
pub(crate) fn main(ground: &Ground, job: &Job) -> i32 {
    sys::set_name(PREPARED);
    let end = keep(ground, job);
    let event = match end.result {
        Ok(teardown_us) => Event::TornDown { teardown_us, clean: end.clean },
        Err(failure) => Event::Failed(failure.into()),
    };
    let _ = packet::send(job.control.as_fd(), &event, &[]);
    i32::from(!end.clean)
}

/// How a keeper's work ended.
struct End {
    /// How long cleaning up took, in microseconds, if the run came to an end of its own.
    result: Result<u64, Failure>,
    /// Whether nothing was left behind.
    clean: bool,
}

/// A run in which nothing lives any more, and what is left of it.
struct Over {
    finished: Finished,
    spec: LaunchSpec,
    outputs: Option<OwnedFd>,
    inner: Inner,
    /// Our own ends of its output pipes.
    held: Vec<OwnedFd>,
    /// Whether its init is alone, and waits.
    #[cfg(feature = "removable-walls")]
    alone: bool,
}

/// The whole life of a sandbox.
fn keep(ground: &Ground, job: &Job) -> End {
    let outer = match Outer::create(ground, job.slot, &job.outline) {
        Ok(outer) => outer,
        Err(failure) => return End { result: Err(failure), clean: true },
    };
    let result = outer.clone_init(&job.control).and_then(|init| {
        let lived = live(&outer, &init, &job.control);
        if lived.is_err() {
            outer.end(&init);
        }
        lived.map(|over| over.map(|over| (over, init)))
    });
    #[cfg(feature = "removable-walls")]
    let result =
        result.and_then(|over| over.map_or(Ok(None), |over| again::use_again(&outer, over, &job.control)));
    let result = match result {
        Ok(Some(over)) => Ok(Some(over)),
        // Nobody has come for it.
        Ok(None) => Ok(None),
        // A limit so small that even building broke it is still the run's limit.
        Err(failure) => match outer.group.oom_kills() {
            0 => Err(failure),
            oom_kills => {
                report(&job.control, &Finished { oom_kills, ..Finished::never_started() });
                Ok(None)
            }
        },
    };
    let result = result.map(|over| {
        over.map(|(mut over, init)| {
            // The last writers are gone in the same moment in which the end is told: the server wakes once.
            over.held.clear();
            report(&job.control, &over.finished);
            // An init that was alone has not been waited for, and nothing is unmounted under it.
            Outer::reap(&init);
            attend(&outer, over, &job.control)
        })
    });
    let torn = Instant::now();
    let result = result.map(drop);
    let clean = outer.group.remove(TEARDOWN_PATIENCE);
    End { result: result.map(|()| torn.elapsed().as_micros() as u64), clean }
}

fn report(control: &OwnedFd, finished: &Finished) {
    let _ = packet::send(control.as_fd(), &Event::Finished(Box::new(finished.clone())), &[]);
}

/// What is wanted of the files of a run in which nothing lives any more; what remains is to be removed.
fn attend(outer: &Outer<'_>, over: Over, control: &OwnedFd) -> Inner {
    let Over { finished, spec, outputs, mut inner, .. } = over;
    inner.unmount();
    let ids = after::Ids { owner: outer.owner, width: outer.ground.id_width };
    if let (Some(wanted), Some(pipe), Some(root)) = (&spec.outputs, outputs, &inner.root) {
        // What is missing at the other end of the pipe says as much as an error would.
        let _ = after::collect(&spec, wanted, ids, root, pipe, control);
    }
    if let Some(freeze) = &spec.freeze {
        let event = after::freeze(outer.ground, &finished, freeze, ids, &inner.scratch.mount, control);
        let _ = packet::send(control.as_fd(), &event, &[]);
    }
    inner
}

/// From the first step in the new namespaces to the death of everything in them; nothing where the
/// sandbox was not needed. On a failure init is still to be ended.
fn live(outer: &Outer<'_>, init: &Init, control: &OwnedFd) -> Result<Option<Over>, Failure> {
    let began = Instant::now();
    let mut inner = outer.prepare(init)?;
    if let Some(rootfs) = &outer.outline.rootfs {
        outer.give_root(init, &mut inner, rootfs, outer.outline.over.as_ref())?;
    }
    run_one(outer, init, inner, control, began)
}

/// The same from a sandbox that is as ready as it can be.
fn run_one(
    outer: &Outer<'_>,
    init: &Init,
    mut inner: Inner,
    control: &OwnedFd,
    began: Instant,
) -> Result<Option<Over>, Failure> {
    let Some((told, ready)) = wait_for_run(outer, init, control, began)? else {
        outer.end(init);
        return Ok(None);
    };
    sys::set_name(KEEPER);
    let Told { spec, fds, outputs, arrived } = told;
    let (before, held) = start(outer, init, &mut inner, &spec, fds, ready)?;
    let sources = Sources {
        init: &init.pidfd,
        sync: &init.sync,
        launch: &init.launch,
        control,
        oom: outer.oom.as_ref(),
    };
    let began = |started: Instant| Began {
        setup_us: started.saturating_duration_since(arrived).as_micros() as u64,
        ago_us: started.elapsed().as_micros() as u64,
    };
    let watched = watch::watch(&sources, &outer.group, &spec.limits, before, |started| {
        packet::send(control.as_fd(), &Event::Started(began(started)), &[])
    });
    let ending = watched.at("watch the run")?;
    #[cfg(feature = "removable-walls")]
    let alone = matches!(ending.left(), Left::Nothing);
    match ending.left() {
        Left::Nothing => {}
        Left::Dying => Outer::reap(init),
        Left::Alive => outer.end(init),
    }
    let began = ending.started.map(began);
    let finished = finish(ending, &outer.group, &inner.scratch.mount).map_err(|failure| {
        Failure::new("inside the sandbox", format!("{}: {}", failure.step, failure.error))
    })?;
    Ok(Some(Over {
        finished: Finished { began, ..finished },
        spec,
        outputs,
        inner,
        held,
        #[cfg(feature = "removable-walls")]
        alone,
    }))
}

/// Makes of the prepared sandbox the one that the run wants, and lets the command go. Returns what the sandbox
/// has used of the processor so far, and the outputs, which stay open here: a program that ends would
/// otherwise wake the server once for each of them, and it would take the processor from whoever has to find
/// out how the program ended.
fn start(
    outer: &Outer<'_>,
    init: &Init,
    inner: &mut Inner,
    spec: &LaunchSpec,
    mut fds: Vec<OwnedFd>,
    ready: Option<Account>,
) -> Result<(Account, Vec<OwnedFd>), Failure> {
    if !outer.outline.suits(spec) {
        return Err(Failure::new("read request", "the sandbox was prepared for another run"));
    }
    outer.adjust(inner, &spec.limits)?;
    let (uid, gid) = (Uid::from_raw(outer.owner), Gid::from_raw(outer.owner));
    for output in fds[2..4].iter().filter(|output| is_pipe(output)) {
        fchown(output, Some(uid), Some(gid)).at("hand outputs over")?;
    }
    #[cfg(feature = "removable-walls")]
    let outside = crate::dir::open_dir("/".as_ref()).at("open a directory to leak")?;
    // Before the root, from whose mount point a keeper on older kernels can't see the launcher's.
    outer.give_root(init, inner, &spec.rootfs, spec.over.as_ref())?;
    let account = ready.map_or_else(|| wait_until_ready(outer, init), Ok)?;
    #[cfg_attr(not(feature = "removable-walls"), expect(unused_mut, reason = "only a test build leaks one"))]
    let mut all: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    #[cfg(feature = "removable-walls")]
    if !spec.stands("no_leak") {
        all.push(outside.as_fd());
    }
    packet::send(init.launch.as_fd(), &(), &all).at("tell the command what to run")?;
    Ok((account, fds.drain(2..4).collect()))
}

/// Only the server's pipes change hands, never a file that somebody redirects a run to by hand.
pub(crate) fn is_pipe(fd: &OwnedFd) -> bool {
    fstat(fd).is_ok_and(|stat| SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFIFO)
}

/// The spec from its sealed file, in one read: the offset belongs to nobody.
pub(crate) fn read_spec(fd: &OwnedFd) -> io::Result<LaunchSpec> {
    let len = fstat(fd)?.st_size as usize;
    let mut bytes = vec![0; len];
    let read = nix::sys::uio::pread(fd, &mut bytes, 0)?;
    #[cfg_attr(not(feature = "removable-walls"), expect(unused_mut, reason = "only a test build changes it"))]
    let mut spec: LaunchSpec = serde_json::from_slice(&bytes[..read])?;
    #[cfg(feature = "removable-walls")]
    spec.take_limits_down();
    if spec.argv.is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "argv is empty"));
    }
    Ok(spec)
}
