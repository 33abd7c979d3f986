//! `sandglass-launcher mount SPEC.json LAYERS TIMES`: the root of a run put together over and over, from the
//! names of its layers to one mounted file system that a sandbox is given. Nothing is run in it; the benchmark
//! of images is told how much of a sandbox's start its layers are.

use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use serde::Serialize;

use crate::by_hand;
use crate::keeper::Ground;
use crate::packet;
use crate::prepare::Outer;
use crate::protocol::Outline;
use crate::setup;
use crate::step::{At, Failure};
use crate::worker::Worker;

/// What is printed, as one line of JSON.
#[derive(Debug, Serialize)]
struct Mounted {
    /// Of each root, from the names of its layers until the sandbox has it.
    latencies_us: Vec<u64>,
}

pub(crate) fn mount(spec: &str, layers: &str, times: &str) -> ExitCode {
    let Some(times) = times.parse::<u32>().ok().filter(|times| *times > 0) else {
        eprintln!("usage: sandglass-launcher mount SPEC.json LAYERS TIMES");
        return ExitCode::from(2);
    };
    by_hand::in_child(|state| {
        let mounted = measure(spec.as_ref(), layers.as_ref(), state, times)?;
        println!("{}", serde_json::to_string(&mounted).unwrap_or_default());
        Ok(0)
    })
}

fn measure(spec: &Path, layers: &Path, state: &Path, times: u32) -> Result<Mounted, Failure> {
    let outline = Outline::of(&by_hand::read_spec(spec)?);
    let (ground, _, noted) = setup::set_up(&by_hand::options(Some(layers), state))?;
    // A process for each, as each keeper is one.
    let mount = |_| Worker::start(|| mount_once(&ground, &outline))?.finish();
    let mounted: Result<Vec<u64>, Failure> = (0..times).map(mount).collect();
    ground.cgroups.remove_made();
    noted.forget();
    mounted.map(|latencies_us| Mounted { latencies_us })
}

fn mount_once(ground: &Ground, outline: &Outline) -> Result<u64, Failure> {
    let Some(rootfs) = &outline.rootfs else { return Err(Failure::new("read spec", "it names no layers")) };
    let (control, _theirs) = packet::pair().at("make control socket")?;
    let outer = Outer::create(ground, 0, outline)?;
    let init = outer.clone_init(&control)?;
    let mounted = outer.prepare(&init).and_then(|mut inner| {
        let began = Instant::now();
        outer.give_root(&init, &mut inner, rootfs, outline.over.as_ref())?;
        Ok(began.elapsed().as_micros() as u64)
    });
    outer.end(&init);
    mounted
}
