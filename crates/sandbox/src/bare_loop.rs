//! `sandglass-launcher time SPEC.json LAYERS RUNS SPAWNERS [EVERY_US]`: the sandbox of a run around the
//! same program over and over, with no server, no HTTP and nothing prepared ahead. What the service adds
//! to the walls is the difference; the benchmark is made of it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use run::Exit;
use serde::{Deserialize, Serialize};

use crate::by_hand;
use crate::keeper::{self, Ground, Job};
use crate::protocol::{Event, LaunchSpec, Outline};
use crate::step::{At, Failure};
use crate::sys::{self, Fork};
use crate::worker::Worker;
use crate::{client, packet, setup};

/// How often, by how many at once, and how far apart one spawner's runs begin; as fast as it can where
/// that is nothing.
struct Plan {
    runs: u32,
    spawners: u32,
    every: Duration,
}

impl Plan {
    fn parse(words: &[&str]) -> Option<Self> {
        let mut numbers = words.iter().map(|word| word.parse::<u32>().ok());
        let (runs, spawners) = (numbers.next()??, numbers.next()??);
        let every = Duration::from_micros(numbers.next().unwrap_or(Some(0))?.into());
        (runs > 0 && spawners > 0).then_some(Self { runs, spawners, every })
    }
}

/// What is printed, as one line of JSON.
#[derive(Debug, Serialize)]
struct Measured {
    /// Of each run, from before its keeper is forked until nothing of it is left.
    latencies_us: Vec<u64>,
    /// From the first spawner's start to the last one's end.
    wall_us: u64,
}

/// What one spawner found.
#[derive(Debug, Serialize, Deserialize)]
struct Spawned {
    latencies_us: Vec<u64>,
    ended_us: u64,
}

pub(crate) fn time(spec: &str, layers: &str, words: &[&str]) -> ExitCode {
    let Some(plan) = Plan::parse(words) else {
        eprintln!("usage: sandglass-launcher time SPEC.json LAYERS RUNS SPAWNERS [EVERY_US]");
        return ExitCode::from(2);
    };
    by_hand::in_child(|state| {
        let measured = measure(spec.as_ref(), layers.as_ref(), state, &plan)?;
        println!("{}", serde_json::to_string(&measured).unwrap_or_default());
        Ok(0)
    })
}

fn measure(spec: &Path, layers: &Path, state: &Path, plan: &Plan) -> Result<Measured, Failure> {
    let spec = by_hand::read_spec(spec)?;
    let null: OwnedFd = File::options().read(true).write(true).open("/dev/null").at("open /dev/null")?.into();
    let (ground, hello, noted) = setup::set_up(&by_hand::options(Some(layers), state))?;
    let measured = if plan.spawners <= hello.max_runs {
        spawn(&ground, &spec, &null, plan)
    } else {
        let message = format!("{} spawners; there are ids for {} at most", plan.spawners, hello.max_runs);
        Err(Failure::new("take slots", message))
    };
    ground.cgroups.remove_made();
    noted.forget();
    measured
}

/// Each spawner is a process of its own, so that none waits for another.
fn spawn(ground: &Ground, spec: &LaunchSpec, null: &OwnedFd, plan: &Plan) -> Result<Measured, Failure> {
    let began = Instant::now();
    let mut spawners = Vec::new();
    for slot in 0..plan.spawners {
        spawners.push(Worker::start(|| run_all(ground, spec, null, slot, plan, began))?);
    }
    let mut measured = Measured { latencies_us: Vec::new(), wall_us: 0 };
    let mut failed = None;
    for spawner in spawners {
        match spawner.finish::<Spawned>() {
            Ok(spawned) => {
                measured.latencies_us.extend(spawned.latencies_us);
                measured.wall_us = measured.wall_us.max(spawned.ended_us);
            }
            Err(failure) => failed = Some(failure),
        }
    }
    failed.map_or(Ok(measured), Err)
}

fn run_all(
    ground: &Ground,
    spec: &LaunchSpec,
    null: &OwnedFd,
    slot: u32,
    plan: &Plan,
    began: Instant,
) -> Result<Spawned, Failure> {
    let mut latencies_us = Vec::with_capacity(plan.runs as usize);
    let first = Instant::now();
    for number in 0..plan.runs {
        std::thread::sleep((first + plan.every * number).saturating_duration_since(Instant::now()));
        let started = Instant::now();
        run_once(ground, spec, null, slot)?;
        latencies_us.push(started.elapsed().as_micros() as u64);
    }
    Ok(Spawned { latencies_us, ended_us: began.elapsed().as_micros() as u64 })
}

fn run_once(ground: &Ground, spec: &LaunchSpec, null: &OwnedFd, slot: u32) -> Result<(), Failure> {
    let (ours, theirs) = packet::pair().at("make control socket")?;
    client::run(ours.as_fd(), spec, [null.as_fd(); 3], &[]).at("send run")?;
    let job = Job { slot, control: theirs, outline: Outline::of(spec) };
    let pid = match sys::fork().at("fork keeper")? {
        Fork::Child => {
            sys::close_for_good(ours.as_fd());
            std::process::exit(keeper::main(ground, &job))
        }
        Fork::Parent(pid) => pid,
    };
    drop(job);
    let ended = hear(&ours);
    let _ = sys::wait(Some(pid), true);
    ended
}

/// Until nothing of the run is left. A run that went wrong is nothing to be measured.
fn hear(control: &OwnedFd) -> Result<(), Failure> {
    let mut exited = false;
    while let Some((event, _)) = packet::receive::<Event>(control.as_fd()).at("hear keeper")? {
        match event {
            Event::Finished(finished) if finished.exit == Exit::Code(0) => exited = true,
            Event::Finished(finished) => {
                return Err(Failure::new("run the program", format!("it ended with {:?}", finished.exit)));
            }
            Event::TornDown { clean: true, .. } if exited => return Ok(()),
            Event::TornDown { .. } => return Err(Failure::new("tear down", "something is left")),
            Event::Failed(failure) => return Err(Failure::new("make the sandbox", failure.to_string())),
            _ => {}
        }
    }
    Err(io::Error::from(io::ErrorKind::UnexpectedEof)).at("hear keeper")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_has_runs_and_spawners_and_may_have_a_pace() {
        let read = |words: &[&str]| {
            Plan::parse(words).map(|plan| (plan.runs, plan.spawners, plan.every.as_micros()))
        };
        assert_eq!(read(&["10", "2"]), Some((10, 2, 0)));
        assert_eq!(read(&["10", "2", "10000"]), Some((10, 2, 10_000)));
        for words in [&["10"][..], &["0", "1"], &["1", "0"], &["1", "1", "soon"], &["-1", "1"]] {
            assert_eq!(read(words), None, "{words:?}");
        }
    }
}
