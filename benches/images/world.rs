//! What all of them need: a registry that has the images, servers that have none of them, and medians.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use support::{Builder, Daemon, Registry, Value, guest, json};

/// A gigabyte's pull on a machine that has other things to do.
const PATIENCE: Duration = Duration::from_secs(300);

pub(crate) struct World {
    pub(crate) registry: Registry,
    /// How often what takes seconds is done.
    pub(crate) rounds: usize,
}

impl World {
    pub(crate) fn new(rounds: usize) -> Self {
        Self { registry: Registry::with_bench_images(), rounds: rounds.max(1) }
    }

    pub(crate) fn image(&self, name: &str) -> String {
        self.registry.image(&format!("{name}:1"))
    }

    /// A server with the settings that it has by itself. A line of log for each run would be read by this
    /// program, on the processors that are measured.
    pub(crate) fn server(&self) -> Builder {
        Daemon::builder().registry(&self.registry).flag("--log", "warn")
    }

    /// One on a file system made for it: one on which much was deleted makes whoever comes next slow.
    pub(crate) fn fresh(&self) -> Builder {
        self.server().on_disk_of(12 << 30)
    }
}

/// Has the server pull an image.
pub(crate) fn pull(daemon: &Daemon, image: &str) -> Result<Duration> {
    let began = Instant::now();
    let request = daemon.request("POST", "/images").json(&json!({ "image": image }));
    let pulled = request.patience(PATIENCE).try_send()?;
    ensure!(pulled.status < 300, "pull {image}: {}", pulled.text());
    Ok(began.elapsed())
}

/// The least that can be run in an image, whatever is in it.
pub(crate) fn nothing(image: &str) -> Value {
    json!({ "image": image, "cmd": "/tmp/nothing", "files": [guest::file("nothing")] })
}

/// Runs something that has to succeed, and returns its record and how long its answer took.
pub(crate) fn run(daemon: &Daemon, body: &Value) -> Result<(Value, Duration)> {
    let request = daemon.request("POST", "/runs").json(body).patience(PATIENCE);
    let began = Instant::now();
    let answer = request.try_send()?;
    let took = began.elapsed();
    ensure!(answer.status == 200, "{}", answer.text());
    let run = answer.json();
    ensure!(run["exit_code"] == 0, "{run}");
    Ok((run, took))
}

/// How long each of some runs, one every 10 ms, waited for its image, in milliseconds.
pub(crate) fn image_ms(daemon: &Daemon, body: &Value, runs: usize) -> Result<Vec<f64>> {
    let one = |_| {
        std::thread::sleep(Duration::from_millis(10));
        let (run, _) = run(daemon, body)?;
        run["timings"]["image_ms"].as_f64().ok_or_else(|| anyhow::anyhow!("no image_ms in {run}"))
    };
    (0..runs).map(one).collect()
}

/// The number below which that part of them is; always one that was measured.
pub(crate) fn quantile(numbers: &[f64], part: f64) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (sorted.len() as f64 * part) as usize;
    sorted.get(at.min(sorted.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}

pub(crate) fn median(numbers: &[f64]) -> f64 {
    quantile(numbers, 0.5)
}

pub(crate) fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
