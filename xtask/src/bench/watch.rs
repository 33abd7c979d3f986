//! How much memory of their own a process and all below it have at once.

use std::collections::HashMap;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

const PAUSE: Duration = Duration::from_millis(25);

pub(super) struct Memory {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Memory {
    pub(super) fn of(pid: u32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut most = 0;
            while !stopping.load(Ordering::Relaxed) {
                most = most.max(below(pid));
                std::thread::sleep(PAUSE);
            }
            most
        });
        Self { stop, thread }
    }

    pub(super) fn most(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or_default()
    }
}

fn below(top: u32) -> u64 {
    let mut parents = HashMap::new();
    let mut bytes = HashMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(status) = fs::read_to_string(entry.path().join("status")) else { continue };
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse::<u64>().ok()
        };
        parents.insert(pid, field("PPid:").unwrap_or_default() as u32);
        bytes.insert(pid, field("RssAnon:").unwrap_or_default() * 1024);
    }
    let is_below = |mut pid: u32| {
        // Bounded, should the parents change while they are read.
        for _ in 0..64 {
            if pid == top {
                return true;
            }
            match parents.get(&pid) {
                Some(parent) if *parent > 1 => pid = *parent,
                _ => return false,
            }
        }
        false
    };
    bytes.iter().filter(|(pid, _)| is_below(**pid)).map(|(_, bytes)| bytes).sum()
}
