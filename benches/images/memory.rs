//! How much memory of its own a server takes, with all that it has started, while images come.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use support::{Daemon, Image, Layer, host, json};

use crate::Row;
use crate::world::{World, pull};

const PAUSE: Duration = Duration::from_millis(5);
const MEBIBYTE: f64 = (1u64 << 20) as f64;

/// What the header of a hostile archive claims to be its next file's attributes.
const BOMB_BYTES: u64 = 1 << 30;

pub(crate) fn measure(world: &World) -> Result<Vec<Row>> {
    let image = |name: &'static str| (name, world.image(name));
    let (_, huge) = image("huge");
    let of = |memory: Memory| {
        let (most, before) = (memory.most as f64 / MEBIBYTE, memory.before as f64 / MEBIBYTE);
        format!("{most:.1} MiB, {before:.1} before; all processes, every {} ms", PAUSE.as_millis())
    };
    let daemon = world.fresh().start();
    let one = watched(&daemon, || pull(&daemon, &huge).map(drop))?;
    drop(daemon);

    let daemon = world.fresh().start();
    let names = ["gcc", "small", "many", "huge"].map(|name| world.image(name));
    let four = watched(&daemon, || {
        std::thread::scope(|scope| {
            let pulls = names.each_ref().map(|name| scope.spawn(|| pull(&daemon, name)));
            pulls
                .into_iter()
                .try_for_each(|one| one.join().map_err(|_| anyhow!("a pull panicked"))?.map(drop))
        })
    })?;

    drop(daemon);

    let daemon = world.server().start();
    world.registry.push("bomb", "1", &Image::new([Layer::pax_bomb(BOMB_BYTES)]));
    let bomb = world.image("bomb");
    let bombed = watched(&daemon, || {
        let answer = daemon.request("POST", "/images").json(&json!({ "image": bomb })).try_send()?;
        ensure!(answer.status == 422, "the bomb was taken: {}", answer.text());
        Ok(())
    })?;
    let more = |memory: Memory| (memory.most - memory.before.min(memory.most)) as f64 / MEBIBYTE;
    let row = |what: &str, most: f64, measured: f64, of: String| Row {
        what: what.into(),
        unit: "MiB",
        most,
        measured,
        of,
    };
    Ok(vec![
        row("memory, a layer of 1 GiB is pulled: more than before", 64.0, more(one), of(one)),
        row("memory, 4 pulls at once: all of it", 128.0, four.most as f64 / MEBIBYTE, of(four)),
        row("memory, a PAX header of 1 GiB is refused: more than before", 8.0, more(bombed), of(bombed)),
    ])
}

#[derive(Clone, Copy)]
struct Memory {
    before: u64,
    most: u64,
}

/// Does something and looks at the server and all below it meanwhile.
fn watched(daemon: &Daemon, work: impl FnOnce() -> Result<()>) -> Result<Memory> {
    // Sandboxes that are being prepared come and go; they are neither in the one number nor in the other.
    std::thread::sleep(Duration::from_millis(500));
    let (before, ended) = (anonymous_bytes(daemon), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let watcher = scope.spawn(|| {
            let mut most = before;
            while !ended.load(Ordering::SeqCst) {
                most = most.max(anonymous_bytes(daemon));
                std::thread::sleep(PAUSE);
            }
            most
        });
        let done = work();
        ended.store(true, Ordering::SeqCst);
        let most = watcher.join().map_err(|_| anyhow!("the watcher panicked"))?;
        done.map(|()| Memory { before, most })
    })
}

fn anonymous_bytes(daemon: &Daemon) -> u64 {
    let all = host::processes_of(daemon.pid(), daemon.launcher_pid());
    all.into_iter().chain([daemon.pid()]).map(anonymous_bytes_of).sum()
}

fn anonymous_bytes_of(pid: i32) -> u64 {
    // One that has ended meanwhile has none.
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or_default() * 1024
}
