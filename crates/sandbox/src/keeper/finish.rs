//! What is told of a run in which nothing lives any more: how it ended, what it used, where it was held.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use nix::libc;
use run::{Exit, KilledFor, LimitHit, SetupFailure, Usage};

use crate::cgroup::RunGroup;
use crate::init::Report;
use crate::protocol::Finished;
use crate::watch::{self, Ending};

pub(super) fn finish(
    ending: Ending,
    group: &RunGroup<'_>,
    scratch: &OwnedFd,
) -> Result<Finished, SetupFailure> {
    let account = group.account().since(&ending.before);
    let now = Instant::now();
    let by_itself = ending.killed_for.is_none() && account.oom_kills == 0;
    let (exit, ended) = match ending.report {
        Some(Report::Failed(failure)) if by_itself => return Err(failure),
        Some(Report::Ended(_)) if by_itself && ending.on_its_way => {
            let error = "its process ended before it became the program".to_owned();
            return Err(SetupFailure { step: "start the program".into(), error });
        }
        Some(Report::Ended(end)) => (end.exit, watch::instant(end.at_ns)),
        Some(Report::Failed(_)) | None => (Exit::Unknown, now),
    };
    let wall = ending.started.map_or(Duration::ZERO, |started| ended.saturating_duration_since(started));
    let ms = |us: u64| us as f64 / 1000.0;
    let mut limit_hits = full(scratch);
    if account.pids_hit {
        limit_hits.insert(0, LimitHit::Processes);
    }
    if exit == Exit::Signal(libc::SIGXFSZ) {
        limit_hits.push(LimitHit::FileSize);
    }
    let over = |limit_at: Instant| now.saturating_duration_since(limit_at).as_micros() as u64;
    let overshoot_us = match ending.killed_for {
        Some(KilledFor::WallTime) => ending.wall_deadline.map(over),
        Some(KilledFor::CpuTime) => Some(account.cpu_us.saturating_sub(ending.cpu_limit_us)),
        _ => None,
    };
    Ok(Finished {
        exit,
        killed_for: ending.killed_for,
        oom_kills: account.oom_kills,
        usage: Usage {
            wall_time_ms: ms(wall.as_micros() as u64),
            cpu_time_ms: ms(account.cpu_us),
            user_time_ms: ms(account.user_us),
            system_time_ms: ms(account.system_us),
            memory_peak_bytes: account.memory_peak,
            processes_peak: account.pids_peak,
        },
        limit_hits,
        overshoot_us,
        began: None,
    })
}

/// Whether the run's files ended at one of their caps.
fn full(scratch: &OwnedFd) -> Vec<LimitHit> {
    let Ok(stat) = nix::sys::statfs::fstatfs(scratch) else { return Vec::new() };
    let mut hits = Vec::new();
    if stat.blocks_free() == 0 {
        hits.push(LimitHit::Disk);
    }
    if stat.files_free() == 0 {
        hits.push(LimitHit::Inodes);
    }
    hits
}
