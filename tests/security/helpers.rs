//! Our own processes that work on what strangers have made: those that look for a run's outputs, freeze what
//! a prepared run has written, or unpack a layer; and the init beside the program. Should one of them be
//! talked into something, it must have nothing to do it with. Each is held still at its work and looked at
//! from outside.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::glimpse::{Glimpse, namespace, root_of};
use support::{Builder, Daemon, Folder, Image, Layer, Liar, Lie, Registry, Value, host, json, within};

/// Longer than anything takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// CHOWN, DAC_OVERRIDE and FOWNER.
const TO_WRITE_FILES: u64 = 0b1011;

fn signal(pid: i32, signal: Signal) {
    let _ = kill(Pid::from_raw(pid), signal);
}

/// Holds a process still, and lets it go on in the end however the test ends.
struct Held(i32);

impl Held {
    fn hold(pid: i32) -> Self {
        signal(pid, Signal::SIGSTOP);
        Self(pid)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        signal(self.0, Signal::SIGCONT);
    }
}

/// Whether a process lives where the host does, and not in a PID namespace of its own.
fn is_outside(pid: i32) -> bool {
    namespace(pid, "pid") == namespace(std::process::id() as i32, "pid")
}

/// The children of the only keeper, by where they live: init inside, helpers outside.
fn below_keepers(daemon: &Daemon, outside: bool) -> Option<i32> {
    let keepers = host::children(daemon.launcher_pid());
    let children = keepers.into_iter().flat_map(host::children);
    children.into_iter().find(|pid| namespace(*pid, "pid").is_some() && is_outside(*pid) == outside)
}

/// The process of a run that sleeps, and ends the run when it is killed.
fn sleeper(daemon: &Daemon) -> i32 {
    within(PATIENCE, "a program that sleeps", || {
        let inside = host::in_cgroups_of(daemon.launcher_pid());
        inside.into_iter().find(|pid| host::command_line(*pid) == "sleep 600")
    })
}

fn daemon() -> Builder {
    Daemon::builder().host_image().flag("--prepared-max", 0)
}

/// What the process shows once it has come to rest: the sight that is as it should be, or the last.
#[track_caller]
fn settled(pid: i32, is_good: impl Fn(&Glimpse) -> bool) -> Glimpse {
    let mut last = None;
    for _ in 0..400 {
        let seen = Glimpse::of(pid);
        if seen.as_ref().is_some_and(&is_good) {
            return seen.expect("it was seen");
        }
        last = seen.or(last);
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("process {pid} is more than it should be: {last:#?}");
}

/// Whether it has nothing open but folders and files, and so many of what talks to others.
fn talks_through(seen: &Glimpse, pipes: usize, sockets: usize) -> bool {
    let count = |kind: &str| seen.open.iter().filter(|target| target.starts_with(kind)).count();
    let files = |target: &&String| target.starts_with('/') && !target.starts_with("/sys");
    let files = seen.open.iter().filter(files).count();
    count("pipe:") == pipes && count("socket:") == sockets && files + pipes + sockets == seen.open.len()
}

#[test]
fn who_looks_for_outputs_is_the_run_s_user_in_the_run_s_root_and_has_one_pipe() {
    let canary = Folder::new();
    let daemon = daemon().start();
    let body = json!({
        "image": "host", "cmd": "sh", "args": ["-c", "truncate -s 30M big; sleep 600"], "workdir": "/w",
        "user": "1000:1000", "outputs": ["big"], "limits": { "wall_time_ms": 120_000 },
    });
    let run = daemon.run_async(&body);
    let program = sleeper(&daemon);
    let users = host::uids(program);
    // A server that reads nothing leaves the helper with a pipe that is full.
    let server = Held::hold(daemon.pid());
    signal(program, Signal::SIGKILL);
    let helper = within(PATIENCE, "who looks for outputs", || below_keepers(&daemon, true));
    let seen = settled(helper, |seen| {
        seen.users == users
            && (seen.capabilities, seen.no_new_privileges, seen.filtered) == (0, true, true)
            && seen.address_space.is_some_and(|bytes| bytes <= 1 << 30)
            && seen.cpu_seconds.is_some_and(|seconds| seconds <= 5)
            && seen.root.contains("w")
            && talks_through(seen, 1, 0)
    });
    let path = canary.join("").display().to_string();
    assert!(!root_of(helper).join(path.trim_start_matches('/')).exists(), "{seen:#?}");
    drop(server);
    let run = daemon.wait_for_state(&run, "finished");
    assert_eq!(run["outputs"][0]["size_bytes"], 30 << 20, "{run:#}");
}

#[test]
fn who_freezes_a_run_can_write_files_in_an_empty_root_and_has_one_socket() {
    let daemon = daemon().start();
    // Enough folders that it is still at them when it is found: for each it asks the keeper.
    let script = "mkdir -p /w/d; cd /w/d; seq 4000 | xargs mkdir; sleep 600 || true";
    let body = json!({
        "image": "host", "workdir": "/w", "limits": { "inodes": 10_000, "wall_time_ms": 120_000 },
        "prepare": { "cmd": "sh", "args": ["-c", script] },
        "run": { "cmd": "sh", "args": ["-c", "ls /w/d | wc -l"] }, "tests": [{}],
    });
    let begun = daemon.request("POST", "/batches").header("Prefer", "respond-async").json(&body).send();
    let path = begun.header("location").expect("a location").to_owned();
    begun.expect(202);
    signal(sleeper(&daemon), Signal::SIGKILL);
    let keeper = host::children(daemon.launcher_pid())[0];
    let helper = loop {
        if let Some(helper) = below_keepers(&daemon, true) {
            break helper;
        }
        assert!(daemon.get(&path).expect(200)["state"] != "finished", "nobody has seen who froze it");
    };
    let held = Held::hold(keeper);
    let seen = settled(helper, |seen| {
        seen.users == [0; 4]
            && (seen.capabilities, seen.no_new_privileges, seen.filtered) == (TO_WRITE_FILES, true, true)
            && seen.address_space.is_some_and(|bytes| bytes <= 1 << 30)
            && seen.cpu_seconds.is_some_and(|seconds| seconds <= 30)
            && talks_through(seen, 0, 1)
    });
    assert_eq!(seen.root, BTreeSet::new(), "{seen:#?}");
    drop(held);
    let done = within(PATIENCE, "the end of the batch", || {
        let batch = daemon.get(&path).expect(200);
        (batch["state"] == "finished").then_some(batch)
    });
    assert_eq!(done["tests"][0]["run"]["stdout"], "4000\n", "{done:#}");
}

#[test]
fn who_unpacks_a_layer_is_alone_with_it() {
    let registry = Registry::empty();
    let layer = Layer::build(|tar| {
        tar.dir("only-this");
        // Noise, so that it does not fit into one packet of its compressed form.
        let mut last = 88_172_645_463_325_252u64;
        let mut next = || {
            last ^= last << 13;
            last ^= last >> 7;
            last ^= last << 17;
            last as u8
        };
        let noise: Vec<u8> = (0..600_000).map(|_| next()).collect();
        tar.file("only-this/noise", &noise);
    });
    registry.push("x", "1", &Image::new([layer]));
    // The image's configuration is a blob too, and short.
    let liar =
        Liar::before(
            &registry,
            |_, path| {
                if path.contains("/blobs/") { Lie::Stall(100_000) } else { Lie::Truth }
            },
        );
    let daemon = daemon().flag("--insecure-registry", liar.host()).start();
    let pull = daemon.request("POST", "/images").json(&json!({ "image": liar.image("x:1") }));
    let pull = pull.begin().expect("ask for an image");
    let jail = within(PATIENCE, "who unpacks", || below_keepers(&daemon, false));
    let seen = settled(jail, |seen| {
        (seen.capabilities, seen.no_new_privileges, seen.filtered) == (TO_WRITE_FILES, true, true)
            && seen.address_space.is_some_and(|bytes| bytes <= 1 << 30)
            && talks_through(seen, 1, 1)
            && seen.root == BTreeSet::from(["only-this".to_owned()])
    });
    for kind in ["user", "mnt", "net", "ipc", "uts"] {
        let (own, ours) = (namespace(jail, kind), namespace(daemon.launcher_pid(), kind));
        assert!(own.is_some() && own != ours, "{kind}: {seen:#?}");
    }
    drop(pull);
}

#[test]
fn init_holds_nothing_but_a_line_to_its_keeper() {
    let daemon = daemon().start();
    let body =
        json!({ "image": "host", "cmd": "sleep", "args": ["600"], "limits": { "wall_time_ms": 120_000 } });
    let run = daemon.run_async(&body);
    let init = host::parent(sleeper(&daemon)).expect("an init");
    settled(init, |seen| talks_through(seen, 0, 1) && seen.open.len() == 1);
    let ended = daemon.delete(&format!("/runs/{run}")).expect(200);
    assert_eq!(ended["outcome"], Value::from("cancelled"));
}

/// The process that becomes the program lives in init's memory until it does. What it takes on and gives up on the
/// way is its own, and init's memory is for nobody to look at before and after.
#[test]
fn init_stays_what_it_was_when_the_process_in_its_memory_has_changed() {
    let daemon = daemon().start();
    let body = json!({
        "image": "host", "cmd": "sleep", "args": ["600"], "user": "1000:1000", "workdir": "/tmp",
        "limits": { "wall_time_ms": 120_000, "open_files": 50 },
    });
    let run = daemon.run_async(&body);
    let command = sleeper(&daemon);
    let init = host::parent(command).expect("an init");
    let line = |pid: i32, file: &str, name: &str| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/{file}")).expect("a process that is there");
        let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("such a line");
        line.split_whitespace().next().expect("a value").to_owned()
    };
    for (file, name, of_command) in [
        ("status", "Umask:", "0022"),
        ("status", "Seccomp:", "2"),
        ("status", "NoNewPrivs:", "1"),
        ("status", "CapBnd:", "0000000000000000"),
        ("limits", "Max open files", "50"),
        ("limits", "Max pending signals", "256"),
    ] {
        assert_eq!(line(command, file, name), of_command, "{name} of the command");
        assert_ne!(line(init, file, name), of_command, "{name} of init");
    }
    let cwd = |pid: i32| std::fs::read_link(format!("/proc/{pid}/cwd")).expect("a process that is there");
    assert_eq!((cwd(command), cwd(init)), ("/tmp".into(), "/".into()));
    let (ours, theirs) = (host::uids(init), host::uids(command));
    let root = ours[0];
    assert_eq!((ours, &theirs), (vec![root, root, root + 1, root], &vec![root + 1000; 4]));
    // What can't be inspected is the machine's root's, whoever it runs as.
    let owner =
        |pid: i32| std::fs::metadata(format!("/proc/{pid}/environ")).expect("a process that is there").uid();
    assert_eq!((owner(init), owner(command)), (0, theirs[0]));
    assert_eq!(daemon.delete(&format!("/runs/{run}")).expect(200)["outcome"], Value::from("cancelled"));
}
