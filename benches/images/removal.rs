//! A large image is removed while others run: they notice nothing.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use support::{Daemon, Image, Value, json};

use crate::Row;
use crate::world::{World, ms, pull, quantile, run};

/// Enough to keep both processors of a small machine busy.
const CLIENTS: usize = 2;

/// How long the load is watched before anything is removed; and after that at least, so that what the disk
/// still has to do is not missed.
const WINDOW: Duration = Duration::from_secs(1);

pub(crate) fn measure(world: &World) -> Result<Vec<Row>> {
    world.registry.push("busybox", "1", &Image::busybox());
    [("huge", "1 GiB"), ("small", "100,000 files")]
        .into_iter()
        .map(|(name, what)| remove(world, name, what))
        .collect()
}

fn remove(world: &World, name: &str, what: &str) -> Result<Row> {
    let (image, busybox) = (world.image(name), world.image("busybox"));
    let body = json!({ "image": busybox, "cmd": "true" });
    let daemon = world.fresh().start();
    run(&daemon, &body)?;
    let (mut before, mut during, mut took) = (Vec::new(), Vec::new(), Duration::ZERO);
    for round in 0..world.rounds {
        eprintln!("  {name}: round {} of {}", round + 1, world.rounds);
        let without = trees(&daemon);
        pull(&daemon, &image)?;
        // What the pull has left to be written is none of this.
        nix::unistd::sync();
        run(&daemon, &body)?;
        before.extend(loaded(&daemon, &body, || {
            std::thread::sleep(WINDOW);
            Ok(())
        })?);
        during.extend(loaded(&daemon, &body, || {
            let began = Instant::now();
            let answer = daemon.request("DELETE", &format!("/images/{image}")).try_send()?;
            ensure!(answer.status == 204, "{}", answer.text());
            // First they lose their names, then they are deleted.
            while trees(&daemon) != without {
                let left = || trees(&daemon).symmetric_difference(&without).cloned().collect::<Vec<_>>();
                ensure!(began.elapsed() < Duration::from_secs(120), "its files do not go: {:?}", left());
                std::thread::sleep(Duration::from_millis(5));
            }
            took = began.elapsed();
            std::thread::sleep(WINDOW.saturating_sub(took));
            Ok(())
        })?);
    }
    let (quiet, busy) = (quantile(&before, 0.99), quantile(&during, 0.99));
    Ok(Row {
        what: format!("an image of {what} is removed: p99 of running `true`, ÷ before"),
        unit: "",
        most: 1.2,
        measured: busy / quiet,
        of: format!(
            "{busy:.2} ms of {} runs, {quiet:.2} ms of {} before; the files are gone after {:.2} s",
            during.len(),
            before.len(),
            took.as_secs_f64()
        ),
    })
}

/// How long each answer took to clients that ask again and again while something is done.
fn loaded(daemon: &Daemon, body: &Value, work: impl FnOnce() -> Result<()>) -> Result<Vec<f64>> {
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let ask = || {
            let mut times = Vec::new();
            while !ended.load(Ordering::SeqCst) {
                times.push(ms(run(daemon, body)?.1));
            }
            Ok::<_, anyhow::Error>(times)
        };
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(ask)).collect();
        let done = work();
        ended.store(true, Ordering::SeqCst);
        let mut all = Vec::new();
        for client in clients {
            all.extend(client.join().map_err(|_| anyhow!("a client panicked"))??);
        }
        done.map(|()| all)
    })
}

/// What there is in the store and in its trash, as the server sees it, which alone sees its disk. The store comes
/// first: a tree that goes to the trash meanwhile is then seen twice, and otherwise perhaps not at all.
fn trees(daemon: &Daemon) -> BTreeSet<OsString> {
    let mut layers = PathBuf::from(format!("/proc/{}/root", daemon.pid()));
    layers.extend(daemon.data_dir().join("layers").components().skip(1));
    let names = |folder: PathBuf| std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut trees: BTreeSet<_> = names(layers.clone()).map(|entry| entry.file_name()).collect();
    trees.extend(names(layers.join("trash")).map(|entry| entry.file_name()));
    trees
}
