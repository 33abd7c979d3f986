//! Programs that can be told from every other of this machine, and an eye that sees from the host which of them
//! have run, and how often: what a server says of itself is not asked.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};

use crate::host;

/// A program whose command line nobody else has: `sleep` adds its numbers up.
#[derive(Clone, Debug)]
pub struct Marked {
    args: [String; 2],
}

impl Marked {
    pub fn new(seconds: f64, number: usize) -> Self {
        Self { args: [seconds.to_string(), format!("{}{number:06}", mark())] }
    }

    pub fn args(&self) -> &[String; 2] {
        &self.args
    }

    /// A run of it.
    pub fn body(&self) -> Value {
        json!({ "image": "host", "cmd": "sleep", "args": self.args })
    }
}

fn mark() -> String {
    format!("0.0000{:07}", std::process::id())
}

/// Which processes have run each command line.
type Seen = BTreeMap<String, BTreeSet<i32>>;

/// Looks at the machine's processes again and again.
#[derive(Debug)]
pub struct Watch {
    seen: Arc<Mutex<Seen>>,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    pub fn begin() -> Self {
        let (seen, over) = (Arc::new(Mutex::new(Seen::new())), Arc::new(AtomicBool::new(false)));
        let (looking, until) = (Arc::clone(&seen), Arc::clone(&over));
        let thread = std::thread::spawn(move || {
            while !until.load(Ordering::Relaxed) {
                look(&looking);
                std::thread::sleep(Duration::from_millis(10));
            }
        });
        Self { seen, over, thread: Some(thread) }
    }

    /// How many different ones were seen; panics where one was seen twice.
    #[track_caller]
    pub fn end(mut self) -> usize {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the eye has not failed");
        }
        let seen = self.seen.lock().expect("no holder panics");
        let twice: Vec<_> = seen.iter().filter(|(_, pids)| pids.len() > 1).collect();
        assert!(twice.is_empty(), "ran twice: {twice:?}");
        seen.len()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

fn look(seen: &Mutex<Seen>) {
    let mark = mark();
    for entry in std::fs::read_dir("/proc").expect("list processes").flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let line = host::command_line(pid);
        if line.starts_with("sleep ") && line.contains(&mark) {
            seen.lock().expect("no holder panics").entry(line).or_default().insert(pid);
        }
    }
}

/// Numbers that are different each time, and the same again for the same seed.
#[derive(Clone, Copy, Debug)]
pub struct Random(u64);

impl Random {
    /// Says its seed, so that what was found can be found again.
    pub fn new() -> Self {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let seed = now.expect("a time after 1970").as_nanos() as u64;
        eprintln!("seed {seed}");
        Self(seed)
    }

    /// Another's numbers.
    #[must_use]
    pub fn fork(&mut self) -> Self {
        Self(self.0 ^ (self.below(u64::from(u32::MAX)) << 32 | self.below(u64::from(u32::MAX))))
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

impl Default for Random {
    fn default() -> Self {
        Self::new()
    }
}
