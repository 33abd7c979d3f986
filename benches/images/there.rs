//! An image that is here: what a run waits for its name to become layers, and for the layers to become a root.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use support::{Finished, Folder, Value, json, sandglass_launcher, stamps};

use crate::Row;
use crate::world::{World, image_ms, median, nothing, pull};

const RUNS: usize = 300;

/// An image, how many layers it has, and in how many milliseconds there is to be a root.
const IMAGES: [(&str, usize, f64); 2] = [("gcc", 5, 1.0), ("many", 120, 2.0)];

pub(crate) fn measure(world: &World) -> Result<Vec<Row>> {
    let mut daemon = world.server().start();
    for (image, ..) in IMAGES {
        pull(&daemon, &world.image(image))?;
    }
    let records = daemon.data_dir().join("records");
    let (asked, written) = (world.registry.seen().len(), stamps(&records));
    let mut rows = Vec::new();
    let mut resolved_ms = Vec::new();
    for (image, layers, _) in IMAGES {
        let p50 = median(&image_ms(&daemon, &nothing(&world.image(image)), RUNS)?);
        rows.push(Row {
            what: format!("image there, {layers} layers: resolve, p50"),
            unit: "µs",
            most: 50.0,
            measured: p50 * 1000.0,
            of: format!("{RUNS} runs, `timings.image_ms`"),
        });
        resolved_ms.push(p50);
    }
    let asked = world.registry.seen().len() - asked;
    let rewritten = stamps(&records).iter().filter(|(path, stamp)| written.get(*path) != Some(stamp)).count();
    for (what, measured) in [("requests to its registry", asked), ("records written", rewritten)] {
        let (what, of) = (format!("image there: {what}"), format!("{} runs", 2 * RUNS));
        rows.push(Row { what, unit: "", most: 0.0, measured: measured as f64, of });
    }
    daemon.stop();
    for ((image, layers, most), resolved) in IMAGES.into_iter().zip(resolved_ms) {
        let mounted = mount_ms(&daemon.data_dir(), &world.image(image))?;
        rows.push(Row {
            what: format!("image there, {layers} layers: resolve and root mounted, p50"),
            unit: "ms",
            most,
            measured: resolved + mounted,
            of: format!("{RUNS} roots, `sandglass-launcher mount`: {mounted:.3} ms"),
        });
    }
    Ok(rows)
}

/// How long the launcher takes for an image's root, with no server and nothing prepared.
fn mount_ms(data_dir: &Path, image: &str) -> Result<f64> {
    let folder = Folder::new();
    let spec = folder.join("spec.json");
    let text = json!({
        "rootfs": { "layers": layers(data_dir, image)? }, "argv": ["true"], "env": [], "workdir": "/",
        "user": "", "limits": {}, "files": [], "profile": "strict",
    });
    fs::write(&spec, text.to_string()).context("write a spec")?;
    let mut command = Command::new(sandglass_launcher());
    command.arg("mount").arg(spec).arg(data_dir.join("layers")).arg(RUNS.to_string());
    let done = Finished::of(&mut command);
    ensure!(done.status.success(), "{}", done.stderr_text().trim());
    let mounted: Value = serde_json::from_slice(&done.stdout).context("read what the launcher measured")?;
    let latencies = mounted["latencies_us"].as_array().context("it measured nothing")?;
    let numbers: Vec<f64> = latencies.iter().filter_map(Value::as_f64).collect();
    Ok(median(&numbers) / 1000.0)
}

/// What the store calls the layers of an image, the topmost first.
fn layers(data_dir: &Path, image: &str) -> Result<Value> {
    for entry in fs::read_dir(data_dir.join("records/images")).context("list the records")? {
        let text = fs::read(entry?.path()).context("read a record")?;
        let record: Value = serde_json::from_slice(&text).context("understand a record")?;
        if record["reference"] == image {
            return Ok(record["layers"].clone());
        }
    }
    anyhow::bail!("there is no record of {image}")
}
