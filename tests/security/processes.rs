//! Category S: processes and signals. Nobody outlives a run, and nobody outside is reached. How a program
//! may end (S-09, S-10, S-12, S-20) is looked at in `tests/outcomes.rs`.

use std::sync::atomic::{AtomicUsize, Ordering};

use support::{Daemon, json};

use crate::attack::{Attack, Manner, attack, repel};

pub(crate) const ATTACKS: &[Attack] = &[
    attack(
        "S-01",
        "killing PID 1 with every signal, and everybody",
        r#"
import signal
for number in range(1, 65):
    tried(os.kill, 1, number)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
tried(os.kill, -1, signal.SIGTERM)
print("alive")"#,
        &["alive"],
    ),
    attack(
        "S-02",
        "killing processes of the host",
        r#"
print(same(tried(os.kill, pid, 9) for pid in list(range(100, 5000)) + [2**22 - 1]))"#,
        &["ESRCH"],
    ),
    attack(
        "S-03",
        "a daemon that ignores every signal",
        r#"
import signal
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for number in (1, 2, 3, 13, 15):
            signal.signal(number, signal.SIG_IGN)
        for fd in (0, 1, 2):
            os.close(fd)
        time.sleep(600)
    os._exit(0)
os.wait()
print("parent ends")"#,
        &["parent ends"],
    ),
    attack(
        "S-04",
        "a daemon that holds the output open and goes on writing",
        r#"
sys.stdout.write("first"); sys.stdout.flush()
if os.fork() == 0:
    time.sleep(1)
    while True:
        os.write(1, b"late")
        time.sleep(0.1)
os._exit(0)"#,
        &["first"],
    ),
    attack(
        "S-05",
        "many daemons that fork anew",
        r#"
for _ in range(30):
    if tried(os.fork) == 0:
        os.setsid()
        while True:
            if tried(os.fork) == 0:
                os._exit(0)
            time.sleep(0.001)
print("left behind")"#,
        &["left behind"],
    ),
    attack(
        "S-06",
        "blocking every signal and sleeping for ever",
        r#"
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
time.sleep(600)"#,
        &[""],
    )
    .ends(&["wall_time_limit"])
    .with(r#"{"limits": {"wall_time_ms": 500}}"#),
    attack(
        "S-07",
        "stopping itself and everybody",
        r#"
import signal
if os.fork() == 0:
    time.sleep(600)
os.kill(-1, signal.SIGSTOP)
os.kill(os.getpid(), signal.SIGSTOP)"#,
        &[""],
    )
    .ends(&["wall_time_limit"])
    .with(r#"{"limits": {"wall_time_ms": 500}}"#),
    attack(
        "S-08a",
        "a child that spins on its parent's stack while the parent waits for it",
        r#"
if call(58) == 0:
    while True:
        pass"#,
        &[""],
    )
    .ends(&["wall_time_limit"])
    .with(r#"{"limits": {"wall_time_ms": 700, "cpu_time_ms": 60000}}"#),
    attack(
        "S-08b",
        "a thread that waits for a word that nobody changes",
        r#"
import threading
word = ctypes.create_string_buffer(4)
threading.Thread(target=call, args=(202, word, 0, 0, 0, 0, 0)).start()
call(202, word, 0, 0, 0, 0, 0)"#,
        &[""],
    )
    .ends(&["wall_time_limit"])
    .with(r#"{"limits": {"wall_time_ms": 700}}"#),
    attack(
        "S-11",
        "ending the main thread while another goes on",
        r#"
import threading
def later():
    time.sleep(0.7)
    os.write(1, b"later")
    os._exit(0)
threading.Thread(target=later).start()
call(60, 3)"#,
        &["later"],
    ),
    attack(
        "S-14",
        "closing all that it was given and staying",
        r#"
os.closerange(0, 3)
time.sleep(0.3)
os._exit(0)"#,
        &[""],
    ),
    attack(
        "S-13",
        "executing a program that has no name",
        r#"
fd = os.memfd_create("x")
with open("/usr/bin/true", "rb") as file:
    os.write(fd, file.read())
if os.fork() == 0:
    os.execve(fd, ["true"], {})
print(os.waitstatus_to_exitcode(os.wait()[1]))"#,
        &["0"],
    ),
    attack(
        "S-15",
        "leaving orphans for PID 1",
        r#"
for _ in range(300):
    if os.fork() == 0:
        if os.fork() == 0:
            os._exit(0)
        os._exit(0)
    os.wait()
time.sleep(0.2)
print(len([pid for pid in os.listdir("/proc") if pid.isdigit()]))"#,
        &["1", "2"],
    ),
    attack(
        "S-16",
        "tracing and writing into others",
        r#"
pid = os.fork()
if pid == 0:
    time.sleep(5); os._exit(0)
word = ctypes.create_string_buffer(16)
print(same((call(101, 16, pid, 0, 0), call(101, 0x4206, pid, 0, 0), call(101, 16, 1, 0, 0), call(310, pid, word, 1, word, 1, 0),
    call(311, pid, word, 1, word, 1, 0), call(438, 0, 0, 0), call(312, 1, pid, 0, 0, 0), call(440, 0, 0, 0, 0, 0))))
os.kill(pid, 9)"#,
        &["EPERM"],
    ),
    attack(
        "S-21",
        "limits and scheduling of PID 1",
        r#"
# One second of the processor is soon used up by who has orphans to reap, and without PID 1 nobody says how a run ends.
limit, mask = struct.pack("QQ", 1, 1), struct.pack("Q", 1)
print(same([call(302, 1, resource, limit, 0) for resource in range(16)] + [call(302, 1, 7, 0, bytes(16))] +
    [call(141, 0, 1, 19), call(144, 1, 5, bytes(4)), call(203, 1, 8, mask), call(251, 1, 1, 3 << 13)]),
    same(call(302, pid, 7, 0, bytes(16)) for pid in (0, os.getpid())))"#,
        &["EPERM 0"],
    ),
    attack(
        "S-17",
        "adopting orphans to keep them",
        r#"
print(call(157, 36, 1, 0, 0, 0))
if os.fork() == 0:
    if os.fork() == 0:
        time.sleep(600)
    os._exit(0)"#,
        &["0"],
    ),
    attack(
        "S-18",
        "weakening itself by prctl",
        r#"
print(call(157, 38, 0, 0, 0, 0), call(157, 35, 1, 0, 0, 0), call(157, 24, 0, 0, 0, 0), call(157, 28, 0, 0, 0, 0),
      call(157, 8, 1, 0, 0, 0), call(157, 47, 2, 0, 0, 0), call(157, 39, 0, 0, 0, 0))"#,
        &["EINVAL EPERM EPERM EPERM EPERM EPERM 1"],
    ),
];

/// S-19: whatever was forked in the last moment before a limit struck is gone as well.
#[test]
fn forking_at_the_moment_of_the_end_saves_nobody() {
    const FORKS: &str = "import os\nwhile True:\n try:\n  os.fork()\n except OSError:\n  pass";
    let daemon = Daemon::builder().host_image().flag("--slots", 4).start();
    daemon.run(&json!({ "image": "host", "cmd": "true" }));
    let host = daemon.host();
    let runs = if Manner::asked() == Manner::Together { 24 } else { 1000 };
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while next.fetch_add(1, Ordering::Relaxed) < runs {
                    let limits = json!({ "wall_time_ms": 60, "cpu_time_ms": 60_000, "processes": 40 });
                    let request =
                        json!({ "image": "host", "cmd": "python3", "args": ["-c", FORKS], "limits": limits });
                    let run = daemon.run(&request);
                    assert_eq!(run["outcome"], "wall_time_limit", "{run:#}");
                }
            });
        }
    });
    host.assert_unchanged();
}

#[test]
fn no_process_outlives_its_run_or_reaches_another() {
    repel(ATTACKS);
}
