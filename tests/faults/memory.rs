//! A server that has little memory: whoever asks for too much is told so in words, runs end before the server
//! does, and the server goes on.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use support::{Builder, Daemon, host, json, scaled, until};

use crate::echo;

const GIVEN: u64 = 256 << 20;

/// A control group with little memory, which goes with this.
struct Group(PathBuf);

impl Group {
    fn new(name: &str) -> Self {
        let v1 = Path::new("/sys/fs/cgroup/memory");
        let (top, limit) = if v1.exists() {
            (v1, "memory.limit_in_bytes")
        } else {
            let top = Path::new("/sys/fs/cgroup");
            fs::write(top.join("cgroup.subtree_control"), "+memory +pids +cpu").expect("pass controllers on");
            (top, "memory.max")
        };
        let group = Self(top.join(format!("sandglass-little-{name}-{}", std::process::id())));
        fs::create_dir(&group.0).expect("make a control group");
        fs::write(group.0.join(limit), GIVEN.to_string()).expect("limit its memory");
        group
    }

    /// A daemon that starts in the group, as one does in a container with a limit.
    fn daemon(&self) -> Builder {
        Daemon::builder().host_image().flag("--slots", 2).in_group(self.0.clone())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        fn remove(folder: &Path) -> bool {
            let below = fs::read_dir(folder).into_iter().flatten().flatten();
            for folder in below.map(|entry| entry.path()).filter(|path| path.is_dir()) {
                remove(&folder);
            }
            fs::remove_dir(folder).is_ok() || !folder.exists()
        }
        until("the end of the control group", || remove(&self.0));
    }
}

fn oom_score(pid: i32) -> i32 {
    let text = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).expect("read a score");
    text.trim().parse().expect("a number")
}

#[test]
fn where_memory_runs_out_runs_go_before_the_server() {
    let group = Group::new("runs");
    // More than there is: no limit of a run's own is reached.
    let most = (1u64 << 30).to_string();
    let daemon =
        group.daemon().flag("--maxima-memory-bytes", &most).flag("--budget-memory-bytes", &most).start();
    let (server, launcher) = (daemon.pid(), daemon.launcher_pid());
    let id = daemon.run_async(&json!({ "image": "host", "cmd": "sleep", "args": ["30"] }));
    daemon.wait_for_state(&id, "running");
    let all = host::processes_of(server, launcher);
    let keepers: Vec<i32> = host::children(launcher);
    let theirs = all.iter().filter(|pid| **pid != launcher && !keepers.contains(pid));
    let scores: Vec<i32> = theirs.map(|pid| oom_score(*pid)).collect();
    assert!(!scores.is_empty() && scores.iter().all(|score| *score == 1000), "{scores:?}");
    for pid in keepers.into_iter().chain([server, launcher]) {
        assert!(oom_score(pid) < 1000, "{}", host::command_line(pid));
    }
    daemon.delete(&format!("/runs/{id}"));

    let limits = json!({ "memory_bytes": 512u64 << 20, "wall_time_ms": 60_000, "cpu_time_ms": 60_000 });
    let greedy = json!({ "image": "host", "cmd": "tail", "args": ["/dev/zero"], "limits": limits });
    for _ in 0..3 {
        assert_eq!(daemon.run(&greedy)["outcome"], "memory_limit");
        echo(&daemon);
    }
    assert_eq!((daemon.pid(), daemon.launcher_pid()), (server, launcher));
}

/// Ten clients at once who send 12 MiB each and want them back, and each of that is there more than once on its
/// way: twice as much as there is.
#[test]
fn a_server_with_little_memory_says_no_in_words_or_serves() {
    let group = Group::new("bodies");
    let patience = scaled(Duration::from_secs(30)).as_millis();
    let mut daemon = group.daemon().flag("--body-timeout-ms", patience).start();
    let info = daemon.get("/info").expect(200);
    let most = info["maxima"]["memory_bytes"].as_u64().expect("a maximum");
    assert_eq!(most, GIVEN / 4 * 3, "of what the group has, not of what the machine has");
    let text = "x".repeat(12 << 20);
    let body = json!({
        "image": "host", "cmd": "cat", "stdin": text,
        "limits": { "stdout_bytes": 16 << 20, "memory_bytes": 16 << 20, "wall_time_ms": 60_000, "cpu_time_ms": 60_000 },
    })
    .to_string();
    let statuses = Mutex::new(BTreeMap::<u16, usize>::new());
    std::thread::scope(|scope| {
        for _ in 0..10 {
            scope.spawn(|| {
                let request = daemon.request("POST", "/runs").body(body.clone());
                let answer = request.patience(Duration::from_secs(120)).send();
                match answer.status {
                    200 => assert_eq!(answer.json()["stdout_bytes"], text.len(), "not all of it"),
                    413 | 429 | 503 => assert!(answer.json()["title"].is_string(), "{}", answer.text()),
                    other => panic!("{other}: {}", answer.text()),
                }
                *statuses.lock().expect("a lock").entry(answer.status).or_default() += 1;
            });
        }
    });
    let statuses = statuses.into_inner().expect("a lock");
    println!("{statuses:?}, and the server has {} bytes", host::memory_bytes(daemon.pid()));
    assert!(statuses.contains_key(&200), "{statuses:?}");
    assert!(daemon.process().try_wait().is_none(), "the server goes on");
    echo(&daemon);
}
