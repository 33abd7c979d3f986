//! Category S: processes and signals. Nobody outlives a run, and nobody outside is reached.

use crate::attack::{Attack, attack, repel};

const ATTACKS: &[Attack] = &[
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
    time.sleep(0.5)
    while True:
        os.write(1, b"late")
        time.sleep(0.1)"#,
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
    .ends("wall_time_limit")
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
    .ends("wall_time_limit")
    .with(r#"{"limits": {"wall_time_ms": 500}}"#),
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

#[test]
fn no_process_outlives_its_run_or_reaches_another() {
    repel(ATTACKS);
}
