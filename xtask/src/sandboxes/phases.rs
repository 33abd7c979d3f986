//! `cargo xtask bench phases`: where the time of a short run goes, from the scheduler's own events. A run is
//! a chain in which one process wakes the next, and each phase is from one such moment to the next.

use std::fmt::Write;
use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{cargo, packages};

const PACKAGES: &[&str] = &["docker-registry", "gcc", "libc6-dev", "linux-perf", "mmdebstrap"];

/// What each phase is called, and what happens in it.
const PHASES: [(&str, &str); 7] = [
    (
        "server in",
        "from the client's write to the order for the keeper: HTTP, JSON, admission, image, the run's pipes",
    ),
    ("keeper in", "a prepared sandbox hears what it is to run, and tells the command's process"),
    (
        "command to exec",
        "the command's process gets its streams and limits, drops what is left, and executes",
    ),
    ("program", "from exec to exit: what floor A has too"),
    ("exit to report", "PID 1 reaps it and says how it ended"),
    ("keeper out", "counters of the control group are read, the answer is put together"),
    ("server out", "the outcome is judged, the run remembered, the answer written"),
];

pub(super) fn main() -> Result<ExitCode> {
    packages::install(PACKAGES)?;
    let folder = cargo::target().join("bench");
    fs::create_dir_all(&folder).context("make a folder for what is measured")?;
    let raw = folder.join("phases.json");
    let path = raw.to_str().context("the target folder's name is no text")?;
    cargo::run(&["bench", "--package", "sandglass", "--bench", "sandboxes", "--", "phases", path], &[])?;
    let all = serde_json::from_slice(&fs::read(&raw).context("read what was measured")?)?;
    println!("{}wrote {path}", markdown(&all)?);
    Ok(ExitCode::SUCCESS)
}

fn markdown(all: &Value) -> Result<String> {
    let events: Vec<Event> = text(&all["events"])?.lines().filter_map(Event::read).collect();
    let client = all["client"].as_u64().context("nobody says who the client is")?;
    let runs = runs(&events, client, text(&all["program"])?);
    ensure!(runs.len() >= 20, "only {} runs could be followed from one end to the other", runs.len());
    let p50 = |name: &str| {
        let latencies = all[name]["latencies_us"].as_array().context("a sample is missing")?;
        anyhow::Ok(median(latencies.iter().filter_map(Value::as_u64).collect()))
    };
    let (floor, alone, observed) = (p50("floor")?, p50("alone")?, p50("observed")?);
    let mut text = format!(
        "Medians of {} runs, one every 10 ms: {observed} µs while observed, {alone} µs while not; floor A took {floor} µs.\n\n\
         | phase | µs | what happens |\n|---|---:|---|\n",
        runs.len()
    );
    for (place, (name, what)) in PHASES.iter().enumerate() {
        let column = runs.iter().map(|run| run[place]).collect();
        let _ = writeln!(text, "| {name} | {} | {what} |", median(column) / 1000);
    }
    let _ =
        writeln!(text, "| all | {} | |\n", median(runs.iter().map(|run| run.iter().sum()).collect()) / 1000);
    Ok(text)
}

fn text(value: &Value) -> Result<&str> {
    value.as_str().context("a text is missing")
}

fn median(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// One line of `perf script`.
#[derive(Debug)]
struct Event<'a> {
    by: u64,
    at_ns: u64,
    what: What<'a>,
}

#[derive(Debug, PartialEq)]
enum What<'a> {
    Wakes { pid: u64, name: &'a str },
    Executes(&'a str),
    Exits,
    Sends,
}

impl<'a> Event<'a> {
    /// `TID SECONDS.NANOSECONDS: GROUP:EVENT: FIELDS`; nothing for an event that tells nothing here.
    fn read(line: &'a str) -> Option<Self> {
        let (by, rest) = line.trim_start().split_once(' ')?;
        let (at, rest) = rest.trim_start().split_once(": ")?;
        let (event, fields) = rest.trim_start().split_once(": ")?;
        let (seconds, nanoseconds) = at.split_once('.')?;
        let field = |name: &str| fields.split_once(name)?.1.split(" pid=").next();
        let what = match event.split_once(':')?.1 {
            "sched_waking" => {
                let pid = fields.split_once(" pid=")?.1.split(' ').next()?.parse().ok()?;
                What::Wakes { pid, name: field("comm=")? }
            }
            "sched_process_exec" => What::Executes(fields.split_once("filename=")?.1.split(' ').next()?),
            "sched_process_exit" => What::Exits,
            "sys_enter_sendto" => What::Sends,
            _ => return None,
        };
        let at_ns = seconds.parse::<u64>().ok()? * 1_000_000_000 + nanoseconds.parse::<u64>().ok()?;
        Some(Self { by: by.parse().ok()?, at_ns, what })
    }
}

/// The nanoseconds of each phase, of every run that can be followed.
fn runs(events: &[Event<'_>], client: u64, program: &str) -> Vec<[u64; PHASES.len()]> {
    let sent: Vec<usize> = (0..events.len())
        .filter(|index| events[*index].by == client && events[*index].what == What::Sends)
        .collect();
    let ends = sent.iter().skip(1).copied().chain([events.len()]);
    sent.iter().zip(ends).filter_map(|(begin, end)| follow(&events[*begin..end], client, program)).collect()
}

/// From one link of the chain to the next.
fn follow(events: &[Event<'_>], client: u64, program: &str) -> Option<[u64; PHASES.len()]> {
    let mut rest = events.iter();
    let start = rest.next()?.at_ns;
    // A sandbox that has no run yet is called so.
    let (ordered, keeper) = rest.find_map(|event| match event.what {
        What::Wakes { pid, name: "prepared" } => Some((event.at_ns, pid)),
        _ => None,
    })?;
    let (told, command) = rest.find_map(|event| match event.what {
        What::Wakes { pid, .. } if event.by == keeper => Some((event.at_ns, pid)),
        _ => None,
    })?;
    let executed = rest.find(|event| event.by == command && event.what == What::Executes(program))?.at_ns;
    let exited = rest.find(|event| event.by == command && event.what == What::Exits)?.at_ns;
    let wakes =
        |whom: u64| move |event: &&Event<'_>| matches!(event.what, What::Wakes { pid, .. } if pid == whom);
    let reported = rest.find(wakes(keeper))?.at_ns;
    let judged = rest.find(|event| event.by == keeper && matches!(event.what, What::Wakes { .. }))?.at_ns;
    let answered = rest.find(wakes(client))?.at_ns;
    let moments = [start, ordered, told, executed, exited, reported, judged, answered];
    let mut phases = [0; PHASES.len()];
    for (phase, pair) in phases.iter_mut().zip(moments.windows(2)) {
        *phase = pair[1].checked_sub(pair[0])?;
    }
    Some(phases)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: &str = "\
    7 10.000001000: syscalls:sys_enter_sendto: fd: 0x00000003, buff: 0x7f, len: 0x91
    0 10.000002000: sched:sched_waking: comm=rcu_preempt pid=15 prio=120 target_cpu=000
   30 10.000011000: sched:sched_waking: comm=prepared pid=40 prio=120 target_cpu=001
   40 10.000031000: sched:sched_waking: comm=prepared pid=42 prio=120 target_cpu=001
   42 10.000061000: sched:sched_process_exec: filename=/bin/nothing pid=42 old_pid=42
   42 10.000101000: sched:sched_process_exit: comm=nothing pid=42 prio=120
   41 10.000151000: sched:sched_waking: comm=keeper pid=40 prio=120 target_cpu=000
   40 10.000211000: sched:sched_waking: comm=tokio-rt-worker pid=30 prio=120 target_cpu=000
   30 10.000281000: sched:sched_waking: comm=sandboxes-12ab pid=7 prio=120 target_cpu=000
";

    fn followed(text: &str) -> Vec<[u64; PHASES.len()]> {
        let events: Vec<Event<'_>> = text.lines().filter_map(Event::read).collect();
        runs(&events, 7, "/bin/nothing")
    }

    #[test]
    fn a_run_is_followed_from_who_wakes_whom() {
        let us = [10, 20, 30, 40, 50, 60, 70];
        assert_eq!(followed(RUN), [us.map(|us| us * 1000)]);
    }

    #[test]
    fn a_run_of_which_a_link_is_missing_is_left_out() {
        for link in ["pid=40 prio=120 target_cpu=001", "sched_process_exec", "sched_process_exit", "pid=7 "] {
            let cut: String =
                RUN.lines().filter(|line| !line.contains(link)).flat_map(|line| [line, "\n"]).collect();
            assert_eq!(followed(&cut), [[0; PHASES.len()]; 0], "without {link}");
            assert_eq!(followed(&format!("{cut}{RUN}")).len(), 1, "without {link}, and then a whole one");
        }
    }
}
