//! Floor B: the walls of Sandglass in a bare loop, with no server, no HTTP and nothing prepared ahead:
//! `sandglass-launcher time`.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use support::{Finished, Folder, sandglass_launcher};

use super::Subject;
use crate::load::{Mode, Sample};
use crate::workbench::{Program, Workbench};

pub(crate) struct FloorB {
    folder: Folder,
    layers: PathBuf,
    /// About how long one run of each program takes: it counts runs, and we count time.
    takes: Mutex<HashMap<&'static str, Duration>>,
}

impl FloorB {
    pub(crate) fn new(workbench: &Workbench) -> Result<Self> {
        Ok(Self { folder: Folder::new(), layers: workbench.layers(), takes: Mutex::default() })
    }

    fn time(&self, program: &Program, runs: u32, spawners: u32, every_us: u64) -> Result<Sample> {
        let spec = self.folder.join(format!("{}.json", program.name));
        fs::write(&spec, Workbench::spec(program).to_string()).context("write a spec")?;
        let mut command = Command::new(sandglass_launcher());
        command.arg("time").arg(spec).arg(&self.layers);
        let numbers = [u64::from(runs), u64::from(spawners), every_us];
        let done = Finished::of(command.args(numbers.map(|number| number.to_string())));
        ensure!(done.status.success(), "{}", done.stderr_text().trim());
        serde_json::from_slice(&done.stdout).context("read floor B's sample")
    }

    fn takes(&self, program: &Program) -> Result<Duration> {
        let takes = self.takes.lock().map_err(|_| anyhow!("a client panicked"))?;
        takes.get(program.name).copied().context("it was not tried out")
    }
}

impl Subject for FloorB {
    fn name(&self) -> &'static str {
        "floor B"
    }

    fn what(&self) -> String {
        "the walls of Sandglass in a bare loop, without HTTP and with nothing prepared: `sandglass-launcher time`; \
         from the fork to the moment in which nothing of the run is left"
            .into()
    }

    fn try_out(&self, program: &Program) -> Result<()> {
        let sample = self.time(program, 3, 1, 0)?;
        let took = sample.latencies_us.last().copied().context("it has measured nothing")?;
        let mut takes = self.takes.lock().map_err(|_| anyhow!("a client panicked"))?;
        takes.insert(program.name, Duration::from_micros(took));
        Ok(())
    }

    fn measure(&self, program: &Program, mode: Mode) -> Result<Option<Sample>> {
        let takes = self.takes(program)?;
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32);
        let within = |time_ms: u64, one: Duration| {
            let runs = Duration::from_millis(time_ms).as_secs_f64() / one.as_secs_f64().max(1e-6);
            (runs as u32).max(1)
        };
        let (runs, spawners, every_us) = match mode {
            Mode::Paced { every_us, runs, time_ms } => {
                (runs.min(within(time_ms, takes.max(Duration::from_micros(every_us)))), 1, every_us)
            }
            Mode::Closed { clients, time_ms } => {
                (within(time_ms, takes * clients.div_ceil(cores)), clients, 0)
            }
            Mode::Burst { runs } => (1, runs, 0),
            Mode::Staggered { .. } => return Ok(None),
        };
        self.time(program, runs, spawners, every_us).map(Some)
    }
}
