//! How runs are asked for, whoever makes them: one after the other, by several at once, or in a crowd.
//! Plain threads, each with a client of its own, and a clock.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Mode {
    /// One client, a run every so often, or as soon as the one before has ended.
    Paced { every_us: u64, runs: u32, time_ms: u64 },
    /// Clients that each ask again as soon as they are answered.
    Closed { clients: u32, time_ms: u64 },
    /// All at the same moment, each by a client of its own.
    Burst { runs: u32 },
    /// One after the other at a fixed rate, whether or not the ones before have ended.
    Staggered { runs: u32, per_second: u32 },
}

impl Mode {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Mode::Paced { .. } => "paced",
            Mode::Closed { .. } => "closed",
            Mode::Burst { .. } => "burst",
            Mode::Staggered { .. } => "staggered",
        }
    }

    pub(crate) fn clients(self) -> u32 {
        match self {
            Mode::Paced { .. } => 1,
            Mode::Closed { clients, .. } => clients,
            Mode::Burst { runs } | Mode::Staggered { runs, .. } => runs,
        }
    }

    /// About how long a crowd will be at it, if one run takes that long. Others end by the clock.
    pub(crate) fn crowd(self, one: Duration, cores: u32) -> Duration {
        match self {
            Mode::Paced { .. } | Mode::Closed { .. } => Duration::ZERO,
            Mode::Burst { runs } | Mode::Staggered { runs, .. } => one * runs / cores,
        }
    }
}

/// What was measured.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Sample {
    /// Of each run: from the moment at which it was due or asked for to the end of its answer.
    pub(crate) latencies_us: Vec<u64>,
    /// From the first moment to the end of the last answer.
    pub(crate) wall_us: u64,
}

/// Asks for one run and checks how it ended.
pub(crate) trait Client: Send {
    fn run(&mut self) -> Result<()>;
}

/// Makes clients ahead of the clock and sends them off.
pub(crate) fn drive(mode: Mode, mut client: impl FnMut() -> Result<Box<dyn Client>>) -> Result<Sample> {
    let clients = (0..mode.clients()).map(|_| client()).collect::<Result<Vec<_>>>()?;
    let ready = Barrier::new(clients.len());
    let results: Vec<Result<Worked>> = thread::scope(|scope| {
        let ready = &ready;
        let work = |(number, mut client): (usize, Box<dyn Client>)| {
            let worker = move || {
                ready.wait();
                work(mode, number as u32, client.as_mut())
            };
            // A crowd of threads must not need a crowd's memory.
            thread::Builder::new().stack_size(128 << 10).spawn_scoped(scope, worker).context("start a thread")
        };
        let threads: Vec<_> = clients.into_iter().enumerate().map(work).collect();
        threads.into_iter().map(|thread| thread?.join().map_err(|_| anyhow!("a client panicked"))?).collect()
    });
    let worked = results.into_iter().collect::<Result<Vec<_>>>()?;
    let began = worked.iter().map(|worked| worked.began).min().context("there were no clients")?;
    let ended = worked.iter().map(|worked| worked.ended).max().context("there were no clients")?;
    let latencies_us = worked.into_iter().flat_map(|worked| worked.latencies_us).collect();
    Ok(Sample { latencies_us, wall_us: (ended - began).as_micros() as u64 })
}

/// One client, in this very thread.
pub(crate) fn alone(mode: Mode, client: &mut dyn Client) -> Result<Sample> {
    let Worked { latencies_us, began, ended } = work(mode, 0, client)?;
    Ok(Sample { latencies_us, wall_us: (ended - began).as_micros() as u64 })
}

/// What one client has done.
struct Worked {
    latencies_us: Vec<u64>,
    began: Instant,
    ended: Instant,
}

fn work(mode: Mode, number: u32, client: &mut dyn Client) -> Result<Worked> {
    let began = Instant::now();
    let mut latencies_us = Vec::new();
    let mut once = |due: Instant| {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        // What a client waits for its own turn counts only where the turn has a time.
        let from = if matches!(mode, Mode::Staggered { .. }) { due } else { Instant::now() };
        client.run()?;
        latencies_us.push(from.elapsed().as_micros() as u64);
        anyhow::Ok(())
    };
    match mode {
        Mode::Paced { every_us, runs, time_ms } => {
            let mut due = began;
            for _ in 0..runs {
                once(due)?;
                if began.elapsed() >= Duration::from_millis(time_ms) {
                    break;
                }
                due += Duration::from_micros(every_us);
            }
        }
        Mode::Closed { time_ms, .. } => {
            while began.elapsed() < Duration::from_millis(time_ms) {
                once(began)?;
            }
        }
        Mode::Burst { .. } => once(began)?,
        Mode::Staggered { per_second, .. } => once(began + Duration::from_secs(1) * number / per_second)?,
    }
    Ok(Worked { latencies_us, began, ended: Instant::now() })
}
