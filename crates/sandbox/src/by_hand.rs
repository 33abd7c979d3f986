//! `sandglass-launcher run SPEC.json`: one spec executed by hand, with this process's own standard
//! streams. The debugging tool and the unit under test are one.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;

use crate::keeper::{self, Job};
use crate::protocol::{Event, LaunchSpec, Outline};
use crate::setup::{self, Options};
use crate::step::{At, Failure};
use crate::sys::{self, Fork};
use crate::{client, packet};

/// The exit code for everything that is not the program's doing, as container tools have it.
const OUR_FAULT: u8 = 125;

/// A child does the work and leaves the host's file tree for it; this process stays, waits, and
/// removes the folder that the child needed.
pub(crate) fn in_child(work: impl FnOnce(&Path) -> Result<u8, Failure>) -> ExitCode {
    let state = std::env::temp_dir().join(format!("sandglass-by-hand-{}", std::process::id()));
    let code = match sys::fork() {
        Ok(Fork::Child) => std::process::exit(i32::from(work(&state).unwrap_or_else(|failure| {
            eprintln!("sandglass-launcher: {failure}");
            OUR_FAULT
        }))),
        Ok(Fork::Parent(child)) => match sys::wait(Some(child), true) {
            Ok(Some((_, status))) if libc::WIFEXITED(status) => libc::WEXITSTATUS(status) as u8,
            _ => OUR_FAULT,
        },
        Err(errno) => {
            eprintln!("sandglass-launcher: fork: {}", errno.desc());
            OUR_FAULT
        }
    };
    let _ = std::fs::remove_dir_all(&state);
    ExitCode::from(code)
}

pub(crate) fn run(spec: &str, layers: Option<&str>) -> ExitCode {
    in_child(|state| try_run(spec.as_ref(), layers.map(Path::new), state))
}

pub(crate) fn read_spec(path: &Path) -> Result<LaunchSpec, Failure> {
    let spec = std::fs::read(path).at("read spec")?;
    serde_json::from_slice(&spec).map_err(io::Error::from).at("read spec")
}

/// What a server would tell its launcher.
pub(crate) fn options(layers: Option<&Path>, state: &Path) -> Options {
    Options {
        program: Path::new("/proc/self/exe").into(),
        layers: layers.map_or_else(|| state.join("layers"), Path::to_owned),
        state: state.to_owned(),
        cgroup_parent: None,
        host_image: true,
        server_pid: std::process::id() as i32,
    }
}

fn try_run(spec: &Path, layers: Option<&Path>, state: &Path) -> Result<u8, Failure> {
    let spec = read_spec(spec)?;
    let options = options(layers, state);
    let stdio = own_stdio().at("take standard streams")?;
    let (ground, hello, noted) = setup::set_up(&options)?;
    eprintln!("{}", serde_json::to_string(&hello).unwrap_or_default());
    let (ours, theirs) = packet::pair().at("make control socket")?;
    client::run(ours.as_fd(), &spec, stdio.each_ref().map(AsFd::as_fd), &[]).at("send run")?;
    drop(stdio);
    let job = Job { slot: 0, control: theirs, outline: Outline::of(&spec) };
    let pid = match sys::fork().at("fork keeper")? {
        Fork::Child => {
            sys::close_for_good(ours.as_fd());
            std::process::exit(keeper::main(&ground, &job))
        }
        Fork::Parent(pid) => pid,
    };
    drop(job);
    let mut code = OUR_FAULT;
    while let Some((event, _)) = packet::receive::<Event>(ours.as_fd()).at("hear keeper")? {
        eprintln!("{}", serde_json::to_string(&event).unwrap_or_default());
        if let Event::Finished(finished) = &event
            && let run::Exit::Code(exit) = finished.exit
        {
            code = exit;
        }
    }
    let _ = sys::wait(Some(pid), true);
    ground.cgroups.remove_made();
    noted.forget();
    Ok(code)
}

fn own_stdio() -> io::Result<[OwnedFd; 3]> {
    let own = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned();
    // The command must not share a terminal with us, so its input is empty unless it is redirected.
    let stdin = if nix::unistd::isatty(io::stdin()).unwrap_or(false) {
        File::open("/dev/null")?.into()
    } else {
        own(io::stdin().as_fd())?
    };
    Ok([stdin, own(io::stdout().as_fd())?, own(io::stderr().as_fd())?])
}
