//! `sandglass-launcher run SPEC.json`: one spec executed by hand, with this process's own standard
//! streams. The debugging tool and the unit under test are one.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use crate::keeper::{self, Job};
use crate::protocol::Event;
use crate::setup::{self, Options};
use crate::step::{At, Failure};
use crate::sys::{self, Fork};
use crate::{client, packet};

pub(crate) fn run(spec: &str, layers: Option<&str>) -> ExitCode {
    match try_run(spec.as_ref(), layers.map(Path::new)) {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("sandglass-launcher: {failure}");
            ExitCode::from(125)
        }
    }
}

fn try_run(spec: &Path, layers: Option<&Path>) -> Result<ExitCode, Failure> {
    let spec = std::fs::read(spec).at("read spec")?;
    let spec = client::memfd("spec", &spec).at("hold spec")?;
    let state = std::env::temp_dir().join(format!("sandglass-by-hand-{}", std::process::id()));
    let options = Options {
        program: Path::new("/proc/self/exe").into(),
        layers: layers.map_or_else(|| state.join("layers"), Path::to_owned),
        state,
        cgroup_parent: None,
        host_image: true,
        server_pid: std::process::id() as i32,
    };
    let stdio = own_stdio().at("take standard streams")?;
    let (ground, hello, noted) = setup::set_up(&options)?;
    eprintln!("{}", serde_json::to_string(&hello).unwrap_or_default());
    let (ours, theirs) = packet::pair().at("make control socket")?;
    let job = Job { arrived: Instant::now(), slot: 0, control: theirs, spec, stdio, files: Vec::new() };
    let pid = match sys::fork().at("fork keeper")? {
        Fork::Child => {
            sys::close_in_child(ours.as_fd());
            std::process::exit(keeper::main(&ground, job))
        }
        Fork::Parent(pid) => pid,
    };
    drop(job);
    let mut code = ExitCode::from(125);
    while let Some((event, _)) = packet::receive::<Event>(ours.as_fd()).at("hear keeper")? {
        eprintln!("{}", serde_json::to_string(&event).unwrap_or_default());
        if let Event::Finished(finished) = &event
            && let run::Exit::Code(exit) = finished.exit
        {
            code = ExitCode::from(exit);
        }
    }
    let _ = sys::wait(Some(pid), true);
    ground.cgroups.remove_made();
    noted.forget();
    Ok(code)
}

fn own_stdio() -> std::io::Result<[OwnedFd; 3]> {
    let own = |fd: std::os::fd::BorrowedFd<'_>| fd.try_clone_to_owned();
    // The command must not share a terminal with us, so its input is empty unless it is redirected.
    let stdin = if nix::unistd::isatty(std::io::stdin()).unwrap_or(false) {
        File::open("/dev/null")?.into()
    } else {
        own(std::io::stdin().as_fd())?
    };
    Ok([stdin, own(std::io::stdout().as_fd())?, own(std::io::stderr().as_fd())?])
}
