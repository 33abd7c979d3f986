//! Tests the tests: takes down one wall of the sandbox after the other, and expects that some test
//! turns red for each. A wall whose removal nobody notices has no test.
//!
//! The walls are those of a build with the feature `removable-walls`, which no release has. Everything
//! happens in namespaces made for it, so that what a wall would have kept in does not get far.

use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::cargo;

/// What is taken down, joined by `+`, and where it must be noticed: a test program and a filter. The
/// PID namespace is not among them: without it the kernel refuses a run's `/proc`, and nothing starts.
const REMOVALS: &[(&str, &str, &str)] = &[
    ("seccomp", "security", "kernel"),
    ("seccomp_arch", "security", "network::there"),
    ("socket_filter", "security", "network::there"),
    ("no_new_privs", "security", "privileges"),
    ("capabilities", "security", "privileges"),
    ("bounding_set", "security", "privileges"),
    ("user_namespace", "security", "proc::proc_and"),
    ("network_namespace", "security", "network::servers"),
    ("ipc_namespace", "security", "ipc"),
    ("uts_namespace", "isolation", "the_usual"),
    ("cgroup_namespace", "security", "proc::proc_and"),
    ("proc_subset", "security", "proc::proc_and"),
    ("hidepid", "security", "proc::proc_and"),
    ("nosuid", "isolation", "the_usual"),
    ("core_limit", "security", "proc::proc_and"),
    ("oom_kill_all", "security", "resources"),
    ("wall_time_ms", "limits", "wall_time"),
    ("cpu_time_ms", "limits", "cpu_time"),
    ("memory_bytes", "limits", "memory"),
    ("processes", "limits", "processes"),
    ("disk_bytes", "limits", "disk_and"),
    ("inodes", "limits", "inodes"),
    ("file_size_bytes", "limits", "disk_and"),
    ("open_files", "limits", "open_files"),
    ("stack_bytes", "limits", "stack"),
    ("cpus", "limits", "processors"),
    // Walls behind walls: each of these alone is not enough to be noticed, and must not be.
    ("no_leak+close_descriptors", "security", "filesystem"),
    ("no_leak+close_descriptors+landlock", "security", "filesystem"),
    ("pivot_root+capabilities+seccomp", "security", "filesystem"),
];

/// Taken down alone these change nothing that a program can see, because another wall stands behind.
const BACKED: &[(&str, &str, &str)] = &[
    ("nothing", "security", ""),
    ("no_leak", "security", "filesystem"),
    ("landlock", "security", "filesystem"),
    ("cgroup_kill", "security", "processes"),
    ("close_descriptors", "security", "filesystem"),
];

/// What the canary of a starting server must find down. The network is not among them: where this
/// runs, there is no route to find.
const CANARY: &[&str] = &[
    "seccomp",
    "socket_filter",
    "capabilities",
    "bounding_set",
    "no_new_privs",
    "user_namespace",
    "uts_namespace",
    "cgroup_namespace",
    "proc_subset",
    "hidepid",
    "nosuid",
    "no_leak+close_descriptors",
    "memory_bytes",
    "processes",
];

pub(crate) fn main(words: &[String]) -> Result<ExitCode> {
    if words.first().is_none_or(|word| word != "inside") {
        return enter(words);
    }
    let wanted = |names: &str| words.len() == 1 || words[1..].iter().any(|word| word == names);
    let mut wrong = 0;
    for (expected, removals) in [(false, BACKED), (true, REMOVALS)] {
        for (names, program, filter) in removals.iter().filter(|(names, ..)| wanted(names)) {
            let started = Instant::now();
            let red = is_red(names, program, filter)?;
            let good = red == expected;
            wrong += usize::from(!good);
            println!(
                "{}  {names:40} {} in {program} {filter} ({:.1} s)",
                if good { "ok   " } else { "WRONG" },
                if red { "noticed" } else { "not noticed" },
                started.elapsed().as_secs_f64()
            );
        }
    }
    for names in CANARY.iter().filter(|names| wanted(names)) {
        let good = canary_finds(names)?;
        wrong += usize::from(!good);
        println!(
            "{}  {names:40} in the self-test of a starting server",
            if good { "ok   " } else { "WRONG" }
        );
    }
    let all = REMOVALS.len() + BACKED.len() + CANARY.len();
    println!("{wrong} of {all} removals were not as they should be");
    Ok(if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Builds, then goes on in namespaces that take what leaks with them when they end.
fn enter(words: &[String]) -> Result<ExitCode> {
    let mut build = vec!["test", "--no-run", "--features", "removable-walls"];
    build.extend(["--test", "security", "--test", "limits", "--test", "isolation"]);
    cargo::run(&build, &[])?;
    let this = std::env::current_exe().context("find this program")?;
    let script = "ip link set lo up && mount --make-rprivate / && mount -t proc proc /proc && exec \"$0\" walls inside \"$@\"";
    let status = Command::new("unshare")
        .args(["--net", "--ipc", "--uts", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script])
        .arg(this)
        .args(words)
        .status()
        .context("start unshare")?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}

/// Where such a server would keep images; its user must be able to reach it.
const DATA: &str = "/tmp/sandglass-walls";

/// Whether a server refuses to start because its canary has found those walls down.
fn canary_finds(names: &str) -> Result<bool> {
    let programs = cargo::build(&["--offline", "--quiet", "--features", "removable-walls", "--bins"])?;
    let output = Command::new("timeout")
        .arg("20")
        .arg(programs.get("sandglass")?)
        .args(["serve", "--listen=127.0.0.1:0", "--data-dir", DATA])
        .env("SANDGLASS_CANARY_WITHOUT", names)
        .output()
        .context("start a server")?;
    let said = String::from_utf8_lossy(&output.stderr);
    let _ = std::fs::remove_dir_all(DATA);
    let found = output.status.code() == Some(1) && said.contains("the self-test");
    if !found {
        println!("       {}", said.trim_end());
    }
    Ok(found)
}

fn is_red(names: &str, program: &str, filter: &str) -> Result<bool> {
    let mut command = cargo::command();
    command.args(["test", "--offline", "--quiet", "--features", "removable-walls", "--test", program]);
    command.args(["--", "--test-threads=2", filter]).env("SANDGLASS_WITHOUT_WALLS", names);
    let output = command.output().context("start cargo test")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(text.contains("running"), "the tests did not run:\n{}", String::from_utf8_lossy(&output.stderr));
    ensure!(!text.contains("running 0 tests"), "{program} has no test {filter}");
    for line in text.lines().filter(|line| tells(line)) {
        println!("       {line}");
    }
    Ok(!output.status.success())
}

/// Whether a line of the tests' output says which attack got through, or why a test failed.
fn tells(line: &str) -> bool {
    let id = line.split(' ').next().unwrap_or_default();
    let attack = id.len() <= 5 && id.split_once('-').is_some_and(|(kind, _)| kind.len() == 1);
    attack || line.starts_with("assertion") || line.contains("panicked at")
}
