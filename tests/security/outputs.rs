//! Files that are asked for after the end: what a program can put in their place, and what of it must
//! never come back.

use std::time::{Duration, Instant};

use support::{Daemon, Host, Value, json, within};

const SECRET: &str = "what stands in the canary is for nobody";

struct Scene {
    daemon: Daemon,
    host: Host,
    _folder: support::Folder,
    canary: String,
}

impl Scene {
    fn set() -> Self {
        let folder = support::Folder::new();
        let canary = folder.join("the-canary");
        std::fs::write(&canary, SECRET).expect("write the canary");
        let daemon = Daemon::start();
        daemon.run(&json!({ "image": "host", "cmd": "true" }));
        let host = daemon.host();
        Self { daemon, host, _folder: folder, canary: canary.display().to_string() }
    }

    /// Runs the script, looks that nothing of the host came back and that it was not slow, and returns the run.
    fn run(&self, script: &str, outputs: &[&str]) -> Value {
        let script = script.replace("CANARY", &self.canary);
        let asked = Instant::now();
        let run = self.daemon.run(&json!({
            "image": "host", "cmd": "python3", "args": ["-c", script], "workdir": "/w", "outputs": outputs,
            "limits": { "wall_time_ms": 60_000, "cpu_time_ms": 60_000 },
        }));
        assert!(asked.elapsed() < Duration::from_secs(60), "{run:#}");
        assert!(!run.to_string().contains(SECRET), "{run:#}");
        run
    }
}

/// The error of each output, or its text.
fn told(run: &Value) -> Vec<(&str, &str)> {
    let outputs = run["outputs"].as_array().expect("outputs").iter();
    outputs
        .map(|output| {
            let said = output["error"].as_str().or(output["text"].as_str()).unwrap_or("bytes");
            (output["path"].as_str().expect("a path"), said)
        })
        .collect()
}

/// F-10: a link in an output's place leads to nothing, inside or outside.
#[test]
fn a_link_is_no_output() {
    let scene = Scene::set();
    let script = "
import os
os.symlink('/etc/passwd', '/tmp/o'); os.symlink('CANARY', '/tmp/c'); os.symlink('../' * 40 + 'CANARY', '/tmp/u')
os.symlink('/proc/self/root/CANARY', '/tmp/p'); os.symlink('/', '/tmp/root'); os.symlink('/tmp/d', '/w/dir')
os.mkdir('/tmp/d'); open('/tmp/d/x', 'w').write('inside')";
    let canary = scene.canary.clone();
    let through = format!("/tmp/root{canary}");
    let above = format!("{}{canary}", "../".repeat(40));
    let outputs = [
        "/tmp/o",
        "/tmp/c",
        "/tmp/u",
        "/tmp/p",
        "/proc/self/root/etc/passwd",
        &through,
        &canary,
        &above,
        "dir/x",
        "d*/x",
    ];
    let run = scene.run(script, &outputs);
    let link = "is a symbolic link";
    // A folder that the request itself names may be reached through a link; a wildcard follows none.
    assert_eq!(
        told(&run),
        [("/tmp/o", link), ("/tmp/c", link), ("/tmp/u", link), ("/tmp/p", link), ("dir/x", "inside")]
    );
    assert_eq!(run["outputs_missing"].as_array().map(Vec::len), Some(5), "{run:#}");
    scene.host.assert_unchanged();
}

/// F-11: whatever lies where a file should be, the answer comes soon and says what it is.
#[test]
fn what_is_no_file_is_refused_and_keeps_nobody_waiting() {
    let scene = Scene::set();
    let script = "
import os, socket
os.mkfifo('fifo'); os.mkdir('dir'); s = socket.socket(socket.AF_UNIX); s.bind('socket')
f = open('sparse', 'wb'); f.truncate(60 << 20); f.close()
open('gone', 'w'); os.unlink('gone'); open('bad\\udcff', 'w').write('x')
open('one', 'w').write('1')
os.mkdir('links')
try:
    for i in range(5000): os.link('one', 'links/%d' % i)
except OSError: pass";
    let outputs = ["fifo", "dir", "socket", "/dev/null", "/dev/zero", "gone", "bad*", "sparse", "links/*"];
    let run = scene.run(script, &outputs);
    let told = told(&run);
    assert_eq!(told[..3], [("fifo", "is a FIFO"), ("dir", "is a folder"), ("socket", "is a socket")]);
    assert_eq!(told[3].1, "has a name that is not UTF-8");
    assert_eq!(run["outputs"][4]["size_bytes"], 60 << 20, "{:?}", told[4]);
    assert_eq!(told.last().map(|(_, error)| *error), Some("more than 1000 files are asked for"));
    assert_eq!(run["outputs_missing"], json!(["/dev/null", "/dev/zero", "gone"]));
    // Nobody is held up by what one run has left: the next answers at once.
    scene.daemon.run(&json!({ "image": "host", "cmd": "true" }));
    let id = run["outputs"][4]["file"].as_str().expect("an id");
    assert_eq!(scene.daemon.delete(&format!("/files/{id}")).status, 204);
    scene.host.assert_unchanged();
}

/// F-11: a tree that is made to be slow to walk.
#[test]
fn a_deep_and_wide_tree_is_walked_in_bounds() {
    let scene = Scene::set();
    let script = "
import os
fd = os.open('.', os.O_RDONLY)
try:
    for i in range(3000):
        os.mkdir('d' * 200, dir_fd=fd); fd = os.open('d' * 200, os.O_RDONLY, dir_fd=fd)
except OSError: pass
os.chdir('/w')
for i in range(3000):
    try: os.mkdir('w%d' % i)
    except OSError: break";
    let run = scene.run(script, &["**/x", "**/**/y", "/**/*/**/z?", "*/*/*/*"]);
    assert_eq!(run["outcome"], "exited", "{run:#}");
    assert!(told(&run).iter().any(|(_, error)| *error == "lies too deep"), "{run:#}");
    scene.host.assert_unchanged();
}

/// F-14: two threads exchange a folder, a link and a file until they are killed. Afterwards nothing moves
/// any more, so what is found is what it is looked at as.
#[test]
fn what_is_exchanged_until_the_end_gives_away_nothing() {
    let scene = Scene::set();
    let script = "
import ctypes, os, threading
libc = ctypes.CDLL(None, use_errno=True)
os.mkdir('a'); os.symlink(os.path.dirname('CANARY'), 'b'); open('a/the-canary', 'w').write('own')
open('f', 'w').write('own'); os.symlink('CANARY', 'g')
def swap(x, y):
    while True: libc.renameat2(-100, x, -100, y, 2)
for pair in [(b'a', b'b'), (b'f', b'g')]:
    for _ in range(2): threading.Thread(target=swap, args=pair, daemon=True).start()
threading.Event().wait()";
    for _ in 0..10 {
        let script = script.replace("CANARY", &scene.canary);
        let run = scene.daemon.run(&json!({
            "image": "host", "cmd": "python3", "args": ["-c", script], "workdir": "/w",
            "outputs": ["a/the-canary", "b/the-canary", "f", "g", "*/the-canary", "*"],
            "limits": { "wall_time_ms": 150 },
        }));
        assert_eq!(run["outcome"], "wall_time_limit", "{run:#}");
        assert!(!run.to_string().contains(SECRET), "{run:#}");
        for (path, said) in told(&run) {
            assert!(["own", "is a symbolic link", "is a folder"].contains(&said), "{path}: {said}");
        }
    }
    scene.host.assert_unchanged();
}

/// Whatever the other walls do, what only root of the machine may read comes back from nowhere.
#[test]
fn nothing_that_is_handed_out_is_one_of_the_files_of_the_machine() {
    let scene = Scene::set();
    let script = "
import os
for i, place in enumerate(['', '/proc/1/root', '/proc/self/root', '/proc/1/cwd']): os.symlink(place + 'CANARY', '/w/%d' % i)
os.symlink('/proc/1/root' + os.path.dirname('CANARY'), '/w/dir')";
    let run = scene.run(script, &["0", "1", "2", "3", "[0-9]", "dir/the-canary", "*/*", "**/the-canary"]);
    assert_eq!(run["outcome"], "exited", "{run:#}");
    scene.host.assert_unchanged();
}

/// F-11: what is asked for costs time, too.
#[test]
fn patterns_that_look_at_more_names_than_they_may_are_told_so() {
    let scene = Scene::set();
    let script = "
import os
for i in range(4000): open('/w/%d' % i, 'w')";
    let patterns: Vec<String> = (0..64).map(|number| format!("x{number}*")).collect();
    let patterns: Vec<&str> = patterns.iter().map(String::as_str).collect();
    let run = scene.run(script, &patterns);
    assert_eq!(told(&run).last(), Some(&("", "the patterns look at more than 200000 names")), "{run:#}");
    scene.host.assert_unchanged();
}

/// F-11: nor does it burn a processor for long, which is not the run's own any more.
#[test]
fn patterns_that_are_made_to_be_slow_are_given_up_soon() {
    let daemon = Daemon::builder().host_image().flag("--prepared-max", 0).start();
    let script = "
for i in range(4000): open('/w/' + '[' * 250 + '%d' % i, 'w')
open('/w/first', 'w').write('first')";
    let slow: Vec<String> = (0..63).map(|end| format!("*{}x{end}", "[".repeat(200))).collect();
    let outputs: Vec<&str> = ["first"].into_iter().chain(slow.iter().map(String::as_str)).collect();
    let run = daemon.run(&json!({
        "image": "host", "cmd": "python3", "args": ["-c", script], "workdir": "/w", "outputs": outputs,
    }));
    assert_eq!(told(&run)[0], ("first", "first"), "{run:#}");
    let (_, last) = told(&run)[1];
    assert!(last.contains("may take 5 s of a processor"), "{run:#}");
    let launcher = daemon.launcher_pid();
    within(Duration::from_secs(60), "the end of the keeper", || {
        support::host::children(launcher).is_empty().then_some(())
    });
    let used = support::host::cpu_of_ended_children(launcher);
    assert!(used < Duration::from_secs(15), "{used:?}");
}
