//! A hundred who want an image that is not here, all at the same moment: it is pulled once, and nobody waits
//! much longer than for that and for the runs before theirs.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use support::{Daemon, Value};

use crate::Row;
use crate::world::{World, median, nothing, pull, run};

const CROWD: usize = 100;

pub(crate) fn measure(world: &World) -> Result<Vec<Row>> {
    let image = world.image("gcc");
    let body = nothing(&image);
    let layers = world.registry.layers_of("gcc", "1");
    let downloads = || layers.iter().map(|digest| world.registry.downloads(digest)).collect::<Vec<_>>();
    let (mut pulls, mut runs, mut lasts, mut most) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for round in 0..world.rounds {
        eprintln!("  round {} of {}", round + 1, world.rounds);
        let daemon = world.fresh().start();
        pulls.push(pull(&daemon, &image)?.as_secs_f64());
        runs.push(last_of(&daemon, &body)?.as_secs_f64());
        drop(daemon);
        let (daemon, before) = (world.fresh().start(), downloads());
        lasts.push(last_of(&daemon, &body)?.as_secs_f64());
        most = downloads().iter().zip(before).map(|(after, before)| after - before).fold(most, usize::max);
    }
    let (pull, runs, last) = (median(&pulls), median(&runs), median(&lasts));
    Ok(vec![
        Row {
            what: format!("{CROWD} requests for an absent image: downloads of each layer"),
            unit: "",
            most: 1.0,
            measured: most as f64,
            of: format!("{} layers, {} rounds", layers.len(), world.rounds),
        },
        Row {
            what: format!(
                "{CROWD} requests for an absent image: last answer without the runs, ÷ a single pull"
            ),
            unit: "",
            most: 1.15,
            measured: (last - runs) / pull,
            of: format!(
                "medians of {} rounds: last answer {last:.2} s, {CROWD} runs {runs:.2} s, pull {pull:.2} s",
                world.rounds
            ),
        },
    ])
}

/// From the moment in which all of them ask to the last one's answer.
fn last_of(daemon: &Daemon, body: &Value) -> Result<Duration> {
    let ready = Barrier::new(CROWD + 1);
    std::thread::scope(|scope| {
        let ask = || {
            ready.wait();
            run(daemon, body).map(drop)
        };
        let asked: Vec<_> = (0..CROWD).map(|_| scope.spawn(ask)).collect();
        ready.wait();
        let began = Instant::now();
        for one in asked {
            one.join().map_err(|_| anyhow!("a client panicked"))??;
        }
        Ok(began.elapsed())
    })
}
