//! Starts the same three programs in every way that this machine has to start them, in turns, and writes
//! down how long each took. `cargo xtask bench` runs it and makes a table and a plot of what it writes.
//!
//! `sandboxes OUTPUT.json [--quick]`, or `sandboxes phases OUTPUT.json`; and `sandboxes floor …` and
//! `sandboxes client …`, by which it starts itself as floor A and as the client that is observed.

mod load;
mod phases;
mod subjects;
mod workbench;

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use support::{Value, json};

use load::Mode;
use subjects::{Subject, floor_a};
use workbench::{PROGRAMS, Program, Workbench};

/// How much is measured.
struct Extent {
    quick: bool,
    rounds: usize,
    paced_runs: u32,
    /// The most that one paced or closed loop may take.
    time: Duration,
    /// A crowd that would take longer is not sent.
    crowd: Duration,
}

const QUICK: Extent = Extent {
    quick: true,
    rounds: 2,
    paced_runs: 100,
    time: Duration::from_millis(700),
    crowd: Duration::from_secs(4),
};

const FULL: Extent = Extent {
    quick: false,
    rounds: 3,
    paced_runs: 200,
    time: Duration::from_secs(2),
    crowd: Duration::from_secs(40),
};

const CROWD: u32 = 100;

fn main() -> Result<()> {
    // Cargo adds a word of its own.
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        [floor_a::WORD, root, mode, ref argv @ ..] => floor_a::main(root.as_ref(), mode, argv),
        [phases::WORD, address, request] => phases::main(address, request),
        ["phases", output] => phases::record(output),
        [output] => measure(output, &FULL),
        [output, "--quick"] => measure(output, &QUICK),
        _ => bail!("usage: sandboxes [phases] OUTPUT.json [--quick]; `cargo xtask bench` does the rest"),
    }
}

fn measure(output: &str, extent: &Extent) -> Result<()> {
    let machine = machine();
    let workbench = Workbench::prepare()?;
    let (subjects, mut left_out) = subjects::all(&workbench);
    let mut takes = Vec::new();
    for subject in &subjects {
        let mut failed = Vec::new();
        for program in &PROGRAMS {
            match try_out(subject.as_ref(), program) {
                Ok(took) => takes.push((subject.as_ref(), program, took)),
                Err(error) => failed.push((program.name, format!("{error:#}"))),
            }
        }
        left_out.extend(sum_up(subject.name(), failed));
    }
    let mut measures = Vec::new();
    for round in 0..extent.rounds {
        eprintln!("round {} of {}", round + 1, extent.rounds);
        for program in &PROGRAMS {
            for mode in modes(program, extent) {
                // Whoever is first in one round is last in the next but some.
                let mut turn: Vec<_> =
                    takes.iter().filter(|(_, other, _)| other.name == program.name).collect();
                let by = round % turn.len().max(1);
                turn.rotate_left(by);
                for (subject, _, took) in turn {
                    if mode.crowd(*took, cores()) > extent.crowd {
                        continue;
                    }
                    let sample = subject.measure(program, mode);
                    let sample =
                        sample.with_context(|| format!("{}, {}, {mode:?}", subject.name(), program.name))?;
                    let Some(sample) = sample else { continue };
                    measures.push(json!({
                        "subject": subject.name(), "program": program.name, "mode": mode.name(),
                        "clients": mode.clients(), "round": round,
                        "latencies_us": sample.latencies_us, "wall_us": sample.wall_us,
                    }));
                }
            }
        }
    }
    let subjects: Vec<_> =
        subjects.iter().map(|subject| json!({ "name": subject.name(), "what": subject.what() })).collect();
    let programs: Vec<_> =
        PROGRAMS.iter().map(|program| json!({ "name": program.name, "what": program.what })).collect();
    let left_out: Vec<_> = left_out.iter().map(|(what, why)| json!({ "what": what, "why": why })).collect();
    let all = json!({
        "machine": machine, "quick": extent.quick, "rounds": extent.rounds, "subjects": subjects,
        "programs": programs, "left_out": left_out, "measures": measures,
    });
    fs::write(output, all.to_string()).with_context(|| format!("write {output}"))
}

/// The first run shows whether it works at all; the second, about how long it takes.
fn try_out(subject: &dyn Subject, program: &Program) -> Result<Duration> {
    subject.try_out(program)?;
    let started = Instant::now();
    let once = Mode::Paced { every_us: 0, runs: 1, time_ms: 60_000 };
    let sample = subject.measure(program, once)?;
    let us = sample.and_then(|sample| sample.latencies_us.first().copied());
    Ok(us.map_or_else(|| started.elapsed(), Duration::from_micros))
}

/// Whoever can start none of the programs is left out once, not once for each.
fn sum_up(subject: &str, failed: Vec<(&str, String)>) -> Vec<(String, String)> {
    match failed
        .into_iter()
        .map(|(program, why)| (format!("{subject} with {program}"), why))
        .collect::<Vec<_>>()
    {
        all if all.len() == PROGRAMS.len() => {
            all.into_iter().take(1).map(|(_, why)| (subject.to_owned(), why)).collect()
        }
        some => some,
    }
}

/// The cheapest program is asked everything; the others, which mostly are busy with themselves, in a quick
/// run only what an answer takes alone and how many there are with every processor busy.
fn modes(program: &Program, extent: &Extent) -> Vec<Mode> {
    let time_ms = extent.time.as_millis() as u64;
    let busy = 2 * cores();
    let some = extent.quick && program.name != PROGRAMS[0].name;
    let mut modes = vec![Mode::Paced { every_us: 10_000, runs: extent.paced_runs, time_ms }];
    let mut clients = vec![1, 2, 4, 8, 16];
    if !clients.contains(&busy) {
        clients.push(busy);
    }
    clients.retain(|clients| !some || *clients == busy);
    modes.extend(clients.into_iter().map(|clients| Mode::Closed { clients, time_ms }));
    if !some {
        modes.extend([Mode::Burst { runs: CROWD }, Mode::Staggered { runs: CROWD, per_second: 200 }]);
    }
    modes
}

fn cores() -> u32 {
    std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32)
}

/// What one has to know of the machine to believe the numbers, or not to.
fn machine() -> Value {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let info = read("/proc/cpuinfo");
    let model = info.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    json!({
        "kernel": read("/proc/sys/kernel/osrelease"),
        "processor": model.trim_start_matches([' ', '\t', ':']),
        "cores": cores(),
        "memory": read("/proc/meminfo").lines().next().unwrap_or_default().trim_start_matches("MemTotal:").trim(),
        "load_before": read("/proc/loadavg"),
        "mounts": read("/proc/self/mounts").lines().count(),
    })
}
