//! Tests the tests: takes down one wall of the sandbox after the other, and expects that some test
//! turns red for each. A wall whose removal nobody notices has no test.
//!
//! The walls are those of a build with the feature `removable-walls`, which no release has. Everything
//! happens in namespaces made for it, so that what a wall would have kept in does not get far.

use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::{cargo, packages};

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
    ("quotas", "security", "quotas"),
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
    // What comes from registries. The crates' own tests are asked where it takes a liar to see it.
    ("blob_digest", "pull", "bytes_that_are_not"),
    ("manifest_digest", "pull", "bytes_that_are_not"),
    ("diff_id", "layer", "other_bytes"),
    ("https+public_addresses+public_names", "pull", "redirects"),
    ("public_addresses", "image", "registries_that_nobody"),
    ("token_stays_home", "pull", "redirects_go"),
    ("proved_access", "principals", "access_is_proved"),
    ("shown_layers", "principals", "a_layer_is_for"),
    ("https+public_addresses+public_names+own_token_server", "pull", "a_token_server_elsewhere"),
    ("links", "layer", "breakouts"),
    ("links+jail_root+jail_landlock", "image", "evil_layers"),
    ("dots+links", "layer", "breakouts"),
    ("special_bits", "layer", "devices_are_left_out"),
    ("attributes", "layer", "devices_are_left_out"),
    ("layer_bytes+layer_holes", "layer", "bytes_entries"),
    ("layer_holes", "layer", "holes_count"),
    ("layer_entries", "layer", "bytes_entries"),
    ("layer_ratio", "layer", "a_small_stream"),
    ("layer_depth", "layer", "limits"),
    ("output_cap", "limits", "output"),
    // What works on what strangers have made.
    ("init_descriptors", "security", "init_holds"),
    ("init_apart", "security", "init_stays"),
    ("init_user", "security", "processes::"),
    ("jail_descriptors", "security", "who_unpacks"),
    ("jail_capabilities", "security", "who_unpacks"),
    ("jail_filter", "security", "who_unpacks"),
    ("jail_network", "security", "who_unpacks"),
    ("helper_descriptors", "security", "helpers::who"),
    ("helper_root", "security", "helpers::who"),
    ("helper_user", "security", "helpers::who"),
    ("helper_capabilities", "security", "helpers::who"),
    ("helper_filter", "security", "helpers::who"),
    ("helper_limits", "security", "helpers::who"),
    ("output_links", "security", "a_link_is_no_output"),
    ("output_folders", "security", "a_link_is_no_output"),
    ("output_links+helper_root+helper_user", "security", "a_link_is_no_output"),
    ("output_waits", "security", "what_is_no_file"),
    ("output_files", "security", "what_is_no_file"),
    ("output_bytes", "files", "what_is_too_much"),
    ("output_depth", "security", "a_deep_and_wide"),
    ("output_names", "security", "more_names"),
    ("frozen_bits", "security", "what_is_frozen"),
    ("frozen_owners", "batches", "what_is_prepared_once"),
    ("frozen_depth", "security", "what_is_frozen"),
    ("frozen_bytes", "batches", "what_is_prepared_has_a_budget"),
    // Sandboxes that were prepared before anybody knew for whom.
    ("sandbox_suits", "pool", "a_run_never_gets"),
    ("sandbox_limits", "pool", "a_prepared_sandbox_gets"),
    ("removed_layers", "pool", "a_removed_image"),
    ("sandbox_once", "pool", "runs_find_sandboxes_prepared"),
    // Whose things are whose.
    ("own_files", "principals", "one_principal"),
    ("own_runs", "principals", "one_principal"),
    ("own_runs", "security", "strangers"),
    ("own_files", "security", "strangers"),
    ("own_prepared", "security", "strangers"),
    ("own_keys", "promises", "keys_and_kept"),
];

/// Taken down alone these change nothing that a program can see, because another wall stands behind.
const BACKED: &[(&str, &str, &str)] = &[
    ("nothing", "security", ""),
    ("no_leak", "security", "filesystem"),
    ("landlock", "security", "filesystem"),
    ("cgroup_kill", "security", "processes"),
    ("close_descriptors", "security", "filesystem"),
    ("dumpable", "security", "init_stays"),
    ("links", "image", "evil_layers"),
    ("jail_root", "image", "evil_layers"),
    ("output_links+helper_root", "security", "files_of_the_machine"),
    ("dots", "image", "evil_layers"),
    ("https", "pull", "redirects"),
    ("own_token_server", "pull", "a_token_server_elsewhere"),
    ("layer_bytes", "layer", "limits"),
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
    let (mut wrong, mut tried) = (0, 0);
    for (expected, removals) in [(false, BACKED), (true, REMOVALS)] {
        for (names, program, filter) in removals.iter().filter(|(names, ..)| wanted(names)) {
            let started = Instant::now();
            let red = is_red(names, program, filter)?;
            let good = red == expected;
            wrong += usize::from(!good);
            tried += 1;
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
        tried += 1;
        println!(
            "{}  {names:40} in the self-test of a starting server",
            if good { "ok   " } else { "WRONG" }
        );
    }
    ensure!(tried > 0, "no removal is called that");
    println!("{wrong} of {tried} removals were not as they should be");
    Ok(if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The test programs and whose they are.
const PROGRAMS: &[(&str, &str)] = &[
    ("security", "sandglass"),
    ("limits", "sandglass"),
    ("isolation", "sandglass"),
    ("image", "sandglass"),
    ("principals", "sandglass"),
    ("pull", "sandglass-image"),
    ("layer", "sandglass-unpack"),
    ("files", "sandglass"),
    ("batches", "sandglass"),
    ("pool", "sandglass"),
    ("promises", "sandglass"),
];

/// Builds what the tests need, then goes on in namespaces that take what leaks with them when they end.
fn enter(words: &[String]) -> Result<ExitCode> {
    let mut build = vec!["test", "--no-run", "--features", "removable-walls"];
    build.extend(PROGRAMS.iter().flat_map(|(program, package)| ["--package", package, "--test", program]));
    packages::install(packages::FOR_TESTS)?;
    cargo::run(&["run", "--quiet", "--package", "sandglass-test-support", "--bin", "test-images"], &[])?;
    cargo::run(&build, &[])?;
    let this = std::env::current_exe().context("find this program")?;
    let target = cargo::target();
    let status = Command::new("unshare")
        .args(["--net", "--ipc", "--uts", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", SHELTER])
        .args([&this, &target])
        .args(words)
        .status()
        .context("start unshare")?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
}

/// What gets out where a wall is down must find nothing to harm: all of this machine is read-only but
/// the build's own folder, and the folders for temporary files are others.
const SHELTER: &str = r#"
set -e
mount --make-rprivate /
mount -t proc proc /proc
ip link set lo up
mount --bind "$1" "$1"
mount -t tmpfs -o mode=1777 tmp /var/tmp
mount -t tmpfs run /run
mount -o remount,bind,ro /
export TMPDIR=/var/tmp
this=$0
shift
exec "$this" walls inside "$@"
"#;

/// Where such a server would keep images; its user must be able to reach it.
const DATA: &str = "/var/tmp/sandglass-walls";

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
    let package = PROGRAMS.iter().find(|(name, _)| *name == program).context("no such test program")?.1;
    let mut command = cargo::command();
    command.args(["test", "--offline", "--quiet", "--package", package, "--features", "removable-walls"]);
    command.args(["--test", program]);
    command.args(["--", "--test-threads=2", filter]).env("SANDGLASS_WITHOUT_WALLS", names);
    // The image that needs no pull: what is taken down stands around every image.
    command.env("SANDGLASS_ATTACKED_IMAGE", "host");
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
