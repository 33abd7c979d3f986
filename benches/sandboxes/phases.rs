//! Where the time of a short run goes: the kernel's scheduler is asked while one client has a run every so
//! often. `cargo xtask bench phases` makes a table of what this writes.
//!
//! The client is a process of its own, which `perf` starts: so its first and last moment are in what is
//! recorded, and nobody has to be told when to stop.

use std::fs;
use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use support::{Finished, Value, json, target, tool};

use crate::load::{self, Mode};
use crate::subjects::{Subject, floor_a::FloorA, sandglass};
use crate::workbench::{PROGRAMS, Workbench};

/// The word that says that this program is the client.
pub(crate) const WORD: &str = "client";

/// Of each of them: long enough apart that everything has come to rest.
const RUNS: Mode = Mode::Paced { every_us: 10_000, runs: 200, time_ms: 10_000 };

/// What is recorded: who wakes whom, who becomes a program, who ends, and when the client sends a request.
const EVENTS: &str =
    "sched:sched_waking,sched:sched_process_exec,sched:sched_process_exit,syscalls:sys_enter_sendto";

pub(crate) fn record(output: &str) -> Result<()> {
    let workbench = Workbench::prepare()?;
    let program = &PROGRAMS[0];
    let floor = FloorA::new(&workbench);
    let sandglass = sandglass::Sandglass::new(&workbench)?;
    let measure = |subject: &dyn Subject| subject.measure(program, RUNS)?.context("it can't be paced");
    // A first look at each, which nobody keeps.
    measure(&sandglass)?;
    let (floor, alone) = (measure(&floor)?, measure(&sandglass)?);
    let data = target().join("bench/phases.data");
    let mut perf = Command::new(tool("perf"));
    perf.args(["record", "--quiet", "--all-cpus", "--clockid", "CLOCK_MONOTONIC", "--event", EVENTS]);
    perf.arg("--output").arg(&data).arg("--").arg(std::env::current_exe().context("find this program")?);
    let request = sandglass.request(program).context("a program without a name")?;
    let done = checked(perf.args([WORD, &sandglass.address().to_string(), &request.to_string()]))?;
    let observed: Value = serde_json::from_slice(&done.stdout).context("read the client's sample")?;
    let mut script = Command::new(tool("perf"));
    script.args(["script", "--fields", "tid,time,event,trace", "--ns", "--input"]).arg(&data);
    let events = checked(&mut script)?;
    fs::remove_file(&data).context("remove what perf recorded")?;
    let all = json!({
        "machine": crate::machine(), "client": observed["client"], "program": program.argv[0],
        "floor": floor, "alone": alone, "observed": observed["sample"],
        "events": String::from_utf8_lossy(&events.stdout),
    });
    fs::write(output, all.to_string()).with_context(|| format!("write {output}"))
}

/// The client: says who it is and what it has seen.
pub(crate) fn main(address: &str, request: &str) -> Result<()> {
    let address: SocketAddr = address.parse().context("read an address")?;
    let request: Value = serde_json::from_str(request).context("read a request")?;
    // The process and the thread that asks are one, which is how it is found among the events.
    let sample = load::alone(RUNS, &mut sandglass::client(address, &request)?)?;
    println!("{}", json!({ "client": std::process::id(), "sample": sample }));
    Ok(())
}

fn checked(command: &mut Command) -> Result<Finished> {
    let done = Finished::of(command);
    ensure!(done.status.success(), "{command:?}: {}", done.stderr_text().trim());
    Ok(done)
}
