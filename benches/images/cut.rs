//! A connection that breaks when nine tenths of a gigabyte are here: the rest is sent, and not much more.

use anyhow::{Result, ensure};
use support::{Daemon, Relay};

use crate::Row;
use crate::world::{World, pull};

const MEBIBYTE: f64 = (1u64 << 20) as f64;

pub(crate) fn measure(world: &World) -> Result<Vec<Row>> {
    let size: u64 = world.registry.sizes_of("huge", "1").iter().sum();
    let mut most = 0.0_f64;
    for _ in 0..world.rounds.min(2) {
        let cut_after = size / 10 * 9;
        let relay = Relay::cut_after(&world.registry, cut_after);
        let builder = Daemon::builder().flag("--insecure-registry", relay.host()).flag("--log", "warn");
        let daemon = builder.on_disk_of(4 << 30).start();
        pull(&daemon, &relay.image("huge:1"))?;
        ensure!(relay.was_cut(), "the connection was never cut");
        most = most.max((relay.sent_bytes() - cut_after) as f64);
    }
    Ok(vec![Row {
        what: "cut at 90 % of a layer of 1 GiB: sent after that".into(),
        unit: "MiB",
        most: (size as f64 / 10.0) / MEBIBYTE + 1.0,
        measured: most / MEBIBYTE,
        of: format!("{:.1} MiB, counted on the wire", size as f64 / MEBIBYTE),
    }])
}
