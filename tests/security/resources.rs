//! Category R: using up what belongs to everybody. The limits have tests of their own; these are the
//! ways around them.

use crate::attack::{Attack, attack, repel};

const ATTACKS: &[Attack] = &[
    attack(
        "R-01",
        "forking for ever",
        r#"
while True:
    tried(os.fork)"#,
        &[""],
    )
    .ends("wall_time_limit")
    .with(r#"{"limits": {"wall_time_ms": 1000, "cpu_time_ms": 60000, "processes": 64}}"#),
    attack(
        "R-05",
        "memory in many small children, of which the kernel ends only one",
        r#"
for _ in range(30):
    if os.fork() == 0:
        held = bytearray(8 << 20)
        for at in range(0, len(held), 4096):
            held[at] = 1
        time.sleep(60)
time.sleep(60)"#,
        &[""],
    )
    .ends("memory_limit")
    .within_ms(10_000.0)
    .with(r#"{"limits": {"memory_bytes": 134217728, "wall_time_ms": 20000, "cpu_time_ms": 60000}}"#),
    attack(
        "R-12",
        "files that have no name",
        r#"
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
held = []
while True:
    fd = os.memfd_create("x")
    held.append(fd)
    os.write(fd, bytes(8 << 20))"#,
        &[""],
    )
    .ends("memory_limit")
    .with(r#"{"limits": {"memory_bytes": 134217728}}"#),
    attack(
        "R-14",
        "memory inside pipes",
        r#"
import fcntl
pipes, held = [], 0
try:
    while True:
        read, write = os.pipe()
        pipes.append((read, write))
        tried(fcntl.fcntl, write, 1031, 1 << 20)
        os.set_blocking(write, False)
        while True:
            try:
                held += os.write(write, bytes(1 << 16))
            except BlockingIOError:
                break
except OSError as error:
    print(name(error.errno), held < 200 << 20)"#,
        &["EMFILE True"],
    )
    .with(r#"{"limits": {"open_files": 256}}"#),
    attack(
        "R-15",
        "timers, watches and message queues",
        r#"
timers = 0
while call(222, 0, 0, ctypes.create_string_buffer(8)) == 0 and timers < 5000:
    timers += 1
print(timers <= 256)"#,
        &["True"],
    ),
    attack(
        "R-17",
        "names of files that are not there",
        r#"
import signal
for number in range(200_000):
    try:
        os.stat(f"/tmp/nothing-{number:032}")
    except OSError:
        pass
print("done")"#,
        &["done"],
    ),
    attack(
        "R-27",
        "mappings without end",
        r#"
import mmap
maps = []
try:
    while len(maps) < 200_000:
        maps.append(mmap.mmap(-1, 4096, prot=mmap.PROT_READ if len(maps) % 2 else mmap.PROT_READ | mmap.PROT_WRITE))
except OSError as error:
    print(name(error.errno), len(maps) < 70_000)"#,
        &["ENOMEM True"],
    ),
    attack(
        "R-33",
        "terminals without end",
        r#"print(tried(os.open, "/dev/ptmx", os.O_RDWR), tried(os.open, "/dev/pts/ptmx", os.O_RDWR))"#,
        &["ENOENT ENOENT"],
    ),
];

#[test]
fn what_belongs_to_everybody_is_not_used_up() {
    repel(ATTACKS);
}
